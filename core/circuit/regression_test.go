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

// Failures that pass the threshold at the same time would have opened the breaker
// once, not once each.
func TestMetricsOnlyCountsATripOnce(t *testing.T) {
	for _, cfg := range []Config{
		{FailureThreshold: 2},
		{FailureThreshold: Off, FailurePercent: 50, MinCalls: 2},
		{FailureThreshold: Off, FailurePercent: 50, MinCalls: 2, WindowCalls: 2},
	} {
		b := newBreaker(t, cfg)
		b.MetricsOnly()
		w := b.load()
		for range 2 { // two goroutines that have come to the same conclusion
			b.trip(t.Context(), w, whyInARow, 2, core.Result{})
		}
		require.EqualValues(t, 1, b.Stats().WouldTrip)
		require.Equal(t, MetricsOnly, b.State())
		calls(t, b, "FF")
		require.EqualValues(t, 2, b.Stats().WouldTrip)

		// What was admitted before it would have opened changes nothing.
		early := []core.Permit{admitted(t, b), admitted(t, b)}
		calls(t, b, "FF")
		for i := range early {
			early[i].Done(t.Context(), core.Failure)
		}
		s := b.Stats()
		require.EqualValues(t, 3, s.WouldTrip)
		require.Zero(t, s.FailuresInARow)
		require.Zero(t, s.WindowCalls)
		require.EqualValues(t, 6, s.Failures)
	}

	b := newBreaker(t, Config{FailureThreshold: 5})
	b.MetricsOnly()
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() { calls(t, b, "FFFFFFFFFFFFFFFFFFFF") })
	}
	wg.Wait()
	require.LessOrEqual(t, b.Stats().WouldTrip, uint64(64*20/5))
	require.Positive(t, b.Stats().WouldTrip)
}

// An Outcome that is none says nothing, of a probe as of any other call.
func TestUnknownOutcomeIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{FailureThreshold: 1, SlowPercent: 100, SlowCall: time.Second, MinCalls: 1})
		slowly(t, b, 99, time.Minute)
		s := b.Stats()
		require.Equal(t, Closed, s.State)
		require.EqualValues(t, 1, s.Ignored)
		require.Zero(t, s.Slow)
		require.Zero(t, s.WindowSlow)
		calls(t, b, "F")
		time.Sleep(30 * time.Second)
		slowly(t, b, 99, time.Minute)
		require.Equal(t, HalfOpen, b.State())
		require.Zero(t, b.Stats().ProbesOut)
		require.EqualValues(t, 2, b.Stats().Ignored)
	})
}

// A Latency that cannot be is none, and a huge one is slow.
func TestLatencyOutOfRange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{SlowPercent: 100, SlowCall: time.Second, MinCalls: 1})
		p := admitted(t, b)
		p.Finish(t.Context(), core.Result{Outcome: core.Success, Latency: -1})
		require.Zero(t, b.Stats().Slow)
		p = admitted(t, b)
		time.Sleep(time.Second)
		p.Finish(t.Context(), core.Result{Outcome: core.Ignored, Latency: math.MaxInt64})
		require.Zero(t, b.Stats().Slow)
		p = admitted(t, b)
		q := admitted(t, b)
		time.Sleep(time.Second)
		p.Finish(t.Context(), core.Result{Outcome: core.Success, Latency: math.MinInt64})
		require.EqualValues(t, 1, b.Stats().Slow, "it took a second")
		q.Finish(t.Context(), core.Result{Outcome: core.Success, Latency: math.MaxInt64})
		require.EqualValues(t, 2, b.Stats().Slow)
	})
}

// A new ProbeLease is that of the probes which are out, too: an operator who
// shortens it does not wait for the old one.
func TestReconfigureShortensLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{FailureThreshold: 1, Probes: 2, SuccessThreshold: 1, ProbeLease: time.Hour}
		b := tripped(t, cfg)
		time.Sleep(30 * time.Second)
		admitted(t, b) // hangs
		time.Sleep(2 * time.Second)
		admitted(t, b) // hangs
		refused(t, b, ErrProbesTaken)
		cfg.ProbeLease = 10 * time.Second
		require.NoError(t, b.Reconfigure(cfg))
		refused(t, b, ErrProbesTaken)
		time.Sleep(8*time.Second - 1)
		refused(t, b, ErrProbesTaken)
		time.Sleep(time.Nanosecond)
		admitted(t, b) // hangs
		refused(t, b, ErrProbesTaken)
		time.Sleep(2 * time.Second)
		admitted(t, b) // hangs
		refused(t, b, ErrProbesTaken)
		time.Sleep(8 * time.Second)
		calls(t, b, "S")
		require.Equal(t, Closed, b.State())
	})
}

