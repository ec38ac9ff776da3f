package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// stormRows: all resources are out, a thousand goroutines wait, and all give up
// at once. The time of one of them is from when the first asks to when the last
// has its error, by their number; the further figure is what of that comes after
// they give up. Then every resource must be there to be lent.
var stormRows = []row{{
	name:  "1,000 waiters give up",
	also:  []extra{{"since they did", "ns", less}},
	ours:  contender{name: "Pool", start: storm.inStorm(oursOf)},
	peers: storm.all(use.inStorm),
	floor: contender{name: "channel", start: storm.inStorm(channelOf)},
}}

var storm = use{resources: 10, goroutines: 1000}

func (u use) inStorm(make newLender) start {
	return func(context.Context, plan) (measure, func(), error) {
		l := make(u.resources)
		return func(d time.Duration) (sample, error) {
			s, err := u.storms(l, d)
			if err == nil {
				err = u.allThere(l)
			}
			return s, err
		}, l.stop, nil
	}
}

// storms is one storm after the other for d.
func (u use) storms(l lender, d time.Duration) (sample, error) {
	release := u.takeAll(l)
	defer release()
	tickets := make([]chan context.Context, u.goroutines)
	var asking atomic.Int64
	var wrong atomic.Pointer[error]
	var workers, waiting sync.WaitGroup
	for i := range tickets {
		tickets[i] = make(chan context.Context, 1)
		workers.Go(func() {
			for ctx := range tickets[i] {
				asking.Add(1)
				if _, err := l.lend(ctx, 1, nil); !errors.Is(err, context.Canceled) {
					wrong.Store(&err)
				}
				waiting.Done()
			}
		})
	}
	defer workers.Wait()
	defer func() {
		for _, t := range tickets {
			close(t)
		}
	}()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var n int
	var whole, since time.Duration
	for n = 0; n == 0 || whole < d; n++ {
		ctx, cancel := context.WithCancel(context.Background())
		asking.Store(0)
		waiting.Add(u.goroutines)
		began := time.Now()
		for _, t := range tickets {
			t <- ctx
		}
		for asking.Load() < int64(u.goroutines) {
			runtime.Gosched()
		}
		gaveUp := time.Now()
		cancel()
		waiting.Wait()
		since += time.Since(gaveUp)
		whole += time.Since(began)
		if err := wrong.Load(); err != nil {
			return sample{}, fmt.Errorf("a waiter was told %w", *err)
		}
	}
	runtime.ReadMemStats(&after)
	waiters := float64(n * u.goroutines)
	return sample{
		value: float64(whole) / waiters, allocs: float64(after.Mallocs-before.Mallocs) / waiters,
		also: []float64{float64(since) / waiters},
	}, nil
}

// takeAll lends every resource until release is called.
func (u use) takeAll(l lender) (release func()) {
	var taken, done sync.WaitGroup
	over := make(chan struct{})
	taken.Add(u.resources)
	for range u.resources {
		done.Go(func() {
			_, _ = l.lend(context.Background(), 1, func() {
				taken.Done()
				<-over
			})
		})
	}
	taken.Wait()
	return func() {
		close(over)
		done.Wait()
	}
}

// allThere checks that every resource can be lent at the same time.
func (u use) allThere(l lender) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var all sync.WaitGroup
	all.Add(u.resources)
	var failed atomic.Pointer[error]
	var done sync.WaitGroup
	for range u.resources {
		done.Go(func() {
			_, err := l.lend(ctx, 1, func() {
				all.Done()
				all.Wait()
			})
			if err != nil {
				failed.Store(&err)
				all.Done()
			}
		})
	}
	done.Wait()
	if err := failed.Load(); err != nil {
		return fmt.Errorf("a resource was lost: %w", *err)
	}
	return nil
}
