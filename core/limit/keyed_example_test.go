package limit_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
)

func ExampleNewKeyed() {
	clients, err := limit.NewKeyed(limit.KeyedConfig[string]{
		Name:    "clients",
		Limit:   limit.TokenBucketConfig{Rate: limit.PerMinute(10), Burst: 2},
		MaxKeys: 50_000,
	})
	if err != nil {
		panic(err)
	}
	for _, client := range []string{"ann", "ann", "ann", "bob"} {
		fmt.Println(client, clients.Allow(client))
	}
	// Output:
	// ann true
	// ann true
	// ann false
	// bob true
}

// Who pays has more.
func ExampleNewKeyed_plans() {
	paying := map[string]bool{"bob": true} // a look-up of your own, safe for concurrent use
	clients, _ := limit.NewKeyed(limit.KeyedConfig[string]{
		Name:  "free",
		Limit: limit.TokenBucketConfig{Rate: limit.PerMinute(10), Burst: 1},
		Plans: map[string]limit.Algorithm{
			"gold": limit.TokenBucketConfig{Rate: limit.PerMinute(100), Burst: 3},
		},
		Plan: func(client string) string {
			if paying[client] {
				return "gold"
			}
			return ""
		},
	})
	for _, client := range []string{"ann", "bob"} {
		for clients.Allow(client) {
		}
		d := clients.Peek(client, 1)
		fmt.Printf("%s: %s, %d at once, %v\n", client, d.Policy, d.Limit, d.OK)
	}
	// Output:
	// ann: free, 1 at once, false
	// bob: gold, 3 at once, false
}

// At most two calls of each tenant at a time.
func ExampleNewKeyed_bulkhead() {
	tenants, _ := limit.NewKeyed(limit.KeyedConfig[int]{
		Limit: limit.ConcurrencyConfig{Limit: 2},
	})
	ctx := context.Background()
	first, _ := tenants.AcquireKey(ctx, 7, core.Call{})
	second, _ := tenants.AcquireKey(ctx, 7, core.Call{})
	_, err := tenants.AcquireKey(ctx, 7, core.Call{})
	fmt.Println(errors.Is(err, limit.ErrFull))
	first.Done(ctx, core.Success)
	third, err := tenants.AcquireKey(ctx, 7, core.Call{})
	fmt.Println(err)
	second.Done(ctx, core.Success)
	third.Done(ctx, core.Success)
	// Output:
	// true
	// <nil>
}

func ExampleKeyed_AcquireKey() {
	tenants, _ := limit.NewKeyed(limit.KeyedConfig[int]{
		Limit: limit.TokenBucketConfig{Rate: limit.PerHour(10), Burst: 10},
	})
	ctx := context.Background()
	permit, err := tenants.AcquireKey(ctx, 42, core.Call{Cost: 10})
	fmt.Println(err)
	permit.Finish(ctx, core.Result{Cost: 3}) // it cost less than was thought
	fmt.Println(tenants.AllowN(42, 7), tenants.Allow(42))
	// Output:
	// <nil>
	// true false
}

func ExampleKeyed_Take() {
	clients, _ := limit.NewKeyed(limit.KeyedConfig[string]{
		Name:  "clients",
		Limit: limit.SlidingWindowConfig{Limit: 2, Window: time.Hour},
	})
	for range 3 {
		d := clients.Take("ann", 1)
		fmt.Println(d.OK, d.Remaining, "of", d.Limit, "by", d.Policy)
	}
	// Output:
	// true 1 of 2 by clients
	// true 0 of 2 by clients
	// false 0 of 2 by clients
}

func ExampleKeyed_Wait() {
	inVirtualTime(func() {
		mailboxes, _ := limit.NewKeyed(limit.KeyedConfig[string]{
			Limit: limit.LeakyBucketConfig{Rate: limit.PerSecond(2), Capacity: 10},
		})
		start := time.Now()
		for range 2 {
			for _, box := range []string{"ann", "bob"} {
				_ = mailboxes.Wait(context.Background(), box, 1)
				fmt.Println(box, time.Since(start))
			}
		}
	})
	// Output:
	// ann 0s
	// bob 0s
	// ann 500ms
	// bob 500ms
}

