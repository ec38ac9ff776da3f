package circuit

import (
	"cmp"
	"context"
	"errors"
	"hash/maphash"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/internal/clock"
)

// GroupConfig configures a Group.
type GroupConfig[K comparable] struct {
	// Config is that of each key's breaker. They all have its Name, so that no
	// key gets into a metric, unless there is a NameOf.
	Config Config

	// NameOf, if set, is the name of a key's breaker in rejections, events and
	// reports, where "" is Config's Name. It is for keys that the program itself
	// has chosen, such as the hosts of a configuration: names get into metrics.
	// It is called when a breaker is made, with nothing locked.
	NameOf func(key K) string

	// MaxKeys is how many breakers there are at most, up to 10^6. Each takes what a
	// Breaker does: 10,000 about 17 MiB, with a Window 19. Default: 10,000.
	MaxKeys int

	// IdleFor is how long a key must not have been asked for before its breaker
	// can be forgotten. It should be longer than nearly all calls take, since a
	// result that comes later is not known to the next breaker of that key.
	// Default: 5 min.
	IdleFor time.Duration

	// OnStateChange, if set, hears each change of state of each breaker, with
	// its key. It is called as Config's is, after that.
	OnStateChange func(key K, from, to State)
}

// Group is a Breaker for each key: for each host, endpoint, route or shard. A key
// that was never seen has a closed breaker.
//
// Its memory is bounded. Where there are MaxKeys breakers, one makes room for a new
// key that is closed, knows of no failure and was not asked for lately, so that
// it is as good as a new one; an open one never goes. If there is none, the new key
// has no breaker: its calls are admitted, and counted in GroupStats.Overflowed.
// Only then does a call look for one to forget, at a few of them, and not at the same
// again for a 64th of IdleFor. A key that is open, forced or failing and never asked
// for again keeps its place; Reset of its breaker, which All finds, gives it up.
//
// A key of an interface type whose value cannot be compared panics, as in a map. It is
// a core.KeyedGuard and core.Component, safe for concurrent use, has no
// goroutine and no timer, and needs no Close. A known key is found without a lock.
// A nil *Group admits every call.
type Group[K comparable] struct {
	name    string
	seed    maphash.Seed
	mask    uint64 // the number of shards, a power of two, less 1
	clock   clock.Clock
	idleFor int64
	changed func(key K, from, to State)
	nameOf  func(key K) string
	shards  []groupShard[K]

	mu  sync.Mutex             // one change of settings at a time
	cfg atomic.Pointer[Config] // of breakers to come; written under mu

	_          [128]byte // what is above is read
	keys       atomic.Int64
	most       int64
	hand       atomic.Uint64 // the shard that was looked at last
	evicted    atomic.Uint64
	overflowed atomic.Uint64
	_          [88]byte
}

// groupShard is the breakers of some of the keys.
type groupShard[K comparable] struct {
	known atomic.Pointer[map[K]*member] // read without a lock, and replaced when it changes
	mu    sync.Mutex                    // held while known is replaced
	next  atomic.Int64                  // when a search may look at it again
	_     [104]byte
}

// member is a breaker of a Group.
type member struct {
	breaker *Breaker
	asked   atomic.Bool  // for, since a search has seen it
	idle    atomic.Int64 // the clock reading of the first search that found it not asked for
}

const (
	defaultGroupKeys = 10_000
	maxGroupKeys     = 1_000_000
	keysPerGroup     = 64 // in a shard: it is copied for each that comes
	shardsPerSearch  = 4
	searchesPerIdle  = 64 // of a shard, within IdleFor
)

// NewGroup makes a Group without keys. The error lists every bad field of cfg;
// errors.Is(err, core.ErrConfig).
func NewGroup[K comparable](cfg GroupConfig[K]) (*Group[K], error) {
	given := cfg
	cfg.MaxKeys = cmp.Or(cfg.MaxKeys, defaultGroupKeys)
	cfg.IdleFor = cmp.Or(cfg.IdleFor, 5*time.Minute)
	cfg.Config.Name = cmp.Or(cfg.Config.Name, "breakers")
	bad := core.Check("circuit.GroupConfig")
	bad.If(cfg.MaxKeys < 1 || cfg.MaxKeys > maxGroupKeys, "MaxKeys", given.MaxKeys, "must be 1 to 1000000, or 0 for the default")
	bad.If(cfg.IdleFor < 0, "IdleFor", given.IdleFor, "must be above 0, or 0 for the default")
	if err := errors.Join(bad.Err(), cfg.Config.withDefaults().check(cfg.Config)); err != nil {
		return nil, err
	}
	shards := 1
	for shards*keysPerGroup < cfg.MaxKeys {
		shards *= 2
	}
	g := &Group[K]{
		name: cfg.Config.Name, seed: maphash.MakeSeed(), mask: uint64(shards - 1), clock: clock.New(),
		idleFor: int64(cfg.IdleFor), changed: cfg.OnStateChange, nameOf: cfg.NameOf, shards: make([]groupShard[K], shards), most: int64(cfg.MaxKeys),
	}
	for i := range g.shards {
		g.shards[i].known.Store(new(map[K]*member))
	}
	g.cfg.Store(&cfg.Config)
	return g, nil
}

