package circuit

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func TestForceOpenLetsNoCallThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{OpenFor: time.Second})
		out := admitted(t, b)
		b.ForceOpen(time.Hour)
		for range 60 {
			require.Equal(t, ForcedOpen, b.State())
			require.False(t, b.Ready())
			d, ok := refused(t, b, ErrOpen).RetryAfter()
			require.True(t, ok)
			require.Equal(t, time.Until(b.Stats().RetryAt), d)
			time.Sleep(time.Minute)
		}
		require.Equal(t, Closed, b.State(), "as it was before")
		require.True(t, b.Ready())
		require.EqualValues(t, 60, b.Stats().RejectedOpen)
		out.Done(t.Context(), core.Failure)
		require.Zero(t, b.Stats().FailuresInARow, "it is of before the force")
		require.EqualValues(t, 1, b.Stats().Failures)
		calls(t, b, "S")

		b.ForceOpen(0)
		time.Sleep(1000 * time.Hour)
		_, ok := refused(t, b, ErrOpen).RetryAfter()
		require.False(t, ok, "nobody knows when")
		require.True(t, b.Stats().RetryAt.IsZero())
		b.ForceOpen(time.Second)
		time.Sleep(time.Second)
		calls(t, b, "S")
	})
}

func TestClearForceRestoresWhatWasBelow(t *testing.T) {
	force := map[string]func(*Breaker){
		"forced_open":   func(b *Breaker) { b.ForceOpen(0) },
		"forced_closed": (*Breaker).ForceClosed,
		"disabled":      (*Breaker).Disable,
		"metrics_only":  (*Breaker).MetricsOnly,
	}
	for name, f := range force {
		for other, g := range force {
			synctest.Test(t, func(t *testing.T) {
				var told []string
				b := newBreaker(t, Config{FailureThreshold: 1, OpenFor: 10 * time.Second, OnStateChange: func(from, to State) {
					told = append(told, from.String()+" "+to.String())
				}})
				calls(t, b, "F")
				time.Sleep(3 * time.Second)
				f(b)
				require.Equal(t, name, b.State().String())
				f(b) // the same again is no change
				g(b)
				require.Equal(t, other, b.State().String())
				time.Sleep(3 * time.Second)
				b.ClearForce()
				b.ClearForce()
				require.Equal(t, Open, b.State())
				d, _ := refused(t, b, ErrOpen).RetryAfter()
				require.Equal(t, 4*time.Second, d)
				f(b)
				time.Sleep(5 * time.Second)
				b.ClearForce()
				require.Equal(t, HalfOpen, b.State(), "its time is over")
				p := admitted(t, b)
				f(b)
				b.ClearForce()
				require.Equal(t, HalfOpen, b.State())
				require.Zero(t, b.Stats().ProbesOut, "they begin anew")
				p.Done(t.Context(), core.Failure)
				require.Equal(t, HalfOpen, b.State())
				calls(t, b, "SSS")
				require.Equal(t, Closed, b.State())

				want := []string{"closed open", "open " + name}
				if name != other {
					want = append(want, name+" "+other)
				}
				want = append(want, other+" open", "open "+name, name+" open", "open half_open", "half_open "+name, name+" half_open", "half_open closed")
				require.Equal(t, want, told)
			})
		}
	}
}

func TestForcedStates(t *testing.T) {
	for _, rated := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			heard := 0
			cfg := Config{FailureThreshold: 2, OnFailure: func(core.Result) { heard++ }}
			if rated {
				cfg.FailureThreshold, cfg.FailurePercent, cfg.MinCalls = Off, 100, 2
			}
			b := newBreaker(t, cfg)
			b.ForceClosed()
			calls(t, b, "FFFFF")
			s := b.Stats()
			require.EqualValues(t, 5, s.Failures)
			require.Zero(t, s.WouldTrip)
			require.Equal(t, 5, heard)

			b.Disable()
			calls(t, b, "FFFFF")
			require.EqualValues(t, 5, b.Stats().Failures, "nothing is counted")
			require.Equal(t, 5, heard)

			b.MetricsOnly()
			calls(t, b, "FFFFF")
			s = b.Stats()
			require.EqualValues(t, 10, s.Failures)
			require.EqualValues(t, 2, s.WouldTrip)
			require.Equal(t, MetricsOnly, s.State)

			b.ClearForce()
			calls(t, b, "F")
			require.Equal(t, Closed, b.State())
			calls(t, b, "F")
			require.Equal(t, Open, b.State())
		})
	}
}

func TestReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []State
		b := newBreaker(t, Config{FailureThreshold: 2, OpenGrowth: 2, RampFor: time.Hour, OnStateChange: func(_, to State) { told = append(told, to) }})
		calls(t, b, "F")
		b.Reset()
		require.Empty(t, told)
		calls(t, b, "F")
		require.Equal(t, Closed, b.State())
		calls(t, b, "F")
		time.Sleep(30 * time.Second)
		calls(t, b, "F") // the probe
		b.Reset()
		calls(t, b, "SSSF") // and no ramp
		require.Equal(t, Closed, b.State())
		calls(t, b, "F")
		d, _ := refused(t, b, ErrOpen).RetryAfter()
		require.Equal(t, 30*time.Second, d, "it has not grown")
		b.ForceOpen(0)
		b.Reset()
		require.Equal(t, Closed, b.State())
		b.ClearForce()
		require.Equal(t, []State{Open, HalfOpen, Open, Closed, Open, ForcedOpen, Closed}, told)

		calls(t, b, "FF")
		time.Sleep(30 * time.Second)
		calls(t, b, "SSSS")
		refused(t, b, ErrRamping)
		b.Reset()
		calls(t, b, "SSSS") // a ramp that runs has ended
		require.Len(t, told, 10)
	})
}

func TestOpenTimeGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{FailureThreshold: 1, SuccessThreshold: 1, OpenFor: time.Second, OpenGrowth: 2, OpenMax: 10 * time.Second})
		open := func(want time.Duration) {
			t.Helper()
			d, _ := refused(t, b, ErrOpen).RetryAfter()
			require.Equal(t, want, d)
			time.Sleep(d)
		}
		calls(t, b, "F")
		for _, seconds := range []time.Duration{1, 2, 4, 8, 10, 10} {
			open(seconds * time.Second)
			calls(t, b, "F")
		}
		open(10 * time.Second)
		calls(t, b, "S") // closes
		calls(t, b, "F")
		open(time.Second)
	})
}

func TestOpenTimeNeverOverflows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{FailureThreshold: 1, OpenFor: math.MaxInt64 / 4, OpenGrowth: 10, OpenJitter: 1})
		b.mu.Lock()
		for range 400 {
			b.streak++
			d := b.openTime(b.settings.Load())
			require.GreaterOrEqual(t, d, time.Duration(0))
			require.LessOrEqual(t, d, time.Duration(math.MaxInt64))
		}
		b.mu.Unlock()
		b = newBreaker(t, Config{FailureThreshold: 1, OpenFor: math.MaxInt64, OpenGrowth: 10})
		calls(t, b, "F")
		refused(t, b, ErrOpen)
	})
}

func TestOpenTimeJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{OpenFor: 10 * time.Second, OpenJitter: 0.2})
		b.mu.Lock()
		defer b.mu.Unlock()
		least, most := time.Hour, time.Duration(0)
		for range 10_000 {
			d := b.openTime(b.settings.Load())
			least, most = min(least, d), max(most, d)
		}
		require.GreaterOrEqual(t, least, 8*time.Second)
		require.Less(t, least, 8100*time.Millisecond)
		require.LessOrEqual(t, most, 10*time.Second)
		require.Greater(t, most, 9900*time.Millisecond)
	})
}

