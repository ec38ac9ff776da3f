package pool

import (
	"math/bits"
	"time"

	"github.com/surgewall/surgewall/core"
)

// Histogram is a distribution of times. Its buckets double: Counts[0] are the
// times below 1,024 ns, each further count those below twice as much, and the
// last, beyond 17 s, all the rest.
type Histogram struct {
	Counts [26]uint64
	Sum    time.Duration
}

// add is what every loan pays: one shift, one count of bits, two additions.
func (h *Histogram) add(d time.Duration) {
	d = max(d, 0)
	h.Counts[min(bits.Len64(uint64(d)>>10), len(h.Counts)-1)]++
	h.Sum += d
}

// Bound is what the times of Counts[i] are below. The last bucket has none: its
// Bound is twice that of the one before.
func (Histogram) Bound(i int) time.Duration { return 1 << (10 + i) }

// Count is how many times there are.
func (h Histogram) Count() (n uint64) {
	for _, c := range h.Counts {
		n += c
	}
	return n
}

// Mean is the arithmetic mean, or 0 if there are no times.
func (h Histogram) Mean() time.Duration {
	n := h.Count()
	if n == 0 {
		return 0
	}
	return h.Sum / time.Duration(n)
}

// Quantile is what the share q of the times are below, from 0 to 1: the Bound
// of the bucket in which that share is reached, so at most twice too much. It is
// 0 if there are no times.
func (h Histogram) Quantile(q float64) time.Duration {
	n := h.Count()
	if n == 0 {
		return 0
	}
	need := q * float64(n)
	var seen uint64
	for i, c := range h.Counts {
		seen += c
		if c > 0 && float64(seen) >= need {
			return h.Bound(i)
		}
	}
	return h.Bound(len(h.Counts) - 1)
}

// report is h for a Report, in seconds.
func (h Histogram) report(name string) core.Value {
	r := &core.Histogram{Counts: h.Counts[:], Sum: h.Sum.Seconds()}
	for i := range len(h.Counts) - 1 {
		r.Bounds = append(r.Bounds, h.Bound(i).Seconds())
	}
	return core.Value{Name: name, Unit: "s", Type: core.Distribution, Histogram: r}
}
