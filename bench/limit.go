package main

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/failsafe-go/failsafe-go/ratelimiter"
	"go.uber.org/ratelimit"
	"golang.org/x/time/rate"

	"github.com/surgewall/surgewall/core/limit"
)

const (
	xtime    = "golang.org/x/time"
	uber     = "go.uber.org/ratelimit"
	failsafe = "github.com/failsafe-go/failsafe-go"
)

// Calls are admitted by limiters of 10^9 a second, which no caller reaches, and
// refused by those of one a day whose token is gone. A wait is the blocking call
// when there is nothing to wait for.
const plenty = 1_000_000_000

const day = 24 * time.Hour

var limitRows = []row{
	{
		name: "admitted",
		ours: contender{name: "TokenBucket.Allow", start: lone(func() func(int) int {
			return allowed(bucket(limit.PerSecond(plenty), plenty))
		})},
		peers: []contender{
			{"x/time/rate", xtime, lone(func() func(int) int {
				l := rate.NewLimiter(plenty, plenty)
				return func(n int) (good int) {
					for range n {
						if l.Allow() {
							good++
						}
					}
					return good
				}
			})},
			{"failsafe-go smooth", failsafe, lone(func() func(int) int {
				return permitted(ratelimiter.NewSmoothBuilder[any](plenty, time.Second).Build())
			})},
			{"failsafe-go bursty", failsafe, lone(func() func(int) int {
				return permitted(ratelimiter.NewBurstyBuilder[any](plenty, time.Second).Build())
			})},
		},
		floor: clockAndSwap,
	},
	{
		name: "refused",
		ours: contender{name: "TokenBucket.Allow", start: lone(func() func(int) int {
			b := bucket(limit.PerDay(1), 1)
			b.Allow()
			return func(n int) int { return n - allowed(b)(n) }
		})},
		peers: []contender{
			{"x/time/rate", xtime, lone(func() func(int) int {
				l := rate.NewLimiter(rate.Every(day), 1)
				l.Allow()
				return func(n int) (good int) {
					for range n {
						if !l.Allow() {
							good++
						}
					}
					return good
				}
			})},
			{"failsafe-go smooth", failsafe, lone(func() func(int) int {
				l := ratelimiter.NewSmoothBuilder[any](1, day).Build()
				l.TryAcquirePermit()
				return func(n int) int { return n - permitted(l)(n) }
			})},
			{"failsafe-go bursty", failsafe, lone(func() func(int) int {
				l := ratelimiter.NewBurstyBuilder[any](1, day).Build()
				l.TryAcquirePermit()
				return func(n int) int { return n - permitted(l)(n) }
			})},
		},
		floor: contender{name: "clock+load", start: lone(func() func(int) int {
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
		})},
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
			{"failsafe-go bursty", failsafe, lone(func() func(int) int {
				l := ratelimiter.NewBurstyBuilder[any](plenty, time.Second).Build()
				ctx := context.Background()
				return func(n int) (good int) {
					for range n {
						if l.AcquirePermit(ctx) == nil {
							good++
						}
					}
					return good
				}
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
			old, now := word.Load(), int64(time.Since(epoch))
			for !word.CompareAndSwap(old, max(old, now)+1) {
				old = word.Load()
			}
			good++
		}
		return good
	}
})}

func bucket(r limit.Rate, burst int) *limit.TokenBucket {
	b, err := limit.NewTokenBucket(limit.TokenBucketConfig{Rate: r, Burst: burst})
	if err != nil {
		panic(err)
	}
	return b
}

// allowed counts the calls that are admitted.
func allowed(b *limit.TokenBucket) func(int) int {
	return func(n int) (admitted int) {
		for range n {
			if b.Allow() {
				admitted++
			}
		}
		return admitted
	}
}

func permitted(l ratelimiter.RateLimiter[any]) func(int) int {
	return func(n int) (admitted int) {
		for range n {
			if l.TryAcquirePermit() {
				admitted++
			}
		}
		return admitted
	}
}
