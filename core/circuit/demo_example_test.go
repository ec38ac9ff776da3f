package circuit_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
)

// inVirtualTime runs f in a bubble in which time passes only when all sleep, so
// that what it prints is exact.
func inVirtualTime(f func()) {
	synctest.Test(new(testing.T), func(*testing.T) { f() })
}

// A service whose first five calls fail, behind a breaker that opens at the third
// failure, for two seconds, and closes after two successes. It is called every
// half second, and three times after a rest.
func ExampleBreaker() {
	inVirtualTime(func() {
		breaker, err := circuit.New(circuit.Config{FailureThreshold: 3, OpenFor: 2 * time.Second, SuccessThreshold: 2})
		if err != nil {
			panic(err)
		}
		served := 0
		service := core.Wrap(breaker, func(context.Context, string) (string, error) {
			if served++; served <= 5 {
				return "", errors.New("service failed")
			}
			return "served", nil
		})
		start := time.Now()
		call := func() {
			answer, err := service(context.Background(), "request")
			fmt.Println(time.Since(start), breaker.State(), answer, err)
			time.Sleep(500 * time.Millisecond)
		}
		for range 10 {
			call()
		}
		for range 3 {
			time.Sleep(3 * time.Second)
			call()
		}
	})
	// Output:
	// 0s closed  service failed
	// 500ms closed  service failed
	// 1s open  service failed
	// 1.5s open  circuit: open: refused by "breaker": retry after 1.5s
	// 2s open  circuit: open: refused by "breaker": retry after 1s
	// 2.5s open  circuit: open: refused by "breaker": retry after 500ms
	// 3s open  service failed
	// 3.5s open  circuit: open: refused by "breaker": retry after 1.5s
	// 4s open  circuit: open: refused by "breaker": retry after 1s
	// 4.5s open  circuit: open: refused by "breaker": retry after 500ms
	// 8s open  service failed
	// 11.5s half_open served <nil>
	// 15s closed served <nil>
}

// Callbacks, with a threshold of two.
func ExampleBreaker_callbacks() {
	inVirtualTime(func() {
		breaker, err := circuit.New(circuit.Config{
			FailureThreshold: 2, SuccessThreshold: 1, OpenFor: time.Second,
			OnSuccess:     func(r core.Result) { fmt.Println("success") },
			OnFailure:     func(r core.Result) { fmt.Println("failure:", r.Err) },
			OnStateChange: func(from, to circuit.State) { fmt.Println(from, "->", to) },
		})
		if err != nil {
			panic(err)
		}
		for _, answer := range []error{nil, errors.New("down"), errors.New("down"), nil} {
			_ = core.Do(context.Background(), breaker, func(context.Context) error { return answer })
		}
		time.Sleep(time.Second)
		_ = core.Do(context.Background(), breaker, func(context.Context) error { return nil })
	})
	// Output:
	// success
	// failure: down
	// failure: down
	// closed -> open
	// open -> half_open
	// success
	// half_open -> closed
}

// Half of the calls within ten seconds, once there have been twenty of them.
func ExampleConfig_rates() {
	inVirtualTime(func() {
		breaker, err := circuit.New(circuit.Config{
			FailureThreshold: circuit.Off, FailurePercent: 50, // of the 20 or more calls in 10 s
			SlowPercent: 80, SlowCall: 2 * time.Second,
		})
		if err != nil {
			panic(err)
		}
		for i := range 20 {
			_ = core.Do(context.Background(), breaker, func(context.Context) error {
				time.Sleep(100 * time.Millisecond)
				if i%2 == 0 {
					return errors.New("down")
				}
				return nil
			})
		}
		s := breaker.Stats()
		fmt.Println(s.State, s.Failures, s.Successes)
	})
	// Output: open 10 10
}

// After an outage, a part of the calls is let in first.
func ExampleConfig_ramp() {
	inVirtualTime(func() {
		breaker, err := circuit.New(circuit.Config{
			FailureThreshold: 1, OpenFor: time.Second, SuccessThreshold: 1, RampFor: 30 * time.Second,
		})
		if err != nil {
			panic(err)
		}
		ctx := context.Background()
		_ = core.Do(ctx, breaker, func(context.Context) error { return errors.New("down") })
		time.Sleep(time.Second)
		_ = core.Do(ctx, breaker, func(context.Context) error { return nil })
		for range 4 {
			admitted := 0
			for range 100 {
				if core.Do(ctx, breaker, func(context.Context) error { return nil }) == nil {
					admitted++
				}
			}
			fmt.Println(breaker.State(), admitted)
			time.Sleep(10 * time.Second)
		}
	})
	// Output:
	// closed 10
	// closed 25
	// closed 50
	// closed 100
}

