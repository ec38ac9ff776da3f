package pool

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// outcome is what a caller got, and when.
type outcome struct {
	lease Lease[*conn]
	err   error
	after time.Duration
}

// ask calls Acquire in a goroutine and returns when it waits or has its answer.
func ask(ctx context.Context, p *Pool[*conn]) <-chan outcome {
	got := make(chan outcome, 1)
	go func() {
		start := time.Now()
		l, err := p.Acquire(ctx)
		got <- outcome{l, err, time.Since(start)}
	}()
	synctest.Wait()
	return got
}

func TestWaitersAreServedInOrder(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		p := open(t, m.config(1))
		l := acquire(t, p)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		a := ask(t.Context(), p)
		b := ask(ctx, p)
		c := ask(t.Context(), p)
		time.Sleep(2 * time.Second)
		require.ErrorIs(t, (<-b).err, context.DeadlineExceeded)
		l.Release()
		first := <-a
		require.NoError(t, first.err)
		require.Equal(t, 2*time.Second, first.after)
		synctest.Wait()
		require.Empty(t, c)
		first.lease.Release()
		second := <-c
		require.NoError(t, second.err)
		second.lease.Release()
		require.EqualValues(t, 1, m.dials.Load())
		s := p.Stats()
		require.EqualValues(t, 3, s.Waited)
		require.Equal(t, 4*time.Second, s.Wait.Sum)
	})
}

// A waiter whose time is up, but which has not run since, is passed over: the
// queue is driven by hand, since no schedule shows this reliably.
func TestExpiredWaiterIsPassedOver(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(1)
		cfg.AcquireTimeout = time.Second
		p := open(t, cfg)
		l := acquire(t, p)
		time.Sleep(3 * time.Second)
		done := make(chan struct{})
		close(done)
		p.mu.Lock()
		gone := p.waitLocked(done, p.clock.Now())
		late := p.waitLocked(nil, p.clock.Now()-int64(2*time.Second))
		next := p.waitLocked(nil, p.clock.Now())
		p.mu.Unlock()
		l.Release()
		for _, w := range []*waiter[*conn]{gone, late, next} {
			<-w.ready
		}
		require.Equal(t, refusedCancelled, gone.no.kind)
		require.Nil(t, gone.lease.Value())
		require.Equal(t, refusedTimedOut, late.no.kind)
		require.Nil(t, late.lease.Value())
		require.Equal(t, 1, next.lease.Value().n)
		next.lease.Release()
	})
}

// The resource comes at the moment at which ctx ends: whichever was booked
// first holds, and the resource is not lost.
func TestGrantWinsOverCancel(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		p := open(t, m.config(1))
		l := acquire(t, p)
		done := make(chan struct{})
		p.mu.Lock()
		w := p.waitLocked(done, p.clock.Now())
		p.mu.Unlock()
		l.Release()
		close(done)
		lease, err := p.await(t.Context(), w)
		require.NoError(t, err)
		require.Equal(t, 1, lease.Value().n)
		lease.Release()
		require.Equal(t, 1, p.Stats().Idle)
	})
}

func TestCancelledWaitersLeaveNothingBehind(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		p := open(t, m.config(3))
		held := []Lease[*conn]{acquire(t, p), acquire(t, p), acquire(t, p)}
		ctx, cancel := context.WithCancel(t.Context())
		var asked []<-chan outcome
		for range 3 {
			asked = append(asked, ask(ctx, p))
		}
		require.Equal(t, 3, p.Stats().Waiting)
		cancel()
		for _, a := range asked {
			require.ErrorIs(t, (<-a).err, context.Canceled)
		}
		require.Zero(t, p.Stats().Waiting)
		require.EqualValues(t, 3, p.Stats().Cancelled)
		held[0].Release()
		acquire(t, p).Release()
		held[1].Release()
		held[2].Release()
	})
}

func TestAcquireTimeoutIsApartFromTheContext(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		p := open(t, m.config(1))
		l := acquire(t, p)
		a := ask(t.Context(), p)
		time.Sleep(4 * time.Second)
		b := ask(t.Context(), p)
		first, second := <-a, <-b
		require.Equal(t, 10*time.Second, first.after)
		require.Equal(t, 10*time.Second, second.after)
		require.ErrorIs(t, first.err, ErrAcquireTimeout)
		require.NotErrorIs(t, first.err, context.DeadlineExceeded)
		require.NoError(t, t.Context().Err())
		var r *core.Rejection
		require.ErrorAs(t, first.err, &r)
		require.Equal(t, core.WaitTimeout, r.Reason)
		require.Equal(t, "total 1, used 1, idle 0, waiting 2", r.Detail)
		require.EqualValues(t, 2, p.Stats().TimedOut)
		l.Release()
	})
}

