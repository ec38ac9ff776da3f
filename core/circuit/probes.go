package circuit

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// probes are the calls that a half-open breaker has out. The zero probes has
// none. The breaker's mutex guards it.
//
// A probe occupies one of limit places until it ends or its lease is over. An
// overdue one is remembered for a while, so that its result can still count
// once; as many are remembered as there are places, then the oldest is
// forgotten, and its result will count for nothing.
type probes struct {
	out []probe // by id, which is also by expiry: the overdue ones come first
	id  uint64  // of the newest; never 0, never used twice
}

type probe struct {
	id      uint64
	expires int64
	began   int64
}

// take gives a place to a new probe, if one is free.
func (p *probes) take(now, expires int64, limit int) (id uint64, ok bool) {
	overdue := p.overdue(now)
	if len(p.out)-overdue >= limit {
		return 0, false
	}
	if overdue > limit {
		p.out = slices.Delete(p.out, 0, overdue-limit)
	}
	p.id++
	// A lease that was read off an older clock must not end before its elders.
	if last := len(p.out) - 1; last >= 0 {
		expires = max(expires, p.out[last].expires)
	}
	p.out = append(p.out, probe{p.id, expires, now})
	return p.id, true
}

// end removes a probe, and says when it began. known is false for one that has
// ended before.
func (p *probes) end(id uint64) (began int64, known bool) {
	i, found := slices.BinarySearchFunc(p.out, id, func(e probe, id uint64) int {
		return cmp.Compare(e.id, id)
	})
	if found {
		began = p.out[i].began
		p.out = slices.Delete(p.out, i, i+1)
	}
	return began, found
}

// fullUntil is when the next place becomes free if nothing ends before, or 0
// if one is free.
func (p *probes) fullUntil(limit int) int64 {
	if len(p.out) < limit {
		return 0
	}
	return p.out[len(p.out)-limit].expires
}

// shorten makes lease the longest that a probe has.
func (p *probes) shorten(lease time.Duration) {
	elder := int64(math.MinInt64)
	for i := range p.out {
		e := &p.out[i]
		e.expires = max(elder, min(e.expires, after(e.began, lease)))
		elder = e.expires
	}
}

// clear forgets all probes.
func (p *probes) clear() { p.out = p.out[:0] }

// overdue is how many leases are over.
func (p *probes) overdue(now int64) int {
	i, _ := slices.BinarySearchFunc(p.out, now, func(e probe, now int64) int {
		return cmp.Compare(e.expires, now+1)
	})
	return i
}
