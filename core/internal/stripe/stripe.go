// Package stripe counts from many processors at once.
package stripe

import (
	"sync"
	"sync/atomic"
)

const (
	stripes = 8 // a power of two

	// Size is the number of counters in a Group.
	Size = 8
)

// Group is a few counters that belong together, each spread over several cache
// lines, so that processors which count at the same time seldom write the same
// line. It takes 1 KiB. The zero Group is ready to use; it is safe for
// concurrent use and must not be copied after first use.
type Group struct {
	lines [stripes]line
}

// line is one stripe: all counters of the group, on two cache lines of their
// own, since processors fetch lines in pairs.
type line struct {
	n [Size]atomic.Uint64
	_ [128 - Size*8]byte
}

// Add adds n to counter i, which is below Size.
func (g *Group) Add(i int, n uint64) {
	s := seats.Get().(*seat)
	g.lines[s.line].n[i].Add(n)
	seats.Put(s)
}

// Sum is counter i. Read while others add, it is some value that the counter
// had or will have had meanwhile.
func (g *Group) Sum(i int) (sum uint64) {
	for l := range g.lines {
		sum += g.lines[l].n[i].Load()
	}
	return sum
}

// A seat says which line a processor uses. sync.Pool keeps one near each
// processor, and with it the line; a random line, which costs the same alone,
// is on the wrong processor half the time and slower than one shared word. The
// seats hold no state of any Group, and are the same for all.
type seat struct {
	line uint32
	_    [124]byte
}

var (
	seats    = sync.Pool{New: func() any { return &seat{line: lastSeat.Add(1) % stripes} }}
	lastSeat atomic.Uint32
)
