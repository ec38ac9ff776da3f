package circuit

import (
	"sync"
	"sync/atomic"
	"time"
)

// history says how much some counters have grown in the time of a window up to
// now. It counts nothing itself: it remembers what the counters, which only grow,
// were a window ago. So no count is lost, whoever counts and however long nobody
// did, and none is ever below zero. What is counted while a slot ends, or while begin
// runs, is in the one or the other: a result that has just been found to be of this
// generation can be the first of the next, one for each processor at most.
// It is safe for concurrent use.
type history struct {
	read func() sums
	slot int64 // ns; the window moves on by it

	head atomic.Int64         // the number of the slot that is running
	base atomic.Pointer[sums] // the counters when the window began

	mu   sync.Mutex
	ring [windowSlots]*sums // guarded by mu: when each of the last slots began, by its number
}

// sums are some counters at one moment.
type sums [3]uint64

const windowSlots = 10

// init is for a window that begins at 0.
func (h *history) init(length time.Duration, read func() sums) {
	h.read, h.slot = read, int64(length)/windowSlots
	h.begin(0)
}

// begin forgets what was before now.
func (h *history) begin(now int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.read()
	for i := range h.ring {
		h.ring[i] = &s
	}
	h.base.Store(&s)
	h.head.Store(max(h.head.Load(), now/h.slot))
}

// tick moves the window on to now. It is called before something is counted, and
// before grown.
func (h *history) tick(now int64) {
	if now/h.slot > h.head.Load() {
		h.advance(now / h.slot)
	}
}

func (h *history) advance(to int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	from := h.head.Load()
	if to <= from {
		return
	}
	s := h.read()
	for i := max(from+1, to-windowSlots+1); i <= to; i++ {
		h.ring[i%windowSlots] = &s
	}
	h.base.Store(h.ring[(to+1)%windowSlots]) // the oldest
	h.head.Store(to)
}

// grown is by how much the counters have grown since the window began.
func (h *history) grown() sums {
	base := h.base.Load() // before the counters, which are not below it then
	s := h.read()
	for i := range s {
		s[i] -= base[i]
	}
	return s
}
