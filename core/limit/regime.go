package limit

import (
	"context"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
)

// bucket is what a TokenBucket and a LeakyBucket have in common: the
// generic cell rate algorithm on a word that all callers share.
type bucket struct {
	limiter
	shaped bool // a call waits for all before it, and not only for room

	in atomic.Pointer[regime]
	mu sync.Mutex // orders refunds, so that each knows of those before it, and changes of in
}

// regime is the settings of a bucket, and the word that was reckoned by them:
// reconfiguring and pausing replace both as one. The word of a regime that has
// been replaced is marked as moved, so that whoever was about to swap it fails,
// and asks the next.
type regime struct {
	gcra
	of      *bucket
	rate    Rate
	maxWait time.Duration
	paused  int64 // the clock reading at which a pause ends; past if there is none

	// What came after this regime, and when; written before changed is closed.
	changed chan struct{}
	next    *regime
	at      int64

	_        [128]byte // what is written stays off the lines of what is read
	word     atomic.Uint64
	returned atomic.Uint32 // tokens given back so far; it wraps
	_        [112]byte
}

// The word of a regime: the TAT, and in its lowest eight bits, which those of
// the TAT leave free, a mark and the number of calls admitted. Counting them in
// a word of their own would cost a third of an admission.
const (
	calls = 1<<7 - 1 // the calls admitted, modulo 128
	moved = 1 << 7
)

func (b *bucket) init(cfg TokenBucketConfig) {
	b.limiter.init(cfg.Name, cfg.Observer)
	b.setRound(cfg.Rate.Tokens, cfg.Rate.Per)
	b.in.Store(b.regime(cfg, 0))
}

func (b *bucket) regime(cfg TokenBucketConfig, paused int64) *regime {
	return &regime{
		gcra: newGCRA(cfg.Rate, cfg.Burst), of: b, rate: cfg.Rate, maxWait: cfg.MaxWait, paused: paused,
		changed: make(chan struct{}),
	}
}

// allow takes n if they are there.
func (b *bucket) allow(n int) bool {
	ok, sure := b.quick(n, false)
	if !sure {
		_, ok = takeAtOnce(&b.limiter, b, n)
	} else if !ok {
		b.refused(context.Background(), core.RateLimited, n)
	}
	return ok
}

// quick is take without patience, and without what nobody needs who does not
// wait. Where it is not sure, take knows. Shaped, it takes nothing if it would have
// to wait for others.
func (b *bucket) quick(n int, shaped bool) (ok, sure bool) {
	r := b.in.Load()
	cost := r.one
	if n != 1 {
		if uint(n-1) >= uint(r.burst) {
			return false, false
		}
		cost = r.cost(n)
	}
	word := r.word.Load()
	now := b.clock.Now()
	for tight := false; now >= r.paused && word&moved == 0; tight = true {
		at := r.units(now)
		debt := r.debt(word&^low, at) + cost
		if debt > r.full || shaped && debt > cost {
			return false, !tight // the word may know a later time than now
		}
		if next := at + debt | (word+1)&calls; r.word.CompareAndSwap(word, next) {
			if next&calls == 0 {
				b.counts.Add(countAdmitted, calls+1)
			}
			return true, true
		}
		if !tight {
			keepOff()
		}
		now = b.clock.Now()
		word = r.word.Load()
	}
	return false, false
}

func (b *bucket) most() int { return b.in.Load().burst }

// take is for meter.
//
// At first the clock is read after the word: so it is as new, and if another
// processor is at the word too, that shows. Then one keeps off for a moment, and
// reads the clock before the word, so that next to nothing passes until the swap.
// Such a clock may be stale: it sees more debt than there is, never less. An
// admission by it was due already, and before a refusal it is read again.
func (b *bucket) take(n int, patience time.Duration) (c charge, ok bool) {
	r := b.in.Load()
	word := r.word.Load()
	now := b.clock.Now()
	for tight := false; ; tight = true {
		c, ok, again := r.takeAt(word, now, n, patience)
		if tight && !ok && !again {
			c, ok, again = r.takeAt(word, b.clock.Now(), n, patience)
		}
		switch {
		case !again:
			return c, ok
		case word&moved != 0:
			runtime.Gosched() // to whoever moves it
		case !tight:
			keepOff()
		}
		r = b.in.Load()
		now = b.clock.Now()
		word = r.word.Load()
	}
}

