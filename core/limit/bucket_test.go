package limit

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/surgewall/surgewall/core"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	_ core.Guard              = (*TokenBucket)(nil)
	_ core.Ready              = (*TokenBucket)(nil)
	_ core.Component          = (*TokenBucket)(nil)
	_ core.Component          = (*Keyed[string])(nil)
	_ core.KeyedGuard[string] = (*Keyed[string])(nil)
)

func newBucket(t *testing.T, cfg TokenBucketConfig) *TokenBucket {
	t.Helper()
	b, err := NewTokenBucket(cfg)
	require.NoError(t, err)
	return b
}

func retryAfter(t *testing.T, err error) time.Duration {
	t.Helper()
	r, ok := errors.AsType[*core.Rejection](err)
	require.True(t, ok, "%v", err)
	d, ok := r.RetryAfter()
	require.True(t, ok, "%v", err)
	return d
}

func TestBadConfig(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  TokenBucketConfig
		want []string
	}{
		{"zero", TokenBucketConfig{}, []string{"Rate: 0 per 0s: must have Tokens above 0"}},
		{"no Per", TokenBucketConfig{Rate: Per(1, 0)}, []string{"must have a Per above 0"}},
		{"negative Per", TokenBucketConfig{Rate: Per(1, -time.Second)}, []string{"Rate: 1 per -1s: must have a Per above 0"}},
		{"absurd", TokenBucketConfig{Rate: PerSecond(1e9 + 1)}, []string{"Rate: 1000000001 per 1s: must be at most 10^9 per second"}},
		{"all", TokenBucketConfig{Rate: PerSecond(-3), Burst: -1, MaxWait: -time.Second}, []string{
			"limit.TokenBucketConfig.Rate: -3 per 1s: must have Tokens above 0",
			"limit.TokenBucketConfig.Burst: -1: must be 0 to 1073741823",
			"limit.TokenBucketConfig.MaxWait: -1s: must not be negative",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := NewTokenBucket(tc.cfg)
			require.Nil(t, b)
			require.ErrorIs(t, err, core.ErrConfig)
			for _, want := range tc.want {
				require.ErrorContains(t, err, want)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	for _, tc := range []struct {
		rate  Rate
		burst int
	}{
		{PerSecond(100), 100}, {PerDay(1), 1}, {PerMinute(90), 1}, {PerMinute(120), 2}, {Per(5, time.Nanosecond*5), 1e9},
	} {
		b := newBucket(t, TokenBucketConfig{Rate: tc.rate})
		require.Equal(t, tc.burst, b.Stats().Limit)
		require.Equal(t, "token_bucket", b.Name())
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, TokenBucketConfig{Rate: PerSecond(10), Burst: 3})
		ctx := t.Context()
		start := time.Now()

		done, cancel := context.WithCancel(ctx)
		cancel()
		err := b.Wait(done, 1)
		require.ErrorIs(t, err, ErrLimited)
		require.ErrorIs(t, err, context.Canceled)
		r, ok := errors.AsType[*core.Rejection](err)
		require.True(t, ok)
		require.Equal(t, core.RateLimited, r.Reason, "the limit is why it had to wait")
		require.ErrorIs(t, b.Wait(done, 0), context.Canceled)
		require.Equal(t, 3, b.Stats().Available, "a wait that never began takes nothing")

		require.ErrorIs(t, b.Wait(ctx, 4), ErrNeverFits)
		require.ErrorIs(t, b.Wait(ctx, -1), ErrInvalidCost)
		require.NoError(t, b.Wait(ctx, 0))

		require.NoError(t, b.Wait(ctx, 2))
		require.Zero(t, time.Since(start))
		require.NoError(t, b.Wait(ctx, 3))
		require.Equal(t, 2*d, time.Since(start))

		// Too short a deadline fails now and not at the deadline.
		short, cancel := context.WithTimeout(ctx, 3*d-1)
		defer cancel()
		err = b.Wait(short, 3)
		require.ErrorIs(t, err, ErrLimited)
		require.Equal(t, 3*d, retryAfter(t, err))
		require.Equal(t, 2*d, time.Since(start))

		// One that is just long enough does.
		enough, cancel := context.WithTimeout(ctx, 3*d)
		defer cancel()
		require.NoError(t, b.Wait(enough, 3))
		require.Equal(t, 5*d, time.Since(start))

		s := b.Stats()
		require.EqualValues(t, 3, s.Admitted)
		require.EqualValues(t, 5, s.Refused)
	})
}

func TestWaitEndsMidway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, TokenBucketConfig{Rate: PerSecond(10), Burst: 3})
		require.NoError(t, b.Wait(t.Context(), 3))
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error)
		go func() { errs <- b.Wait(ctx, 3) }()
		time.Sleep(2 * d)
		cancel()
		err := <-errs
		require.ErrorIs(t, err, ErrLimited)
		require.ErrorIs(t, err, context.Canceled)
		require.True(t, b.AllowN(2), "all is given back")
		require.False(t, b.Allow())
	})
}

func TestWaitersGoInOrderAndEachAtItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, TokenBucketConfig{Rate: PerSecond(10), Burst: 1})
		require.True(t, b.Allow())
		start := time.Now()
		type turn struct {
			who int
			at  time.Duration
		}
		var mu sync.Mutex
		var got []turn
		ctxs := make([]context.CancelFunc, 6)
		for i := range ctxs {
			var ctx context.Context
			ctx, ctxs[i] = context.WithCancel(t.Context())
			go func() {
				if b.Wait(ctx, 1) == nil {
					mu.Lock()
					got = append(got, turn{i, time.Since(start)})
					mu.Unlock()
				}
			}()
			synctest.Wait()
		}
		ctxs[2]() // those after it keep their turns
		ctxs[5]() // nobody is after it: its turn is free again
		synctest.Wait()
		go func() {
			if b.Wait(t.Context(), 1) == nil {
				mu.Lock()
				got = append(got, turn{6, time.Since(start)})
				mu.Unlock()
			}
		}()
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, []turn{{0, d}, {1, 2 * d}, {3, 4 * d}, {4, 5 * d}, {6, 6 * d}}, got)
		for _, cancel := range ctxs {
			cancel()
		}
	})
}

// overslept is a context that ends while its waiter is not looking, and lets it
// look only when its turn has come as well.
type overslept struct {
	context.Context
	cancel context.CancelFunc
}

func (c overslept) Done() <-chan struct{} {
	c.cancel()
	time.Sleep(2 * d)
	return c.Context.Done()
}

// A turn that has come is kept, though the context has ended too: given back, it
// would be lost for everyone.
func TestGrantWinsOverContext(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			b := newBucket(t, TokenBucketConfig{Rate: PerSecond(10), Burst: 1})
			require.True(t, b.Allow())
			ctx, cancel := context.WithCancel(t.Context())
			require.NoError(t, b.Wait(overslept{ctx, cancel}, 1))
		})
	}
}

