package circuit

import (
	"context"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func newThrottle(t testing.TB, cfg ThrottleConfig) *Throttle {
	t.Helper()
	th, err := NewThrottle(cfg)
	require.NoError(t, err)
	return th
}

// The probability is that of the formula, for what was seen in the window.
func TestThrottleFormula(t *testing.T) {
	for _, tc := range []struct {
		k                  float64
		accepted, failed   int
		ignored, cancelled int
		want               float64
	}{
		{2, 0, 0, 0, 0, 0},
		{2, 10, 10, 0, 0, 0},
		{2, 10, 11, 0, 0, 1.0 / 22},
		{2, 0, 1, 0, 0, 1.0 / 2},
		{1, 10, 1, 0, 0, 1.0 / 12},
		{1.1, 10, 1, 0, 0, 0},
		{1.1, 10, 2, 0, 0, 1.0 / 13},
		{2, 10, 10, 50, 50, 0},
		{2, 10, 11, 50, 50, 1.0 / 22},
	} {
		synctest.Test(t, func(t *testing.T) {
			th := newThrottle(t, ThrottleConfig{K: tc.k})
			var permits []core.Permit
			// All are admitted while none has failed.
			for range tc.accepted {
				p, err := th.Acquire(t.Context(), core.Call{})
				require.NoError(t, err)
				p.Done(t.Context(), core.Success)
			}
			for range tc.ignored + tc.cancelled {
				p, err := th.Acquire(t.Context(), core.Call{})
				require.NoError(t, err)
				if len(permits) < tc.ignored {
					p.Done(t.Context(), core.Ignored)
				} else {
					p.Cancel()
				}
			}
			for range tc.failed {
				th.counts.Add(countRequests, 1) // whatever chance says
			}
			s := th.Stats()
			require.InDelta(t, tc.want, s.RefusedPart, 1e-12)
			require.EqualValues(t, tc.accepted, s.Accepts)
			require.EqualValues(t, tc.accepted+tc.failed, s.Requests)
			time.Sleep(2 * time.Minute)
			require.Zero(t, th.Stats().RefusedPart, "a window later")
		})
	}
}

// A service that can serve 100 calls a second is asked for 1000: what is sent comes to
// about K times what it can.
func TestThrottleSendsKTimesWhatIsAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle(t, ThrottleConfig{Window: 10 * time.Second})
		sent, accepted, room := 0, 0, 0
		for i := range 100_000 {
			if i%100 == 0 {
				room = 10
			}
			if i == 50_000 {
				sent, accepted = 0, 0
			}
			p, err := th.Acquire(t.Context(), core.Call{})
			switch {
			case err != nil:
				require.ErrorIs(t, err, ErrThrottled)
				require.Equal(t, core.Overloaded, err.(*core.Rejection).Reason)
			case room > 0:
				room--
				sent++
				accepted++
				p.Done(t.Context(), core.Success)
			default:
				sent++
				p.Done(t.Context(), core.Failure)
			}
			time.Sleep(time.Millisecond)
		}
		require.Greater(t, accepted, 4000, "of 5000 that it can serve in the second half")
		require.Less(t, sent, 12_500, "of 50,000")
		s := th.Stats()
		require.EqualValues(t, 100_000, s.Admitted+s.Refused)
	})
}

// A throttle and a breaker in a chain: what the breaker refuses is none of the
// throttle's calls.
func TestThrottleInFrontOfABreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle(t, ThrottleConfig{})
		b := tripped(t, Config{})
		for range 100 {
			_, err := core.Chain(th, b).Acquire(t.Context(), core.Call{})
			require.ErrorIs(t, err, ErrOpen)
		}
		require.Zero(t, th.Stats().Requests)
		require.Zero(t, th.Stats().RefusedPart)
	})
}

func TestThrottleTells(t *testing.T) {
	var heard recorder
	th := newThrottle(t, ThrottleConfig{Name: "search", Observer: &heard})
	th.counts.Add(countRequests, math.MaxUint32)
	_, err := th.Acquire(t.Context(), core.Call{Cost: 3})
	require.EqualError(t, err, `circuit: throttled, since the other side accepts too few calls: refused by "search"`)
	require.Equal(t, []core.Event{{Kind: core.KindRejected, Component: "search", Reason: core.Overloaded, N: 3}}, heard.events)
	r := th.Inspect()
	require.Equal(t, "search", r.Name)
	require.Contains(t, r.Values, core.Count("surgewall.throttle.calls", "{call}", 1).With("outcome", "rejected"))
	require.Contains(t, r.Settings, core.Setting{Name: "K", Value: 2.0})
}

func TestThrottleUnderLoad(t *testing.T) {
	th := newThrottle(t, ThrottleConfig{Window: 10 * time.Microsecond})
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for i := range 1000 {
				p, err := th.Acquire(t.Context(), core.Call{})
				if err == nil {
					p.Done(t.Context(), core.Outcome(i%4))
				}
				if s := th.Stats(); s.RefusedPart < 0 || s.RefusedPart > 1 {
					t.Errorf("%+v", s)
				}
			}
		})
	}
	wg.Wait()
	s := th.Stats()
	require.EqualValues(t, 32_000, s.Admitted+s.Refused)
}

func TestThrottleBadConfig(t *testing.T) {
	for _, cfg := range []ThrottleConfig{{K: 0.5, Window: 1}, {K: math.NaN(), Window: -1}, {K: 101, Window: 25 * time.Hour}} {
		_, err := NewThrottle(cfg)
		require.ErrorIs(t, err, core.ErrConfig)
		require.ErrorContains(t, err, "circuit.ThrottleConfig.K: ")
		require.ErrorContains(t, err, "circuit.ThrottleConfig.Window: ")
	}
}

func TestNilThrottle(t *testing.T) {
	var th *Throttle
	_, err := th.Acquire(context.Background(), core.Call{})
	require.NoError(t, err)
	require.Zero(t, th.Stats())
	require.Empty(t, th.Name())
	require.Equal(t, "throttle", th.Inspect().Kind)
}

func TestThrottleAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ctx := t.Context()
	th := newThrottle(t, ThrottleConfig{})
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		p, _ := th.Acquire(ctx, core.Call{})
		p.Done(ctx, core.Success)
	}))
	th.counts.Add(countRequests, math.MaxUint32)
	require.Zero(t, testing.AllocsPerRun(1000, func() { _, _ = th.Acquire(ctx, core.Call{}) }))
}
