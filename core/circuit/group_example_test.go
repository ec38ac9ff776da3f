package circuit_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
)

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

// Who gives a dead host up makes room for another: an open breaker never goes by itself.
func ExampleGroup_All() {
	hosts, _ := circuit.NewGroup(circuit.GroupConfig[string]{Config: circuit.Config{FailureThreshold: 1}})
	ctx := context.Background()
	_ = core.Do(ctx, core.ForKey(hosts, "dead.example"), func(context.Context) error { return errors.New("down") })
	for host, breaker := range hosts.All() {
		fmt.Println(host, breaker.State())
		breaker.Reset()
	}
	s := hosts.Stats()
	fmt.Println(s.Closed, "closed,", s.Open, "open")
	// Output:
	// dead.example open
	// 1 closed, 0 open
}

func ExampleGroup_AcquireKey() {
	hosts, _ := circuit.NewGroup(circuit.GroupConfig[string]{Config: circuit.Config{FailureThreshold: 1}})
	ctx := context.Background()
	for _, host := range []string{"a.example", "a.example", "b.example"} {
		permit, err := hosts.AcquireKey(ctx, host, core.Call{})
		fmt.Println(host, errors.Is(err, circuit.ErrOpen))
		permit.Done(ctx, core.Failure) // a permit that was refused is empty
	}
	// Output:
	// a.example false
	// a.example true
	// b.example false
}

func ExampleGroup_Reconfigure() {
	hosts, _ := circuit.NewGroup(circuit.GroupConfig[string]{})
	fail := func() {
		_ = core.Do(context.Background(), core.ForKey(hosts, "a.example"), func(context.Context) error { return errors.New("down") })
	}
	fail()
	if err := hosts.Reconfigure(circuit.Config{FailureThreshold: 2}); err != nil {
		fmt.Println(err)
	}
	fail()
	fmt.Println(hosts.Get("a.example").State())
	// Output: open
}

func ExampleNewGroup() {
	_, err := circuit.NewGroup(circuit.GroupConfig[string]{MaxKeys: -1, Config: circuit.Config{OpenFor: -1}})
	fmt.Println(err)
	// Output:
	// circuit.GroupConfig.MaxKeys: -1: must be 1 to 1000000, or 0 for the default
	// circuit.Config.OpenFor: -1ns: must be above 0, or 0 for the default
}

func ExampleNewThrottle() {
	_, err := circuit.NewThrottle(circuit.ThrottleConfig{K: 0.5})
	fmt.Println(err)
	// Output: circuit.ThrottleConfig.K: 0.5: must be 1 to 100, or 0 for the default
}

// A throttle in front of a breaker: the one for a service that is down in part, the
// other for one that is down.
func ExampleThrottle_chain() {
	throttle, err := circuit.NewThrottle(circuit.ThrottleConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	breaker, err := circuit.New(circuit.Config{FailureThreshold: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	breaker.ForceOpen(0)
	guard := core.Chain(throttle, breaker)
	for range 10 {
		if err := core.Do(context.Background(), guard, func(context.Context) error { return nil }); !errors.Is(err, circuit.ErrOpen) {
			fmt.Println(err)
		}
	}
	fmt.Println(throttle.Stats().Requests, "requests count") // the breaker refused them
	// Output: 0 requests count
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
