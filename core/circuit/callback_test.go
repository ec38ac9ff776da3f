package circuit

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// recorder keeps the events it hears, or hears none.
type recorder struct {
	deaf bool
	does func(core.Event) // run before the event is kept

	mu     sync.Mutex
	events []core.Event // guarded by mu
}

func (r *recorder) Enabled(core.Kind) bool { return !r.deaf }

func (r *recorder) Observe(_ context.Context, e core.Event) {
	if r.does != nil {
		r.does(e)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard recorder
		b := newBreaker(t, Config{Name: "payments", FailureThreshold: 2, SuccessThreshold: 1, Observer: &heard})
		time.Sleep(time.Minute)
		calls(t, b, "SF")
		require.Empty(t, heard.events, "nothing on a path without a change")
		p := admitted(t, b)
		p.Finish(t.Context(), core.Result{Outcome: core.Failure, Err: context.DeadlineExceeded})
		opened := time.Now()
		_, err := b.Acquire(t.Context(), core.Call{Cost: 7})
		require.ErrorIs(t, err, ErrOpen)
		time.Sleep(31 * time.Second)
		p = admitted(t, b)
		time.Sleep(time.Second)
		p.Done(t.Context(), core.Success)

		require.Equal(t, []core.Event{
			{
				Kind: core.KindStateChanged, Component: "payments", From: "closed", To: "open", Why: "failures_in_a_row", Seq: 1,
				Reason: core.CircuitOpen, N: 2, ErrorType: "timeout", At: opened, Duration: time.Minute,
			},
			{Kind: core.KindRejected, Component: "payments", Reason: core.CircuitOpen, N: 7},
			{
				Kind: core.KindStateChanged, Component: "payments", From: "open", To: "half_open", Why: "time_over", Seq: 2,
				At: opened.Add(31 * time.Second), Duration: 31 * time.Second,
			},
			{
				Kind: core.KindStateChanged, Component: "payments", From: "half_open", To: "closed", Why: "probes_succeeded", Seq: 3,
				At: opened.Add(32 * time.Second), Duration: time.Second,
			},
		}, heard.events)
	})
}

// A change that is booked with a clock read before the change ahead of it has
// lasted no time, and not less.
func TestChangeWithAStaleClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard recorder
		b := newBreaker(t, Config{FailureThreshold: 1, Observer: &heard})
		time.Sleep(time.Minute)
		calls(t, b, "F")
		b.mu.Lock()
		b.changeLocked(t.Context(), int64(time.Second), change{to: Closed})
		b.mu.Unlock()
		b.notices.Drain(b.tell)
		require.Len(t, heard.events, 2)
		require.Zero(t, heard.events[1].Duration)
		require.Equal(t, time.Now(), heard.events[1].At)
	})
}

func TestRejectedProbeIsAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard recorder
		b := tripped(t, Config{Probes: 1, Observer: &heard})
		time.Sleep(30 * time.Second)
		admitted(t, b)
		refused(t, b, ErrProbesTaken)
		last := heard.events[len(heard.events)-1]
		require.Equal(t, core.KindRejected, last.Kind)
		require.Equal(t, core.ProbesTaken, last.Reason)
	})
}

func TestCallbacksHearEachResult(t *testing.T) {
	var log []string
	b := newBreaker(t, Config{
		FailureThreshold: 2,
		OnSuccess:        func(r core.Result) { log = append(log, r.Outcome.String()) },
		OnFailure:        func(r core.Result) { log = append(log, fmt.Sprint(r.Outcome, " ", r.Err)) },
		OnStateChange:    func(from, to State) { log = append(log, fmt.Sprint(from, " to ", to)) },
	})
	late := admitted(t, b)
	calls(t, b, "SIFT")
	_ = core.Do(t.Context(), b, func(context.Context) error { return errors.New("down") })
	refused(t, b, ErrOpen)
	late.Done(t.Context(), core.Failure)
	require.Equal(t, []string{
		"success", "failure <nil>", "throttled <nil>", "failure down", "closed to open", "failure <nil>",
	}, log)
}

// failsafe-go dies from a listener that panics: unlock of unlocked mutex.
func TestRegressionListenerPanics(t *testing.T) {
	misbehave := map[string]func(){
		"panic":  func() { panic("listener") },
		"Goexit": runtime.Goexit,
	}
	for name, bad := range misbehave {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				heard := recorder{does: func(core.Event) { bad() }}
				b := newBreaker(t, Config{
					FailureThreshold: 1, SuccessThreshold: 1, Probes: 1,
					OnSuccess:     func(core.Result) { bad() },
					OnFailure:     func(core.Result) { bad() },
					OnStateChange: func(State, State) { bad() },
					Observer:      &heard,
				})
				// Each step on a goroutine of its own, which Goexit may end.
				step := func(f func()) {
					t.Helper()
					var wg sync.WaitGroup
					wg.Go(f)
					wg.Wait()
				}
				for range 3 {
					step(func() { _ = finish(t, b, core.Failure) })
					require.Equal(t, Open, b.State())
					step(func() { _, _ = b.Acquire(t.Context(), core.Call{}) })
					time.Sleep(30 * time.Second)
					step(func() { _ = finish(t, b, core.Ignored) }) // Goexit may end it before it has a place
					require.Equal(t, HalfOpen, b.load().state())
					require.Zero(t, b.Stats().ProbesOut)
					step(func() { _ = finish(t, b, core.Success) })
					require.Equal(t, Closed, b.State())
				}
				s := b.Stats()
				require.EqualValues(t, 3, s.Successes)
				require.EqualValues(t, 3, s.Failures)
				require.EqualValues(t, 3, s.Trips)
				if name == "panic" {
					// per round: 2 results, 3 changes told twice, 1 refusal
					require.EqualValues(t, 3*(2+3*2+1), s.CallbackPanics)
				}
			})
		})
	}
}