func TestAcquire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, TokenBucketConfig{Name: "api", Rate: PerSecond(10), Burst: 5})
		ctx := t.Context()
		_, err := b.Acquire(ctx, core.Call{Cost: -1})
		require.ErrorIs(t, err, ErrInvalidCost)
		_, err = b.Acquire(ctx, core.Call{Cost: 6})
		require.ErrorIs(t, err, ErrNeverFits)
		r, _ := errors.AsType[*core.Rejection](err)
		_, ok := r.RetryAfter()
		require.False(t, ok, "no retry helps")

		p, err := b.Acquire(ctx, core.Call{Cost: 4})
		require.NoError(t, err)
		require.False(t, p.WantsEnd())
		require.Equal(t, 1, b.Stats().Available)
		_, err = b.Acquire(ctx, core.Call{Cost: 2})
		require.ErrorIs(t, err, ErrLimited)
		require.Equal(t, d, retryAfter(t, err))
		r, _ = errors.AsType[*core.Rejection](err)
		require.Equal(t, "api", r.Guard)
		require.Equal(t, core.RateLimited, r.Reason)
		require.True(t, r.Reason.Quota())

		p.Cancel()
		p.Cancel() // harmless: the permit is empty
		require.Equal(t, 5, b.Stats().Available)

		p, _ = b.Acquire(ctx, core.Call{Cost: 4})
		p.Finish(ctx, core.Result{Cost: 1})
		require.Equal(t, 4, b.Stats().Available)
		p, _ = b.Acquire(ctx, core.Call{Cost: 2})
		p.Finish(ctx, core.Result{Outcome: core.Success, Cost: core.CostNothing})
		require.Equal(t, 4, b.Stats().Available)
		p, _ = b.Acquire(ctx, core.Call{})
		p.Finish(ctx, core.Result{Cost: 13})
		require.True(t, b.Ready() == false && b.Stats().Available == 0)
		_, err = b.Acquire(ctx, core.Call{})
		require.Equal(t, 10*d, retryAfter(t, err), "14 taken of 5: a debt of 9, and one more")
		time.Sleep(10 * d)
		require.True(t, b.Ready())
		p, err = b.Acquire(ctx, core.Call{})
		require.NoError(t, err)
		p.Done(ctx, core.Failure)
		require.Zero(t, b.Stats().Available, "a call that was made costs what it cost")
		require.EqualValues(t, 1, b.Stats().Cancelled)
	})
}

// The tokens of a cancelled permit came back by themselves meanwhile: giving
// them back again would admit six at once.
func TestCancelGivesBackOnlyWhatHasNotDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, TokenBucketConfig{Rate: PerSecond(10), Burst: 5})
		p, err := b.Acquire(t.Context(), core.Call{Cost: 5})
		require.NoError(t, err)
		time.Sleep(4 * d)
		require.True(t, b.Allow())
		p.Cancel()
		require.True(t, b.AllowN(4))
		require.False(t, b.Allow())
	})
}

func TestAcquireWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, TokenBucketConfig{Rate: PerSecond(10), Burst: 1, MaxWait: 2 * d})
		start := time.Now()
		var wg sync.WaitGroup
		var admitted, refused atomic.Int32
		for range 5 {
			wg.Go(func() {
				if _, err := b.Acquire(t.Context(), core.Call{}); err == nil {
					admitted.Add(1)
				} else if refused.Add(1); time.Since(start) != 0 {
					t.Error("a refusal waited")
				}
			})
		}
		wg.Wait()
		require.Equal(t, 2*d, time.Since(start))
		require.EqualValues(t, 3, admitted.Load())
		require.EqualValues(t, 2, refused.Load())

		ctx, cancel := context.WithTimeout(t.Context(), d/2)
		defer cancel()
		_, err := b.Acquire(ctx, core.Call{})
		require.ErrorIs(t, err, ErrLimited)
		require.Equal(t, 2*d, time.Since(start), "its deadline comes too soon, so it fails at once")
	})
}

func TestNilIsNoLimit(t *testing.T) {
	var b *TokenBucket
	require.True(t, b.Allow() && b.AllowN(1e9) && b.Ready())
	require.False(t, b.AllowN(-1))
	require.NoError(t, b.Wait(t.Context(), 1e9))
	require.ErrorIs(t, b.Wait(t.Context(), -1), ErrInvalidCost)
	p, err := b.Acquire(t.Context(), core.Call{})
	require.NoError(t, err)
	p.Cancel()
	_, err = b.Acquire(t.Context(), core.Call{Cost: -1})
	require.ErrorIs(t, err, ErrInvalidCost)
	require.Zero(t, b.Stats())
	require.Empty(t, b.Name())
	require.Equal(t, "token_bucket", b.Inspect().Kind)
}

