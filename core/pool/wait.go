package pool

import (
	"context"
	"math"
	"time"
)

// waiter is a caller in the queue. It is used again, by way of Pool.nodes. Its
// fields are guarded by the pool's mu while it is queued; whoever takes it out
// of the queue sets lease or no and then sends on ready, still under mu.
type waiter[T any] struct {
	prev, next *waiter[T]
	queued     bool

	start    int64           // when Acquire was called
	deadline int64           // when AcquireTimeout is over
	done     <-chan struct{} // the caller's ctx.Done()

	ready chan struct{} // holds one
	lease Lease[T]
	no    refusal
}

// waitList is the queue, first come first served. Taking out any waiter is O(1).
type waitList[T any] struct {
	first, last *waiter[T]
	n           int
}

// add puts w behind all that called Acquire before it did: so the first is also
// the first whose time is up. Who comes last called last, but for those who race
// for mu, and those whose hook wants another resource.
func (q *waitList[T]) add(w *waiter[T]) {
	before := q.last
	if q.first != nil && q.first.start > w.start {
		before = nil // of the second kind: not looked for among all
	}
	for before != nil && before.start > w.start {
		before = before.prev
	}
	w.prev, w.queued = before, true
	if before == nil {
		w.next, q.first = q.first, w
	} else {
		w.next, before.next = before.next, w
	}
	if w.next == nil {
		q.last = w
	} else {
		w.next.prev = w
	}
	q.n++
}

func (q *waitList[T]) remove(w *waiter[T]) {
	if w.prev == nil {
		q.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		q.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next, w.queued = nil, nil, false
	q.n--
}

// patience is how long a caller can wait.
type patience struct {
	done     <-chan struct{} // its ctx.Done()
	deadline int64           // when its ctx will end at the latest
}

func (p *Pool[T]) patienceOf(ctx context.Context) patience {
	is := patience{ctx.Done(), math.MaxInt64}
	if is.done != nil && !p.cfg.IgnoreDeadlines {
		if deadline, ok := ctx.Deadline(); ok {
			is.deadline = p.clock.At(deadline)
		}
	}
	return is
}

// doomedLocked is the verdict on a caller whose turn will come too late: those
// ahead of it, each with the whole pool to choose from, would keep all of it
// busy beyond its deadline. That is less than it will have to wait, as far as
// loans last as long as they did: nobody is refused who has nobody ahead.
func (p *Pool[T]) doomedLocked(is patience, now int64) bool {
	if is.deadline == math.MaxInt64 {
		return false
	}
	rounds := float64(p.waiters.n) / float64(p.max)
	return rounds*float64(p.meanUse) > float64(is.deadline-now)
}

// queue is Acquire, called at start, when nothing is idle now. It is called with mu
// held and returns without.
func (p *Pool[T]) queue(ctx context.Context, is patience, start, now int64) (Lease[T], error) {
	p.forgetFailuresLocked(now)
	var no refusal
	switch {
	case p.closed:
		no = p.refuseLocked(refusedClosed)
	case p.unavailableLocked(now):
		// Those who wait learn it too: the last dial may be long ago.
		p.refuseAllLocked(refusedUnavailable)
		no = p.refuseLocked(refusedUnavailable)
		p.asked = true
		p.dialLocked()
	case p.maxWaiters > 0 && p.waiters.n >= p.maxWaiters:
		no = p.refuseLocked(refusedOverloaded)
	case p.doomedLocked(is, now):
		no = p.refuseLocked(refusedDoomed)
	default:
		w := p.waitLocked(is.done, start)
		p.mu.Unlock()
		return p.await(ctx, w)
	}
	p.mu.Unlock()
	return Lease[T]{}, p.tell(ctx, no, 0)
}

// waitLocked puts the caller at the end of the queue and asks for dials.
func (p *Pool[T]) waitLocked(done <-chan struct{}, start int64) *waiter[T] {
	w, _ := p.nodes.Get().(*waiter[T])
	if w == nil {
		w = &waiter[T]{ready: make(chan struct{}, 1)}
	}
	w.start, w.done = start, done
	w.deadline = after(start, p.cfg.AcquireTimeout)
	p.waiters.add(w)
	if w.deadline < p.armedFor {
		p.armLocked(w.deadline, p.clock.Now())
	}
	p.dialLocked()
	return w
}

// await waits until w is served or refused, or its ctx is over.
func (p *Pool[T]) await(ctx context.Context, w *waiter[T]) (Lease[T], error) {
	if w.done == nil {
		<-w.ready
	} else {
		select {
		case <-w.ready:
		case <-w.done:
			p.mu.Lock()
			if w.queued {
				p.refuseWaiterLocked(w, refusedCancelled)
			}
			p.mu.Unlock()
			// Served or refused before that: what was decided first holds.
			<-w.ready
		}
	}
	lease, no, start := w.lease, w.no, w.start
	*w = waiter[T]{ready: w.ready}
	p.nodes.Put(w)
	if no.kind != notRefused {
		return Lease[T]{}, p.tell(ctx, no, time.Duration(p.clock.Now()-start))
	}
	return lease, nil
}

// nextWaiterLocked takes the first waiter whose time is not up out of the
// queue, and refuses those before it whose time is.
func (p *Pool[T]) nextWaiterLocked(now int64) *waiter[T] {
	for {
		w := p.waiters.first
		if w == nil {
			return nil
		}
		select {
		case <-w.done:
			p.refuseWaiterLocked(w, refusedCancelled)
			continue
		default:
		}
		if now >= w.deadline {
			p.refuseWaiterLocked(w, refusedTimedOut)
			continue
		}
		p.waiters.remove(w)
		return w
	}
}

// expireWaiters refuses those who have waited for AcquireTimeout. Since that is
// the same for all, the first in the queue is the first to go, and one timer
// serves all.
func (p *Pool[T]) expireWaiters() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armedFor = math.MaxInt64
	now := p.clock.Now()
	for w := p.waiters.first; w != nil && now >= w.deadline; w = p.waiters.first {
		p.refuseWaiterLocked(w, refusedTimedOut)
	}
	if w := p.waiters.first; w != nil {
		p.armLocked(w.deadline, now)
	}
}

// armLocked makes expiry fire at the deadline.
func (p *Pool[T]) armLocked(deadline, now int64) {
	p.armedFor = deadline
	p.expiry.Reset(time.Duration(deadline - now))
}

// refuseWaiterLocked takes w out of the queue, refused.
func (p *Pool[T]) refuseWaiterLocked(w *waiter[T], why refusalKind) {
	w.no = p.refuseLocked(why)
	p.waiters.remove(w)
	w.ready <- struct{}{}
}

// refuseAllLocked refuses all who wait.
func (p *Pool[T]) refuseAllLocked(why refusalKind) {
	for p.waiters.first != nil {
		p.refuseWaiterLocked(p.waiters.first, why)
	}
	for _, w := range p.warmers {
		w.ready <- p.refuseLocked(why)
	}
	p.warmers = nil
}
