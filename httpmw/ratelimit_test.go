package httpmw

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
)

// meter is a KeyedGuard that remembers what it was asked, and how it ended.
type meter struct {
	fakeGuard
	keys  []string
	costs []int
	stand limit.Decision // what Peek says
	peeks []int
	panic any // what Peek panics with
}

func (m *meter) AcquireKey(ctx context.Context, key string, call core.Call) (core.Permit, error) {
	m.keys, m.costs = append(m.keys, key), append(m.costs, call.Cost)
	return m.Acquire(ctx, call)
}

func (m *meter) Peek(_ string, n int) limit.Decision {
	if m.panic != nil {
		panic(m.panic)
	}
	m.peeks = append(m.peeks, n)
	return m.stand
}

// limited is a middleware of cfg with defaults for what has none.
func limited(t testing.TB, cfg RateLimitConfig[string]) func(http.Handler) http.Handler {
	t.Helper()
	if cfg.Key == nil {
		cfg.Key = fixed("k")
	}
	mw, err := RateLimit(cfg)
	require.NoError(t, err)
	return mw
}

func TestRateLimitAsksTheGuardOfTheKey(t *testing.T) {
	m := &meter{}
	h := limited(t, RateLimitConfig[string]{Guard: m, Key: byHeader})(answer(200))
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Client", "a")
	h.ServeHTTP(httptest.NewRecorder(), r)
	require.Equal(t, []string{"a"}, m.keys)
	require.Equal(t, []int{1}, m.costs)
	require.Empty(t, m.peeks, "nothing is told, nothing asked")
	results, cancelled := m.ended(t)
	require.Equal(t, []core.Result{{}}, results)
	require.Zero(t, cancelled)
}

func TestNoKeyIsNeverAShare(t *testing.T) {
	for name, row := range map[string]struct {
		key  func(*http.Request) (string, error)
		want int
	}{
		"error":         {func(*http.Request) (string, error) { return "k", errors.New("no") }, 400},
		"chosen status": {func(*http.Request) (string, error) { return "k", StatusError(401) }, 401},
		"empty":         {fixed(""), 400},
		"rejected":      {func(*http.Request) (string, error) { return "k", &core.Rejection{Reason: core.Overloaded} }, 503},
	} {
		for _, cfg := range []RateLimitConfig[string]{{}, {Headers: HeadersDraft11 | HeadersLegacy, Problem: true}} {
			m := &meter{stand: limit.Decision{Policy: "p"}}
			cfg.Guard, cfg.Key = m, row.key
			cfg.Cost, cfg.CostAfter = func(*http.Request) int { return 1 }, func(*http.Request, Answer) int { panic("no") }
			got := get(limited(t, cfg)(answer(200)))
			require.Equal(t, row.want, got.Code, name)
			require.Empty(t, m.keys, name)
			require.Empty(t, m.peeks, name)
			require.Empty(t, got.Header().Get("RateLimit"), name)
		}
	}
	m := &meter{}
	require.Equal(t, 200, get(limited(t, RateLimitConfig[string]{Guard: m, Key: fixed(""), AllowZeroKey: true})(answer(200))).Code)
	require.Equal(t, []string{""}, m.keys)
}

func TestZeroAddressIsNoKey(t *testing.T) {
	asked := 0
	mw, err := RateLimit(RateLimitConfig[netip.Addr]{
		Guard: keyedFunc[netip.Addr](func() { asked++ }),
		Key:   func(*http.Request) (netip.Addr, error) { return netip.Addr{}, nil },
	})
	require.NoError(t, err)
	require.Equal(t, 400, get(mw(answer(200))).Code)
	require.Zero(t, asked)
}

// keyedFunc admits all, and says when it is asked.
type keyedFunc[K comparable] func()

func (f keyedFunc[K]) AcquireKey(context.Context, K, core.Call) (core.Permit, error) {
	f()
	return core.Permit{}, nil
}

