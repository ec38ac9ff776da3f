package limit

import (
	"context"
	"hash/maphash"
	"time"

	"github.com/surgewall/surgewall/core"
)

func (k *keyedRate[K, S]) allow(key K, n int) bool {
	a := k.hold(key, n)
	if a.cell != nil && a.shard.start == a.shard.now {
		if _, _, ok := a.rule.law.take(&a.cell.state, a.shard.now, n, 0); ok {
			a.shard.admitted++
			k.letGo(a.shard)
			return true
		}
	}
	k.refuseHeld(context.Background(), a, n)
	return false
}

// refuseHeld books a refusal, lets go of a and tells of it.
func (k *keyedRate[K, S]) refuseHeld(ctx context.Context, a held[K, S], n int) {
	a.shard.refused++
	k.letGo(a.shard)
	why := core.RateLimited
	if a.cell == nil {
		why = core.NeverFits
	}
	k.tell(ctx, why, n)
}

func (k *keyedRate[K, S]) take(key K, n int) Decision {
	a := k.hold(key, n)
	if a.cell == nil {
		k.refuseHeld(context.Background(), a, n)
		return refusedDecision(k.peek(key, n), n)
	}
	ok, left := false, n
	if a.shard.start == a.shard.now {
		if _, _, ok = a.rule.law.take(&a.cell.state, a.shard.now, n, 0); ok {
			left = 0
		}
	}
	d := a.rule.law.peek(&a.cell.state, a.shard.now, a.shard.start, left)
	d.OK, d.Policy = ok, a.rule.policy
	if !ok {
		k.refuseHeld(context.Background(), a, n)
		return d
	}
	a.shard.admitted++
	k.letGo(a.shard)
	return d
}

func (k *keyedRate[K, S]) peek(key K, n int) Decision {
	a := k.look(key)
	state := a.shard.scratch
	if a.cell != nil {
		state = &a.cell.state
	} else {
		k.begin(state, a.shard, a.rule)
	}
	d := a.rule.law.peek(state, a.shard.now, a.shard.start, n)
	d.Policy = a.rule.policy
	k.letGo(a.shard)
	return d
}

// look is hold for what needs no cell: it finds none where there is none.
func (k *keyedRate[K, S]) look(key K) held[K, S] {
	plan := k.planOf(key)
	h := maphash.Comparable(k.seed, key)
	s := &k.shards[h&k.mask]
	s.mu.Lock()
	s.calls++
	s.time(k.clock.Now())
	k.pausedUntil(s, key)
	a := held[K, S]{s, s.find(h, key), s.rule(plan)}
	if a.cell != nil {
		a.cell = k.replan(s, h, k.update(s, h, a.cell), a.rule)
	}
	return a
}

// admit takes n of key if its turn comes within patience: within the MaxWait of
// its limit, if patience is negative; left is what ctx leaves of it. Otherwise no
// is the refusal, which was told. A charge whose turn is yet to come is counted as
// admitted by who waits for it.
func (k *keyedRate[K, S]) admit(ctx context.Context, key K, n int, patience, left time.Duration) (c charge, no error) {
	a := k.hold(key, n)
	if a.cell == nil {
		k.refuseHeld(ctx, a, n)
		return c, a.rule.neverFits
	}
	if patience < 0 {
		patience = a.rule.maxWait
	}
	patience = min(patience, left)
	s, ok := a.shard, false
	switch paused := time.Duration(s.start - s.now); {
	case paused == 0, paused <= patience && s != &k.shared:
		// Some patience is left, even if it ends with the pause: without any, a
		// leaky bucket does not shape.
		c.token, c.turn, ok = a.rule.law.take(&a.cell.state, s.start, n, max(patience-paused, min(1, patience)))
	default:
		// A limit that other keys share does not wait for the pause of one.
		c.turn = s.turn(a, n)
	}
	if !ok {
		k.refuseHeld(ctx, a, n)
		return charge{}, k.limited(c.turn)
	}
	c.by, c.now, c.latest = (*chargedTo[K, S])(a.cell), s.now, turnWaitedFor(s.now, patience)
	if c.turn > c.now {
		c.changed = s.changes()
	} else {
		s.admitted++
	}
	k.letGo(s)
	return c, nil
}

func (k *keyedRate[K, S]) acquire(ctx context.Context, key K, n int) (core.Permit, error) {
	if k.waits.Load() {
		c, err := k.await(ctx, key, n, -1)
		if err != nil {
			return core.Permit{}, err
		}
		return core.NewPermit(c.by, c.token, core.WantsNothing), nil
	}
	// The same without a wait, which costs a third less.
	a := k.hold(key, n)
	if a.cell == nil {
		k.refuseHeld(ctx, a, n)
		return core.Permit{}, a.rule.neverFits
	}
	turn := int64(0)
	if s := a.shard; s.start == s.now {
		var t core.Token
		var ok bool
		if t, turn, ok = a.rule.law.take(&a.cell.state, s.now, n, 0); ok {
			s.admitted++
			k.letGo(s)
			return core.NewPermit((*chargedTo[K, S])(a.cell), t, core.WantsNothing), nil
		}
	} else {
		turn = s.turn(a, n)
	}
	k.refuseHeld(ctx, a, n)
	return core.Permit{}, k.limited(turn)
}

