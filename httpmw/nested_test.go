package httpmw

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// logged is somebody else's middleware: its writer has no method but Unwrap.
func logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(&logWriter{w}, r)
	})
}

type logWriter struct{ http.ResponseWriter }

func (w *logWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// opaque is logged with a writer that cannot be unwrapped.
func opaque(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(struct{ http.ResponseWriter }{w}, r)
	})
}

func TestInnerRefusalCancelsOuterPermits(t *testing.T) {
	for _, rejection := range []error{
		&core.Rejection{Reason: core.CircuitOpen},
		&core.Rejection{Reason: core.RateLimited},
		errors.New("the guard failed"),
	} {
		for outerName, outerWants := range allWants {
			for middleName, middleWants := range allWants {
				outer, middle := &fakeGuard{wants: outerWants}, &fakeGuard{wants: middleWants}
				inner := &fakeGuard{refusal: rejection}
				oneKey := func(*http.Request) (string, error) { return "k", nil }
				get(Chain(Guard(outer), GuardBy(fakeKeyed{"k": middle}, oneKey), Guard(inner))(answer(200)))
				for _, g := range []*fakeGuard{outer, middle} {
					results, cancelled := g.ended(t)
					require.Empty(t, results, "%s, %s", outerName, middleName)
					require.Equal(t, 1, cancelled, "%s, %s", outerName, middleName)
				}
			}
		}
	}
}

func TestInnerRefusalIsSeenAcrossOtherMiddleware(t *testing.T) {
	outer := &fakeGuard{wants: core.WantsResult}
	middle := &fakeGuard{wants: core.WantsResult}
	inner := &fakeGuard{refusal: &core.Rejection{Reason: core.CircuitOpen}}
	mux := http.NewServeMux()
	mux.Handle("/", Chain(Guard(middle), logged, Guard(inner))(answer(200)))
	got := get(Chain(Guard(outer), logged, logged)(mux))
	require.Equal(t, 503, got.Code)
	for _, g := range []*fakeGuard{outer, middle} {
		results, cancelled := g.ended(t)
		require.Empty(t, results)
		require.Equal(t, 1, cancelled)
	}
}

// A key function may itself ask a guard.
func TestRejectionOfAKeyFunctionIsARefusal(t *testing.T) {
	for name, wants := range allWants {
		outer := &fakeGuard{wants: wants}
		get(Chain(Guard(outer), GuardBy(fakeKeyed{}, func(*http.Request) (string, error) {
			return "", &core.Rejection{Reason: core.Overloaded}
		}))(answer(200)))
		_, cancelled := outer.ended(t)
		require.Equal(t, 1, cancelled, name)
	}
}

// As documented: behind a writer that hides the one below, 503 is 503.
func TestInnerRefusalBehindOpaqueWriterIsItsStatus(t *testing.T) {
	outer := &fakeGuard{wants: core.WantsResult}
	inner := &fakeGuard{refusal: &core.Rejection{Reason: core.CircuitOpen}}
	get(Chain(Guard(outer), opaque, Guard(inner))(answer(200)))
	require.Equal(t, core.Failure, outer.only(t).Outcome)
}

func TestNestedGuardsHearTheSameResult(t *testing.T) {
	outer, inner := &fakeGuard{wants: core.WantsResult}, &fakeGuard{wants: core.WantsResult}
	get(Chain(Guard(outer), Guard(inner))(answer(500)))
	require.Equal(t, core.Failure, outer.only(t).Outcome)
	require.Equal(t, core.Failure, inner.only(t).Outcome)
}

func TestPanicAroundARefusalIsFailure(t *testing.T) {
	outer := &fakeGuard{wants: core.WantsResult}
	inner := &fakeGuard{refusal: &core.Rejection{Reason: core.CircuitOpen}}
	mw := GuardWith(inner, GuardConfig{Refuse: func(http.ResponseWriter, *http.Request, int, error) { panic("refuse") }})
	require.PanicsWithValue(t, "refuse", func() { get(Chain(Guard(outer), mw)(answer(200))) })
	require.Equal(t, core.Failure, outer.only(t).Outcome)
}

func TestCallbackThatExitsHoldsNothing(t *testing.T) {
	exit := GuardConfig{Refuse: func(http.ResponseWriter, *http.Request, int, error) { runtime.Goexit() }}
	for name, mw := range map[string]func(http.Handler) http.Handler{
		"key":    GuardBy(fakeKeyed{}, func(*http.Request) (string, error) { runtime.Goexit(); return "", nil }),
		"refuse": GuardWith(&fakeGuard{refusal: &core.Rejection{}}, exit),
	} {
		for _, wants := range allWants {
			outer := &fakeGuard{wants: wants}
			done := make(chan struct{})
			go func() {
				defer close(done)
				get(Chain(Guard(outer), mw)(answer(200)))
			}()
			<-done
			require.ErrorIs(t, outer.only(t).Err, core.ErrNoReturn, name)
		}
	}
}

// Whoever aborts instead of answering a refusal has still not started.
func TestAbortAroundARefusalCancels(t *testing.T) {
	outer := &fakeGuard{wants: core.WantsResult}
	inner := &fakeGuard{refusal: &core.Rejection{Reason: core.CircuitOpen}}
	mw := GuardWith(inner, GuardConfig{Refuse: func(http.ResponseWriter, *http.Request, int, error) { panic(http.ErrAbortHandler) }})
	require.Panics(t, func() { get(Chain(Guard(outer), mw)(answer(200))) })
	_, cancelled := outer.ended(t)
	require.Equal(t, 1, cancelled)
}

func TestRefuseOfAHandlerCancels(t *testing.T) {
	outer := &fakeGuard{wants: core.WantsResult}
	wrapped := errors.Join(errors.New("checkout"), &core.Rejection{Reason: core.WaitTimeout})
	got := get(Chain(Guard(outer), logged)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		Refuse(w, r, wrapped)
	})))
	require.Equal(t, 503, got.Code)
	require.Equal(t, "1", got.Header().Get("Retry-After"))
	_, cancelled := outer.ended(t)
	require.Equal(t, 1, cancelled)
}

func TestRefuseWithoutRejectionIsAFailure(t *testing.T) {
	outer := &fakeGuard{wants: core.WantsResult}
	got := get(Guard(outer)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		Refuse(w, r, errors.New("the database is gone"))
	})))
	require.Equal(t, 503, got.Code)
	require.Empty(t, got.Header().Get("Retry-After"))
	require.Equal(t, core.Failure, outer.only(t).Outcome)
}

func TestProblemIsRFC9457(t *testing.T) {
	g := &fakeGuard{refusal: &core.Rejection{Reason: core.RateLimited, Detail: "secret"}}
	got := get(GuardWith(g, GuardConfig{Refuse: RefuseWithProblem})(answer(200)))
	require.Equal(t, 429, got.Code)
	require.Equal(t, "1", got.Header().Get("Retry-After"))
	require.Equal(t, "application/problem+json", got.Header().Get("Content-Type"))
	require.JSONEq(t, `{"type":"about:blank","title":"Too Many Requests","status":429}`, got.Body.String())

	w := httptest.NewRecorder()
	w.Header().Set("Content-Length", "3")
	Problem(w, 400, `no "item" <b>`)
	require.Empty(t, w.Header().Get("Content-Length"))
	require.JSONEq(t, `{"type":"about:blank","title":"Bad Request","status":400,"detail":"no \"item\" <b>"}`, w.Body.String())
}
