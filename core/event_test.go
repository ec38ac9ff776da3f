package core_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func TestEmitContainsAPanic(t *testing.T) {
	require.True(t, core.Emit(t.Context(), nil, core.Event{}))
	require.True(t, core.Emit(t.Context(), &recorder{}, core.Event{Kind: core.KindRejected}))
	require.False(t, core.Emit(t.Context(), observerFunc(func(core.Event) { panic("observer") }), core.Event{}))
}

func TestEmitRespectsEnabled(t *testing.T) {
	deaf := &recorder{deaf: true}
	core.Emit(t.Context(), deaf, core.Event{Kind: core.KindRejected})
	require.Empty(t, deaf.events)
	require.False(t, core.Hears(deaf, core.KindRejected))
	require.False(t, core.Hears(nil, core.KindRejected))
	require.True(t, core.Hears(&recorder{}, core.KindRejected))
}

func TestPanickingEnabledMeansNo(t *testing.T) {
	var heard recorder
	require.False(t, core.Hears(mute{}, core.KindAcquired))
	both := core.Observers(mute{}, &heard)
	require.True(t, core.Hears(both, core.KindAcquired))
	require.True(t, core.Emit(t.Context(), both, core.Event{Kind: core.KindAcquired}))
	require.Len(t, heard.events, 1)
}

// mute is an observer that cannot even be asked.
type mute struct{}

func (mute) Enabled(core.Kind) bool              { panic("enabled") }
func (mute) Observe(context.Context, core.Event) { panic("observe") }

func TestObserversHearTheRestWhenOneDies(t *testing.T) {
	var first, last recorder
	dies := observerFunc(func(core.Event) { panic("observer") })
	all := core.Observers(nil, &first, dies, core.Observers(nil, &last))
	require.True(t, core.Emit(t.Context(), all, core.Event{Kind: core.KindRejected, N: 3}))
	for _, r := range []*recorder{&first, &last} {
		require.Equal(t, []core.Event{{Kind: core.KindRejected, N: 3}}, r.events)
	}
}

func TestObserversAskEachForItsKinds(t *testing.T) {
	var hears recorder
	deaf := &recorder{deaf: true}
	both := core.Observers(deaf, &hears)
	require.True(t, both.Enabled(core.KindAcquired))
	core.Emit(t.Context(), both, core.Event{Kind: core.KindAcquired})
	require.Len(t, hears.events, 1)
	require.Empty(t, deaf.events)
	require.False(t, core.Observers(deaf, deaf).Enabled(core.KindAcquired))
}

func TestObserversOfNoneAndOne(t *testing.T) {
	require.Nil(t, core.Observers())
	require.Nil(t, core.Observers(nil, nil))
	one := &recorder{}
	require.Same(t, one, core.Observers(nil, one))
}

func TestGoexitInAnObserverEndsOnlyItsGoroutine(t *testing.T) {
	ended := make(chan bool)
	go func() {
		returned := false
		defer func() { ended <- returned }()
		core.Emit(context.Background(), observerFunc(func(core.Event) { runtime.Goexit() }), core.Event{})
		returned = true
	}()
	require.False(t, <-ended)
}

func TestNamesOfConstants(t *testing.T) {
	seen := map[string]bool{}
	for k := core.KindRejected; k <= core.KindDestroyed; k++ {
		require.NotEqual(t, "unknown", k.String(), k)
		require.False(t, seen[k.String()])
		seen[k.String()] = true
	}
	require.Equal(t, "unknown", core.Kind(0).String())
	require.Equal(t, "unknown", core.Kind(200).String())
	for r := core.RateLimited; r <= core.Closed; r++ {
		require.NotEqual(t, "unknown", r.String(), r)
		require.False(t, seen["reason "+r.String()])
		seen["reason "+r.String()] = true
	}
	require.Equal(t, "unknown", core.Reason(200).String())
	require.True(t, core.RateLimited.Retryable() && core.Closed.Retryable())
	require.False(t, core.NeverFits.Retryable() || core.InvalidCost.Retryable())
	require.True(t, core.RateLimited.Quota() && core.NeverFits.Quota())
	require.False(t, core.CircuitOpen.Quota() || core.Overloaded.Quota() || core.RetryBudget.Quota() || core.Closed.Quota())
	for o := core.Ignored; o <= core.Throttled; o++ {
		require.NotEqual(t, "unknown", o.String())
	}
	require.Equal(t, "unknown", core.Outcome(9).String())
}

func TestRejection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := errors.New("connection refused")
		r := &core.Rejection{
			Guard: "orders", Reason: core.Unavailable, Err: errFull, Cause: dial,
			RetryAt: time.Now().Add(1500 * time.Millisecond), Detail: "total 0, waiting 3",
		}
		require.EqualError(t, r, `fake: full: refused by "orders" (total 0, waiting 3): retry after 1.5s: connection refused`)
		require.ErrorIs(t, r, errFull)
		require.ErrorIs(t, r, dial)
		require.NotErrorIs(t, r, context.Canceled)
		require.Equal(t, "unavailable", r.ErrorType())

		after, ok := r.RetryAfter()
		require.True(t, ok)
		require.Equal(t, 1500*time.Millisecond, after)
		time.Sleep(2 * time.Second) // virtual time
		after, ok = r.RetryAfter()
		require.True(t, ok)
		require.Zero(t, after)

		for d, text := range map[time.Duration]string{
			time.Hour - 8647*time.Nanosecond:         "1h0m0s",
			1500*time.Millisecond - time.Nanosecond:  "1.5s",
			250*time.Microsecond - 3*time.Nanosecond: "250µs",
			0:                                        "0s",
		} {
			r := &core.Rejection{Guard: "g", Err: errFull, RetryAt: time.Now().Add(d)}
			require.EqualError(t, r, `fake: full: refused by "g": retry after `+text)
		}

		never := &core.Rejection{Guard: "big", Reason: core.NeverFits}
		_, ok = never.RetryAfter()
		require.False(t, ok)
		require.EqualError(t, never, `never_fits: refused by "big"`)
		require.NotErrorIs(t, never, errFull)

		wrapped := &core.Rejection{Guard: "g", Err: fmt.Errorf("wider: %w", errFull), Cause: context.Canceled}
		require.ErrorIs(t, wrapped, errFull, "a sentinel may wrap a wider one")
		require.ErrorIs(t, wrapped, context.Canceled)
	})
}

func TestProblems(t *testing.T) {
	p := core.Check("pkg.Config")
	require.NoError(t, p.Err())
	p.If(false, "Fine", 1, "is fine")
	p.If(true, "DSN", nil, "cannot be parsed")
	p.If(true, "Rate", -1, "must be above 0")
	require.EqualError(t, p.Err(), "pkg.Config.DSN: cannot be parsed\npkg.Config.Rate: -1: must be above 0")
	require.ErrorIs(t, p.Err(), core.ErrConfig)
	first, ok := errors.AsType[*core.ConfigError](p.Err())
	require.True(t, ok)
	require.Equal(t, "DSN", first.Field)
}