func TestCost(t *testing.T) {
	for cost, want := range map[int]int{1: 200, 7: 200, 0: 200, -1: 500, math.MinInt: 500, math.MaxInt: 200} {
		m := &meter{}
		got := get(limited(t, RateLimitConfig[string]{Guard: m, Cost: func(*http.Request) int { return cost }})(answer(200)))
		require.Equal(t, want, got.Code, cost)
		if cost <= 0 {
			require.Empty(t, m.costs, cost)
		} else {
			require.Equal(t, []int{cost}, m.costs)
		}
	}
}

func TestCostOfARealLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cost := 0
		h := limited(t, RateLimitConfig[string]{
			Guard: newBuckets[string](limit.PerSecond(1), 10), Headers: HeadersDraft11,
			Cost: func(*http.Request) int { return cost },
		})(answer(200))
		for _, row := range []struct {
			cost, status      int
			left, retryAfter_ string
		}{
			{4, 200, `"p";r=6;t=6`, ""},
			{0, 200, `"p";r=6;t=6`, ""},
			{7, 429, `"p";r=6;t=1`, "1"},
			{10, 429, `"p";r=6;t=4`, "4"},
			{11, 429, `"p";r=6;t=6`, ""},
			{math.MaxInt, 429, `"p";r=6;t=6`, ""},
			{-1, 500, "", ""},
			{6, 200, `"p";r=0;t=1`, ""},
			{1, 429, `"p";r=0;t=1`, "1"},
			{0, 200, `"p";r=0;t=1`, ""},
		} {
			cost = row.cost
			got := get(h)
			require.Equal(t, row.status, got.Code, cost)
			require.Equal(t, row.left, got.Header().Get("RateLimit"), cost)
			require.Equal(t, row.retryAfter_, got.Header().Get("Retry-After"), cost)
		}
	})
}

// buckets is a bucket for each key, as *limit.Keyed would keep them.
type buckets[K comparable] struct {
	cfg limit.TokenBucketConfig
	of  map[K]*limit.TokenBucket
}

func newBuckets[K comparable](rate limit.Rate, burst int) *buckets[K] {
	return &buckets[K]{limit.TokenBucketConfig{Name: "p", Rate: rate, Burst: burst}, map[K]*limit.TokenBucket{}}
}

func (b *buckets[K]) get(key K) *limit.TokenBucket {
	if b.of[key] == nil {
		b.of[key] = must(limit.NewTokenBucket(b.cfg))
	}
	return b.of[key]
}

func (b *buckets[K]) AcquireKey(ctx context.Context, key K, call core.Call) (core.Permit, error) {
	return b.get(key).Acquire(ctx, call)
}

func (b *buckets[K]) Peek(key K, n int) limit.Decision { return b.get(key).Peek(n) }

func TestCostAfter(t *testing.T) {
	for said, want := range map[int]int{5: 5, 1: 1, 0: core.CostNothing, -1: 0, math.MinInt: 0, math.MaxInt: math.MaxInt} {
		m := &meter{}
		get(limited(t, RateLimitConfig[string]{Guard: m, CostAfter: func(*http.Request, Answer) int { return said }})(answer(200)))
		require.Equal(t, want, m.only(t).Cost, said)
	}
}

func TestCostAfterOfARealLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wrote := 0
		h := limited(t, RateLimitConfig[string]{
			Guard: newBuckets[string](limit.PerSecond(1), 10), Headers: HeadersDraft11, Unit: "content-bytes",
			CostAfter: func(_ *http.Request, a Answer) int { return int(a.Bytes) },
		})(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("x", wrote)) }))
		for _, row := range []struct {
			wrote, status int
			left          string
		}{
			{0, 200, `"p";r=9;t=9`}, // as it was taken, and then given back
			{3, 200, `"p";r=9;t=9`},
			{12, 200, `"p";r=6;t=6`},
			{1, 429, `"p";r=0;t=6`}, // 5 in debt, and 1 to come
		} {
			wrote = row.wrote
			got := get(h)
			require.Equal(t, row.status, got.Code, wrote)
			require.Equal(t, row.left, got.Header().Get("RateLimit"), wrote)
			require.Equal(t, `"p";q=10;qu="content-bytes";w=10`, got.Header().Get("RateLimit-Policy"))
		}
	})
}

