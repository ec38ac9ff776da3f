package limit

import (
	"context"
	"errors"
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

var (
	_ core.Guard     = (*Concurrency)(nil)
	_ core.Ready     = (*Concurrency)(nil)
	_ core.Refuser   = (*Concurrency)(nil)
	_ core.Component = (*Concurrency)(nil)
)

func newConcurrency(t testing.TB, cfg ConcurrencyConfig) *Concurrency {
	t.Helper()
	c, err := NewConcurrency(cfg)
	require.NoError(t, err)
	return c
}

// rejected is the *core.Rejection that err must be, for that reason.
func rejected(t testing.TB, err error, why core.Reason) *core.Rejection {
	t.Helper()
	r, ok := errors.AsType[*core.Rejection](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, why, r.Reason, "%v", err)
	_, known := r.RetryAfter()
	require.False(t, known, "a bulkhead does not know when")
	return r
}

func inFlight(t testing.TB, c *Concurrency, want int) {
	t.Helper()
	require.Equal(t, want, c.Stats().InFlight)
}

func TestConcurrencyBadConfig(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  ConcurrencyConfig
		want []string
	}{
		"zero":     {ConcurrencyConfig{}, []string{"limit.ConcurrencyConfig.Limit: 0: must be 1 to 1073741823"}},
		"too many": {ConcurrencyConfig{Limit: 1 << 30}, []string{"Limit: 1073741824: must be 1 to 1073741823"}},
		"all": {ConcurrencyConfig{Limit: -1, MaxWait: -1, MaxWaiters: -1}, []string{
			"limit.ConcurrencyConfig.Limit: -1: must be 1 to 1073741823",
			"limit.ConcurrencyConfig.MaxWait: -1ns: must not be negative",
			"limit.ConcurrencyConfig.MaxWaiters: -1: must be 0 to 1073741823",
		}},
		"queue": {ConcurrencyConfig{Limit: 1, MaxWaiters: 1 << 30}, []string{"MaxWaiters: 1073741824: must be 0 to 1073741823"}},
	} {
		c, err := NewConcurrency(tc.cfg)
		require.Nil(t, c, name)
		require.ErrorIs(t, err, core.ErrConfig, name)
		good := newConcurrency(t, ConcurrencyConfig{Limit: 3})
		again := good.Reconfigure(tc.cfg)
		for _, want := range tc.want {
			require.ErrorContains(t, err, want, name)
			require.ErrorContains(t, again, want, name)
		}
		require.Equal(t, 3, good.Peek(0).Limit, "nothing has changed")
		require.Error(t, (*Concurrency)(nil).Reconfigure(tc.cfg), name)
	}
}

func TestConcurrencyDefaults(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Limit: 7})
	require.Equal(t, "bulkhead", c.Name())
	require.Equal(t, []core.Setting{
		{Name: "Limit", Value: 7}, {Name: "MaxWait", Value: c.in.Load().maxWait}, {Name: "MaxWaiters", Value: 700},
	}, c.Inspect().Settings)
	c = newConcurrency(t, ConcurrencyConfig{Limit: maxSlots})
	require.Equal(t, maxSlots/100*100, c.in.Load().maxWaiters)
}

func TestNilConcurrencyIsNoLimit(t *testing.T) {
	var c *Concurrency
	require.True(t, c.TryAcquire(1e9))
	require.False(t, c.TryAcquire(-1))
	require.True(t, c.Release(5))
	require.NoError(t, c.Wait(t.Context(), 5))
	rejected(t, c.Wait(t.Context(), -1), core.InvalidCost)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, c.Wait(over, 1), context.Canceled)
	rejected(t, c.Wait(over, 1), core.WaitTimeout)
	p, err := c.Acquire(t.Context(), core.Call{})
	require.NoError(t, err)
	p.Done(t.Context(), core.Success)
	_, err = c.Acquire(t.Context(), core.Call{Cost: -1})
	rejected(t, err, core.InvalidCost)
	require.True(t, c.Peek(3).OK)
	require.True(t, c.Ready())
	require.Nil(t, c.Refusal())
	require.NoError(t, c.Reconfigure(ConcurrencyConfig{Limit: 1}))
	require.Zero(t, c.Stats())
	require.Equal(t, core.Report{Kind: "bulkhead"}, c.Inspect())
	require.Empty(t, c.Name())
}

