package transport_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
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
	"github.com/surgewall/surgewall/core/limit"
	"github.com/surgewall/surgewall/httpmw"
	"github.com/surgewall/surgewall/transport"
)

var (
	_ transport.Limiter = (*limit.TokenBucket)(nil)
	_ transport.Limiter = (*limit.LeakyBucket)(nil)

	_ transport.KeyedLimiter[string] = (*limit.Keyed[string])(nil)
)

func newBucket(t testing.TB, cfg limit.TokenBucketConfig) *limit.TokenBucket {
	t.Helper()
	if cfg.Rate == (limit.Rate{}) {
		cfg.Rate, cfg.Burst = limit.PerSecond(1000), 1000
	}
	b, err := limit.NewTokenBucket(cfg)
	require.NoError(t, err)
	return b
}

func newRateLimit(t testing.TB, l transport.Limiter, cfg transport.RateLimitConfig) *transport.Transport {
	t.Helper()
	rt, err := transport.RateLimit(l, cfg)
	require.NoError(t, err)
	return rt
}

func newKeyed[K comparable](t testing.TB, each limit.Algorithm) *limit.Keyed[K] {
	t.Helper()
	k, err := limit.NewKeyed(limit.KeyedConfig[K]{Limit: each})
	require.NoError(t, err)
	return k
}

// answers is a base that answers the n-th request with the n-th of its answers,
// and then with 200.
type answers struct {
	list []answer

	mu   sync.Mutex
	sent []time.Time
}

type answer struct {
	status int
	fields []string // names and values
}

func (a *answers) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	next := answer{status: 200}
	if n := len(a.sent); n < len(a.list) {
		next = a.list[n]
	}
	a.sent = append(a.sent, time.Now())
	resp, err := respond(next.status, http.NoBody)(req)
	for i := 0; i < len(next.fields); i += 2 {
		resp.Header.Add(next.fields[i], next.fields[i+1])
	}
	return resp, err
}

// get sends a request that has no body and expects an answer that has none.
func get(t testing.TB, rt http.RoundTripper, url string) error {
	t.Helper()
	resp, err := rt.RoundTrip(request(t, "GET", url, nil))
	if err == nil {
		require.NoError(t, resp.Body.Close())
	}
	return err
}

func retryAt(t testing.TB, err error) time.Time {
	t.Helper()
	r, ok := errors.AsType[*core.Rejection](err)
	require.True(t, ok, "%v", err)
	return r.RetryAt
}

func TestRateLimitWaitsOrRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := &answers{}
		cfg := limit.TokenBucketConfig{Rate: limit.PerSecond(10), Burst: 2}
		rt := newRateLimit(t, newBucket(t, cfg), transport.RateLimitConfig{Base: base})
		start := time.Now()
		require.NoError(t, get(t, rt, "http://a"))
		require.NoError(t, get(t, rt, "http://b"))
		body := text("x")
		_, err := rt.RoundTrip(request(t, "POST", "http://a", body)) //nolint:bodyclose // refused
		require.ErrorIs(t, err, limit.ErrLimited)
		require.Equal(t, start.Add(100*time.Millisecond), retryAt(t, err))
		require.Equal(t, 1, body.closed)
		require.Len(t, base.sent, 2)

		cfg.MaxWait = time.Second
		rt = newRateLimit(t, newBucket(t, cfg), transport.RateLimitConfig{Base: base})
		for range 5 {
			require.NoError(t, get(t, rt, "http://a"))
		}
		require.Equal(t, 300*time.Millisecond, time.Since(start))
	})
}

