package httpmw_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
	"github.com/surgewall/surgewall/httpmw"
)

// perHour is a limit for each client address.
func perHour(name string, n int) *limit.Keyed[netip.Addr] {
	return must(limit.NewKeyed(limit.KeyedConfig[netip.Addr]{
		Name: name, Limit: limit.TokenBucketConfig{Rate: limit.PerHour(n), Burst: n},
	}))
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") })

// ask makes a request and prints what a client sees of a limit.
func ask(h http.Handler, path, client string) {
	w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil)
	r.RemoteAddr = client + ":4711"
	h.ServeHTTP(w, r)
	fmt.Printf("%d", w.Code)
	for _, name := range []string{"RateLimit-Policy", "RateLimit", "X-RateLimit-Limit", "X-RateLimit-Remaining", "Retry-After"} {
		if v := w.Header().Get(name); v != "" {
			fmt.Printf(" | %s: %s", name, v)
		}
	}
	fmt.Println()
}

// Two requests an hour for each client address; health checks are free.
func ExampleRateLimit() {
	limited, err := httpmw.RateLimit(httpmw.RateLimitConfig[netip.Addr]{
		Guard:     perHour("hourly", 2),
		Key:       httpmw.PeerIP,
		Headers:   httpmw.HeadersDraft11,
		SkipPaths: []string{"/healthz"},
	})
	if err != nil {
		panic(err)
	}
	h := limited(hello)
	ask(h, "/", "192.0.2.60")
	ask(h, "/", "192.0.2.60")
	ask(h, "/", "192.0.2.60")
	ask(h, "/", "192.0.2.61")
	ask(h, "/healthz", "192.0.2.60")
	// Output:
	// 200 | RateLimit-Policy: "hourly";q=2;w=3600 | RateLimit: "hourly";r=1;t=1800
	// 200 | RateLimit-Policy: "hourly";q=2;w=3600 | RateLimit: "hourly";r=0;t=1800
	// 429 | RateLimit-Policy: "hourly";q=2;w=3600 | RateLimit: "hourly";r=0;t=1800 | Retry-After: 1800
	// 200 | RateLimit-Policy: "hourly";q=2;w=3600 | RateLimit: "hourly";r=1;t=1800
	// 200
}

// Limits nest, and each tells of itself. What the inner one refuses does not
// count for the outer one.
func ExampleRateLimit_nested() {
	perMinute := must(limit.NewKeyed(limit.KeyedConfig[netip.Addr]{
		Name: "burst", Limit: limit.TokenBucketConfig{Rate: limit.PerMinute(100), Burst: 100},
	}))
	perDay := must(limit.NewKeyed(limit.KeyedConfig[netip.Addr]{
		Name: "daily", Limit: limit.TokenBucketConfig{Rate: limit.PerDay(1000), Burst: 1000},
	}))
	limited := httpmw.Chain(
		must(httpmw.RateLimit(httpmw.RateLimitConfig[netip.Addr]{Guard: perMinute, Key: httpmw.PeerIP, Headers: httpmw.HeadersDraft10})),
		must(httpmw.RateLimit(httpmw.RateLimitConfig[netip.Addr]{Guard: perDay, Key: httpmw.PeerIP, Headers: httpmw.HeadersDraft10})),
	)
	w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)
	limited(hello).ServeHTTP(w, r)
	fmt.Println(w.Header().Get("RateLimit-Policy"))
	// Output:
	// "burst";q=100;w=60, "daily";q=1000;w=86400
}

// What a request costs may depend on the request, and on what came of it: here
// a search costs 10 beforehand, and any answer as many units as it has bytes.
func ExampleRateLimit_cost() {
	limited := must(httpmw.RateLimit(httpmw.RateLimitConfig[netip.Addr]{
		Guard: perHour("units", 100), Key: httpmw.PeerIP, Headers: httpmw.HeadersLegacy,
		Cost: func(r *http.Request) int {
			if r.URL.Path == "/search" {
				return 10
			}
			return 1
		},
		CostAfter: func(_ *http.Request, a httpmw.Answer) int { return int(a.Bytes) },
	}))
	h := limited(hello) // 6 bytes
	ask(h, "/search", "192.0.2.60")
	ask(h, "/search", "192.0.2.60")
	ask(h, "/", "192.0.2.60")
	// Output:
	// 200 | X-RateLimit-Limit: 100 | X-RateLimit-Remaining: 90
	// 200 | X-RateLimit-Limit: 100 | X-RateLimit-Remaining: 84
	// 200 | X-RateLimit-Limit: 100 | X-RateLimit-Remaining: 87
}

