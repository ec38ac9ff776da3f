package transport_test

import (
	"errors"
	"io"
	"math"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/transport"
)

func newGroup[K comparable](t testing.TB, cfg circuit.GroupConfig[K]) *circuit.Group[K] {
	t.Helper()
	g, err := circuit.NewGroup(cfg)
	require.NoError(t, err)
	return g
}

func newGuardBy[K comparable](t testing.TB, keyed core.KeyedGuard[K], key func(*http.Request) (K, error), base http.RoundTripper) *transport.Transport {
	t.Helper()
	rt, err := transport.GuardBy(keyed, key, base)
	require.NoError(t, err)
	return rt
}

func TestBreakerOfEachHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := transport.Origin{Scheme: "http", Host: "a"}, transport.Origin{Scheme: "http", Host: "b:8080"}
		group := newGroup(t, circuit.GroupConfig[transport.Origin]{
			Config: circuit.Config{FailureThreshold: 2, OpenFor: time.Minute, SuccessThreshold: 1},
		})
		sent, down := map[string]int{}, true
		rt := newGuardBy(t, group, transport.OriginOf, stub(func(req *http.Request) (*http.Response, error) {
			sent[req.URL.Host]++
			resp, err := respond(200, text("x"))(req)
			switch {
			case req.URL.Path == "/moved":
				resp.StatusCode = 302
				resp.Header.Set("Location", "http://a/")
			case down && strings.HasPrefix(strings.ToLower(req.URL.Host), "a"):
				resp.StatusCode = 503
			}
			return resp, err
		}))
		for _, url := range []string{"http://A:80/x", "http://a/y?q"} { // one host in two spellings
			require.NoError(t, get(t, rt, url))
		}
		require.Equal(t, circuit.Open, group.Get(a).State())
		body := text("x")
		_, err := rt.RoundTrip(request(t, "POST", "http://a/", body)) //nolint:bodyclose // refused
		require.ErrorIs(t, err, circuit.ErrOpen)
		require.IsType(t, &core.Rejection{}, err)
		require.Equal(t, time.Now().Add(time.Minute), retryAt(t, err))
		require.Equal(t, 1, body.closed)
		require.Equal(t, map[string]int{"A:80": 1, "a": 1}, sent)

		for range 5 {
			require.NoError(t, get(t, rt, "http://b:8080/"), "the failures of a are not those of b")
		}
		require.Equal(t, circuit.Closed, group.Get(b).State())
		_, err = (&http.Client{Transport: rt}).Get("http://b:8080/moved") //nolint:bodyclose // refused
		require.ErrorIs(t, err, circuit.ErrOpen, "a redirect is a request of the host that it leads to")
		require.EqualValues(t, 6, group.Get(b).Stats().Successes)

		down = false
		time.Sleep(time.Minute)
		resp, err := rt.RoundTrip(request(t, "GET", "http://a", nil))
		require.NoError(t, err)
		require.Equal(t, 1, group.Get(a).Stats().ProbesOut, "until the end of the body")
		_, err = io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, circuit.Closed, group.Get(a).State())
		require.NoError(t, resp.Body.Close())
	})
}

// Over sockets, with hosts that are down in different ways, and one that is up.
func TestBreakerOfEachHostOverTheWire(t *testing.T) {
	base, up := serve(t, behave)
	_, dying := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	group := newGroup(t, circuit.GroupConfig[transport.Origin]{Config: circuit.Config{FailureThreshold: 3}})
	client := &http.Client{Transport: newGuardBy(t, group, transport.OriginOf, base)}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				for _, url := range []string{up + "/ok", up + "/404", dying, "http://127.0.0.1:1"} {
					resp, err := client.Get(url)
					if err != nil {
						if strings.HasPrefix(url, up) {
							t.Error(err)
						}
						continue
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			}
		})
	}
	wg.Wait()
	for url, want := range map[string]circuit.State{up: circuit.Closed, dying: circuit.Open, "http://127.0.0.1:1": circuit.Open} {
		o, err := transport.OriginOf(request(t, "GET", url, nil))
		require.NoError(t, err)
		require.Equal(t, want, group.Get(o).State(), url)
	}
	require.Equal(t, 3, group.Stats().Keys)
}

