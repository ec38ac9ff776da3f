package limit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/internal/clock"
)

func bench(b *testing.B, op func() bool, want bool) {
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if op() != want {
				b.Error("wrong answer")
				return
			}
		}
	})
}

// The floor is what an admission cannot do without: a clock read and a
// compare-and-swap on a shared word.
func BenchmarkFloor(b *testing.B) {
	c := clock.New()
	var word atomic.Int64
	bench(b, func() bool {
		now := c.Now()
		for {
			old := word.Load()
			if word.CompareAndSwap(old, max(old, now)+1) {
				return true
			}
		}
	}, true)
}

func BenchmarkFloorRefused(b *testing.B) {
	c := clock.New()
	var word atomic.Int64
	word.Store(1 << 62)
	bench(b, func() bool { return word.Load() <= c.Now() }, false)
}

func BenchmarkAllow(b *testing.B) {
	l := must(NewTokenBucket(TokenBucketConfig{Rate: PerSecond(1e9), Burst: 1e9}))
	bench(b, l.Allow, true)
}

func BenchmarkAllowRefused(b *testing.B) {
	l := must(NewTokenBucket(TokenBucketConfig{Rate: PerDay(1), Burst: 1}))
	l.Allow()
	bench(b, l.Allow, false)
}

func BenchmarkAllowFive(b *testing.B) {
	l := must(NewTokenBucket(TokenBucketConfig{Rate: PerSecond(1e9), Burst: 1e9}))
	bench(b, func() bool { return l.AllowN(5) }, true)
}

func BenchmarkAcquire(b *testing.B) {
	l := must(NewTokenBucket(TokenBucketConfig{Rate: PerSecond(1e9), Burst: 1e9}))
	ctx := context.Background()
	bench(b, func() bool {
		p, err := l.Acquire(ctx, core.Call{})
		p.Done(ctx, core.Success)
		return err == nil
	}, true)
}

func BenchmarkAcquireRefused(b *testing.B) {
	l := must(NewTokenBucket(TokenBucketConfig{Rate: PerDay(1), Burst: 1}))
	l.Allow()
	ctx := context.Background()
	bench(b, func() bool {
		_, err := l.Acquire(ctx, core.Call{})
		return err == nil
	}, false)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func BenchmarkKeyed(b *testing.B) {
	for _, keys := range []int{1, 1_000, 100_000} {
		b.Run(strconv.Itoa(keys), func(b *testing.B) {
			k := must(NewKeyed(KeyedConfig[string]{
				MaxKeys: keys, Limit: TokenBucketConfig{Rate: PerSecond(1000), Burst: 1e9},
			}))
			names := make([]string, keys)
			for i := range names {
				names[i] = fmt.Sprintf("client-%010d", i)
			}
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			for _, name := range names {
				k.AllowN(name, 1e6) // so that it still owes when the next comes
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			var turn atomic.Uint64
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				r := rand.New(rand.NewPCG(turn.Add(1), 1))
				for pb.Next() {
					if !k.Allow(names[r.IntN(len(names))]) {
						b.Error("refused")
						return
					}
				}
			})
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(keys), "B/key")
			runtime.KeepAlive(k)
		})
	}
}

func BenchmarkWait(b *testing.B) {
	l := must(NewTokenBucket(TokenBucketConfig{Rate: PerSecond(1e9), Burst: 1e9}))
	bench(b, func() bool { return l.Wait(context.Background(), 1) == nil }, true)
}
