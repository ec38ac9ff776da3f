package limit

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// turns is calls that wait for their turns in a Keyed, and when they had them.
type turns struct {
	k     *Keyed[string]
	start time.Time
	mu    sync.Mutex
	had   []string
}

// wait lets a call of key wait, and returns when it does.
func (w *turns) wait(ctx context.Context, name, key string) {
	go func() {
		err := w.k.Wait(ctx, key, 1)
		w.mu.Lock()
		defer w.mu.Unlock()
		if r, ok := errors.AsType[*core.Rejection](err); ok && r.Cause != nil {
			err = r.Cause
		}
		w.had = append(w.had, fmt.Sprint(name, " ", time.Since(w.start), " ", err))
	}()
	synctest.Wait()
}

// all is what has happened, once d has passed.
func (w *turns) all(d time.Duration) []string {
	time.Sleep(d)
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.had)
}

// Who waits has a new turn when the limit of its key is changed, in any of the
// three ways; the others of the shard do not.
func TestKeyedWaitersHaveNewTurns(t *testing.T) {
	plan := func(r Rate) KeyedConfig[string] {
		return KeyedConfig[string]{MaxKeys: 1000, Limit: TokenBucketConfig{Rate: r, Burst: 1}}
	}
	begin := func(t *testing.T, cfg KeyedConfig[string]) *turns {
		w := &turns{k: newKeyed(t, cfg), start: time.Now()}
		for _, key := range []string{"a", "b"} {
			require.True(t, w.k.Allow(key))
			w.wait(t.Context(), key+"1", key)
			w.wait(t.Context(), key+"2", key)
		}
		time.Sleep(d / 2)
		return w
	}
	t.Run("reconfigured", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := begin(t, plan(PerSecond(10)))
			require.NoError(t, w.k.Reconfigure(plan(PerSecond(20))))
			require.ElementsMatch(t, []string{
				"a1 75ms <nil>", "b1 75ms <nil>", "a2 125ms <nil>", "b2 125ms <nil>",
			}, w.all(time.Second))
		})
	})
	t.Run("paused", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := begin(t, plan(PerSecond(10)))
			w.k.Pause("a", time.Now().Add(10*d))
			time.Sleep(5 * d)
			w.k.Pause("a", time.Now().Add(d)) // the later one counts
			w.wait(t.Context(), "a3", "a")
			require.Equal(t, 3*d+d/2, w.k.Peek("a", 1).RetryAfter-d)
			w.k.Pause("a", time.Now().Add(-d))
			require.ElementsMatch(t, []string{
				"b1 100ms <nil>", "b2 200ms <nil>", "a1 600ms <nil>", "a2 700ms <nil>", "a3 800ms <nil>",
			}, w.all(time.Second))
		})
	})
	t.Run("plan", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			cfg, now := plan(PerSecond(10)), ""
			cfg.Plans = map[string]Algorithm{"slow": TokenBucketConfig{Rate: PerSecond(5), Burst: 1}}
			cfg.Plan = func(key string) string {
				if key == "a" {
					return now
				}
				return ""
			}
			w := begin(t, cfg)
			now = "slow"
			w.wait(t.Context(), "a3", "a")
			require.ElementsMatch(t, []string{
				"a1 150ms <nil>", "b1 100ms <nil>", "b2 200ms <nil>", "a2 350ms <nil>", "a3 550ms <nil>",
			}, w.all(time.Second))
		})
	})
	t.Run("cancelled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			w := begin(t, plan(PerSecond(10)))
			w.wait(ctx, "a3", "a")
			require.NoError(t, w.k.Reconfigure(plan(PerSecond(5))))
			synctest.Wait()
			cancel()
			synctest.Wait()
			require.Equal(t, 500*time.Millisecond, w.k.Peek("a", 1).RetryAfter, "its place was given up")
			require.Contains(t, w.all(time.Second), "a3 50ms context canceled")
			require.EqualValues(t, 6, w.k.Stats().Admitted)
		})
	})
}

// A reading of the clock that is older than another call's is as good as that
// one: time does not run back for a key, nor for one that was forgotten.
func TestKeyedTimeNeverRunsBack(t *testing.T) {
	k := newKeyed(t, KeyedConfig[string]{MaxKeys: 1, Limit: TokenBucketConfig{Rate: PerSecond(10), Burst: 1}})
	s := &rates(k).shards[0]
	s.time(7)
	require.EqualValues(t, 7, s.now)
	s.start = 9
	s.time(5)
	require.EqualValues(t, 7, s.now)
	require.EqualValues(t, 7, s.start)
}

