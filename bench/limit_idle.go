package main

import (
	"context"
	"errors"
	"math"
	"math/bits"
	"runtime"
	"time"
)

// idleRows: a million keys that nobody asks for any more, and one goroutine that
// asks for others, for three seconds. The time of each call is taken. Those who
// sweep from time to time do so each second, and forget what was not asked for
// in one. The second row has a new key in each call; ours is full by then, and
// has to forget.
//
// What else the machine does is in the longest call too, up to tens of
// milliseconds. It does not come each time, and a sweep does: so there are three
// runs, and the figure is the least of their longest calls. The floor is what is
// left of the machine in that: a loop that reads the clock and nothing else.
var idleRows = []row{
	idleRow("idle, 1,000,000 keys", false),
	idleRow("idle, 1,000,000 keys, and new ones", true),
}

func idleRow(name string, fresh bool) row {
	watched := func(make newStore) start { return watched(make, fresh) }
	return row{
		name: name, unit: "us longest",
		once: true, procs: []int{runtime.NumCPU()},
		also:  []extra{{"half of the calls", "ns", less}, {"99.99 of 100", "us", less}, {"longest of all runs", "us", less}},
		ours:  contender{name: "Keyed", start: watched(ourStore)},
		peers: storesOf(watched, false),
		floor: contender{name: "clock", start: watched(func(int, storeConfig) (store, func()) {
			return func(string) bool { return true }, func() {}
		})},
	}
}

const (
	others = 1000 // few enough, and enough to be admitted however fast they come
	runs   = 3
)

func watched(make newStore, fresh bool) start {
	return func(ctx context.Context, p plan) (measure, func(), error) {
		known, room := names("client-", p.keys), p.keys+others
		asked := names("others-", others)
		if fresh {
			asked, room = names("others-", p.keys), p.keys
		}
		return func(d time.Duration) (sample, error) {
			window := d / 2
			c := storeConfig{calls: int(30_000 * window / time.Second), window: window, sweep: window}
			var all histogram
			least := uint64(math.MaxUint64)
			for range runs {
				run := func() (uint64, error) {
					ask, stop := make(room, c)
					defer stop()
					for _, key := range known {
						if !ask(key) {
							return 0, errors.New("a first call was refused")
						}
					}
					if ctx.Err() != nil {
						return 0, ctx.Err()
					}
					runtime.GC()
					return watch(&all, ask, asked, 3*window, fresh)
				}
				worst, err := run()
				if err != nil {
					return sample{}, err
				}
				least = min(least, worst)
			}
			return sample{
				value: float64(least) / 1e3,
				also: []float64{
					float64(all.quantile(0.5)), float64(all.quantile(0.9999)) / 1e3, float64(all.worst) / 1e3,
				},
			}, nil
		}, nothing, nil
	}
}

// watch asks for d, or for each key once, adds the times of the calls to h, and
// returns the longest.
func watch(h *histogram, ask store, keys []string, d time.Duration, once bool) (longest uint64, err error) {
	epoch := time.Now()
	last := time.Duration(0)
	for i := 0; once || last < d; i++ {
		if i >= len(keys) {
			if once {
				break
			}
			i = 0
		}
		if !ask(keys[i]) {
			return 0, errors.New("a call was refused")
		}
		now := time.Since(epoch)
		took := uint64(now - last)
		h.add(took)
		longest = max(longest, took)
		last = now
	}
	return longest, nil
}

// histogram counts in buckets of less than 2 % of their value each.
type histogram struct {
	buckets [64 * fine]int
	n       int
	worst   uint64
}

const (
	fineBits = 6
	fine     = 1 << fineBits
)

func (h *histogram) add(x uint64) {
	h.buckets[bucketOf(x)]++
	h.n++
	h.worst = max(h.worst, x)
}

func bucketOf(x uint64) int {
	shift := max(0, bits.Len64(x)-fineBits-1)
	return shift<<fineBits + int(x>>shift)
}

// quantile is the upper end of the bucket that it is in.
func (h *histogram) quantile(q float64) uint64 {
	seen, want := 0, q*float64(h.n)
	for i, n := range h.buckets {
		if seen += n; float64(seen) >= want && n > 0 {
			shift := max(0, i>>fineBits-1)
			return min(h.worst, uint64(i-shift<<fineBits+1)<<shift-1)
		}
	}
	return h.worst
}
