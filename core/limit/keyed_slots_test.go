package limit

import (
	"context"
	"fmt"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
)

func slotted[K comparable](k *Keyed[K]) *keyedSlots[K] { return k.each.(*keyedSlots[K]) }

// slotCells are all that k remembers, while nobody calls, after a check that it
// is in order. The second result is how many of each pool's slots are taken.
func slotCells[K comparable](t require.TestingT, k *Keyed[K]) (map[K]*slotCell[K], map[*slotPool]int) {
	all, pooled, placed := map[K]*slotCell[K]{}, map[*slotPool]int{}, 0
	r := slotted(k)
	inFlight, waiting := 0, 0
	for i := range r.shards {
		s := &r.shards[i]
		waits, taken, queued := 0, 0, 0
		for key, c := range checkTable(t, k.seed, &s.table) {
			require.EqualValues(t, i, maphash.Comparable(k.seed, key)&k.mask)
			require.Same(t, s, c.home.shard)
			all[key] = c
			taken += int(c.state.taken)
			waits += c.state.queue.len()
			if !c.state.queue.empty() {
				queued++
				require.NotNil(t, s.queued[c])
			}
			if c.home.pool == nil {
				placed++
				continue
			}
			require.False(t, c.state.idle(), "a key without a place goes with its last call")
			pooled[c.home.pool] += int(c.state.taken)
		}
		require.Equal(t, s.inFlight, taken)
		require.Equal(t, s.waiting, waits)
		require.Len(t, s.queued, queued)
		inFlight, waiting = inFlight+taken, waiting+waits
	}
	for _, p := range r.pools {
		waiting += p.slots.queue.len()
	}
	require.EqualValues(t, placed, k.places.taken.Load())
	stats := k.Stats()
	require.Equal(t, len(all), stats.Keys)
	require.Equal(t, inFlight, stats.InFlight)
	require.Equal(t, waiting, stats.Waiting)
	return all, pooled
}

func TestKeyedBulkheads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hearing{}
		k := newKeyed(t, KeyedConfig[string]{Name: "tenants", Observer: h, Limit: ConcurrencyConfig{Limit: 2}})
		ctx := t.Context()
		acquire := func(key string, n int) (core.Permit, error) { return k.AcquireKey(ctx, key, core.Call{Cost: n}) }
		a1, err := acquire("a", 1)
		require.NoError(t, err)
		require.True(t, a1.WantsEnd())
		require.False(t, a1.WantsResult())
		a2, err := acquire("a", 1)
		require.NoError(t, err)
		_, err = acquire("a", 1)
		require.ErrorIs(t, err, ErrFull)
		b, err := acquire("b", 2)
		require.NoError(t, err)
		_, err = acquire("c", 3)
		require.ErrorIs(t, err, ErrNeverFits)
		_, err = acquire("c", -1)
		require.ErrorIs(t, err, ErrInvalidCost)

		require.Equal(t, Decision{Limit: 2, Policy: "tenants"}, k.Peek("a", 1))
		require.Equal(t, Decision{OK: true, Limit: 2, Policy: "tenants"}, k.Peek("a", 0))
		require.Equal(t, Decision{OK: true, Limit: 2, Remaining: 1, Policy: "tenants"}, k.Peek("c", 1))
		require.Equal(t, Decision{Limit: 2, Remaining: 2, RetryAfter: Never, Policy: "tenants"}, k.Peek("c", 3))
		require.Equal(t, KeyedStats{Admitted: 3, Refused: 3, Keys: 2, MaxKeys: defaultMaxKeys, InFlight: 4}, k.Stats())

		a1.Finish(ctx, core.Result{Cost: 7}) // it has no say
		require.Equal(t, 1, k.Peek("a", 0).Remaining)
		a1.Cancel()
		require.Equal(t, 1, k.Peek("a", 0).Remaining, "once is enough")
		a2.Cancel()
		b.Done(ctx, core.Failure)
		require.Zero(t, k.Stats().InFlight)
		require.EqualValues(t, 1, k.Stats().Cancelled)

		// By hand, as of a semaphore.
		require.True(t, k.AllowN("a", 2))
		require.False(t, k.Allow("a"))
		require.Equal(t, Decision{Limit: 2, Policy: "tenants"}, k.Take("a", 1))
		k.Refund("a", 1)
		require.Equal(t, Decision{OK: true, Limit: 2, Policy: "tenants"}, k.Take("a", 1))
		k.Refund("a", 3)
		k.Refund("never seen", 1)
		require.EqualValues(t, 2, k.Stats().Unmatched)
		require.NoError(t, k.Wait(ctx, "a", 2))
		k.Refund("a", 2)
		k.Charge("a", 5)
		k.Pause("a", time.Now().Add(time.Hour))
		require.Equal(t, 2, k.Peek("a", 0).Remaining, "neither is of a bulkhead")
		_, err = k.Reserve("a", 1, time.Hour)
		require.ErrorIs(t, err, ErrNeverFits)

		ended, cancel := context.WithCancel(ctx)
		cancel()
		_, err = k.AcquireKey(ended, "a", core.Call{})
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, k.Wait(ended, "a", 0), context.Canceled)

		r := k.Inspect()
		require.Equal(t, "keyed_limit", r.Kind)
		require.Contains(t, r.Settings, core.Setting{Name: "Limit", Value: 2})
		for _, e := range h.events {
			require.Equal(t, core.KindRejected, e.Kind)
			require.Equal(t, "tenants", e.Component)
		}
		slotCells(t, k)
	})
}

func TestKeyedBulkheadsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t, KeyedConfig[string]{Limit: ConcurrencyConfig{Limit: 2, MaxWait: time.Second, MaxWaiters: 2}})
		start := time.Now()
		var mu sync.Mutex
		ends := map[string]string{}
		acquire := func(ctx context.Context, name string, n int) {
			go func() {
				_, err := k.AcquireKey(ctx, "a", core.Call{Cost: n})
				mu.Lock()
				defer mu.Unlock()
				ends[name] = fmt.Sprint(time.Since(start), " ", err)
			}()
			synctest.Wait()
		}
		ctx := t.Context()
		require.True(t, k.AllowN("a", 2))
		acquire(ctx, "both", 2)
		acquire(ctx, "late", 1)
		acquire(ctx, "too many", 1)
		require.Equal(t, 2, k.Stats().Waiting)
		require.True(t, k.Allow("b"), "another key does not wait")
		slotCells(t, k)
		time.Sleep(500 * time.Millisecond)
		k.Refund("a", 1)
		synctest.Wait()
		require.Len(t, ends, 1, "the first wants two")
		k.Refund("a", 1)
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, map[string]string{
			"too many": `0s limit: all slots are taken: refused by "keyed" (limit 2, waiting 2)`,
			"both":     "500ms <nil>",
			"late":     `1s limit: all slots are taken: refused by "keyed" (limit 2)`,
		}, ends)

		// A context ends a wait, and its deadline is heeded.
		short, cancel := context.WithCancel(ctx)
		acquire(short, "cancelled", 1)
		cancel()
		synctest.Wait()
		require.Equal(t, `1.5s limit: all slots are taken: refused by "keyed": context canceled`, ends["cancelled"])
		short, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		acquire(short, "deadline", 1)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		require.Equal(t, `1.6s limit: all slots are taken: refused by "keyed": context deadline exceeded`, ends["deadline"])

		// More slots, and those who wait have them; fewer, and who wants more has
		// none.
		acquire(ctx, "one", 1)
		acquire(ctx, "two", 2)
		require.NoError(t, k.Reconfigure(KeyedConfig[string]{Limit: ConcurrencyConfig{Limit: 3, MaxWait: time.Second}}))
		synctest.Wait()
		require.Equal(t, "1.6s <nil>", ends["one"])
		require.NotContains(t, ends, "two")
		require.NoError(t, k.Reconfigure(KeyedConfig[string]{Limit: ConcurrencyConfig{Limit: 1}}))
		synctest.Wait()
		require.Equal(t, `1.6s limit: cost above the limit: refused by "keyed" (limit 2)`, ends["two"])
		slotCells(t, k)
		k.Refund("a", 3)
		k.Refund("b", 1)
		require.Zero(t, k.Stats().InFlight)
		require.Zero(t, k.Stats().Waiting)
	})
}

// A plan changes how many may be in flight, and who waits has the new limit once
// the key is asked for again.
func TestKeyedBulkheadPlans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plan := "free"
		k := newKeyed(t, KeyedConfig[string]{
			Limit: ConcurrencyConfig{Limit: 1}, Plan: func(string) string { return plan },
			Plans: map[string]Algorithm{"gold": ConcurrencyConfig{Limit: 3, MaxWait: time.Hour}},
		})
		require.Equal(t, "keyed", k.Peek("a", 0).Policy, "no such plan")
		require.True(t, k.Allow("a"))
		require.False(t, k.Allow("a"))
		plan = "gold"
		require.True(t, k.AllowN("a", 2))
		require.Equal(t, Decision{Limit: 3, Policy: "gold"}, k.Take("a", 1))
		plan = ""
		k.Refund("a", 1)
		require.False(t, k.Allow("a"), "two are in flight")
		k.Refund("a", 1)
		done := make(chan error)
		go func() { done <- k.Wait(t.Context(), "a", 1) }()
		synctest.Wait()
		plan = "gold"
		require.False(t, k.AllowN("a", 3), "it is asked for, which serves who waits")
		require.NoError(t, <-done)
		require.Equal(t, 2, k.Stats().InFlight)
		slotCells(t, k)
	})
}