// Where there are more hosts than the group has breakers, requests go out.
func TestMoreHostsThanBreakers(t *testing.T) {
	group := newGroup(t, circuit.GroupConfig[transport.Origin]{MaxKeys: 1, Config: circuit.Config{FailureThreshold: 1}})
	rt := newGuardBy(t, group, transport.OriginOf, stub(func(req *http.Request) (*http.Response, error) {
		return respond(500, text("x"))(req)
	}))
	require.NoError(t, get(t, rt, "http://a"))
	for range 3 {
		require.ErrorIs(t, get(t, rt, "http://a"), circuit.ErrOpen)
		require.NoError(t, get(t, rt, "http://b"))
	}
	var none *circuit.Group[transport.Origin]
	rt = newGuardBy(t, none, transport.OriginOf, respond(500, text("x")))
	require.NoError(t, get(t, rt, "http://a"))
}

func TestGuardByWithoutAKeySendsNothing(t *testing.T) {
	boom := errors.New("boom")
	var key func(*http.Request) (float64, error)
	group := newGroup(t, circuit.GroupConfig[float64]{})
	sent := 0
	rt := newGuardBy(t, group, func(req *http.Request) (float64, error) { return key(req) }, stub(func(req *http.Request) (*http.Response, error) {
		sent++
		return respond(200, http.NoBody)(req)
	}))
	outer := newBreaker(t, circuit.Config{FailureThreshold: 1})
	for name, c := range map[string]struct {
		key  float64
		err  error
		want error
	}{
		"error":           {7, boom, boom},
		"zero":            {0, nil, transport.ErrNoKey},
		"not a number":    {math.NaN(), nil, transport.ErrNoKey},
		"refusal":         {7, rejection(), errRefused},
		"marked refusal":  {7, core.Mark(rejection(), core.Failure), errRefused},
		"zero and failed": {0, boom, boom},
	} {
		key = func(*http.Request) (float64, error) { return c.key, c.err }
		body := text("x")
		_, err := transport.Guard(outer, rt).RoundTrip(request(t, "POST", "http://a", body)) //nolint:bodyclose // none
		require.ErrorIs(t, err, c.want, name)
		require.Equal(t, 1, body.closed, name)
	}
	require.Equal(t, circuit.Closed, outer.State())
	require.Zero(t, outer.Stats().Failures, "an error of the key says nothing of the server")

	body := text("x")
	key = func(*http.Request) (float64, error) { panic(boom) }
	require.PanicsWithValue(t, boom, func() { _, _ = rt.RoundTrip(request(t, "POST", "http://a", body)) }) //nolint:bodyclose // none
	require.Equal(t, 1, body.closed)
	body = text("x")
	key = func(*http.Request) (float64, error) { runtime.Goexit(); return 1, nil }
	exits(func() { _, _ = rt.RoundTrip(request(t, "POST", "http://a", body)) }) //nolint:bodyclose // none
	require.Equal(t, 1, body.closed)
	require.Zero(t, sent)
	require.Zero(t, group.Stats().Keys)

	asked := 0
	key = func(*http.Request) (float64, error) { asked++; return 1, nil }
	require.NoError(t, get(t, rt, "http://a"))
	require.Equal(t, 1, asked, "once for each request")
	require.Equal(t, 1, sent)
}

func TestGuardByHoldsNothingWhenTheBaseDoesNotReturn(t *testing.T) {
	for name, base := range map[string]stub{
		"panic":  func(*http.Request) (*http.Response, error) { panic("boom") },
		"Goexit": func(*http.Request) (*http.Response, error) { runtime.Goexit(); return nil, nil },
	} {
		group := newGroup(t, circuit.GroupConfig[string]{Config: circuit.Config{FailureThreshold: 1}})
		rt := newGuardBy(t, group, func(*http.Request) (string, error) { return "k", nil }, base)
		var value any
		exits(func() {
			defer func() { value = recover() }()
			_, _ = rt.RoundTrip(request(t, "GET", "http://a", nil)) //nolint:bodyclose // none
		})
		require.Equal(t, name == "panic", value == "boom")
		require.Equal(t, circuit.Open, group.Get("k").State(), name)
	}
}

