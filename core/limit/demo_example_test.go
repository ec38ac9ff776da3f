package limit_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
)

// inVirtualTime runs f in a bubble in which time passes only when all sleep, so
// that what it prints is exact.
func inVirtualTime(f func()) {
	synctest.Test(new(testing.T), func(*testing.T) { f() })
}

// Ten tokens a second and a bucket of five, twenty calls 50 ms apart: twice as
// many as the rate allows. The burst carries the first nine.
func ExampleTokenBucket() {
	inVirtualTime(func() {
		bucket, _ := limit.NewTokenBucket(limit.TokenBucketConfig{Rate: limit.PerSecond(10), Burst: 5})
		start := time.Now()
		for range 20 {
			fmt.Printf("%v:%v ", time.Since(start), bucket.Allow())
			time.Sleep(50 * time.Millisecond)
		}
	})
	// Output:
	// 0s:true 50ms:true 100ms:true 150ms:true 200ms:true 250ms:true 300ms:true 350ms:true 400ms:true 450ms:false 500ms:true 550ms:false 600ms:true 650ms:false 700ms:true 750ms:false 800ms:true 850ms:false 900ms:true 950ms:false
}

// Five a second drain from a bucket for ten, fifteen calls 100 ms apart: it
// fills by half a call with each.
func ExampleLeakyBucket() {
	inVirtualTime(func() {
		bucket, _ := limit.NewLeakyBucket(limit.LeakyBucketConfig{Rate: limit.PerSecond(5), Capacity: 10})
		for i := range 15 {
			d := bucket.Take(1)
			fmt.Printf("call %d: %v, drained in %v\n", i, d.OK, d.ResetAfter)
			time.Sleep(100 * time.Millisecond)
		}
	})
	// Output:
	// call 0: true, drained in 200ms
	// call 1: true, drained in 300ms
	// call 2: true, drained in 400ms
	// call 3: true, drained in 500ms
	// call 4: true, drained in 600ms
	// call 5: true, drained in 700ms
	// call 6: true, drained in 800ms
	// call 7: true, drained in 900ms
	// call 8: true, drained in 1s
	// call 9: true, drained in 1.1s
	// call 10: true, drained in 1.2s
	// call 11: true, drained in 1.3s
	// call 12: true, drained in 1.4s
	// call 13: true, drained in 1.5s
	// call 14: true, drained in 1.6s
}

// The same bucket as a queue: the calls leave it evenly, 200 ms apart.
func ExampleLeakyBucket_Reserve() {
	inVirtualTime(func() {
		bucket, _ := limit.NewLeakyBucket(limit.LeakyBucketConfig{Rate: limit.PerSecond(5), Capacity: 10})
		for i := range 5 {
			r, err := bucket.Reserve(1, time.Second)
			if err != nil {
				panic(err)
			}
			fmt.Printf("call %d waits %v\n", i, r.Delay())
			time.Sleep(100 * time.Millisecond)
		}
	})
	// Output:
	// call 0 waits 0s
	// call 1 waits 100ms
	// call 2 waits 200ms
	// call 3 waits 300ms
	// call 4 waits 400ms
}

// Calls that come together leave 200 ms apart.
func ExampleLeakyBucket_Wait() {
	inVirtualTime(func() {
		bucket, _ := limit.NewLeakyBucket(limit.LeakyBucketConfig{Rate: limit.PerSecond(5), Capacity: 3})
		start := time.Now()
		for range 3 {
			if err := bucket.Wait(context.Background(), 1); err != nil {
				panic(err)
			}
			fmt.Println(time.Since(start))
		}
		soon, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		fmt.Println(bucket.Wait(soon, 1), "after", time.Since(start))
	})
	// Output:
	// 0s
	// 200ms
	// 400ms
	// limit: rate limit exceeded: refused by "leaky_bucket": retry after 200ms after 400ms
}

// A function behind a limit of five a second with a burst of three, called eight
// times 100 ms apart.
func Example_wrap() {
	inVirtualTime(func() {
		bucket, _ := limit.NewTokenBucket(limit.TokenBucketConfig{
			Name: "greetings", Rate: limit.PerSecond(5), Burst: 3,
		})
		greet := core.Wrap(bucket, func(_ context.Context, name string) (string, error) {
			return "hello, " + name, nil
		})
		for i := range 8 {
			greeting, err := greet(context.Background(), "Ann")
			if err != nil {
				greeting = err.Error()
			}
			fmt.Println(i, greeting)
			time.Sleep(100 * time.Millisecond)
		}
	})
	// Output:
	// 0 hello, Ann
	// 1 hello, Ann
	// 2 hello, Ann
	// 3 hello, Ann
	// 4 hello, Ann
	// 5 limit: rate limit exceeded: refused by "greetings": retry after 100ms
	// 6 hello, Ann
	// 7 limit: rate limit exceeded: refused by "greetings": retry after 100ms
}