func TestRateLimitByOrigin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := transport.Origin{Scheme: "http", Host: "a"}, transport.Origin{Scheme: "http", Host: "b:8080"}
		each := newKeyed[transport.Origin](t, limit.TokenBucketConfig{Rate: limit.PerSecond(1), Burst: 2})
		base := stub(func(req *http.Request) (*http.Response, error) {
			resp, err := respond(200, http.NoBody)(req)
			switch {
			case req.URL.Path == "/moved":
				resp.StatusCode = 302
				resp.Header.Set("Location", "http://b:8080/")
			case req.URL.Host == "a":
				resp.Header.Set("RateLimit", `"default";r=0;t=60`)
			}
			return resp, err
		})
		rt, err := transport.RateLimitBy(each, transport.OriginOf, transport.RateLimitConfig{Base: base})
		require.NoError(t, err)
		client := &http.Client{Transport: rt}
		resp, err := client.Get("http://A:80/moved") // one of a, one of b
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, 1, each.Peek(a, 0).Remaining)
		require.Equal(t, 1, each.Peek(b, 0).Remaining)

		require.NoError(t, get(t, rt, "http://a/"))
		start := time.Now()
		require.Equal(t, start.Add(61*time.Second), retryAt(t, get(t, rt, "http://a/")), "paused, with an empty bucket")
		require.NoError(t, get(t, rt, "http://b:8080/"), "the pause of a is not that of b")
		time.Sleep(time.Second)
		_, err = client.Get("http://b:8080/moved") //nolint:bodyclose // refused
		require.ErrorIs(t, err, limit.ErrLimited, "the redirect is a request too")
		require.Zero(t, each.Peek(b, 0).Remaining)
	})
}

func TestOriginOf(t *testing.T) {
	for url, want := range map[string]string{
		"http://a":                            "http://a",
		"http://a:80/x?y#z":                   "http://a",
		"https://user:password@A.Example:443": "https://a.example",
		"https://a:80":                        "https://a:80",
		"http://a:443":                        "http://a:443",
		"http://a:8080":                       "http://a:8080",
		"http://a:":                           "http://a",
		"HTTP://[::1]:80":                     "http://[::1]",
		"http://[::80]":                       "http://[::80]",
		"http://a.:80":                        "http://a.",
		"http://a:0080":                       "http://a",
		"https://[::1]:00443":                 "https://[::1]",
		"http://a:08080":                      "http://a:8080",
		"http://a:0":                          "http://a:0",
		"http://a:00":                         "http://a:0",
	} {
		o, err := transport.OriginOf(request(t, "GET", url, nil))
		require.NoError(t, err)
		require.Equal(t, want, o.String())
	}
	for _, req := range []*http.Request{{}, request(t, "GET", "/x", nil), request(t, "GET", "mailto:a", nil)} {
		_, err := transport.OriginOf(req)
		require.Error(t, err)
	}
}

// counting is a limiter for each key that counts what it is asked.
type counting[K comparable] struct{ asked, paused map[K]int }

func (c *counting[K]) AcquireKey(_ context.Context, key K, _ core.Call) (core.Permit, error) {
	c.asked[key]++
	return core.Permit{}, nil
}

func (c *counting[K]) Pause(key K, _ time.Time) { c.paused[key]++ }

