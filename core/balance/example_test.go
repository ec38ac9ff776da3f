package balance_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
)

func ExampleNew() {
	backends, err := balance.New(balance.Config[string]{
		Name: "payments",
		Backends: []balance.Backend[string]{
			{ID: "eu-1", Value: "http://10.0.0.1:8080"},
			{ID: "eu-2", Value: "http://10.0.0.2:8080"},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	for range 4 {
		_ = backends.Do(ctx, func(ctx context.Context, address string) error {
			return nil // call the address
		})
	}
	for _, s := range backends.Stats().Backends {
		fmt.Println(s.ID, s.Picks, s.Successes, s.InFlight)
	}
	// Output:
	// eu-1 2 2 0
	// eu-2 2 2 0
}

func ExampleBalancer_Pick() {
	backends, err := balance.New(balance.Config[string]{
		Backends: []balance.Backend[string]{{ID: "a"}, {ID: "b"}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	// A call that fails is made once more, on a backend that was not tried.
	var tried balance.Tried
	for {
		lease, err := backends.Pick(ctx, balance.PickInfo{Tried: &tried})
		if err != nil {
			fmt.Println(errors.Is(err, balance.ErrAllTried))
			break
		}
		lease.MarkTried(&tried)
		lease.Done(ctx, core.Failure)
	}
	fmt.Println(backends.Stats().Backends[0].Failures, backends.Stats().Backends[1].Failures)
	// Output:
	// true
	// 1 1
}

func ExampleBalancer_Do() {
	backends, err := balance.New(balance.Config[string]{
		Backends: []balance.Backend[string]{{ID: "a", Value: "pool of a"}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = backends.Do(context.Background(), func(ctx context.Context, v string) error {
		fmt.Println("calling the", v)
		return errors.New("connection reset")
	})
	fmt.Println(err)
	fmt.Println(backends.Stats().Backends[0].Failures)
	// Output:
	// calling the pool of a
	// connection reset
	// 1
}

func ExampleBalancer_SetHealthy() {
	backends, err := balance.New(balance.Config[int]{
		Backends: []balance.Backend[int]{{ID: "a", Value: 1}, {ID: "b", Value: 2}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	backends.SetHealthy("a", false)
	backends.SetHealthy("b", false)
	_, err = backends.Pick(context.Background(), balance.PickInfo{})
	fmt.Println(err)
	// Output:
	// balance: no healthy backend: refused by "balancer" (2 backends, 2 marked unhealthy)
}

func ExampleBalancer_Update() {
	backends, err := balance.New(balance.Config[int]{AllowEmpty: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = backends.Pick(context.Background(), balance.PickInfo{})
	fmt.Println(errors.Is(err, balance.ErrNoBackend))

	err = backends.Update([]balance.Backend[int]{{ID: "a", Value: 1}})
	fmt.Println(err, len(backends.Stats().Backends))
	// Output:
	// true
	// <nil> 1
}

func ExampleLeastInFlight() {
	backends, err := balance.New(balance.Config[string]{
		Policy: balance.LeastInFlight(),
		Backends: []balance.Backend[string]{
			{ID: "large", Weight: 2},
			{ID: "small"},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	for range 6 { // six calls at the same time
		lease, err := backends.Pick(ctx, balance.PickInfo{})
		if err != nil {
			fmt.Println(err)
			return
		}
		defer lease.Done(ctx, core.Success)
	}
	for _, s := range backends.Stats().Backends {
		fmt.Print(s.ID, ":", s.InFlight, " ")
	}
	// Output: large:4 small:2
}

func ExampleRoundRobin() {
	backends, err := balance.New(balance.Config[int]{
		Backends: []balance.Backend[int]{{ID: "a"}, {ID: "b"}, {ID: "c"}},
		Policy:   balance.RoundRobin(),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	for range 30 {
		lease, err := backends.Pick(ctx, balance.PickInfo{})
		if err != nil {
			fmt.Println(err)
			return
		}
		lease.Done(ctx, core.Success)
	}
	for _, s := range backends.Stats().Backends {
		fmt.Print(s.ID, ":", s.Picks, " ")
	}
	// Output: a:10 b:10 c:10
}