func ExampleRateLimit_problem() {
	limited := must(httpmw.RateLimit(httpmw.RateLimitConfig[netip.Addr]{
		Guard: perHour("hourly", 1), Key: httpmw.PeerIP, Problem: true,
	}))
	show(limited(hello), "/")
	show(limited(hello), "/")
	// Output:
	// /: 200, Retry-After "", hello
	// /: 429, Retry-After "3600", {"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Quota Exceeded","status":429,"violated-policies":["hourly"]}
}

// A new limit is first only watched, then enforced on a share of the requests
// that it would refuse, and never on those of our own machines. Clients see its
// headers from the beginning.
func ExampleRateLimit_rollout() {
	keyed := perHour("hourly", 1)
	ours := netip.MustParsePrefix("198.51.100.0/24")
	for _, percent := range []int{0, 100} {
		shadow := must(core.ShadowKeyed(keyed, core.ShadowKeyedConfig[netip.Addr]{
			ShadowConfig: core.ShadowConfig{EnforcePercent: percent, Observer: toStdout{}},
			ExemptKey:    ours.Contains,
		}))
		limited := must(httpmw.RateLimit(httpmw.RateLimitConfig[netip.Addr]{
			Guard: shadow, Key: httpmw.PeerIP, Headers: httpmw.HeadersLegacy, Peeker: keyed,
		}))
		fmt.Println("enforced:", percent, "%")
		for range 2 {
			ask(limited(hello), "/", "192.0.2.60")
			ask(limited(hello), "/", "198.51.100.7")
		}
	}
	// Output:
	// enforced: 0 %
	// 200 | X-RateLimit-Limit: 1 | X-RateLimit-Remaining: 0
	// 200 | X-RateLimit-Limit: 1 | X-RateLimit-Remaining: 1
	// shadowed rate_limited
	// 200 | X-RateLimit-Limit: 1 | X-RateLimit-Remaining: 0
	// 200 | X-RateLimit-Limit: 1 | X-RateLimit-Remaining: 1
	// enforced: 100 %
	// 429 | X-RateLimit-Limit: 1 | X-RateLimit-Remaining: 0 | Retry-After: 3600
	// 200 | X-RateLimit-Limit: 1 | X-RateLimit-Remaining: 1
	// 429 | X-RateLimit-Limit: 1 | X-RateLimit-Remaining: 0 | Retry-After: 3600
	// 200 | X-RateLimit-Limit: 1 | X-RateLimit-Remaining: 1
}

// toStdout prints events.
type toStdout struct{}

func (toStdout) Enabled(core.Kind) bool { return true }
func (toStdout) Observe(_ context.Context, e core.Event) {
	fmt.Println(e.Kind, e.Reason)
}

// As Join, without allocations: the key is a struct of two.
func ExampleBoth() {
	keyed := must(limit.NewKeyed(limit.KeyedConfig[httpmw.Pair[netip.Addr, string]]{
		Limit: limit.TokenBucketConfig{Rate: limit.PerHour(1), Burst: 1},
	}))
	limited := must(httpmw.RateLimit(httpmw.RateLimitConfig[httpmw.Pair[netip.Addr, string]]{
		Guard: keyed, Key: httpmw.Both(httpmw.PeerIP, httpmw.KeyPattern),
	}))
	mux := http.NewServeMux()
	mux.Handle("/buy", limited(hello))
	mux.Handle("/sell", limited(hello))
	ask(mux, "/buy", "192.0.2.60")
	ask(mux, "/buy", "192.0.2.60")
	ask(mux, "/sell", "192.0.2.60")
	// Output:
	// 200
	// 429 | Retry-After: 3600
	// 200
}