func TestNoKeyNoRequest(t *testing.T) {
	boom := errors.New("boom")
	var key func(*http.Request) (float64, error)
	l := &counting[float64]{map[float64]int{}, map[float64]int{}}
	base := &answers{}
	rt, err := transport.RateLimitBy(l, func(req *http.Request) (float64, error) { return key(req) }, transport.RateLimitConfig{Base: base})
	require.NoError(t, err)
	// A breaker in front learns nothing from a key that cannot be told.
	breaker, err := circuit.New(circuit.Config{FailureThreshold: 1})
	require.NoError(t, err)
	outer := transport.Guard(breaker, rt)
	post := func() (body *closable, err error) {
		body = text("x")
		_, err = outer.RoundTrip(request(t, "POST", "http://a", body)) //nolint:bodyclose // none
		return body, err
	}

	key = func(*http.Request) (float64, error) { return 7, boom }
	body, err := post()
	require.ErrorIs(t, err, boom)
	require.EqualError(t, err, "transport: no key for this request: boom")
	require.Equal(t, 1, body.closed)

	for _, k := range []float64{0, math.NaN()} {
		key = func(*http.Request) (float64, error) { return k, nil }
		body, err = post()
		require.ErrorIs(t, err, transport.ErrNoKey)
		require.Equal(t, 1, body.closed)
	}
	require.Equal(t, circuit.Closed, breaker.State())
	require.Zero(t, breaker.Stats().Failures)

	// A refusal in the key function is a refusal.
	key = func(*http.Request) (float64, error) { return 0, core.Mark(rejection(), core.Failure) }
	_, err = post()
	require.Error(t, err)
	require.Equal(t, circuit.Closed, breaker.State())
	g := newGuard()
	key = func(*http.Request) (float64, error) { return 0, rejection() }
	_, err = transport.Guard(g, rt).RoundTrip(request(t, "GET", "http://a", nil)) //nolint:bodyclose // none
	require.ErrorIs(t, err, errRefused)
	g.onlyCancelled(t)

	body = text("x")
	key = func(*http.Request) (float64, error) { panic(boom) }
	require.PanicsWithValue(t, boom, func() { _, _ = rt.RoundTrip(request(t, "POST", "http://a", body)) }) //nolint:bodyclose // none
	require.Equal(t, 1, body.closed)
	body = text("x")
	key = func(*http.Request) (float64, error) { runtime.Goexit(); return 1, nil }
	exits(func() { _, _ = rt.RoundTrip(request(t, "POST", "http://a", body)) }) //nolint:bodyclose // none
	require.Equal(t, 1, body.closed)

	require.Empty(t, l.asked)
	require.Empty(t, base.sent)
	calls := 0
	key = func(*http.Request) (float64, error) { calls++; return 1, nil }
	base.list = []answer{{429, []string{"Retry-After", "1"}}}
	require.NoError(t, get(t, rt, "http://a"))
	require.Equal(t, 1, calls, "the key is asked for once")
	require.Equal(t, map[float64]int{1: 1}, l.asked)
	require.Equal(t, map[float64]int{1: 1}, l.paused)
}

// exits runs f, which ends its goroutine.
func exits(f func()) {
	var wg sync.WaitGroup
	wg.Go(f)
	wg.Wait()
}

func TestAskedThatDoesNotReturnHoldsNothing(t *testing.T) {
	for name, asked := range map[string]func(*http.Response) time.Duration{
		"panic":  func(*http.Response) time.Duration { panic("boom") },
		"Goexit": func(*http.Response) time.Duration { runtime.Goexit(); return 0 },
	} {
		g := &pausable{fakeGuard: newGuard()}
		body := text("x")
		rt := newRateLimit(t, g, transport.RateLimitConfig{Base: respond(429, body), Asked: asked})
		exits(func() {
			defer func() { _ = recover() }()
			_, _ = rt.RoundTrip(request(t, "GET", "http://a", nil)) //nolint:bodyclose // none
		})
		require.Equal(t, 1, body.closed, name)
		require.Equal(t, core.Throttled, g.only(t).Outcome, name)
		require.Empty(t, g.until)
	}
}

// pausable is a guard that holds something until a call has ended, or wants to
// hear how: a bulkhead, or a limiter that adapts.
type pausable struct {
	*fakeGuard
	pausing
}

func (p *pausable) Acquire(ctx context.Context, c core.Call) (core.Permit, error) {
	return p.fakeGuard.Acquire(ctx, c)
}

