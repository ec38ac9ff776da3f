package httpmw

import (
	"context"
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func answer(status int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
}

func get(h http.Handler) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	return w
}

func TestRefusalIsAnsweredByReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := func(d time.Duration) time.Time { return time.Now().Add(d) }
		table := []struct {
			name       string
			err        error
			status     int
			retryAfter string // "" for no header
		}{
			{"quota", &core.Rejection{Reason: core.RateLimited, RetryAt: in(2 * time.Second)}, 429, "2"},
			{"rounded up", &core.Rejection{Reason: core.RateLimited, RetryAt: in(2*time.Second + 1)}, 429, "3"},
			{"at least 1", &core.Rejection{Reason: core.RateLimited, RetryAt: in(time.Nanosecond)}, 429, "1"},
			{"now", &core.Rejection{Reason: core.RateLimited, RetryAt: in(0)}, 429, "1"},
			{"over", &core.Rejection{Reason: core.CircuitOpen, RetryAt: in(-time.Hour)}, 503, "1"},
			{"limited for long", &core.Rejection{Reason: core.RateLimited, RetryAt: in(time.Minute)}, 429, "60"},
			{"open", &core.Rejection{Reason: core.CircuitOpen, RetryAt: in(29500 * time.Millisecond)}, 503, "30"},
			{"longest", &core.Rejection{Reason: core.CircuitOpen, RetryAt: in(math.MaxInt64)}, 503, "9223372037"},
			{"no instant", &core.Rejection{Reason: core.ConcurrencyLimited}, 503, "1"},
			{"closed", &core.Rejection{Reason: core.Closed}, 503, "1"},
			{"unknown", &core.Rejection{}, 503, "1"},
			{"wait ended", &core.Rejection{Reason: core.WaitTimeout, Cause: context.DeadlineExceeded}, 503, "1"},
			{"never fits", &core.Rejection{Reason: core.NeverFits}, 429, ""},
			{"invalid cost", &core.Rejection{Reason: core.InvalidCost}, 429, ""},
			{"not a rejection", errors.New("the guard is broken: secret"), 503, ""},
			{"wrapped", errors.Join(errors.New("x"), &core.Rejection{Reason: core.RateLimited}), 429, "1"},
		}
		for _, row := range table {
			g := &fakeGuard{refusal: row.err}
			ran := false
			got := get(Guard(g)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran = true })))
			require.False(t, ran, row.name)
			require.Equal(t, row.status, got.Code, row.name)
			require.Equal(t, http.StatusText(row.status)+"\n", got.Body.String(), row.name)
			var want []string
			if row.retryAfter != "" {
				want = []string{row.retryAfter}
			}
			require.Equal(t, want, got.Header().Values("Retry-After"), row.name)
		}
	})
}

func TestRefuseOfConfigWritesTheAnswer(t *testing.T) {
	rejection := &core.Rejection{Guard: "g", Reason: core.CircuitOpen}
	g := &fakeGuard{refusal: rejection}
	mw := GuardWith(g, GuardConfig{Refuse: func(w http.ResponseWriter, r *http.Request, status int, err error) {
		require.Same(t, rejection, err)
		require.Equal(t, "1", w.Header().Get("Retry-After"))
		w.WriteHeader(status)
		_, _ = w.Write([]byte("later, " + r.URL.Path))
	}})
	got := get(mw(answer(200)))
	require.Equal(t, 503, got.Code)
	require.Equal(t, "later, /", got.Body.String())
}

func TestNilGuardAdmitsAll(t *testing.T) {
	require.Equal(t, 204, get(Guard(nil)(answer(204))).Code)
	require.Equal(t, 204, get(GuardBy[string](nil, nil)(answer(204))).Code)
}

