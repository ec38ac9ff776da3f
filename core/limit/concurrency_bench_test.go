package limit

import (
	"context"
	"testing"

	"github.com/surgewall/surgewall/core"
)

func newFull(b *testing.B, cfg ConcurrencyConfig) *Concurrency {
	b.Helper()
	c := must(NewConcurrency(cfg))
	if !c.TryAcquire(cfg.Limit) {
		b.Fatal("not empty")
	}
	return c
}

func BenchmarkConcurrencyPermit(b *testing.B) {
	var g core.Guard = must(NewConcurrency(ConcurrencyConfig{Limit: 10}))
	ctx := context.Background()
	bench(b, func() bool {
		p, err := g.Acquire(ctx, core.Call{})
		p.Done(ctx, core.Success)
		return err == nil
	}, true)
}

func BenchmarkConcurrencyTryAcquire(b *testing.B) {
	c := must(NewConcurrency(ConcurrencyConfig{Limit: 10}))
	bench(b, func() bool { return c.TryAcquire(1) && c.Release(1) }, true)
}

func BenchmarkConcurrencyWait(b *testing.B) {
	c := must(NewConcurrency(ConcurrencyConfig{Limit: 10}))
	ctx := context.Background()
	bench(b, func() bool { return c.Wait(ctx, 1) == nil && c.Release(1) }, true)
}

func BenchmarkConcurrencyPermitRefused(b *testing.B) {
	c := newFull(b, ConcurrencyConfig{Limit: 10})
	ctx := context.Background()
	bench(b, func() bool {
		_, err := c.Acquire(ctx, core.Call{})
		return err == nil
	}, false)
}

func BenchmarkConcurrencyTryAcquireRefused(b *testing.B) {
	c := newFull(b, ConcurrencyConfig{Limit: 10})
	bench(b, func() bool { return c.TryAcquire(1) }, false)
}

// The floor is what a slot cannot do without: a compare-and-swap to take it and
// one to give it back.
func BenchmarkConcurrencyFloor(b *testing.B) {
	var s slotWord
	s.init(10)
	bench(b, func() bool {
		for {
			word := s.word.Load()
			if s.word.CompareAndSwap(word, word-1) {
				break
			}
		}
		for {
			word := s.word.Load()
			if s.word.CompareAndSwap(word, word+1) {
				return true
			}
		}
	}, true)
}
