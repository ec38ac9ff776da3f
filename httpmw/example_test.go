package httpmw_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/core/limit"
	"github.com/surgewall/surgewall/httpmw"
)

// show makes a request and prints what a client sees.
func show(h http.Handler, path string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	fmt.Printf("%s: %d, Retry-After %q, %s", path, w.Code, w.Header().Get("Retry-After"), w.Body)
}

// A breaker learns from the statuses of its handler, and answers in its place
// while it is open.
func ExampleGuard() {
	breaker, err := circuit.New(circuit.Config{FailureThreshold: 2, OpenFor: time.Minute})
	if err != nil {
		panic(err)
	}
	broken := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no stock", http.StatusInternalServerError)
	})
	h := httpmw.Guard(breaker)(broken)
	show(h, "/buy")
	show(h, "/buy")
	show(h, "/buy")
	// Output:
	// /buy: 500, Retry-After "", no stock
	// /buy: 500, Retry-After "", no stock
	// /buy: 503, Retry-After "60", Service Unavailable
}

func ExampleGuardWith() {
	g := httpmw.GuardWith(full{}, httpmw.GuardConfig{Refuse: httpmw.RefuseWithProblem})
	show(g(http.NotFoundHandler()), "/")
	// Output:
	// /: 503, Retry-After "1", {"type":"about:blank","title":"Service Unavailable","status":503}
}

// full is a guard with no room.
type full struct{}

func (full) Acquire(context.Context, core.Call) (core.Permit, error) {
	return core.Permit{}, &core.Rejection{Guard: "full", Reason: core.ConcurrencyLimited}
}

// Each client has a limit of its own; who does not say who it is gets in under
// no other's name.
func ExampleGuardBy() {
	perClient, err := limit.NewKeyed(limit.KeyedConfig[string]{
		Limit: limit.TokenBucketConfig{Rate: limit.PerHour(1), Burst: 1},
	})
	if err != nil {
		panic(err)
	}
	who := func(r *http.Request) (string, error) {
		name := r.URL.Query().Get("as")
		if name == "" {
			return "", httpmw.StatusError(http.StatusUnauthorized)
		}
		return name, nil
	}
	h := httpmw.GuardBy(perClient, who)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "welcome")
	}))
	show(h, "/?as=alice")
	show(h, "/?as=alice")
	show(h, "/?as=bob")
	show(h, "/")
	// Output:
	// /?as=alice: 200, Retry-After "", welcome
	// /?as=alice: 429, Retry-After "3600", Too Many Requests
	// /?as=bob: 200, Retry-After "", welcome
	// /: 401, Retry-After "", Unauthorized
}

func ExampleGuardByWith() {
	byPath := func(r *http.Request) (string, error) { return r.URL.Path, nil }
	g := httpmw.GuardByWith(closed{"/admin": true}, byPath, httpmw.GuardConfig{
		Refuse: func(w http.ResponseWriter, _ *http.Request, status int, _ error) {
			w.WriteHeader(status)
			fmt.Fprintln(w, "come back later")
		},
	})
	show(g(http.NotFoundHandler()), "/admin")
	show(g(http.NotFoundHandler()), "/shop")
	// Output:
	// /admin: 503, Retry-After "1", come back later
	// /shop: 404, Retry-After "", 404 page not found
}

// closed is a keyed guard that refuses some keys.
type closed map[string]bool

func (c closed) AcquireKey(_ context.Context, key string, _ core.Call) (core.Permit, error) {
	if c[key] {
		return core.Permit{}, &core.Rejection{Guard: "closed", Reason: core.Unavailable}
	}
	return core.Permit{}, nil
}

// The first middleware is the outermost.
func ExampleChain() {
	says := func(word string) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, word, " ")
				next.ServeHTTP(w, r)
			})
		}
	}
	h := httpmw.Chain(says("first"), says("second"))(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "handler")
	}))
	show(h, "/")
	// Output:
	// /: 200, Retry-After "", first second handler
}

// A handler whose own pool or client was refused says so as a guard would.
func ExampleRefuse() {
	checkout := func(context.Context) error { return &core.Rejection{Guard: "db", Reason: core.WaitTimeout} }
	show(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := checkout(r.Context())
		if _, refused := errors.AsType[*core.Rejection](err); refused {
			httpmw.Refuse(w, r, err)
			return
		}
		fmt.Fprintln(w, "bought")
	}), "/buy")
	// Output:
	// /buy: 503, Retry-After "1", Service Unavailable
}

func ExampleProblem() {
	show(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		httpmw.Problem(w, http.StatusBadRequest, "quantity must be 1 to 4")
	}), "/buy")
	// Output:
	// /buy: 400, Retry-After "", {"type":"about:blank","title":"Bad Request","status":400,"detail":"quantity must be 1 to 4"}
}

func ExampleRefuseWithProblem() {
	cfg := httpmw.GuardConfig{Refuse: httpmw.RefuseWithProblem}
	show(httpmw.GuardWith(full{}, cfg)(http.NotFoundHandler()), "/buy")
	// Output:
	// /buy: 503, Retry-After "1", {"type":"about:blank","title":"Service Unavailable","status":503}
}
