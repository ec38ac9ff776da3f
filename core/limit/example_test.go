package limit_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
)

func ExampleNewTokenBucket() {
	mails, err := limit.NewTokenBucket(limit.TokenBucketConfig{
		Name:  "mails",
		Rate:  limit.PerHour(100),
		Burst: 3,
	})
	if err != nil {
		panic(err)
	}
	for i := range 5 {
		fmt.Println(i, mails.Allow())
	}
	// Output:
	// 0 true
	// 1 true
	// 2 true
	// 3 false
	// 4 false
}

func ExampleNewTokenBucket_badConfig() {
	_, err := limit.NewTokenBucket(limit.TokenBucketConfig{Rate: limit.PerSecond(-5), Burst: -1})
	fmt.Println(err)
	fmt.Println(errors.Is(err, core.ErrConfig))
	// Output:
	// limit.TokenBucketConfig.Rate: -5 per 1s: must have Tokens above 0
	// limit.TokenBucketConfig.Burst: -1: must be 0 to 1073741823
	// true
}

func ExampleTokenBucket_AllowN() {
	bytes, _ := limit.NewTokenBucket(limit.TokenBucketConfig{
		Rate:  limit.PerHour(1 << 20),
		Burst: 64 << 10,
	})
	fmt.Println(bytes.AllowN(60 << 10))
	fmt.Println(bytes.AllowN(60 << 10))
	fmt.Println(bytes.AllowN(4 << 10))
	// Output:
	// true
	// false
	// true
}

func ExampleTokenBucket_Wait() {
	api, _ := limit.NewTokenBucket(limit.TokenBucketConfig{Rate: limit.PerMinute(1), Burst: 1})
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	fmt.Println(api.Wait(ctx, 1))
	// The next token is a minute away and ctx ends before: the call fails now.
	fmt.Println(errors.Is(api.Wait(ctx, 1), limit.ErrLimited))
	fmt.Println(ctx.Err())
	// Output:
	// <nil>
	// true
	// <nil>
}

func ExampleTokenBucket_Acquire() {
	api, _ := limit.NewTokenBucket(limit.TokenBucketConfig{Name: "api", Rate: limit.PerMinute(1), Burst: 1})
	call := func(context.Context) error {
		fmt.Println("called")
		return nil
	}
	for range 2 {
		err := core.Do(context.Background(), api, call)
		if r, ok := errors.AsType[*core.Rejection](err); ok {
			wait, _ := r.RetryAfter()
			fmt.Printf("%s refused: %v, retry after %v\n", r.Guard, r.Reason, wait.Round(time.Minute))
		}
	}
	// Output:
	// called
	// api refused: rate_limited, retry after 1m0s
}

func ExamplePer() {
	fmt.Println(limit.Per(3, 10*time.Second), limit.PerSecond(100), limit.PerDay(1))
	// Output: 3 per 10s 100 per 1s 1 per 24h0m0s
}
