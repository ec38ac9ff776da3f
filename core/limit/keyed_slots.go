package limit

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
)

// keyedSlots is a Keyed of bulkheads. Each key in use has a cell, so that its
// limit is exact, always; a key beyond MaxKeys has one for as long as it is in
// use. Its calls take slots of a pool as well, which is a bulkhead of the same
// size that all such keys share, so there are no more of them than that, and as
// many as may wait for it.
type keyedSlots[K comparable] struct {
	*keyedBase[K]
	shards []slotShard[K]
	nodes  waiters

	_      [128]byte // written, what is above is read
	sweeps atomic.Uint64
	_      [120]byte

	pools map[string]*slotPool // by plan, for good; guarded by keyedBase.mu
}

type slotCell[K comparable] = cell[K, slots, slotSite[K]]

// slotShard is the cells of some of the keys. All but owner is guarded by mu.
type slotShard[K comparable] struct {
	mu    sync.Mutex
	calls uint32
	table[K, slots, slotSite[K]]
	set   *slotSet
	sites []slotSite[K] // that of keys with a place, then those of the pools of set's rules

	admitted, forgotten uint64
	unmatched           uint64                     // slots given back that nobody had taken
	queued              map[*slotCell[K]]*slotRule // where calls wait, and by which rule; nil if nowhere
	inFlight, waiting   int
	owner               *keyedSlots[K]
	_                   [112]byte // a whole number of cache lines, in pairs
}

// slotSet is the limits in force: of a rule each, Limit the first, then the
// plans. It is immutable.
type slotSet struct {
	rules []slotRule
	index map[string]int
}

type slotRule struct {
	*bulkhead
	place  int // in the set
	plan   string
	policy string
}

// slotSite is where cells live: in a shard, and beyond MaxKeys on slots of a
// pool. It is immutable.
type slotSite[K comparable] struct {
	shard *slotShard[K]
	pool  *slotPool
}

// slotPool is a bulkhead that keys share.
type slotPool struct {
	mu         sync.Mutex // guards what is below
	rule       *slotRule
	slots      slots
	overflowed uint64
}

func newKeyedSlots[K comparable](b *keyedBase[K]) *keyedSlots[K] {
	k := &keyedSlots[K]{keyedBase: b, shards: make([]slotShard[K], b.mask+1), pools: map[string]*slotPool{}}
	for i := range k.shards {
		k.shards[i].owner = k
	}
	k.reconfigure(b.cfg)
	return k
}

// reconfigure puts the rules of cfg in force, one shard after another. The caller
// holds keyedBase.mu, or is alone.
func (k *keyedSlots[K]) reconfigure(cfg KeyedConfig[K]) {
	set := &slotSet{index: map[string]int{}}
	add := func(plan, policy string, a Algorithm) {
		set.index[plan] = len(set.rules)
		set.rules = append(set.rules, slotRule{newBulkhead(k.name, a.(ConcurrencyConfig)), len(set.rules), plan, policy})
	}
	add("", k.name, cfg.Limit)
	for plan, a := range cfg.Plans {
		add(plan, plan, a)
	}
	for i := range set.rules {
		r := &set.rules[i]
		p := k.pools[r.plan]
		if p == nil {
			p = new(slotPool)
			k.pools[r.plan] = p
		}
		p.mu.Lock()
		p.rule = r
		p.slots.renew(r.limit)
		p.mu.Unlock()
	}
	for i := range k.shards {
		s := &k.shards[i]
		s.mu.Lock()
		s.set, s.sites = set, make([]slotSite[K], 1+len(set.rules))
		s.sites[0].shard = s
		for i := range set.rules {
			s.sites[1+i] = slotSite[K]{s, k.pools[set.rules[i].plan]}
		}
		for c, r := range s.queued {
			s.queuedBy(c, s.rule(r.plan))
		}
		s.mu.Unlock()
	}
}

func (s *slotShard[K]) rule(plan string) *slotRule {
	if plan == "" {
		return &s.set.rules[0]
	}
	return &s.set.rules[s.set.index[plan]] // the first, if there is none of that name
}

// limit is by what those are served who wait for slots of c; 0 if nobody does.
func (s *slotShard[K]) limit(c *slotCell[K]) int {
	if s.queued != nil {
		if r := s.queued[c]; r != nil {
			return r.limit
		}
	}
	return 0
}