// takeAt is take at a given clock reading, if the word is word. again says that it
// is not.
func (r *regime) takeAt(word uint64, now int64, n int, patience time.Duration) (c charge, ok, again bool) {
	if n > r.burst {
		return charge{now: now, turn: now}, false, false // it fitted a moment ago
	}
	start := max(now, r.paused)
	at, cost := r.units(start), r.cost(n)
	left := r.patience(patience - time.Duration(start-now))
	late := patience < time.Duration(start-now)
	if word&moved != 0 {
		return c, false, true
	}
	// Read before the word is moved: a refund that comes between is then held
	// against this call, which errs on the side of the limit.
	returned := r.returned.Load()
	after, wait, fits := r.admit(word&^low, at, cost, left, r.of.shaped && patience > 0)
	if late || !fits {
		return charge{now: now, turn: r.instant(start, wait)}, false, false
	}
	next := after | (word+1)&calls
	if !r.word.CompareAndSwap(word, next) {
		return c, false, true
	}
	if next&calls == 0 {
		r.of.counts.Add(countAdmitted, calls+1)
	}
	c = charge{by: r, token: charged(after, n, returned), now: now, turn: now, changed: r.changed}
	if wait > 0 || start > now {
		c.turn = r.instant(start, wait)
	}
	return c, true, false
}

// now is the regime in force, with its word and a clock reading not older than
// it.
func (b *bucket) now() (r *regime, word uint64, now int64) {
	for {
		r = b.in.Load()
		if word = r.word.Load(); word&moved == 0 {
			return r, word, b.clock.Now()
		}
		runtime.Gosched()
	}
}

func (b *bucket) peek(n int) Decision {
	r, word, now := b.now()
	return r.decide(word&^low, now, n)
}

// when is for part.
func (b *bucket) when(n int) (turn, now int64) {
	r, word, now := b.now()
	start := max(now, r.paused)
	_, wait, _ := r.admit(word&^low, r.units(start), r.cost(n), 0, false)
	if wait == 0 {
		return start, now
	}
	return r.instant(start, wait), now
}

// refusal is the *core.Rejection that a call of cost 1 would get now, or nil.
func (b *bucket) refusal() *core.Rejection {
	if turn, now := b.when(1); turn > now {
		return b.limited(turn)
	}
	return nil
}

// bucketPart is a bucket as a part of a Combined.
type bucketPart struct {
	*bucket
	settable
}

func (b bucketPart) base() *limiter { return &b.limiter }

func (r *regime) decide(tat uint64, now int64, n int) Decision {
	d := r.gcra.peek(tat, now, max(now, r.paused), n)
	d.Policy = r.of.name
	return d
}

func (b *bucket) takeDecision(n int) Decision {
	c, ok := takeAtOnce(&b.limiter, b, n)
	if !ok {
		return refusedDecision(b.peek(n), n)
	}
	if n == 0 {
		return b.peek(n)
	}
	return c.by.(*regime).decide(c.token.A, c.now, 0)
}

// debit takes n whether they are there or not.
func (b *bucket) debit(n int) {
	for n > 0 {
		r, word, now := b.now()
		next := r.owed(word&^low, r.units(max(now, r.paused)), n)
		if r.word.CompareAndSwap(word, next|word&calls) {
			return
		}
	}
}

// credit gives n back that were taken at some time.
func (b *bucket) credit(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n > 0 {
		r, word, now := b.now()
		at := r.units(max(now, r.paused))
		next := r.paid(word&^low, at, n)
		if r.word.CompareAndSwap(word, next|word&calls) {
			r.returned.Add(r.tokens(at + r.debt(word&^low, at) - next))
			return
		}
	}
}

// FinishPermit is for core.Permit: it settles the difference between what a
// call was charged and what it cost.
func (r *regime) FinishPermit(_ context.Context, t core.Token, res core.Result) {
	if res.Cost != 0 {
		settle(res, tokensOf(t), func(n int) { r.giveBack(t, n) }, r.of.debit)
	}
}

