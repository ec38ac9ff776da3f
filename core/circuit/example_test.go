package circuit_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
)

func Example() {
	breaker, err := circuit.New(circuit.Config{Name: "payments", FailureThreshold: 3})
	if err != nil {
		fmt.Println(err)
		return
	}
	charge := func(context.Context) error { return errors.New("connection refused") }
	for range 5 {
		err := core.Do(context.Background(), breaker, charge)
		if errors.Is(err, circuit.ErrOpen) {
			fmt.Println("not called")
			continue
		}
		fmt.Println(err)
	}
	// Output:
	// connection refused
	// connection refused
	// connection refused
	// not called
	// not called
}

func ExampleNew() {
	_, err := circuit.New(circuit.Config{FailureThreshold: -2, OpenFor: -1})
	fmt.Println(err)
	// Output:
	// circuit.Config.FailureThreshold: -2: must be 1 to 10000, or 0 for the default
	// circuit.Config.OpenFor: -1ns: must be above 0, or 0 for the default
}

func ExampleNew_callbacks() {
	breaker, err := circuit.New(circuit.Config{
		FailureThreshold: 2,
		OnSuccess:        func(core.Result) { fmt.Println("a call succeeded") },
		OnFailure:        func(r core.Result) { fmt.Println("a call failed:", r.Err) },
		OnStateChange:    func(from, to circuit.State) { fmt.Println("the breaker went from", from, "to", to) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	down := errors.New("no route to host")
	for _, answer := range []error{nil, down, down} {
		_ = core.Do(ctx, breaker, func(context.Context) error { return answer })
	}
	// Output:
	// a call succeeded
	// a call failed: no route to host
	// a call failed: no route to host
	// the breaker went from closed to open
}

// The two steps are for calls that do not fit into a function: one that begins
// in one place and ends in another.
func ExampleBreaker_Acquire() {
	breaker, err := circuit.New(circuit.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	permit, err := breaker.Acquire(ctx, core.Call{})
	if err != nil {
		fmt.Println(err) // a *core.Rejection: the call must not be made
		return
	}
	permit.DoneErr(ctx, errors.New("reset by peer"))

	fmt.Println(breaker.State(), breaker.Stats().FailuresInARow)
	// Output: closed 1
}
