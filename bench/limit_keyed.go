package main

import (
	"context"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/throttled/throttled/v2"
	"golang.org/x/time/rate"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
)

// Keyed limiters have admitted a call of each key before, and each key still
// owes for it, so that none is forgotten; the tokens do not run out. Uniform:
// each key is as likely as another; zipf: the i-th is as likely as 1/i^1.1.
var keyedRows = []row{
	keyedRow("keyed, 1 key", 1, false),
	keyedRow("keyed, 1,000 keys, uniform", 1_000, false),
	keyedRow("keyed, 1,000 keys, zipf", 1_000, true),
	keyedRow("keyed, 1,000,000 keys, uniform", 1_000_000, false),
	keyedRow("keyed, 1,000,000 keys, zipf", 1_000_000, true),
}

func keyedRow(name string, size int, zipf bool) row {
	// asked is a contender whose make fills a limiter and returns the call.
	asked := func(make func(keys *keyset) (loop func(walk, int) int, stop func())) start {
		return callsOf(0, func(p plan) (func(int) int, func()) {
			keys := newKeyset(min(size, p.keys), zipf)
			loop, stop := make(keys)
			return func(n int) int { return loop(keys.begin(), n) }, stop
		})
	}
	return row{
		name: name,
		big:  size > 100_000,
		ours: contender{name: "Keyed.AllowN", start: asked(func(keys *keyset) (func(walk, int) int, func()) {
			k := newKeyed(len(keys.names), keyedLimit)
			for _, name := range keys.names {
				k.AllowN(name, keyedDebt)
			}
			return func(w walk, n int) (admitted int) {
				for range n {
					if k.AllowN(w.next(), 1) {
						admitted++
					}
				}
				return admitted
			}, nothing
		})},
		peers: []contender{
			{"x/time/rate, sync.Map", xtime, asked(func(keys *keyset) (func(walk, int) int, func()) {
				m := &xtimeSyncMap{rate: keyedRate, burst: keyedBurst}
				keys.each(func(key string) { m.of(key).AllowN(time.Now(), keyedDebt) })
				return func(w walk, n int) (admitted int) {
					for range n {
						if m.of(w.next()).Allow() {
							admitted++
						}
					}
					return admitted
				}, nothing
			})},
			{"x/time/rate, mutex map", xtime, asked(func(keys *keyset) (func(walk, int) int, func()) {
				m := &xtimeMutexMap{rate: keyedRate, burst: keyedBurst, limiters: map[string]*rate.Limiter{}}
				keys.each(func(key string) { m.of(key).AllowN(time.Now(), keyedDebt) })
				return func(w walk, n int) (admitted int) {
					for range n {
						if m.of(w.next()).Allow() {
							admitted++
						}
					}
					return admitted
				}, nothing
			})},
			{"throttled", throttling, asked(func(keys *keyset) (func(walk, int) int, func()) {
				l, ctx := newThrottled(throttled.PerSec(keyedRate), keyedBurst), context.Background()
				keys.each(func(key string) { _, _, _ = l.RateLimitCtx(ctx, key, keyedDebt) })
				return func(w walk, n int) (admitted int) {
					for range n {
						if limited, _, err := l.RateLimitCtx(ctx, w.next(), 1); err == nil && !limited {
							admitted++
						}
					}
					return admitted
				}, nothing
			})},
			{"go-limiter", sethvargoes, asked(func(keys *keyset) (func(walk, int) int, func()) {
				s, ctx := newSethvargo(keyedBurst, day, 0), context.Background()
				keys.each(func(key string) { _, _, _, _, _ = s.Take(ctx, key) })
				return func(w walk, n int) (admitted int) {
					for range n {
						if _, _, _, ok, err := s.Take(ctx, w.next()); err == nil && ok {
							admitted++
						}
					}
					return admitted
				}, closing(s)
			})},
			{"ulule/limiter", ulules, asked(func(keys *keyset) (func(walk, int) int, func()) {
				l, ctx := newUlule(keyedBurst, day, 0), context.Background()
				keys.each(func(key string) { _, _ = l.Get(ctx, key) })
				return func(w walk, n int) (admitted int) {
					for range n {
						if c, err := l.Get(ctx, w.next()); err == nil && !c.Reached {
							admitted++
						}
					}
					return admitted
				}, nothing
			})},
			{"httprate", chi, asked(func(keys *keyset) (func(walk, int) int, func()) {
				l, r := newHTTPRate(keyedBurst, day), new(http.Request)
				keys.each(func(key string) { l.OnLimit(nil, r, key) })
				return func(w walk, n int) (admitted int) {
					for range n {
						if !l.OnLimit(nil, r, w.next()) {
							admitted++
						}
					}
					return admitted
				}, nothing
			})},
		},
		aside: []contender{
			{"Keyed.AcquireKey", "", asked(func(keys *keyset) (func(walk, int) int, func()) {
				k, ctx := newKeyed(len(keys.names), keyedLimit), context.Background()
				keys.each(func(key string) { k.AllowN(key, keyedDebt) })
				return func(w walk, n int) (admitted int) {
					for range n {
						if p, err := k.AcquireKey(ctx, w.next(), core.Call{}); err == nil {
							p.Done(ctx, core.Success)
							admitted++
						}
					}
					return admitted
				}, nothing
			})},
			{"map+clock+CAS", "", asked(func(keys *keyset) (func(walk, int) int, func()) {
				words, epoch := map[string]*atomic.Int64{}, time.Now()
				keys.each(func(key string) { words[key] = new(atomic.Int64) })
				return func(w walk, n int) (good int) {
					for range n {
						if word := words[w.next()]; word != nil {
							swap(word, epoch)
							good++
						}
					}
					return good
				}, nothing
			})},
		},
		// The least: no two keys are told apart, and there is a slot for each.
		floor: contender{name: "hash+slot+clock+CAS", start: asked(func(keys *keyset) (func(walk, int) int, func()) {
			slots := make([]atomic.Int64, nextPower(len(keys.names)))
			seed, epoch := maphash.MakeSeed(), time.Now()
			for i := range slots {
				slots[i].Store(1) // so that the memory is there
			}
			return func(w walk, n int) (good int) {
				for range n {
					swap(&slots[maphash.String(seed, w.next())&uint64(len(slots)-1)], epoch)
					good++
				}
				return good
			}, nothing
		})},
	}
}