// AcquireKey is Acquire of the breaker of key. For a key that was seen before it
// allocates nothing, unless it changes a state.
func (g *Group[K]) AcquireKey(ctx context.Context, key K, call core.Call) (core.Permit, error) {
	return g.Get(key).Acquire(ctx, call)
}

// Get is the breaker of key, which is made if there is none. It is nil, which
// admits every call, if there is no room for it. A breaker that is kept here can be
// forgotten by the Group, and another take its place, if the key is not asked for
// while it is idle.
func (g *Group[K]) Get(key K) *Breaker {
	if g == nil {
		return nil
	}
	s := &g.shards[maphash.Comparable(g.seed, key)&g.mask]
	m := (*s.known.Load())[key]
	if m == nil {
		if m = g.add(s, key); m == nil {
			return nil
		}
	}
	if !m.asked.Load() {
		m.asked.Store(true)
	}
	return m.breaker
}

// All is the keys and their breakers, in no order; those of one moment for each part
// of the keys, as others come and go. Asking for it keeps none from being forgotten.
func (g *Group[K]) All() iter.Seq2[K, *Breaker] {
	return func(yield func(K, *Breaker) bool) {
		if g == nil {
			return
		}
		for i := range g.shards {
			for key, m := range *g.shards[i].known.Load() {
				if !yield(key, m.breaker) {
					return
				}
			}
		}
	}
}

