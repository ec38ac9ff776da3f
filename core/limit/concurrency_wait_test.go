package limit

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

const ms = time.Millisecond

// queue is calls that wait, each with its place in the order in which they ended.
type queue struct {
	c     *Concurrency
	start time.Time
	mu    sync.Mutex
	ends  []ending
}

type ending struct {
	name  string
	after time.Duration
	why   error
}

func newQueue(c *Concurrency) *queue { return &queue{c: c, start: time.Now()} }

// wait lets a call wait for n slots, which it keeps, and returns when it is in
// the queue.
func (q *queue) wait(ctx context.Context, name string, n int) {
	go func() {
		_, err := q.c.Acquire(ctx, core.Call{Cost: n})
		q.mu.Lock()
		defer q.mu.Unlock()
		if r, ok := errors.AsType[*core.Rejection](err); ok && r.Cause != nil {
			err = r.Cause
		}
		q.ends = append(q.ends, ending{name, time.Since(q.start), err})
	}()
	synctest.Wait()
}

// ended are the calls that have ended since it was last asked.
func (q *queue) ended() (ends []ending) {
	synctest.Wait()
	q.mu.Lock()
	defer q.mu.Unlock()
	ends, q.ends = q.ends, nil
	return ends
}

// First come, first served, and a big call at the head is not overtaken.
func TestConcurrencyServesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, ConcurrencyConfig{Limit: 4, MaxWait: time.Hour})
		require.True(t, c.TryAcquire(4))
		q := newQueue(c)
		q.wait(t.Context(), "a", 1)
		q.wait(t.Context(), "b", 3)
		q.wait(t.Context(), "c", 1)
		q.wait(t.Context(), "d", 1)
		require.Empty(t, q.ended())
		require.Equal(t, 4, c.Stats().Waiting)
		c.Release(1)
		require.Equal(t, []ending{{"a", 0, nil}}, q.ended())
		c.Release(2)
		require.Empty(t, q.ended(), "b wants three")
		require.False(t, c.TryAcquire(1), "nobody overtakes b")
		require.False(t, c.Ready())
		require.NotNil(t, c.Refusal())
		require.Equal(t, Decision{Limit: 4, Policy: "bulkhead"}, c.Peek(1))
		require.True(t, c.Peek(0).OK)
		c.Release(1)
		require.Equal(t, []ending{{"b", 0, nil}}, q.ended())
		c.Release(2)
		require.Len(t, q.ended(), 2)
		s := c.Stats()
		require.Equal(t, 4, s.InFlight)
		require.EqualValues(t, 5, s.Admitted)
		require.EqualValues(t, 4, s.Waited)
		require.Zero(t, s.Waiting)
		require.True(t, c.Release(4))
		require.True(t, c.TryAcquire(4), "the fast path is open again")
	})
}

// Who gives up leaves its place to the next, whose turn it may be at once.
func TestConcurrencyGivingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, ConcurrencyConfig{Limit: 3, MaxWait: 50 * ms})
		require.True(t, c.TryAcquire(2))
		q := newQueue(c)
		ctx, cancel := context.WithTimeout(t.Context(), 20*ms)
		defer cancel()
		q.wait(ctx, "big", 2)
		q.wait(t.Context(), "small", 1)
		q.wait(t.Context(), "late", 1)
		require.Empty(t, q.ended())
		time.Sleep(20*ms - 1)
		require.Empty(t, q.ended())
		time.Sleep(time.Nanosecond)
		ends := q.ended()
		require.ElementsMatch(t, []ending{{"big", 20 * ms, context.DeadlineExceeded}, {"small", 20 * ms, nil}}, ends)
		time.Sleep(30 * ms)
		ends = q.ended()
		require.Len(t, ends, 1)
		require.Equal(t, 50*ms, ends[0].after)
		require.ErrorIs(t, ends[0].why, ErrFull)
		require.Nil(t, rejected(t, ends[0].why, core.WaitTimeout).Cause)
		s := c.Stats()
		require.Equal(t, 3, s.InFlight)
		require.EqualValues(t, 1, s.Abandoned)
		require.EqualValues(t, 1, s.TimedOut)
		require.EqualValues(t, 2, s.Refused)
		require.Equal(t, 20*ms, s.WaitTime, "of those who were admitted")
		require.True(t, c.Release(3))
		require.True(t, c.TryAcquire(3))
	})
}

