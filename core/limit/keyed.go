package limit

import (
	"context"
	"hash/maphash"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/internal/clock"
	"github.com/surgewall/surgewall/core/internal/stripe"
)

// Algorithm is what Keyed gives to each key: a TokenBucketConfig. The set is
// closed.
type Algorithm interface {
	perKey(p *core.Problems, field string) TokenBucketConfig
}

// perKey checks the settings, as those of a field with that name, and returns
// them with their defaults.
func (cfg TokenBucketConfig) perKey(p *core.Problems, field string) TokenBucketConfig {
	p.If(cfg.Name != "", field+".Name", cfg.Name, "must be empty: the name is KeyedConfig's")
	p.If(cfg.Observer != nil, field+".Observer", nil, "must be nil: the observer is KeyedConfig's")
	cfg.check(p, field+".")
	return cfg.withDefaults()
}

// KeyedConfig configures NewKeyed.
type KeyedConfig[K comparable] struct {
	// Name is the name in rejections, events and reports. Default: "keyed".
	Name string

	// Limit is the limit of each key: a TokenBucketConfig without Name and
	// Observer. Required.
	Limit Algorithm

	// MaxKeys is how many keys are remembered at most. Beyond it, keys that
	// are not known share one bucket, of the same size, until known ones that
	// owe nothing any more are found. Default: 100,000.
	MaxKeys int

	// Observer hears an event of core.KindRejected for each refusal. It never
	// hears a key. Default: none.
	Observer core.Observer
}

const defaultMaxKeys = 100_000

// Keyed is a limit for each key: for each client, tenant or address. A key
// that was never seen has a full bucket.
//
// Its memory is bounded. A bucket that is full again is the same as none, so it
// may be forgotten; one that still limits never is, whatever keys come: a flood
// of new keys cannot push out the debt of an old one. Each new key makes room by
// looking at a few old ones, so no call waits for a sweep and no goroutine runs.
//
// It is safe for concurrent use, a core.KeyedGuard and core.Component, and needs
// no Close. A nil *Keyed is no limit.
type Keyed[K comparable] struct {
	gcra
	refusals
	limit   TokenBucketConfig
	maxKeys int
	since   time.Time

	seed     maphash.Seed
	mask     uint64 // the number of shards in use, a power of two, less 1
	shards   [maxShards]shard[K]
	overflow shard[K] // holds one cell, which is in no index
	spare    cell[K]  // that cell

	_          [128]byte // these are written, what is above is read
	keys       atomic.Int64
	overflowed atomic.Uint64

	counts stripe.Group
}

const (
	maxShards = 64 // a power of two
	sweepStep = 4  // cells looked at for each new key

	// A new key makes room in its own shard alone, so there are no more shards
	// than have this many keys each when MaxKeys are remembered: hardly ever is
	// one without a key while another has one to forget.
	keysPerShard = 32
)

// shard is the buckets of some of the keys. All of a call's reckoning is done
// under its lock.
type shard[K comparable] struct {
	owner *Keyed[K]

	mu    sync.Mutex
	index map[K]*cell[K] // guarded by mu, as is all below
	cells []*cell[K]     // those in the index, in no order
	next  int            // where the next sweep looks

	_ [128]byte // shards are written by different processors
}

// cell is the bucket of one key. A permit holds it, so that what is given back
// goes where it was taken, even if the key was forgotten meanwhile. Its fields
// are guarded by the shard's mu.
type cell[K comparable] struct {
	home     *shard[K]
	tat      uint64
	returned uint32 // tokens given back so far; it wraps
	place    uint32 // in cells
	key      K
}