func TestRateLimitHoldsItsPermit(t *testing.T) {
	for _, wants := range []core.Wants{core.WantsEnd, core.WantsResult} {
		g := &pausable{fakeGuard: newGuard()}
		g.wants = wants
		rt := newRateLimit(t, g, transport.RateLimitConfig{Base: respond(200, text("x"))})
		resp, err := rt.RoundTrip(request(t, "GET", "http://a", nil))
		require.NoError(t, err)
		require.Equal(t, 1, g.out(), "until the end of the body")
		_, err = io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Zero(t, g.out())
		require.NoError(t, resp.Body.Close())
		if wants == core.WantsResult {
			require.Equal(t, core.Success, g.only(t).Outcome)
		}
	}
	// A refusal further in gives back what was taken.
	g := &pausable{fakeGuard: newGuard()}
	inner := newGuard()
	inner.refusal = rejection()
	rt := newRateLimit(t, g, transport.RateLimitConfig{Base: transport.Guard(inner, respond(200, nil))})
	require.ErrorIs(t, get(t, rt, "http://a"), errRefused)
	g.onlyCancelled(t)
	// An error is no answer, and asks for nothing.
	boom := errors.New("boom")
	g = &pausable{fakeGuard: newGuard()}
	rt = newRateLimit(t, g, transport.RateLimitConfig{
		Base:  stub(func(*http.Request) (*http.Response, error) { return nil, boom }),
		Asked: func(*http.Response) time.Duration { t.Error("asked"); return time.Hour },
	})
	require.Equal(t, boom, get(t, rt, "http://a"))
	require.Equal(t, core.Failure, g.only(t).Outcome)
	require.Empty(t, g.until)
}

// What the limiter refuses is no failure of what stands behind it.
func TestRateLimitInFrontOfABreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		breaker, err := circuit.New(circuit.Config{FailureThreshold: 1})
		require.NoError(t, err)
		base := &answers{list: []answer{{429, []string{"Retry-After", "60"}}}}
		rt := newRateLimit(t, newBucket(t, limit.TokenBucketConfig{}), transport.RateLimitConfig{Base: transport.Guard(breaker, base)})
		require.NoError(t, get(t, rt, "http://a"))
		for range 10 {
			require.ErrorIs(t, get(t, rt, "http://a"), limit.ErrLimited)
		}
		require.Equal(t, circuit.Closed, breaker.State())
		require.Zero(t, breaker.Stats().Failures)
		require.Len(t, base.sent, 1)
	})
}

// Behind a balancer each backend is limited and paused by itself: what it
// refuses leaves the statistics of the backend as if it had not been picked.
func TestRateLimitBehindABalancer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		each := newKeyed[transport.Origin](t, limit.TokenBucketConfig{Rate: limit.PerSecond(100)})
		limited, err := transport.RateLimitBy(each, transport.OriginOf, transport.RateLimitConfig{
			Base: stub(func(req *http.Request) (*http.Response, error) {
				resp, err := respond(200, http.NoBody)(req)
				if req.URL.Host == "a" {
					resp.StatusCode = 503
					resp.Header.Set("Retry-After", "60")
				}
				return resp, err
			}),
		})
		require.NoError(t, err)
		backends := balancer(t, []string{"http://a", "http://b"})
		rt := newTransport(t, transport.Config{Base: limited, Backends: backends})
		ok, refused := 0, 0
		for range 10 {
			if err := get(t, rt, "http://logical"); err == nil {
				ok++
			} else {
				require.ErrorIs(t, err, limit.ErrLimited)
				refused++
			}
		}
		require.Equal(t, 6, ok, "one of a, five of b")
		require.Equal(t, 4, refused)
		for _, s := range backends.Stats().Backends {
			require.Zero(t, s.InFlight)
		}
	})
}

func TestRateLimitConfigProblems(t *testing.T) {
	_, err := transport.RateLimit(nil, transport.RateLimitConfig{MaxPause: -1, Jitter: -2})
	require.ErrorIs(t, err, core.ErrConfig)
	require.EqualError(t, err, `transport.RateLimit.limiter: must not be nil
transport.RateLimit.cfg.MaxPause: -1ns: must not be negative
transport.RateLimit.cfg.Jitter: -2ns: must not be negative`)
	_, err = transport.RateLimitBy[string](nil, nil, transport.RateLimitConfig{})
	require.EqualError(t, err, "transport.RateLimit.limiter: must not be nil\ntransport.RateLimit.key: must not be nil")

	// A nil limiter of a type is no limit, and cannot be paused.
	var none *limit.TokenBucket
	rt := newRateLimit(t, none, transport.RateLimitConfig{Base: &answers{list: []answer{{429, []string{"Retry-After", "1"}}}}})
	require.NoError(t, get(t, rt, "http://a"))
	require.NoError(t, get(t, rt, "http://a"))
}