func TestConcurrencyContexts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, ConcurrencyConfig{Limit: 1, MaxWait: time.Second})
		over, cancel := context.WithCancel(t.Context())
		cancel()
		for range 2 { // whether there is a slot or not
			for _, cost := range []int{0, 1} {
				_, err := c.Acquire(over, core.Call{Cost: cost})
				require.ErrorIs(t, err, context.Canceled)
				require.ErrorIs(t, err, ErrFull)
				rejected(t, err, core.WaitTimeout)
				require.Same(t, err, c.Wait(over, cost))
			}
			c.TryAcquire(1)
		}
		start := time.Now()

		// A deadline that is past, though the context has not noticed.
		_, err := c.Acquire(tardy{t.Context(), start}, core.Call{})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		rejected(t, err, core.WaitTimeout)
		require.Zero(t, time.Since(start))
		require.Zero(t, c.Stats().Waiting)

		// One that the context never notices.
		_, err = c.Acquire(tardy{context.Background(), start.Add(30 * ms)}, core.Call{})
		rejected(t, err, core.WaitTimeout)
		require.Equal(t, 30*ms, time.Since(start))

		// The caller goes during the wait.
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*ms, cancel)
		_, err = c.Acquire(ctx, core.Call{})
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, 40*ms, time.Since(start))
		require.Same(t, err, c.Wait(ctx, 1), "all whose caller has gone are told the same")

		// A context with an error of its own.
		own := errors.New("own")
		err = c.Wait(ownErr{over, own}, 1)
		require.ErrorIs(t, err, own)
		require.ErrorIs(t, err, ErrFull)
		rejected(t, err, core.WaitTimeout)
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(10*ms, cancel)
		require.ErrorIs(t, c.Wait(ownErr{ctx, own}, 1), own)

		inFlight(t, c, 1)
		require.Zero(t, c.Stats().Waiting)
	})
}

// tardy has a deadline, and does not end at it.
type tardy struct {
	context.Context
	at time.Time
}

func (d tardy) Deadline() (time.Time, bool) { return d.at, true }

type ownErr struct {
	context.Context
	err error
}

func (o ownErr) Err() error {
	if o.Context.Err() == nil {
		return nil
	}
	return o.err
}

// MaxWait is for Acquire; Wait waits for as long as its context.
func TestConcurrencyWaitKnowsNoMaxWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, ConcurrencyConfig{Limit: 1})
		require.True(t, c.TryAcquire(1))
		_, err := c.Acquire(t.Context(), core.Call{})
		rejected(t, err, core.ConcurrencyLimited)
		start := time.Now()
		time.AfterFunc(365*24*time.Hour, func() { c.Release(1) })
		require.NoError(t, c.Wait(t.Context(), 1))
		require.Equal(t, 365*24*time.Hour, time.Since(start))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, c.Wait(ctx, 1), context.DeadlineExceeded)
		require.Equal(t, 365*24*time.Hour+time.Minute, time.Since(start))
	})
}

func TestConcurrencyQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, ConcurrencyConfig{Limit: 1, MaxWait: time.Second, MaxWaiters: 2})
		require.True(t, c.TryAcquire(1))
		q := newQueue(c)
		q.wait(t.Context(), "a", 1)
		q.wait(t.Context(), "b", 1)
		before := c.word.word.Load()
		_, err := c.Acquire(t.Context(), core.Call{})
		require.ErrorIs(t, err, ErrFull)
		rejected(t, err, core.Overloaded)
		require.EqualError(t, err, `limit: all slots are taken: refused by "bulkhead" (limit 1, waiting 2)`)
		require.Same(t, err, c.Wait(t.Context(), 1))
		if !raceEnabled {
			require.Zero(t, testing.AllocsPerRun(100, func() { _ = c.Wait(t.Context(), 1) }))
		}
		require.Equal(t, before, c.word.word.Load())
		func() { // no lock is needed for it
			c.mu.Lock()
			defer c.mu.Unlock()
			require.Same(t, err, c.Wait(t.Context(), 1))
		}()
		kind, queued := c.queueUp(c.nodes.get(1, nil)) // one that was about to wait as the queue filled up
		require.Equal(t, refusedOverloaded, kind)
		require.False(t, queued)
		c.Release(1)
		require.Equal(t, []ending{{"a", 0, nil}}, q.ended())
		q.wait(t.Context(), "c", 1)
		require.Empty(t, q.ended(), "there is a place again")
		c.Release(1)
		c.Release(1)
		require.Len(t, q.ended(), 2)
		require.GreaterOrEqual(t, c.Stats().Overloaded, uint64(2))
	})
}

