package retry_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/retry"
)

// A loop asks the budget, then pauses, then tries again.
func Example() {
	budget, err := retry.NewBudget(retry.BudgetConfig{Name: "payments"})
	if err != nil {
		panic(err)
	}
	backoff := retry.Backoff{Base: time.Millisecond, Cap: 10 * time.Millisecond}
	const attempts = 3

	pay := func(ctx context.Context, call func(context.Context) error) error {
		for n := 1; ; n++ {
			err := call(ctx)
			if err == nil {
				budget.Fund()
				return nil
			}
			if n == attempts || budget.Take() != nil {
				return err // the call's own error, not the budget's
			}
			select {
			case <-time.After(backoff.Pause(n)):
			case <-ctx.Done():
				return err
			}
		}
	}

	failures := 2
	err = pay(context.Background(), func(context.Context) error {
		if failures--; failures >= 0 {
			fmt.Println("failed")
			return errors.New("try again")
		}
		return nil
	})
	fmt.Println(err)
	// Output:
	// failed
	// failed
	// <nil>
}

func ExampleBackoff() {
	// Up to 100 ms before the first retry, 200 before the second, 400 before the
	// third, and never above a second.
	b := retry.Backoff{Base: 100 * time.Millisecond, Cap: time.Second}
	for n := 1; n <= 3; n++ {
		fmt.Println(b.Pause(n) <= 100*time.Millisecond<<(n-1))
	}
	fmt.Println(b.Pause(1000) <= time.Second)
	// Output:
	// true
	// true
	// true
	// true
}

func ExampleNewBudget() {
	budget, err := retry.NewBudget(retry.BudgetConfig{
		Name:         "payments",
		Percent:      20,        // a retry for every five successes
		MinPerSecond: retry.Off, // and none without
		Max:          2,
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(budget.Take(), budget.Take()) // it starts full
	err = budget.Take()
	fmt.Println(err)
	fmt.Println(errors.Is(err, retry.ErrBudget))

	for range 5 {
		budget.Fund()
	}
	fmt.Println(budget.Take())
	// Output:
	// <nil> <nil>
	// retry: budget used up: refused by "payments"
	// true
	// <nil>
}

func ExampleBudget_Take() {
	budget, err := retry.NewBudget(retry.BudgetConfig{Name: "payments", MinPerSecond: retry.Off, Max: 1})
	if err != nil {
		panic(err)
	}
	for range 3 {
		if refused, ok := errors.AsType[*core.Rejection](budget.Take()); ok {
			fmt.Println(refused.Guard, refused.Reason)
		}
	}
	// Output:
	// payments retry_budget
	// payments retry_budget
}

func ExampleBudget_Stats() {
	budget, err := retry.NewBudget(retry.BudgetConfig{Max: 10})
	if err != nil {
		panic(err)
	}
	for range 3 {
		_ = budget.Take()
	}
	s := budget.Stats()
	fmt.Println(s.Taken, s.Refused, s.Available, s.Max)
	// Output: 3 0 7 10
}

func ExampleBudget_Fund() {
	var unlimited *retry.Budget // a nil budget is no bound
	unlimited.Fund()
	fmt.Println(unlimited.Take())
	// Output: <nil>
}

func ExampleBudget_Inspect() {
	budget, err := retry.NewBudget(retry.BudgetConfig{Name: "payments"})
	if err != nil {
		panic(err)
	}
	r := budget.Inspect()
	fmt.Println(r.Kind, r.Name, r.Settings)
	// Output: retry_budget payments [{Percent 10} {MinPerSecond 1} {Max 100}]
}
