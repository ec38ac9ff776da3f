package circuit

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// slowly makes one call that takes so long.
func slowly(t testing.TB, b *Breaker, o core.Outcome, d time.Duration) {
	t.Helper()
	p := admitted(t, b)
	time.Sleep(d)
	p.Done(t.Context(), o)
}

func TestRateIsUnknownBelowMinCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{FailureThreshold: Off, FailurePercent: 50, MinCalls: 5})
		calls(t, b, "FFFS")
		require.Equal(t, Closed, b.State())
		calls(t, b, "S") // the fifth, and a success: 60 % have failed
		require.Equal(t, Open, b.State())
		require.EqualValues(t, 1, b.Stats().Trips)
	})
}

func TestRateIsInclusive(t *testing.T) {
	outcomes := func(failures, of int) (s string) {
		for i := range of {
			s += map[bool]string{true: "F", false: "S"}[i < failures]
		}
		return s
	}
	for _, tc := range []struct {
		percent, failures, of int
		want                  State
	}{
		{57, 57, 100, Open},
		{57, 56, 100, Closed},
		{58, 57, 100, Closed},
		{1, 1, 100, Open},
		{1, 1, 101, Open}, // at the hundredth call it was 1 %
		{100, 99, 100, Closed},
		{100, 100, 100, Open},
		{33, 33, 100, Open},
		{34, 33, 100, Closed},
	} {
		for _, window := range []int{0, 200} {
			synctest.Test(t, func(t *testing.T) {
				b := newBreaker(t, Config{FailureThreshold: Off, FailurePercent: tc.percent, MinCalls: 100, WindowCalls: window})
				for i, o := range outcomes(tc.failures, tc.of) {
					if b.State() == Open {
						require.GreaterOrEqual(t, i, 100)
						break
					}
					require.NoError(t, finish(t, b, outcomeOf(byte(o))))
				}
				require.Equal(t, tc.want, b.State(), "%+v", tc)
			})
		}
	}
	b := newBreaker(t, Config{FailureThreshold: Off, FailurePercent: 1, MinCalls: 20})
	calls(t, b, outcomes(19, 19))
	require.Equal(t, Closed, b.State(), "one fewer than MinCalls, all failing")
}

func TestSlowCallRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard recorder
		b := newBreaker(t, Config{
			FailureThreshold: Off, SlowPercent: 50, SlowCall: 4 * time.Second, MinCalls: 5, Window: time.Minute, Observer: &heard,
		})
		slowly(t, b, core.Failure, 4*time.Second)
		slowly(t, b, core.Success, 4*time.Second)
		slowly(t, b, core.Failure, 4*time.Second-1)
		slowly(t, b, core.Success, 0)
		require.Equal(t, Closed, b.State())
		slowly(t, b, core.Success, time.Hour/100)
		require.Equal(t, Open, b.State())
		require.EqualValues(t, 3, b.Stats().Slow)
		e := heard.events[len(heard.events)-1]
		require.Equal(t, "slow_call_rate", e.Why)
		require.EqualValues(t, 3, e.N)

		// What whoever calls has measured counts instead.
		b = newBreaker(t, Config{FailureThreshold: Off, SlowPercent: 50, SlowCall: time.Second, MinCalls: 1})
		p := admitted(t, b)
		time.Sleep(time.Hour)
		p.Finish(t.Context(), core.Result{Outcome: core.Success, Latency: time.Second - 1})
		require.Equal(t, Closed, b.State())
		p = admitted(t, b)
		p.Finish(t.Context(), core.Result{Outcome: core.Success, Latency: time.Second})
		require.Equal(t, Open, b.State())

		// A probe that is slow has failed.
		time.Sleep(time.Minute)
		slowly(t, b, core.Success, time.Second)
		require.Equal(t, Open, b.State())
		require.EqualValues(t, 1, b.Stats().Reopens)
	})
}

// Once the rate is known, a success does not open the breaker, even if older ones
// have left the window meanwhile.
func TestOnlyBadCallsOpenOnceTheRateIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{FailureThreshold: Off, FailurePercent: 50, MinCalls: 2, Window: 10 * time.Second})
		calls(t, b, "SSS")
		time.Sleep(5 * time.Second)
		calls(t, b, "FF")
		time.Sleep(5 * time.Second)
		require.EqualValues(t, 2, b.Stats().WindowCalls)
		calls(t, b, "S")
		require.Equal(t, Closed, b.State(), "two of three have failed, and this one has not")
		calls(t, b, "F")
		require.Equal(t, Open, b.State())
	})
}

// 429 counts in the rate, fails a probe, and is not a failure in a row.
func TestThrottledCountsInTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{FailureThreshold: 2, FailurePercent: 50, MinCalls: 10})
		calls(t, b, "TTTTTFTS")
		require.Equal(t, Closed, b.State())
		calls(t, b, "SS")
		require.Equal(t, Open, b.State())
		time.Sleep(30 * time.Second)
		calls(t, b, "T")
		require.Equal(t, Open, b.State())
	})
}

func TestWindowOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{FailureThreshold: Off, FailurePercent: 100, MinCalls: 1000, Window: 10 * time.Second})
		in := func(want int) { t.Helper(); require.EqualValues(t, want, b.Stats().WindowCalls) }
		for range 10 {
			calls(t, b, "F")
			time.Sleep(time.Second)
		}
		in(9) // the first was in a slot that has ended ten slots ago
		time.Sleep(time.Second - 1)
		in(9)
		time.Sleep(time.Nanosecond)
		in(8)
		time.Sleep(8 * time.Second)
		in(0)
		calls(t, b, "FS")
		in(2)
		time.Sleep(time.Hour)
		in(0)
		calls(t, b, "F")
		in(1)
	})
}

func TestWindowOfCalls(t *testing.T) {
	b := newBreaker(t, Config{FailureThreshold: Off, FailurePercent: 100, MinCalls: 3, WindowCalls: 3})
	require.EqualValues(t, 3, b.Stats().WindowCalls+3)
	calls(t, b, "FFSFFS")
	s := b.Stats()
	require.EqualValues(t, 3, s.WindowCalls)
	require.EqualValues(t, 2, s.WindowFailures)
	calls(t, b, "FFF")
	require.Equal(t, Open, b.State())
}

// A result that passes a change of state on its way is in no window of the next.
func TestWindowOfCallsIsOfOneGeneration(t *testing.T) {
	w := newCountWindow(3)
	w.begin(7, 0)
	w.counted(6, true, true)
	w.counted(7, true, false)
	w.counted(8, true, true)
	require.Equal(t, tally{total: 1, bad: 1}, w.tally())
}

// A slow outage: calls that hang longer than the window still count when they end.
func TestRegressionCallsLongerThanTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{FailureThreshold: Off, FailurePercent: 50, MinCalls: 20, Window: 10 * time.Second})
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() {
				p, err := b.Acquire(t.Context(), core.Call{})
				if err != nil {
					return
				}
				time.Sleep(30 * time.Second)
				p.Done(t.Context(), core.Failure)
			})
			time.Sleep(500 * time.Millisecond)
		}
		wg.Wait()
		require.Equal(t, Open, b.State())
	})
}

// 64 goroutines book results across idle gaps that are longer than the window, while
// others read it. None is lost, in the sum and in the window, and none is ever
// negative.
func TestWindowLosesNothing(t *testing.T) {
	const goroutines, each = 64, 50
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{
			FailureThreshold: Off, FailurePercent: 100, SlowPercent: 100, SlowCall: time.Hour,
			MinCalls: maxMinCalls, Window: 10 * time.Second,
		})
		total := uint64(0)
		for range 20 {
			var wg sync.WaitGroup
			for range goroutines {
				wg.Go(func() {
					for range each {
						p, err := b.Acquire(t.Context(), core.Call{})
						if err != nil {
							t.Error(err)
						}
						p.Done(t.Context(), core.Outcome(1+rand.IntN(3)))
						s := b.Stats()
						if s.WindowFailures > s.WindowCalls || s.WindowCalls > goroutines*each {
							t.Errorf("%+v", s)
						}
					}
				})
			}
			wg.Wait()
			total += goroutines * each
			s := b.Stats()
			require.Equal(t, total, s.Successes+s.Failures+s.Throttled)
			require.EqualValues(t, goroutines*each, s.WindowCalls)
			time.Sleep(time.Minute)
		}
	})
}

// The same in real time, with slots so short that they end all the time.
func TestWindowUnderRotation(t *testing.T) {
	const goroutines, each = 64, 500
	b := newBreaker(t, Config{
		FailureThreshold: Off, FailurePercent: 100, MinCalls: maxMinCalls, Window: 10 * time.Microsecond,
	})
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for range each {
				p, _ := b.Acquire(t.Context(), core.Call{})
				p.Done(t.Context(), core.Outcome(1+rand.IntN(3)))
				if s := b.Stats(); s.WindowFailures > s.WindowCalls || s.WindowCalls > goroutines*each {
					t.Errorf("%+v", s)
				}
			}
		})
	}
	wg.Wait()
	s := b.Stats()
	require.EqualValues(t, goroutines*each, s.Successes+s.Failures+s.Throttled)
}

// A result of before a change of state is in Stats and not in the window.
func TestWindowBeginsAnewWithEachState(t *testing.T) {
	for _, window := range []int{0, 10} {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, Config{FailureThreshold: Off, FailurePercent: 50, MinCalls: 4, WindowCalls: window, SuccessThreshold: 1})
			late := admitted(t, b)
			calls(t, b, "FFFF")
			require.Equal(t, Open, b.State())
			time.Sleep(30 * time.Second)
			calls(t, b, "S")
			require.Equal(t, Closed, b.State())
			late.Done(t.Context(), core.Failure)
			calls(t, b, "S")
			s := b.Stats()
			require.EqualValues(t, 1, s.WindowCalls)
			require.EqualValues(t, 5, s.Failures)
			b.Reset()
			require.Zero(t, b.Stats().WindowCalls)
		})
	}
}
