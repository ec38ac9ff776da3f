package limit

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
)

func newKeyed[K comparable](t *testing.T, cfg KeyedConfig[K]) *Keyed[K] {
	t.Helper()
	k, err := NewKeyed[K](cfg)
	require.NoError(t, err)
	return k
}

func rates[K comparable](k *Keyed[K]) *keyedRate[K, bucketState] {
	return k.each.(*keyedRate[K, bucketState])
}

// known reports whether a key has a limit of its own now.
func known[K comparable](k *Keyed[K], key K) bool {
	switch each := k.each.(type) {
	case *keyedRate[K, bucketState]:
		return knows(each, key)
	case *keyedRate[K, windowState]:
		return knows(each, key)
	case *keyedRate[K, logState]:
		return knows(each, key)
	}
	return false
}

func knows[K comparable, S any](r *keyedRate[K, S], key K) bool {
	h := maphash.Comparable(r.seed, key)
	s := &r.shards[h&r.mask]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.find(h, key) != nil
}

// checkKeyed fails if what k remembers is not in order, while nobody calls.
func checkKeyed[K comparable](t require.TestingT, k *Keyed[K]) {
	switch each := k.each.(type) {
	case *keyedRate[K, bucketState]:
		checkRates(t, k, each)
	case *keyedRate[K, windowState]:
		checkRates(t, k, each)
	case *keyedRate[K, logState]:
		checkRates(t, k, each)
	}
}

func checkRates[K comparable, S any](t require.TestingT, k *Keyed[K], r *keyedRate[K, S]) {
	keys, paused := 0, 0
	for i := range r.shards {
		s := &r.shards[i]
		for key, c := range checkTable(t, k.seed, &s.table) {
			require.EqualValues(t, i, maphash.Comparable(k.seed, key)&k.mask)
			require.Same(t, s, c.home.shard)
			require.Same(t, s.set, c.home.rule.set)
		}
		require.False(t, s.fixed)
		keys += int(s.keys)
		paused += len(s.paused)
	}
	require.EqualValues(t, keys, k.places.taken.Load())
	require.EqualValues(t, paused, r.pauses.Load())
	require.Equal(t, keys, k.Stats().Keys)
}

func TestKeyedBadConfig(t *testing.T) {
	k, err := NewKeyed(KeyedConfig[string]{MaxKeys: -1})
	require.Nil(t, k)
	require.ErrorIs(t, err, core.ErrConfig)
	require.ErrorContains(t, err, "limit.KeyedConfig.MaxKeys: -1: must be 0 to 2147483647")
	require.ErrorContains(t, err, "limit.KeyedConfig.Limit: must be set")
	_, err = NewKeyed(KeyedConfig[int]{Limit: (*TokenBucketConfig)(nil)})
	require.ErrorContains(t, err, "limit.KeyedConfig.Limit: must be the Config of an algorithm, and no pointer to it")

	for _, tc := range []struct {
		cfg  KeyedConfig[string]
		want []string
	}{
		{KeyedConfig[string]{Limit: TokenBucketConfig{Name: "x", Burst: -1, Observer: &hearing{}}}, []string{
			"limit.KeyedConfig.Limit.Name: x: must be empty",
			"limit.KeyedConfig.Limit.Rate: 0 per 0s: must have Tokens above 0",
			"limit.KeyedConfig.Limit.Burst: -1: must be 0 to 1073741823",
			"limit.KeyedConfig.Limit.Observer: must be nil",
		}},
		{KeyedConfig[string]{Limit: LeakyBucketConfig{Name: "x", Capacity: -1, MaxWait: -1, Observer: &hearing{}}}, []string{
			"limit.KeyedConfig.Limit.Name: x: must be empty",
			"limit.KeyedConfig.Limit.Rate: 0 per 0s: must have Tokens above 0",
			"limit.KeyedConfig.Limit.Capacity: -1: must be 0 to 1073741823",
			"limit.KeyedConfig.Limit.MaxWait: -1ns: must not be negative",
			"limit.KeyedConfig.Limit.Observer: must be nil",
		}},
		{KeyedConfig[string]{Limit: TokenBucketConfig{Rate: PerSecond(1)}, Plans: map[string]Algorithm{
			"":     TokenBucketConfig{Rate: PerSecond(1)},
			"gold": LeakyBucketConfig{Rate: PerSecond(1)},
			"lead": TokenBucketConfig{Rate: PerSecond(-1)},
			"iron": nil,
			"zinc": &TokenBucketConfig{Rate: PerSecond(1)},
		}}, []string{
			"limit.KeyedConfig.Plans[]: must have a name",
			"limit.KeyedConfig.Plans[gold]: must be of the same algorithm as Limit",
			"limit.KeyedConfig.Plans[lead].Rate: -1 per 1s: must have Tokens above 0",
			"limit.KeyedConfig.Plans[iron]: must be the Config of an algorithm",
			"limit.KeyedConfig.Plans[zinc]: must be the Config of an algorithm",
			"limit.KeyedConfig.Plan: must be set if there are Plans",
		}},
	} {
		_, err = NewKeyed(tc.cfg)
		require.ErrorIs(t, err, core.ErrConfig)
		for _, want := range tc.want {
			require.ErrorContains(t, err, want)
		}
		// A change is checked as well, and a bad one changes nothing.
		k := newKeyed(t, KeyedConfig[string]{Limit: TokenBucketConfig{Rate: PerSecond(1), Burst: 3}})
		before := k.Inspect().Settings
		require.ErrorIs(t, k.Reconfigure(tc.cfg), core.ErrConfig)
		require.Equal(t, before, k.Inspect().Settings)
	}
	c := newKeyed(t, KeyedConfig[string]{Limit: TokenBucketConfig{Rate: PerSecond(1)}})
	err = c.Reconfigure(KeyedConfig[string]{Limit: LeakyBucketConfig{Rate: PerSecond(1)}})
	require.ErrorContains(t, err, "limit.KeyedConfig.Limit: must be of the same algorithm as before")
}

func TestKeysDoNotShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t, KeyedConfig[int]{Limit: TokenBucketConfig{Rate: PerSecond(10), Burst: 2}})
		for key := range 1000 {
			require.True(t, k.AllowN(key, 2))
			require.False(t, k.Allow(key))
		}
		time.Sleep(d)
		for key := range 1000 {
			require.True(t, k.Allow(key))
			require.False(t, k.Allow(key))
		}
		s := k.Stats()
		require.Equal(t, KeyedStats{Admitted: 2000, Refused: 2000, Keys: 1000, MaxKeys: defaultMaxKeys}, s)
	})
}

// A flood of fresh keys neither pushes out the debt of a key that is limited
// nor grows beyond the cap.
func TestFloodOfKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const maxKeys = 1000
		k := newKeyed(t, KeyedConfig[int]{MaxKeys: maxKeys, Limit: TokenBucketConfig{Rate: PerHour(1), Burst: 3}})
		require.True(t, k.AllowN(-1, 3))
		for i := range 100_000 {
			time.Sleep(time.Millisecond)
			k.Allow(i)
			if i%1000 == 0 {
				require.False(t, k.Allow(-1))
			}
		}
		s := k.Stats()
		require.Equal(t, maxKeys, s.Keys)
		require.EqualValues(t, 100_000-(maxKeys-1), s.Overflowed)
		// The keys that found room had one token each; all others together a burst.
		require.EqualValues(t, 1+(maxKeys-1)+3, s.Admitted)
	})
}

// Once buckets are full again they make room, a few for each new key.
func TestFullBucketsMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t, KeyedConfig[int]{MaxKeys: 1000, Limit: TokenBucketConfig{Rate: PerSecond(1), Burst: 1}})
		for i := range 1000 {
			require.True(t, k.Allow(i))
		}
		require.Equal(t, 1000, k.Stats().Keys)
		time.Sleep(time.Second)
		for i := range 900 {
			k.Allow(10_000 + i)
		}
		s := k.Stats()
		require.LessOrEqual(t, s.Keys, 1000)
		require.Zero(t, s.Overflowed)
		checkKeyed(t, k)
	})
}