func TestRateLimitKeepsTheContract(t *testing.T) {
	var got *http.Request
	base := &idler{stub: func(req *http.Request) (*http.Response, error) {
		got = req
		return respond(429, text("slow down"))(req)
	}}
	rt := newRateLimit(t, newBucket(t, limit.TokenBucketConfig{}), transport.RateLimitConfig{Base: base})
	req := request(t, "GET", "http://a", nil)
	resp, err := rt.RoundTrip(req)
	require.NoError(t, err)
	require.Same(t, req, got)
	require.Same(t, req, resp.Request)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, "slow down", string(body))
	(&http.Client{Transport: rt}).CloseIdleConnections()
	require.Equal(t, 1, base.closed)
}

// Over the wire: what counts are the headers, of the answer that is final.
func TestRateLimitOverTheWire(t *testing.T) {
	var served atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		switch r.URL.Path {
		case "/hints":
			w.Header().Set("RateLimit", `"default";r=0;t=60`)
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("RateLimit")
		case "/trailer":
			w.Header().Set("Trailer", "RateLimit")
			_, _ = io.WriteString(w, "hello")
			w.Header().Set("RateLimit", `"default";r=0;t=60`)
		case "/lines":
			w.Header()["RateLimit"] = []string{`"a";r=1;t=60`, `"b";r=0;t=60`}
		}
	}))
	defer server.Close()
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	rt := newRateLimit(t, newBucket(t, limit.TokenBucketConfig{}), transport.RateLimitConfig{Base: base})
	client := &http.Client{Transport: rt}
	for _, path := range []string{"/hints", "/trailer", "/lines"} {
		resp, err := client.Get(server.URL + path)
		require.NoError(t, err)
		_, err = io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		if path == "/trailer" {
			require.NotEmpty(t, resp.Trailer.Get("RateLimit"))
		}
	}
	_, err := client.Post(server.URL, "text/plain", strings.NewReader("x")) //nolint:bodyclose // refused
	require.ErrorIs(t, err, limit.ErrLimited)
	after, ok := errors.AsType[*core.Rejection](err)
	require.True(t, ok)
	require.WithinRange(t, after.RetryAt, time.Now(), time.Now().Add(time.Minute))
	require.EqualValues(t, 3, served.Load())
}

// Client and server of this module understand each other: who heeds what the
// server tells is not refused, and still gets what there is.
func TestRateLimitAgainstOurServer(t *testing.T) {
	for name, c := range map[string]struct {
		headers httpmw.Headers
		asked   func(*http.Response) time.Duration
		refused int
	}{
		"draft 10":    {httpmw.HeadersDraft10, nil, 0},
		"draft 11":    {httpmw.HeadersDraft11, nil, 0},
		"seconds":     {httpmw.HeadersLegacy, transport.PauseAskedSeconds, 0},
		"unix":        {httpmw.HeadersLegacyUnix, transport.PauseAskedUnix, 0},
		"Retry-After": {httpmw.HeadersNone, nil, 18}, // every other one
		"unheeded":    {httpmw.HeadersDraft10, func(*http.Response) time.Duration { return 0 }, 35},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				limited, err := httpmw.RateLimit(httpmw.RateLimitConfig[string]{
					Guard:   newKeyed[string](t, limit.TokenBucketConfig{Rate: limit.PerSecond(1), Burst: 5}),
					Key:     func(*http.Request) (string, error) { return "all", nil },
					Headers: c.headers,
				})
				require.NoError(t, err)
				handler := limited(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
				refused := 0
				base := stub(func(req *http.Request) (*http.Response, error) {
					w := httptest.NewRecorder()
					handler.ServeHTTP(w, req)
					if w.Code == http.StatusTooManyRequests {
						refused++
					}
					return w.Result(), nil
				})
				bucket := newBucket(t, limit.TokenBucketConfig{Rate: limit.PerSecond(1000), Burst: 1000, MaxWait: time.Hour})
				rt := newRateLimit(t, bucket, transport.RateLimitConfig{Base: base, Asked: c.asked})
				start := time.Now()
				for range 40 {
					require.NoError(t, get(t, rt, "http://a"))
				}
				require.Equal(t, c.refused, refused)
				if c.asked == nil && c.refused == 0 {
					require.Equal(t, 35*time.Second, time.Since(start), "five at once, then one a second")
				}
			})
		})
	}
}