func TestAnswer(t *testing.T) {
	ask := func(h http.Handler) {
		done := make(chan struct{}, 1)
		srv := httptest.NewServer(after(h, func() { done <- struct{}{} }))
		defer srv.Close()
		resp, err := srv.Client().Post(srv.URL, "", nil)
		if err == nil {
			_ = resp.Body.Close()
		}
		awaiting(t, done)
	}
	for name, row := range map[string]struct {
		handle http.HandlerFunc
		want   Answer
	}{
		"nothing": {func(http.ResponseWriter, *http.Request) {}, Answer{200, 0, true}},
		"status":  {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, Answer{404, 0, true}},
		"write":   {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 5)) }, Answer{200, 5, true}},
		"string":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "12345") }, Answer{200, 5, true}},
		"copy": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.Copy(w, io.LimitReader(strings.NewReader("123456"), 5))
		}, Answer{200, 5, true}},
		"too much": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "3")
			_, _ = w.Write(make([]byte, 5))
		}, Answer{200, 0, true}},
		"early": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(103); w.WriteHeader(201) }, Answer{201, 0, true}},
		"panic": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, Answer{0, 0, false}},
		"late panic": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "12345")
			panic(http.ErrAbortHandler)
		}, Answer{200, 5, false}},
		"hijack": {func(w http.ResponseWriter, _ *http.Request) {
			conn, buf, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_, _ = io.Copy(io.Discard, io.LimitReader(bufio.NewReader(buf), 0))
				_ = conn.Close()
			}
		}, Answer{101, 0, true}},
	} {
		m, said := &meter{}, []Answer{}
		ask(limited(t, RateLimitConfig[string]{Guard: m, CostAfter: func(_ *http.Request, a Answer) int {
			said = append(said, a)
			return 3
		}})(row.handle))
		require.Equal(t, []Answer{row.want}, said, name)
		require.Equal(t, 3, m.only(t).Cost, name)
	}
}

func TestCostAfterIsNotAskedOfWhatDidNotRun(t *testing.T) {
	never := func(*http.Request, Answer) int { panic("asked") }
	refuse := &fakeGuard{refusal: &core.Rejection{Reason: core.CircuitOpen}}
	for name, row := range map[string]struct {
		cfg       RateLimitConfig[string]
		inner     func(http.Handler) http.Handler
		cancelled int
	}{
		"refused":              {RateLimitConfig[string]{Guard: &meter{fakeGuard: fakeGuard{refusal: &core.Rejection{}}}}, nil, 0},
		"skipped":              {RateLimitConfig[string]{Guard: &meter{}, SkipPaths: []string{"/"}}, nil, 0},
		"free":                 {RateLimitConfig[string]{Guard: &meter{}, Cost: func(*http.Request) int { return 0 }}, nil, 0},
		"refused inside":       {RateLimitConfig[string]{Guard: &meter{}}, Guard(refuse), 1},
		"refused far inside":   {RateLimitConfig[string]{Guard: &meter{}}, Chain(logged, Guard(refuse)), 1},
		"aborted when refused": {RateLimitConfig[string]{Guard: &meter{}}, GuardWith(refuse, GuardConfig{Refuse: func(http.ResponseWriter, *http.Request, int, error) { panic(http.ErrAbortHandler) }}), 1},
	} {
		m := row.cfg.Guard.(*meter)
		row.cfg.CostAfter = never
		func() {
			defer func() {
				if v := recover(); v != nil {
					require.Equal(t, http.ErrAbortHandler, v, name)
				}
			}()
			get(Chain(limited(t, row.cfg), row.inner)(answer(200)))
		}()
		results, cancelled := m.ended(t)
		require.Empty(t, results, name)
		require.Equal(t, row.cancelled, cancelled, name)
	}
}

