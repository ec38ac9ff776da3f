package main

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/failsafe-go/failsafe-go/ratelimiter"
	"go.uber.org/ratelimit"
	"golang.org/x/time/rate"

	"github.com/surgewall/surgewall/core/limit"
)

var limitRows = slices.Concat(
	bucketRows, keyedRows, memoryRows, idleRows, accuracyRows, middlewareRows,
)

// Calls are admitted by limiters of 10^9 a second, which no caller reaches, and
// refused by those of one a day whose token is gone. A wait is the blocking call
// when there is nothing to wait for.
const plenty = 1_000_000_000

const day = 24 * time.Hour

var bucketRows = []row{
	{
		name: "admitted",
		ours: contender{name: "TokenBucket.AllowN", start: lone(func() func(int) int {
			return allowed(bucket(limit.PerSecond(plenty), plenty), 1)
		})},
		peers: admitting(1),
		floor: clockAndSwap,
	},
	{
		name: "admitted, five at once",
		ours: contender{name: "TokenBucket.AllowN", start: lone(func() func(int) int {
			return allowed(bucket(limit.PerSecond(plenty), plenty), 5)
		})},
		// go-limiter takes one at a time, and a smooth limiter has no burst.
		peers: without(admitting(5), "go-limiter", "failsafe-go smooth"),
		floor: clockAndSwap,
	},
	{
		name: "refused",
		ours: contender{name: "TokenBucket.AllowN", start: lone(func() func(int) int {
			b := bucket(limit.PerDay(1), 1)
			b.Allow()
			return not(allowed(b, 1))
		})},
		peers: refusing,
		floor: clockAndRead,
	},
	{
		name: "wait",
		ours: contender{name: "TokenBucket.Wait", start: lone(func() func(int) int {
			b := bucket(limit.PerSecond(plenty), plenty)
			ctx := context.Background()
			return func(n int) (good int) {
				for range n {
					if b.Wait(ctx, 1) == nil {
						good++
					}
				}
				return good
			}
		})},
		peers: []contender{
			{"x/time/rate", xtime, lone(func() func(int) int {
				l := rate.NewLimiter(plenty, plenty)
				ctx := context.Background()
				return func(n int) (good int) {
					for range n {
						if l.Wait(ctx) == nil {
							good++
						}
					}
					return good
				}
			})},
			{"uber-go/ratelimit", uber, lone(func() func(int) int {
				l := ratelimit.New(plenty)
				return func(n int) (good int) {
					for range n {
						if !l.Take().IsZero() {
							good++
						}
					}
					return good
				}
			})},
			{"failsafe-go smooth", failsafe, lone(func() func(int) int {
				return waited(ratelimiter.NewSmoothBuilder[any](plenty, time.Second).Build())
			})},
			{"failsafe-go bursty", failsafe, lone(func() func(int) int {
				return waited(ratelimiter.NewBurstyBuilder[any](plenty, time.Second).Build())
			})},
		},
		floor: clockAndSwap,
	},
}

// clockAndSwap is what an admission cannot do without: a clock read and a
// compare-and-swap on a word that all callers share.
var clockAndSwap = contender{name: "clock+CAS", start: lone(func() func(int) int {
	var word atomic.Int64
	epoch := time.Now()
	return func(n int) (good int) {
		for range n {
			swap(&word, epoch)
			good++
		}
		return good
	}
})}

func swap(word *atomic.Int64, epoch time.Time) {
	old, now := word.Load(), int64(time.Since(epoch))
	for !word.CompareAndSwap(old, max(old, now)+1) {
		old = word.Load()
	}
}

// clockAndRead is what a refusal cannot do without.
var clockAndRead = contender{name: "clock+load", start: lone(func() func(int) int {
	var word atomic.Int64
	word.Store(int64(day))
	epoch := time.Now()
	return func(n int) (good int) {
		for range n {
			if word.Load() > int64(time.Since(epoch)) {
				good++
			}
		}
		return good
	}
})}

func bucket(r limit.Rate, burst int) *limit.TokenBucket {
	return must(limit.NewTokenBucket(limit.TokenBucketConfig{Rate: r, Burst: burst}))
}

// allowed counts the calls for k tokens that are admitted.
func allowed(b *limit.TokenBucket, k int) func(int) int {
	return func(n int) (admitted int) {
		for range n {
			if b.AllowN(k) {
				admitted++
			}
		}
		return admitted
	}
}

// not counts the calls that loop does not.
func not(loop func(int) int) func(int) int {
	return func(n int) int { return n - loop(n) }
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