// Acquire waits for as long as the plan says.
func TestKeyedPlansHaveTheirOwnMaxWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t, KeyedConfig[string]{
			Limit: TokenBucketConfig{Rate: PerSecond(10), Burst: 1}, Plan: func(key string) string { return key },
			Plans: map[string]Algorithm{"patient": TokenBucketConfig{Rate: PerSecond(10), Burst: 2, MaxWait: d}},
		})
		ctx, start := t.Context(), time.Now()
		for i := range 3 {
			_, err := k.AcquireKey(ctx, "patient", core.Call{})
			require.NoError(t, err)
			require.Equal(t, time.Duration(i/2)*d, time.Since(start))
		}
		require.Equal(t, "patient", k.Peek("patient", 0).Policy)
		require.Equal(t, 2, k.Take("patient", 3).Limit)
		_, err := k.AcquireKey(ctx, "patient", core.Call{Cost: 3})
		require.ErrorIs(t, err, ErrNeverFits)
		require.ErrorContains(t, err, "at most 2")
		require.True(t, k.Allow("other"))
		_, err = k.AcquireKey(ctx, "other", core.Call{})
		require.ErrorIs(t, err, ErrLimited)
		_, err = k.AcquireKey(ctx, "other", core.Call{Cost: 2})
		require.ErrorContains(t, err, "at most 1")
		require.Equal(t, "keyed", k.Take("other", 1).Policy)

		r := k.Inspect()
		require.Contains(t, r.Settings, core.Setting{Name: "Burst", Value: 1})
		require.Contains(t, r.Settings, core.Setting{Name: "Plans[patient].Burst", Value: 2})
	})
}

// What is asked for a plan is the program's own code: whatever it does, nothing
// is locked then, and nothing is taken.
func TestKeyedPlanFunctionMisbehaves(t *testing.T) {
	var do func()
	k := newKeyed(t, KeyedConfig[string]{
		MaxKeys: 1, Limit: TokenBucketConfig{Rate: PerDay(1), Burst: 10},
		Plan: func(string) string { do(); return "" },
	})
	ctx := context.Background()
	verbs := map[string]func(){
		"allow":   func() { k.Allow("a") },
		"take":    func() { k.Take("a", 1) },
		"peek":    func() { k.Peek("a", 1) },
		"reserve": func() { _, _ = k.Reserve("a", 1, 0) },
		"wait":    func() { _ = k.Wait(ctx, "a", 1) },
		"acquire": func() { _, _ = k.AcquireKey(ctx, "a", core.Call{}) },
		"charge":  func() { k.Charge("a", 1) },
		"refund":  func() { k.Refund("a", 1) },
	}
	for name, verb := range verbs {
		do = func() { panic("plan") }
		require.PanicsWithValue(t, "plan", verb, name)
		do = runtime.Goexit
		done := make(chan struct{})
		go func() {
			defer close(done)
			verb()
		}()
		<-done
		// It calls the limiter itself.
		do = func() {
			do = func() {}
			k.Allow("b")
		}
		verb()
	}
	for i := range rates(k).shards {
		require.True(t, rates(k).shards[i].mu.TryLock())
		rates(k).shards[i].mu.Unlock()
	}

	// Permits do not ask.
	do = func() {}
	p, err := k.AcquireKey(ctx, "a", core.Call{})
	require.NoError(t, err)
	do = func() { panic("plan") }
	p.Finish(ctx, core.Result{Cost: 3})
	do = func() {}
	for _, r := range []core.Reason{core.InvalidCost, core.NeverFits} {
		cost := -1
		if r == core.NeverFits {
			cost = 11
		}
		_, err := k.AcquireKey(ctx, "a", core.Call{Cost: cost})
		require.Equal(t, r, err.(*core.Rejection).Reason)
	}
}

func TestKeyedPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hearing{}
		k := newKeyed(t, KeyedConfig[float64]{Name: "up", Observer: h, MaxKeys: 2, Limit: TokenBucketConfig{Rate: PerSecond(10), Burst: 2}})
		pause := func(key float64, d time.Duration) { k.Pause(key, time.Now().Add(d)) }
		pause(1, time.Second) // not known yet
		require.Equal(t, []core.Event{{Kind: core.KindPaused, Component: "up", Duration: time.Second}}, h.events)
		require.False(t, k.Allow(1))
		require.True(t, k.Allow(2))
		require.Equal(t, Decision{
			Limit: 2, RetryAfter: time.Second, ResetAfter: time.Second, Window: 2 * d, Policy: "up",
		}, k.Peek(1, 1))
		_, err := k.AcquireKey(t.Context(), 1, core.Call{})
		require.Equal(t, time.Second, retryAfter(t, err))
		_, err = k.Reserve(1, 1, time.Second/2)
		require.Equal(t, time.Second, retryAfter(t, err))
		start := time.Now()
		require.NoError(t, k.Wait(t.Context(), 1, 1))
		require.Equal(t, time.Second, time.Since(start))
		require.Equal(t, 2, k.Peek(1, 0).Limit)
		require.Zero(t, k.Stats().Paused)

		// A key that was forgotten can be paused.
		time.Sleep(time.Second)
		for key := 100.0; known(k, 1); key++ {
			k.Allow(key)
			time.Sleep(time.Second)
		}
		pause(1, time.Minute)
		require.False(t, known(k, 1))
		require.False(t, k.Allow(1))
		time.Sleep(time.Minute)
		require.True(t, k.AllowN(1, 2))

		// There are no more pauses than keys; one beyond that has no effect.
		time.Sleep(time.Second)
		for key := range 2 {
			pause(float64(10+key), time.Minute)
		}
		require.Equal(t, 2, k.Stats().Paused)
		told := len(h.events)
		pause(20, time.Minute)
		require.Len(t, h.events, told)
		require.Equal(t, 2, k.Stats().Paused)
		require.True(t, k.Allow(20))
		pause(10, 2*time.Minute) // one of those that there are
		pause(20, -time.Second)  // none
		time.Sleep(time.Minute)
		require.False(t, k.Allow(10))

		// Those that are over make room.
		time.Sleep(time.Hour)
		for key := range 2 {
			pause(float64(30+key), time.Minute)
			require.False(t, k.Allow(float64(30+key)))
		}
		require.LessOrEqual(t, k.Stats().Paused, 2)

		// NaN is among those that share a limit, and cannot be paused.
		time.Sleep(time.Hour)
		require.True(t, k.Allow(math.NaN()))
		pause(math.NaN(), time.Second)
		require.True(t, k.Allow(math.NaN()))
		checkKeyed(t, k)
	})
}

// Pauses that are over make room for others, whatever shards they are in.
func TestKeyedPausesThatAreOverMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 10_000
		k := newKeyed(t, KeyedConfig[int]{MaxKeys: most, Limit: TokenBucketConfig{Rate: PerSecond(10), Burst: 2}})
		for round := range 3 {
			for key := range most {
				k.Pause(round*most+key, time.Now().Add(time.Second))
			}
			require.LessOrEqual(t, k.Stats().Paused, most)
			require.False(t, k.Allow(round*most))
			if round == 0 {
				require.Equal(t, most, k.Stats().Paused)
				k.Pause(-1, time.Now().Add(time.Second))
				require.True(t, k.Allow(-1), "one too many")
			}
			time.Sleep(time.Second)
			for key := range 100 {
				k.Pause(-1-key, time.Now().Add(time.Second))
				require.False(t, k.Allow(-1-key))
			}
			time.Sleep(time.Second)
		}
	})
}

// A pause that is set while new settings are on their way, to a key that they have
// not come to yet, begins when it was set and not when they did.
func TestKeyedPauseOfACellThatIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t, KeyedConfig[string]{Limit: TokenBucketConfig{Rate: PerSecond(1), Burst: 10}})
		require.True(t, k.AllowN("a", 10))
		each := k.each.(*keyedRate[string, bucketState])
		set := each.rules(KeyedConfig[string]{Name: "keyed", Limit: TokenBucketConfig{Rate: PerSecond(1), Burst: 10}})
		s := &each.shards[maphash.Comparable(k.seed, "a")&k.mask]
		s.mu.Lock()
		s.time(k.clock.Now())
		s.adopt(set, s.now) // as renew does before it brings the cells to them
		s.mu.Unlock()
		time.Sleep(5 * time.Second)
		k.Pause("a", time.Now().Add(time.Minute))
		time.Sleep(time.Minute)
		require.Equal(t, 5, k.Peek("a", 0).Remaining, "what came before the pause")
	})
}