// hearing is an observer that keeps what it hears.
type hearing struct {
	mu     sync.Mutex
	events []core.Event
	then   func()
}

func (h *hearing) Enabled(core.Kind) bool { return true }

func (h *hearing) Observe(_ context.Context, e core.Event) {
	h.mu.Lock()
	h.events = append(h.events, e)
	h.mu.Unlock()
	if h.then != nil {
		h.then()
	}
}

func TestObserver(t *testing.T) {
	h := &hearing{}
	b := newBucket(t, TokenBucketConfig{Name: "api", Rate: PerDay(1), Burst: 2, Observer: h})
	require.True(t, b.AllowN(2))
	require.Empty(t, h.events, "nothing is told of an admission")
	b.Allow()
	b.AllowN(3)
	_, _ = b.Acquire(t.Context(), core.Call{Cost: -1})
	event := func(why core.Reason, n int64) core.Event {
		return core.Event{Kind: core.KindRejected, Reason: why, Component: "api", N: n}
	}
	require.Equal(t, []core.Event{
		event(core.RateLimited, 1), event(core.NeverFits, 3), event(core.InvalidCost, -1),
	}, h.events)

	h.then = func() { panic("observer") }
	require.False(t, b.Allow())
	h.then = func() {
		h.then = nil // calls back in
		b.Allow()
		b.Inspect()
	}
	require.False(t, b.Allow())
	h.then = runtime.Goexit
	gone := make(chan struct{})
	go func() { defer close(gone); b.Allow() }()
	<-gone
	block := make(chan struct{})
	h.then = func() { <-block }
	stuck := make(chan struct{})
	go func() { defer close(stuck); b.Allow() }()
	require.Zero(t, b.Stats().Available, "nobody else waits")
	close(block)
	<-stuck
	require.EqualValues(t, 8, b.Stats().Refused)
}

func TestInspect(t *testing.T) {
	b := newBucket(t, TokenBucketConfig{Name: "api", Rate: PerMinute(1), Burst: 2})
	b.Allow()
	b.AllowN(2)
	r := b.Inspect()
	require.Equal(t, "token_bucket", r.Kind)
	require.Equal(t, "api", r.Name)
	require.False(t, r.Since.IsZero())
	require.Equal(t, []core.Value{
		core.Count("surgewall.rate_limiting.requests", "{request}", 1).With("result", "acquired"),
		core.Count("surgewall.rate_limiting.requests", "{request}", 1).With("result", "rejected"),
		core.Amount("surgewall.rate_limiting.tokens.available", "{token}", 1),
	}, r.Values)
	require.Equal(t, []core.Setting{
		{Name: "Rate", Value: PerMinute(1)}, {Name: "Burst", Value: 2}, {Name: "MaxWait", Value: time.Duration(0)},
	}, r.Settings)
}

// Many goroutines, some of whose calls never start: those that did are within
// the limit for the time that passed.
func TestContention(t *testing.T) {
	for _, tc := range []struct {
		name        string
		rate, burst int
	}{{"slow", 1_000, 50}, {"fast", 1_000_000, 1_000}} {
		t.Run(tc.name, func(t *testing.T) {
			start := time.Now() // real time: contention needs it; the bound is exact all the same
			b := newBucket(t, TokenBucketConfig{Rate: PerSecond(tc.rate), Burst: tc.burst, MaxWait: 50 * time.Microsecond})
			used := contend(t, b, 20_000)
			require.True(t, within(used, PerSecond(tc.rate), tc.burst, time.Since(start)), "%d in %v", used, time.Since(start))
			require.GreaterOrEqual(t, used, int64(tc.burst)-3)
			s := b.Stats()
			require.EqualValues(t, 8*20_000, s.Admitted+s.Refused)
		})
	}
}