// However the handler and CostAfter end, the permit ends once, and what was
// said of the cost counts.
func TestCostAfterEveryEnd(t *testing.T) {
	ends := map[string]func(){
		"return": func() {}, "panic": func() { panic("x") }, "abort": func() { panic(http.ErrAbortHandler) }, "exit": runtime.Goexit,
	}
	for handler, handlerEnds := range ends {
		for callback, callbackEnds := range ends {
			for _, wants := range allWants {
				m, asked := &meter{fakeGuard: fakeGuard{wants: wants}}, 0
				h := limited(t, RateLimitConfig[string]{Guard: m, CostAfter: func(*http.Request, Answer) int {
					asked++
					callbackEnds()
					return 9
				}})(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { handlerEnds() }))
				done := make(chan any, 1)
				go func() {
					defer func() { done <- recover() }()
					get(h)
				}()
				thrown := <-done
				name := handler + ", " + callback
				require.Equal(t, 1, asked, name)
				want := 0
				if callback == "return" {
					want = 9
				}
				got := m.only(t)
				require.Equal(t, want, got.Cost, name)
				if handler != "return" && callback == "return" && handler != "abort" {
					require.ErrorIs(t, got.Err, core.ErrNoReturn, name)
				}
				switch {
				case handler == "exit" || callback == "exit":
				case callback == "panic" || callback == "return" && handler == "panic":
					require.Equal(t, "x", thrown, name)
				case callback == "abort" || handler == "abort":
					require.Equal(t, http.ErrAbortHandler, thrown, name)
				default:
					require.Nil(t, thrown, name)
				}
			}
		}
	}
}

// A callback that does not return loses no permit, of whatever kind.
func TestCallbacksThatDoNotReturnHoldNothing(t *testing.T) {
	ends := map[string]func(){"panic": func() { panic("x") }, "exit": runtime.Goexit}
	for how, end := range ends {
		for name, set := range map[string]func(*RateLimitConfig[string]){
			"Key": func(c *RateLimitConfig[string]) {
				c.Key = func(*http.Request) (string, error) { end(); return "k", nil }
			},
			"Skip":         func(c *RateLimitConfig[string]) { c.Skip = func(*http.Request) bool { end(); return true } },
			"Cost":         func(c *RateLimitConfig[string]) { c.Cost = func(*http.Request) int { end(); return 1 } },
			"PartitionKey": func(c *RateLimitConfig[string]) { c.PartitionKey = func(string) []byte { end(); return nil } },
		} {
			for _, wants := range allWants {
				m := &meter{fakeGuard: fakeGuard{wants: wants}, stand: limit.Decision{Policy: "p"}}
				cfg := RateLimitConfig[string]{Guard: m, Headers: HeadersDraft11}
				set(&cfg)
				h := limited(t, cfg)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the handler ran") }))
				done := make(chan any, 1)
				go func() {
					defer func() { done <- recover() }()
					get(h)
				}()
				thrown := <-done
				if how == "panic" {
					require.Equal(t, "x", thrown, name)
				}
				results, cancelled := m.ended(t)
				require.Empty(t, results, "%s, %s", name, how)
				require.Len(t, m.keys, cancelled, "%s, %s", name, how)
			}
		}
	}
	m := &meter{panic: "x", fakeGuard: fakeGuard{wants: core.WantsEnd}}
	require.PanicsWithValue(t, "x", func() { get(limited(t, RateLimitConfig[string]{Guard: m, Headers: HeadersLegacy})(answer(200))) })
	_, cancelled := m.ended(t)
	require.Equal(t, 1, cancelled)
}

