package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
)

// row is one kind of work, and those who do it.
type row struct {
	name  string
	unit  string // what is measured; "" is ns, the time of one call
	aim   aim
	ours  contender
	peers []contender
	aside []contender // measured and listed, but no peers: other ways of ours, or those that do less
	floor contender   // the least that the work can take; without a start, unknown

	also  []extra // what else one measurement tells: a row of its own for each
	procs []int   // with how many processors; nil: procCounts
	once  bool    // it takes long: not in turns of a slice, but each is started and measured once
	big   bool    // so much is on the heap that turns are fewer and longer, without a collection before each
	slow  bool    // a call takes a while: turns are of plan.turn
}

// aim is what makes a figure better.
type aim int

const (
	less  aim = iota
	more      // calls/s
	exact     // a share of what should be: the nearer to 1, the better
)

// extra is a further figure of a row's samples.
type extra struct {
	name, unit string
	aim        aim
}

// contender is one way to do a row's work.
type contender struct {
	name   string
	module string // whose version is reported; "" is this one
	start  start
}

// start makes a fresh subject. measure is then called several times, with
// GOMAXPROCS set, and stop once.
type start func(ctx context.Context, p plan) (measure, func(), error)

// measure works for about d, and fails if the work did not do what it should.
type measure func(d time.Duration) (sample, error)

type sample struct {
	value  float64   // in the row's unit
	allocs float64   // per call
	also   []float64 // in the units of the row's also
}

// calls is the start of most rows: make builds a subject and returns the loop
// over its calls, which returns how many of n did what they should. The loop is
// run by one goroutine on each processor, or by crowd of them if that is not 0.
func calls(crowd int, make func() (loop func(n int) (good int), stop func())) start {
	return callsOf(crowd, func(plan) (func(int) int, func()) { return make() })
}

