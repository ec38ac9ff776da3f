package limit

import (
	"context"
	"math/rand/v2"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
)

func TestAllTakesFromAllOrFromNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		second := newBucket(t, TokenBucketConfig{Name: "second", Rate: PerSecond(10), Burst: 3})
		hour := newBucket(t, TokenBucketConfig{Name: "hour", Rate: PerHour(36), Burst: 5})
		time.Sleep(time.Second)
		both := All(second, nil, (*TokenBucket)(nil), hour)

		require.True(t, both.AllowN(3))
		require.Equal(t, 0, second.Peek(0).Remaining)
		require.Equal(t, 2, hour.Peek(0).Remaining)

		// The limit that binds is named, and the other is not charged.
		_, err := both.Acquire(t.Context(), core.Call{})
		require.ErrorIs(t, err, ErrLimited)
		require.ErrorContains(t, err, `"second"`)
		require.Equal(t, d, retryAfter(t, err))
		require.Equal(t, 2, hour.Peek(0).Remaining)
		require.Equal(t, Decision{Limit: 3, RetryAfter: d, ResetAfter: 3 * d, Window: 3 * d, Policy: "second"}, both.Take(1))
		require.False(t, both.Ready())
		require.Equal(t, "second", both.Refusal().Guard)

		time.Sleep(3 * d)
		got := both.Take(2)
		require.True(t, got.OK)
		require.Equal(t, "hour", got.Policy, "the least is left there")
		require.Equal(t, 0, got.Remaining)
		require.Equal(t, 1, second.Peek(0).Remaining)
		_, err = both.Acquire(t.Context(), core.Call{})
		require.ErrorContains(t, err, `"hour"`)
		require.Equal(t, 100*time.Second-3*d, retryAfter(t, err))
		require.Equal(t, 1, second.Peek(0).Remaining)

		_, err = both.Acquire(t.Context(), core.Call{Cost: 4})
		require.ErrorIs(t, err, ErrNeverFits)
		require.ErrorContains(t, err, `"second"`)
		_, err = both.Acquire(t.Context(), core.Call{Cost: -4})
		require.ErrorIs(t, err, ErrInvalidCost)
		require.False(t, both.AllowN(-1))
		require.True(t, both.AllowN(0))

		s := both.Stats()
		require.EqualValues(t, 2, s.Admitted)
		require.EqualValues(t, 6, s.Refused)
		require.EqualValues(t, 5, second.Stats().Refused, "each limit counts what it refused itself")
		require.EqualValues(t, 1, hour.Stats().Refused)
		r := both.Inspect()
		require.Equal(t, "combined_limit", r.Kind)
		require.Len(t, r.Children, 2)
		require.Equal(t, "hour", r.Children[1].Name)
	})
}

func TestAllWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		second := newBucket(t, TokenBucketConfig{Name: "second", Rate: PerSecond(10), Burst: 1})
		minute := newBucket(t, TokenBucketConfig{Name: "minute", Rate: PerMinute(60), Burst: 3})
		both := All(second, minute)
		start := time.Now()
		for _, want := range []time.Duration{0, d, 2 * d, time.Second, 2 * time.Second} {
			require.NoError(t, both.Wait(t.Context(), 1))
			require.Equal(t, want, time.Since(start))
		}
		short, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		err := both.Wait(short, 1)
		require.ErrorContains(t, err, `"minute"`)
		require.Equal(t, 2*time.Second, time.Since(start), "at once")

		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- both.Wait(ctx, 1) }()
		time.Sleep(d)
		stop()
		require.ErrorIs(t, <-done, context.Canceled)
		require.Equal(t, time.Second-d, minute.Peek(1).RetryAfter, "its place is free again")

		r, err := both.Reserve(1, time.Hour)
		require.NoError(t, err)
		require.Equal(t, time.Second-d, r.Delay())
		minute.Pause(time.Now().Add(time.Minute))
		require.Equal(t, time.Minute+time.Second-d, r.Delay())
		r.Cancel()
		require.Equal(t, 1, second.Peek(0).Remaining)

		go func() { done <- both.Wait(t.Context(), 1) }()
		synctest.Wait()
		require.NoError(t, minute.Reconfigure(TokenBucketConfig{Rate: PerMinute(60), Burst: 30}))
		minute.Pause(time.Time{})
		require.NoError(t, <-done, "at once")
		require.Equal(t, 2*time.Second+d, time.Since(start))
	})
}