func TestSkip(t *testing.T) {
	m := &meter{stand: limit.Decision{Policy: "p", Limit: 1}}
	h := limited(t, RateLimitConfig[string]{
		Guard: m, Headers: HeadersDraft11,
		SkipPaths: []string{"/healthz", "/static/", "/a/b", "/"},
		Skip:      func(r *http.Request) bool { return r.Header.Get("Purpose") == "probe" },
	})(answer(200))
	for target, skipped := range map[string]bool{
		"/healthz": true, "/healthz?x=1": true, "/": true, "/static/": true, "/static/a/b.js": true, "/a/b": true, "/static/a/": true,
		"/healthz/": false, "/healthzz": false, "/Healthz": false, "/static": false, "/buy": false, "//healthz": false, "//": false,
		"/static/../buy": false, "/static/./x": false, "/static//x": false, "/static/..": false, "/static/%2e%2e/buy": false,
		"/static/..%2fbuy": false, "/static/..;/buy": false, "/static/%252e%252e/buy": false, `/static/..\buy`: false,
		"/static%2Fbuy": false, "/a%2Fb": false, "/healthz%2F": false, "/static/x;/y": false, "/x/../healthz": false,
	} {
		m.keys = nil
		r := httptest.NewRequest("GET", "/", nil)
		u, err := url.ParseRequestURI(target) // as net/http does
		require.NoError(t, err, target)
		if strings.HasPrefix(target, "//") {
			u.Host, u.Path = "", target
		}
		r.URL = u
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		require.Equal(t, skipped, len(m.keys) == 0, "%s (%s)", target, r.URL.Path)
		require.Equal(t, skipped, w.Header().Get("RateLimit") == "", target)
	}
	m.keys = nil
	r := httptest.NewRequest("GET", "/buy", nil)
	r.Header.Set("Purpose", "probe")
	h.ServeHTTP(httptest.NewRecorder(), r)
	h.ServeHTTP(httptest.NewRecorder(), &http.Request{Header: http.Header{"Purpose": {"probe"}}}) // no URL
	require.Empty(t, m.keys)
}

func TestRetryAfterIsLateByItsJitterAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meter{stand: limit.Decision{Policy: "p", Limit: 10, Window: time.Minute, RetryAfter: 90 * time.Second}}
		h := limited(t, RateLimitConfig[string]{Guard: m, Headers: HeadersDraft11, Jitter: 10 * time.Second})(answer(200))
		seen := map[int]int{}
		for range 2000 {
			m.refuse(&core.Rejection{Reason: core.RateLimited, RetryAt: time.Now().Add(1500 * time.Millisecond)})
			got := get(h)
			seconds := must(strconv.Atoi(got.Header().Get("Retry-After")))
			seen[seconds]++
			require.Equal(t, int64(seconds), items(t, got.Header(), "RateLimit")[0].get("t"), "both say the same")
		}
		for s := range seen {
			require.True(t, 2 <= s && s <= 12, s)
		}
		require.Len(t, seen, 11, "each is seen but once in 10^40 runs")

		m.refuse(&core.Rejection{Reason: core.NeverFits})
		require.Empty(t, get(h).Header().Get("Retry-After"))
		m.refuse(&core.Rejection{Reason: core.RateLimited, RetryAt: time.Now().Add(math.MaxInt64)})
		require.Equal(t, "9223372037", get(h).Header().Get("Retry-After"))
		m.refuse(&core.Rejection{Reason: core.ConcurrencyLimited}) // nobody knows when
		seconds := must(strconv.Atoi(get(h).Header().Get("Retry-After")))
		require.True(t, 1 <= seconds && seconds <= 11, seconds)
	})
}

func TestProblemTypesOfTheDraft(t *testing.T) {
	for name, row := range map[string]struct {
		refusal error
		stand   limit.Decision
		policy  string
		status  int
		body    string
	}{
		"quota": {
			&core.Rejection{Guard: "limiter", Reason: core.RateLimited},
			limit.Decision{Policy: "plan"},
			"", 429,
			`{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Quota Exceeded","status":429,"violated-policies":["plan"]}`,
		},
		"capacity": {
			&core.Rejection{Guard: "bulkhead", Reason: core.ConcurrencyLimited},
			limit.Decision{},
			"", 503,
			`{"type":"https://iana.org/assignments/http-problem-types#temporary-reduced-capacity","title":"Temporary Reduced Capacity","status":503,"violated-policies":["bulkhead"]}`,
		},
		"named": {
			&core.Rejection{Guard: "limiter", Reason: core.NeverFits},
			limit.Decision{Policy: "plan"},
			"daily", 429,
			`{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Quota Exceeded","status":429,"violated-policies":["daily"]}`,
		},
		"a guard that failed": {
			errors.New("secret"), limit.Decision{Policy: "plan"}, "", 503, `{"type":"about:blank","title":"Service Unavailable","status":503}`,
		},
	} {
		m := &meter{fakeGuard: fakeGuard{refusal: row.refusal}, stand: row.stand}
		got := get(limited(t, RateLimitConfig[string]{Guard: m, Problem: true, Policy: row.policy})(answer(200)))
		require.Equal(t, row.status, got.Code, name)
		require.Equal(t, "application/problem+json", got.Header().Get("Content-Type"), name)
		require.JSONEq(t, row.body, got.Body.String(), name)
		require.Empty(t, got.Header().Get("RateLimit"), name)
	}
	// A guard that cannot tell how it stands is named all the same.
	mw, err := RateLimit(RateLimitConfig[string]{Guard: closedTo{}, Key: fixed("k"), Problem: true})
	require.NoError(t, err)
	require.Contains(t, get(mw(answer(200))).Body.String(), `"violated-policies":["closed"]`)
}

