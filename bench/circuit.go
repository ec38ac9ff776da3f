package main

import (
	"context"
	"errors"
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/afex/hystrix-go/hystrix"
	eapachebreaker "github.com/eapache/go-resiliency/breaker"
	failsafego "github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/sony/gobreaker/v2"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
)

const (
	sony      = "github.com/sony/gobreaker/v2"
	eapache   = "github.com/eapache/go-resiliency"
	hystrixGo = "github.com/afex/hystrix-go"
)

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
			{"failsafe-go", failsafe, lone(func() func(int) int { return recorded(failsafeBreaker()) })},
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
			{"failsafe-go executor", failsafe, lone(func() func(int) int { return executor(0) })},
			{"hystrix-go", hystrixGo, lone(func() func(int) int { return commanded(0) })},
		},
		aside: []contender{{"eapache", eapache, lone(func() func(int) int { return ran(0) })}},
		floor: loadAndCount,
	},
	{
		// eapache keeps no statistics, has no leases and says nothing of when to
		// try again.
		name: "closed, function, uncounted",
		ours: contender{name: "core.Do", start: lone(func() func(int) int {
			return done(broken(circuit.Config{FailureThreshold: failures, OpenFor: day, Uncounted: true}, 0))
		})},
		peers: []contender{{"eapache", eapache, lone(func() func(int) int { return ran(0) })}},
		floor: loadAndCount,
	},
	{
		name: "closed, permit, uncounted",
		ours: contender{name: "Breaker.Acquire", start: lone(func() func(int) int {
			return acquired(broken(circuit.Config{FailureThreshold: failures, OpenFor: day, Uncounted: true}, 0))
		})},
		peers: []contender{{"eapache", eapache, lone(func() func(int) int { return ran(0) })}},
		floor: loadAndCount,
	},
	{
		name: "closed, permit, window of 10 s",
		ours: contender{name: "Breaker.Acquire", start: lone(func() func(int) int {
			return acquired(broken(circuit.Config{FailurePercent: 50}, 0))
		})},
		peers: []contender{
			{"gobreaker TwoStep", sony, lone(func() func(int) int { return twoSteps(sonyRolling, 0) })},
			{"failsafe-go", failsafe, lone(func() func(int) int {
				return recorded(circuitbreaker.NewBuilder[any]().WithFailureRateThreshold(0.5, 20, 10*time.Second).Build())
			})},
		},
		aside: []contender{
			{"with slow calls", "", lone(func() func(int) int {
				return acquired(broken(circuit.Config{FailurePercent: 50, SlowPercent: 50, SlowCall: time.Second}, 0))
			})},
			{"Throttle", "", lone(func() func(int) int {
				t, err := circuit.NewThrottle(circuit.ThrottleConfig{})
				if err != nil {
					panic(err)
				}
				return acquired(t)
			})},
		},
		floor: twoClocksAndCount,
	},
	{
		name: "closed, permit, window of 100 calls",
		ours: contender{name: "Breaker.Acquire", start: lone(func() func(int) int {
			return acquired(broken(circuit.Config{FailurePercent: 50, WindowCalls: 100}, 0))
		})},
		peers: []contender{
			{"failsafe-go", failsafe, lone(func() func(int) int {
				return recorded(circuitbreaker.NewBuilder[any]().WithFailureThresholdRatio(50, 100).Build())
			})},
		},
		floor: twoClocksAndCount,
	},
	{
		// One of ten fails, which is not enough to open it.
		name: "closed, permit, window of 10 s, some fail",
		ours: contender{name: "Breaker.Acquire", start: lone(func() func(int) int {
			return someFail(broken(circuit.Config{FailurePercent: 50}, 0))
		})},
		peers: []contender{
			{"gobreaker TwoStep", sony, lone(func() func(int) int {
				cb := gobreaker.NewTwoStepCircuitBreaker[struct{}](sonyRolling)
				return func(n int) (good int) {
					for i := range n {
						if done, err := cb.Allow(); err == nil {
							if i%10 == 9 {
								done(errDown)
							} else {
								done(nil)
							}
							good++
						}
					}
					return good
				}
			})},
			{"failsafe-go", failsafe, lone(func() func(int) int {
				cb := circuitbreaker.NewBuilder[any]().WithFailureRateThreshold(0.5, 20, 10*time.Second).Build()
				return func(n int) (good int) {
					for i := range n {
						if cb.TryAcquirePermit() {
							if i%10 == 9 {
								cb.RecordFailure()
							} else {
								cb.RecordSuccess()
							}
							good++
						}
					}
					return good
				}
			})},
		},
		floor: twoClocksAndCount,
	},
	{
		name: "closed, one of 1,000 keys, permit",
		ours: contender{name: "Group.AcquireKey", start: lone(func() func(int) int {
			g, err := circuit.NewGroup(circuit.GroupConfig[string]{})
			if err != nil {
				panic(err)
			}
			ctx, keys := context.Background(), names("host-", 1000)
			return func(n int) (admitted int) {
				for i := range n {
					if p, err := g.AcquireKey(ctx, keys[i%len(keys)], core.Call{}); err == nil {
						p.Done(ctx, core.Success)
						admitted++
					}
				}
				return admitted
			}
		})},
		peers: []contender{
			{"gobreaker, sync.Map", sony, lone(func() func(int) int {
				var m sync.Map
				keys := names("host-", 1000)
				for _, key := range keys {
					m.Store(key, gobreaker.NewTwoStepCircuitBreaker[struct{}](sonySettings))
				}
				return func(n int) (admitted int) {
					for i := range n {
						cb, _ := m.Load(keys[i%len(keys)])
						if done, err := cb.(*gobreaker.TwoStepCircuitBreaker[struct{}]).Allow(); err == nil {
							done(nil)
							admitted++
						}
					}
					return admitted
				}
			})},
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
			{"failsafe-go executor", failsafe, lone(func() func(int) int {
				loop := executor(failures)
				return func(n int) int { return n - loop(n) }
			})},
			{"hystrix-go", hystrixGo, lone(func() func(int) int {
				loop := commanded(100)
				return func(n int) int { return n - loop(n) }
			})},
		},
		aside: []contender{{"eapache", eapache, lone(func() func(int) int {
			loop := ran(failures)
			return func(n int) int { return n - loop(n) }
		})}},
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

// twoClocksAndCount: when a call begins and when it ends, and its success counted
// where no other processor writes.
var twoClocksAndCount = contender{name: "2 clocks+own add", start: lone(func() func(int) int {
	epoch := time.Now()
	return func(n int) (good int) {
		var own atomic.Uint64
		for range n {
			began := time.Since(epoch)
			if time.Since(epoch) >= began {
				own.Add(1)
				good++
			}
		}
		return good
	}
})}

// breaker has seen that many failures.
func breaker(failed int) *circuit.Breaker {
	return broken(circuit.Config{FailureThreshold: failures, OpenFor: day}, failed)
}

func broken(cfg circuit.Config, failed int) *circuit.Breaker {
	b, err := circuit.New(cfg)
	if err != nil {
		panic(err)
	}
	for range failed {
		_ = core.Do(context.Background(), b, func(context.Context) error { return errDown })
	}
	return b
}

func acquired(b core.Guard) func(int) int {
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

func someFail(b *circuit.Breaker) func(int) int {
	ctx := context.Background()
	return func(n int) (admitted int) {
		for i := range n {
			if p, err := b.Acquire(ctx, core.Call{}); err == nil {
				o := core.Success
				if i%10 == 9 {
					o = core.Failure
				}
				p.Done(ctx, o)
				admitted++
			}
		}
		return admitted
	}
}

// sonyRolling is half of the calls of ten seconds.
var sonyRolling = gobreaker.Settings{
	Interval: 10 * time.Second, BucketPeriod: time.Second, Timeout: day,
	ReadyToTrip: func(c gobreaker.Counts) bool { return c.Requests >= 20 && c.TotalFailures*2 >= c.Requests },
}

var sonySettings = gobreaker.Settings{
	Timeout:     day,
	ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= failures },
}

func twoStep(failed int) func(int) int { return twoSteps(sonySettings, failed) }

func twoSteps(settings gobreaker.Settings, failed int) func(int) int {
	cb := gobreaker.NewTwoStepCircuitBreaker[struct{}](settings)
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

func recorded(cb circuitbreaker.CircuitBreaker[any]) func(int) int {
	return func(n int) (good int) {
		for range n {
			if cb.TryAcquirePermit() {
				cb.RecordSuccess()
				good++
			}
		}
		return good
	}
}

func executor(failed int) func(int) int {
	e := failsafego.With(failsafeBreaker())
	for range failed {
		_ = e.Run(func() error { return errDown })
	}
	succeed := func() error { return nil }
	return func(n int) (admitted int) {
		for range n {
			if e.Run(succeed) == nil {
				admitted++
			}
		}
		return admitted
	}
}

func ran(failed int) func(int) int {
	b := eapachebreaker.New(failures, 1, day)
	for range failed {
		_ = b.Run(func() error { return errDown })
	}
	succeed := func() error { return nil }
	return func(n int) (admitted int) {
		for range n {
			if b.Run(succeed) == nil {
				admitted++
			}
		}
		return admitted
	}
}

var commands atomic.Uint64 // hystrix-go keeps its circuits by name, for good

func commanded(failed int) func(int) int {
	name := strconv.FormatUint(commands.Add(1), 10)
	volume := 20
	if failed == 0 {
		volume = math.MaxInt // or it opens, since calls wait longer than it likes
	}
	hystrix.ConfigureCommand(name, hystrix.CommandConfig{
		MaxConcurrentRequests: 10_000, SleepWindow: int(day / time.Millisecond), Timeout: 60_000, ErrorPercentThreshold: 50,
		RequestVolumeThreshold: volume,
	})
	for range failed {
		_ = hystrix.Do(name, func() error { return errDown }, nil)
	}
	if failed > 0 {
		// It books results in the background.
		for cb, _, err := hystrix.GetCircuit(name); err == nil && !cb.IsOpen(); {
			time.Sleep(time.Millisecond)
		}
	}
	succeed := func() error { return nil }
	return func(n int) (admitted int) {
		for range n {
			if hystrix.Do(name, succeed, nil) == nil {
				admitted++
			}
		}
		return admitted
	}
}

func failsafeBreaker() circuitbreaker.CircuitBreaker[any] {
	return circuitbreaker.NewBuilder[any]().WithFailureThreshold(failures).WithDelay(day).Build()
}