func TestStatusIsTheOutcome(t *testing.T) {
	for status, want := range map[int]core.Outcome{
		200: core.Success, 204: core.Success, 301: core.Success, 304: core.Success,
		400: core.Success, 404: core.Success, 499: core.Success,
		408: core.Ignored, 429: core.Throttled,
		500: core.Failure, 501: core.Success, 502: core.Failure, 503: core.Failure, 504: core.Failure, 599: core.Failure,
	} {
		g := &fakeGuard{wants: core.WantsResult}
		require.Equal(t, status, get(Guard(g)(answer(status))).Code)
		got := g.only(t)
		require.Equal(t, want, got.Outcome, "%d", status)
		if want == core.Failure {
			require.Equal(t, StatusError(status), got.Err)
		} else {
			require.NoError(t, got.Err)
		}
		require.Positive(t, got.Latency)
	}
}

func TestAnswerIsTheFirstFinalStatus(t *testing.T) {
	table := []struct {
		name   string
		answer func(w http.ResponseWriter)
		want   core.Outcome
	}{
		{"nothing", func(http.ResponseWriter) {}, core.Success},
		{"body only", func(w http.ResponseWriter) { _, _ = w.Write(nil); w.WriteHeader(500) }, core.Success},
		{"flush only", func(w http.ResponseWriter) { w.(http.Flusher).Flush(); w.WriteHeader(500) }, core.Success},
		{"superfluous", func(w http.ResponseWriter) { w.WriteHeader(500); w.WriteHeader(200) }, core.Failure},
		{"hint, then failure", func(w http.ResponseWriter) { w.WriteHeader(103); w.WriteHeader(500) }, core.Failure},
		{"hint, then success", func(w http.ResponseWriter) { w.WriteHeader(103); w.WriteHeader(200) }, core.Success},
		{"bad status", func(w http.ResponseWriter) {
			defer func() { _ = recover(); w.WriteHeader(500) }()
			w.WriteHeader(99)
		}, core.Failure},
	}
	for _, row := range table {
		g := &fakeGuard{wants: core.WantsResult}
		get(Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { row.answer(w) })))
		require.Equal(t, row.want, g.only(t).Outcome, row.name)
	}
}

func TestLatencyEndsWithTheHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &fakeGuard{wants: core.WantsResult}
		h := Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(20 * time.Millisecond)
			w.WriteHeader(200)
			time.Sleep(time.Hour)
			_, _ = w.Write([]byte("the end"))
		}))
		time.Sleep(time.Hour)
		get(h)
		require.Equal(t, 20*time.Millisecond, g.only(t).Latency)
	})
}

// With nothing written, the guard's own reckoning is as good as ours.
func TestLatencyIsTheGuardsWhereNothingWasWritten(t *testing.T) {
	g := &fakeGuard{wants: core.WantsResult}
	get(Guard(g)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
	require.Zero(t, g.only(t).Latency)
}

func TestClientThatLeavesIsNeutral(t *testing.T) {
	table := []struct {
		name          string
		before, after int // status written before and after the client goes; 0 is none
		want          core.Outcome
	}{
		{"nothing written", 0, 0, core.Ignored},
		{"success afterwards", 0, 200, core.Ignored},
		{"failure afterwards", 0, 503, core.Ignored},
		{"in the middle of the body", 200, 0, core.Ignored},
		{"after a failure", 500, 0, core.Failure},
		{"after a switch of protocols", 101, 0, core.Success},
	}
	for _, row := range table {
		g := &fakeGuard{wants: core.WantsResult}
		ctx, leave := context.WithCancel(t.Context())
		h := Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if row.before != 0 {
				w.WriteHeader(row.before)
			}
			leave()
			if row.after != 0 {
				w.WriteHeader(row.after)
			}
		}))
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx))
		require.Equal(t, row.want, g.only(t).Outcome, row.name)
	}
}

func TestDeadlineIsFailureUnlessItWasHopeless(t *testing.T) {
	for left, want := range map[time.Duration]core.Outcome{
		time.Second:          core.Failure,
		core.MinTime:         core.Failure,
		core.MinTime - 1:     core.Ignored,
		-time.Second:         core.Ignored,
		100 * time.Hour * 24: core.Failure,
	} {
		synctest.Test(t, func(t *testing.T) {
			g := &fakeGuard{wants: core.WantsResult}
			ctx, cancel := context.WithTimeout(t.Context(), left)
			defer cancel()
			h := Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				<-r.Context().Done()
				w.WriteHeader(504)
			}))
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx))
			require.Equal(t, want, g.only(t).Outcome, left)
		})
	}
}

