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

// A breaker for each host: one that is down is no reason to leave the others alone.
func ExampleGroup() {
	hosts, err := circuit.NewGroup(circuit.GroupConfig[string]{
		Config:        circuit.Config{Name: "hosts", FailureThreshold: 2},
		MaxKeys:       1000,
		OnStateChange: func(host string, from, to circuit.State) { fmt.Println(host, "is", to) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	for range 3 {
		err := core.Do(ctx, core.ForKey(hosts, "a.example"), func(context.Context) error { return errors.New("down") })
		fmt.Println(err)
	}
	fmt.Println(core.Do(ctx, core.ForKey(hosts, "b.example"), func(context.Context) error { return nil }))
	s := hosts.Stats()
	fmt.Println(s.Closed, "closed,", s.Open, "open")
	// Output:
	// down
	// a.example is open
	// down
	// circuit: open: refused by "hosts": retry after 30s
	// <nil>
	// 1 closed, 1 open
}

func ExampleGroup_Get() {
	hosts, _ := circuit.NewGroup(circuit.GroupConfig[string]{})
	hosts.Get("a.example").ForceOpen(0)
	for host, breaker := range hosts.All() {
		fmt.Println(host, breaker.State())
	}
	// Output: a.example forced_open
}

// While the other side accepts half of the calls or more, all are made. Then some
// are refused here instead of there.
func ExampleThrottle() {
	inVirtualTime(func() {
		throttle, err := circuit.NewThrottle(circuit.ThrottleConfig{Name: "search", K: 2, Window: 10 * time.Second})
		if err != nil {
			panic(err)
		}
		call := func(o core.Outcome) {
			permit, err := throttle.Acquire(context.Background(), core.Call{})
			if err != nil {
				fmt.Println(err)
				return
			}
			permit.Done(context.Background(), o)
		}
		for range 10 {
			call(core.Success)
		}
		for range 11 {
			call(core.Failure)
		}
		s := throttle.Stats()
		fmt.Printf("%d accepted of %d, the next is refused with probability %.3f\n", s.Accepts, s.Requests, s.RefusedPart)
		time.Sleep(10 * time.Second)
		fmt.Println(throttle.Stats().Requests, "in a window later")
	})
	// Output:
	// 10 accepted of 21, the next is refused with probability 0.045
	// 0 in a window later
}
