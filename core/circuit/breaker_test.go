package circuit

import (
	"context"
	"errors"
	"flag"
	"math"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/surgewall/surgewall/core"
)

func TestMain(m *testing.M) {
	// Long sequences: a ramp, or an open time that has grown, is many steps away.
	if err := flag.Set("rapid.steps", "200"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

func newBreaker(t testing.TB, cfg Config) *Breaker {
	t.Helper()
	b, err := New(cfg)
	require.NoError(t, err)
	return b
}

// finish makes one call that ends in o, and returns the error of Acquire.
func finish(t testing.TB, b *Breaker, o core.Outcome) error {
	t.Helper()
	p, err := b.Acquire(t.Context(), core.Call{})
	p.Done(t.Context(), o)
	return err
}

// admitted is the permit of a call that must be admitted.
func admitted(t testing.TB, b *Breaker) core.Permit {
	t.Helper()
	p, err := b.Acquire(t.Context(), core.Call{})
	require.NoError(t, err)
	return p.Take()
}

func refused(t testing.TB, b *Breaker, sentinel error) *core.Rejection {
	t.Helper()
	_, err := b.Acquire(t.Context(), core.Call{})
	require.ErrorIs(t, err, sentinel)
	r, ok := errors.AsType[*core.Rejection](err)
	require.True(t, ok)
	return r
}

// calls makes one call for each letter: S, F, T or I, as its outcome.
func calls(t testing.TB, b *Breaker, outcomes string) {
	t.Helper()
	for _, o := range outcomes {
		require.NoError(t, finish(t, b, outcomeOf(byte(o))))
	}
}

func outcomeOf(letter byte) core.Outcome {
	return map[byte]core.Outcome{'S': core.Success, 'F': core.Failure, 'T': core.Throttled, 'I': core.Ignored}[letter]
}

// tripped is a breaker that has just opened.
func tripped(t testing.TB, cfg Config) *Breaker {
	t.Helper()
	b := newBreaker(t, cfg)
	for range b.settings.Load().FailureThreshold {
		require.NoError(t, finish(t, b, core.Failure))
	}
	require.Equal(t, Open, b.State())
	return b
}

func TestDefaults(t *testing.T) {
	got := newBreaker(t, Config{}).settings.Load()
	require.Equal(t, "breaker", got.Name)
	require.Equal(t, 5, got.FailureThreshold)
	require.Equal(t, 30*time.Second, got.OpenFor)
	require.Equal(t, 3, got.SuccessThreshold)
	require.Equal(t, 3, got.Probes)
	require.Equal(t, 30*time.Second, got.ProbeLease)

	got = newBreaker(t, Config{SuccessThreshold: 7, OpenFor: time.Second}).settings.Load()
	require.Equal(t, 7, got.Probes)
	require.Equal(t, 10*time.Second, got.ProbeLease)
}

func TestNewReportsEveryProblem(t *testing.T) {
	b, err := New(Config{FailureThreshold: -1, OpenFor: -1, SuccessThreshold: 10_001, Probes: -2, ProbeLease: -1})
	require.Nil(t, b)
	require.ErrorIs(t, err, core.ErrConfig)
	for _, field := range []string{"FailureThreshold: -1", "OpenFor: -1ns", "SuccessThreshold: 10001", "Probes: -2", "ProbeLease: -1ns"} {
		require.ErrorContains(t, err, "circuit.Config."+field)
	}

	_, err = New(Config{SuccessThreshold: -1})
	require.ErrorContains(t, err, "SuccessThreshold")
	require.NotContains(t, err.Error(), "Probes", "the default of Probes is not the user's problem")
}

func TestWhatOpensTheBreaker(t *testing.T) {
	for _, c := range []struct {
		name     string
		outcomes string
		want     State
	}{
		{"four failures", "FFFF", Closed},
		{"five failures", "FFFFF", Open},
		{"a success between", "FFFFSFFFF", Closed},
		{"five after a success", "FFFFSFFFFF", Open},
		{"throttled calls are no failures in a row", "TTTTTTTTTT", Closed},
		{"a throttled call does not interrupt", "FFFFTF", Open},
		{"ignored calls", "IIIIIIIIII", Closed},
		{"an ignored call does not interrupt", "FFFFIF", Open},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBreaker(t, Config{})
			calls(t, b, c.outcomes)
			require.Equal(t, c.want, b.State())
		})
	}
}

func TestOpenRefusesUntilItsTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tripped(t, Config{Name: "payments", OpenFor: 5 * time.Second})
		first := refused(t, b, ErrOpen)
		require.Equal(t, "payments", first.Guard)
		require.Equal(t, core.CircuitOpen, first.Reason)
		require.False(t, b.Ready())

		time.Sleep(3 * time.Second)
		again := refused(t, b, ErrOpen)
		require.Same(t, first, again, "one rejection for the whole open time")
		left, ok := again.RetryAfter()
		require.True(t, ok)
		require.Equal(t, 2*time.Second, left)
		require.Equal(t, time.Now().Add(left), b.Stats().RetryAt)

		time.Sleep(2*time.Second - 1)
		refused(t, b, ErrOpen)
		time.Sleep(time.Nanosecond)
		require.True(t, b.Ready())
		require.Equal(t, HalfOpen, b.State(), "the time is over, though nobody has called")
		require.Equal(t, time.Now(), b.Stats().Since)
		require.Zero(t, b.Stats().RetryAt)

		p := admitted(t, b)
		require.Equal(t, HalfOpen, b.State())
		require.Zero(t, b.Stats().ProbesSucceeded)
		p.Done(t.Context(), core.Success)
	})
}

func TestStateAndReadyChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes int
		b := tripped(t, Config{Probes: 1, OnStateChange: func(State, State) { changes++ }})
		require.Equal(t, 1, changes)
		time.Sleep(time.Minute)
		for range 3 {
			require.Equal(t, HalfOpen, b.State())
			require.True(t, b.Ready())
			require.Equal(t, HalfOpen, b.Stats().State)
			require.Equal(t, "half_open", b.Inspect().State)
		}
		require.Equal(t, 1, changes)
		admitted(t, b)
		require.False(t, b.Ready())
	})
}

func TestClosesAfterEnoughProbesSucceed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tripped(t, Config{SuccessThreshold: 2, Probes: 1})
		time.Sleep(30 * time.Second)
		calls(t, b, "S")
		require.Equal(t, HalfOpen, b.State())
		require.Equal(t, 1, b.Stats().ProbesSucceeded)
		calls(t, b, "S")
		require.Equal(t, Closed, b.State())
		calls(t, b, "FFFF")
		require.Equal(t, Closed, b.State(), "failures from before the trip are forgotten")
		calls(t, b, "F")
		require.Equal(t, Open, b.State())
		require.EqualValues(t, 2, b.Stats().Trips)
		require.Zero(t, b.Stats().Reopens)
	})
}

func TestFailedProbeReopens(t *testing.T) {
	for _, o := range []core.Outcome{core.Failure, core.Throttled} {
		t.Run(o.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := tripped(t, Config{})
				time.Sleep(30 * time.Second)
				calls(t, b, "SS")
				require.NoError(t, finish(t, b, o))
				require.Equal(t, Open, b.State())
				require.EqualValues(t, 1, b.Stats().Reopens)
				left, _ := refused(t, b, ErrOpen).RetryAfter()
				require.Equal(t, 30*time.Second, left)
				time.Sleep(30 * time.Second)
				calls(t, b, "SS")
				require.Equal(t, HalfOpen, b.State(), "successes from before the reopening are forgotten")
			})
		})
	}
}

func TestProbesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tripped(t, Config{Probes: 4, SuccessThreshold: 4})
		time.Sleep(30 * time.Second)
		var out []core.Permit
		for range 4 {
			out = append(out, admitted(t, b))
		}
		r := refused(t, b, ErrProbesTaken)
		require.Equal(t, core.ProbesTaken, r.Reason)
		_, known := r.RetryAfter()
		require.False(t, known)
		require.False(t, b.Ready())
		require.Equal(t, 4, b.Stats().ProbesOut)

		out[0].Done(t.Context(), core.Ignored)
		require.True(t, b.Ready())
		out[0] = admitted(t, b)
		refused(t, b, ErrProbesTaken)

		out[1].Cancel()
		out[1] = admitted(t, b)
		refused(t, b, ErrProbesTaken)
		require.Equal(t, HalfOpen, b.State())

		for i := range out {
			require.Equal(t, HalfOpen, b.State())
			out[i].Done(t.Context(), core.Success)
		}
		require.Equal(t, Closed, b.State())
	})
}

func TestPermitFinishedTwiceCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tripped(t, Config{SuccessThreshold: 3, Probes: 2})
		time.Sleep(30 * time.Second)
		p := admitted(t, b)
		w, id := b.load(), b.probes.id
		other := admitted(t, b)
		p.Done(t.Context(), core.Success)
		p.Done(t.Context(), core.Success) // empty by now
		require.Equal(t, 1, b.Stats().ProbesSucceeded)
		require.EqualValues(t, 1, b.Stats().Successes)

		// What a copy of the permit would do.
		stale := core.Token{A: uint64(w), B: id}
		b.FinishPermit(t.Context(), stale, core.Result{Outcome: core.Success})
		b.CancelPermit(stale)
		b.FinishPermit(t.Context(), stale, core.Result{Outcome: core.Failure})
		require.Equal(t, 1, b.Stats().ProbesSucceeded)
		require.Equal(t, 1, b.Stats().ProbesOut)
		require.Equal(t, HalfOpen, b.State())
		other.Cancel()
	})
}

// failsafe-go closes a half-open breaker on results of calls that it admitted
// before the trip.
func TestRegressionClosedByResultsFromBeforeTheTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{SuccessThreshold: 2, Probes: 2})
		var early []core.Permit
		for range 7 {
			early = append(early, admitted(t, b))
		}
		calls(t, b, "FFFFF")
		until := b.Stats().RetryAt

		early[0].Done(t.Context(), core.Success)
		require.Equal(t, Open, b.State())
		time.Sleep(time.Second)
		early[1].Done(t.Context(), core.Failure)
		require.Equal(t, until, b.Stats().RetryAt, "the open time is no longer for it")
		require.EqualValues(t, 1, b.Stats().Trips)

		time.Sleep(29 * time.Second)
		probe := admitted(t, b)
		early[2].Done(t.Context(), core.Success)
		early[3].Done(t.Context(), core.Success)
		require.Equal(t, HalfOpen, b.State())
		require.Zero(t, b.Stats().ProbesSucceeded)
		require.Equal(t, 1, b.Stats().ProbesOut)
		early[4].Done(t.Context(), core.Failure)
		require.Equal(t, HalfOpen, b.State())

		probe.Done(t.Context(), core.Success)
		calls(t, b, "SFFFF")
		early[5].Done(t.Context(), core.Failure)
		require.Equal(t, Closed, b.State(), "the fifth failure is of another generation")
		early[6].Done(t.Context(), core.Success)
		require.Equal(t, 4, b.Stats().FailuresInARow, "nor does such a success end the run")
		s := b.Stats()
		require.EqualValues(t, 4+5+3, s.Failures, "late results are counted")
		require.EqualValues(t, 4+2, s.Successes)
	})
}

// gobreaker drops results that outlive its interval, so that calls which hang
// for longer never open it.
func TestRegressionSlowOutageNeverTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{})
		for range 40 {
			go func() {
				_ = core.Do(t.Context(), b, func(context.Context) error {
					time.Sleep(time.Hour)
					return errors.New("no answer")
				})
			}()
			time.Sleep(time.Minute)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		require.Equal(t, HalfOpen, b.State())
		require.EqualValues(t, 1, b.Stats().Trips)
	})
}

func TestCancelledCallsSayNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failure := errors.New("gone")
		cancelled := func(b *Breaker) error {
			ctx, cancel := context.WithCancel(t.Context())
			return core.Do(ctx, b, func(ctx context.Context) error {
				cancel()
				return errors.Join(failure, ctx.Err())
			})
		}
		b := newBreaker(t, Config{Probes: 1, SuccessThreshold: 1})
		for range 40 {
			require.ErrorIs(t, cancelled(b), failure)
		}
		require.Equal(t, Closed, b.State())
		require.EqualValues(t, 40, b.Stats().Ignored)

		// Our own timeout, and a cancellation that was not the caller's.
		for range 2 {
			_ = core.Do(t.Context(), b, func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				<-ctx.Done()
				return ctx.Err()
			})
			_ = core.Do(t.Context(), b, func(context.Context) error { return context.Canceled })
		}
		require.Equal(t, 4, b.Stats().FailuresInARow)
		calls(t, b, "F")

		time.Sleep(30 * time.Second)
		require.ErrorIs(t, cancelled(b), failure)
		require.Equal(t, HalfOpen, b.State(), "a cancelled probe does not close the breaker")
		require.Zero(t, b.Stats().ProbesOut)
		calls(t, b, "S")
		require.Equal(t, Closed, b.State())
	})
}

func TestInnerRefusalSpendsNoProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tripped(t, Config{Probes: 1})
		time.Sleep(30 * time.Second)
		no := refusing{&core.Rejection{Guard: "bulkhead", Reason: core.ConcurrencyLimited}}
		before := b.Stats()
		for range 5 {
			_, err := core.Chain(b, no).Acquire(t.Context(), core.Call{})
			require.ErrorIs(t, err, no.err)
			err = core.Do(t.Context(), b, func(ctx context.Context) error {
				return core.Do(ctx, no, func(context.Context) error { return nil })
			})
			require.ErrorIs(t, err, no.err)
		}
		after := b.Stats()
		require.Equal(t, HalfOpen, after.State)
		require.Zero(t, after.ProbesOut)
		require.Equal(t, before.Ignored, after.Ignored)
		require.Equal(t, before.Failures, after.Failures)
	})
}

