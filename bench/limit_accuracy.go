package main

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/failsafe-go/failsafe-go/ratelimiter"
	"github.com/throttled/throttled/v2"
	"go.uber.org/ratelimit"
	"golang.org/x/time/rate"

	"github.com/surgewall/surgewall/core/limit"
)

// accuracyRows: goroutines that call as fast as they can, and what was admitted
// in that time, as a share of rate·time + burst. Above 1 a limiter does not keep
// its limit, which for ours is an error; below, it refuses what it should admit.
// Those that have windows get windows of burst calls.
var accuracyRows = []row{
	accuracyRow("accuracy, 1,000/s, burst 100, 8 goroutines", 1_000, 100, 8),
	accuracyRow("accuracy, 1,000/s, burst 100, 64 goroutines", 1_000, 100, 64),
	accuracyRow("accuracy, 100,000/s, burst 1,000, 8 goroutines", 100_000, 1_000, 8),
	accuracyRow("accuracy, 100,000/s, burst 1,000, 64 goroutines", 100_000, 1_000, 64),
	accuracyRow("accuracy, 1,000,000/s, burst 10,000, 8 goroutines", 1_000_000, 10_000, 8),
	accuracyRow("accuracy, 1,000,000/s, burst 10,000, 64 goroutines", 1_000_000, 10_000, 64),
	accuracyRow("accuracy, 100,000/s, burst 100,000, 64 goroutines", 100_000, 100_000, 64),
}

func accuracyRow(name string, perSecond, burst, goroutines int) row {
	length := time.Duration(burst) * time.Second / time.Duration(perSecond)
	// kept is by a limiter that is to admit at most so many at once.
	kept := func(atOnce int, make func() (allow func() bool, stop func())) start {
		return keeping(perSecond, atOnce, goroutines, math.Inf(1), make)
	}
	// within is the same for ours.
	within := func(make func() func() bool) start {
		return keeping(perSecond, burst, goroutines, 1, func() (func() bool, func()) { return make(), func() {} })
	}
	ctx := context.Background()
	return row{
		name: name, unit: "of limit", aim: exact,
		once: true, procs: []int{runtime.NumCPU()},
		ours: contender{name: "TokenBucket", start: within(func() func() bool {
			return bucket(limit.PerSecond(perSecond), burst).Allow
		})},
		peers: []contender{
			{"x/time/rate", xtime, kept(burst, func() (func() bool, func()) {
				return rate.NewLimiter(rate.Limit(perSecond), burst).Allow, nothing
			})},
			{"x/time/rate Wait", xtime, kept(burst, func() (func() bool, func()) {
				l := rate.NewLimiter(rate.Limit(perSecond), burst)
				return func() bool { return l.Wait(ctx) == nil }, nothing
			})},
			{"uber-go/ratelimit", uber, kept(uberSlack, func() (func() bool, func()) {
				l := ratelimit.New(perSecond)
				return func() bool { return !l.Take().IsZero() }, nothing
			})},
			{"failsafe-go smooth", failsafe, kept(1, func() (func() bool, func()) {
				return ratelimiter.NewSmoothBuilder[any](uint(perSecond), time.Second).Build().TryAcquirePermit, nothing
			})},
			{"failsafe-go bursty", failsafe, kept(burst, func() (func() bool, func()) {
				return ratelimiter.NewBurstyBuilder[any](uint(burst), length).Build().TryAcquirePermit, nothing
			})},
			{"throttled", throttling, kept(burst, func() (func() bool, func()) {
				l := newThrottled(throttled.PerSec(perSecond), burst)
				return func() bool {
					limited, _, err := l.RateLimitCtx(ctx, "", 1)
					return err == nil && !limited
				}, nothing
			})},
			{"go-limiter", sethvargoes, kept(burst, func() (func() bool, func()) {
				s := newSethvargo(uint64(burst), length, 0)
				return func() bool {
					_, _, _, ok, err := s.Take(ctx, "")
					return err == nil && ok
				}, closing(s)
			})},
			{"ulule/limiter", ulules, kept(burst, func() (func() bool, func()) {
				l := newUlule(int64(burst), length, 0)
				return func() bool {
					c, err := l.Get(ctx, "")
					return err == nil && !c.Reached
				}, nothing
			})},
			{"httprate", chi, kept(burst, func() (func() bool, func()) {
				allow := httprateStoreOf(burst, length)
				return func() bool { return allow("") }, nothing
			})},
		},
		aside: []contender{
			{"SlidingWindow", "", within(func() func() bool {
				return window(burst, length).Allow
			})},
			{"Keyed, one key", "", within(func() func() bool {
				k := newKeyed(1, limit.TokenBucketConfig{Rate: limit.PerSecond(perSecond), Burst: burst})
				return func() bool { return k.Allow("key") }
			})},
		},
	}
}

const uberSlack = 10 // calls that its limiter lets catch up

// keeping counts what goroutines are admitted in a while, as a share of what
// they may; more than most is an error.
func keeping(perSecond, burst, goroutines int, most float64, make func() (allow func() bool, stop func())) start {
	return func(context.Context, plan) (measure, func(), error) {
		return func(d time.Duration) (sample, error) {
			began := time.Now()
			allow, stop := make()
			defer stop()
			var over atomic.Bool
			var total atomic.Int64
			var done sync.WaitGroup
			for range goroutines {
				done.Go(func() {
					n := int64(0)
					for !over.Load() {
						if allow() {
							n++
						}
					}
					total.Add(n)
				})
			}
			time.Sleep(d)
			over.Store(true)
			done.Wait()
			took := time.Since(began)
			share := float64(total.Load()) / (float64(perSecond)*took.Seconds() + float64(burst))
			if share > most {
				return sample{}, fmt.Errorf("%d calls were admitted in %v: %.4f of the limit", total.Load(), took, share)
			}
			return sample{value: share}, nil
		}, func() {}, nil
	}
}