// callsOf is calls for subjects that depend on the plan.
func callsOf(crowd int, make func(p plan) (loop func(n int) (good int), stop func())) start {
	return func(_ context.Context, p plan) (measure, func(), error) {
		loop, stop := make(p)
		slices := map[int]int{} // the calls in one, by the number of goroutines
		return func(d time.Duration) (sample, error) {
			goroutines := runtime.GOMAXPROCS(0)
			if crowd > 0 {
				goroutines = crowd
			}
			perSlice := slices[runtime.GOMAXPROCS(0)]
			if perSlice == 0 {
				n, err := calibrate(goroutines, loop, d)
				if err != nil {
					return sample{}, err
				}
				perSlice = n
				slices[runtime.GOMAXPROCS(0)] = n
			}
			took, allocs, err := timed(goroutines, loop, perSlice)
			n := float64(perSlice * goroutines)
			return sample{value: float64(took) / n, allocs: allocs / n}, err
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
	took, allocs = together(goroutines, func(i int) { good[i] = loop(n) })
	for _, g := range good {
		if g != n {
			return took, 0, fmt.Errorf("only %d of %d calls did what they should", g, n)
		}
	}
	return took, allocs, nil
}

// together lets goroutines work at the same time, each with its number, and
// takes the time until the last has done.
func together(goroutines int, work func(i int)) (took time.Duration, allocs float64) {
	begin := make(chan struct{})
	var ready, done sync.WaitGroup
	ready.Add(goroutines)
	for i := range goroutines {
		done.Go(func() {
			ready.Done()
			<-begin
			work(i)
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
	return took, float64(after.Mallocs - before.Mallocs)
}

// plan is how thoroughly to measure.
type plan struct {
	rounds int
	slice  time.Duration // how long a contender works before it is the next one's turn
	turn   time.Duration // the same where calls are slow

	span time.Duration // how long a contender works that is measured once
	keys int           // a million, where a row has as many

	database string // the connection string of a server, for rows that need one
}

var (
	thorough = plan{
		rounds: 9, slice: 30 * time.Millisecond, turn: 500 * time.Millisecond,
		span: 2 * time.Second, keys: 1_000_000,
	}
	quick = plan{
		rounds: 5, slice: 3 * time.Millisecond, turn: 100 * time.Millisecond,
		span: 200 * time.Millisecond, keys: 100_000,
	}
)

// measure measures a row, for each number of processors.
func (p plan) measure(ctx context.Context, area string, r row) (results []result, err error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	if r.big {
		p.rounds, p.slice = (p.rounds+1)/2, 3*p.slice // the caches are the last one's when a turn begins
	}
	if r.slow {
		p.slice = p.turn
	}
	work := p.inOneGo
	if !r.once {
		subjects, stop, err := p.subjects(ctx, r)
		defer stop()
		if err != nil {
			return nil, err
		}
		work = func(ctx context.Context, r row) ([]pairs, []float64, error) {
			return p.inPairs(ctx, r, subjects)
		}
	}
	procs := r.procs
	if procs == nil {
		procs = procCounts()
	}
	for _, n := range procs {
		runtime.GOMAXPROCS(n)
		pairs, floor, err := work(ctx, r)
		if err != nil {
			return results, fmt.Errorf("procs %d: %w", n, err)
		}
		results = append(results, r.results(area, n, pairs, floor)...)
	}
	return results, nil
}

// others are all that ours is paired with.
func (r row) others() []contender { return slices.Concat(r.peers, r.aside) }

// all are ours, the others, and the floor if there is one.
func (r row) all() []contender {
	all := append([]contender{r.ours}, r.others()...)
	if r.floor.start != nil {
		all = append(all, r.floor)
	}
	return all
}

func (p plan) subjects(ctx context.Context, r row) (subjects []measure, stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, s := range stops {
			s()
		}
	}
	for _, c := range r.all() {
		m, s, err := c.start(ctx, p)
		if err != nil {
			return nil, stop, fmt.Errorf("%s: %w", c.name, err)
		}
		stops = append(stops, s)
		subjects = append(subjects, m)
	}
	return subjects, stop, nil
}

// inPairs runs, in each round, ours and another in turn for each of the others,
// and the floor. Who is first changes from round to round.
func (p plan) inPairs(ctx context.Context, r row, subjects []measure) ([]pairs, []float64, error) {
	all := r.all()
	turn := func(i int) (sample, error) {
		if err := ctx.Err(); err != nil {
			return sample{}, err
		}
		if !r.big {
			runtime.GC() // nobody pays for another's garbage
		}
		s, err := subjects[i](p.slice)
		if err != nil {
			err = fmt.Errorf("%s: %w", all[i].name, err)
		}
		return s, err
	}
	for i := range all { // warm
		if _, err := turn(i); err != nil {
			return nil, nil, err
		}
	}
	pairs := make([]pairs, len(r.others()))
	var floor []float64
	for round := range p.rounds {
		for i := range pairs {
			first, second := 0, 1+i
			if round%2 == 1 {
				first, second = second, first
			}
			a, err := turn(first)
			if err != nil {
				return nil, nil, err
			}
			b, err := turn(second)
			if err != nil {
				return nil, nil, err
			}
			if round%2 == 1 {
				a, b = b, a
			}
			pairs[i].add(a, b)
		}
		if len(all) > 1+len(pairs) {
			s, err := turn(len(all) - 1)
			if err != nil {
				return nil, nil, err
			}
			floor = append(floor, s.value)
		}
	}
	return pairs, floor, nil
}

// inOneGo measures each once, one after the other.
func (p plan) inOneGo(ctx context.Context, r row) ([]pairs, []float64, error) {
	pairs := make([]pairs, len(r.others()))
	var ours sample
	var floor []float64
	for i, c := range r.all() {
		s, err := p.one(ctx, c)
		switch {
		case err != nil:
			return nil, nil, fmt.Errorf("%s: %w", c.name, err)
		case i == 0:
			ours = s
		case i <= len(pairs):
			pairs[i-1].add(ours, s)
		default:
			floor = append(floor, s.value)
		}
	}
	return pairs, floor, nil
}

func (p plan) one(ctx context.Context, c contender) (sample, error) {
	if err := ctx.Err(); err != nil {
		return sample{}, err
	}
	m, stop, err := c.start(ctx, p)
	if err != nil {
		return sample{}, err
	}
	defer stop()
	runtime.GC()
	return m(p.span)
}

// procCounts are one, two and four processors, and all of them. There may be
// more than the machine has.
func procCounts() []int {
	if n := runtime.NumCPU(); n > 4 {
		return []int{1, 2, 4, n}
	}
	return []int{1, 2, 4}
}