// Beyond MaxKeys, each key keeps its own limit, all of them share one as well,
// and none stays when it is not in use.
func TestKeyedBulkheadsBeyondMaxKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t, KeyedConfig[float64]{MaxKeys: 2, Limit: ConcurrencyConfig{Limit: 3, MaxWait: time.Second}})
		for key := range 2 {
			require.True(t, k.Allow(float64(key)))
		}
		var permits []core.Permit
		for key := range 3 {
			p, err := k.AcquireKey(t.Context(), float64(10+key), core.Call{})
			require.NoError(t, err)
			permits = append(permits, p.Take())
		}
		require.False(t, k.Allow(20))
		require.False(t, k.Allow(10), "it has two slots, but shares")
		require.Equal(t, 0, k.Peek(10, 0).Remaining)
		require.Equal(t, 0, k.Peek(20, 0).Remaining)
		require.Equal(t, 2, k.Peek(1, 0).Remaining)
		require.False(t, k.Allow(math.NaN()))
		s := k.Stats()
		require.Equal(t, 5, s.Keys)
		require.EqualValues(t, 6, s.Overflowed)

		// Who waits, waits for both: for its own and for what it shares.
		start := time.Now()
		var mu sync.Mutex
		ends := map[string]time.Duration{}
		var late []core.Permit
		wait := func(name string, key float64, n int) {
			go func() {
				p, err := k.AcquireKey(t.Context(), key, core.Call{Cost: n})
				mu.Lock()
				defer mu.Unlock()
				late = append(late, p.Take())
				if ends[name] = time.Since(start); err != nil {
					ends[name] = -ends[name]
				}
			}()
			synctest.Wait()
		}
		wait("shares", 11, 1)
		wait("NaN", math.NaN(), 2)
		require.Equal(t, 2, k.Stats().Waiting)
		time.Sleep(time.Second / 2)
		permits[0].Cancel()
		permits[1].Cancel()
		synctest.Wait()
		require.Equal(t, map[string]time.Duration{"shares": time.Second / 2}, ends)
		permits[1].Done(t.Context(), core.Success)
		time.Sleep(time.Second / 4)
		permits[2].Done(t.Context(), core.Success)
		synctest.Wait()
		require.Equal(t, time.Second*3/4, ends["NaN"])
		wait("in vain", 30, 1)
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, -time.Second*7/4, ends["in vain"])

		for i := range late {
			late[i].Done(t.Context(), core.Success)
		}
		all, pooled := slotCells(t, k)
		require.Len(t, all, 2)
		require.Empty(t, pooled)
		// With a place free, a key soon has one.
		k.Refund(0, 1)
		for placed := false; !placed; all, _ = slotCells(t, k) {
			require.True(t, k.AllowN(40, 3))
			c := all[40]
			placed = c != nil && c.home.pool == nil
			k.Refund(40, 3)
		}
	})
}

// Whatever is asked in whatever order, no limit is exceeded, none refuses that
// has room, and nothing is left behind.
func TestKeyedBulkheadsAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const keys = 8
		config := func() KeyedConfig[int] {
			return KeyedConfig[int]{
				MaxKeys: rapid.IntRange(1, keys).Draw(t, "MaxKeys"),
				Limit:   ConcurrencyConfig{Limit: rapid.IntRange(1, 4).Draw(t, "limit")},
			}
		}
		cfg := config()
		k := must(NewKeyed(cfg))
		limit := cfg.Limit.(ConcurrencyConfig).Limit
		type call struct {
			key, n int
			permit core.Permit
		}
		var calls []*call
		var inFlight [keys]int
		t.Repeat(map[string]func(*rapid.T){
			"acquire": func(t *rapid.T) {
				c := &call{key: rapid.IntRange(0, keys-1).Draw(t, "key"), n: rapid.IntRange(1, 3).Draw(t, "n")}
				all, pooled := slotCells(t, k)
				own, full := all[c.key], k.places.taken.Load() >= k.places.most.Load()
				shares := own != nil && own.home.pool != nil || own == nil && full
				roomShared := pooled[slotted(k).pools[""]]+c.n <= limit
				roomOwn := inFlight[c.key]+c.n <= limit
				p, err := k.AcquireKey(context.Background(), c.key, core.Call{Cost: c.n})
				switch {
				case err == nil && !roomOwn, err == nil && own != nil && shares && !roomShared:
					t.Fatal("admitted beyond the limit")
				case err != nil && roomOwn && (roomShared || !shares):
					t.Fatal("refused where there is room")
				case err == nil:
					c.permit = p.Take()
					calls = append(calls, c)
					inFlight[c.key] += c.n
				}
			},
			"end": func(t *rapid.T) {
				if len(calls) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(calls)-1).Draw(t, "call")
				c := calls[i]
				calls = append(calls[:i], calls[i+1:]...)
				inFlight[c.key] -= c.n
				if rapid.Bool().Draw(t, "by hand") {
					k.Refund(c.key, c.n)
				} else {
					c.permit.Done(context.Background(), core.Success)
				}
			},
			"reconfigure": func(t *rapid.T) {
				cfg := config()
				limit = cfg.Limit.(ConcurrencyConfig).Limit
				if err := k.Reconfigure(cfg); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				all, _ := slotCells(t, k)
				for key, n := range inFlight {
					taken := 0
					if c := all[key]; c != nil {
						taken = int(c.state.taken)
					}
					if taken != n {
						t.Fatalf("%d in flight, should be %d", taken, n)
					}
				}
			},
		})
		for _, c := range calls {
			c.permit.Cancel()
		}
		_, pooled := slotCells(t, k)
		require.Zero(t, k.Stats().InFlight)
		require.Zero(t, k.Stats().Unmatched)
		require.Empty(t, pooled)
	})
}