// Somebody takes a broken service out by hand.
func ExampleBreaker_ForceOpen() {
	inVirtualTime(func() {
		breaker, _ := circuit.New(circuit.Config{Name: "search"})
		breaker.ForceOpen(10 * time.Minute)
		_, err := breaker.Acquire(context.Background(), core.Call{})
		fmt.Println(breaker.State(), err)
		breaker.ClearForce()
		fmt.Println(breaker.State())
	})
	// Output:
	// forced_open circuit: open: refused by "search": retry after 10m0s
	// closed
}

// What a new setting would do, before it does it.
func ExampleBreaker_MetricsOnly() {
	breaker, _ := circuit.New(circuit.Config{FailureThreshold: 2})
	breaker.MetricsOnly()
	for range 5 {
		_ = core.Do(context.Background(), breaker, func(context.Context) error { return errors.New("down") })
	}
	s := breaker.Stats()
	fmt.Println(s.State, s.Failures, "failures,", s.WouldTrip, "times it would have opened")
	// Output: metrics_only 5 failures, 2 times it would have opened
}

// Calls go on whatever their results are, as if there were no breaker.
func ExampleBreaker_Disable() {
	breaker, _ := circuit.New(circuit.Config{FailureThreshold: 1})
	fail := func(context.Context) error { return errors.New("down") }
	breaker.Disable()
	for range 3 {
		fmt.Println(core.Do(context.Background(), breaker, fail), breaker.State())
	}
	fmt.Println(breaker.Stats().Failures, "counted")
	// Output:
	// down disabled
	// down disabled
	// down disabled
	// 0 counted
}

// Results are counted, and do not open the breaker.
func ExampleBreaker_ForceClosed() {
	breaker, _ := circuit.New(circuit.Config{FailureThreshold: 1})
	breaker.ForceClosed()
	_ = core.Do(context.Background(), breaker, func(context.Context) error { return errors.New("down") })
	fmt.Println(breaker.State(), breaker.Stats().Failures)
	// Output: forced_closed 1
}

// What a force covers comes back: this breaker is open for as long as it would have
// been.
func ExampleBreaker_ClearForce() {
	inVirtualTime(func() {
		breaker, _ := circuit.New(circuit.Config{FailureThreshold: 1, OpenFor: 30 * time.Second})
		_ = core.Do(context.Background(), breaker, func(context.Context) error { return errors.New("down") })
		breaker.ForceClosed()
		time.Sleep(10 * time.Second)
		breaker.ClearForce()
		_, err := breaker.Acquire(context.Background(), core.Call{})
		fmt.Println(breaker.State(), err)
	})
	// Output: open circuit: open: refused by "breaker": retry after 20s
}

// For a balancer, which passes over a backend that would refuse.
func ExampleBreaker_Refusal() {
	inVirtualTime(func() {
		breaker, _ := circuit.New(circuit.Config{FailureThreshold: 1})
		fmt.Println(breaker.Ready())
		_ = core.Do(context.Background(), breaker, func(context.Context) error { return errors.New("down") })
		left, _ := breaker.Refusal().RetryAfter()
		fmt.Println(breaker.Ready(), breaker.Refusal().Reason, left)
	})
	// Output:
	// true
	// false circuit_open 30s
}

func ExampleBreaker_Stats() {
	inVirtualTime(func() {
		breaker, _ := circuit.New(circuit.Config{FailurePercent: 50})
		for i := range 6 {
			_ = core.Do(context.Background(), breaker, func(context.Context) error {
				if i > 3 {
					return errors.New("down")
				}
				return nil
			})
		}
		s := breaker.Stats()
		fmt.Println(s.State, s.Successes, "succeeded,", s.FailuresInARow, "failures in a row,", s.WindowFailures, "failures of", s.WindowCalls)
	})
	// Output: closed 4 succeeded, 2 failures in a row, 2 failures of 6
}

func ExampleBreaker_Reset() {
	breaker, _ := circuit.New(circuit.Config{FailureThreshold: 1})
	_ = core.Do(context.Background(), breaker, func(context.Context) error { return errors.New("down") })
	fmt.Println(breaker.State())
	breaker.Reset()
	fmt.Println(breaker.State())
	// Output:
	// open
	// closed
}

func ExampleBreaker_Reconfigure() {
	breaker, _ := circuit.New(circuit.Config{FailureThreshold: 5})
	fail := func(context.Context) error { return errors.New("down") }
	_ = core.Do(context.Background(), breaker, fail)
	if err := breaker.Reconfigure(circuit.Config{FailureThreshold: 2}); err != nil {
		fmt.Println(err)
	}
	_ = core.Do(context.Background(), breaker, fail)
	fmt.Println(breaker.State())
	// Output: open
}