// book is called after any change of a cell's slots, with what was taken and how
// many waited before.
func (s *slotShard[K]) book(c *slotCell[K], taken int32, waiting int) {
	s.inFlight += int(c.state.taken - taken)
	s.waiting += c.state.queue.len() - waiting
	if s.queued != nil && c.state.queue.empty() {
		if delete(s.queued, c); len(s.queued) == 0 {
			s.queued = nil
		}
	}
}

// queuedBy is for a cell where calls wait, or will, whose rule may be another
// now.
func (s *slotShard[K]) queuedBy(c *slotCell[K], r *slotRule) {
	if s.queued == nil {
		s.queued = make(map[*slotCell[K]]*slotRule)
	}
	s.queued[c] = r
	if taken, waiting := c.state.taken, c.state.queue.len(); waiting > 0 {
		c.state.renew(r.limit)
		s.book(c, taken, waiting)
	}
}

// renew serves those who wait by a limit that is new.
func (s *slots) renew(limit int) {
	s.queue.refit(limit)
	s.serve(limit)
}

// lasting is for how long the context of a call lasts.
type lasting struct {
	left time.Duration
	done <-chan struct{}
}

// enter takes n slots of key, and waits for them as long as patience and ctx
// allow; for the MaxWait of its limit, if patience is negative. It returns the
// cell, or the refusal, which was told.
func (k *keyedSlots[K]) enter(ctx context.Context, key K, n int, patience time.Duration) (*slotCell[K], error) {
	plan := k.planOf(key)
	ended, end := ctx.Err(), lasting{}
	if ended == nil && (patience > 0 || patience < 0 && k.waits.Load()) {
		end = lasting{core.TimeLeft(ctx), ctx.Done()}
	}
	h := maphash.Comparable(k.seed, key)
	s := &k.shards[h&k.mask]
	s.mu.Lock()
	s.calls++
	r := s.rule(plan)
	switch {
	case n > r.limit:
		s.mu.Unlock()
		return nil, k.refuse(ctx, r.rejection(refusedNeverFits, nil), n)
	case ended != nil:
		s.mu.Unlock()
		return nil, k.refuse(ctx, r.rejection(endedBy(ended), ended), n)
	}
	c := s.find(h, key)
	if c == nil {
		c = k.makeCell(s, h, key, r)
	} else if s.queued != nil && s.queued[c] != nil && s.queued[c] != r {
		s.queuedBy(c, r)
	}
	taken := c.state.take(n, r.limit)
	if taken {
		s.inFlight += n
	}
	if taken && c.home.pool == nil {
		s.admitted++
		k.unlock(s)
		return c, nil
	}
	if patience < 0 {
		patience = r.maxWait
	}
	return k.enterSlowly(ctx, s, c, r, n, patience, end, taken)
}

// enterSlowly is enter for a call that may have to wait: for slots of its key's,
// unless these are taken, and for those of a pool, if its key has no place. It
// unlocks s.
func (k *keyedSlots[K]) enterSlowly(
	ctx context.Context, s *slotShard[K], c *slotCell[K], r *slotRule, n int, patience time.Duration, end lasting, taken bool,
) (*slotCell[K], error) {
	kind, ended, start := notRefused, error(nil), int64(0)
	if patience > 0 {
		start = k.clock.Now()
	}
	if taken {
		s.mu.Unlock()
	} else {
		if patience > 0 {
			s.queuedBy(c, r)
		}
		kind, ended = k.queueUp(ctx, (*ownQueue[K])(c), r, n, patience, end)
		taken = kind == notRefused
	}
	if p := c.home.pool; p != nil && taken {
		if patience > 0 {
			spent := time.Duration(k.clock.Now() - start)
			patience, end.left = patience-spent, end.left-spent
		}
		p.mu.Lock()
		r = p.rule
		p.overflowed++
		kind, ended = k.queueUp(ctx, p, r, n, patience, end)
	}
	if kind == notRefused {
		k.counts.Add(countAdmitted, 1)
		return c, nil
	}
	if c.home.pool != nil { // the cell goes, unless other calls are in it
		back := 0
		if taken {
			back = n
		}
		k.releaseOwn(c, back)
	}
	return nil, k.refuse(ctx, r.rejection(kind, ended), n)
}

// slotQueue is slots with the lock that guards them.
type slotQueue interface {
	sync.Locker
	open() (s *slots, limit int) // by which those who wait are served
	book(taken int32, waiting int)
}

// ownQueue is a cell as a slotQueue.
type ownQueue[K comparable] slotCell[K]

func (c *ownQueue[K]) Lock()   { c.home.shard.mu.Lock() }
func (c *ownQueue[K]) Unlock() { c.home.shard.mu.Unlock() }