// add makes the breaker of a key, or finds the one that another has made; nil if
// there is no room. A key that is not equal to itself has none.
func (g *Group[K]) add(s *groupShard[K], key K) *member {
	name := g.name
	if g.nameOf != nil {
		name = cmp.Or(g.nameOf(key), name)
	}
	if key != key || !g.room(s) {
		if m := (*s.known.Load())[key]; m != nil {
			return m // another call had the same key, and the last place
		}
		g.overflowed.Add(1)
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	known := *s.known.Load()
	if m := known[key]; m != nil {
		g.keys.Add(-1)
		return m
	}
	m := &member{breaker: g.breaker(key, name)}
	next := make(map[K]*member, len(known)+1)
	maps.Copy(next, known)
	next[key] = m
	s.replace(next)
	return m
}

// breaker is a new one, by the settings in force.
func (g *Group[K]) breaker(key K, name string) *Breaker {
	cfg := *g.cfg.Load()
	cfg.Name = name
	if g.changed != nil {
		each := cfg.OnStateChange
		cfg.OnStateChange = func(from, to State) {
			defer g.changed(key, from, to) // whatever the other does
			if each != nil {
				each(from, to)
			}
		}
	}
	b, _ := New(cfg) // it has been checked
	return b
}

// room takes a place for one more key, if there is one or can be made. It looks
// into the shard of the key and some others.
func (g *Group[K]) room(s *groupShard[K]) bool {
	if g.take() {
		return true
	}
	now := g.clock.Now()
	for range 1 + shardsPerSearch {
		if g.forget(s, now); g.take() {
			return true
		}
		s = &g.shards[g.hand.Add(1)&g.mask]
	}
	return false
}

// take takes a place if one is free.
func (g *Group[K]) take() bool {
	for n := g.keys.Load(); n < g.most; n = g.keys.Load() {
		if g.keys.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

// forget forgets the idle breakers of a shard, unless that was tried a moment ago:
// a flood of new keys does not look at the same breakers for each.
func (g *Group[K]) forget(s *groupShard[K], now int64) {
	next := s.next.Load()
	if now < next || !s.next.CompareAndSwap(next, after(now, time.Duration(g.idleFor/searchesPerIdle))) {
		return
	}
	g.forgetNow(s, now)
}

func (g *Group[K]) forgetNow(s *groupShard[K], now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var next map[K]*member
	gone := 0
	for key, m := range *s.known.Load() {
		if !m.forgettable(now, g.idleFor) {
			continue
		}
		if next == nil {
			next = maps.Clone(*s.known.Load())
		}
		delete(next, key)
		gone++
	}
	if gone > 0 {
		s.replace(next)
		g.keys.Add(-int64(gone))
		g.evicted.Add(uint64(gone))
	}
}

func (s *groupShard[K]) replace(known map[K]*member) { s.known.Store(&known) }

// forgettable reports whether m has not been asked for in so long, and is as good
// as new. The caller holds the lock of its shard.
func (m *member) forgettable(now, idleFor int64) bool {
	if m.asked.Swap(false) || m.idle.Load() == 0 {
		m.idle.Store(max(1, now))
		return false
	}
	return now-m.idle.Load() >= idleFor && m.breaker.forgettable()
}

// forgettable reports whether b is closed and knows of no failure.
func (b *Breaker) forgettable() bool {
	now := b.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.load()
	s := b.settings.Load()
	if w.state() != Closed || w&ramping != 0 && now < b.ramp.Load().end ||
		s.FailureThreshold != Off && run(b.run.Load()).failures() > 0 {
		return false
	}
	if s.window != nil {
		s.window.tick(now)
		t := s.window.tally()
		return t.bad == 0 && t.slow == 0
	}
	return true
}

// Reconfigure changes the settings of all breakers, those to come included, as
// Breaker's Reconfigure does. If cfg is bad, nothing changes.
func (g *Group[K]) Reconfigure(cfg Config) error {
	if err := cfg.withDefaults().check(cfg); err != nil || g == nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.cfg.Load()
	cfg.Name, cfg.Observer = old.Name, old.Observer
	cfg.OnSuccess, cfg.OnFailure, cfg.OnStateChange = old.OnSuccess, old.OnFailure, old.OnStateChange
	g.cfg.Store(&cfg)
	for i := range g.shards {
		s := &g.shards[i]
		s.mu.Lock() // one that was made by the old settings is in known by now
		known := *s.known.Load()
		s.mu.Unlock()
		for _, m := range known {
			_ = m.breaker.Reconfigure(cfg) // it has been checked
		}
	}
	return nil
}

// GroupStats is a Group at one moment.
type GroupStats struct {
	Keys, MaxKeys int
	Evicted       uint64 // breakers forgotten
	Overflowed    uint64 // calls that had no breaker

	// How many breakers are in which state.
	Closed, Open, HalfOpen, Forced int
}

// Stats reads the counters, and asks each breaker for its state. Those of a nil
// *Group are zero.
func (g *Group[K]) Stats() (s GroupStats) {
	if g == nil {
		return s
	}
	s.MaxKeys, s.Evicted, s.Overflowed = int(g.most), g.evicted.Load(), g.overflowed.Load()
	for _, b := range g.All() {
		s.Keys++
		switch b.State() {
		case Closed:
			s.Closed++
		case Open:
			s.Open++
		case HalfOpen:
			s.HalfOpen++
		default:
			s.Forced++
		}
	}
	return s
}

// Name is the Name of the breakers.
func (g *Group[K]) Name() string {
	if g == nil {
		return ""
	}
	return g.name
}

// Inspect reports the group as it is now, and no key. With a NameOf, its children are
// the breakers, by name.
func (g *Group[K]) Inspect() core.Report {
	r := core.Report{Kind: "circuit_breakers", Name: g.Name()}
	if g == nil {
		return r
	}
	const states = "surgewall.circuit_breaker.count"
	s := g.Stats()
	r.Since = g.clock.Time(0)
	r.Values = []core.Value{
		core.Amount(states, "{circuit}", int64(s.Closed)).With("state", Closed.String()),
		core.Amount(states, "{circuit}", int64(s.Open)).With("state", Open.String()),
		core.Amount(states, "{circuit}", int64(s.HalfOpen)).With("state", HalfOpen.String()),
		core.Amount(states, "{circuit}", int64(s.Forced)).With("state", "forced"),
		core.Count("surgewall.circuit_breaker.key.evicted", "{key}", s.Evicted),
		core.Count("surgewall.circuit_breaker.key.overflows", "{call}", s.Overflowed),
	}
	cfg := g.cfg.Load().withDefaults()
	r.Settings = append((&settings{Config: cfg}).report(), core.Setting{Name: "MaxKeys", Value: int(g.most)})
	if g.nameOf != nil {
		for _, b := range g.All() {
			r.Children = append(r.Children, b.Inspect())
		}
		slices.SortFunc(r.Children, func(a, b core.Report) int { return cmp.Compare(a.Name, b.Name) })
	}
	return r
}