// When a slot comes at the very moment at which the wait is over, one of both
// happens and not a bit of each.
func TestConcurrencyGrantMeetsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, ConcurrencyConfig{Limit: 1, MaxWait: ms})
		won := map[bool]int{}
		for range 500 {
			require.True(t, c.TryAcquire(1))
			ctx, cancel := context.WithTimeout(t.Context(), ms)
			go func() {
				time.Sleep(ms)
				c.Release(1)
			}()
			p, err := c.Acquire(ctx, core.Call{})
			won[err == nil]++
			p.Cancel()
			cancel()
			synctest.Wait()
			inFlight(t, c, 0)
			require.Zero(t, c.Stats().Waiting)
		}
		require.Zero(t, c.Stats().Unmatched)
		t.Log("granted, not granted:", won[true], won[false])
	})
}

// A slot that was granted is kept, though the caller goes before it wakes.
func TestConcurrencyGrantWins(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Limit: 1})
	require.True(t, c.TryAcquire(1))
	w := c.nodes.get(1, nil)
	_, queued := c.queueUp(w)
	require.True(t, queued)
	require.True(t, c.Release(1))
	require.Equal(t, granted, c.abandon(w, late))
	inFlight(t, c, 1)
}

// A caller that has gone is given no slot, even if it has not noticed yet.
func TestConcurrencyPassesOverWhoHasGone(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Limit: 1})
	require.True(t, c.TryAcquire(1))
	done := make(chan struct{})
	first, second := c.nodes.get(1, done), c.nodes.get(1, nil)
	c.queueUp(first)
	c.queueUp(second)
	close(done)
	require.True(t, c.Release(1))
	require.Equal(t, gone, c.abandon(first, late))
	require.Equal(t, granted, c.abandon(second, late))
	inFlight(t, c, 1)
}

func TestConcurrencyReconfigure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, ConcurrencyConfig{Name: "db", Limit: 2, MaxWait: time.Minute})
		require.True(t, c.TryAcquire(2))
		q := newQueue(c)
		for _, name := range []string{"a", "b", "c", "d"} {
			q.wait(t.Context(), name, 1)
		}
		require.NoError(t, c.Reconfigure(ConcurrencyConfig{Name: "x", Limit: 4}))
		require.Len(t, q.ended(), 2, "new slots go to those who wait")
		require.Equal(t, "db", c.Name())
		_, err := c.Acquire(t.Context(), core.Call{})
		require.Equal(t, "db", rejected(t, err, core.ConcurrencyLimited).Guard)

		// Fewer slots: those in flight go on, and nobody else is let in.
		require.NoError(t, c.Reconfigure(ConcurrencyConfig{Limit: 1, MaxWait: time.Minute}))
		inFlight(t, c, 4)
		require.Equal(t, Decision{Limit: 1, Policy: "db"}, c.Peek(1))
		require.True(t, c.Release(3))
		require.Empty(t, q.ended())
		require.True(t, c.Release(1))
		require.Equal(t, []ending{{"c", 0, nil}}, q.ended())
		time.Sleep(time.Minute)
		ends := q.ended()
		require.Len(t, ends, 1, "d waits as long as it meant to")
		rejected(t, ends[0].why, core.WaitTimeout)

		// Who wants more than there is now need not wait for it.
		require.NoError(t, c.Reconfigure(ConcurrencyConfig{Limit: 4, MaxWait: time.Minute}))
		q = newQueue(c)
		q.wait(t.Context(), "four", 4)
		q.wait(t.Context(), "one", 1)
		q.wait(t.Context(), "three", 3)
		require.NoError(t, c.Reconfigure(ConcurrencyConfig{Limit: 2, MaxWait: time.Minute}))
		ends = q.ended()
		require.Len(t, ends, 3)
		for _, e := range ends {
			if e.name == "one" {
				require.NoError(t, e.why)
				continue
			}
			require.ErrorIs(t, e.why, ErrNeverFits)
			rejected(t, e.why, core.NeverFits)
		}
		require.True(t, c.Release(2))
		inFlight(t, c, 0)
		require.Zero(t, c.Stats().Unmatched)
	})
}

