package httpmw

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
)

func newBreaker(t testing.TB, cfg circuit.Config) *circuit.Breaker {
	t.Helper()
	b, err := circuit.New(cfg)
	require.NoError(t, err)
	return b
}

func TestBreakerOpensOnStatusesAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, circuit.Config{FailureThreshold: 3, OpenFor: 10 * time.Second, SuccessThreshold: 2})
		status, called := 500, 0
		h := Guard(b)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			called++
			w.WriteHeader(status)
		}))
		for range 3 {
			require.Equal(t, 500, get(h).Code)
		}
		time.Sleep(8500 * time.Millisecond)
		got := get(h)
		require.Equal(t, 503, got.Code)
		require.Equal(t, "2", got.Header().Get("Retry-After"), "1.5 s, rounded up")
		require.Equal(t, 3, called)

		time.Sleep(1500 * time.Millisecond)
		status = 200
		require.Equal(t, 200, get(h).Code)
		require.Equal(t, circuit.HalfOpen, b.State())
		require.Equal(t, 200, get(h).Code)
		require.Equal(t, circuit.Closed, b.State())
	})
}

func TestBreakerOverTheWire(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			b := newBreaker(t, circuit.Config{FailureThreshold: 5, OpenFor: time.Hour})
			srv := serve(t, Guard(b)(answer(500)), http2)
			for range 5 {
				resp, _ := fetch(t, srv, "/")
				require.Equal(t, 500, resp.StatusCode)
			}
			resp, _ := fetch(t, srv, "/")
			require.Equal(t, 503, resp.StatusCode)
			require.Equal(t, "3600", resp.Header.Get("Retry-After"))
		})
	}
}

// The refusals of a guard inside are nothing to a breaker outside, though they
// are 429 and 503 on the wire.
func TestOwnRefusalsDoNotOpenABreaker(t *testing.T) {
	outer := newBreaker(t, circuit.Config{FailureThreshold: 2})
	bucket := &fakeGuard{}
	inner := newBreaker(t, circuit.Config{FailureThreshold: 1, OpenFor: time.Hour})
	mux := http.NewServeMux()
	mux.Handle("/limited", Guard(bucket)(answer(200)))
	mux.Handle("/broken", Guard(inner)(answer(500)))
	h := Chain(Guard(outer), logged)(mux)
	request := func(path string) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code
	}
	require.Equal(t, 200, request("/limited"))
	bucket.refuse(&core.Rejection{Reason: core.RateLimited})
	require.Equal(t, 500, request("/broken"), "the one failure")
	for range 20 {
		require.Equal(t, 429, request("/limited"))
		require.Equal(t, 503, request("/broken"))
	}
	require.Equal(t, circuit.Closed, outer.State())
	require.Equal(t, 500, get(Guard(outer)(answer(500))).Code)
	require.Equal(t, circuit.Open, outer.State(), "refusals neither count nor interrupt")
}

// A probe whose client leaves, or whose handler aborts, gives its place back
// and closes nothing.
func TestNeutralProbesGiveTheirPlaceBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, circuit.Config{FailureThreshold: 1, SuccessThreshold: 1, OpenFor: time.Second})
		get(Guard(b)(answer(500)))
		time.Sleep(time.Second)
		for range 10 {
			require.Panics(t, func() {
				get(Guard(b)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })))
			})
			ctx, leave := context.WithCancel(t.Context())
			Guard(b)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { leave() })).
				ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx))
			require.Equal(t, circuit.HalfOpen, b.State())
		}
		require.Equal(t, 200, get(Guard(b)(answer(200))).Code)
		require.Equal(t, circuit.Closed, b.State())
	})
}