// contend is what eight goroutines have used of l, each with so many calls, some of
// which never start.
func contend(t *testing.T, l interface {
	Limiter
	AllowN(n int) bool
	Wait(ctx context.Context, n int) error
}, calls int,
) int64 {
	ctx := t.Context()
	var used atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range calls {
				n := 1 + r.IntN(3)
				switch r.IntN(4) {
				case 0:
					if l.AllowN(n) {
						used.Add(int64(n))
					}
				case 1:
					if p, err := l.Acquire(ctx, core.Call{Cost: n}); err == nil {
						p.Cancel()
					}
				case 2:
					if p, err := l.Acquire(ctx, core.Call{Cost: n}); err == nil {
						used.Add(1)
						p.Finish(ctx, core.Result{Cost: 1})
					}
				case 3:
					short, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(50_000)))
					if l.Wait(short, n) == nil {
						used.Add(int64(n))
					}
					cancel()
				}
			}
		})
	}
	wg.Wait()
	return used.Load()
}

func TestRefusalLeavesTheWordUnwritten(t *testing.T) {
	b := newBucket(t, TokenBucketConfig{Rate: PerDay(1), Burst: 1})
	require.True(t, b.Allow())
	tat := b.bucket.in.Load().word.Load()
	require.False(t, b.Allow())
	_, err := b.Acquire(t.Context(), core.Call{})
	require.ErrorIs(t, err, ErrLimited)
	require.Equal(t, tat, b.bucket.in.Load().word.Load())
}

func TestAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ctx := t.Context()
	free := newBucket(t, TokenBucketConfig{Rate: PerSecond(1e9), Burst: 1e9})
	used := newBucket(t, TokenBucketConfig{Rate: PerDay(1), Burst: 10})
	require.True(t, used.AllowN(10))
	keyed, err := NewKeyed(KeyedConfig[string]{Limit: TokenBucketConfig{Rate: PerSecond(1e9), Burst: 1e9}})
	require.NoError(t, err)
	keyedUsed, err := NewKeyed(KeyedConfig[string]{Limit: TokenBucketConfig{Rate: PerDay(1), Burst: 1}})
	require.NoError(t, err)
	keyedUsed.Allow("a")
	acquire := func(g core.Guard, cost int, admitted bool) {
		p, err := g.Acquire(ctx, core.Call{Cost: cost})
		if (err == nil) != admitted {
			t.Error("wrong answer")
		}
		p.Done(ctx, core.Success)
	}
	for name, f := range map[string]func(){
		"allow":           func() { free.Allow() },
		"allow five":      func() { free.AllowN(5) },
		"wait":            func() { _ = free.Wait(ctx, 1) },
		"acquire":         func() { acquire(free, 1, true) },
		"cancel":          func() { p, _ := free.Acquire(ctx, core.Call{}); p.Cancel() },
		"refused":         func() { used.Allow() },
		"acquire refused": func() { acquire(used, 1, false) },
		"two costs":       func() { acquire(used, 1, false); acquire(used, 5, false) },
		"never fits":      func() { acquire(used, 11, false) },
		"invalid":         func() { acquire(used, -1, false) },
		"keyed":           func() { keyed.Allow("a") },
		"keyed acquire": func() {
			p, _ := keyed.AcquireKey(ctx, "a", core.Call{})
			p.Cancel()
		},
		"keyed refused": func() { _, _ = keyedUsed.AcquireKey(ctx, "a", core.Call{}) },
	} {
		require.Zero(t, testing.AllocsPerRun(1000, f), name)
	}
}

// With a fast rate the instant to retry moves with every token; it is rounded,
// so that refusals share it.
func TestRefusalsOfAFastRateAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, TokenBucketConfig{Rate: PerSecond(1_000_000), Burst: 1})
		seen := map[error]bool{}
		for range 10_000 { // 10 ms
			time.Sleep(time.Microsecond)
			require.True(t, b.Allow())
			_, err := b.Acquire(t.Context(), core.Call{})
			require.LessOrEqual(t, retryAfter(t, err), time.Millisecond)
			seen[err] = true
		}
		require.LessOrEqual(t, len(seen), 11)
	})
}