func TestOneListenerKeepsNothingFromTheNext(t *testing.T) {
	for name, bad := range map[string]func(){"panic": func() { panic("listener") }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			var log []string
			listener := func(who string) {
				log = append(log, who)
				bad()
			}
			b := newBreaker(t, Config{
				FailureThreshold: 1,
				OnFailure:        func(core.Result) { listener("OnFailure") },
				OnStateChange:    func(State, State) { listener("OnStateChange") },
				Observer:         &recorder{does: func(core.Event) { listener("Observer") }},
			})
			var wg sync.WaitGroup
			wg.Go(func() { _ = finish(t, b, core.Failure) })
			wg.Wait()
			require.Equal(t, []string{"OnFailure", "OnStateChange", "Observer"}, log)
		})
	}
}

// gobreaker deadlocks when its listener asks it anything.
func TestRegressionListenerCallsTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b *Breaker
		var changes []string
		use := func() {
			b.State()
			b.Stats()
			b.Inspect()
			p, _ := b.Acquire(t.Context(), core.Call{})
			p.Cancel()
		}
		b = newBreaker(t, Config{
			FailureThreshold: 1, SuccessThreshold: 1, OpenFor: time.Second,
			OnSuccess: func(core.Result) { use() },
			OnFailure: func(core.Result) { use() },
			OnStateChange: func(from, to State) {
				changes = append(changes, fmt.Sprint(from, " to ", to))
				use()
				if len(changes) == 2 { // half-open: reopen from within the callback
					_ = finish(t, b, core.Failure)
				}
			},
			Observer: &recorder{does: func(core.Event) { b.State() }},
		})
		calls(t, b, "F")
		time.Sleep(time.Second)
		refused(t, b, ErrOpen)
		time.Sleep(time.Second)
		calls(t, b, "S")
		require.Equal(t, []string{
			"closed to open", "open to half_open", "half_open to open", "open to half_open", "half_open to closed",
		}, changes)
	})
}

func TestBlockedListenerHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var changes []State
		b := newBreaker(t, Config{
			FailureThreshold: 1, SuccessThreshold: 1, Probes: 1, OpenFor: time.Second,
			OnStateChange: func(_, to State) {
				if len(changes) < 2 {
					<-release
				}
				changes = append(changes, to)
			},
			OnFailure: func(core.Result) { <-release },
		})
		go func() { _ = finish(t, b, core.Failure) }() // blocks in OnFailure
		synctest.Wait()
		refused(t, b, ErrOpen)
		time.Sleep(time.Second)
		go func() { _ = finish(t, b, core.Success) }() // blocks in OnStateChange, before it has a place
		synctest.Wait()
		require.Equal(t, HalfOpen, b.State())
		calls(t, b, "S")
		require.Equal(t, Closed, b.State())
		calls(t, b, "SSS")
		require.Empty(t, changes)

		close(release)
		synctest.Wait()
		require.Equal(t, []State{Open, HalfOpen, Closed}, changes)
	})
}

func TestErrorThatPanicsWhenAsked(t *testing.T) {
	var heard recorder
	b := newBreaker(t, Config{FailureThreshold: 1, Observer: &heard})
	p := admitted(t, b)
	p.Finish(t.Context(), core.Result{Outcome: core.Failure, Err: hostileError{}})
	require.Equal(t, Open, b.State())
	require.Equal(t, "other", heard.events[0].ErrorType)
}

type hostileError struct{}

func (hostileError) Error() string     { panic("Error") }
func (hostileError) Is(error) bool     { panic("Is") }
func (hostileError) Unwrap() error     { panic("Unwrap") }
func (hostileError) As(any) bool       { panic("As") }
func (hostileError) Timeout() bool     { panic("Timeout") }
func (hostileError) ErrorType() string { panic("ErrorType") }

func TestMergedNoticesStayInOrder(t *testing.T) {
	release := make(chan struct{})
	blocked := make(chan struct{})
	at, first := Closed, true
	var b *Breaker
	ctx := t.Context()
	b = newBreaker(t, Config{
		FailureThreshold: 1, SuccessThreshold: 1, OpenFor: 1,
		OnStateChange: func(from, to State) {
			if first {
				first = false
				close(blocked)
				<-release
			}
			if from != at || from == to {
				t.Errorf("%v to %v, after %v", from, to, at)
			}
			at = to
		},
	})
	told := make(chan struct{})
	go func() {
		defer close(told)
		_ = finish(t, b, core.Failure)
	}()
	<-blocked
	for range 1000 { // each makes two changes: to half-open, then to closed or open
		for _, o := range []core.Outcome{core.Success, core.Failure} {
			for {
				p, err := b.Acquire(ctx, core.Call{})
				p.Done(ctx, o)
				if err == nil {
					break
				}
			}
		}
	}
	close(release)
	<-told
	require.Equal(t, b.load().state(), at)
}