// NewKeyed makes a limit for each key. The error lists every bad field of cfg;
// errors.Is(err, core.ErrConfig).
func NewKeyed[K comparable](cfg KeyedConfig[K]) (*Keyed[K], error) {
	if cfg.Name == "" {
		cfg.Name = "keyed"
	}
	if cfg.MaxKeys == 0 {
		cfg.MaxKeys = defaultMaxKeys
	}
	p := core.Check("limit.KeyedConfig")
	p.If(cfg.MaxKeys < 0 || cfg.MaxKeys > math.MaxInt32, "MaxKeys", cfg.MaxKeys, "must be 0 to 2147483647")
	each, ok := cfg.Limit.(TokenBucketConfig)
	p.If(cfg.Limit == nil, "Limit", nil, "must be set")
	p.If(cfg.Limit != nil && !ok, "Limit", nil, "must be a TokenBucketConfig")
	if ok {
		each = each.perKey(p, "Limit")
	}
	if err := p.Err(); err != nil {
		return nil, err
	}
	c := clock.New()
	k := &Keyed[K]{
		gcra:    newGCRA(each.Rate, each.Burst, each.MaxWait),
		limit:   each,
		maxKeys: cfg.MaxKeys,
		since:   c.Time(0),
		seed:    maphash.MakeSeed(),
		mask:    shardsFor(cfg.MaxKeys) - 1,
	}
	k.refusals.init(cfg.Name, cfg.Observer, c)
	k.setRound(each.Rate.Tokens, each.Rate.Per)
	for i := range k.shards {
		k.shards[i].owner = k
		k.shards[i].index = make(map[K]*cell[K])
	}
	k.overflow.owner = k
	k.spare.home = &k.overflow
	return k, nil
}

// Allow takes one token of key if there is one, and reports whether it did.
func (k *Keyed[K]) Allow(key K) bool { return k.AllowN(key, 1) }

// AllowN is TokenBucket's AllowN for the bucket of key.
func (k *Keyed[K]) AllowN(key K, n int) bool {
	if k == nil {
		return n >= 0
	}
	if n == 0 {
		return true
	}
	if r := k.misfit(n, k.burst); r != nil {
		k.refused(context.Background(), r.Reason, n)
		return false
	}
	if c, _, _, _ := k.take(key, n, 0); c == nil {
		k.refused(context.Background(), core.RateLimited, n)
		return false
	}
	k.counts.Add(countAdmitted, 1)
	return true
}

// AcquireKey is TokenBucket's Acquire for the bucket of key.
func (k *Keyed[K]) AcquireKey(ctx context.Context, key K, call core.Call) (core.Permit, error) {
	n := call.Weight()
	if k == nil {
		return core.Permit{}, malformed(n)
	}
	if r := k.misfit(n, k.burst); r != nil {
		return core.Permit{}, k.refuse(ctx, r, n)
	}
	patience := uint64(0)
	if k.limit.MaxWait > 0 {
		if err := ctx.Err(); err != nil {
			return core.Permit{}, k.refuse(ctx, k.ended(err), n)
		}
		patience = k.patience(min(k.limit.MaxWait, core.TimeLeft(ctx)))
	}
	c, t, wait, now := k.take(key, n, patience)
	turn := k.instant(now, wait)
	if c == nil {
		return core.Permit{}, k.refuse(ctx, k.limited(turn), n)
	}
	if wait > 0 {
		if err := await(ctx, time.Duration(turn-k.clock.Now())); err != nil && k.clock.Now() < turn {
			c.giveBack(t, n)
			return core.Permit{}, k.refuse(ctx, k.ended(err), n)
		}
	}
	k.counts.Add(countAdmitted, 1)
	return core.NewPermit(c, t, core.WantsNothing), nil
}

// take takes n tokens of key if their turn comes within patience, in ticks. It
// returns the bucket, nil if it refused, the charge, the ticks to wait, and the
// clock reading that these count from.
func (k *Keyed[K]) take(key K, n int, patience uint64) (c *cell[K], t core.Token, wait uint64, now int64) {
	cost := k.cost(n)
	c, now = k.lock(key)
	defer c.home.mu.Unlock()
	after, wait, ok := k.gcra.admit(c.tat, k.units(now), cost, patience, false)
	if !ok {
		return nil, t, wait, now
	}
	c.tat = after
	return c, charged(after, n, c.returned), wait, now
}