// A key beyond MaxKeys that is paused does not hold up those that it shares with.
func TestKeyedPauseBeyondMaxKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t, KeyedConfig[string]{MaxKeys: 1, Limit: TokenBucketConfig{Rate: PerSecond(10), Burst: 2}})
		require.NoError(t, k.Wait(t.Context(), "first", 2))
		k.Charge("first", 100)
		k.Pause("late", time.Now().Add(time.Second))
		_, err := k.Reserve("late", 1, time.Hour)
		require.Equal(t, time.Second, retryAfter(t, err))
		require.False(t, k.Allow("late"))
		require.True(t, k.AllowN("another", 2))
		require.Equal(t, d, k.Peek("another", 1).RetryAfter)
	})
}

// What is charged to a paused key beyond MaxKeys does not hold up those that it
// shares with for the time of its pause.
func TestKeyedChargeOfAPausedKeyBeyondMaxKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, each := range []Algorithm{
			TokenBucketConfig{Rate: PerSecond(10), Burst: 10},
			LeakyBucketConfig{Rate: PerSecond(10), Capacity: 10},
			SlidingWindowConfig{Limit: 10, Window: time.Second},
			SlidingLogConfig{Limit: 10, Window: time.Second},
		} {
			k := newKeyed(t, KeyedConfig[string]{MaxKeys: 1, Limit: each})
			k.Charge("a", 100_000)
			k.Pause("b", time.Now().Add(time.Hour))
			k.Charge("b", 1)
			require.Equal(t, 9, k.Peek("c", 0).Remaining, "%T", each)
			require.True(t, k.AllowN("c", 9), "%T", each)
			require.False(t, k.AllowN("c", 9), "%T", each)
			require.False(t, k.Allow("b"))
			k.Refund("b", 1)
			require.False(t, k.Take("b", 1).OK)
		}
	})
}

// Those who share a limit beyond MaxKeys keep its debt across a change, and so
// does who waits there.
func TestKeyedSharedLimitIsReconfigured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := KeyedConfig[string]{MaxKeys: 1, Limit: TokenBucketConfig{Rate: PerSecond(10), Burst: 2}}
		w := &turns{k: newKeyed(t, cfg), start: time.Now()}
		w.k.Charge("first", 1000)
		p, err := w.k.AcquireKey(t.Context(), "b", core.Call{Cost: 2})
		require.NoError(t, err)
		w.wait(t.Context(), "c", "c")
		cfg.Limit = TokenBucketConfig{Rate: PerSecond(20), Burst: 2}
		require.NoError(t, w.k.Reconfigure(cfg))
		require.Equal(t, d, w.k.Peek("d", 1).RetryAfter)
		p.Finish(t.Context(), core.Result{Cost: 4})
		require.Equal(t, 2*d, w.k.Peek("d", 1).RetryAfter)
		require.Equal(t, []string{"c 50ms <nil>"}, w.all(d))
		require.NoError(t, w.k.Reconfigure(KeyedConfig[string]{
			MaxKeys: 1, Limit: TokenBucketConfig{Rate: PerSecond(1), Burst: 1}, Plan: func(string) string { return "x" },
			Plans: map[string]Algorithm{"x": TokenBucketConfig{Rate: PerSecond(3), Burst: 3}},
		}))
		require.True(t, w.k.AllowN("e", 3), "a plan that is new has a limit of its own")
		require.NoError(t, w.k.Reconfigure(cfg))
		p, err = w.k.AcquireKey(t.Context(), "f", core.Call{})
		require.ErrorIs(t, err, ErrLimited)
		p.Cancel()
	})
}

// More keys, and fewer: none that still limits goes.
func TestKeyedMaxKeysChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := KeyedConfig[int]{MaxKeys: 100, Limit: TokenBucketConfig{Rate: PerSecond(1), Burst: 1}}
		k := newKeyed(t, cfg)
		for key := range 101 {
			require.True(t, k.Allow(key))
			if key < 100 {
				k.Charge(key, 1)
			}
		}
		require.EqualValues(t, 1, k.Stats().Overflowed)
		cfg.MaxKeys = 200
		require.NoError(t, k.Reconfigure(cfg))
		require.False(t, k.Allow(100), "it brings what it owes")
		require.False(t, k.Allow(101), "for who shared is not known")
		time.Sleep(time.Second)
		for key := range 200 {
			require.Equal(t, key > 99, k.Allow(key), "%d", key)
			k.Charge(key, 1)
		}
		require.Equal(t, 200, k.Stats().Keys)
		cfg.MaxKeys = 10
		require.NoError(t, k.Reconfigure(cfg))
		s := k.Stats()
		require.Equal(t, 200, s.Keys)
		require.Equal(t, 10, s.MaxKeys)
		require.False(t, k.Allow(5))
		time.Sleep(3 * time.Second)
		for key := range 200 {
			k.Allow(1000 + key)
		}
		require.LessOrEqual(t, k.Stats().Keys, 10)
		checkKeyed(t, k)
	})
}

