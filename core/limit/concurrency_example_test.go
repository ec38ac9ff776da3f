package limit_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
)

func ExampleNewConcurrency() {
	reports, err := limit.NewConcurrency(limit.ConcurrencyConfig{Name: "reports", Limit: 2})
	if err != nil {
		panic(err)
	}
	call := func(ctx context.Context) error {
		fmt.Println("in flight:", reports.Stats().InFlight)
		return nil
	}
	two := func(ctx context.Context) error { return core.Do(ctx, reports, call) }
	three := func(ctx context.Context) error { return core.Do(ctx, reports, two) }
	fmt.Println(core.Do(context.Background(), reports, two))
	fmt.Println(core.Do(context.Background(), reports, three))
	fmt.Println("in flight:", reports.Stats().InFlight)
	// Output:
	// in flight: 2
	// <nil>
	// limit: all slots are taken: refused by "reports" (limit 2)
	// in flight: 0
}

// A call may wait for a slot, though not for ever.
func ExampleConcurrency_Acquire() {
	db, _ := limit.NewConcurrency(limit.ConcurrencyConfig{Name: "db", Limit: 10, MaxWait: time.Millisecond})
	ctx := context.Background()
	big, err := db.Acquire(ctx, core.Call{Cost: 9})
	fmt.Println(err)
	_, err = db.Acquire(ctx, core.Call{Cost: 2})
	fmt.Println(errors.Is(err, limit.ErrFull), core.ErrorType(err))
	big.Done(ctx, core.Success)
	small, err := db.Acquire(ctx, core.Call{Cost: 2})
	fmt.Println(err)
	small.Done(ctx, core.Success)
	// Output:
	// <nil>
	// true wait_timeout
	// <nil>
}

func ExampleConcurrency_TryAcquire() {
	uploads, _ := limit.NewConcurrency(limit.ConcurrencyConfig{Limit: 3})
	fmt.Println(uploads.TryAcquire(2), uploads.TryAcquire(2), uploads.TryAcquire(1))
	fmt.Println(uploads.Release(3))
	fmt.Println(uploads.Release(3)) // a bug, and no harm
	fmt.Println(uploads.Peek(0).Remaining, uploads.Stats().Unmatched)
	// Output:
	// true false true
	// true
	// false
	// 3 3
}

// A batch that is to go ahead as fast as it may.
func ExampleConcurrency_Wait() {
	workers, _ := limit.NewConcurrency(limit.ConcurrencyConfig{Limit: 2})
	ctx := context.Background()
	var sum int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 10 {
		if err := workers.Wait(ctx, 1); err != nil {
			break
		}
		wg.Go(func() {
			defer workers.Release(1)
			mu.Lock()
			defer mu.Unlock()
			sum += i
		})
	}
	wg.Wait()
	fmt.Println(sum)
	// Output: 45
}

func ExampleConcurrency_Peek() {
	db, _ := limit.NewConcurrency(limit.ConcurrencyConfig{Name: "db", Limit: 10})
	db.TryAcquire(7)
	d := db.Peek(5)
	fmt.Println(d.OK, d.Remaining, d.Limit, d.Policy)
	// Output: false 3 10 db
}

func ExampleConcurrency_Reconfigure() {
	db, _ := limit.NewConcurrency(limit.ConcurrencyConfig{Limit: 2})
	fmt.Println(db.TryAcquire(2), db.TryAcquire(1))
	fmt.Println(db.Reconfigure(limit.ConcurrencyConfig{Limit: 3}))
	fmt.Println(db.TryAcquire(1), db.TryAcquire(1))
	// Output:
	// true false
	// <nil>
	// true false
}

func ExampleConcurrency_Stats() {
	db, _ := limit.NewConcurrency(limit.ConcurrencyConfig{Limit: 2})
	for range 5 {
		db.TryAcquire(1)
	}
	s := db.Stats()
	fmt.Println(s.InFlight, s.Admitted, s.Refused, s.FullSince.IsZero())
	// Output: 2 2 3 false
}
