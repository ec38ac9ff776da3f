package main

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"time"

	"github.com/throttled/throttled/v2"
	"golang.org/x/time/rate"

	"github.com/surgewall/surgewall/core/limit"
)

// memoryRows: a million keys of 17 bytes, which the caller holds, each asked for
// once and still limited by that. What is on the heap afterwards is counted
// after a collection, less what was there before.
var memoryRows = []row{{
	name: "memory, 1,000,000 keys", unit: "B/key",
	once: true, procs: []int{runtime.NumCPU()},
	also:  []extra{{"heap objects", "objects/key", less}, {"first call", "ns", less}},
	ours:  contender{name: "Keyed", start: held(ourStore)},
	peers: storesOf(held, true),
	aside: []contender{
		{"httprate, keeps a hash of the key", chi, held(httprateStore)},
		{"Keyed, sliding windows", "", held(func(keys int, c storeConfig) (store, func()) {
			return newKeyed(keys, limit.SlidingWindowConfig{Limit: c.calls, Window: c.window}).Allow, nothing
		})},
	},
	floor: contender{name: "map of words", start: held(func(keys int, _ storeConfig) (store, func()) {
		words := make(map[string]int64)
		return func(key string) bool {
			words[key]++
			return true
		}, nothing
	})},
}}

// store admits a call of a key. The second of what makes one ends it.
type store func(key string) bool

type newStore func(keys int, c storeConfig) (store, func())

// storeConfig is a limit for each key: so many calls in a window, at first all
// at once. What has not been asked for in a window may go.
type storeConfig struct {
	calls  int
	window time.Duration
	sweep  time.Duration // for those who sweep from time to time
}

// storesOf are the peers that have a limit for each key; those who keep the key
// alone, if so wished.
func storesOf(start func(newStore) start, keepKey bool) []contender {
	peers := []contender{
		{"x/time/rate, sync.Map", xtime, start(func(_ int, c storeConfig) (store, func()) {
			m := &xtimeSyncMap{rate: rate.Limit(float64(c.calls) / c.window.Seconds()), burst: c.calls}
			return func(key string) bool { return m.of(key).Allow() }, nothing
		})},
		{"x/time/rate, mutex map", xtime, start(func(_ int, c storeConfig) (store, func()) {
			m := &xtimeMutexMap{
				rate: rate.Limit(float64(c.calls) / c.window.Seconds()), burst: c.calls,
				limiters: map[string]*rate.Limiter{},
			}
			return func(key string) bool { return m.of(key).Allow() }, nothing
		})},
		{"throttled", throttling, start(func(_ int, c storeConfig) (store, func()) {
			l, ctx := newThrottled(throttled.PerDuration(c.calls, c.window), c.calls), context.Background()
			return func(key string) bool {
				limited, _, err := l.RateLimitCtx(ctx, key, 1)
				return err == nil && !limited
			}, nothing
		})},
		{"go-limiter", sethvargoes, start(func(_ int, c storeConfig) (store, func()) {
			s, ctx := newSethvargo(uint64(c.calls), c.window, c.sweep), context.Background()
			return func(key string) bool {
				_, _, _, ok, err := s.Take(ctx, key)
				return err == nil && ok
			}, closing(s)
		})},
		{"ulule/limiter", ulules, start(func(_ int, c storeConfig) (store, func()) {
			l, ctx := newUlule(int64(c.calls), c.window, c.sweep), context.Background()
			return func(key string) bool {
				got, err := l.Get(ctx, key)
				return err == nil && !got.Reached
			}, nothing
		})},
	}
	if keepKey {
		return peers
	}
	return append(peers, contender{"httprate", chi, start(httprateStore)})
}

func httprateStore(_ int, c storeConfig) (store, func()) {
	return httprateStoreOf(c.calls, c.window), nothing
}

func httprateStoreOf(calls int, window time.Duration) store {
	l, r := newHTTPRate(calls, window), new(http.Request)
	return func(key string) bool { return !l.OnLimit(nil, r, key) }
}

func ourStore(keys int, c storeConfig) (store, func()) {
	return newKeyed(keys, limit.TokenBucketConfig{Rate: limit.Per(c.calls, c.window), Burst: c.calls}).Allow, nothing
}

// held measures bytes, objects and the time of a call for each new key.
func held(make newStore) start {
	return func(_ context.Context, p plan) (measure, func(), error) {
		keys := names("client-", p.keys)
		stop := func() {}
		return func(time.Duration) (sample, error) {
			var before, after runtime.MemStats
			settle(&before)
			var ask store
			ask, stop = make(len(keys), storeConfig{calls: 1000, window: day})
			began := time.Now()
			for _, key := range keys {
				if !ask(key) {
					return sample{}, errors.New("a first call was refused")
				}
			}
			took := time.Since(began)
			settle(&after)
			runtime.KeepAlive(ask)
			runtime.KeepAlive(keys)
			n := float64(len(keys))
			per := func(before, after uint64) float64 { return max(1, float64(after)-float64(before)) / n }
			return sample{
				value: per(before.HeapAlloc, after.HeapAlloc),
				also:  []float64{per(before.HeapObjects, after.HeapObjects), float64(took) / n},
			}, nil
		}, func() { stop() }, nil
	}
}

// settle collects what is left of those before, their finalizers included.
func settle(m *runtime.MemStats) {
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(m)
}