// lock is the bucket that key has to use, its shard locked, and a clock reading.
// A key that is not equal to itself, such as NaN, could never be found again and
// uses the overflow bucket.
//
// The clock is read outside the lock for a key that is known: if the reading is
// stale by then, that errs on the side of the limit. A new bucket begins at its
// reading, so there it must not be older than what a sweep forgot.
func (k *Keyed[K]) lock(key K) (c *cell[K], now int64) {
	now = k.clock.Now()
	s := k.shard(key)
	s.mu.Lock()
	if c = s.index[key]; c != nil {
		return c, now
	}
	now = k.clock.Now()
	if s.sweep(k.units(now)); key == key && k.room() {
		return s.add(key, k.units(now)), now
	}
	s.mu.Unlock()
	k.overflowed.Add(1)
	k.overflow.mu.Lock()
	return &k.spare, now
}

func (k *Keyed[K]) shard(key K) *shard[K] {
	return &k.shards[maphash.Comparable(k.seed, key)&k.mask]
}

func shardsFor(maxKeys int) uint64 {
	n := uint64(1)
	for n < maxShards && uint64(maxKeys) >= 2*n*keysPerShard {
		n *= 2
	}
	return n
}

// room takes a place for one more key, if there is one.
func (k *Keyed[K]) room() bool {
	if k.keys.Add(1) <= int64(k.maxKeys) {
		return true
	}
	k.keys.Add(-1)
	return false
}

// add makes the bucket of a key. It begins with the debt of the overflow bucket,
// which may be this key's own. The caller holds mu.
func (s *shard[K]) add(key K, now uint64) *cell[K] {
	k := s.owner
	k.overflow.mu.Lock()
	tat := k.gcra.owed(k.spare.tat, now, 0)
	k.overflow.mu.Unlock()
	c := &cell[K]{home: s, tat: tat, place: uint32(len(s.cells)), key: key}
	s.index[key] = c
	s.cells = append(s.cells, c)
	return c
}

// sweep looks at a few cells and forgets those that owe nothing. The caller
// holds mu.
func (s *shard[K]) sweep(now uint64) {
	for range min(sweepStep, len(s.cells)) {
		if s.next >= len(s.cells) {
			s.next = 0
		}
		c := s.cells[s.next]
		if s.owner.debt(c.tat, now) > 0 {
			s.next++
			continue
		}
		last := len(s.cells) - 1
		s.cells[s.next] = s.cells[last]
		s.cells[s.next].place = c.place
		s.cells[last] = nil
		s.cells = s.cells[:last]
		delete(s.index, c.key)
		s.owner.keys.Add(-1)
	}
}

// FinishPermit is for core.Permit, as TokenBucket's.
func (c *cell[K]) FinishPermit(_ context.Context, t core.Token, r core.Result) {
	switch n := tokensOf(t); {
	case r.Cost == 0:
	case r.Cost < n:
		c.giveBack(t, n-max(r.Cost, 0))
	case r.Cost > n:
		c.charge(r.Cost - n)
	}
}

// CancelPermit is for core.Permit, as TokenBucket's.
func (c *cell[K]) CancelPermit(t core.Token) {
	c.home.owner.counts.Add(countCancelled, 1)
	c.giveBack(t, tokensOf(t))
}

// giveBack gives back n of the tokens that a call took; the clock as in
// TokenBucket's.
func (c *cell[K]) giveBack(t core.Token, n int) {
	k := c.home.owner
	c.home.mu.Lock()
	defer c.home.mu.Unlock()
	now := k.units(k.clock.Now())
	if back := k.gcra.refund(c.tat, now, t, n, c.returned, k.full); back > 0 {
		c.tat -= back
		c.returned += uint32(n)
	}
}

// charge takes n tokens whether they are there or not, from the bucket that the
// key has now: this one may be forgotten.
func (c *cell[K]) charge(n int) {
	k := c.home.owner
	var now int64
	if c.home == &k.overflow {
		c.home.mu.Lock()
		now = k.clock.Now()
	} else {
		c, now = k.lock(c.key)
	}
	defer c.home.mu.Unlock()
	ticks := k.units(now)
	c.tat = k.gcra.owed(c.tat, ticks, n)
}

func (k *Keyed[K]) refuse(ctx context.Context, r *core.Rejection, n int) error {
	k.refused(ctx, r.Reason, n)
	return r
}

func (k *Keyed[K]) refused(ctx context.Context, why core.Reason, n int) {
	k.counts.Add(countRefused, 1)
	k.tell(ctx, why, n)
}

// await waits for d, or until ctx ends, whose error it returns then.
func await(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