// Settings, pauses and plans change under calls of all kinds: what each key has
// is within the greatest of its limits, and nothing is left in disorder.
func TestKeyedChangesUnderFire(t *testing.T) {
	start := time.Now() // real time: contention needs it; the bound is exact all the same
	const keys = 50
	fastest, most := PerSecond(2000), 10
	var plan atomic.Int32
	config := func(r *rand.Rand) KeyedConfig[int] {
		return KeyedConfig[int]{
			MaxKeys: 5 + r.IntN(60),
			Limit:   TokenBucketConfig{Rate: PerSecond(500 + r.IntN(1500)), Burst: 1 + r.IntN(most), MaxWait: time.Duration(r.IntN(200)) * time.Microsecond},
			Plans:   map[string]Algorithm{"odd": TokenBucketConfig{Rate: fastest, Burst: most}},
			Plan: func(key int) string {
				if key%8 == int(plan.Load())%8 {
					return "odd"
				}
				return ""
			},
		}
	}
	k := newKeyed(t, config(rand.New(rand.NewPCG(1, 1))))
	var used [keys]atomic.Int64
	stop := make(chan struct{})
	var wg, changer sync.WaitGroup
	changes := 0
	changer.Go(func() {
		r := rand.New(rand.NewPCG(2, 2))
		for ; ; changes++ {
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Microsecond):
			}
			switch r.IntN(3) {
			case 0:
				if err := k.Reconfigure(config(r)); err != nil {
					t.Error(err)
				}
			case 1:
				k.Pause(r.IntN(keys), time.Now().Add(time.Duration(r.IntN(1000))*time.Microsecond))
			default:
				plan.Add(1)
			}
		}
	})
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 9))
			ctx := t.Context()
			for range 20_000 {
				key, n := r.IntN(keys), 1+r.IntN(2)
				switch r.IntN(5) {
				case 0:
					if k.AllowN(key, n) {
						used[key].Add(int64(n))
					}
				case 1:
					if p, err := k.AcquireKey(ctx, key, core.Call{Cost: n}); err == nil {
						if r.IntN(2) == 0 {
							p.Cancel()
							continue
						}
						p.Finish(ctx, core.Result{Cost: n})
						used[key].Add(int64(n))
					}
				case 2:
					short, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(300))*time.Microsecond)
					if k.Wait(short, key, n) == nil {
						used[key].Add(int64(n))
					}
					cancel()
				case 3:
					if k.Take(key, n).OK {
						used[key].Add(int64(n))
					}
				default:
					if v, err := k.Reserve(key, n, time.Millisecond); err == nil {
						_ = v.Delay()
						v.Cancel()
					}
					k.Peek(key, n)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	changer.Wait()
	// What is reserved beyond the present counts as well, and each change rounds
	// up once.
	elapsed := time.Since(start) + 5*time.Millisecond
	for key := range used {
		require.True(t, within(used[key].Load(), fastest, most, elapsed), "key %d: %d in %v", key, used[key].Load(), elapsed)
	}
	checkKeyed(t, k)
	s := k.Stats()
	require.LessOrEqual(t, s.Keys, keys)
	t.Log(s, changes)
}

// A pause that ends while new settings are on their way, before they have come to
// its key, was a pause for them too.
func TestKeyedPauseThatEndsInAReconfigure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t, KeyedConfig[string]{Limit: TokenBucketConfig{Rate: PerSecond(1), Burst: 10}})
		require.True(t, k.AllowN("a", 10))
		k.Pause("a", time.Now().Add(time.Minute))
		each := rates(k)
		set := each.rules(KeyedConfig[string]{Name: "keyed", Limit: TokenBucketConfig{Rate: PerSecond(1000), Burst: 10}})
		s := &each.shards[maphash.Comparable(k.seed, "a")&k.mask]
		s.mu.Lock()
		s.time(k.clock.Now())
		s.adopt(set, s.now) // as renew does
		s.mu.Unlock()
		time.Sleep(time.Minute)
		require.Equal(t, 0, k.Peek("a", 0).Remaining, "time stood still until now")
	})
}
