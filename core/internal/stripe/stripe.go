// Package stripe counts from many processors at once.
package stripe

import (
	"sync/atomic"
	"unsafe"
)

const (
	stripeBits = 3
	stripes    = 1 << stripeBits

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
	// Which line: goroutines that run at the same time have different stacks, so
	// where this one's is says as much as the processor would, and costs nothing
	// to ask. It is a hint, and only spreads the load.
	var here byte
	stack := uint64(uintptr(unsafe.Pointer(&here))) >> 11 // stacks have 2 KiB at least
	g.lines[stack*0x9e3779b97f4a7c15>>(64-stripeBits)].n[i].Add(n)
}

// Sum is counter i. Read while others add, it is some value that the counter
// had or will have had meanwhile.
func (g *Group) Sum(i int) (sum uint64) {
	for l := range g.lines {
		sum += g.lines[l].n[i].Load()
	}
	return sum
}
