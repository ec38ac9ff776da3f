package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/sony/gobreaker/v2"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
)

const sony = "github.com/sony/gobreaker/v2"

// All breakers open at the fifth failure in a row and stay open for a day. A
// permit is asking before the work and telling how it ended; a function is one
// call that does both around a function which succeeds.
var circuitRows = []row{
	{
		name: "closed, permit",
		ours: contender{name: "Breaker.Acquire", start: lone(func() func(int) int {
			return acquired(breaker(0))
		})},
		peers: []contender{
			{"gobreaker TwoStep", sony, lone(func() func(int) int { return twoStep(0) })},
			{"failsafe-go", failsafe, lone(func() func(int) int {
				cb := failsafeBreaker()
				return func(n int) (good int) {
					for range n {
						if cb.TryAcquirePermit() {
							cb.RecordSuccess()
							good++
						}
					}
					return good
				}
			})},
		},
		floor: loadAndCount,
	},
	{
		name: "closed, function",
		ours: contender{name: "core.Do", start: lone(func() func(int) int {
			return done(breaker(0))
		})},
		peers: []contender{
			{"gobreaker", sony, lone(func() func(int) int { return executed(0) })},
		},
		floor: loadAndCount,
	},
	{
		name: "open, permit",
		ours: contender{name: "Breaker.Acquire", start: lone(func() func(int) int {
			loop := acquired(breaker(failures))
			return func(n int) int { return n - loop(n) }
		})},
		peers: []contender{
			{"gobreaker TwoStep", sony, lone(func() func(int) int {
				loop := twoStep(failures)
				return func(n int) int { return n - loop(n) }
			})},
			{"failsafe-go", failsafe, lone(func() func(int) int {
				cb := failsafeBreaker()
				cb.Open()
				return func(n int) (good int) {
					for range n {
						if !cb.TryAcquirePermit() {
							good++
						}
					}
					return good
				}
			})},
		},
		floor: clockAndLoad,
	},
	{
		name: "open, function",
		ours: contender{name: "core.Do", start: lone(func() func(int) int {
			loop := done(breaker(failures))
			return func(n int) int { return n - loop(n) }
		})},
		peers: []contender{
			{"gobreaker", sony, lone(func() func(int) int {
				loop := executed(failures)
				return func(n int) int { return n - loop(n) }
			})},
		},
		floor: clockAndLoad,
	},
}

const failures = 5 // what opens a breaker

var errDown = errors.New("down")

// loadAndCount: the state is read, and the success counted where no other
// processor writes.
var loadAndCount = contender{name: "load+own add", start: lone(func() func(int) int {
	var state atomic.Uint64
	return func(n int) (good int) {
		var own atomic.Uint64
		for range n {
			if state.Load() == 0 {
				own.Add(1)
				good++
			}
		}
		return good
	}
})}

// clockAndLoad: it is read until when the breaker is open, and whether that is
// over.
var clockAndLoad = contender{name: "clock+load", start: lone(func() func(int) int {
	var until atomic.Int64
	until.Store(int64(day))
	epoch := time.Now()
	return func(n int) (good int) {
		for range n {
			if until.Load() > int64(time.Since(epoch)) {
				good++
			}
		}
		return good
	}
})}

// breaker has seen that many failures.
func breaker(failed int) *circuit.Breaker {
	b, err := circuit.New(circuit.Config{FailureThreshold: failures, OpenFor: day})
	if err != nil {
		panic(err)
	}
	for range failed {
		_ = core.Do(context.Background(), b, func(context.Context) error { return errDown })
	}
	return b
}

func acquired(b *circuit.Breaker) func(int) int {
	ctx := context.Background()
	return func(n int) (admitted int) {
		for range n {
			if p, err := b.Acquire(ctx, core.Call{}); err == nil {
				p.Done(ctx, core.Success)
				admitted++
			}
		}
		return admitted
	}
}

func done(b *circuit.Breaker) func(int) int {
	ctx := context.Background()
	succeed := func(context.Context) error { return nil }
	return func(n int) (admitted int) {
		for range n {
			if core.Do(ctx, b, succeed) == nil {
				admitted++
			}
		}
		return admitted
	}
}

var sonySettings = gobreaker.Settings{
	Timeout:     day,
	ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= failures },
}

func twoStep(failed int) func(int) int {
	cb := gobreaker.NewTwoStepCircuitBreaker[struct{}](sonySettings)
	for range failed {
		if done, err := cb.Allow(); err == nil {
			done(errDown)
		}
	}
	return func(n int) (admitted int) {
		for range n {
			if done, err := cb.Allow(); err == nil {
				done(nil)
				admitted++
			}
		}
		return admitted
	}
}

func executed(failed int) func(int) int {
	cb := gobreaker.NewCircuitBreaker[struct{}](sonySettings)
	for range failed {
		_, _ = cb.Execute(func() (struct{}, error) { return struct{}{}, errDown })
	}
	succeed := func() (struct{}, error) { return struct{}{}, nil }
	return func(n int) (admitted int) {
		for range n {
			if _, err := cb.Execute(succeed); err == nil {
				admitted++
			}
		}
		return admitted
	}
}

func failsafeBreaker() circuitbreaker.CircuitBreaker[any] {
	return circuitbreaker.NewBuilder[any]().WithFailureThreshold(failures).WithDelay(day).Build()
}