type closedTo struct{}

func (closedTo) AcquireKey(context.Context, string, core.Call) (core.Permit, error) {
	return core.Permit{}, &core.Rejection{Guard: "closed", Reason: core.RateLimited}
}

func TestRefuseOfARateLimit(t *testing.T) {
	rejection := &core.Rejection{Guard: "g", Reason: core.RateLimited}
	m := &meter{fakeGuard: fakeGuard{refusal: rejection}, stand: limit.Decision{Policy: "p", Limit: 1, Window: time.Second}}
	var told error
	got := get(limited(t, RateLimitConfig[string]{Guard: m, Headers: HeadersDraft11, Refuse: func(w http.ResponseWriter, _ *http.Request, status int, err error) {
		told = err
		require.NotEmpty(t, w.Header().Get("RateLimit"), "the headers are there before the answer")
		w.WriteHeader(status)
	}})(answer(200)))
	require.Equal(t, 429, got.Code)
	require.Equal(t, error(rejection), told)
}

// A request that an inner limit refuses costs the outer one nothing; both tell.
func TestNestedLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		daily := newBuckets[string](limit.PerDay(1000), 1000)
		burst := newBuckets[string](limit.PerMinute(2), 2)
		outer := limited(t, RateLimitConfig[string]{Guard: burst, Policy: "burst", Headers: HeadersDraft11 | HeadersLegacy, Problem: true})
		inner := limited(t, RateLimitConfig[string]{Guard: daily, Policy: "daily", Headers: HeadersDraft11 | HeadersLegacy, Problem: true})
		h := Chain(outer, inner)(answer(200))
		got := get(h)
		require.Equal(t, []string{`"burst";q=2;w=60, "daily";q=1000;w=86400`}, got.Header().Values("RateLimit-Policy"))
		require.Equal(t, []string{`"burst";r=1;t=30, "daily";r=999;t=86314`}, got.Header().Values("RateLimit"))
		require.Equal(t, []string{"1"}, got.Header().Values("X-RateLimit-Remaining"))
		require.Equal(t, []string{"2"}, got.Header().Values("X-RateLimit-Limit"))
		daily.get("k").Charge(999)
		for range 3 {
			got = get(h)
			require.Equal(t, 429, got.Code)
			require.Equal(t, []string{`"burst";r=0;t=30, "daily";r=0;t=87`}, got.Header().Values("RateLimit"))
			require.Equal(t, "87", got.Header().Get("Retry-After"))
			require.Equal(t, "1000", got.Header().Get("X-RateLimit-Limit"), "of the one that refused")
			require.Contains(t, got.Body.String(), `"violated-policies":["daily"]`)
		}
		require.Equal(t, 1, burst.get("k").Peek(0).Remaining, "what was refused inside came back")
	})
}