func TestConcurrencyAdmitsLimit(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Name: "db", Limit: 3})
	ctx := t.Context()
	var held []core.Permit
	for range 3 {
		require.True(t, c.Ready())
		require.Nil(t, c.Refusal())
		p, err := c.Acquire(ctx, core.Call{})
		require.NoError(t, err)
		require.True(t, p.WantsEnd())
		require.False(t, p.WantsResult())
		held = append(held, p.Take())
	}
	require.False(t, c.Ready())
	_, err := c.Acquire(ctx, core.Call{})
	require.ErrorIs(t, err, ErrFull)
	r := rejected(t, err, core.ConcurrencyLimited)
	require.Equal(t, "db", r.Guard)
	require.EqualError(t, err, `limit: all slots are taken: refused by "db" (limit 3)`)
	require.Same(t, r, c.Refusal())
	require.False(t, c.TryAcquire(1))

	held[1].Done(ctx, core.Failure)
	held[1].Done(ctx, core.Failure) // it is empty by now
	require.True(t, c.TryAcquire(1))
	require.False(t, c.TryAcquire(1))
	held[0].Cancel()
	held[2].Finish(ctx, core.Result{Cost: 100}) // has no say
	inFlight(t, c, 1)
	require.True(t, c.Release(1))
	s := c.Stats()
	require.EqualValues(t, 4, s.Admitted)
	require.EqualValues(t, 3, s.Refused)
	require.EqualValues(t, 1, s.Cancelled)
	require.Zero(t, s.InFlight)
	require.Zero(t, s.Unmatched)
}

func TestConcurrencyCosts(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Limit: 5})
	ctx := t.Context()
	p, err := c.Acquire(ctx, core.Call{Cost: 4})
	require.NoError(t, err)
	inFlight(t, c, 4)
	_, err = c.Acquire(ctx, core.Call{Cost: 2})
	rejected(t, err, core.ConcurrencyLimited)
	require.True(t, c.TryAcquire(1), "a call that was refused holds up nobody")
	require.True(t, c.TryAcquire(0))
	require.NoError(t, c.Wait(ctx, 0))
	p.Cancel()
	inFlight(t, c, 1)
	for _, n := range []int{6, 1 << 30, math.MaxInt32, math.MaxInt} {
		_, err = c.Acquire(ctx, core.Call{Cost: n})
		require.ErrorIs(t, err, ErrNeverFits)
		rejected(t, err, core.NeverFits)
		require.ErrorIs(t, c.Wait(ctx, n), ErrNeverFits)
		require.False(t, c.TryAcquire(n))
	}
	for _, n := range []int{-1, math.MinInt32, math.MinInt} {
		_, err = c.Acquire(ctx, core.Call{Cost: n})
		require.ErrorIs(t, err, ErrInvalidCost)
		rejected(t, err, core.InvalidCost)
		require.ErrorIs(t, c.Wait(ctx, n), ErrInvalidCost)
		require.False(t, c.TryAcquire(n))
		require.False(t, c.Release(n))
	}
	inFlight(t, c, 1)
	require.EqualValues(t, 2, c.Stats().Admitted, "of 0 slots nothing is counted")
}