func TestShareOfProbesDecides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{FailureThreshold: 1, SuccessThreshold: 10, SuccessPercent: 75, Probes: 10}
		for _, tc := range []struct {
			probes string
			want   State
		}{
			{"SSSSSSS", HalfOpen},
			{"SSSSSSSS", Closed}, // 8 of 10: 75 %, rounded up
			{"FFSSSSSSSS", Closed},
			{"FF", HalfOpen},
			{"FFF", Open}, // 8 cannot succeed any more
			{"SSSSFSSFF", Open},
			{"IIIIISSSSSIIIIISSS", Closed},
		} {
			b := tripped(t, cfg)
			time.Sleep(30 * time.Second)
			calls(t, b, tc.probes)
			require.Equal(t, tc.want, b.State(), tc.probes)
		}
	})
}

func TestRamp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		recover := func() *Breaker {
			b := tripped(t, Config{FailureThreshold: 2, SuccessThreshold: 1, RampFor: 30 * time.Second})
			time.Sleep(30 * time.Second)
			calls(t, b, "S")
			require.Equal(t, Closed, b.State())
			return b
		}
		b := recover()
		start := time.Now()
		for _, percent := range []int{10, 25, 50, 100, 100} {
			n := 0
			for range 1000 {
				if p, err := b.Acquire(t.Context(), core.Call{}); err == nil {
					n++
					p.Done(t.Context(), core.Success)
				} else {
					r := err.(*core.Rejection)
					require.ErrorIs(t, err, ErrRamping)
					require.Equal(t, core.CircuitRamping, r.Reason)
					require.Equal(t, start.Add(30*time.Second), r.RetryAt)
				}
			}
			require.Equal(t, percent*10, n)
			time.Sleep(10 * time.Second)
		}
		require.EqualValues(t, 900+750+500, b.Stats().RejectedRamping)

		// A first call is let in at once, and failures open it again.
		b = recover()
		calls(t, b, "F")
		for finish(t, b, core.Failure) != nil {
		}
		require.Equal(t, Open, b.State())
	})
}

// New settings count from where the old ones have come to.
func TestReconfigure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard recorder
		b := newBreaker(t, Config{Name: "a", Observer: &heard})
		calls(t, b, "FFFF")
		require.ErrorIs(t, b.Reconfigure(Config{OpenFor: -1}), core.ErrConfig)
		require.NoError(t, b.Reconfigure(Config{Name: "b", FailureThreshold: 6}))
		require.Equal(t, core.Event{Kind: core.KindReconfigured, Component: "a"}, heard.events[0])
		calls(t, b, "F")
		require.Equal(t, Closed, b.State())
		calls(t, b, "F")
		require.Equal(t, Open, b.State())

		// A window that stays as it is keeps what it knows; another is new.
		rates := Config{FailureThreshold: Off, FailurePercent: 60, MinCalls: 4}
		b = newBreaker(t, Config{FailureThreshold: 100})
		calls(t, b, "FFFF")
		require.NoError(t, b.Reconfigure(rates))
		calls(t, b, "SSFF")
		require.EqualValues(t, 4, b.Stats().WindowCalls)
		rates.FailurePercent = 50
		require.NoError(t, b.Reconfigure(rates))
		require.EqualValues(t, 4, b.Stats().WindowCalls)
		rates.WindowCalls = 4
		require.NoError(t, b.Reconfigure(rates))
		require.Zero(t, b.Stats().WindowCalls)
		p := admitted(t, b)
		require.NoError(t, b.Reconfigure(Config{}))
		p.Done(t.Context(), core.Success)
		require.NoError(t, (*Breaker)(nil).Reconfigure(Config{}))
		require.ErrorIs(t, (*Breaker)(nil).Reconfigure(Config{Probes: -1}), core.ErrConfig)
	})
}

