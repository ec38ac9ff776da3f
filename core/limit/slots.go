package limit

import (
	"sync"
	"time"
)

// maxSlots is the greatest limit of a bulkhead, and the most that may wait.
const maxSlots = 1<<30 - 1

// slots is the state of a bulkhead whose callers hold a mutex: how many slots
// are taken, and who waits for some. It knows no limit, since the limit may be
// elsewhere, and may change; the caller gives it each time. The zero slots is
// that of a bulkhead never used, and idle reports whether it is as good as that.
//
// Strictly first come, first served: nobody overtakes one who waits, however
// few slots the other wants. Every method is called with the mutex held.
type slots struct {
	taken int32
	queue waitQueue
}

// take takes n slots, 1 to maxSlots, if they are free and nobody waits.
func (s *slots) take(n, limit int) bool {
	if !s.queue.empty() || n > limit-int(s.taken) {
		return false
	}
	s.taken += int32(n)
	return true
}

// release gives n slots back, and serves who waits for them. More than are
// taken cannot be given back: that is a mistake of the caller's, and the answer
// is by how many.
func (s *slots) release(n, limit int) (excess int) {
	back := min(n, int(s.taken))
	s.taken -= int32(back)
	s.serve(limit)
	return n - back
}

// abandon takes w out of the queue, and reports whether it was in it: otherwise
// its verdict is there already, and holds. When it was the first, those behind
// it may be served.
func (s *slots) abandon(w *waiter, limit int) bool {
	if !s.queue.remove(w) {
		return false
	}
	s.serve(limit)
	return true
}

// serve gives free slots to those who wait. To be called after limit was
// raised or lowered.
func (s *slots) serve(limit int) {
	for {
		w := s.queue.next(limit-int(s.taken), limit)
		if w == nil {
			return
		}
		s.taken += int32(w.n)
		w.end(granted)
	}
}

// idle reports whether no slot is taken and nobody waits.
func (s *slots) idle() bool { return s.taken == 0 && s.queue.empty() }

// waitQueue is those who wait for slots, in order. It is guarded by its owner's
// mutex, and so is every waiter in it. The zero waitQueue is empty. It is one
// word, since there can be one for each of a million keys.
type waitQueue struct {
	last *waiter // of a ring: after the last comes the first
}

// waiter is one call that waits, and the place where its verdict arrives.
// Before it is queued and after its verdict it belongs to the caller alone.
type waiter struct {
	prev, next *waiter
	queued     bool
	waiting    int32           // of the last: how many are in the queue
	n          int             // the slots it wants
	done       <-chan struct{} // of the caller's context; may be nil

	verdict verdict
	ready   chan struct{} // holds one: sent once the verdict is there
	timer   *time.Timer   // stopped between two waits
}

// verdict is what became of a waiter.
type verdict uint8

const (
	undecided verdict = iota
	granted           // it has its slots
	misfit            // the limit is less than it wants now
	gone              // its context ended
	late              // it waited for as long as it may
)

func (q *waitQueue) empty() bool { return q.last == nil }

// len is how many wait.
func (q *waitQueue) len() int {
	if q.last == nil {
		return 0
	}
	return int(q.last.waiting)
}

// push puts w at the end.
func (q *waitQueue) push(w *waiter) {
	if q.last == nil {
		w.prev, w.next = w, w
	} else {
		w.prev, w.next = q.last, q.last.next
		w.prev.next, w.next.prev = w, w
	}
	w.queued, w.waiting = true, int32(q.len()+1)
	q.last = w
}

// remove takes w out, and reports whether it was in.
func (q *waitQueue) remove(w *waiter) bool {
	if !w.queued {
		return false
	}
	left := q.last.waiting - 1
	if w == q.last {
		q.last = w.prev
	}
	q.last.waiting = left
	if left == 0 {
		q.last = nil
	}
	w.prev.next, w.next.prev = w.next, w.prev
	w.prev, w.next, w.queued = nil, nil, false
	return true
}

// next takes out the first waiter if it wants no more than the free slots: it
// has them, and the caller of next books them and then ends it as granted. If it
// wants more, nobody is served. On the way those are ended who are first and
// cannot be served any more: the slots of a call whose caller has gone would be
// wasted, and one that wants more than limit would wait for ever.
func (q *waitQueue) next(free, limit int) *waiter {
	for !q.empty() {
		w := q.last.next
		switch {
		case w.n > limit:
			q.remove(w)
			w.end(misfit)
		case w.hasGone():
			q.remove(w)
			w.end(gone)
		case w.n <= free:
			q.remove(w)
			return w
		default:
			return nil
		}
	}
	return nil
}

// refit ends all who want more than limit. To be called when limit is lowered,
// lest they wait in vain until they are first.
func (q *waitQueue) refit(limit int) {
	if q.empty() {
		return
	}
	w := q.last.next
	for range q.len() {
		next := w.next
		if w.n > limit {
			q.remove(w)
			w.end(misfit)
		}
		w = next
	}
}

// end tells w, which is in no queue any more, its verdict. It does not block.
func (w *waiter) end(v verdict) {
	w.verdict = v
	w.ready <- struct{}{}
}

func (w *waiter) hasGone() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// await waits, without the mutex, until w has its verdict, which is final then,
// or its context has ended, or patience is over. In the latter two cases, gone
// and late but not final, the caller locks the mutex and abandons w; where that
// is not possible any more, the verdict that was quicker holds: see decided.
func (w *waiter) await(patience time.Duration) (v verdict, final bool) {
	var expired <-chan time.Time
	if patience < forever {
		if w.timer == nil {
			w.timer = time.NewTimer(patience)
		} else {
			w.timer.Reset(patience)
		}
		defer w.timer.Stop()
		expired = w.timer.C
	}
	select {
	case <-w.ready:
		return w.verdict, true
	case <-w.done:
		return gone, false
	case <-expired:
		return late, false
	}
}

// decided is the verdict of a waiter that could not be abandoned any more.
func (w *waiter) decided() verdict {
	<-w.ready
	return w.verdict
}

// waiters keeps waiters for their next use. It is safe for concurrent use.
type waiters struct{ pool sync.Pool }

// get is a waiter for n slots.
func (p *waiters) get(n int, done <-chan struct{}) *waiter {
	w, _ := p.pool.Get().(*waiter)
	if w == nil {
		w = &waiter{ready: make(chan struct{}, 1)}
	}
	w.n, w.done, w.verdict = n, done, undecided
	return w
}

// put takes w back, which is in no queue, and whose verdict, if there was one,
// was received.
func (p *waiters) put(w *waiter) {
	w.done = nil
	p.pool.Put(w)
}