func TestAllPermits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newBucket(t, TokenBucketConfig{Rate: PerSecond(10), Burst: 10})
		b := newLeaky(t, LeakyBucketConfig{Rate: PerSecond(1), Capacity: 10})
		nested := All(All(a), All(), All(b))
		left := func(want int) {
			t.Helper()
			require.Equal(t, want, a.Peek(0).Remaining)
			require.Equal(t, want, b.Peek(0).Remaining)
		}
		p, err := nested.Acquire(t.Context(), core.Call{Cost: 4})
		require.NoError(t, err)
		left(6)
		var again core.Permit // a copy, where go vet does not look
		reflect.ValueOf(&again).Elem().Set(reflect.ValueOf(&p).Elem())
		p.Cancel()
		left(10)
		p, err = nested.Acquire(t.Context(), core.Call{Cost: 4})
		require.NoError(t, err)
		again.Cancel()
		left(6)
		p.Finish(t.Context(), core.Result{Cost: 1})
		left(9)
		p, err = nested.Acquire(t.Context(), core.Call{})
		require.NoError(t, err)
		p.Finish(t.Context(), core.Result{Cost: 5})
		left(4)
		require.EqualValues(t, 1, nested.Stats().Cancelled)
	})
}

func TestAllOfNothingIsNoLimit(t *testing.T) {
	for _, c := range []*Combined{nil, All(), All(nil, (*LeakyBucket)(nil))} {
		require.True(t, c.Allow())
		require.False(t, c.AllowN(-1))
		require.True(t, c.Take(7).OK)
		require.NoError(t, c.Wait(t.Context(), 1))
		_, err := c.Reserve(1, 0)
		require.NoError(t, err)
		_, err = c.Acquire(t.Context(), core.Call{Cost: -1})
		require.ErrorIs(t, err, ErrInvalidCost)
		require.True(t, c.Ready())
		require.Nil(t, c.Refusal())
		require.Zero(t, c.Stats().Admitted)
		require.Equal(t, "combined_limit", c.Inspect().Kind)
		_ = c.Name()
	}
}

// Against two models of a bucket in exact time: a call goes through if both have
// enough, and what is refused has changed neither.
func TestAllAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// In real time, in which nothing comes back at a token a day.
		a, _ := NewTokenBucket(TokenBucketConfig{Name: "a", Rate: PerDay(1), Burst: rapid.IntRange(1, 20).Draw(t, "a")})
		b, _ := NewLeakyBucket(LeakyBucketConfig{Name: "b", Rate: PerDay(1), Capacity: rapid.IntRange(1, 20).Draw(t, "b")})
		both := All(a, b)
		inA, inB := a.Stats().Limit, b.Stats().Limit
		for range rapid.IntRange(1, 30).Draw(t, "calls") {
			n := rapid.IntRange(0, 6).Draw(t, "n")
			switch rapid.IntRange(0, 2).Draw(t, "who") {
			case 0:
				if a.AllowN(n) {
					inA -= n
				}
			case 1:
				if b.AllowN(n) {
					inB -= n
				}
			default:
				want := n <= inA && n <= inB
				if both.AllowN(n) != want {
					t.Fatalf("%d of %d and %d", n, inA, inB)
				}
				if want {
					inA, inB = inA-n, inB-n
				}
			}
			if a.Peek(0).Remaining != inA || b.Peek(0).Remaining != inB {
				t.Fatalf("left %d and %d, want %d and %d", a.Peek(0).Remaining, b.Peek(0).Remaining, inA, inB)
			}
		}
	})
}