func ExampleAll() {
	inVirtualTime(func() {
		perSecond, _ := limit.NewTokenBucket(limit.TokenBucketConfig{Name: "second", Rate: limit.PerSecond(2)})
		perHour, _ := limit.NewTokenBucket(limit.TokenBucketConfig{Name: "hour", Rate: limit.PerHour(3), Burst: 3})
		both := limit.All(perSecond, perHour)
		for range 5 {
			d := both.Take(1)
			fmt.Println(d.OK, d.Policy, d.Remaining, d.RetryAfter)
			time.Sleep(250 * time.Millisecond)
		}
	})
	// Output:
	// true second 1 0s
	// true second 0 0s
	// true second 0 0s
	// false hour 0 19m59.25s
	// false hour 0 19m59s
}

func ExampleCombined_Wait() {
	inVirtualTime(func() {
		perSecond, _ := limit.NewTokenBucket(limit.TokenBucketConfig{Name: "second", Rate: limit.PerSecond(2), Burst: 1})
		perMinute, _ := limit.NewTokenBucket(limit.TokenBucketConfig{Name: "minute", Rate: limit.PerMinute(3), Burst: 3})
		both := limit.All(perSecond, perMinute)
		start := time.Now()
		for range 4 {
			if err := both.Wait(context.Background(), 1); err != nil {
				panic(err)
			}
			fmt.Println(time.Since(start))
		}
	})
	// Output:
	// 0s
	// 500ms
	// 1s
	// 20s
}

func ExampleTokenBucket_Reserve() {
	inVirtualTime(func() {
		bucket, _ := limit.NewTokenBucket(limit.TokenBucketConfig{Rate: limit.PerSecond(10), Burst: 1})
		bucket.Allow()
		r, err := bucket.Reserve(1, time.Second)
		if err != nil {
			panic(err)
		}
		fmt.Println(r.Delay())
		r.Cancel()
		_, err = bucket.Reserve(1, 50*time.Millisecond)
		fmt.Println(err)
	})
	// Output:
	// 100ms
	// limit: rate limit exceeded: refused by "token_bucket": retry after 100ms
}

func ExampleTokenBucket_Peek() {
	inVirtualTime(func() {
		bucket, _ := limit.NewTokenBucket(limit.TokenBucketConfig{Rate: limit.PerSecond(10), Burst: 5})
		bucket.AllowN(3)
		d := bucket.Peek(4)
		fmt.Println(d.OK, d.Remaining, "of", d.Limit, "left; retry after", d.RetryAfter)
	})
	// Output: false 2 of 5 left; retry after 200ms
}

// What a query costs is known when it has run.
func ExampleTokenBucket_Charge() {
	inVirtualTime(func() {
		rows, _ := limit.NewTokenBucket(limit.TokenBucketConfig{Rate: limit.PerSecond(100), Burst: 100})
		fmt.Println(rows.Allow())
		rows.Charge(149)
		d := rows.Peek(1)
		fmt.Println(d.OK, d.RetryAfter)
	})
	// Output:
	// true
	// false 510ms
}

// An upstream answered with Retry-After.
func ExampleTokenBucket_Pause() {
	inVirtualTime(func() {
		upstream, _ := limit.NewTokenBucket(limit.TokenBucketConfig{Rate: limit.PerSecond(10), Burst: 1})
		upstream.Pause(time.Now().Add(30 * time.Second))
		start := time.Now()
		for range 3 {
			_ = upstream.Wait(context.Background(), 1)
			fmt.Println(time.Since(start))
		}
	})
	// Output:
	// 30s
	// 30.1s
	// 30.2s
}

func ExampleTokenBucket_Reconfigure() {
	inVirtualTime(func() {
		bucket, _ := limit.NewTokenBucket(limit.TokenBucketConfig{Rate: limit.PerSecond(10), Burst: 10})
		bucket.AllowN(8)
		err := bucket.Reconfigure(limit.TokenBucketConfig{Rate: limit.PerSecond(1), Burst: 20})
		d := bucket.Peek(0)
		fmt.Println(err, d.Remaining, "of", d.Limit, "left; full in", d.ResetAfter)
	})
	// Output: <nil> 12 of 20 left; full in 8s
}

// A limit that is new first runs in the shadow: it decides and tells, and
// refuses nobody. Then a share of its refusals is enforced, then all; health
// checks are exempt all the time.
func Example_shadow() {
	type healthCheck struct{}
	exempt := func(ctx context.Context, _ core.Call) bool { return ctx.Value(healthCheck{}) != nil }
	for _, percent := range []int{0, 100} {
		bucket, _ := limit.NewTokenBucket(limit.TokenBucketConfig{Rate: limit.PerDay(1), Burst: 1})
		guard, err := core.Shadow(bucket, core.ShadowConfig{EnforcePercent: percent, Exempt: exempt})
		if err != nil {
			panic(err)
		}
		call := func(ctx context.Context) error {
			return core.Do(ctx, guard, func(context.Context) error { return nil })
		}
		ctx := context.Background()
		fmt.Println(percent, call(ctx) == nil, call(ctx) == nil, call(context.WithValue(ctx, healthCheck{}, true)) == nil)
		for _, v := range guard.Inspect().Values {
			fmt.Println(v.Name, v.Attr.Key+"="+v.Attr.Value, v.Number)
		}
	}
	// Output:
	// 0 true true true
	// surgewall.shadow.refusals enforced=false 1
	// surgewall.shadow.refusals enforced=true 0
	// 100 true false true
	// surgewall.shadow.refusals enforced=false 0
	// surgewall.shadow.refusals enforced=true 1
}
