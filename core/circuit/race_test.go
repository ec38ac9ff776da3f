package circuit

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// 100 goroutines make the breaker flap, and finish, cancel, finish twice and
// lose permits. The changes of state that are told alternate and end on the
// true state, the sequence numbers grow, and nothing is counted twice.
func TestFlapping(t *testing.T) {
	const goroutines, rounds = 100, 300
	var changes []State
	var seqs []uint64
	at := Closed
	heard := recorder{does: func(e core.Event) {
		if e.Kind == core.KindStateChanged {
			seqs = append(seqs, e.Seq) // one at a time, as OnStateChange
		}
	}}
	b := newBreaker(t, Config{
		FailureThreshold: 2, SuccessThreshold: 2, Probes: 5,
		OpenFor:    time.Microsecond, // real time: what matters is that it flaps
		ProbeLease: time.Microsecond,
		OnStateChange: func(from, to State) {
			if from != at || from == to {
				t.Errorf("%v to %v, after %v", from, to, at)
			}
			at = to
			changes = append(changes, to)
		},
		Observer: &heard,
	})
	var wg sync.WaitGroup
	var mu sync.Mutex
	sum := make(map[core.Outcome]uint64)
	var refusals uint64
	for range goroutines {
		wg.Go(func() {
			mine := make(map[core.Outcome]uint64)
			var no uint64
			for range rounds {
				ctx, cancel := context.WithCancel(t.Context())
				if rand.IntN(4) == 0 {
					cancel()
				}
				p, err := b.Acquire(ctx, core.Call{})
				switch o := core.Outcome(rand.IntN(5)); {
				case err != nil:
					no++
				case o > core.Throttled:
					p.Cancel()
				case rand.IntN(20) == 0: // lost
				default:
					mine[o]++
					p.Done(ctx, o)
					p.Done(ctx, o)
				}
				b.State()
				b.Ready()
				if rand.IntN(50) == 0 {
					b.Inspect()
				}
				cancel()
			}
			mu.Lock()
			defer mu.Unlock()
			for o, n := range mine {
				sum[o] += n
			}
			refusals += no
		})
	}
	wg.Wait()

	require.NotEmpty(t, changes)
	require.Equal(t, b.load().state(), changes[len(changes)-1])
	require.IsIncreasing(t, seqs)
	require.Equal(t, b.load().generation(), seqs[len(seqs)-1])
	s := b.Stats()
	require.Equal(t, sum[core.Success], s.Successes)
	require.Equal(t, sum[core.Failure], s.Failures)
	require.Equal(t, sum[core.Throttled], s.Throttled)
	require.Equal(t, sum[core.Ignored], s.Ignored)
	require.Equal(t, refusals, s.RejectedOpen+s.RejectedProbesTaken)
	require.Zero(t, s.CallbackPanics)
}

// However many fail at once, no failure is lost and the breaker trips once.
func TestConcurrentFailures(t *testing.T) {
	for _, n := range []int{999, 1000} {
		b := newBreaker(t, Config{FailureThreshold: 1000, OpenFor: time.Hour})
		permits := make([]core.Permit, n)
		for i := range permits {
			permits[i] = admitted(t, b)
		}
		var wg sync.WaitGroup
		for i := range permits {
			wg.Go(func() { permits[i].Done(t.Context(), core.Failure) })
		}
		wg.Wait()
		s := b.Stats()
		if n < 1000 {
			require.Equal(t, Closed, s.State)
			require.Equal(t, n, s.FailuresInARow)
		} else {
			require.Equal(t, Open, s.State)
			require.EqualValues(t, 1, s.Trips)
		}
	}
}

// A half-open breaker never has more probes out than it may, whoever asks.
func TestConcurrentProbes(t *testing.T) {
	b := newBreaker(t, Config{FailureThreshold: 1, OpenFor: 1, Probes: 3, SuccessThreshold: maxThreshold, ProbeLease: time.Hour})
	calls(t, b, "F")
	var out, most int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 1000 {
				p, err := b.Acquire(t.Context(), core.Call{})
				if err != nil {
					continue
				}
				mu.Lock()
				out++
				most = max(most, out)
				mu.Unlock()
				mu.Lock()
				out--
				mu.Unlock()
				p.Done(t.Context(), core.Ignored)
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, most, 3)
	require.Positive(t, most)
	require.Equal(t, HalfOpen, b.State())
	require.Zero(t, b.Stats().ProbesOut)
}

// Once ForceOpen has returned, no call is admitted until ClearForce is called, whatever
// else goes on: open times and older forces that end, probes, new settings.
func TestForceOpenUnderLoad(t *testing.T) {
	b := newBreaker(t, Config{FailureThreshold: 2, OpenFor: time.Microsecond, ProbeLease: time.Microsecond, RampFor: 10 * time.Microsecond})
	var forced atomic.Int64 // odd while it is
	var stop atomic.Bool
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for !stop.Load() {
				before := forced.Load()
				p, err := b.Acquire(t.Context(), core.Call{})
				after := forced.Load()
				if err == nil {
					admitted.Add(1)
					if before == after && before%2 == 1 {
						t.Error("admitted while forced open")
					}
				}
				p.Done(t.Context(), core.Outcome(1+rand.IntN(2)))
				if i == 0 {
					if err := b.Reconfigure(Config{FailureThreshold: 1 + rand.IntN(2), OpenFor: time.Microsecond, RampFor: 10 * time.Microsecond}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for n := range 60 {
		b.ForceOpen(time.Microsecond) // ends by itself, perhaps
		if n%3 == 0 {
			b.MetricsOnly()
		}
		b.ForceOpen(time.Hour)
		forced.Add(1)
		time.Sleep(10 * time.Microsecond) // real time: so that calls meet the force
		forced.Add(1)
		b.ClearForce()
		time.Sleep(20 * time.Microsecond) // real time: and what comes after it
	}
	stop.Store(true)
	wg.Wait()
	require.Positive(t, admitted.Load())
}