// A half-open breaker that is given fewer places fills none until so many are free,
// and one that is given more has them at once.
func TestReconfigureProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{FailureThreshold: 1, Probes: 4, SuccessThreshold: 10}
		b := tripped(t, cfg)
		time.Sleep(30 * time.Second)
		var out []core.Permit
		for range 4 {
			out = append(out, admitted(t, b))
			time.Sleep(time.Second)
		}
		cfg.Probes = 2
		require.NoError(t, b.Reconfigure(cfg))
		for i := range 2 {
			refused(t, b, ErrProbesTaken)
			out[i].Cancel()
		}
		refused(t, b, ErrProbesTaken)
		require.Equal(t, 2, b.Stats().ProbesOut)
		out[2].Cancel()
		out[2] = admitted(t, b)
		refused(t, b, ErrProbesTaken)

		cfg.Probes = 10
		require.NoError(t, b.Reconfigure(cfg))
		require.True(t, b.Ready())
		for range 8 {
			admitted(t, b)
		}
		refused(t, b, ErrProbesTaken)
	})
}

// The share that jitter takes of the longest open time is not lost in an overflow.
func TestJitterOfTheLongestOpenTime(t *testing.T) {
	b := newBreaker(t, Config{OpenFor: math.MaxInt64, OpenJitter: 1})
	b.mu.Lock()
	defer b.mu.Unlock()
	shorter := false
	for range 100 {
		d := b.openTime(b.settings.Load())
		require.Positive(t, d)
		shorter = shorter || d < math.MaxInt64/10*9
	}
	require.True(t, shorter)
}

// A force whose time is over has ended, whoever does what next.
func TestForceAfterAForceThatIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		b := newBreaker(t, Config{OnStateChange: func(from, to State) { told = append(told, from.String()+" "+to.String()) }})
		b.ForceOpen(time.Second)
		time.Sleep(time.Minute)
		require.Equal(t, Closed, b.State())
		b.ForceOpen(time.Second)
		require.Equal(t, ForcedOpen, b.State())
		require.Equal(t, time.Now(), b.Stats().Since)
		require.Equal(t, []string{"closed forced_open", "forced_open closed", "closed forced_open"}, told)
		time.Sleep(time.Second)
		calls(t, b, "S")
		require.Equal(t, Closed, b.State())
	})
}

// B2 for each generation anew: what a result of the one before has found out does not
// make the rate of this one known.
func TestRateIsUnknownInEachGeneration(t *testing.T) {
	b := newBreaker(t, Config{FailureThreshold: Off, FailurePercent: 50, MinCalls: 5})
	calls(t, b, "SSSSS")
	known := b.settings.Load().known.Load()
	b.Reset()
	b.settings.Load().known.Store(known) // by a result that was on its way
	calls(t, b, "FFFS")
	require.Equal(t, Closed, b.State())
	calls(t, b, "S")
	require.Equal(t, Open, b.State())
}

// B21: callbacks that use every verb of the breaker find no lock held.
func TestRegressionListenerControlsTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b *Breaker
		at, n := Closed, 0
		verbs := []func(){
			func() { b.ForceOpen(time.Second) },
			func() { b.ForceClosed() },
			func() { b.MetricsOnly() },
			func() { b.Disable() },
			func() { b.ClearForce() },
			func() { b.Reset() },
			func() { _ = b.Reconfigure(Config{FailureThreshold: 1, FailurePercent: 50, RampFor: time.Second}) },
			func() { calls(t, b, "F") },
		}
		next := func() {
			if n++; n <= 2*len(verbs) {
				verbs[n%len(verbs)]()
			}
		}
		b = newBreaker(t, Config{
			FailureThreshold: 1, SuccessThreshold: 1, OpenFor: time.Second,
			OnSuccess: func(core.Result) { next() },
			OnFailure: func(core.Result) { next() },
			OnStateChange: func(from, to State) {
				require.Equal(t, at, from)
				require.NotEqual(t, from, to)
				at = to
				next()
			},
			Observer: &recorder{does: func(core.Event) { b.Stats(); b.Inspect() }},
		})
		for range 20 {
			if finish(t, b, core.Failure) != nil {
				time.Sleep(time.Second)
			}
			if finish(t, b, core.Success) != nil {
				time.Sleep(time.Second)
			}
		}
		require.Greater(t, n, 2*len(verbs))
		require.Equal(t, b.load().state(), at)
		b.Reset()
		require.Equal(t, Closed, at)
	})
}

