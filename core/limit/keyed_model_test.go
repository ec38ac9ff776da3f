package limit

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
)

// rateLimiter is what each limiter of a rate can do, and what a Keyed does for
// each key.
type rateLimiter interface {
	AllowN(n int) bool
	Take(n int) Decision
	Peek(n int) Decision
	Reserve(n int, maxWait time.Duration) (Reservation, error)
	Acquire(ctx context.Context, call core.Call) (core.Permit, error)
	Charge(n int)
	Refund(n int)
	Pause(until time.Time)
}

// lone is a limiter that is a key's own.
type lone struct {
	rateLimiter
	plan        string
	reconfigure func(Algorithm)
}

func newLone(a Algorithm) *lone {
	switch cfg := a.(type) {
	case TokenBucketConfig:
		b := must(NewTokenBucket(cfg))
		return &lone{b, "", func(a Algorithm) { must(0, b.Reconfigure(a.(TokenBucketConfig))) }}
	case LeakyBucketConfig:
		b := must(NewLeakyBucket(cfg))
		return &lone{b, "", func(a Algorithm) { must(0, b.Reconfigure(a.(LeakyBucketConfig))) }}
	case SlidingWindowConfig:
		b := must(NewSlidingWindow(cfg))
		return &lone{b, "", func(a Algorithm) { must(0, b.Reconfigure(a.(SlidingWindowConfig))) }}
	case SlidingLogConfig:
		b := must(NewSlidingLog(cfg))
		return &lone{b, "", func(a Algorithm) { must(0, b.Reconfigure(a.(SlidingLogConfig))) }}
	}
	panic("no algorithm")
}

func anyAlgorithm(t *rapid.T, kind string) Algorithm {
	seconds := time.Duration(rapid.IntRange(1, 3).Draw(t, "seconds")) * time.Second
	rate := Per(rapid.IntRange(1, 50).Draw(t, "tokens"), seconds)
	size := rapid.IntRange(1, 10).Draw(t, "size")
	wait := time.Duration(rapid.IntRange(0, 1).Draw(t, "wait"))
	switch kind {
	case "token bucket":
		return TokenBucketConfig{Rate: rate, Burst: size, MaxWait: wait}
	case "leaky bucket":
		return LeakyBucketConfig{Rate: rate, Capacity: size, MaxWait: wait}
	case "sliding window":
		return SlidingWindowConfig{Limit: size, Window: seconds, MaxWait: wait}
	default:
		return SlidingLogConfig{Limit: size, Window: seconds, MaxWait: wait}
	}
}

// sweep sweeps one shard.
func sweep[K comparable](k *Keyed[K]) {
	now := k.clock.Now()
	switch each := k.each.(type) {
	case *keyedRate[K, bucketState]:
		each.sweepNext(now)
	case *keyedRate[K, windowState]:
		each.sweepNext(now)
	case *keyedRate[K, logState]:
		each.sweepNext(now)
	}
}

// noDeadline keeps rapid from asking for the time of the test, which is not that
// of a bubble.
type noDeadline struct{ rapid.TB }

// A key is as if it had a limiter of its own: while keys are forgotten and come
// back, while plans and settings change, and whatever permits are held.
func TestKeyedIsALimiterForEachKey(t *testing.T) {
	for _, kind := range []string{"token bucket", "leaky bucket", "sliding window", "sliding log"} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rapid.Check(noDeadline{t}, func(t *rapid.T) { keyedAgainstLone(t, kind) })
			})
		})
	}
}

