package main

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// row is one kind of work, and those who do it.
type row struct {
	name  string
	unit  string // what is measured; "" is ns, the time of one call
	more  bool   // more of it is better: queries/s
	ours  contender
	peers []contender
	floor contender // the least that the work can take; without a start, unknown
}

// contender is one way to do a row's work.
type contender struct {
	name   string
	module string // whose version is reported
	start  start
}

// start makes a fresh subject for that many processors. measure is then called
// several times, and stop once.
type start func(ctx context.Context, procs int) (measure, func(), error)

// measure works for about d, and fails if the work did not do what it should.
type measure func(d time.Duration) (sample, error)

type sample struct {
	value  float64 // in the row's unit
	allocs float64 // per call
}

// calls is the start of most rows: make builds a subject and returns the loop
// over its calls, which returns how many of n did what they should. The loop is
// run by one goroutine on each processor, or by crowd of them if that is not 0.
func calls(crowd int, make func() (loop func(n int) (good int), stop func())) start {
	return func(_ context.Context, procs int) (measure, func(), error) {
		loop, stop := make()
		goroutines := procs
		if crowd > 0 {
			goroutines = crowd
		}
		perSlice := 0
		return func(d time.Duration) (sample, error) {
			if perSlice == 0 {
				n, err := calibrate(goroutines, loop, d)
				if err != nil {
					return sample{}, err
				}
				perSlice = n
			}
			took, allocs, err := timed(goroutines, loop, perSlice)
			n := float64(perSlice * goroutines)
			return sample{float64(took) / n, allocs / n}, err
		}, stop, nil
	}
}

// lone is calls without a crowd and with nothing to stop.
func lone(make func() func(n int) (good int)) start {
	return calls(0, func() (func(int) int, func()) { return make(), func() {} })
}

// calibrate is how many calls each goroutine makes in about d. It warms up too.
func calibrate(goroutines int, loop func(int) int, d time.Duration) (int, error) {
	for n := 64; ; n *= 2 {
		took, _, err := timed(goroutines, loop, n)
		if err != nil {
			return 0, err
		}
		if took >= d/4 {
			return max(1, int(float64(n)*float64(d)/float64(took))), nil
		}
	}
}

// timed lets each goroutine make n calls, all at the same time.
func timed(goroutines int, loop func(int) int, n int) (took time.Duration, allocs float64, err error) {
	good := make([]int, goroutines)
	begin := make(chan struct{})
	var ready, done sync.WaitGroup
	ready.Add(goroutines)
	for i := range goroutines {
		done.Go(func() {
			ready.Done()
			<-begin
			good[i] = loop(n)
		})
	}
	ready.Wait()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	started := time.Now()
	close(begin)
	done.Wait()
	took = time.Since(started)
	runtime.ReadMemStats(&after)
	for _, g := range good {
		if g != n {
			return took, 0, fmt.Errorf("only %d of %d calls did what they should", g, n)
		}
	}
	return took, float64(after.Mallocs - before.Mallocs), nil
}

// plan is how thoroughly to measure.
type plan struct {
	rounds int
	slice  time.Duration // how long a contender works before it is the next one's turn
}

// measure runs a row: in each round, ours and a peer in turn for each peer, and
// the floor. Who is first changes from round to round.
func (p plan) measure(ctx context.Context, area string, r row, procs int) ([]result, error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
	all := append([]contender{r.ours}, r.peers...)
	if r.floor.start != nil {
		all = append(all, r.floor)
	}
	subjects := make([]measure, len(all))
	for i, c := range all {
		m, stop, err := c.start(ctx, procs)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		defer stop()
		if _, err := m(p.slice); err != nil { // warm
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		subjects[i] = m
	}
	ours, peers := subjects[0], subjects[1:1+len(r.peers)]

	pairs := make([]pairs, len(peers))
	var floor []float64
	for round := range p.rounds {
		for i, peer := range peers {
			var pair [2]sample
			turns := [2]int{round & 1, 1 - round&1}
			for _, turn := range turns {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				m, name := ours, r.ours.name
				if turn == 1 {
					m, name = peer, r.peers[i].name
				}
				runtime.GC() // nobody pays for another's garbage
				var err error
				if pair[turn], err = m(p.slice); err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
			}
			pairs[i].add(pair[0], pair[1])
		}
		if len(subjects) > 1+len(peers) {
			s, err := subjects[len(subjects)-1](p.slice)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", r.floor.name, err)
			}
			floor = append(floor, s.value)
		}
	}

	results := make([]result, len(peers))
	for i, c := range r.peers {
		results[i] = pairs[i].result(r.more)
		results[i].Area, results[i].Row, results[i].Procs = area, r.name, procs
		results[i].Unit = r.unit
		if r.unit == "" {
			results[i].Unit = "ns"
		}
		results[i].Peer, results[i].PeerVersion = c.name, version(c.module)
		results[i].Floor = median(floor)
		results[i].floorName, results[i].module, results[i].more = r.floor.name, c.module, r.more
	}
	return results, nil
}

// procCounts is one processor, and all of them.
func procCounts() []int {
	if n := runtime.NumCPU(); n > 1 {
		return []int{1, n}
	}
	return []int{1}
}
