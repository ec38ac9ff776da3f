package httpmw

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func byHeader(r *http.Request) (string, error) {
	if id := r.Header.Get("Client"); id != "" {
		return id, nil
	}
	return "", errors.New("no client: <script>")
}

func TestGuardByAsksTheGuardOfTheKey(t *testing.T) {
	a := &fakeGuard{wants: core.WantsResult}
	b := &fakeGuard{refusal: &core.Rejection{Reason: core.RateLimited, RetryAt: time.Now().Add(-time.Second)}}
	h := GuardBy(fakeKeyed{"a": a, "b": b}, byHeader)(answer(500))
	for client, want := range map[string]int{"a": 500, "b": 429} {
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Client", client)
		h.ServeHTTP(w, r)
		require.Equal(t, want, w.Code, client)
	}
	require.Equal(t, core.Failure, a.only(t).Outcome)
}

func TestNoKeyNoAdmission(t *testing.T) {
	for want, err := range map[int]error{
		400: errors.New("no client: <script>"),
		401: fmt.Errorf("no token: %w", StatusError(401)),
		500: StatusError(500),
		429: &core.Rejection{Reason: core.RateLimited},
		503: &core.Rejection{Reason: core.Overloaded},
	} {
		shared := &fakeGuard{}
		var told error
		mw := GuardByWith(fakeKeyed{"": shared}, func(*http.Request) (string, error) { return "", err }, GuardConfig{
			Refuse: func(w http.ResponseWriter, r *http.Request, status int, err error) {
				told = err
				refuseWithText(w, r, status, err)
			},
		})
		got := get(mw(answer(200)))
		require.Equal(t, want, got.Code)
		require.Equal(t, http.StatusText(want)+"\n", got.Body.String())
		require.ErrorIs(t, told, err)
		require.Zero(t, shared.acquired, "a request without a key shared a bucket")
	}
}

func TestKeyErrorCannotChooseSuccess(t *testing.T) {
	for _, status := range []int{-1, 0, 100, 200, 304, 399, 600, math.MaxInt, math.MinInt} {
		mw := GuardBy(fakeKeyed{}, func(*http.Request) (string, error) { return "", StatusError(status) })
		require.Equal(t, 400, get(mw(answer(200))).Code)
	}
}

func TestNilKeyAdmitsNone(t *testing.T) {
	shared := &fakeGuard{}
	require.Equal(t, 500, get(GuardBy(fakeKeyed{"": shared}, nil)(answer(200))).Code)
	require.Zero(t, shared.acquired)
}

func TestPanicInKeyHoldsNothing(t *testing.T) {
	outer, inner := &fakeGuard{wants: core.WantsResult}, &fakeGuard{}
	h := Chain(
		Guard(outer),
		GuardBy(fakeKeyed{"": inner}, func(*http.Request) (string, error) { panic("key") }),
	)(answer(200))
	require.PanicsWithValue(t, "key", func() { get(h) })
	require.Zero(t, inner.acquired)
	require.ErrorIs(t, outer.only(t).Err, core.ErrNoReturn)
}

// Who sends requests without a key stays charged for them further out.
func TestRequestWithoutKeyIsNoRefusalOfAGuard(t *testing.T) {
	for name, wants := range allWants {
		outer := &fakeGuard{wants: wants}
		get(Chain(Guard(outer), GuardBy(fakeKeyed{}, byHeader))(answer(200)))
		got := outer.only(t)
		if wants == core.WantsResult {
			require.Equal(t, core.Success, got.Outcome, name)
		}
	}
}

// A key that is empty by accident is nobody's: it would be everybody's.
func TestGuardByRefusesTheZeroKey(t *testing.T) {
	g := &fakeGuard{}
	empty := func(*http.Request) (string, error) { return "", nil }
	require.Equal(t, 400, get(GuardBy(fakeKeyed{"": g}, empty)(answer(200))).Code)
	require.Equal(t, 200, get(GuardByWith(fakeKeyed{"": g}, empty, GuardConfig{AllowZeroKey: true})(answer(200))).Code)
}