func TestGuardByWithItsOwnOutcome(t *testing.T) {
	group := newGroup(t, circuit.GroupConfig[string]{Config: circuit.Config{FailureThreshold: 1}})
	rt, err := transport.GuardByWith(group, func(*http.Request) (string, error) { return "k", nil }, transport.GuardByConfig{
		Base: respond(404, text("x")),
		Outcome: func(resp *http.Response) core.Outcome {
			if resp.StatusCode == 404 {
				return core.Failure
			}
			return core.Success
		},
	})
	require.NoError(t, err)
	require.NoError(t, get(t, rt, "http://a"))
	require.ErrorIs(t, get(t, rt, "http://a"), circuit.ErrOpen)
}

func TestGuardByKeepsTheContract(t *testing.T) {
	var got *http.Request
	base := &idler{stub: func(req *http.Request) (*http.Response, error) {
		got = req
		return respond(500, text("why"))(req)
	}}
	group := newGroup(t, circuit.GroupConfig[transport.Origin]{})
	rt := newGuardBy(t, group, transport.OriginOf, base)
	req := request(t, "GET", "http://a", nil)
	resp, err := rt.RoundTrip(req)
	require.NoError(t, err)
	require.Same(t, req, got)
	require.Same(t, req, resp.Request)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "why", string(body))
	require.NoError(t, resp.Body.Close())
	(&http.Client{Transport: rt}).CloseIdleConnections()
	require.Equal(t, 1, base.closed)

	for status, body := range map[int]io.ReadCloser{101: struct{ io.ReadWriteCloser }{}, 200: http.NoBody} {
		resp, err := newGuardBy(t, group, transport.OriginOf, respond(status, body)).RoundTrip(request(t, "GET", "http://b", nil))
		require.NoError(t, err)
		require.Equal(t, body, resp.Body, "not wrapped")
	}
	require.EqualValues(t, 2, group.Get(transport.Origin{Scheme: "http", Host: "b"}).Stats().Successes)

	_, err = transport.GuardBy[string](nil, nil, nil)
	require.ErrorIs(t, err, core.ErrConfig)
	require.EqualError(t, err, "transport.GuardBy.keyed: must not be nil\ntransport.GuardBy.key: must not be nil")
}

// Behind a balancer it is the backend's host that counts, and a refusal leaves
// the backend's statistics as if it had not been picked.
func TestGuardByBehindABalancer(t *testing.T) {
	var hits atomic.Int32
	group := newGroup(t, circuit.GroupConfig[transport.Origin]{Config: circuit.Config{FailureThreshold: 1}})
	b := balancer(t, []string{"http://a", "http://b"})
	rt := newTransport(t, transport.Config{Backends: b, Base: newGuardBy(t, group, transport.OriginOf, stub(func(req *http.Request) (*http.Response, error) {
		if req.URL.Host == "a" {
			hits.Add(1)
			return respond(500, http.NoBody)(req)
		}
		return respond(200, http.NoBody)(req)
	}))})
	for range 20 {
		if err := get(t, rt, "http://logical"); err != nil {
			require.ErrorIs(t, err, circuit.ErrOpen)
		}
	}
	require.EqualValues(t, 1, hits.Load())
	for _, s := range b.Stats().Backends {
		require.Zero(t, s.InFlight)
		require.Equal(t, s.ID == "a", s.Failures == 1)
	}
}

func TestAllocationsOfGuardBy(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	one := newBreaker(t, circuit.Config{})
	group := newGroup(t, circuit.GroupConfig[transport.Origin]{Config: circuit.Config{FailureThreshold: 1}})
	req := request(t, "GET", "https://api.example:443/x", nil)
	guard, by := transport.Guard(one, bare{}), newGuardBy(t, group, transport.OriginOf, bare{})
	want := testing.AllocsPerRun(100, func() { once(guard, req) })
	require.Equal(t, want, testing.AllocsPerRun(100, func() { once(by, req) }), "as much as one breaker")

	o, err := transport.OriginOf(req)
	require.NoError(t, err)
	group.Get(o).ForceOpen(0)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, err := by.RoundTrip(req); err == nil { //nolint:bodyclose // refused
			panic("sent")
		}
	}))
}
