package main

import (
	"context"
	"runtime"
	"sync/atomic"

	"github.com/jackc/puddle/v2"

	"github.com/surgewall/surgewall/core/pool"
)

const jackc = "github.com/jackc/puddle/v2"

const (
	poolSize  = 10
	crowdSize = 40 // goroutines, where there are more than resources
)

// A resource costs nothing to make. In the contended rows, 40 goroutines want 10
// resources: they give each back at once, or let others run first, so that all
// resources are out and the rest has to wait.
var poolRows = []row{
	{
		name:  "uncontended",
		ours:  contender{name: "Pool", start: calls(0, func() (func(int) int, func()) { return ours(false) })},
		peers: []contender{{"puddle", jackc, calls(0, func() (func(int) int, func()) { return puddles(false) })}},
		floor: contender{name: "2 CAS", start: lone(func() func(int) int {
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
		})},
	},
	{
		name:  "contended",
		ours:  contender{name: "Pool", start: calls(crowdSize, func() (func(int) int, func()) { return ours(false) })},
		peers: []contender{{"puddle", jackc, calls(crowdSize, func() (func(int) int, func()) { return puddles(false) })}},
		floor: contender{name: "channel", start: calls(crowdSize, func() (func(int) int, func()) { return channel(false) })},
	},
	{
		name:  "contended, all out",
		ours:  contender{name: "Pool", start: calls(crowdSize, func() (func(int) int, func()) { return ours(true) })},
		peers: []contender{{"puddle", jackc, calls(crowdSize, func() (func(int) int, func()) { return puddles(true) })}},
		floor: contender{name: "channel", start: calls(crowdSize, func() (func(int) int, func()) { return channel(true) })},
	},
}

func ours(hold bool) (loop func(int) int, stop func()) {
	ctx := context.Background()
	p, err := pool.New(pool.Config[int]{
		Dial:    func(context.Context) (int, error) { return 1, nil },
		Max:     poolSize,
		MinIdle: poolSize,
	})
	if err != nil {
		panic(err)
	}
	return func(n int) (good int) {
		for range n {
			l, err := p.Acquire(ctx)
			if err != nil {
				continue
			}
			good += l.Value()
			if hold {
				runtime.Gosched()
			}
			l.Release()
		}
		return good
	}, func() { _ = p.Close(ctx) }
}

func puddles(hold bool) (loop func(int) int, stop func()) {
	ctx := context.Background()
	p, err := puddle.NewPool(&puddle.Config[int]{
		Constructor: func(context.Context) (int, error) { return 1, nil },
		Destructor:  func(int) {},
		MaxSize:     poolSize,
	})
	if err != nil {
		panic(err)
	}
	for range poolSize {
		_ = p.CreateResource(ctx)
	}
	return func(n int) (good int) {
		for range n {
			r, err := p.Acquire(ctx)
			if err != nil {
				continue
			}
			good += r.Value()
			if hold {
				runtime.Gosched()
			}
			r.Release()
		}
		return good
	}, p.Close
}

// channel is a pool that can do nothing but hand out: a buffered channel.
func channel(hold bool) (loop func(int) int, stop func()) {
	free := make(chan int, poolSize)
	for range poolSize {
		free <- 1
	}
	return func(n int) (good int) {
		for range n {
			v := <-free
			good += v
			if hold {
				runtime.Gosched()
			}
			free <- v
		}
		return good
	}, func() {}
}
