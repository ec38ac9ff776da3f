package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
)

// A resource costs nothing to make. Ours has nothing but Max in its Config, so
// it keeps times of use and of age, as puddle does. What a pool costs on real
// connections is in the area sql.
//
// In lendingRows, each gives back at once what it got. In those that yield, it
// lets others run first, so that all resources are out and the rest has to wait.
// In those with deadlines, each caller's context ends in a minute.
var poolRows = slices.Concat(lendingRows, convoyRows, stormRows)

var lendingRows = []row{
	lendingRow("alone", use{resources: 10}, twoSwaps),
	lendingRow("alone, deadline", use{resources: 10, deadline: true}, twoSwaps),
	crowdRow("40 goroutines on 10", use{resources: 10, goroutines: 40}),
	crowdRow("40 goroutines on 10, yield", use{resources: 10, goroutines: 40, hold: runtime.Gosched}),
	crowdRow("128 goroutines on 8", use{resources: 8, goroutines: 128}),
	crowdRow("128 goroutines on 8, yield", use{resources: 8, goroutines: 128, hold: runtime.Gosched}),
	crowdRow("128 goroutines on 8, yield, deadlines", use{resources: 8, goroutines: 128, hold: runtime.Gosched, deadline: true}),
}

// use is how a pool is used.
type use struct {
	resources  int
	goroutines int    // 0: one on each processor
	hold       func() // what a resource is used for, nil for nothing
	deadline   bool
}

func lendingRow(name string, u use, floor contender) row {
	return row{
		name:  name,
		ours:  contender{name: "Pool", start: u.by(oursOf)},
		peers: u.all(use.by),
		floor: floor,
	}
}

func crowdRow(name string, u use) row {
	return lendingRow(name, u, contender{name: "channel", start: u.by(channelOf)})
}

// all are the peers, measured in one way.
func (u use) all(way func(use, newLender) start) []contender {
	return []contender{
		{"puddle", jackc, way(u, puddleOf)},
		{"database/sql", "", way(u, databaseOf)},
	}
}

// by measures one loan, from one's asking to the next's.
func (u use) by(make newLender) start {
	return calls(u.goroutines, func() (func(int) int, func()) {
		l := make(u.resources)
		return func(n int) int {
			ctx, cancel := u.context()
			defer cancel()
			good, _ := l.lend(ctx, n, u.hold)
			return good
		}, l.stop
	})
}

func (u use) context() (context.Context, context.CancelFunc) {
	if u.deadline {
		return context.WithTimeout(context.Background(), time.Minute)
	}
	return context.Background(), nothing
}

var twoSwaps = contender{name: "2 CAS", start: lone(func() func(int) int {
	var word atomic.Int64
	return func(n int) (good int) {
		for range n {
			for old := word.Load(); !word.CompareAndSwap(old, old+1); old = word.Load() {
			}
			for old := word.Load(); !word.CompareAndSwap(old, old-1); old = word.Load() {
			}
			good++
		}
		return good
	}
})}

// convoyRows: each of a hundred goroutines holds one of four resources for a
// millisecond, asleep, gives it back and then needs a processor for another. A
// pool whose release lets the next run only after that leaves the resource idle
// meanwhile.
var convoyRows = []row{{
	name: "convoy, 100 goroutines on 4", unit: "loans/s", aim: more,
	slow: true, procs: []int{runtime.NumCPU()},
	ours:  contender{name: "Pool", start: convoy.inConvoy(oursOf)},
	peers: convoy.all(use.inConvoy),
	floor: contender{name: "channel", start: convoy.inConvoy(channelOf)},
}}

var convoy = use{resources: 4, goroutines: 100, hold: func() { time.Sleep(time.Millisecond) }}

func (u use) inConvoy(make newLender) start {
	return func(context.Context, plan) (measure, func(), error) {
		l := make(u.resources)
		ctx := context.Background()
		return func(d time.Duration) (sample, error) {
			var loans, failed atomic.Int64
			end := time.Now().Add(d)
			took, allocs := together(u.goroutines, func(int) {
				for more := true; more; more = time.Now().Before(end) {
					good, _ := l.lend(ctx, 1, u.hold)
					loans.Add(int64(good))
					failed.Add(int64(1 - good))
					for started := time.Now(); time.Since(started) < time.Millisecond; {
					}
				}
			})
			if n := failed.Load(); n > 0 {
				return sample{}, fmt.Errorf("%d loans failed", n)
			}
			n := float64(loans.Load())
			return sample{value: n / took.Seconds(), allocs: allocs / n}, nil
		}, l.stop, nil
	}
}
