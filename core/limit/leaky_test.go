package limit

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func newLeaky(t *testing.T, cfg LeakyBucketConfig) *LeakyBucket {
	t.Helper()
	b, err := NewLeakyBucket(cfg)
	require.NoError(t, err)
	return b
}

func TestLeakyBadConfig(t *testing.T) {
	_, err := NewLeakyBucket(LeakyBucketConfig{Capacity: -1, MaxWait: -1})
	require.ErrorIs(t, err, core.ErrConfig)
	for _, field := range []string{"Rate", "Capacity", "MaxWait"} {
		require.ErrorContains(t, err, field)
	}
	b := newLeaky(t, LeakyBucketConfig{Rate: PerSecond(7)})
	require.Equal(t, 7, b.Stats().Limit)
	require.Equal(t, "leaky_bucket", b.Name())
	require.ErrorIs(t, b.Reconfigure(LeakyBucketConfig{}), core.ErrConfig)
	require.Equal(t, 7, b.Stats().Limit)
}

func TestLeakyMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeaky(t, LeakyBucketConfig{Rate: PerSecond(5), Capacity: 3})
		require.True(t, b.AllowN(3))
		require.False(t, b.Allow())
		require.Equal(t, Decision{
			Limit: 3, RetryAfter: 200 * time.Millisecond, ResetAfter: 600 * time.Millisecond,
			Window: 600 * time.Millisecond, Policy: "leaky_bucket",
		}, b.Peek(1))
		_, err := b.Acquire(t.Context(), core.Call{})
		require.ErrorIs(t, err, ErrLimited)
		require.Equal(t, 200*time.Millisecond, retryAfter(t, err))
		time.Sleep(200 * time.Millisecond)
		require.True(t, b.Allow())
		require.False(t, b.Allow())
	})
}

// As a shaper the bucket lets calls go evenly, however they come, and refuses at
// once those for which there is no room.
func TestLeakyShapes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeaky(t, LeakyBucketConfig{Rate: PerSecond(10), Capacity: 4})
		start := time.Now()
		left := make([]time.Duration, 6)
		var wg sync.WaitGroup
		for i := range left {
			wg.Go(func() {
				if err := b.Wait(t.Context(), 1); err != nil {
					require.ErrorIs(t, err, ErrLimited)
					require.Equal(t, d, retryAfter(t, err))
					require.Equal(t, start, time.Now(), "refused at once")
					left[i] = -1
					return
				}
				left[i] = time.Since(start)
			})
			synctest.Wait()
		}
		wg.Wait()
		require.Equal(t, []time.Duration{0, d, 2 * d, 3 * d, -1, -1}, left)

		// What comes within an interval waits for the rest of it.
		time.Sleep(d + d/4)
		start = time.Now()
		require.NoError(t, b.Wait(t.Context(), 1))
		require.NoError(t, b.Wait(t.Context(), 2))
		require.Equal(t, d, time.Since(start))
		require.NoError(t, b.Wait(t.Context(), 1))
		require.Equal(t, 3*d, time.Since(start), "a cost of two takes two intervals")
	})
}

func TestLeakyGuardShapesWithMaxWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeaky(t, LeakyBucketConfig{Rate: PerSecond(10), Capacity: 10, MaxWait: 2 * d})
		start := time.Now()
		for i := range 3 {
			p, err := b.Acquire(t.Context(), core.Call{})
			require.NoError(t, err)
			p.Done(t.Context(), core.Success)
			require.Equal(t, time.Duration(i)*d, time.Since(start))
		}
		r, err := b.Reserve(5, time.Second)
		require.NoError(t, err)
		require.Equal(t, d, r.Delay())
		_, err = b.Acquire(t.Context(), core.Call{})
		require.ErrorIs(t, err, ErrLimited, "six intervals are more than MaxWait")

		short, cancel := context.WithTimeout(t.Context(), 5*d)
		defer cancel()
		require.ErrorIs(t, b.Wait(short, 1), ErrLimited)
		require.Equal(t, 2*d, time.Since(start), "at once")
		r.Cancel()
		r.Cancel()
		require.NoError(t, b.Wait(short, 1))
		require.Equal(t, 3*d, time.Since(start), "the cancelled place is given on")
	})
}

// A place given up between others is not given on: their times are fixed.
func TestLeakyCancelInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeaky(t, LeakyBucketConfig{Rate: PerSecond(10), Capacity: 10})
		var rs [4]Reservation
		for i := range rs {
			var err error
			rs[i], err = b.Reserve(1, time.Second)
			require.NoError(t, err)
			require.Equal(t, time.Duration(i)*d, rs[i].Delay())
		}
		rs[1].Cancel()
		require.Equal(t, 2*d, rs[2].Delay())
		next, err := b.Reserve(1, time.Second)
		require.NoError(t, err)
		require.Equal(t, 4*d, next.Delay())
	})
}

func TestNilLeakyIsNoLimit(t *testing.T) {
	var b *LeakyBucket
	require.True(t, b.Allow())
	require.True(t, b.AllowN(1000))
	require.False(t, b.AllowN(-1))
	require.True(t, b.Take(5).OK)
	require.False(t, b.Peek(-1).OK)
	require.NoError(t, b.Wait(t.Context(), 5))
	r, err := b.Reserve(3, 0)
	require.NoError(t, err)
	require.Zero(t, r.Delay())
	r.Cancel()
	_, err = b.Acquire(t.Context(), core.Call{Cost: -1})
	require.ErrorIs(t, err, ErrInvalidCost)
	b.Charge(3)
	b.Refund(3)
	b.Pause(time.Now().Add(time.Hour))
	require.NoError(t, b.Reconfigure(LeakyBucketConfig{Rate: PerSecond(1)}))
	require.True(t, b.Ready())
	require.Nil(t, b.Refusal())
	require.Zero(t, b.Stats())
	require.Empty(t, b.Name())
	require.Equal(t, "leaky_bucket", b.Inspect().Kind)
}

// lateContext has a deadline that is past, and was not told yet.
type lateContext struct {
	context.Context
	deadline time.Time
}

func (c lateContext) Deadline() (time.Time, bool) { return c.deadline, true }

// A call whose deadline passes while it asks does not overtake those that wait.
func TestLeakyBucketWithoutTimeLeftDoesNotOvertake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := LeakyBucketConfig{Rate: PerSecond(1), Capacity: 5}
		b := must(NewLeakyBucket(cfg))
		k := newKeyed(t, KeyedConfig[string]{Limit: cfg})
		_, err := b.Reserve(2, forever)
		require.NoError(t, err)
		_, err = k.Reserve("a", 2, forever)
		require.NoError(t, err)
		for _, late := range []time.Duration{0, time.Second} {
			ctx := lateContext{t.Context(), time.Now().Add(-late)}
			require.ErrorIs(t, b.Wait(ctx, 1), ErrLimited)
			require.ErrorIs(t, k.Wait(ctx, "a", 1), ErrLimited)
			require.ErrorIs(t, All(b).Wait(ctx, 1), ErrLimited)
		}
	})
}
