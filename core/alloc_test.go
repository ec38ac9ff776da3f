package core_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func TestNothingAllocates(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	guard := &open{core.WantsResult}
	three := core.Chain(guard, &open{}, &open{core.WantsEnd})
	no := shut{&core.Rejection{Guard: "shut", Err: errFull}}
	refusing := core.Chain(guard, no)
	quiet := core.Observers(&recorder{deaf: true}, &recorder{deaf: true})
	fn := func(context.Context) error { return nil }
	square := core.Wrap(guard, func(_ context.Context, n int) (int, error) { return n * n, nil })
	for name, call := range map[string]func(){
		"guard": func() {
			p, _ := guard.Acquire(ctx, core.Call{})
			p.Done(ctx, core.Success)
		},
		"chain": func() {
			p, _ := three.Acquire(ctx, core.Call{})
			p.Done(ctx, core.Success)
		},
		"chain refused":  func() { _, _ = refusing.Acquire(ctx, core.Call{}) },
		"do":             func() { _ = core.Do(ctx, guard, fn) },
		"do refused":     func() { _ = core.Do(ctx, no, fn) },
		"wrap":           func() { _, _ = square(ctx, 3) },
		"emit to none":   func() { core.Emit(ctx, nil, core.Event{Kind: core.KindRejected, Component: "g"}) },
		"emit to no-ops": func() { core.Emit(ctx, quiet, core.Event{Kind: core.KindRejected, Component: "g"}) },
		"emit": func() {
			core.Emit(ctx, noop{}, core.Event{Kind: core.KindRejected, Component: "g"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			if raceEnabled && (name == "chain" || name == "chain refused") {
				t.Skip("sync.Pool forgets on purpose under the race detector")
			}
			require.Zero(t, testing.AllocsPerRun(1000, call))
		})
	}
}

// noop is an observer that is not inlined away.
type noop struct{}

func (noop) Enabled(core.Kind) bool { return true }

//go:noinline
func (noop) Observe(context.Context, core.Event) {}

func BenchmarkGuard(b *testing.B) {
	var g core.Guard = &open{core.WantsResult}
	ctx := b.Context()
	for b.Loop() {
		p, _ := g.Acquire(ctx, core.Call{})
		p.Done(ctx, core.Success)
	}
}

func BenchmarkChainOfThree(b *testing.B) {
	g := core.Chain(&open{}, &open{core.WantsEnd}, &open{core.WantsResult})
	ctx := b.Context()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			p, _ := g.Acquire(ctx, core.Call{})
			p.Done(ctx, core.Success)
		}
	})
}

func BenchmarkDo(b *testing.B) {
	var g core.Guard = &open{core.WantsResult}
	fn := func(context.Context) error { return nil }
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		_ = core.Do(ctx, g, fn)
	}
}

func BenchmarkEmit(b *testing.B) {
	for name, o := range map[string]core.Observer{"nil": nil, "noop": noop{}, "two": core.Observers(noop{}, noop{})} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			ctx := b.Context()
			for b.Loop() {
				core.Emit(ctx, o, core.Event{Kind: core.KindRejected, Reason: core.RateLimited, Component: "g", N: 1})
			}
		})
	}
}