type refusing struct{ err error }

func (r refusing) Acquire(context.Context, core.Call) (core.Permit, error) {
	return core.Permit{}, r.err
}

func TestPanicIsAFailureAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{FailureThreshold: 2, Probes: 1, SuccessThreshold: 1})
		panics := func() { _ = core.Do(t.Context(), b, func(context.Context) error { panic("boom") }) }
		exits := func() {
			var wg sync.WaitGroup
			wg.Go(func() { _ = core.Do(t.Context(), b, func(context.Context) error { runtime.Goexit(); return nil }) })
			wg.Wait()
		}
		require.PanicsWithValue(t, "boom", panics)
		exits()
		require.Equal(t, Open, b.State())

		time.Sleep(30 * time.Second)
		require.PanicsWithValue(t, "boom", panics)
		require.Equal(t, Open, b.State())
		time.Sleep(30 * time.Second)
		exits()
		require.Equal(t, Open, b.State())
		require.EqualValues(t, 4, b.Stats().Failures)
		time.Sleep(30 * time.Second)
		calls(t, b, "S")
		require.Equal(t, Closed, b.State())
	})
}

func TestOpenForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Hour)
		b := newBreaker(t, Config{FailureThreshold: 1, OpenFor: math.MaxInt64, ProbeLease: math.MaxInt64})
		time.Sleep(time.Hour)
		calls(t, b, "F")
		time.Sleep(1000 * time.Hour)
		require.Equal(t, Open, b.State())
		left, ok := refused(t, b, ErrOpen).RetryAfter()
		require.True(t, ok)
		require.Greater(t, left, 200*365*24*time.Hour)
	})
}

func TestNilBreakerAdmitsEverything(t *testing.T) {
	var b *Breaker
	for range 10 {
		require.NoError(t, finish(t, b, core.Failure))
	}
	require.Error(t, core.Do(t.Context(), b, func(context.Context) error { return errors.New("x") }))
	require.Equal(t, Closed, b.State())
	require.True(t, b.Ready())
	require.Empty(t, b.Name())
	require.Zero(t, b.Stats())
	require.Equal(t, core.Report{Kind: "circuit_breaker", State: "closed"}, b.Inspect())
}

func TestInspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, Config{Name: "payments", FailureThreshold: 2})
		calls(t, b, "SSSTITFF")
		refused(t, b, ErrOpen)
		r := b.Inspect()
		require.Equal(t, "payments", b.Name())
		require.Equal(t, "circuit_breaker", r.Kind)
		require.Equal(t, "payments", r.Name)
		require.Equal(t, "open", r.State)
		require.Equal(t, time.Now(), r.Since)
		const calls, state = "surgewall.circuit_breaker.calls", "surgewall.circuit_breaker.state"
		require.Equal(t, []core.Value{
			core.Count(calls, "{call}", 3).With("outcome", "success"),
			core.Count(calls, "{call}", 2).With("outcome", "failure"),
			core.Count(calls, "{call}", 2).With("outcome", "throttled"),
			core.Count(calls, "{call}", 1).With("outcome", "ignored"),
			core.Count(calls, "{call}", 1).With("outcome", "rejected"),
			core.Amount(state, "{circuit}", 0).With("state", "closed"),
			core.Amount(state, "{circuit}", 1).With("state", "open"),
			core.Amount(state, "{circuit}", 0).With("state", "half_open"),
		}, r.Values)
		require.Contains(t, r.Settings, core.Setting{Name: "FailureThreshold", Value: 2})
		require.Contains(t, r.Settings, core.Setting{Name: "OpenFor", Value: 30 * time.Second})
	})
}

// A breaker leaves nothing behind: the package's goleak check would tell.
func TestBreakersNeedNoClose(t *testing.T) {
	before := goleak.IgnoreCurrent()
	for range 1000 {
		tripped(t, Config{FailureThreshold: 1, FailurePercent: 50}).ForceOpen(time.Hour)
		fail(t, newGroup(t, GroupConfig[int]{}), 1)
		_, _ = newThrottle(t, ThrottleConfig{}).Acquire(t.Context(), core.Call{})
	}
	goleak.VerifyNone(t, before)
}