func ExampleKeyed_Reserve() {
	inVirtualTime(func() {
		clients, _ := limit.NewKeyed(limit.KeyedConfig[string]{
			Limit: limit.TokenBucketConfig{Rate: limit.PerSecond(1), Burst: 1},
		})
		for range 2 {
			r, err := clients.Reserve("ann", 1, time.Minute)
			fmt.Println(r.Delay(), err)
		}
		r, _ := clients.Reserve("ann", 1, time.Minute)
		r.Cancel() // the call is not made after all
		fmt.Println(clients.Peek("ann", 1).RetryAfter)
	})
	// Output:
	// 0s <nil>
	// 1s <nil>
	// 2s
}

// What a call costs is sometimes known only when it is over.
func ExampleKeyed_Charge() {
	tenants, _ := limit.NewKeyed(limit.KeyedConfig[int]{
		Limit: limit.TokenBucketConfig{Rate: limit.PerHour(100), Burst: 100},
	})
	fmt.Println(tenants.AllowN(42, 10))
	tenants.Charge(42, 80) // it was a big one
	fmt.Println(tenants.Peek(42, 0).Remaining)
	tenants.Refund(42, 40) // half was served from a cache
	fmt.Println(tenants.Peek(42, 0).Remaining)
	// Output:
	// true
	// 10
	// 50
}

// A host asked to be left alone for a while.
func ExampleKeyed_Pause() {
	inVirtualTime(func() {
		hosts, _ := limit.NewKeyed(limit.KeyedConfig[string]{
			Limit: limit.TokenBucketConfig{Rate: limit.PerSecond(10), Burst: 10},
		})
		hosts.Pause("a.example", time.Now().Add(30*time.Second))
		fmt.Println(hosts.Allow("a.example"), hosts.Allow("b.example"))
		fmt.Println(hosts.Peek("a.example", 1).RetryAfter)
	})
	// Output:
	// false true
	// 30s
}

func ExampleKeyed_Reconfigure() {
	clients, _ := limit.NewKeyed(limit.KeyedConfig[string]{
		Limit: limit.TokenBucketConfig{Rate: limit.PerHour(10), Burst: 10},
	})
	fmt.Println(clients.AllowN("ann", 8))
	err := clients.Reconfigure(limit.KeyedConfig[string]{
		Limit: limit.TokenBucketConfig{Rate: limit.PerHour(20), Burst: 20},
	})
	fmt.Println(err, clients.Peek("ann", 0).Remaining, "of", clients.Peek("ann", 0).Limit)
	// Output:
	// true
	// <nil> 12 of 20
}

func ExampleKeyed_Stats() {
	clients, _ := limit.NewKeyed(limit.KeyedConfig[string]{
		Limit:   limit.TokenBucketConfig{Rate: limit.PerHour(1), Burst: 1},
		MaxKeys: 2,
	})
	for _, client := range []string{"ann", "bob", "eve", "mallory"} {
		clients.Allow(client)
	}
	s := clients.Stats()
	fmt.Println(s.Admitted, "admitted,", s.Refused, "refused")
	fmt.Println(s.Keys, "keys of", s.MaxKeys, "and", s.Overflowed, "calls on what the others share")
	// Output:
	// 3 admitted, 1 refused
	// 2 keys of 2 and 2 calls on what the others share
}

// Two limits for each key: a chain of both takes from all or from none.
func ExampleKeyed_several() {
	inVirtualTime(func() {
		perSecond, _ := limit.NewKeyed(limit.KeyedConfig[string]{Name: "second", Limit: limit.TokenBucketConfig{Rate: limit.PerSecond(2)}})
		perHour, _ := limit.NewKeyed(limit.KeyedConfig[string]{Name: "hour", Limit: limit.TokenBucketConfig{Rate: limit.PerHour(3), Burst: 3}})
		for range 4 {
			_, err := core.Chain(core.ForKey(perSecond, "alice"), core.ForKey(perHour, "alice")).Acquire(context.Background(), core.Call{})
			fmt.Println(err)
			time.Sleep(500 * time.Millisecond)
		}
		fmt.Println(perSecond.Peek("alice", 0).Remaining)
	})
	// Output:
	// <nil>
	// <nil>
	// <nil>
	// limit: rate limit exceeded: refused by "hour": retry after 19m59s
	// 2
}