func (c *ownQueue[K]) open() (*slots, int) { return &c.state, c.home.shard.limit((*slotCell[K])(c)) }

func (c *ownQueue[K]) book(taken int32, waiting int) {
	c.home.shard.book((*slotCell[K])(c), taken, waiting)
}

func (p *slotPool) Lock()               { p.mu.Lock() }
func (p *slotPool) Unlock()             { p.mu.Unlock() }
func (p *slotPool) open() (*slots, int) { return &p.slots, p.rule.limit }
func (p *slotPool) book(int32, int)     {}

// queueUp takes n slots of q when it is the call's turn. The error is that of the
// context, if that ended the wait. It is called with q locked, and unlocks it.
func (k *keyedSlots[K]) queueUp(
	ctx context.Context, q slotQueue, r *slotRule, n int, patience time.Duration, end lasting,
) (refusedKind, error) {
	s, _ := q.open()
	taken, waiting := s.taken, s.queue.len()
	kind, ended := notRefused, error(nil)
	var w *waiter
	switch {
	case n > r.limit:
		kind = refusedNeverFits
	case s.take(n, r.limit):
	case patience <= 0:
		kind = refusedFull
	case waiting >= r.maxWaiters:
		kind = refusedOverloaded
	case end.left <= 0:
		kind, ended = refusedDeadline, context.DeadlineExceeded
	default:
		w = k.nodes.get(n, end.done)
		s.queue.push(w)
	}
	q.book(taken, waiting)
	q.Unlock()
	if w == nil {
		return kind, ended
	}
	if patience = min(patience, end.left); patience == end.left && end.done != nil {
		patience = forever // ctx sees to it
	}
	v, final := w.await(patience)
	if !final {
		q.Lock()
		s, limit := q.open()
		taken, waiting = s.taken, s.queue.len()
		abandoned := s.abandon(w, limit)
		q.book(taken, waiting)
		q.Unlock()
		if !abandoned {
			v = w.decided() // sent under the lock, so it is there
		}
	}
	k.nodes.put(w)
	switch v {
	case granted:
		return notRefused, nil
	case misfit:
		return refusedNeverFits, nil
	case gone:
		ended = ctx.Err()
		return endedBy(ended), ended
	default:
		return refusedLate, nil
	}
}

// makeCell makes the cell of a key that has none. The caller holds the lock of s.
func (k *keyedSlots[K]) makeCell(s *slotShard[K], h uint64, key K, r *slotRule) *slotCell[K] {
	k.sweep(s)
	if key == key && k.places.take() {
		return s.add(k.seed, h, key, &s.sites[0])
	}
	shared := &s.sites[1+r.place]
	if key != key {
		return &slotCell[K]{home: shared, key: key} // nobody could find it again
	}
	return s.add(k.seed, h, key, shared)
}

// unlock lets go of s, and sweeps another now and then.
func (k *keyedSlots[K]) unlock(s *slotShard[K]) {
	due := s.calls%callsPerSweep == 0
	s.mu.Unlock()
	if !due {
		return
	}
	if next := &k.shards[k.sweeps.Add(1)&k.mask]; next.mu.TryLock() {
		k.sweep(next)
		next.mu.Unlock()
	}
}

// sweep forgets keys of s that are not in use. The caller holds the lock of s.
// Keys without a place go when their last call ends.
func (k *keyedSlots[K]) sweep(s *slotShard[K]) {
	removed := s.sweep(func(c *slotCell[K]) bool { return c.home.pool == nil && c.state.idle() })
	if removed > 0 {
		k.places.taken.Add(-int64(removed))
		s.forgotten += uint64(removed)
	}
}

// release gives back n slots of a cell, and those of the pool that go with them.
func (k *keyedSlots[K]) release(c *slotCell[K], n int) {
	back := k.releaseOwn(c, n)
	if p := c.home.pool; p != nil && back > 0 {
		p.mu.Lock()
		p.slots.release(back, p.rule.limit)
		p.mu.Unlock()
	}
}

// releaseOwn gives back n slots of a cell, at most those that are taken, and says
// how many. A cell without a place goes when it is not in use any more.
func (k *keyedSlots[K]) releaseOwn(c *slotCell[K], n int) (back int) {
	s := c.home.shard
	s.mu.Lock()
	taken, waiting := c.state.taken, c.state.queue.len()
	excess := c.state.release(n, s.limit(c))
	s.book(c, taken, waiting)
	s.unmatched += uint64(excess)
	if c.home.pool != nil && c.state.idle() {
		s.remove(maphash.Comparable(k.seed, c.key), c)
	}
	s.mu.Unlock()
	return n - excess
}