func TestConcurrencyPeek(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Name: "db", Limit: 5})
	d := func(ok bool, remaining int) Decision {
		return Decision{OK: ok, Limit: 5, Remaining: remaining, Policy: "db"}
	}
	never := d(false, 3)
	never.RetryAfter = Never
	require.Equal(t, d(true, 5), c.Peek(0))
	require.Equal(t, d(true, 0), c.Peek(5))
	require.True(t, c.TryAcquire(2))
	require.Equal(t, d(true, 1), c.Peek(2))
	require.Equal(t, d(false, 3), c.Peek(4))
	require.Equal(t, never, c.Peek(6))
	require.Equal(t, never, c.Peek(-1))
	require.True(t, c.TryAcquire(3))
	require.Equal(t, d(true, 0), c.Peek(0))
	require.Equal(t, d(false, 0), c.Peek(1))
	require.Zero(t, c.Stats().Refused, "nobody was refused")
}

// What was not taken cannot be given back.
func TestReleaseOfMoreThanWasTaken(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Limit: 4})
	require.False(t, c.Release(1))
	inFlight(t, c, 0)
	require.True(t, c.TryAcquire(3))
	require.False(t, c.Release(5))
	inFlight(t, c, 0)
	require.EqualValues(t, 3, c.Stats().Unmatched)
	require.True(t, c.TryAcquire(4))
	require.False(t, c.TryAcquire(1), "the limit has not grown")
	require.False(t, c.Release(math.MaxInt))
	inFlight(t, c, 0)
	require.Equal(t, 4, c.Peek(0).Remaining)
}

// A permit that is copied and ended twice gives back twice, until the bulkhead
// was empty once.
func TestCopiedPermitDoesNotCorrupt(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Limit: 2})
	ctx := t.Context()
	a, err := c.Acquire(ctx, core.Call{})
	require.NoError(t, err)
	twin := core.NewPermit(c, core.Token{A: 1}, core.WantsEnd) // what go vet does not let us copy
	b, err := c.Acquire(ctx, core.Call{})
	require.NoError(t, err)
	a.Done(ctx, core.Success)
	twin.Done(ctx, core.Success)
	inFlight(t, c, 0)
	require.Zero(t, c.Stats().Unmatched, "it could have been b")
	b.Cancel()
	s := c.Stats()
	require.Zero(t, s.InFlight)
	require.EqualValues(t, 1, s.Unmatched)
	require.True(t, c.TryAcquire(2))
	require.False(t, c.TryAcquire(1))
}

// Permits come back however the call ends.
func TestConcurrencyReleasesOnEveryPath(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Limit: 1})
	boom := errors.New("boom")
	inner := &core.Rejection{Guard: "inner", Reason: core.CircuitOpen}
	do := func(f func(context.Context) error) error { return core.Do(t.Context(), c, f) }

	require.NoError(t, do(func(context.Context) error {
		inFlight(t, c, 1)
		rejected(t, do(func(context.Context) error { return nil }), core.ConcurrencyLimited)
		return nil
	}))
	inFlight(t, c, 0)
	require.Same(t, boom, do(func(context.Context) error { return boom }))
	inFlight(t, c, 0)
	require.Same(t, inner, do(func(context.Context) error { return inner }))
	inFlight(t, c, 0)
	require.EqualValues(t, 1, c.Stats().Cancelled)
	require.PanicsWithValue(t, "boom", func() { _ = do(func(context.Context) error { panic("boom") }) })
	inFlight(t, c, 0)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = do(func(context.Context) error { runtime.Goexit(); return nil })
	}()
	<-ended
	inFlight(t, c, 0)

	last := core.Chain(c, refuser{inner})
	for range 3 {
		_, err := last.Acquire(t.Context(), core.Call{})
		require.Same(t, inner, err)
		inFlight(t, c, 0)
	}
	s := c.Stats()
	require.EqualValues(t, 4, s.Cancelled)
	require.EqualValues(t, 8, s.Admitted)
	require.Zero(t, s.Unmatched)
}

type refuser struct{ r *core.Rejection }

func (r refuser) Acquire(context.Context, core.Call) (core.Permit, error) { return core.Permit{}, r.r }