// Everybody does everything at once. What is told alternates and ends on the true
// state, and nobody is stuck.
func TestControlUnderLoad(t *testing.T) {
	at := Closed
	b := newBreaker(t, Config{
		FailureThreshold: 3, FailurePercent: 50, MinCalls: 5, Window: time.Millisecond, SlowPercent: 50, SlowCall: time.Millisecond,
		OpenFor: 20 * time.Microsecond, ProbeLease: 20 * time.Microsecond, RampFor: 50 * time.Microsecond, OpenGrowth: 2, OpenJitter: 0.5,
		OnStateChange: func(from, to State) {
			if from != at || from == to {
				t.Errorf("%v to %v, after %v", from, to, at)
			}
			at = to
		},
	})
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for range 300 {
				switch rand.IntN(40) {
				case 0:
					b.ForceOpen(time.Duration(rand.IntN(3)) * 10 * time.Microsecond)
				case 1:
					b.ForceClosed()
				case 2:
					b.Disable()
				case 3:
					b.MetricsOnly()
				case 4:
					b.Reset()
				case 5, 6, 7, 8:
					b.ClearForce()
				case 9:
					cfg := Config{OpenFor: 10 * time.Microsecond}
					if rand.IntN(2) == 0 {
						cfg.FailurePercent, cfg.WindowCalls = 50, 10*rand.IntN(2)
					}
					if err := b.Reconfigure(cfg); err != nil {
						t.Error(err)
					}
				case 10:
					b.Inspect()
				default:
					p, err := b.Acquire(t.Context(), core.Call{})
					if err == nil && rand.IntN(20) > 0 {
						p.Done(t.Context(), core.Outcome(rand.IntN(4)))
					}
				}
			}
		})
	}
	wg.Wait()
	b.notices.Drain(b.tell)
	require.Equal(t, b.load().state(), at)
	b.Reset()
	require.NoError(t, b.Reconfigure(Config{}))
	calls(t, b, "SFFFFF")
	require.Equal(t, Open, b.State())
}

func TestControlOfANilBreaker(t *testing.T) {
	var b *Breaker
	b.ForceOpen(time.Hour)
	b.ForceClosed()
	b.Disable()
	b.MetricsOnly()
	b.ClearForce()
	b.Reset()
	_, err := b.Acquire(context.Background(), core.Call{})
	require.NoError(t, err)
}

func TestBadRates(t *testing.T) {
	_, err := New(Config{
		FailureThreshold: -2, FailurePercent: 101, SlowPercent: -1, SlowCall: -1, Window: 5, WindowCalls: -1, MinCalls: -1,
		OpenGrowth: math.NaN(), OpenMax: 1, OpenJitter: math.NaN(), SuccessPercent: 101, RampFor: -1, Uncounted: true,
	})
	require.ErrorIs(t, err, core.ErrConfig)
	for _, field := range []string{
		"FailureThreshold: -2", "FailurePercent: 101", "SlowPercent: -1", "SlowCall: -1ns", "Window: 5ns", "WindowCalls: -1",
		"MinCalls: -1", "OpenGrowth: NaN", "OpenMax: 1ns", "OpenJitter: NaN", "SuccessPercent: 101", "RampFor: -1ns", "Uncounted: true",
	} {
		require.ErrorContains(t, err, "circuit.Config."+field)
	}
	for _, tc := range []struct {
		cfg  Config
		want string
	}{
		{Config{FailureThreshold: Off}, "FailureThreshold: -1: must not be Off without"},
		{Config{Window: time.Second}, "Window: 1s: needs a FailurePercent"},
		{Config{WindowCalls: 7}, "WindowCalls: 7: needs a FailurePercent"},
		{Config{MinCalls: 7}, "MinCalls: 7: needs a FailurePercent"},
		{Config{SlowPercent: 7}, "SlowCall: must be set with SlowPercent"},
		{Config{SlowCall: 7}, "SlowPercent: must be set with SlowCall"},
		{Config{FailurePercent: 7, WindowCalls: 7, MinCalls: 8}, "MinCalls: 8: must be at most WindowCalls"},
		{Config{FailurePercent: 7, WindowCalls: 7, Window: time.Second}, "Window: 1s: must be 0 with WindowCalls"},
		{Config{OpenGrowth: 0.5}, "OpenGrowth: 0.5: must be 1 to 10"},
		{Config{OpenJitter: 1.5}, "OpenJitter: 1.5: must be 0 to 1"},
	} {
		_, err := New(tc.cfg)
		require.ErrorContains(t, err, "circuit.Config."+tc.want)
	}
}
