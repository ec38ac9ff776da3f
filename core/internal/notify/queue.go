// Package notify delivers what a component has to tell, in the order in which
// it happened, without holding the component's lock while somebody listens.
package notify

import (
	"sync"
	"sync/atomic"
)

// Queue holds notices between the moment they happen and the moment they are
// delivered. A component pushes under its own lock, so that the order is that
// of its states, and drains after it has released it.
//
// One goroutine at a time delivers. Another that drains meanwhile returns at
// once and leaves its notices to the first, so a listener that blocks holds up
// only the call that is telling it. A listener that panics or exits its
// goroutine loses the one notice that it was given.
//
// The zero Queue drops what does not fit; set Merge to do better. It is safe
// for concurrent use, and calls nothing while it holds its own lock but Merge.
type Queue[E any] struct {
	// Merge is called when the queue is full. It folds next into last, the
	// newest notice that waits, and reports whether last still stands: false
	// when the two undo each other.
	Merge func(last *E, next E) bool

	mu       sync.Mutex
	pending  []E  // guarded by mu; oldest first
	draining bool // guarded by mu: a goroutine is delivering

	panics atomic.Uint64
}

// maxPending bounds what waits behind a listener that does not come back.
const maxPending = 256

// Push adds a notice.
func (q *Queue[E]) Push(e E) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch last := len(q.pending) - 1; {
	case len(q.pending) < maxPending:
		q.pending = append(q.pending, e)
	case q.Merge != nil && !q.Merge(&q.pending[last], e):
		q.pending = q.pending[:last]
	}
}

// Drain delivers what waits, and what is pushed meanwhile, unless another
// goroutine is at it.
func (q *Queue[E]) Drain(deliver func(E)) {
	q.mu.Lock()
	busy := q.draining || len(q.pending) == 0
	if !busy {
		q.draining = true
	}
	q.mu.Unlock()
	if !busy {
		q.run(deliver)
	}
}

// Panics is how many times a listener panicked or exited its goroutine.
func (q *Queue[E]) Panics() uint64 { return q.panics.Load() }

// run delivers until nothing waits. When a listener exits the goroutine, it goes
// on with the next notice on the way out. A panic does not get that far: each
// would leave its frames on the stack until nothing waits any more.
func (q *Queue[E]) run(deliver func(E)) {
	over := false
	defer func() {
		if !over {
			q.panics.Add(1)
			q.run(deliver)
		}
	}()
	for {
		e, ok := q.pop()
		if !ok {
			over = true
			return
		}
		q.tell(deliver, e)
	}
}

// tell delivers one notice, and contains a panic.
func (q *Queue[E]) tell(deliver func(E), e E) {
	defer func() {
		if recover() != nil { // nil after runtime.Goexit, which nothing stops
			q.panics.Add(1)
		}
	}()
	deliver(e)
}

// pop takes the oldest notice, or ends the draining: both under one lock, so
// that a notice pushed afterwards finds somebody to deliver it.
func (q *Queue[E]) pop() (e E, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) == 0 {
		q.draining, q.pending = false, nil
		return e, false
	}
	e = q.pending[0]
	var none E
	q.pending[0] = none
	q.pending = q.pending[1:]
	return e, true
}
