package httpmw

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
)

// What clients are told holds, whatever the algorithm: who is told that
// something remains gets it, and who waits as long as he is told to is admitted.
func TestHeadersTellTheTruth(t *testing.T) {
	for name, algorithm := range map[string]func(n int, per time.Duration) limit.Algorithm{
		"token bucket": func(n int, per time.Duration) limit.Algorithm {
			return limit.TokenBucketConfig{Rate: limit.Per(n, per), Burst: n}
		},
		"token bucket, little burst": func(n int, per time.Duration) limit.Algorithm {
			return limit.TokenBucketConfig{Rate: limit.Per(n, per), Burst: (n + 2) / 3}
		},
		"leaky bucket": func(n int, per time.Duration) limit.Algorithm {
			return limit.LeakyBucketConfig{Rate: limit.Per(n, per), Capacity: n}
		},
		"sliding window": func(n int, per time.Duration) limit.Algorithm {
			return limit.SlidingWindowConfig{Limit: n, Window: per}
		},
		"sliding log": func(n int, per time.Duration) limit.Algorithm {
			return limit.SlidingLogConfig{Limit: n, Window: per}
		},
	} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				n := rapid.IntRange(1, 12).Draw(rt, "limit")
				per := time.Duration(rapid.IntRange(1, 90_000).Draw(rt, "window")) * time.Millisecond
				pauses := rapid.SliceOfN(rapid.Int64Range(-int64(per), 2*int64(per)), 1, 40).Draw(rt, "pauses")
				require.Empty(rt, complaint(t, func(t require.TestingT) { obeys(t, algorithm(n, per), pauses) }))
			})
		})
	}
}

// complaint is why f fails in a bubble, where rapid cannot go.
func complaint(t *testing.T, f func(require.TestingT)) string {
	var c complaints
	synctest.Test(t, func(*testing.T) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			f(&c)
		}()
		<-done
	})
	return c.said
}

type complaints struct{ said string }

func (c *complaints) Errorf(format string, args ...any) { c.said += fmt.Sprintf(format, args...) }
func (c *complaints) FailNow()                          { runtime.Goexit() }

// obeys is a client that does what it is told, and checks that that was right.
// Between requests it waits for a while; if that is 0 or negative, it asks again
// at once, or when it was told to.
func obeys(t require.TestingT, algorithm limit.Algorithm, pauses []int64) {
	keyed, err := limit.NewKeyed(limit.KeyedConfig[string]{Name: "p", Limit: algorithm})
	require.NoError(t, err)
	mw, err := RateLimit(RateLimitConfig[string]{Guard: keyed, Key: fixed("k"), Headers: HeadersDraft11 | HeadersLegacy})
	require.NoError(t, err)
	h := mw(answer(200))
	mayRefuse, expect := false, int64(-1)
	for _, pause := range pauses {
		got := get(h)
		if !mayRefuse {
			require.Equal(t, 200, got.Code)
		}
		list, err := parseSFList(got.Header().Get("RateLimit"))
		require.NoError(t, err)
		require.Len(t, list, 1)
		r, after := list[0].get("r").(int64), list[0].get("t").(int64)
		if got.Code == 429 {
			require.Zero(t, r)
			require.Equal(t, strconv.FormatInt(after, 10), got.Header().Get("Retry-After"))
		}
		if expect >= 0 {
			require.Equal(t, expect, r, "no time has passed")
		}
		mayRefuse, expect = r == 0, -1
		switch {
		case pause > 0:
			time.Sleep(time.Duration(pause))
		case pause%2 != 0:
			time.Sleep(time.Duration(after) * time.Second)
			mayRefuse = false
		default:
			expect = max(0, r-1)
		}
	}
	reset := must(strconv.Atoi(get(h).Header().Get("X-RateLimit-Reset")))
	time.Sleep(time.Duration(reset) * time.Second)
	d := keyed.Peek("k", 0)
	require.Equal(t, d.Limit, d.Remaining, "after the reset it is as if unused")
}

// Plans have limits and names of their own; a pause stops everybody.
func TestPlansAndPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keyed, err := limit.NewKeyed(limit.KeyedConfig[string]{
			Name: "limits", Limit: limit.TokenBucketConfig{Rate: limit.PerMinute(10), Burst: 10},
			Plans: map[string]limit.Algorithm{"pro": limit.TokenBucketConfig{Rate: limit.PerMinute(600), Burst: 600}},
			Plan: func(key string) string {
				if key == "alice" {
					return "pro"
				}
				return ""
			},
		})
		require.NoError(t, err)
		h := limited(t, RateLimitConfig[string]{Guard: keyed, Key: byHeader, Headers: HeadersDraft11, Problem: true})(answer(200))
		ask := func(client string) *httptest.ResponseRecorder {
			w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Client", client)
			h.ServeHTTP(w, r)
			return w
		}
		require.Equal(t, `"pro";q=600;w=60`, ask("alice").Header().Get("RateLimit-Policy"))
		require.Equal(t, `"limits";q=10;w=60`, ask("bob").Header().Get("RateLimit-Policy"))
		require.Equal(t, `"pro";r=598;t=60`, ask("alice").Header().Get("RateLimit"))

		keyed.Pause("alice", time.Now().Add(90*time.Second))
		got := ask("alice")
		require.Equal(t, 429, got.Code)
		require.Equal(t, "90", got.Header().Get("Retry-After"))
		require.Equal(t, `"pro";r=0;t=90`, got.Header().Get("RateLimit"))
		require.Contains(t, got.Body.String(), `"violated-policies":["pro"]`)
		require.Equal(t, `"limits";r=8;t=48`, ask("bob").Header().Get("RateLimit"))
		time.Sleep(90 * time.Second)
		require.Equal(t, 200, ask("alice").Code)
	})
}

// A nil *limit.Keyed is no limit, with headers too.
func TestNilKeyedIsNoLimit(t *testing.T) {
	got := get(must(RateLimit(RateLimitConfig[netip.Addr]{
		Guard: (*limit.Keyed[netip.Addr])(nil), Key: PeerIP, Headers: HeadersDraft11 | HeadersLegacy,
	}))(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) })))
	require.Equal(t, 200, got.Code)
	require.Empty(t, got.Header())
	var _ core.KeyedGuard[netip.Addr] = (*limit.Keyed[netip.Addr])(nil)
}

// Who goes by the reset is spread by the jitter as well as who goes by
// Retry-After.
func TestLegacyResetIsNotBeforeRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keyed, err := limit.NewKeyed(limit.KeyedConfig[string]{Limit: limit.TokenBucketConfig{Rate: limit.PerSecond(1), Burst: 1}})
		require.NoError(t, err)
		h := limited(t, RateLimitConfig[string]{Guard: keyed, Key: fixed("k"), Headers: HeadersLegacy, Jitter: time.Hour})(answer(200))
		get(h)
		for range 20 {
			got := get(h)
			require.Equal(t, 429, got.Code)
			require.Equal(t, got.Header().Get("Retry-After"), got.Header().Get("X-RateLimit-Reset"))
		}
	})
}
