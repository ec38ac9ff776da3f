package main

import (
	"context"
	"sync/atomic"

	"github.com/failsafe-go/failsafe-go/bulkhead"
	"golang.org/x/sync/semaphore"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
)

const slots = 100 // more than callers

// A call is admitted and ends at once, or is refused because the one slot is
// taken. Acquire is the call that takes a context, and could wait.
var concurrencyRows = []row{
	{
		name: "concurrency, TryAcquire",
		ours: contender{name: "Concurrency", start: lone(func() func(int) int {
			return slotTried(concurrency(slots))
		})},
		peers: []contender{
			{"x/sync/semaphore", xsync, lone(func() func(int) int {
				return semaphoreTried(semaphore.NewWeighted(slots))
			})},
			{"failsafe-go bulkhead", failsafe, lone(func() func(int) int {
				return bulkheadTried(bulkhead.New[any](slots))
			})},
		},
		floor: twoAdds,
	},
	{
		name: "concurrency, Acquire",
		ours: contender{name: "Concurrency", start: lone(func() func(int) int {
			return slotPassed(concurrency(slots))
		})},
		peers: []contender{
			{"x/sync/semaphore", xsync, lone(func() func(int) int {
				s, ctx := semaphore.NewWeighted(slots), context.Background()
				return func(n int) (admitted int) {
					for range n {
						if s.Acquire(ctx, 1) == nil {
							s.Release(1)
							admitted++
						}
					}
					return admitted
				}
			})},
			{"failsafe-go bulkhead", failsafe, lone(func() func(int) int {
				b, ctx := bulkhead.New[any](slots), context.Background()
				return func(n int) (admitted int) {
					for range n {
						if b.AcquirePermit(ctx) == nil {
							b.ReleasePermit()
							admitted++
						}
					}
					return admitted
				}
			})},
		},
		floor: twoAdds,
	},
	{
		name: "concurrency, refused",
		ours: contender{name: "Concurrency.TryAcquire", start: lone(func() func(int) int {
			c := concurrency(1)
			c.TryAcquire(1)
			return not(slotTried(c))
		})},
		peers: []contender{
			{"x/sync/semaphore", xsync, lone(func() func(int) int {
				s := semaphore.NewWeighted(1)
				s.TryAcquire(1)
				return not(semaphoreTried(s))
			})},
			{"failsafe-go bulkhead", failsafe, lone(func() func(int) int {
				b := bulkhead.New[any](1)
				b.TryAcquirePermit()
				return not(bulkheadTried(b))
			})},
		},
		aside: []contender{
			{"Concurrency.Acquire", "", lone(func() func(int) int {
				c := concurrency(1)
				c.TryAcquire(1)
				return not(slotPassed(c))
			})},
		},
		floor: contender{name: "load", start: lone(func() func(int) int {
			var word atomic.Int64
			word.Store(1)
			return func(n int) (refused int) {
				for range n {
					if word.Load() > 0 {
						refused++
					}
				}
				return refused
			}
		})},
	},
}

var twoAdds = contender{name: "2 atomic adds", start: lone(func() func(int) int {
	var word atomic.Int64
	return func(n int) (admitted int) {
		for range n {
			if word.Add(1) > 0 {
				word.Add(-1)
				admitted++
			}
		}
		return admitted
	}
})}

func concurrency(n int) *limit.Concurrency {
	return must(limit.NewConcurrency(limit.ConcurrencyConfig{Limit: n}))
}

func slotTried(c *limit.Concurrency) func(int) int {
	return func(n int) (admitted int) {
		for range n {
			if c.TryAcquire(1) {
				c.Release(1)
				admitted++
			}
		}
		return admitted
	}
}

// slotPassed is passed, called as directly as the peers are.
func slotPassed(c *limit.Concurrency) func(int) int {
	ctx := context.Background()
	return func(n int) (admitted int) {
		for range n {
			if p, err := c.Acquire(ctx, core.Call{}); err == nil {
				p.Done(ctx, core.Success)
				admitted++
			}
		}
		return admitted
	}
}

func semaphoreTried(s *semaphore.Weighted) func(int) int {
	return func(n int) (admitted int) {
		for range n {
			if s.TryAcquire(1) {
				s.Release(1)
				admitted++
			}
		}
		return admitted
	}
}

func bulkheadTried(b bulkhead.Bulkhead[any]) func(int) int {
	return func(n int) (admitted int) {
		for range n {
			if b.TryAcquirePermit() {
				b.ReleasePermit()
				admitted++
			}
		}
		return admitted
	}
}
