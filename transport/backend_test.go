package transport_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/transport"
)

func TestParseBackends(t *testing.T) {
	list, err := transport.ParseBackends([]string{"http://a:80", "https://b/api/"}, func(id string) (core.Guard, error) {
		return circuit.New(circuit.Config{Name: id})
	})
	require.NoError(t, err)
	require.Equal(t, "a:80", list[0].ID)
	require.Equal(t, "b/api", list[1].ID)
	require.Equal(t, "b/api", list[1].Guard.(*circuit.Breaker).Name())
	require.Equal(t, "https://b/api/", list[1].Value.String())

	_, err = transport.ParseBackends([]string{
		"http://ok", "http://u:secret1@h", "h:80", "http://", "ftp://h", "http://h?q", "http://h#f", "http://%zz:secret2@h",
		"http://:80",
	}, nil)
	require.ErrorIs(t, err, core.ErrConfig)
	for i, problem := range []string{
		"1: the URL at this index must not hold a user: set the Authorization header",
		"2: the URL at this index must have the scheme http or https",
		"3: the URL at this index must have a host",
		"4: the URL at this index must have the scheme http or https",
		"5: the URL at this index must not have a query or a fragment",
		"6: the URL at this index must not have a query or a fragment",
		"7: the URL at this index must parse",
		"8: the URL at this index must have a host",
	} {
		require.Equal(t, "transport.ParseBackends.urls: "+problem, strings.Split(err.Error(), "\n")[i])
	}
	require.NotContains(t, err.Error(), "secret")

	failed := errors.New("no guard")
	_, err = transport.ParseBackends([]string{"http://a"}, func(string) (core.Guard, error) { return nil, failed })
	require.ErrorIs(t, err, failed)
}

func TestNewReportsBackendsThatCannotBeSentTo(t *testing.T) {
	b, err := balance.New(balance.Config[*url.URL]{Backends: []balance.Backend[*url.URL]{
		{ID: "a"}, {ID: "b", Value: &url.URL{Scheme: "http", Host: "ok"}}, {ID: "c", Value: &url.URL{Host: "x"}},
	}})
	require.NoError(t, err)
	rt, err := transport.New(transport.Config{Backends: b})
	require.Nil(t, rt)
	require.ErrorIs(t, err, core.ErrConfig)
	require.EqualError(t, err, "transport.Config.Backends: a: must not be nil\n"+
		"transport.Config.Backends: c: must have the scheme http or https")
}

func TestRequestThatCannotBeSentToABackend(t *testing.T) {
	g := newGuard()
	b := balancer(t, []string{"http://b"}, g)
	rt := newTransport(t, transport.Config{Backends: b, Base: respond(200, nil)})

	opaque := request(t, "POST", "http://a", text(""))
	opaque.URL.Opaque = "//a/b"
	noURL := request(t, "POST", "http://a", text(""))
	noURL.URL = nil
	for i, req := range []*http.Request{opaque, noURL} {
		_, err := rt.RoundTrip(req) //nolint:bodyclose // an error
		require.Error(t, err)
		require.Equal(t, 1, req.Body.(*closable).closed)
		require.Equal(t, i+1, g.cancelled)
	}
	// A backend that came later is checked when it is picked.
	require.NoError(t, b.Update([]balance.Backend[*url.URL]{{ID: "nil"}}))
	_, err := rt.RoundTrip(request(t, "GET", "http://a", nil)) //nolint:bodyclose // an error
	require.EqualError(t, err, `transport: backend "nil": the URL must not be nil`)
	require.Zero(t, b.Stats().Backends[0].InFlight)
}

func TestRequestIsRewrittenForItsBackend(t *testing.T) {
	for _, c := range []struct{ backend, url, host, wantURL, wantHost string }{
		{"http://b:81", "http://logical/x?q=1", "", "http://b:81/x?q=1", "b:81"},
		{"https://b", "http://logical/x", "", "https://b/x", "b"},
		{"http://b/", "http://logical", "", "http://b", "b"},
		{"http://b/api", "http://logical", "", "http://b/api", "b"},
		{"http://b/api", "http://logical/", "", "http://b/api/", "b"},
		{"http://b/api/", "http://logical/x/", "", "http://b/api/x/", "b"},
		{"http://b/api", "http://logical//x/../y", "", "http://b/api//x/../y", "b"},
		{"http://b/a%2Fb", "http://logical/c%2Fd", "", "http://b/a%2Fb/c%2Fd", "b"},
		{"http://b/a b", "http://logical/c%2Fd", "", "http://b/a%20b/c%2Fd", "b"},
		{"http://b/a%2Fb", "http://logical/c d", "", "http://b/a%2Fb/c%20d", "b"},
		{"http://b/a%2F", "http://logical/c", "", "http://b/a%2F/c", "b"}, // its prefix ends in no slash
		{"http://b", "/relative", "", "http://b/relative", "b"},
		{"http://b", "http://logical/x", "meant.example", "http://b/x", "meant.example"},
		{"http://b", "http://logical/x", "logical", "http://b/x", "b"},
	} {
		var got *http.Request
		rt := newTransport(t, transport.Config{
			Backends: balancer(t, []string{c.backend}),
			Base:     stub(func(req *http.Request) (*http.Response, error) { got = req; return respond(200, http.NoBody)(req) }),
		})
		req := request(t, "GET", c.url, nil)
		if c.host != "" {
			req.Host = c.host
		}
		_, err := rt.RoundTrip(req) //nolint:bodyclose // there is none
		require.NoError(t, err)
		require.Equal(t, c.wantURL, got.URL.String(), "%+v", c)
		host := got.Host
		if host == "" {
			host = got.URL.Host
		}
		require.Equal(t, c.wantHost, host, "%+v", c)
	}
}

