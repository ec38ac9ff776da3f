package main

import (
	"context"
	"errors"
	"math/bits"
	"runtime"
	"time"
)

// idleRows: a million keys that have not been asked for in a second, and one
// goroutine that asks for others, for three. The time of each call is taken.
// Those who sweep from time to time do so each second. The second row has a new key in
// each call; ours is full by then, and has to forget.
//
// What else the machine does is in the worst call too, so the floor is what it
// does to a loop that reads the clock and nothing else.
var idleRows = []row{
	idleRow("idle, 1,000,000 keys", false),
	idleRow("idle, 1,000,000 keys, and new ones", true),
}

func idleRow(name string, fresh bool) row {
	watched := func(make newStore) start { return watched(make, fresh) }
	return row{
		name: name, unit: "us worst",
		once: true, procs: []int{runtime.NumCPU()},
		also:  []extra{{"half of the calls", "ns"}, {"99.99 of 100", "us"}},
		ours:  contender{name: "Keyed", start: watched(ourStore)},
		peers: storesOf(watched, false),
		floor: contender{name: "clock", start: watched(func(int, storeConfig) (store, func()) {
			return func(string) bool { return true }, nothing
		})},
	}
}

const others = 1000 // few enough, and enough to be admitted however fast they come

func watched(make newStore, fresh bool) start {
	return func(ctx context.Context, p plan) (measure, func(), error) {
		window := p.span / 2
		c := storeConfig{calls: int(30_000 * window / time.Second), window: window, sweep: window}
		known, room := names("client-", p.keys), p.keys+others
		asked := names("others-", others)
		if fresh {
			asked, room = names("others-", p.keys), p.keys
		}
		ask, stop := make(room, c)
		for _, key := range known {
			if !ask(key) {
				return nil, stop, errors.New("a first call was refused")
			}
		}
		runtime.KeepAlive(known)
		select {
		case <-time.After(c.window):
		case <-ctx.Done():
		}
		return func(d time.Duration) (sample, error) {
			if fresh {
				d = 10 * d // it ends when the keys do
			} else {
				d += d / 2
			}
			h := new(histogram)
			epoch := time.Now()
			last := time.Duration(0)
			for i := 0; last < d && (i < len(asked) || !fresh); i++ {
				if !ask(asked[i%len(asked)]) {
					return sample{}, errors.New("a call was refused")
				}
				now := time.Since(epoch)
				h.add(uint64(now - last))
				last = now
			}
			return sample{
				value: float64(h.worst) / 1e3,
				also:  []float64{float64(h.quantile(0.5)), float64(h.quantile(0.9999)) / 1e3},
			}, nil
		}, stop, nil
	}
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