// A guard that was refused its wait because the client left writes its refusal
// all the same: silence would be 200 for whoever still listens.
func TestRefusalIsWrittenThoughTheClientLeft(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	leave()
	g := &fakeGuard{refusal: &core.Rejection{Reason: core.WaitTimeout, Cause: context.Canceled}}
	w := httptest.NewRecorder()
	Guard(g)(answer(200)).ServeHTTP(w, httptest.NewRequest("GET", "/", nil).WithContext(ctx))
	require.Equal(t, 503, w.Code)
}

// throwDeep is a name to look for in a stack.
//
//go:noinline
func throwDeep(v any) { panic(v) }

func TestPanicGoesOnAsItWas(t *testing.T) {
	boom := errors.New("boom")
	for name, wants := range allWants {
		t.Run(name, func(t *testing.T) {
			g := &fakeGuard{wants: wants}
			h := Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(200)
				throwDeep(boom)
			}))
			func() {
				defer func() {
					require.Same(t, boom, recover())
					require.Contains(t, string(debug.Stack()), "httpmw.throwDeep", "the frames of the panic are gone")
				}()
				get(h)
			}()
			got := g.only(t)
			require.Equal(t, core.Failure, got.Outcome)
			require.ErrorIs(t, got.Err, core.ErrNoReturn)
		})
	}
}

func TestAbortIsNeutralAndGoesOnAsItWas(t *testing.T) {
	g := &fakeGuard{wants: core.WantsResult}
	h := Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(500)
		panic(http.ErrAbortHandler)
	}))
	func() {
		defer func() { require.Same(t, http.ErrAbortHandler, recover()) }()
		get(h)
	}()
	got := g.only(t)
	require.Equal(t, core.Ignored, got.Outcome)
	require.NoError(t, got.Err)
}

// A panic value need not be comparable.
func TestPanicWithUncomparableValue(t *testing.T) {
	g := &fakeGuard{wants: core.WantsResult}
	h := Guard(g)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic([]int{1}) }))
	func() {
		defer func() { require.Equal(t, []int{1}, recover()) }()
		get(h)
	}()
	require.Equal(t, core.Failure, g.only(t).Outcome)
}

func TestGoexitIsFailure(t *testing.T) {
	for name, wants := range allWants {
		t.Run(name, func(t *testing.T) {
			g := &fakeGuard{wants: wants}
			h := Guard(g)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { runtime.Goexit() }))
			returned := false
			done := make(chan struct{})
			go func() {
				defer close(done)
				get(h)
				returned = true
			}()
			<-done
			require.False(t, returned, "Goexit was stopped")
			got := g.only(t)
			require.Equal(t, core.Failure, got.Outcome)
			require.ErrorIs(t, got.Err, core.ErrNoReturn)
		})
	}
}

func TestPermitIsHeldWhileTheHandlerRuns(t *testing.T) {
	for name, wants := range allWants {
		g := &fakeGuard{wants: wants}
		get(Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(200)
			require.Equal(t, 1, g.holding(), name)
		})))
		g.ended(t)
	}
}

func TestWriterIsWrappedOnlyForTheResult(t *testing.T) {
	for _, wants := range allWants {
		base := httptest.NewRecorder()
		h := Guard(&fakeGuard{wants: wants})(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if wants == core.WantsResult {
				require.NotSame(t, base, w)
				require.Same(t, base, w.(interface{ Unwrap() http.ResponseWriter }).Unwrap())
			} else {
				require.Same(t, base, w)
			}
		}))
		h.ServeHTTP(base, httptest.NewRequest("GET", "/", nil))
	}
}

func TestChainOrder(t *testing.T) {
	var order string
	mw := func(name string) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				order += name
				next.ServeHTTP(w, r)
				order += name
			})
		}
	}
	get(Chain(mw("a"), nil, mw("b"), Chain(), mw("c"))(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { order += "." })))
	require.Equal(t, "abc.cba", order)
}