func TestLegacyHeadersOfARefusalAreOfTheOneThatRefused(t *testing.T) {
	outer := &meter{stand: limit.Decision{Policy: "outer", Limit: 100, Window: time.Hour, RetryAfter: time.Hour, ResetAfter: 99 * time.Hour}}
	inner := &meter{
		fakeGuard: fakeGuard{refusal: &core.Rejection{Reason: core.RateLimited}},
		stand:     limit.Decision{OK: true, Policy: "inner", Limit: 10, Remaining: 2, Window: time.Minute, ResetAfter: time.Second},
	}
	h := Chain(
		limited(t, RateLimitConfig[string]{Guard: outer, Headers: HeadersLegacy}),
		limited(t, RateLimitConfig[string]{Guard: inner, Headers: HeadersLegacy}),
	)
	got := get(h(answer(200)))
	require.Equal(t, "10", got.Header().Get("X-RateLimit-Limit"))
	require.Equal(t, "3", got.Header().Get("X-RateLimit-Remaining"))
	inner.refuse(nil)
	require.Equal(t, "100", get(h(answer(200))).Header().Get("X-RateLimit-Limit"))
}

func TestNestedLimitsAcrossOtherMiddleware(t *testing.T) {
	outer := &meter{fakeGuard: fakeGuard{wants: core.WantsResult}}
	inner := &meter{fakeGuard: fakeGuard{refusal: &core.Rejection{Reason: core.RateLimited}}}
	h := Chain(limited(t, RateLimitConfig[string]{Guard: outer}), logged, limited(t, RateLimitConfig[string]{Guard: inner}))(answer(200))
	require.Equal(t, 429, get(h).Code)
	_, cancelled := outer.ended(t)
	require.Equal(t, 1, cancelled)
}

// A limit that was skipped is not in between.
func TestSkippedLimitsHideNoRefusal(t *testing.T) {
	outer := &meter{}
	inner := &meter{fakeGuard: fakeGuard{refusal: &core.Rejection{Reason: core.RateLimited}}}
	h := Chain(
		limited(t, RateLimitConfig[string]{Guard: outer}),
		limited(t, RateLimitConfig[string]{Guard: &meter{}, SkipPaths: []string{"/"}}),
		limited(t, RateLimitConfig[string]{Guard: inner}),
	)(answer(200))
	require.Equal(t, 429, get(h).Code)
	_, cancelled := outer.ended(t)
	require.Equal(t, 1, cancelled)
}

func TestLimitBehindAShadow(t *testing.T) {
	m := &meter{fakeGuard: fakeGuard{refusal: &core.Rejection{Reason: core.RateLimited}}, stand: limit.Decision{Policy: "p", Limit: 1, Window: time.Second}}
	shadow, err := core.ShadowKeyed[string](m, core.ShadowKeyedConfig[string]{})
	require.NoError(t, err)
	_, err = RateLimit(RateLimitConfig[string]{Guard: shadow, Key: fixed("k"), Headers: HeadersDraft11})
	require.ErrorContains(t, err, "set Peeker to what is behind it")
	got := get(limited(t, RateLimitConfig[string]{Guard: shadow, Peeker: m, Headers: HeadersDraft11})(answer(200)))
	require.Equal(t, 200, got.Code)
	require.Equal(t, `"p";r=0;t=0`, got.Header().Get("RateLimit"))
}

// A limiter that is none has nothing to tell.
func TestNoLimitTellsNothing(t *testing.T) {
	got := get(limited(t, RateLimitConfig[string]{Guard: &meter{stand: limit.Decision{OK: true, Limit: math.MaxInt}}, Headers: HeadersDraft11 | HeadersLegacy})(answer(200)))
	require.Equal(t, 200, got.Code)
	require.Empty(t, got.Header())
}

