package limit

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
)

// keyedRate is a Keyed of any law. What a key owes is in a cell, and all of a
// call's reckoning is done under the lock of the shard that the cell is in.
type keyedRate[K comparable, S any] struct {
	*keyedBase[K]
	lawOf  func(Algorithm) law[S]
	shards []rateShard[K, S]
	shared rateShard[K, S] // for keys that there is no place for; its table is empty

	_      [128]byte     // these are written, what is above is read
	used   atomic.Bool   // the shared cells may owe something; set under shared.mu
	pauses atomic.Int64  // of keys, in all shards
	sweeps atomic.Uint64 // the shard that was swept last
	_      [104]byte
}

type rateCell[K comparable, S any] = cell[K, S, site[K, S]]

// rateShard is the cells of some of the keys. All but owner is guarded by mu.
type rateShard[K comparable, S any] struct {
	mu       sync.Mutex
	calls    uint32
	now      int64 // the newest clock reading that was used here
	start    int64 // of the present call: now, or later if its key is paused: the end of that
	admitted uint64
	refused  uint64

	// What is above fits on the one cache line that each call writes, and what
	// follows is seldom written.
	_ [16]byte

	table[K, S, site[K, S]]
	set    *ruleset[S]
	sites  []site[K, S] // of each rule
	paused map[K]int64  // the clock readings at which pauses end; nil if there are none

	overflowed, forgotten uint64

	changed chan struct{} // closed when a turn may have changed; nil if nobody waits
	spares  []*rateCell[K, S]
	scratch *S
	owner   *keyedRate[K, S]

	_ [48]byte // a whole number of cache lines, in pairs
}

// ruleset is the limits in force: of a rule each, Limit the first, then the
// plans. It is immutable.
type ruleset[S any] struct {
	rules []rule[S]
	index map[string]int
}

type rule[S any] struct {
	law       law[S]
	most      int
	set       *ruleset[S]
	place     int    // in the set
	plan      string // "" for Limit
	policy    string // the name in a Decision
	maxWait   time.Duration
	neverFits *core.Rejection
}

// site is where cells live: in a shard, under a rule. A cell never moves. When
// the limit of its key is changed or paused, the key is given a new cell, and
// its site says by what change it came. It is immutable.
type site[K comparable, S any] struct {
	shard *rateShard[K, S]
	rule  *rule[S]

	at, paused, till int64 // see change
}

func newKeyedRate[K comparable, S any](b *keyedBase[K], lawOf func(Algorithm) law[S]) *keyedRate[K, S] {
	k := &keyedRate[K, S]{keyedBase: b, lawOf: lawOf, shards: make([]rateShard[K, S], b.mask+1)}
	set := k.rules(b.cfg)
	for i := range k.shards {
		k.shards[i].owner, k.shards[i].scratch = k, new(S)
		k.shards[i].adopt(set, 0)
	}
	k.shared.owner, k.shared.scratch = k, new(S)
	k.shared.adopt(set, 0)
	k.shared.spares = k.shared.newSpares()
	return k
}

// rules are those of cfg, which has been checked.
func (k *keyedRate[K, S]) rules(cfg KeyedConfig[K]) *ruleset[S] {
	set := &ruleset[S]{rules: make([]rule[S], 0, 1+len(cfg.Plans)), index: map[string]int{}}
	add := func(plan, policy string, a Algorithm) {
		l := k.lawOf(a)
		set.index[plan] = len(set.rules)
		set.rules = append(set.rules, rule[S]{
			law: l, most: l.most(), set: set, place: len(set.rules), plan: plan, policy: policy,
			maxWait: a.maxWait(), neverFits: k.misfit(l.most()+1, l.most()),
		})
	}
	add("", k.name, cfg.Limit)
	for plan, a := range cfg.Plans {
		add(plan, plan, a)
	}
	return set
}

// adopt puts rules in force from the clock reading at on.
func (s *rateShard[K, S]) adopt(set *ruleset[S], at int64) {
	s.set, s.sites = set, make([]site[K, S], len(set.rules))
	for i := range set.rules {
		s.sites[i] = site[K, S]{shard: s, rule: &set.rules[i], at: at}
	}
}

// newSpares are cells for keys that have none.
func (s *rateShard[K, S]) newSpares() []*rateCell[K, S] {
	spares := make([]*rateCell[K, S], len(s.sites))
	for i := range spares {
		spares[i] = &rateCell[K, S]{home: &s.sites[i]}
		s.sites[i].rule.law.begin(&spares[i].state, s.sites[i].at)
	}
	return spares
}

// time sets the time of a call: a clock reading, or a later one if that was used
// in s before. So in a shard time never runs back: no call is refused because its
// clock is stale, and no state begins before another was forgotten.
func (s *rateShard[K, S]) time(now int64) {
	s.now = max(s.now, now)
	s.start = s.now
}

// rule is that of a plan.
func (s *rateShard[K, S]) rule(plan string) *rule[S] {
	if plan == "" {
		return &s.set.rules[0]
	}
	return &s.set.rules[s.set.index[plan]] // the first, if there is none of that name
}

// held is the state of a key, with the lock of its shard held. (With a fourth
// word it would not travel in registers.)
type held[K comparable, S any] struct {
	shard *rateShard[K, S]
	cell  *rateCell[K, S] // nil if the cost never fits
	rule  *rule[S]
}

