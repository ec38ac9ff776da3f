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

// After an outage nearly all calls are refused, but never all, so that those which are
// admitted find out that it is over.
func TestThrottleRecovers(t *testing.T) {
	for _, k := range []float64{1.5, 2, 4} {
		synctest.Test(t, func(t *testing.T) {
			th := newThrottle(t, ThrottleConfig{K: k, Window: 10 * time.Second})
			call := func(o core.Outcome) float64 {
				if p, err := th.Acquire(t.Context(), core.Call{}); err == nil {
					p.Done(t.Context(), o)
				}
				time.Sleep(10 * time.Millisecond)
				return th.Stats().RefusedPart
			}
			for range 100 * 60 {
				require.Zero(t, call(core.Success))
			}
			for range 100 * 300 {
				require.Less(t, call(core.Failure), 1.0)
			}
			require.Greater(t, th.Stats().RefusedPart, 0.99)
			recovered := time.Now()
			for call(core.Success) > 0 {
				require.Less(t, time.Since(recovered), 10*time.Minute)
			}
			for range 1000 {
				require.Less(t, call(core.Success), 0.2)
			}
			s := th.Stats()
			require.Greater(t, s.Accepts, uint64(800))
		})
	}
}

// What is refused is the part that the formula says, of as many calls as there are.
func TestThrottleRefusesThatPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle(t, ThrottleConfig{})
		th.counts.Add(countRequests, 1_000_000_000)
		th.counts.Add(countAccepts, 400_000_000)
		require.InDelta(t, 0.2, th.Stats().RefusedPart, 1e-6)
		for range 10_000 {
			p, _ := th.Acquire(t.Context(), core.Call{})
			p.Done(t.Context(), core.Failure)
		}
		// Six standard deviations of 40.
		require.InDelta(t, 2000, float64(th.Stats().Refused), 240)
	})
}

// Counters that disagree, since calls ended in another window than they began in, are
// no negative numbers.
func TestThrottleIsNeverNegative(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle(t, ThrottleConfig{Window: 10 * time.Second})
		var out []core.Permit
		for range 30 {
			p, err := th.Acquire(t.Context(), core.Call{})
			if err == nil {
				out = append(out, p.Take())
			}
		}
		time.Sleep(time.Minute)
		require.Zero(t, th.Stats().Requests)
		for i := range out {
			if i%2 == 0 {
				out[i].Cancel()
			} else {
				out[i].Done(t.Context(), core.Success)
			}
			s := th.Stats()
			require.Zero(t, s.Requests)
			require.Zero(t, s.RefusedPart)
		}
		_, err := th.Acquire(t.Context(), core.Call{})
		require.NoError(t, err)
	})
}

func TestThrottleRoundsK(t *testing.T) {
	for _, k := range []float64{1.005, 1.1, 2, 16.001, 100} {
		require.Contains(t, newThrottle(t, ThrottleConfig{K: k}).Inspect().Settings, core.Setting{Name: "K", Value: k})
	}
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