func TestRateLimitConfigReportsAllProblems(t *testing.T) {
	_, err := RateLimit(RateLimitConfig[string]{
		SkipPaths: []string{"healthz", "/a/../b", "/{id}", "/ok", "GET /x", "/y?z", ""},
		Headers:   16 | HeadersDraft10 | HeadersDraft11 | HeadersLegacy | HeadersLegacyUnix,
		Policy:    "täglich", Unit: "\n", Jitter: -1, Problem: true, Refuse: refuseWithText,
	})
	require.ErrorIs(t, err, core.ErrConfig)
	const paths = `: must be clean paths: "/healthz", or "/static/" for all below it
httpmw.RateLimitConfig.`
	require.EqualError(t, err, `httpmw.RateLimitConfig.Guard: must be set
httpmw.RateLimitConfig.Key: must be set
httpmw.RateLimitConfig.SkipPaths: healthz`+paths+`SkipPaths: /a/../b`+paths+`SkipPaths: /{id}`+paths+`SkipPaths: GET /x`+paths+`SkipPaths: /y?z`+paths+`SkipPaths: `+paths+
		`Headers: 31: must be of the Headers constants
httpmw.RateLimitConfig.Headers: 31: must have one legacy form at most: they are the same headers
httpmw.RateLimitConfig.Headers: 31: must have one draft at most: they are the same headers
httpmw.RateLimitConfig.Policy: must be printable ASCII
httpmw.RateLimitConfig.Unit: must be printable ASCII
httpmw.RateLimitConfig.Jitter: -1ns: must be 0 to 24h
httpmw.RateLimitConfig.Refuse: must be nil with Problem`)
	_, err = RateLimit(RateLimitConfig[string]{Guard: closedTo{}, Key: fixed("k"), Headers: HeadersLegacy})
	require.ErrorContains(t, err, "need a Guard that is a Peeker")
	_, err = RateLimit(RateLimitConfig[string]{Guard: &meter{}, Key: fixed("k"), Jitter: 24*time.Hour + 1})
	require.ErrorIs(t, err, core.ErrConfig)
}

func TestRateLimitAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	keyed, err := limit.NewKeyed(limit.KeyedConfig[netip.Addr]{
		Limit: limit.TokenBucketConfig{Rate: limit.PerSecond(1_000_000), Burst: 1_000_000},
	})
	require.NoError(t, err)
	peek := newBuckets[netip.Addr](limit.PerSecond(1_000_000), 1_000_000)
	cfg := ClientIPConfig{Proxies: proxies}
	for name, row := range map[string]struct {
		cfg  RateLimitConfig[netip.Addr]
		want float64
	}{
		"peer":          {RateLimitConfig[netip.Addr]{Key: PeerIP}, 0},
		"forwarded for": {RateLimitConfig[netip.Addr]{Key: must(ForwardedForIP(cfg))}, 0},
		"forwarded":     {RateLimitConfig[netip.Addr]{Key: must(ForwardedIP(cfg))}, 0},
		"skip and cost": {RateLimitConfig[netip.Addr]{
			Key: PeerIP, SkipPaths: []string{"/healthz", "/static/"},
			Skip: func(*http.Request) bool { return false }, Cost: func(*http.Request) int { return 2 },
		}, 0},
		"skipped":    {RateLimitConfig[netip.Addr]{Key: PeerIP, SkipPaths: []string{"/"}}, 0},
		"cost after": {RateLimitConfig[netip.Addr]{Key: PeerIP, CostAfter: func(*http.Request, Answer) int { return 1 }}, 1},
		"draft":      {RateLimitConfig[netip.Addr]{Guard: peek, Key: PeerIP, Headers: HeadersDraft11}, 2},
		"legacy":     {RateLimitConfig[netip.Addr]{Guard: peek, Key: PeerIP, Headers: HeadersLegacy}, 2},
		"both":       {RateLimitConfig[netip.Addr]{Guard: peek, Key: PeerIP, Headers: HeadersLegacyUnix | HeadersDraft10}, 4},
	} {
		if row.cfg.Guard == nil {
			row.cfg.Guard = keyed
		}
		mw, err := RateLimit(row.cfg)
		require.NoError(t, err, name)
		h := mw(http.HandlerFunc(ok))
		for _, remote := range []string{"10.0.0.1:80", "[fd00::1]:80"} {
			w, r := &discard{header: http.Header{}}, from(remote, "X-Forwarded-For: 192.0.2.60", "Forwarded: for=192.0.2.60")
			require.Equal(t, row.want, testing.AllocsPerRun(100, func() {
				clear(w.header)
				h.ServeHTTP(w, r)
			}), name)
		}
	}
}
