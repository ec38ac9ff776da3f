package balance_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
)

func TestPickAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ctx := context.Background()
	do := func(b *balance.Balancer[int], info balance.PickInfo) {
		if l, err := b.Pick(ctx, info); err == nil {
			l.Done(ctx, core.Success)
		}
	}
	plain := newBalancer(t, backends(4))
	list, guards := guarded(2000)
	for i, g := range guards {
		g.notReady.Store(i > 0)
	}
	oneUp := newBalancer(t, list)
	list, guards = guarded(3)
	for _, g := range guards {
		g.refusal.Store(refusal("g", time.Time{}))
	}
	refusing := newBalancer(t, list)
	least := newBalancerOf(t, balance.LeastInFlight(), backends(4))
	leastOfTwo := newBalancerOf(t, balance.LeastInFlight(), backends(50))
	for name, f := range map[string]func(){
		"pick": func() { do(plain, balance.PickInfo{}) },
		"retry": func() {
			var tried balance.Tried
			for range 3 {
				l, _ := plain.Pick(ctx, balance.PickInfo{Tried: &tried})
				l.MarkTried(&tried)
				l.Done(ctx, core.Failure)
			}
		},
		"least":        func() { do(least, balance.PickInfo{}) },
		"least of two": func() { do(leastOfTwo, balance.PickInfo{}) },
		"least, retry": func() {
			var tried balance.Tried
			for range 3 {
				l, _ := leastOfTwo.Pick(ctx, balance.PickInfo{Tried: &tried})
				l.MarkTried(&tried)
				l.Done(ctx, core.Failure)
			}
		},
		"do":           func() { _ = plain.Do(ctx, func(context.Context, int) error { return nil }) },
		"1 of 2000 up": func() { do(oneUp, balance.PickInfo{}) },
		"all refuse":   func() { do(refusing, balance.PickInfo{}) },
		"empty":        func() { do(newEmpty, balance.PickInfo{}) },
	} {
		require.Zero(t, testing.AllocsPerRun(100, f), name)
	}
}

var newEmpty, _ = balance.New(balance.Config[int]{AllowEmpty: true})

func BenchmarkPick(b *testing.B) {
	for _, policy := range policies {
		for _, n := range []int{1, 3, 8, 9, 100, 1000} {
			b.Run(fmt.Sprintf("%v/n=%d", policy, n), func(b *testing.B) {
				bal := newBalancerOf(b, policy, backends(n))
				ctx := context.Background()
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						l, err := bal.Pick(ctx, balance.PickInfo{})
						if err != nil {
							b.Error(err)
							return
						}
						l.Done(ctx, core.Success)
					}
				})
			})
		}
	}
}

func BenchmarkPickGuarded(b *testing.B) {
	for _, down := range []int{0, 1, 9} {
		b.Run(fmt.Sprintf("down=%d", down), func(b *testing.B) {
			list, guards := guarded(10)
			for i := range down {
				guards[i].notReady.Store(true)
			}
			bal := newBalancer(b, list)
			ctx := context.Background()
			b.ReportAllocs()
			for b.Loop() {
				l, err := bal.Pick(ctx, balance.PickInfo{})
				if err != nil {
					b.Fatal(err)
				}
				l.Done(ctx, core.Success)
			}
		})
	}
}