// Where a bulkhead is stuck, it says since when.
func TestConcurrencyFullSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConcurrency(t, ConcurrencyConfig{Limit: 2})
		start := time.Now()
		since := func() time.Duration {
			at := c.Stats().FullSince
			if at.IsZero() {
				return -1
			}
			return at.Sub(start)
		}
		require.True(t, c.TryAcquire(1))
		require.False(t, c.TryAcquire(2))
		require.EqualValues(t, -1, since(), "one slot is free")
		require.True(t, c.TryAcquire(1))
		require.EqualValues(t, -1, since(), "nobody has been refused")
		require.False(t, c.TryAcquire(1))
		require.Zero(t, since())
		time.Sleep(time.Second)
		require.False(t, c.TryAcquire(1))
		require.Zero(t, since())
		for _, v := range c.Inspect().Values {
			if v.Name == "surgewall.bulkhead.full_time" {
				require.Equal(t, 1.0, v.Number)
			}
		}
		require.True(t, c.Release(1))
		require.EqualValues(t, -1, since())
		require.True(t, c.TryAcquire(1))
		require.EqualValues(t, -1, since())

		// A slot that goes from hand to hand is never free.
		q := newQueue(c)
		go func() { _ = c.Wait(t.Context(), 1) }()
		q.ended()
		require.Equal(t, time.Second, since())
		time.Sleep(time.Second)
		require.True(t, c.Release(1))
		q.ended()
		require.Equal(t, time.Second, since())
		require.True(t, c.Release(1))
		require.EqualValues(t, -1, since())
		require.True(t, c.TryAcquire(1))
		require.EqualValues(t, -1, since(), "forgotten")
		require.True(t, c.Release(1))

		// More slots are an end of it too.
		require.True(t, c.TryAcquire(1))
		require.False(t, c.TryAcquire(1))
		require.Equal(t, 2*time.Second, since())
		require.NoError(t, c.Reconfigure(ConcurrencyConfig{Limit: 3}))
		require.EqualValues(t, -1, since())
		require.True(t, c.TryAcquire(1))
		require.EqualValues(t, -1, since(), "forgotten")
	})
}

// Whatever a context does when it is asked, no lock is held meanwhile, and
// nothing is lost.
func TestConcurrencyContextMisbehaves(t *testing.T) {
	for name, then := range map[string]func(*Concurrency){
		"calls back": func(c *Concurrency) { c.Stats(); c.Release(0); c.Peek(1) },
		"panics":     func(*Concurrency) { panic("context") },
		"exits":      func(*Concurrency) { runtime.Goexit() },
	} {
		synctest.Test(t, func(t *testing.T) {
			for calls := range 5 { // at each of the calls that there may be
				c := newConcurrency(t, ConcurrencyConfig{Limit: 1, MaxWait: time.Second})
				require.True(t, c.TryAcquire(1))
				ctx, cancel := context.WithTimeout(t.Context(), ms)
				n := 0
				hook := func() {
					if n++; n == calls+1 {
						then(c)
					}
				}
				go func() {
					defer func() { _ = recover() }()
					_, _ = c.Acquire(nosyCtx{ctx, hook}, core.Call{})
				}()
				time.Sleep(time.Second)
				synctest.Wait()
				require.Zero(t, c.Stats().Waiting, "%s at call %d", name, calls)
				require.True(t, c.Release(1))
				require.True(t, c.TryAcquire(1))
				cancel()
			}
		})
	}
}

// nosyCtx runs a function whenever it is asked anything.
type nosyCtx struct {
	context.Context
	ask func()
}

func (c nosyCtx) Err() error                  { c.ask(); return c.Context.Err() }
func (c nosyCtx) Done() <-chan struct{}       { c.ask(); return c.Context.Done() }
func (c nosyCtx) Deadline() (time.Time, bool) { c.ask(); return c.Context.Deadline() }