func TestAllocationsOfRateLimit(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	bucket := newBucket(t, limit.TokenBucketConfig{Rate: limit.PerSecond(1e9), Burst: 1 << 29})
	each := newKeyed[transport.Origin](t, limit.TokenBucketConfig{Rate: limit.PerSecond(1e9), Burst: 1 << 29})
	by, err := transport.RateLimitBy(each, transport.OriginOf, transport.RateLimitConfig{Base: bare{}})
	require.NoError(t, err)
	told := &tells{header: http.Header{"Ratelimit": {`"a";r=50;t=30, "b";r=1;x="y"`}, "Age": {"0"}}}
	req := request(t, "GET", "https://api.example:443/x", nil)
	for name, c := range map[string]struct {
		base, rt http.RoundTripper
	}{
		"one":       {bare{}, newRateLimit(t, bucket, transport.RateLimitConfig{Base: bare{}})},
		"by origin": {bare{}, by},
		"told":      {told, newRateLimit(t, bucket, transport.RateLimitConfig{Base: told})},
	} {
		want := testing.AllocsPerRun(100, func() { once(c.base, req) })
		require.Equal(t, want, testing.AllocsPerRun(100, func() { once(c.rt, req) }), name)
	}
	// A flood of requests during a pause allocates nothing.
	each.Pause(transport.Origin{Scheme: "https", Host: "api.example"}, time.Now().Add(time.Hour))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, err := by.RoundTrip(req); err == nil { //nolint:bodyclose // refused
			panic("sent during a pause")
		}
	}))
}

// tells answers with the same fields every time.
type tells struct{ header http.Header }

func (a *tells) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Header: a.header, Body: emptyBody{}, Request: req}, nil
}

func BenchmarkRateLimit(b *testing.B) {
	bucket := newBucket(b, limit.TokenBucketConfig{Rate: limit.PerSecond(1e9), Burst: 1 << 29})
	each := newKeyed[transport.Origin](b, limit.TokenBucketConfig{Rate: limit.PerSecond(1e9), Burst: 1 << 29})
	by, err := transport.RateLimitBy(each, transport.OriginOf, transport.RateLimitConfig{Base: bare{}})
	require.NoError(b, err)
	told := &tells{header: http.Header{"Ratelimit": {`"default";r=50;t=30`}, "Date": {"x"}}}
	for _, c := range []struct {
		name string
		rt   http.RoundTripper
	}{
		{"bare", bare{}},
		{"guard", transport.Guard(bucket, bare{})},
		{"one", newRateLimit(b, bucket, transport.RateLimitConfig{Base: bare{}})},
		{"by origin", by},
		{"told, bare", told},
		{"told", newRateLimit(b, bucket, transport.RateLimitConfig{Base: told})},
	} {
		b.Run(c.name, func(b *testing.B) {
			req := request(b, "GET", "https://api.example/x", nil)
			b.ReportAllocs()
			for b.Loop() {
				once(c.rt, req)
			}
		})
	}
}