func TestConcurrencyObserver(t *testing.T) {
	h := &hearing{}
	c := newConcurrency(t, ConcurrencyConfig{Name: "db", Limit: 2, Observer: h})
	over, cancel := context.WithCancel(t.Context())
	cancel()
	require.True(t, c.TryAcquire(2))
	require.Empty(t, h.events, "nothing is told of an admission")
	c.TryAcquire(1)
	_, _ = c.Acquire(t.Context(), core.Call{Cost: 2})
	_, _ = c.Acquire(t.Context(), core.Call{Cost: 3})
	_ = c.Wait(t.Context(), -1)
	_ = c.Wait(over, 1)
	require.NoError(t, c.Reconfigure(ConcurrencyConfig{Limit: 3}))
	c.Release(3)
	event := func(why core.Reason, n int64) core.Event {
		return core.Event{Kind: core.KindRejected, Component: "db", Reason: why, N: n}
	}
	require.Equal(t, []core.Event{
		event(core.ConcurrencyLimited, 1), event(core.ConcurrencyLimited, 2), event(core.NeverFits, 3),
		event(core.InvalidCost, -1), event(core.WaitTimeout, 1),
		{Kind: core.KindReconfigured, Component: "db"},
	}, h.events)
}

// Whatever the observer does, the bulkhead stays whole, and no lock is held
// meanwhile.
func TestConcurrencyObserverMisbehaves(t *testing.T) {
	var c *Concurrency
	for name, then := range map[string]func(){
		"calls back": func() { c.Release(0); c.Stats(); c.Ready(); c.Inspect() },
		"panics":     func() { panic("observer") },
		"exits":      runtime.Goexit,
	} {
		c = newConcurrency(t, ConcurrencyConfig{Limit: 1, Observer: &hearing{then: then}})
		require.True(t, c.TryAcquire(1))
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			c.TryAcquire(1)
		}()
		<-ended
		ended = make(chan struct{})
		go func() {
			defer close(ended)
			_ = c.Reconfigure(ConcurrencyConfig{Limit: 2})
		}()
		<-ended
		s := c.Stats()
		require.EqualValues(t, 1, s.Refused, name)
		require.Equal(t, 1, s.InFlight, name)
		require.Equal(t, 2, s.Limit, name)
	}
}

// A refusal writes nothing that other calls wait for, and is the same for all.
func TestConcurrencyRefusalWritesNothing(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Limit: 2})
	require.True(t, c.TryAcquire(2))
	before := c.word.word.Load()
	_, first := c.Acquire(t.Context(), core.Call{})
	for range 100 {
		_, err := c.Acquire(t.Context(), core.Call{})
		require.Same(t, first, err)
		require.False(t, c.TryAcquire(2))
	}
	require.Equal(t, before, c.word.word.Load())
	require.EqualValues(t, 201, c.Stats().Refused)
}

// The count of calls outgrows its field in the word.
func TestConcurrencyCountsBeyondTheWord(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Limit: 2})
	const half = 1 << halfBits
	for _, start := range []uint64{half - 2, 2*half - 2, 3*half - 2, 1000*half - 2} {
		c.word.word.Store(start<<callsShift | noSlots + 2)
		c.word.halves.Store(start / half)
		for i := range uint64(5) {
			require.Equal(t, start+i, c.Stats().Admitted)
			require.True(t, c.TryAcquire(2))
			if start+i+1 == (start/half+1)*half { // a half not counted yet
				c.word.halves.Add(^uint64(0))
				require.Equal(t, start+i+1, c.Stats().Admitted)
				c.word.halves.Add(1)
			}
			require.True(t, c.Release(2))
			require.Equal(t, Decision{OK: true, Limit: 2, Policy: "bulkhead", Remaining: 2}, c.Peek(0))
		}
		// The same for those who had to wait.
		c.word.word.Store(start<<callsShift | noSlots)
		c.word.halves.Store(start / half)
		for i := range uint64(5) {
			w := c.nodes.get(1, nil)
			_, queued := c.queueUp(w)
			require.True(t, queued)
			require.True(t, c.Release(1))
			require.Equal(t, granted, w.decided())
			require.Equal(t, start+i+1, c.Stats().Admitted)
		}
		require.Equal(t, start/half+1, c.word.halves.Load())
		require.True(t, c.Release(2))
	}
}

