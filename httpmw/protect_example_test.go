package httpmw_test

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/core/limit"
	"github.com/surgewall/surgewall/httpmw"
)

// The whole path of a request. What guards all routes is around the mux, what is
// each route's own is around its handler.
func Example_protect() {
	quota := must(httpmw.RateLimit(httpmw.RateLimitConfig[netip.Addr]{
		Guard: perHour("hourly", 1000), Key: httpmw.PeerIP,
	}))
	bulkhead := must(limit.NewConcurrency(limit.ConcurrencyConfig{Limit: 100}))
	deadline := must(httpmw.Deadline(httpmw.DeadlineConfig{Timeout: 100 * time.Millisecond}))
	breakers := must(circuit.NewGroup(circuit.GroupConfig[string]{
		Config: circuit.Config{FailureThreshold: 2, OpenFor: time.Minute},
	}))

	perRoute := httpmw.GuardBy(breakers, httpmw.KeyPattern)
	mux := http.NewServeMux()
	mux.Handle("GET /stock", perRoute(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done() // a database that hangs
	})))
	mux.Handle("GET /items/{id}", perRoute(hello))
	mux.HandleFunc("GET /bug", func(http.ResponseWriter, *http.Request) { panic("a bug") })

	h := httpmw.Chain(
		httpmw.Recover(httpmw.RecoverConfig{OnPanic: func(r *http.Request, v any, _ []byte) {
			fmt.Println("reported:", r.Pattern, v)
		}}),
		quota,
		httpmw.Guard(bulkhead),
		deadline,
	)(mux)
	show(h, "/stock") // each missed deadline is a failure
	show(h, "/stock")
	show(h, "/stock") // and now its breaker is open
	show(h, "/items/1")
	show(h, "/bug")
	// Output:
	// /stock: 503, Retry-After "", Service Unavailable
	// /stock: 503, Retry-After "", Service Unavailable
	// /stock: 503, Retry-After "60", Service Unavailable
	// /items/1: 200, Retry-After "", hello
	// reported: GET /bug a bug
	// /bug: 500, Retry-After "", Internal Server Error
}

// A breaker for each route: one that is broken does not take the others with it.
func ExampleGuardBy_breakerPerRoute() {
	breakers := must(circuit.NewGroup(circuit.GroupConfig[string]{
		Config:  circuit.Config{FailureThreshold: 2, OpenFor: time.Minute},
		MaxKeys: 1000,
	}))
	perRoute := httpmw.GuardBy(breakers, httpmw.KeyPattern)

	mux := http.NewServeMux()
	mux.Handle("GET /items/{id}", perRoute(hello))
	mux.Handle("GET /stock/{id}", perRoute(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no connection", http.StatusBadGateway)
	})))
	show(mux, "/stock/1")
	show(mux, "/stock/2")
	show(mux, "/stock/3")
	show(mux, "/items/3")
	// Output:
	// /stock/1: 502, Retry-After "", no connection
	// /stock/2: 502, Retry-After "", no connection
	// /stock/3: 503, Retry-After "60", Service Unavailable
	// /items/3: 200, Retry-After "", hello
}

func ExampleRecover() {
	h := httpmw.Recover(httpmw.RecoverConfig{
		OnPanic: func(r *http.Request, v any, stack []byte) {
			fmt.Println(r.Method, r.URL.Path, "panicked:", v, len(stack) > 0)
		},
		Answer: httpmw.RefuseWithProblem,
	})
	show(h(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		words := strings.Fields(r.URL.Query().Get("q"))
		fmt.Fprintln(w, words[0])
	})), "/buy")
	// Output:
	// GET /buy panicked: runtime error: index out of range [0] with length 0 true
	// /buy: 500, Retry-After "", {"type":"about:blank","title":"Internal Server Error","status":500}
}

// The handler hands its context on, and returns when the query gives up.
func ExampleDeadline() {
	deadline, err := httpmw.Deadline(httpmw.DeadlineConfig{
		Timeout: 20 * time.Millisecond,
		Status:  http.StatusGatewayTimeout,
	})
	if err != nil {
		panic(err)
	}
	query := func(ctx context.Context) error { // one that takes for ever
		<-ctx.Done()
		return ctx.Err()
	}
	show(deadline(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := query(r.Context()); err != nil {
			return // no answer: Deadline knows better why
		}
		fmt.Fprintln(w, "found")
	})), "/search")
	// Output:
	// /search: 504, Retry-After "", Gateway Timeout
}