func TestAllUnderContention(t *testing.T) {
	const burst = 500
	a := newBucket(t, TokenBucketConfig{Name: "a", Rate: PerDay(1), Burst: burst})
	b := newBucket(t, TokenBucketConfig{Name: "b", Rate: PerDay(1), Burst: burst})
	ab, ba := All(a, b), All(b, a)
	var taken [2]atomic.Int64
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 3))
			for range 3_000 {
				c := ab
				if i%2 == 0 {
					c = ba
				}
				switch r.IntN(3) {
				case 0:
					if c.Allow() {
						taken[0].Add(1)
						taken[1].Add(1)
					}
				case 1:
					if p, err := c.Acquire(t.Context(), core.Call{Cost: 3}); err == nil {
						p.Cancel()
					}
				case 2:
					if r.IntN(20) == 0 && a.Allow() {
						taken[0].Add(1)
					}
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, taken[0].Load(), int64(burst))
	require.LessOrEqual(t, b.Peek(0).Remaining, int(burst-taken[1].Load()), "nothing was given back that was used")
	require.LessOrEqual(t, a.Peek(0).Remaining, int(burst-taken[0].Load()))
}

func TestAllAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	free := func() Limiter { return newBucket(t, TokenBucketConfig{Rate: PerSecond(1e9), Burst: 1e9}) }
	used := newBucket(t, TokenBucketConfig{Rate: PerDay(1), Burst: 1})
	require.True(t, used.Allow())
	ctx := t.Context()
	three, none := All(free(), free(), free()), All(free(), used)
	for name, f := range map[string]func(){
		"allow":   func() { three.Allow() },
		"acquire": func() { p, _ := three.Acquire(ctx, core.Call{}); p.Done(ctx, core.Success) },
		"cancel":  func() { p, _ := three.Acquire(ctx, core.Call{}); p.Cancel() },
		"wait":    func() { _ = three.Wait(ctx, 1) },
		"refused": func() { _, _ = none.Acquire(ctx, core.Call{}) },
	} {
		require.Zero(t, testing.AllocsPerRun(1000, f), name)
	}
}

// All takes the windows too, and passes on what is done to all of them.
func TestAllOfEveryAlgorithm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		window, err := NewSlidingWindow(SlidingWindowConfig{Name: "window", Limit: 4, Window: time.Second})
		require.NoError(t, err)
		log, err := NewSlidingLog(SlidingLogConfig{Name: "log", Limit: 4, Window: time.Second})
		require.NoError(t, err)
		limits := []Limiter{
			newBucket(t, TokenBucketConfig{Name: "bucket", Rate: PerSecond(4), Burst: 4}),
			newLeaky(t, LeakyBucketConfig{Name: "leaky", Rate: PerSecond(4), Capacity: 4}),
			window, log,
		}
		all := All(limits...)
		left := func(want int) {
			t.Helper()
			for _, l := range limits {
				require.Equal(t, want, l.Peek(0).Remaining, l.Name())
			}
		}
		require.True(t, all.AllowN(3))
		left(1)
		require.False(t, all.AllowN(2))
		left(1)
		all.Charge(1)
		left(0)
		all.Refund(3)
		left(3)
		p, err := all.Acquire(t.Context(), core.Call{Cost: 2})
		require.NoError(t, err)
		left(1)
		p.Cancel()
		left(3)
		start := time.Now()
		all.Pause(start.Add(time.Minute))
		for _, l := range limits {
			require.False(t, l.Peek(1).OK, l.Name())
		}
		require.NoError(t, all.Wait(t.Context(), 3))
		require.Equal(t, time.Minute+time.Second/4, time.Since(start), "the leaky bucket had one to drain")

		for _, l := range limits {
			// Used up by itself, each is the one that binds.
			time.Sleep(10 * time.Second)
			p, err := l.Acquire(t.Context(), core.Call{Cost: 4})
			require.NoError(t, err, l.Name())
			_, err = all.Acquire(t.Context(), core.Call{})
			require.ErrorIs(t, err, ErrLimited)
			require.ErrorContains(t, err, `"`+l.Name()+`"`)
			p.Done(t.Context(), core.Success)
		}
	})
}