// The shortest and the longest window, at the first reading of the clock.
func TestWindowLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, window := range []time.Duration{windowSlots, maxTimeWindow} {
			b := newBreaker(t, Config{FailureThreshold: Off, FailurePercent: 100, MinCalls: 3, Window: window})
			calls(t, b, "F")
			time.Sleep(window - window/windowSlots)
			calls(t, b, "F")
			require.EqualValues(t, 2, b.Stats().WindowCalls)
			time.Sleep(window / windowSlots)
			require.EqualValues(t, 1, b.Stats().WindowCalls)
			calls(t, b, "F")
			require.Equal(t, Closed, b.State())
			calls(t, b, "F")
			require.Equal(t, Open, b.State())
		}
	})
}

// B13 for the windows: what was admitted before the breaker opened is in no window
// afterwards, whether it ends while that is open, half-open or closed again.
func TestLateResultsAreInNoWindow(t *testing.T) {
	for _, calledBy := range []int{0, 4} {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, Config{
				FailureThreshold: Off, FailurePercent: 50, MinCalls: 4, WindowCalls: calledBy,
				SlowPercent: 50, SlowCall: time.Hour, SuccessThreshold: 1,
			})
			var early []core.Permit
			for range 12 {
				early = append(early, admitted(t, b))
			}
			end := func() {
				for range 4 {
					early[0].Done(t.Context(), core.Failure)
					early = early[1:]
				}
			}
			calls(t, b, "FFFF")
			end()
			time.Sleep(30 * time.Second)
			probe := admitted(t, b)
			end()
			require.Equal(t, HalfOpen, b.State())
			probe.Done(t.Context(), core.Success)
			time.Sleep(2 * time.Hour)
			end()
			s := b.Stats()
			require.Equal(t, Closed, s.State)
			require.Zero(t, s.WindowCalls)
			require.Zero(t, s.WindowSlow)
			require.EqualValues(t, 4+12, s.Failures)
			require.EqualValues(t, 4, s.Slow)
			require.EqualValues(t, 1, s.Trips)
		})
	}
}

// B12 with callbacks that panic, too: the panic of the call goes on, and what the
// breaker has learnt of it stays.
func TestPanicOfTheCallSurvivesThoseOfCallbacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := func() { panic("listener") }
		b := newBreaker(t, Config{
			FailureThreshold: 1, Probes: 1,
			OnFailure:     func(core.Result) { bad() },
			OnStateChange: func(State, State) { bad() },
			Observer:      &recorder{does: func(core.Event) { bad() }},
		})
		for range 3 {
			require.PanicsWithValue(t, "boom", func() {
				_ = core.Do(t.Context(), b, func(context.Context) error { panic("boom") })
			})
			require.Equal(t, Open, b.State())
			time.Sleep(30 * time.Second)
		}
		s := b.Stats()
		require.EqualValues(t, 3, s.Failures)
		require.EqualValues(t, 1, s.Trips)
		require.EqualValues(t, 2, s.Reopens)
		require.EqualValues(t, 3+2*5, s.CallbackPanics)
	})
}

// Uncounted leaves out only what nothing else has to know.
func TestUncounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{FailureThreshold: 2, SuccessThreshold: 2, Uncounted: true})
		calls(t, b, "SSFSSF")
		s := b.Stats()
		require.Zero(t, s.Successes)
		require.EqualValues(t, 2, s.Failures)
		require.Equal(t, 1, s.FailuresInARow, "a success ends a run all the same")
		calls(t, b, "F")
		time.Sleep(30 * time.Second)
		calls(t, b, "SS") // probes are counted
		require.Equal(t, Closed, b.State())
		require.EqualValues(t, 2, b.Stats().Successes)

		heard := 0
		b = newBreaker(t, Config{Uncounted: true, OnSuccess: func(core.Result) { heard++ }})
		calls(t, b, "SSS")
		require.Equal(t, 3, heard)
	})
}

// A probe is slow by the Latency that whoever calls has measured.
func TestProbeIsSlowByItsLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{FailureThreshold: 1, SlowPercent: 100, SlowCall: time.Second, SuccessThreshold: 2})
		calls(t, b, "F")
		time.Sleep(30 * time.Second)
		p := admitted(t, b)
		time.Sleep(time.Minute)
		p.Finish(t.Context(), core.Result{Outcome: core.Success, Latency: time.Second - 1})
		require.Equal(t, 1, b.Stats().ProbesSucceeded)
		p = admitted(t, b)
		p.Finish(t.Context(), core.Result{Outcome: core.Success, Latency: time.Second})
		require.Equal(t, Open, b.State())
		require.EqualValues(t, 1, b.Stats().Slow)
	})
}
