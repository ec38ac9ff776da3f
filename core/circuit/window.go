package circuit

import (
	"sync"
	"time"

	"github.com/surgewall/surgewall/core/internal/stripe"
)

// tally is how many calls ended in a window: so many in all, and of those so many
// failed or were throttled, and so many were slow.
type tally struct{ total, bad, slow uint64 }

// window is the calls of one generation that the rates are taken of. It is safe
// for concurrent use.
type window interface {
	// begin empties it, for a generation that begins at now.
	begin(generation uint64, now int64)

	// tick is called before a result is counted, with a clock reading.
	tick(now int64)

	// counted is called after a result of that generation was counted.
	counted(generation uint64, bad, slow bool)

	tally() tally
}

// timeWindow is the calls of some time up to now, by the breaker's own counters.
type timeWindow struct{ history }

func newTimeWindow(counts *stripe.Group, length time.Duration) *timeWindow {
	w := new(timeWindow)
	w.init(length, func() sums {
		return sums{
			2: counts.Sum(countSlow), // before the calls that they are of
			1: counts.Sum(countFailure) + counts.Sum(countThrottled),
			0: counts.Sum(countSuccess),
		}
	})
	return w
}

func (w *timeWindow) begin(_ uint64, now int64) { w.history.begin(now) }

func (w *timeWindow) counted(uint64, bool, bool) {}

func (w *timeWindow) tally() tally {
	s := w.grown()
	return tally{total: s[0] + s[1], bad: s[1], slow: s[2]}
}

// countWindow is the last calls, so many. Their order matters, so it has a lock.
type countWindow struct {
	mu         sync.Mutex
	generation uint64
	ring       []ending // guarded by mu, as is all
	next       int
	sum        tally
}

// ending is how a call ended.
type ending uint8

const (
	wasBad ending = 1 << iota
	wasSlow
)

func newCountWindow(calls int) *countWindow { return &countWindow{ring: make([]ending, calls)} }

func (w *countWindow) begin(generation uint64, _ int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.generation, w.next, w.sum = generation, 0, tally{}
}

func (w *countWindow) tick(int64) {}

func (w *countWindow) counted(generation uint64, bad, slow bool) {
	var e ending
	if bad {
		e |= wasBad
	}
	if slow {
		e |= wasSlow
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.generation != generation {
		return
	}
	if w.sum.total == uint64(len(w.ring)) {
		old := w.ring[w.next]
		w.sum.total--
		w.sum.bad -= uint64(old & wasBad)
		w.sum.slow -= uint64(old & wasSlow / wasSlow)
	}
	w.ring[w.next] = e
	if w.next++; w.next == len(w.ring) {
		w.next = 0
	}
	w.sum.total++
	w.sum.bad += uint64(e & wasBad)
	w.sum.slow += uint64(e & wasSlow / wasSlow)
}

func (w *countWindow) tally() tally {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sum
}