func (k *keyedSlots[K]) allow(key K, n int) bool {
	_, err := k.enter(context.Background(), key, n, 0)
	return err == nil
}

func (k *keyedSlots[K]) take(key K, n int) Decision {
	ok := k.allow(key, n)
	if ok {
		n = 0
	}
	d := k.peek(key, n)
	if d.OK = ok; !ok && d.RetryAfter == 0 {
		d.Remaining = min(d.Remaining, n-1) // a slot came free in between
	}
	return d
}

func (k *keyedSlots[K]) peek(key K, n int) Decision {
	plan := k.planOf(key)
	h := maphash.Comparable(k.seed, key)
	s := &k.shards[h&k.mask]
	s.mu.Lock()
	r := s.rule(plan)
	c := s.find(h, key)
	pool, free := s.sites[1+r.place].pool, r.limit
	if c != nil {
		pool, free = c.home.pool, c.state.free(r.limit)
	} else if key == key && k.places.taken.Load() < k.places.most.Load() {
		pool = nil
	}
	s.mu.Unlock()
	if pool != nil {
		pool.mu.Lock()
		free = min(free, pool.slots.free(pool.rule.limit))
		pool.mu.Unlock()
	}
	d := Decision{Limit: r.limit, Remaining: free, Policy: r.policy}
	switch {
	case n < 0 || n > r.limit:
		d.RetryAfter = Never
	case n <= free:
		d.OK = true
		d.Remaining -= n
	}
	return d
}

// free is how many slots a call could take at once.
func (s *slots) free(limit int) int {
	if !s.queue.empty() {
		return 0
	}
	return max(0, limit-int(s.taken))
}

func (k *keyedSlots[K]) acquire(ctx context.Context, key K, n int) (core.Permit, error) {
	c, err := k.enter(ctx, key, n, -1)
	if err != nil {
		return core.Permit{}, err
	}
	return core.NewPermit((*slotHolder[K])(c), core.Token{A: uint64(n)}, core.WantsEnd), nil
}

func (k *keyedSlots[K]) wait(ctx context.Context, key K, n int) error {
	_, err := k.enter(ctx, key, n, forever)
	return err
}

func (k *keyedSlots[K]) reserve(_ K, n int, _ time.Duration) (Reservation, error) {
	return Reservation{}, k.refuse(context.Background(), &core.Rejection{
		Guard: k.name, Reason: core.NeverFits, Err: ErrNeverFits, Detail: "a bulkhead does not know when slots come free",
	}, n)
}

func (k *keyedSlots[K]) charge(K, int) {}

func (k *keyedSlots[K]) refund(key K, n int) {
	h := maphash.Comparable(k.seed, key)
	s := &k.shards[h&k.mask]
	s.mu.Lock()
	c := s.find(h, key)
	if c == nil {
		s.unmatched += uint64(n)
	}
	s.mu.Unlock()
	if c != nil {
		k.release(c, n)
	}
}

func (k *keyedSlots[K]) pause(K, int64) bool { return false }

// slotHolder is a cell to the permit of a call that took slots of it.
type slotHolder[K comparable] slotCell[K]

// FinishPermit is for core.Permit: it gives back what a call took.
func (c *slotHolder[K]) FinishPermit(_ context.Context, t core.Token, _ core.Result) {
	c.home.shard.owner.release((*slotCell[K])(c), int(t.A))
}

// CancelPermit is for core.Permit: it gives back what a call took that never
// started.
func (c *slotHolder[K]) CancelPermit(t core.Token) {
	k := c.home.shard.owner
	k.counts.Add(countCancelled, 1)
	k.release((*slotCell[K])(c), int(t.A))
}

func (k *keyedSlots[K]) count(sum *KeyedStats) {
	for i := range k.shards {
		s := &k.shards[i]
		s.mu.Lock()
		sum.Admitted += s.admitted
		sum.Forgotten += s.forgotten
		sum.Keys += int(s.keys)
		sum.InFlight += s.inFlight
		sum.Waiting += s.waiting
		sum.Unmatched += s.unmatched
		s.mu.Unlock()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.pools {
		p.mu.Lock()
		sum.Overflowed += p.overflowed
		sum.Waiting += p.slots.queue.len()
		p.mu.Unlock()
	}
}