func TestConcurrencyInspect(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Name: "db", Limit: 5})
	c.TryAcquire(2)
	c.TryAcquire(4)
	c.Release(1)
	r := c.Inspect()
	require.Equal(t, "bulkhead", r.Kind)
	require.Equal(t, "db", r.Name)
	got := map[string]float64{}
	for _, v := range r.Values {
		got[v.Name+" "+v.Attr.Value] = v.Number
	}
	require.Equal(t, map[string]float64{
		"surgewall.bulkhead.slots used":        1,
		"surgewall.bulkhead.slots idle":        4,
		"surgewall.bulkhead.slots.max ":        5,
		"surgewall.bulkhead.waiters ":          0,
		"surgewall.bulkhead.full_time ":        0,
		"surgewall.bulkhead.requests acquired": 1,
		"surgewall.bulkhead.requests rejected": 1,
		"surgewall.bulkhead.requests.waited ":  0,
		"surgewall.bulkhead.wait_time ":        0,
		"surgewall.bulkhead.slots.unmatched ":  0,
	}, got)
	require.NoError(t, c.Reconfigure(ConcurrencyConfig{Limit: 9, MaxWaiters: 3}))
	require.Equal(t, []core.Setting{
		{Name: "Limit", Value: 9}, {Name: "MaxWait", Value: c.in.Load().maxWait}, {Name: "MaxWaiters", Value: 3},
	}, c.Inspect().Settings)
}

func TestConcurrencyDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ctx := t.Context()
	free := newConcurrency(t, ConcurrencyConfig{Limit: 10})
	full := newConcurrency(t, ConcurrencyConfig{Limit: 1, Observer: core.Observers(&deaf{})})
	require.True(t, full.TryAcquire(1))
	over, cancel := context.WithCancel(ctx)
	cancel()
	call := func(context.Context) error { return nil }
	turns := newConcurrency(t, ConcurrencyConfig{Limit: 1, MaxWait: time.Hour})
	release := func() { // as soon as somebody waits for it
		for turns.waiting.Load() == 0 {
			runtime.Gosched()
		}
		turns.Release(1)
	}
	for name, f := range map[string]func(){
		"permit":  func() { p, _ := free.Acquire(ctx, core.Call{Cost: 3}); p.Done(ctx, core.Success) },
		"cancel":  func() { p, _ := free.Acquire(ctx, core.Call{}); p.Cancel() },
		"do":      func() { _ = core.Do(ctx, free, call) },
		"try":     func() { free.TryAcquire(2); free.Release(2) },
		"wait":    func() { _ = free.Wait(ctx, 2); free.Release(2) },
		"peek":    func() { free.Peek(1) },
		"queued":  func() { turns.TryAcquire(1); go release(); _ = turns.Wait(ctx, 1); turns.Release(1) },
		"MaxWait": func() { turns.TryAcquire(1); go release(); p, _ := turns.Acquire(ctx, core.Call{}); p.Cancel() },
		"full":    func() { _, _ = full.Acquire(ctx, core.Call{}) },
		"no slot": func() { full.TryAcquire(1) },
		"misfit":  func() { _, _ = full.Acquire(ctx, core.Call{Cost: 2}) },
		"invalid": func() { _, _ = full.Acquire(ctx, core.Call{Cost: -2}) },
		"over":    func() { _ = full.Wait(over, 1) },
		"foretold": func() {
			if full.Refusal() == nil {
				t.Error("not full")
			}
		},
	} {
		require.Zero(t, testing.AllocsPerRun(1000, f), name)
	}
}

// deaf is an observer that wants nothing.
type deaf struct{}

func (*deaf) Enabled(core.Kind) bool              { return false }
func (*deaf) Observe(context.Context, core.Event) {}
