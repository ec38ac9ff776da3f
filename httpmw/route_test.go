package httpmw

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
)

func newRoutes(t testing.TB, cfg circuit.Config) *circuit.Group[string] {
	t.Helper()
	g, err := circuit.NewGroup(circuit.GroupConfig[string]{Config: cfg})
	require.NoError(t, err)
	return g
}

// Each route has a breaker of its own, whatever is in its path; while that is open
// the answer is 503, with what is left of its open time; then it recovers.
func TestBreakerPerRoute(t *testing.T) {
	var broken atomic.Bool
	inBubbles(t, func(t *testing.T) http.Handler {
		broken.Store(true)
		perRoute := GuardBy(newRoutes(t, circuit.Config{FailureThreshold: 3, OpenFor: 10 * time.Second, SuccessThreshold: 2}), KeyPattern)
		mux := http.NewServeMux()
		mux.Handle("GET /stock/{id}", perRoute(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if broken.Load() {
				w.WriteHeader(500)
			}
		})))
		mux.Handle("GET /items/{id}", perRoute(answer(204)))
		return Chain(Recover(quiet), newDeadline(t, DeadlineConfig{Timeout: time.Minute}))(mux)
	}, func(t *testing.T, client *http.Client) {
		n := 0
		ask := func(path string) (int, string) {
			n++
			resp, err := client.Get(fmt.Sprintf("http://bubble/%s/%d", path, n))
			require.NoError(t, err)
			_, err = io.Copy(io.Discard, resp.Body)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			return resp.StatusCode, resp.Header.Get("Retry-After")
		}
		expect := func(path string, status int, retryAfter string) {
			t.Helper()
			gotStatus, gotRetryAfter := ask(path)
			require.Equal(t, status, gotStatus)
			require.Equal(t, retryAfter, gotRetryAfter)
		}
		for range 3 {
			expect("stock", 500, "")
		}
		expect("stock", 503, "10")
		expect("items", 204, "")
		time.Sleep(time.Nanosecond)
		expect("stock", 503, "10")
		time.Sleep(8500 * time.Millisecond)
		expect("stock", 503, "2")
		time.Sleep(1500*time.Millisecond - 2)
		expect("stock", 503, "1")
		broken.Store(false)
		time.Sleep(time.Nanosecond)
		for range 4 {
			expect("stock", 200, "")
		}
	})
}

// What says nothing of the route does not open its breaker, and what does, does.
func TestWhatOpensTheBreakerOfARoute(t *testing.T) {
	rejection := &core.Rejection{Reason: core.ConcurrencyLimited}
	limited := &core.Rejection{Reason: core.RateLimited}
	for name, row := range map[string]struct {
		h    http.HandlerFunc
		open bool
	}{
		"500":           {answer(500).ServeHTTP, true},
		"panic":         {func(http.ResponseWriter, *http.Request) { panic("boom") }, true},
		"panic halfway": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200); panic("boom") }, true},
		"deadline":      {waits, true},
		"404":           {answer(404).ServeHTTP, false},
		"abort":         {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false},
		"client left":   {func(w http.ResponseWriter, r *http.Request) { time.Sleep(2 * time.Second); w.WriteHeader(504) }, false},
		"full":          {Guard(&fakeGuard{refusal: rejection})(answer(200)).ServeHTTP, false},
		"limited":       {Guard(&fakeGuard{refusal: limited})(answer(200)).ServeHTTP, false},
		"own pool":      {func(w http.ResponseWriter, r *http.Request) { Refuse(w, r, rejection) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			groups := []*circuit.Group[string]{}
			inBubbles(t, func(t *testing.T) http.Handler {
				group := newRoutes(t, circuit.Config{FailureThreshold: 3, OpenFor: time.Hour})
				groups = append(groups, group)
				mux := http.NewServeMux()
				mux.Handle("GET /", Chain(newDeadline(t, DeadlineConfig{Timeout: 10 * time.Second}), GuardBy(group, KeyPattern), logged)(row.h))
				return Recover(quiet)(mux)
			}, func(t *testing.T, client *http.Client) {
				for range 3 {
					ctx, leave := context.WithCancel(t.Context())
					if name == "client left" {
						time.AfterFunc(time.Second, leave)
					}
					req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://bubble/", nil)
					require.NoError(t, err)
					if resp, err := client.Do(req); err == nil {
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
					}
					time.Sleep(3 * time.Second) // until a handler whose client left is done
					leave()
				}
				synctest.Wait()
				group := groups[len(groups)-1]
				require.Equal(t, 1, group.Stats().Keys)
				require.Equal(t, row.open, group.Get("GET /").State() == circuit.Open)
			})
		})
	}
}

// Routes are known only inside of the mux.
func TestBreakerPerRouteAroundTheMuxIsAMistake(t *testing.T) {
	group := newRoutes(t, circuit.Config{})
	require.Equal(t, 500, get(GuardBy(group, KeyPattern)(http.NewServeMux())).Code)
	require.Zero(t, group.Stats().Keys)
}