// What a key took from the overflow bucket is not forgotten when it gets one of
// its own.
func TestOverflowedKeyBringsItsDebt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t, KeyedConfig[string]{MaxKeys: 1, Limit: TokenBucketConfig{Rate: PerSecond(1), Burst: 4}})
		require.True(t, k.Allow("first"))
		require.True(t, k.AllowN("late", 4))
		require.False(t, k.Allow("late"))
		time.Sleep(2 * time.Second) // "first" is full again
		require.True(t, k.AllowN("late", 2))
		require.False(t, k.Allow("late"))
		require.EqualValues(t, 2, k.Stats().Overflowed)
		require.Equal(t, 1, k.Stats().Keys)
	})
}

// However few keys there may be, one that owes nothing makes room for the next:
// with more shards than keys, it would be looked for in the wrong one.
func TestFewKeysMakeRoom(t *testing.T) {
	for _, maxKeys := range []int{1, 10, 100, 1000, 10_000} {
		t.Run(fmt.Sprint(maxKeys), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKeyed(t, KeyedConfig[int]{MaxKeys: maxKeys, Limit: TokenBucketConfig{Rate: PerSecond(1), Burst: 1}})
				for key := range 3 * maxKeys {
					k.Allow(key)
				}
				require.Equal(t, maxKeys, k.Stats().Keys)
				overflowed := k.Stats().Overflowed
				for key := range 1000 {
					time.Sleep(time.Second)
					require.True(t, k.Allow(-1-key))
				}
				require.Equal(t, overflowed, k.Stats().Overflowed)
			})
		})
	}
}

func TestKeyedPermits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t, KeyedConfig[string]{MaxKeys: 1, Limit: TokenBucketConfig{Rate: PerSecond(10), Burst: 5}})
		ctx := t.Context()
		left := func(key string) int {
			n := 0
			for k.Allow(key) {
				n++
			}
			return n
		}
		a, err := k.AcquireKey(ctx, "a", core.Call{Cost: 5})
		require.NoError(t, err)
		b, err := k.AcquireKey(ctx, "b", core.Call{Cost: 5}) // in the overflow bucket
		require.NoError(t, err)
		a.Cancel()
		require.Equal(t, 5, left("a"), "it goes back to its key")
		require.Equal(t, 0, left("b"))
		b.Finish(ctx, core.Result{Cost: 2})
		require.Equal(t, 3, left("b"))

		// A permit outlives its key: nothing is given to the key's next bucket,
		// and a charge finds it.
		time.Sleep(time.Second)
		old, err := k.AcquireKey(ctx, "a", core.Call{})
		require.NoError(t, err)
		older, err := k.AcquireKey(ctx, "a", core.Call{})
		require.NoError(t, err)
		time.Sleep(time.Second)
		for i := 0; i < 10_000 && known(k, "a"); i++ {
			k.Allow(fmt.Sprint("fresh", i))
		}
		require.False(t, known(k, "a"))
		time.Sleep(time.Second)
		old.Cancel()
		older.Finish(ctx, core.Result{Cost: 4})
		require.Equal(t, 2, left("a"), "5, less the 3 charged late")
	})
}

func TestKeyedRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hearing{}
		k := newKeyed(t, KeyedConfig[string]{
			Name: "clients", Observer: h, Limit: TokenBucketConfig{Rate: PerSecond(10), Burst: 2, MaxWait: d},
		})
		ctx := t.Context()
		_, err := k.AcquireKey(ctx, "a", core.Call{Cost: -1})
		require.ErrorIs(t, err, ErrInvalidCost)
		_, err = k.AcquireKey(ctx, "a", core.Call{Cost: 3})
		require.ErrorIs(t, err, ErrNeverFits)
		require.False(t, k.AllowN("a", -1) || k.AllowN("a", 3))
		require.True(t, k.AllowN("a", 0) && k.AllowN("a", 2))

		start := time.Now()
		_, err = k.AcquireKey(ctx, "a", core.Call{Cost: 2})
		require.ErrorIs(t, err, ErrLimited)
		require.Equal(t, 2*d, retryAfter(t, err))
		require.Zero(t, time.Since(start))
		_, err = k.AcquireKey(ctx, "a", core.Call{})
		require.NoError(t, err)
		require.Equal(t, d, time.Since(start), "it waited")

		short, cancel := context.WithCancel(ctx)
		go func() { time.Sleep(d / 2); cancel() }()
		_, err = k.AcquireKey(short, "a", core.Call{})
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, err, ErrLimited)
		_, err = k.AcquireKey(short, "a", core.Call{})
		require.ErrorIs(t, err, context.Canceled)
		time.Sleep(d / 2)
		require.True(t, k.Allow("a"), "what waited in vain was given back")

		for _, e := range h.events {
			require.Equal(t, "clients", e.Component)
		}
		require.Len(t, h.events, 7)
		s := k.Stats()
		require.EqualValues(t, 7, s.Refused)
		require.EqualValues(t, 3, s.Admitted)
		r := k.Inspect()
		require.Equal(t, "keyed_limit", r.Kind)
		require.Equal(t, "clients", r.Name)
		require.Contains(t, r.Values, core.Amount("surgewall.rate_limiting.key.count", "{key}", 1))
	})
}

func TestNilKeyedIsNoLimit(t *testing.T) {
	var k *Keyed[string]
	require.True(t, k.Allow("a") && k.AllowN("a", 1e9))
	require.False(t, k.AllowN("a", -1))
	_, err := k.AcquireKey(t.Context(), "a", core.Call{})
	require.NoError(t, err)
	_, err = k.AcquireKey(t.Context(), "a", core.Call{Cost: -1})
	require.ErrorIs(t, err, ErrInvalidCost)
	require.Zero(t, k.Stats())
	require.Empty(t, k.Name())
	require.Equal(t, "keyed_limit", k.Inspect().Kind)
}

// NaN is not equal to itself: in a map it would be a new key each time.
func TestNaNIsNotANewKeyEachTime(t *testing.T) {
	k := newKeyed(t, KeyedConfig[float64]{Limit: TokenBucketConfig{Rate: PerDay(1), Burst: 3}})
	admitted := 0
	for range 1000 {
		if k.Allow(math.NaN()) {
			admitted++
		}
	}
	require.Equal(t, 3, admitted)
	require.Zero(t, k.Stats().Keys)
}

// A key that cannot be compared panics as in a map, and spoils nothing.
func TestKeyThatCannotBeCompared(t *testing.T) {
	for _, limit := range []Algorithm{TokenBucketConfig{Rate: PerDay(1), Burst: 2}, ConcurrencyConfig{Limit: 2}} {
		k := newKeyed(t, KeyedConfig[any]{Limit: limit, MaxKeys: 4})
		for range 3 {
			require.Panics(t, func() { k.Allow([]int{1}) })
			require.Panics(t, func() { k.Peek(func() {}, 1) })
			require.Panics(t, func() { k.Refund([1]any{map[int]int{}}, 1) })
		}
		require.True(t, k.Allow("a") && k.Allow(1) && k.Allow(int8(1)) && k.Allow([1]any{1}))
		require.True(t, k.Allow("a"))
		require.False(t, k.Allow("a"))
		require.True(t, k.Allow(int8(1)))
		require.Equal(t, 4, k.Stats().Keys)
	}
}

// Zero and minus zero are the same key.
func TestKeysThatAreEqualAreOne(t *testing.T) {
	k := newKeyed(t, KeyedConfig[float64]{Limit: TokenBucketConfig{Rate: PerDay(1), Burst: 1}})
	require.True(t, k.Allow(0))
	require.False(t, k.Allow(math.Copysign(0, -1)))
}