func TestAcquireTimeoutOffWaitsAsLongAsTheContext(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(1)
		cfg.AcquireTimeout = Off
		p := open(t, cfg)
		l := acquire(t, p)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		got := <-ask(ctx, p)
		require.Equal(t, time.Hour, got.after)
		require.ErrorIs(t, got.err, context.DeadlineExceeded)
		l.Release()
	})
}

func TestWaiterBeyondTheCapIsRefusedAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(1)
		cfg.MaxWaiters = 5
		p := open(t, cfg)
		l := acquire(t, p)
		var waiting []<-chan outcome
		for range 5 {
			waiting = append(waiting, ask(t.Context(), p))
		}
		sixth := <-ask(t.Context(), p)
		require.ErrorIs(t, sixth.err, ErrOverloaded)
		require.Zero(t, sixth.after)
		s := p.Stats()
		require.EqualValues(t, 1, s.Overloaded)
		require.Zero(t, s.TimedOut)
		l.Release()
		for _, w := range waiting {
			got := <-w
			require.NoError(t, got.err)
			got.lease.Release()
		}
	})
}

// Release and Acquire at the same time leave no waiter while a resource is
// idle, however often they meet.
func TestNobodyWaitsWhileAResourceIsIdle(t *testing.T) {
	var m maker
	p := open(t, m.config(2))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 3000 {
				l, err := p.Acquire(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				p.mu.Lock()
				stranded := p.waiters.n > 0 && len(p.idle) > 0
				p.mu.Unlock()
				if stranded {
					t.Error("a waiter and an idle resource")
				}
				l.Release()
			}
		})
	}
	wg.Wait()
}

func TestEventsTellWaitsAndRefusals(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		o := &recorder{deaf: map[core.Kind]bool{}}
		cfg := m.config(1)
		cfg.Name, cfg.Observer, cfg.MaxWaiters = "orders", o, 1
		p := open(t, cfg)
		l := acquire(t, p)
		w := ask(t.Context(), p)
		_, err := p.Acquire(t.Context())
		require.ErrorIs(t, err, ErrOverloaded)
		time.Sleep(time.Second)
		l.Release()
		served := <-w
		synctest.Wait()
		served.lease.Destroy()
		synctest.Wait()
		// In no order: each is told by the goroutine that it happened to.
		require.ElementsMatch(t, []core.Event{
			{Kind: core.KindCreated, Component: "orders"},
			{Kind: core.KindAcquired, Component: "orders"},
			{Kind: core.KindAcquireFailed, Reason: core.Overloaded, Component: "orders"},
			{Kind: core.KindReleased, Component: "orders", Duration: time.Second},
			{Kind: core.KindAcquired, Component: "orders", Duration: time.Second},
			{Kind: core.KindReleased, Component: "orders"},
			{Kind: core.KindDestroyed, To: "broken", Component: "orders", Duration: time.Second},
		}, o.heard())

		o.deaf[core.KindAcquired], o.deaf[core.KindReleased] = true, true
		n := len(o.heard())
		acquire(t, p).Release()
		synctest.Wait()
		require.Len(t, o.heard(), n+1) // created
	})
}

func TestObserverThatExitsTheGoroutineLosesNoResource(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		o := &recorder{exitOn: core.KindAcquired}
		cfg := m.config(1)
		cfg.Observer = o
		p := open(t, cfg)
		exited := make(chan struct{})
		go func() {
			defer close(exited)
			_, _ = p.Acquire(t.Context())
			t.Error("the observer did not exit the goroutine")
		}()
		<-exited
		require.Zero(t, p.Stats().Used)
		require.Equal(t, 1, p.Stats().Idle)
	})
}

func TestRefusalSaysTheState(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(2)
		cfg.Name = "orders"
		p := open(t, cfg)
		a, b := acquire(t, p), acquire(t, p)
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("budget spent"))
		defer cancel()
		_, err := p.Acquire(ctx)
		require.EqualError(t, err, `pool: no resource in time: refused by "orders" (total 2, used 2, idle 0, waiting 1): context deadline exceeded`)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		a.Release()
		b.Release()
	})
}