// CancelPermit is for core.Permit: it gives back what a call took that never
// started.
func (r *regime) CancelPermit(t core.Token) {
	r.of.counts.Add(countCancelled, 1)
	r.giveBack(t, tokensOf(t))
}

func (r *regime) abandon(t core.Token) { r.giveBack(t, tokensOf(t)) }

// giveBack gives back n of the tokens that a call took. Here a stale clock would
// see more left of the charge than there is, so it is read after the word.
func (r *regime) giveBack(t core.Token, n int) {
	r.of.mu.Lock() // the regime stays in force
	defer r.of.mu.Unlock()
	c := r.retime(charge{by: r, token: t})
	r = c.by.(*regime)
	for {
		word := r.word.Load()
		if r.giveBackAt(word, r.of.clock.Now(), c.token, n) {
			return
		}
	}
}

// giveBackAt is giveBack at a given clock reading, under mu. It fails if the word
// is not word any more.
func (r *regime) giveBackAt(word uint64, now int64, t core.Token, n int) bool {
	slack := r.full
	if r.of.shaped {
		slack = 0
	}
	back := r.refund(word&^low, r.units(max(now, r.paused)), t, n, r.returned.Load(), slack)
	if back == 0 {
		return true
	}
	if !r.word.CompareAndSwap(word, word-back) {
		return false
	}
	r.returned.Add(uint32(n)) // after the swap, see takeAt
	return true
}

// change puts a new regime in force: what the bucket owes it still owes, in
// tokens. While it is paused, time stands still for it. The caller holds mu.
func (b *bucket) change(next *regime) {
	old := b.in.Load()
	word := old.word.Load()
	for !old.word.CompareAndSwap(word, word|moved) {
		word = old.word.Load()
	}
	old.at, old.next = b.clock.Now(), next
	next.word.Store(old.moveTo(word&^low) | word&calls)
	next.returned.Store(old.returned.Load())
	b.in.Store(next)
	close(old.changed)
}

// moveTo is an instant of r in the units of the regime after it.
func (r *regime) moveTo(tat uint64) uint64 {
	debt := r.debt(tat, r.units(max(r.at, r.paused)))
	return r.next.units(max(r.at, r.next.paused)) + r.next.converted(debt, &r.gcra)
}

// retime is for charger.
func (r *regime) retime(c charge) charge {
	for {
		select {
		case <-r.changed:
		default:
			return c
		}
		next, start := r.next, max(r.at, r.next.paused)
		n := tokensOf(c.token)
		c.token = charged(r.moveTo(c.token.A), n, returnedBefore(c.token))
		if c.turn > r.at && c.turn != math.MaxInt64 {
			c.turn = next.turnAt(c.token.A, start, n, r.of.shaped)
		}
		c.by, c.changed = next, next.changed
		r = next
	}
}

// pause stops the bucket until then.
func (b *bucket) pause(until time.Time) {
	b.mu.Lock()
	old := b.in.Load()
	next := &regime{
		gcra: old.gcra, of: b, rate: old.rate, maxWait: old.maxWait, changed: make(chan struct{}),
		paused: b.reading(until),
	}
	b.change(next)
	b.mu.Unlock()
	b.tellChange(core.KindPaused, max(0, time.Until(until)))
}

// reconfigure changes the settings; a pause stays in force.
func (b *bucket) reconfigure(cfg TokenBucketConfig) {
	b.mu.Lock()
	b.change(b.regime(cfg, b.in.Load().paused))
	b.setRound(cfg.Rate.Tokens, cfg.Rate.Per)
	b.mu.Unlock()
	b.tellChange(core.KindReconfigured, 0)
}

func (b *bucket) stats() (s Stats) {
	charges := b.counts.Sum(countAdmitted) // before the word, which may only be ahead
	r, word, now := b.now()
	if now >= r.paused {
		s.Available = r.available(word&^low, r.units(now))
	}
	s.Admitted = b.admitted(charges + word&calls)
	s.Refused = b.counts.Sum(countRefused)
	s.Cancelled = b.counts.Sum(countCancelled)
	s.Limit = r.burst
	return s
}