// A key owes its debt for a quarter of an hour, and has tokens for a billion
// calls.
const (
	keyedRate  = 1_000
	keyedBurst = 1_000_000_000
	keyedDebt  = 1_000_000
)

var keyedLimit = limit.TokenBucketConfig{Rate: limit.PerSecond(keyedRate), Burst: keyedBurst}

func newKeyed(keys int, each limit.Algorithm) *limit.Keyed[string] {
	return must(limit.NewKeyed(limit.KeyedConfig[string]{MaxKeys: keys, Limit: each}))
}

// xtimeSyncMap and xtimeMutexMap are the two usual ways to have an x/time/rate
// for each key.
type xtimeSyncMap struct {
	rate  rate.Limit
	burst int
	m     sync.Map
}

func (m *xtimeSyncMap) of(key string) *rate.Limiter {
	l, ok := m.m.Load(key)
	if !ok {
		l, _ = m.m.LoadOrStore(key, rate.NewLimiter(m.rate, m.burst))
	}
	return l.(*rate.Limiter)
}

type xtimeMutexMap struct {
	rate     rate.Limit
	burst    int
	mu       sync.Mutex
	limiters map[string]*rate.Limiter // guarded by mu
}

func (m *xtimeMutexMap) of(key string) *rate.Limiter {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.limiters[key]
	if l == nil {
		l = rate.NewLimiter(m.rate, m.burst)
		m.limiters[key] = l
	}
	return l
}

// keyset are keys of 17 bytes, and the order in which they are asked for.
type keyset struct {
	names  []string
	order  []uint32 // a power of two
	begins atomic.Uint32
}

func newKeyset(size int, zipf bool) *keyset {
	k := &keyset{names: names("client-", size), order: make([]uint32, max(1<<10, nextPower(size)))}
	r := rand.New(rand.NewPCG(1, uint64(size)))
	pick := func() uint64 { return r.Uint64N(uint64(size)) }
	if zipf {
		pick = rand.NewZipf(r, 1.1, 1, uint64(size-1)).Uint64
	}
	for i := range k.order {
		k.order[i] = uint32(pick())
	}
	return k
}

func (k *keyset) each(f func(key string)) {
	for _, name := range k.names {
		f(name)
	}
}

// names lie side by side in memory, so that reading them costs little.
func names(prefix string, n int) []string {
	var all strings.Builder
	length := len(prefix) + 10
	all.Grow(n * length)
	for i := range n {
		fmt.Fprintf(&all, "%s%010d", prefix, i)
	}
	names := make([]string, n)
	for i := range names {
		names[i] = all.String()[i*length : (i+1)*length]
	}
	return names
}

// walk is one goroutine's way through the keys.
type walk struct {
	*keyset
	at uint32
}

// begin is a walk that begins where others do not.
func (k *keyset) begin() walk { return walk{k, k.begins.Add(1) * 0x9E3779B1} }

func (w *walk) next() string {
	w.at++
	return w.names[w.order[w.at&uint32(len(w.order)-1)]]
}

func nextPower(n int) int {
	p := 1
	for p < n {
		p *= 2
	}
	return p
}