// hold locks the shard of key and finds its cell, or makes one, for a cost of n.
// What it returns is given to letGo.
func (k *keyedRate[K, S]) hold(key K, n int) held[K, S] {
	return k.holdUnder(k.planOf(key), key, n)
}

func (k *keyedRate[K, S]) holdUnder(plan string, key K, n int) held[K, S] {
	h := maphash.Comparable(k.seed, key)
	now := k.clock.Now()
	s := &k.shards[h&k.mask]
	s.mu.Lock()
	s.calls++
	s.time(now)
	if s.paused != nil {
		k.pausedUntil(s, key)
	}
	r := s.rule(plan)
	if n > r.most {
		return held[K, S]{s, nil, r}
	}
	c := s.find(h, key)
	if c == nil || c.home != &s.sites[r.place] && c.home.rule != r {
		return k.holdSlowly(held[K, S]{s, c, r}, key, n, h, plan)
	}
	return held[K, S]{s, c, r}
}

// letGo unlocks the shard, and sweeps another now and then.
func (k *keyedRate[K, S]) letGo(s *rateShard[K, S]) {
	due, now := s.calls%callsPerSweep == 0, s.now
	s.mu.Unlock()
	if due {
		k.sweepNext(now - grace)
	}
}

const callsPerSweep = 64

// grace is how long a key is kept after it owed something for the last time, where
// there are plenty of places: of a fast limit, nothing is owed soon after each call,
// and those who go on calling need not be forgotten in between.
const grace = int64(100 * time.Millisecond)

// holdSlowly is hold for a key that is not known, or whose limit has changed.
func (k *keyedRate[K, S]) holdSlowly(a held[K, S], key K, n int, h uint64, plan string) held[K, S] {
	s := a.shard
	for again := false; ; again = true {
		if a.cell != nil {
			a.cell = k.replan(s, h, k.update(s, h, a.cell), a.rule)
			return a
		}
		at := s.now
		if k.places.plenty() {
			at -= grace
		}
		k.sweep(s, at)
		if key == key && k.places.take() {
			a.cell = s.add(k.seed, h, key, &s.sites[a.rule.place])
			k.begin(&a.cell.state, s, a.rule)
			return a
		}
		now, start := s.now, s.start
		s.mu.Unlock()
		if key != key || again || !k.sweepNext(now) {
			return k.holdShared(n, plan, now, start)
		}
		// There may be a place now.
		s.mu.Lock()
		s.time(now)
		s.start = max(s.start, start)
		if a.rule = s.rule(plan); n > a.rule.most {
			return a
		}
		a.cell = s.find(h, key)
	}
}

// holdShared is hold for a key that there is no place for.
func (k *keyedRate[K, S]) holdShared(n int, plan string, now, start int64) held[K, S] {
	o := &k.shared
	o.mu.Lock()
	o.time(now)
	if start > now {
		o.start = max(o.start, start)
	}
	o.overflowed++
	k.used.Store(true)
	r := o.rule(plan)
	if n > r.most {
		return held[K, S]{o, nil, r}
	}
	return held[K, S]{o, o.spares[r.place], r}
}

// begin makes state that of a key that has no cell: of one never used, or, if
// keys share a limit now, with what these owe. It may be this key's own debt.
// The caller holds the lock of s, which is not the shared one.
func (k *keyedRate[K, S]) begin(state *S, s *rateShard[K, S], r *rule[S]) {
	r.law.begin(state, s.start)
	if !k.used.Load() {
		return
	}
	o := &k.shared
	o.mu.Lock()
	defer o.mu.Unlock()
	o.time(s.now)
	owing := false
	for _, c := range o.spares {
		owing = owing || !c.home.rule.law.idle(&c.state, o.now)
	}
	k.used.Store(owing)
	if spare := o.spares[o.rule(r.plan).place]; !spare.home.rule.law.idle(&spare.state, o.now) {
		*state = spare.state
		r.law.convert(state, change[S]{at: o.now, from: spare.home.rule.law, till: s.start})
	}
}

// sweep forgets keys of s that owe nothing since the clock reading at. The caller
// holds the lock of s.
func (k *keyedRate[K, S]) sweep(s *rateShard[K, S], at int64) (removed int) {
	removed = s.sweep(func(c *rateCell[K, S]) bool {
		// One that has yet to be brought to the rules in force may owe more by
		// them. One may be farther ahead of at than there are numbers for, where
		// windows are short, and look idle for it; so it has to be idle now too.
		law := c.home.rule.law
		return c.home.rule.set == s.set && law.idle(&c.state, s.now) && (at == s.now || law.idle(&c.state, at))
	})
	if removed > 0 {
		k.places.taken.Add(-int64(removed))
		s.forgotten += uint64(removed)
	}
	return removed
}

// sweepNext sweeps the next shard in turn, unless somebody is in it, and reports
// whether a key went. The caller holds no lock.
func (k *keyedRate[K, S]) sweepNext(at int64) bool {
	s := &k.shards[k.sweeps.Add(1)&k.mask]
	if !s.mu.TryLock() {
		return false
	}
	s.time(at)
	removed := k.sweep(s, at)
	s.mu.Unlock()
	return removed > 0
}