// Many goroutines that come, wait, give up and are cut off, while the limits
// change: no key is ever in flight beyond the greatest limit, and at the end all
// slots are back.
func TestKeyedBulkheadsUnderFire(t *testing.T) {
	const keys, most = 30, 4
	cfg := func(n int) KeyedConfig[int] {
		return KeyedConfig[int]{
			MaxKeys: 8 + n, Limit: ConcurrencyConfig{Limit: n, MaxWait: 200 * time.Microsecond, MaxWaiters: 3},
			Plans: map[string]Algorithm{"even": ConcurrencyConfig{Limit: most, MaxWait: time.Millisecond}},
			Plan:  func(key int) string { return []string{"even", ""}[key%2] },
		}
	}
	k := newKeyed(t, cfg(2))
	var inFlight [keys]atomic.Int32
	stop := make(chan struct{})
	var wg, changer sync.WaitGroup
	changer.Go(func() {
		for n := 1; ; n = n%most + 1 {
			select {
			case <-stop:
				return
			case <-time.After(300 * time.Microsecond):
				if err := k.Reconfigure(cfg(n)); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			for range 3000 {
				key, n := r.IntN(keys), 1+r.IntN(2)
				ctx, cancel := context.WithCancel(t.Context())
				if r.IntN(3) == 0 {
					ctx, cancel = context.WithTimeout(ctx, time.Duration(r.IntN(300))*time.Microsecond)
				}
				if p, err := k.AcquireKey(ctx, key, core.Call{Cost: n}); err == nil {
					if got := inFlight[key].Add(int32(n)); got > most {
						t.Errorf("%d of key %d in flight", got, key)
					}
					if r.IntN(4) == 0 {
						time.Sleep(time.Duration(r.IntN(50)) * time.Microsecond)
					}
					inFlight[key].Add(int32(-n))
					p.Done(ctx, core.Success)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	close(stop)
	changer.Wait()
	_, pooled := slotCells(t, k)
	require.Empty(t, pooled)
	s := k.Stats()
	require.Zero(t, s.InFlight)
	require.Zero(t, s.Waiting)
	require.Zero(t, s.Unmatched)
	for _, p := range slotted(k).pools {
		require.True(t, p.slots.idle())
	}
	require.EqualValues(t, 8*3000, s.Admitted+s.Refused)
}

func TestKeyedBulkheadsAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ctx := t.Context()
	k := newKeyed(t, KeyedConfig[string]{MaxKeys: 2, Limit: ConcurrencyConfig{Limit: 2, MaxWaiters: 1}})
	require.True(t, k.AllowN("full", 2))
	require.True(t, k.Allow("used"))
	require.True(t, k.AllowN("beyond", 2))
	for name, f := range map[string]func(){
		"admitted": func() {
			p, err := k.AcquireKey(ctx, "used", core.Call{})
			if err != nil {
				t.Error(err)
			}
			p.Done(ctx, core.Success)
		},
		"refused":        func() { _, _ = k.AcquireKey(ctx, "full", core.Call{}) },
		"never fits":     func() { _, _ = k.AcquireKey(ctx, "full", core.Call{Cost: 3}) },
		"refused beyond": func() { _, _ = k.AcquireKey(ctx, "beyond", core.Call{}) },
		"peek":           func() { k.Peek("used", 1) },
		"take":           func() { k.Take("full", 1) },
	} {
		require.Zero(t, testing.AllocsPerRun(1000, f), name)
	}
	require.EqualValues(t, 48, unsafe.Sizeof(slotCell[string]{})/unsafe.Sizeof(uintptr(0))*8)
	require.Zero(t, unsafe.Sizeof(slotShard[string]{})%128)
	require.Zero(t, unsafe.Sizeof(rateShard[string, bucketState]{})%128)
}