func TestBackendThatFailsIsLeftOutByItsBreaker(t *testing.T) {
	var urls []string
	var hits [3]int
	var mu sync.Mutex
	for i := range 3 {
		_, address := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			hits[i]++
			if i == 1 {
				w.WriteHeader(500)
			}
		})
		urls = append(urls, address)
	}
	list, err := transport.ParseBackends(urls, func(id string) (core.Guard, error) { return circuit.New(circuit.Config{Name: id}) })
	require.NoError(t, err)
	b, err := balance.New(balance.Config[*url.URL]{Backends: list})
	require.NoError(t, err)
	base := &http.Transport{}
	t.Cleanup(base.CloseIdleConnections)
	client := &http.Client{Transport: newTransport(t, transport.Config{Base: base, Backends: b})}

	answers := map[int]int{}
	for range 65 {
		resp, err := client.Get("http://payments/charge")
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		answers[resp.StatusCode]++
	}
	require.Equal(t, map[int]int{500: 5, 200: 60}, answers, "five failures open the breaker, then nobody sees one")
	require.Equal(t, 5, hits[1])
	require.InDelta(t, 30, hits[0], 1, "its share is spread evenly")
	for _, s := range b.Stats().Backends {
		require.Zero(t, s.InFlight)
		require.Equal(t, s.ID != list[1].ID, s.Ready)
	}
}

func TestBackendThatIsDownIsLeftOutByItsBreaker(t *testing.T) {
	up, address := serve(t, func(http.ResponseWriter, *http.Request) {})
	dead, err := circuit.New(circuit.Config{})
	require.NoError(t, err)
	const nobody = "http://127.0.0.1:1" // a port that nothing listens on
	client := &http.Client{Transport: newTransport(t, transport.Config{
		Base: up, Backends: balancer(t, []string{nobody, address}, dead),
	})}
	failed := 0
	for range 50 {
		resp, err := client.Get("http://logical")
		if err != nil {
			failed++
			continue
		}
		require.NoError(t, resp.Body.Close())
	}
	require.Equal(t, 5, failed)
	require.Equal(t, circuit.Open, dead.State())
}

func TestBackendWhoseGuardRefusesIsPassedOver(t *testing.T) {
	full, free := newGuard(), newGuard()
	full.refusal = rejection()
	hosts := map[string]int{}
	rt := newTransport(t, transport.Config{
		Backends: balancer(t, []string{"http://full", "http://free"}, full, free),
		Base: stub(func(req *http.Request) (*http.Response, error) {
			hosts[req.URL.Host]++
			return respond(200, http.NoBody)(req)
		}),
	})
	for range 10 {
		_, err := rt.RoundTrip(request(t, "GET", "http://a", nil)) //nolint:bodyclose // there is none
		require.NoError(t, err)
	}
	require.Equal(t, map[string]int{"free": 10}, hosts)
}

// Whatever callers do with their contexts and bodies, nothing stays held.
func TestNothingIsHeldAfterAStorm(t *testing.T) {
	var urls []string
	for range 3 {
		_, address := serve(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			switch r.URL.Path {
			case "/fail":
				w.WriteHeader(500)
			case "/break":
				w.Header().Set("Content-Length", "100")
				_, _ = io.WriteString(w, "short")
			case "/long":
				for range 50 {
					_, _ = w.Write(make([]byte, 1024))
					_ = http.NewResponseController(w).Flush()
				}
			}
		})
		urls = append(urls, address)
	}
	outer := newGuard()
	guards := []core.Guard{newGuard(), newGuard(), newGuard()}
	b := balancer(t, urls, guards...)
	base := &http.Transport{}
	t.Cleanup(base.CloseIdleConnections)
	client := &http.Client{Transport: newTransport(t, transport.Config{Base: base, Guard: outer, Backends: b})}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(7, uint64(w)))
			for range 60 {
				ctx, cancel := context.WithCancel(t.Context())
				path := []string{"/", "/fail", "/break", "/long"}[rng.IntN(4)]
				req, err := http.NewRequestWithContext(ctx, "POST", "http://logical"+path, strings.NewReader("x"))
				if err != nil {
					t.Error(err)
				}
				how := rng.IntN(4)
				if how == 0 {
					go cancel()
				}
				resp, err := client.Do(req)
				if err == nil {
					switch how {
					case 1:
						cancel()
						_, _ = io.Copy(io.Discard, resp.Body)
					case 2:
						_, _ = resp.Body.Read(make([]byte, 10))
					default:
						_, _ = io.Copy(io.Discard, resp.Body)
					}
					_ = resp.Body.Close()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	for _, g := range append(guards, outer) {
		require.Zero(t, g.(*fakeGuard).out())
		require.Zero(t, g.(*fakeGuard).twice)
	}
	ended := uint64(0)
	for _, s := range b.Stats().Backends {
		require.Zero(t, s.InFlight)
		ended += s.Successes + s.Failures + s.Ignored + s.Throttled + s.Cancelled
	}
	require.EqualValues(t, 8*60, ended)
	require.Len(t, outer.results, 8*60)
}
