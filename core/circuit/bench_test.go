package circuit

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// each runs call on one goroutine, or with -cpu 2 and more on as many.
func each(b *testing.B, call func(i int)) {
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			call(i)
		}
	})
}

func BenchmarkClosed(b *testing.B) {
	br := newBreaker(b, Config{})
	ctx := context.Background()
	each(b, func(int) {
		p, _ := br.Acquire(ctx, core.Call{})
		p.Done(ctx, core.Success)
	})
}

func BenchmarkClosedTenthFails(b *testing.B) {
	br := newBreaker(b, Config{FailureThreshold: maxThreshold})
	ctx := context.Background()
	each(b, func(i int) {
		p, _ := br.Acquire(ctx, core.Call{})
		if i%10 == 0 {
			p.Done(ctx, core.Failure)
		} else {
			p.Done(ctx, core.Success)
		}
	})
}

func BenchmarkClosedOnSuccess(b *testing.B) {
	br := newBreaker(b, Config{OnSuccess: func(core.Result) {}})
	ctx := context.Background()
	each(b, func(int) {
		p, _ := br.Acquire(ctx, core.Call{})
		p.Done(ctx, core.Success)
	})
}

func BenchmarkDo(b *testing.B) {
	br := newBreaker(b, Config{})
	ctx := context.Background()
	each(b, func(int) { _ = core.Do(ctx, br, func(context.Context) error { return nil }) })
}

func BenchmarkOpen(b *testing.B) {
	br := newBreaker(b, Config{FailureThreshold: 1})
	ctx := context.Background()
	require.NoError(b, finish(b, br, core.Failure))
	each(b, func(int) { _, _ = br.Acquire(ctx, core.Call{}) })
}

func BenchmarkHalfOpenFull(b *testing.B) {
	br := newBreaker(b, Config{FailureThreshold: 1, OpenFor: 1, Probes: 1})
	ctx := context.Background()
	require.NoError(b, finish(b, br, core.Failure))
	p := admitted(b, br)
	each(b, func(int) { _, _ = br.Acquire(ctx, core.Call{}) })
	p.Cancel()
}

func TestHotPathsAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ctx := context.Background()
	noAllocs := func(name string, f func()) {
		t.Helper()
		require.Zero(t, testing.AllocsPerRun(1000, f), name)
	}

	br := newBreaker(t, Config{FailureThreshold: 2, OnSuccess: func(core.Result) {}, Observer: &recorder{deaf: true}})
	call := func(o core.Outcome) func() {
		return func() {
			p, _ := br.Acquire(ctx, core.Call{})
			p.Done(ctx, o)
		}
	}
	success, failure := call(core.Success), call(core.Failure)
	noAllocs("success", success)
	noAllocs("ignored", call(core.Ignored))
	noAllocs("failure, success", func() { failure(); success() })
	noAllocs("Do", func() { _ = core.Do(ctx, br, func(context.Context) error { return nil }) })
	noAllocs("State", func() { _ = br.State() })
	noAllocs("Stats", func() { _ = br.Stats() })

	failure()
	failure()
	require.Equal(t, Open, br.State())
	noAllocs("open", func() { _, _ = br.Acquire(ctx, core.Call{}) })

	br = newBreaker(t, Config{FailureThreshold: 1, OpenFor: 1, Probes: 1})
	require.NoError(t, finish(t, br, core.Failure))
	noAllocs("probe that is cancelled", func() {
		p, _ := br.Acquire(ctx, core.Call{})
		p.Cancel()
	})
	p := admitted(t, br)
	noAllocs("half-open and full", func() {
		if _, err := br.Acquire(ctx, core.Call{}); !errors.Is(err, ErrProbesTaken) {
			t.Error(err)
		}
	})
	p.Cancel()
}

// What a breaker takes, with all that belongs to it, is what its doc comment says.
func TestMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	each := func(cfg Config) int {
		const n = 1000
		breakers := make([]*Breaker, n)
		before := heap()
		for i := range breakers {
			breakers[i] = newBreaker(t, cfg)
		}
		size := int(heap()-before) / n
		runtime.KeepAlive(breakers)
		return size
	}
	consecutive, rated := each(Config{}), each(Config{FailurePercent: 50, SlowPercent: 50, SlowCall: time.Second})
	last := each(Config{FailurePercent: 50, WindowCalls: 100})
	t.Logf("%d bytes, with a window of time %d, of 100 calls %d", consecutive, rated, last)
	require.LessOrEqual(t, consecutive, 1792)
	require.LessOrEqual(t, rated, 2048)
	require.LessOrEqual(t, last, 2048)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
