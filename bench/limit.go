package main

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
)

var limitRows = slices.Concat(
	bucketRows, leakyRows, windowRows, concurrencyRows, keyedRows, memoryRows, idleRows, accuracyRows, middlewareRows,
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
		aside: []contender{
			{"TokenBucket.Take", "", lone(func() func(int) int {
				return taken(bucket(limit.PerSecond(plenty), plenty))
			})},
			{"TokenBucket.Acquire", "", lone(func() func(int) int {
				return passed(bucket(limit.PerSecond(plenty), plenty))
			})},
			{"All of two, AllowN", "", lone(func() func(int) int {
				return combined(limit.All(bucket(limit.PerSecond(plenty), plenty), bucket(limit.PerHour(plenty), plenty)))
			})},
		},
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
			return spent(allowed(bucket(limit.PerDay(1), 1), 1))
		})},
		peers: refusing,
		aside: []contender{
			{"TokenBucket.Take", "", lone(func() func(int) int {
				return spent(taken(bucket(limit.PerDay(1), 1)))
			})},
			{"TokenBucket.Acquire", "", lone(func() func(int) int {
				return spent(passed(bucket(limit.PerDay(1), 1)))
			})},
		},
		floor: clockAndRead,
	},
	{
		name: "wait",
		ours: contender{name: "TokenBucket.Wait", start: lone(func() func(int) int {
			return awaited(bucket(limit.PerSecond(plenty), plenty))
		})},
		peers: waiting,
		floor: clockAndSwap,
	},
}

// A leaky bucket as a meter is a token bucket seen from below, so all peers do
// its work. As a shaper it has those that let calls through evenly.
var leakyRows = []row{
	{
		name: "leaky bucket, admitted",
		ours: contender{name: "LeakyBucket.AllowN", start: lone(func() func(int) int {
			return poured(leaky(limit.PerSecond(plenty), plenty))
		})},
		peers: only(admitting(1), "x/time/rate", "failsafe-go smooth", "throttled"),
		floor: clockAndSwap,
	},
	{
		name: "leaky bucket, refused",
		ours: contender{name: "LeakyBucket.AllowN", start: lone(func() func(int) int {
			return spent(poured(leaky(limit.PerDay(1), 1)))
		})},
		peers: only(refusing, "x/time/rate", "failsafe-go smooth", "throttled"),
		floor: clockAndRead,
	},
	{
		name: "leaky bucket, wait",
		ours: contender{name: "LeakyBucket.Wait", start: lone(func() func(int) int {
			return awaited(leaky(limit.PerSecond(plenty), plenty))
		})},
		peers: only(waiting, "uber-go/ratelimit", "failsafe-go smooth"),
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

func leaky(r limit.Rate, capacity int) *limit.LeakyBucket {
	return must(limit.NewLeakyBucket(limit.LeakyBucketConfig{Rate: r, Capacity: capacity}))
}

// allowed counts the calls for k tokens that are admitted. There is one for each
// type, so that it is called as directly as the peers' are.
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

func poured(b *limit.LeakyBucket) func(int) int {
	return func(n int) (admitted int) {
		for range n {
			if b.AllowN(1) {
				admitted++
			}
		}
		return admitted
	}
}

func combined(c *limit.Combined) func(int) int {
	return func(n int) (admitted int) {
		for range n {
			if c.AllowN(1) {
				admitted++
			}
		}
		return admitted
	}
}

func taken(b *limit.TokenBucket) func(int) int {
	return func(n int) (admitted int) {
		for range n {
			if b.Take(1).OK {
				admitted++
			}
		}
		return admitted
	}
}

// passed is what an adapter does with a guard.
func passed(g core.Guard) func(int) int {
	ctx := context.Background()
	return func(n int) (admitted int) {
		for range n {
			if p, err := g.Acquire(ctx, core.Call{}); err == nil {
				p.Done(ctx, core.Success)
				admitted++
			}
		}
		return admitted
	}
}

func awaited(l interface {
	Wait(ctx context.Context, n int) error
},
) func(int) int {
	ctx := context.Background()
	return func(n int) (admitted int) {
		for range n {
			if l.Wait(ctx, 1) == nil {
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