// Whatever few places there are, whoever shares, comes back and is paid back: in
// any span of time no key has more than its limit allows.
func TestKeyedBoundOfEachKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(noDeadline{t}, func(t *rapid.T) {
			const keys = 12
			rate, burst := Per(rapid.IntRange(1, 20).Draw(t, "rate"), time.Second), rapid.IntRange(1, 6).Draw(t, "burst")
			k := must(NewKeyed(KeyedConfig[int]{
				MaxKeys: rapid.IntRange(1, keys).Draw(t, "MaxKeys"), Limit: TokenBucketConfig{Rate: rate, Burst: burst},
			}))
			type use struct {
				at time.Time
				n  int
			}
			var used [keys][]use
			for range rapid.IntRange(1, 150).Draw(t, "calls") {
				time.Sleep(time.Duration(rapid.IntRange(0, 200).Draw(t, "ms")) * time.Millisecond)
				key, n := rapid.IntRange(0, keys-1).Draw(t, "key"), rapid.IntRange(1, burst).Draw(t, "n")
				p, err := k.AcquireKey(context.Background(), key, core.Call{Cost: n})
				if err != nil {
					continue
				}
				cost := rapid.IntRange(0, n).Draw(t, "cost")
				if cost == 0 {
					p.Cancel()
					continue
				}
				p.Finish(context.Background(), core.Result{Cost: cost})
				used[key] = append(used[key], use{time.Now(), cost})
			}
			for key, uses := range used {
				for i := range uses {
					sum := int64(0)
					for _, u := range uses[i:] {
						if sum += int64(u.n); !within(sum, rate, burst, u.at.Sub(uses[i].at)) {
							t.Fatalf("key %d: %v", key, uses)
						}
					}
				}
			}
			if s := k.Stats(); s.Keys > s.MaxKeys {
				t.Fatalf("%+v", s)
			}
			checkKeyed(t, k)
		})
	})
}

// Many goroutines on few places, so that keys come and go: no key gets more than
// its limit.
func TestKeyedContention(t *testing.T) {
	start := time.Now() // real time: contention needs it; the bound is exact all the same
	const keys = 40
	rate, burst := PerSecond(2_000), 10
	k := newKeyed(t, KeyedConfig[int]{MaxKeys: keys / 2, Limit: TokenBucketConfig{Rate: rate, Burst: burst}})
	var used [keys]atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 20_000 {
				key, n := r.IntN(keys), 1+r.IntN(3)
				if r.IntN(2) == 0 {
					if k.AllowN(key, n) {
						used[key].Add(int64(n))
					}
					continue
				}
				p, err := k.AcquireKey(t.Context(), key, core.Call{Cost: n})
				if err != nil {
					if !errors.Is(err, ErrLimited) {
						t.Error(err)
					}
					continue
				}
				if r.IntN(2) == 0 {
					p.Cancel()
					continue
				}
				used[key].Add(int64(n))
				p.Done(t.Context(), core.Success)
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	for key := range used {
		require.True(t, within(used[key].Load(), rate, burst, elapsed), "key %d: %d in %v", key, used[key].Load(), elapsed)
	}
	require.LessOrEqual(t, k.Stats().Keys, keys/2)
}

// As for a TokenBucket: a turn that is put off too far is not waited for, and one
// that comes sooner is.
func TestKeyedWaitersFailWhenPutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := TokenBucketConfig{Rate: PerSecond(1), Burst: 1, MaxWait: 2 * time.Second}
		k := newKeyed(t, KeyedConfig[string]{Limit: limit})
		start := time.Now()
		wait := func() chan error {
			require.True(t, k.Allow("a"))
			done := make(chan error)
			go func() {
				_, err := k.AcquireKey(t.Context(), "a", core.Call{})
				done <- err
			}()
			synctest.Wait()
			return done
		}
		done := wait()
		k.Pause("a", time.Now().Add(500*time.Millisecond))
		require.NoError(t, <-done)
		require.Equal(t, 1500*time.Millisecond, time.Since(start))

		time.Sleep(time.Second)
		done = wait()
		limit.Rate = PerSecond(2)
		require.NoError(t, k.Reconfigure(KeyedConfig[string]{Limit: limit}))
		require.NoError(t, <-done)
		require.Equal(t, 3*time.Second, time.Since(start))

		time.Sleep(time.Second)
		done = wait()
		k.Pause("a", time.Now().Add(time.Minute))
		err := <-done
		require.ErrorIs(t, err, ErrLimited)
		require.Equal(t, time.Minute+500*time.Millisecond, retryAfter(t, err))
		require.Equal(t, 4*time.Second, time.Since(start), "at once")
	})
}