func keyedAgainstLone(t *rapid.T, kind string) {
	const keys = 40
	plans := []string{"", "gold", "lead"}
	planOf := [keys]string{}
	algorithms := map[string]Algorithm{}
	config := func() KeyedConfig[int] {
		cfg := KeyedConfig[int]{
			Plans: map[string]Algorithm{}, MaxKeys: rapid.IntRange(keys, 300).Draw(t, "MaxKeys"),
			Plan: func(key int) string { return planOf[key] },
		}
		for _, plan := range plans {
			algorithms[plan] = anyAlgorithm(t, kind)
			if plan == "" {
				cfg.Limit = algorithms[plan]
			} else {
				cfg.Plans[plan] = algorithms[plan]
			}
		}
		return cfg
	}
	k := must(NewKeyed(config()))
	var model [keys]*lone
	var paused [keys]time.Time
	for i := range model {
		model[i] = newLone(algorithms[""])
	}
	type held struct {
		mine, its core.Permit
		key, n    int
	}
	type reserved struct {
		mine, its Reservation
		key       int
	}
	var permits []*held
	var reservations []*reserved

	// touch is a key to ask for, and what it should be like. Its limit is that of
	// its plan once something is asked of it.
	touch := func(t *rapid.T) (int, *lone) {
		key := rapid.IntRange(0, keys-1).Draw(t, "key")
		l := model[key]
		if l.plan != planOf[key] {
			l.plan = planOf[key]
			l.reconfigure(algorithms[l.plan])
		}
		return key, l
	}
	// ask is touch with a cost. One that never fits touches nothing.
	ask := func(t *rapid.T) (key int, l *lone, n int) {
		key, n = rapid.IntRange(0, keys-1).Draw(t, "key"), rapid.IntRange(-1, 11).Draw(t, "n")
		l = model[key]
		if most := k.Peek(key, 0).Limit; n <= 0 || n > most {
			if allowed := k.AllowN(key, n); allowed != (n == 0) {
				t.Fatalf("%d of %d: %v", n, most, allowed)
			}
			n = 1
		}
		if l.plan != planOf[key] {
			l.plan = planOf[key]
			l.reconfigure(algorithms[l.plan])
		}
		return key, l, n
	}
	same := func(t *rapid.T, mine, its Decision) {
		its.Policy = mine.Policy
		if mine != its {
			t.Fatalf("%+v, by itself %+v", mine, its)
		}
	}
	// A hint to who is paused says when there is something to take, which is sooner
	// than when nothing would be before it.
	sameError := func(t *rapid.T, mine, its error, paused bool) {
		if (mine == nil) != (its == nil) {
			t.Fatalf("%v, by itself %v", mine, its)
		}
		a, ok := errors.AsType[*core.Rejection](mine)
		if ok {
			b, _ := errors.AsType[*core.Rejection](its)
			if a.Reason != b.Reason || !paused && !a.RetryAt.Equal(b.RetryAt) {
				t.Fatalf("%v, by itself %v", mine, its)
			}
		}
	}
	amount := rapid.IntRange(1, 6)
	ctx := context.Background()
	t.Repeat(map[string]func(*rapid.T){
		"allow": func(t *rapid.T) {
			key, l, n := ask(t)
			if mine, its := k.AllowN(key, n), l.AllowN(n); mine != its {
				t.Fatalf("%v, by itself %v", mine, its)
			}
		},
		"take": func(t *rapid.T) {
			key, l := touch(t)
			n := rapid.IntRange(-1, 11).Draw(t, "n")
			same(t, k.Take(key, n), l.Take(n))
		},
		"acquire": func(t *rapid.T) {
			key, l, n := ask(t)
			h := &held{key: key, n: n}
			var mine, its error
			// No wait is shorter than a nanosecond, and nothing is due in one.
			h.its, its = l.Acquire(ctx, core.Call{Cost: h.n})
			h.mine, mine = k.AcquireKey(ctx, key, core.Call{Cost: h.n})
			if sameError(t, mine, its, time.Now().Before(paused[key])); mine == nil {
				permits = append(permits, h)
			}
		},
		"end": func(t *rapid.T) {
			if len(permits) == 0 {
				t.Skip()
			}
			i := rapid.IntRange(0, len(permits)-1).Draw(t, "permit")
			h := permits[i]
			permits = append(permits[:i], permits[i+1:]...)
			if rapid.Bool().Draw(t, "cancel") {
				h.mine.Cancel()
				h.its.Cancel()
				return
			}
			r := core.Result{Cost: rapid.IntRange(-1, 8).Draw(t, "cost")}
			if !known(k, h.key) {
				r.Cost = min(r.Cost, h.n) // or it would be charged under the plan it was admitted by
			}
			h.mine.Finish(ctx, r)
			h.its.Finish(ctx, r)
		},
		"reserve": func(t *rapid.T) {
			key, l, n := ask(t)
			wait := time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms")) * time.Millisecond
			r := reserved{key: key}
			var mine, its error
			r.mine, mine = k.Reserve(key, n, wait)
			r.its, its = l.Reserve(n, wait)
			if sameError(t, mine, its, time.Now().Before(paused[key])); mine == nil {
				reservations = append(reservations, &r)
			}
		},
		"cancel": func(t *rapid.T) {
			if len(reservations) == 0 {
				t.Skip()
			}
			i := rapid.IntRange(0, len(reservations)-1).Draw(t, "reservation")
			r := reservations[i]
			if mine, its := r.mine.Delay(), r.its.Delay(); mine != its {
				t.Fatalf("delay %v, by itself %v", mine, its)
			}
			if rapid.Bool().Draw(t, "cancel") {
				reservations = append(reservations[:i], reservations[i+1:]...)
				r.mine.Cancel()
				r.its.Cancel()
			}
		},
		"charge": func(t *rapid.T) {
			key, l := touch(t)
			n := amount.Draw(t, "n")
			k.Charge(key, n)
			l.Charge(n)
		},
		"refund": func(t *rapid.T) {
			key, l := touch(t)
			n := amount.Draw(t, "n")
			k.Refund(key, n)
			l.Refund(n)
			// The key may owe nothing now, and be forgotten with its charges, of
			// which nothing is given back then, and whose turns nothing changes.
			permits = slices.DeleteFunc(permits, func(h *held) bool { return h.key == key })
			reservations = slices.DeleteFunc(reservations, func(r *reserved) bool { return r.key == key })
		},
		"pause": func(t *rapid.T) {
			if kind == "sliding window" {
				// A window by itself stands still with a pause. Here keys have
				// theirs in common, and it counts for another.
				t.Skip()
			}
			key := rapid.IntRange(0, keys-1).Draw(t, "key")
			until := time.Now().Add(time.Duration(rapid.IntRange(-500, 2000).Draw(t, "ms")) * time.Millisecond)
			if now := time.Now(); !until.After(now) && !paused[key].After(now) {
				t.Skip() // nothing to end
			}
			k.Pause(key, until)
			model[key].Pause(until)
			paused[key] = until
		},
		"plan": func(t *rapid.T) {
			planOf[rapid.IntRange(0, keys-1).Draw(t, "key")] = rapid.SampledFrom(plans).Draw(t, "plan")
		},
		"reconfigure": func(t *rapid.T) {
			if err := k.Reconfigure(config()); err != nil {
				t.Fatal(err)
			}
			for _, l := range model {
				l.reconfigure(algorithms[l.plan])
			}
		},
		"sleep": func(t *rapid.T) {
			time.Sleep(rapid.SampledFrom([]time.Duration{0, 1, 10, 1000, 1e6, 1e7, 1e8, 1e9, 5e9, 6e10}).Draw(t, "sleep"))
		},
		"sweep": func(*rapid.T) {
			for range 50 {
				sweep(k)
			}
		},
		"": func(t *rapid.T) {
			checkKeyed(t, k)
			key, l := touch(t)
			same(t, k.Peek(key, 1), l.Peek(1))
		},
	})
	require.Zero(t, k.Stats().Overflowed)
}