// turn is when a call of n, of a key that is paused, could be admitted at once.
func (s *rateShard[K, S]) turn(a held[K, S], n int) int64 {
	return satAdd(s.now, int64(a.rule.law.peek(&a.cell.state, s.now, s.start, n).RetryAfter))
}

func (k *keyedRate[K, S]) wait(ctx context.Context, key K, n int) error {
	_, err := k.await(ctx, key, n, forever)
	return err
}

// await is admit, with the wait for the turn.
func (k *keyedRate[K, S]) await(ctx context.Context, key K, n int, patience time.Duration) (charge, error) {
	left := forever
	if patience > 0 || k.waits.Load() {
		if err := ctx.Err(); err != nil {
			return charge{}, k.refuse(ctx, k.ended(err), n)
		}
		left = max(1, core.TimeLeft(ctx)) // see acquire
	}
	c, err := k.admit(ctx, key, n, patience, left)
	if err != nil || c.turn <= c.now {
		return c, err
	}
	if c, err = k.limiter.await(ctx, c); err != nil {
		c.by.abandon(c.token)
		return charge{}, k.refuse(ctx, k.unserved(c, err), n)
	}
	k.counts.Add(countAdmitted, 1)
	return c, nil
}

func (k *keyedRate[K, S]) reserve(key K, n int, maxWait time.Duration) (Reservation, error) {
	c, err := k.admit(context.Background(), key, n, max(1, maxWait), forever)
	if err != nil {
		return Reservation{}, err
	}
	if c.turn > c.now {
		k.counts.Add(countAdmitted, 1)
	}
	return Reservation{c, &k.limiter}, nil
}

func (k *keyedRate[K, S]) charge(key K, n int) {
	k.chargeHeld(k.hold(key, 0), n)
}

// chargeHeld charges n, and lets go of a. A key that is paused is charged at the end
// of its pause, until when time stands still for it; for those that it shares a
// limit with it does not.
func (k *keyedRate[K, S]) chargeHeld(a held[K, S], n int) {
	at := a.shard.start
	if a.shard == &k.shared {
		at = a.shard.now
	}
	a.rule.law.charge(&a.cell.state, at, n)
	k.letGo(a.shard)
}

func (k *keyedRate[K, S]) refund(key K, n int) {
	a := k.look(key)
	if a.cell != nil {
		a.rule.law.refund(&a.cell.state, a.shard.start, n)
	}
	k.letGo(a.shard)
}

// chargedTo is a cell to whoever was charged there: a permit, a reservation, a
// call that waits.
type chargedTo[K comparable, S any] cell[K, S, site[K, S]]

// FinishPermit is for core.Permit: it settles the difference between what a
// call was charged and what it cost.
func (c *chargedTo[K, S]) FinishPermit(_ context.Context, t core.Token, r core.Result) {
	switch n := tokensOf(t); {
	case r.Cost == 0:
	case r.Cost < n:
		c.giveBack(t, n-max(r.Cost, 0))
	case r.Cost > n:
		c.home.shard.owner.chargeMore((*rateCell[K, S])(c), r.Cost-n)
	}
}

// CancelPermit is for core.Permit: it gives back what a call took that never
// started.
func (c *chargedTo[K, S]) CancelPermit(t core.Token) {
	c.home.shard.owner.counts.Add(countCancelled, 1)
	c.giveBack(t, tokensOf(t))
}

// abandon is for charger.
func (c *chargedTo[K, S]) abandon(t core.Token) {
	c.giveBack(t, tokensOf(t))
}

// giveBack gives back n of the charge t. Here a stale clock would see more left
// of it than there is, so it is read under the lock.
func (c *chargedTo[K, S]) giveBack(t core.Token, n int) {
	s := c.home.shard
	k := s.owner
	s.mu.Lock()
	s.time(k.clock.Now())
	if last, t, _, ok := k.follow((*rateCell[K, S])(c), t, 0); ok {
		last.home.rule.law.giveBack(&last.state, max(s.now, s.paused[c.key]), t, n)
	}
	s.mu.Unlock()
}

// retime is for charger.
func (c *chargedTo[K, S]) retime(of charge) charge {
	s := c.home.shard
	k := s.owner
	s.mu.Lock()
	last, t, turn, _ := k.follow((*rateCell[K, S])(c), of.token, of.turn)
	of.by, of.token, of.turn = (*chargedTo[K, S])(last), t, turn
	of.changed = s.changes()
	s.mu.Unlock()
	return of
}

// chargeMore charges n more for a call that was charged to c: to the cell that
// its key has now.
func (k *keyedRate[K, S]) chargeMore(c *rateCell[K, S], n int) {
	s := c.home.shard
	s.mu.Lock()
	plan := c.home.rule.plan
	if s == &k.shared {
		r := s.rule(plan)
		s.time(k.clock.Now())
		r.law.charge(&s.spares[r.place].state, s.now, n)
		s.mu.Unlock()
		return
	}
	if last := s.find(maphash.Comparable(k.seed, c.key), c.key); last != nil {
		plan = last.home.rule.plan
	}
	s.mu.Unlock()
	k.chargeHeld(k.holdUnder(plan, c.key, 0), n)
}
