package limit

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
)

// Limiter is a limit that All can combine with others: a *TokenBucket,
// *LeakyBucket, *SlidingWindow, *SlidingLog or *Combined. The set is closed.
type Limiter interface {
	core.Guard
	core.Component

	// Peek is what the limiter would say to a cost of n, without taking it.
	Peek(n int) Decision

	parts() []part
}

// part is one of the limits of a Combined.
type part interface {
	meter
	settable
	base() *limiter
	peek(n int) Decision

	// when is the clock reading from which a call of n would not have to wait,
	// and the present one: the first is not later if it would not now.
	when(n int) (turn, now int64)
}

// settable is what Combined does to all of its limits alike.
type settable interface {
	core.Component
	Charge(n int)
	Refund(n int)
	Pause(until time.Time)
}

// Combined is several limits that hold at the same time: ten a second, and a
// thousand an hour. A call takes its cost from all of them or from none. Whether
// all have it is asked before anything is taken; where a call loses the race for
// what it saw, it gives back at once what it took from the others, and nobody is
// admitted beyond any of the limits.
//
// The limits may be used by themselves too, and in other combinations, and each
// is paused and reconfigured by itself. It is safe for concurrent use, a
// core.Guard, core.Ready, core.Refuser and core.Component, and needs no Close. A
// nil *Combined, and one of no limits, is no limit.
type Combined struct {
	limiter
	all    []part
	ahead  []int64 // how far the clock of each limit is behind ours, in ns
	pooled sync.Pool
}

// All combines limits; nil ones are left out. Its name in reports is "all";
// rejections name the limit that binds: the one that is used up for longest. As a
// guard it never waits, whatever the MaxWait of the limits; Wait does.
func All(limits ...Limiter) *Combined {
	c := &Combined{}
	c.limiter.init("all", nil)
	for _, l := range limits {
		if l != nil {
			c.all = append(c.all, l.parts()...)
		}
	}
	for _, p := range c.all {
		c.ahead = append(c.ahead, int64(p.base().since.Sub(c.since)))
	}
	return c
}

// Allow takes one token from each limit if all have one, and reports whether it
// did.
func (c *Combined) Allow() bool { return c.AllowN(1) }

// AllowN takes n from each limit if all have as many, and reports whether it
// did. It is false for a negative n and for one that never fits into one of
// them, and true for 0.
func (c *Combined) AllowN(n int) bool {
	if n == 0 || c == nil || len(c.all) == 0 {
		return n >= 0
	}
	if err := c.misfit(context.Background(), n); err != nil {
		return false
	}
	got, ok := takeAtOnce(&c.limiter, c, n)
	if ok {
		got.by.(*share).drop()
	}
	return ok
}

// Take is AllowN that also says what is left: of the limit with the least, and
// of the one that binds if the answer is no.
func (c *Combined) Take(n int) Decision {
	ok := c.AllowN(n)
	if !ok {
		n = max(n, 1)
		d := c.Peek(n)
		d.OK = false
		return d
	}
	return c.Peek(0)
}

// Peek is what Take would say, without taking anything.
func (c *Combined) Peek(n int) Decision {
	if c == nil || len(c.all) == 0 {
		return unlimited(n)
	}
	tightest := c.all[0].peek(n)
	for _, p := range c.all[1:] {
		if d := p.peek(n); tighter(d, tightest) {
			tightest = d
		}
	}
	return tightest
}

// tighter: no before yes, the longest no, the least that is left.
func tighter(a, b Decision) bool {
	switch {
	case a.OK != b.OK:
		return b.OK
	case !a.OK:
		return a.RetryAfter > b.RetryAfter
	default:
		return a.Remaining < b.Remaining
	}
}

// Reserve takes n that all limits have within maxWait; see TokenBucket's.
func (c *Combined) Reserve(n int, maxWait time.Duration) (Reservation, error) {
	if c == nil || len(c.all) == 0 {
		return Reservation{}, malformed(n)
	}
	if err := c.misfit(context.Background(), n); err != nil {
		return Reservation{}, err
	}
	return reserve(&c.limiter, c, n, maxWait)
}

// Wait takes n from each limit as soon as all have as many; see TokenBucket's.
func (c *Combined) Wait(ctx context.Context, n int) error {
	if c == nil || len(c.all) == 0 {
		return waitForNothing(ctx, n)
	}
	if err := c.misfit(ctx, n); err != nil {
		return err
	}
	got, err := acquire(ctx, &c.limiter, c, n, forever)
	if s, ok := got.by.(*share); ok && err == nil {
		s.drop()
	}
	return err
}

// Acquire takes the cost of one call, call.Weight(), from each limit, or refuses
// at once. It does not wait, whatever the MaxWait of the limits. The permit is
// settled with all of them.
func (c *Combined) Acquire(ctx context.Context, call core.Call) (core.Permit, error) {
	n := call.Weight()
	if c == nil || len(c.all) == 0 {
		return core.Permit{}, malformed(n)
	}
	if err := c.misfit(ctx, n); err != nil {
		return core.Permit{}, err
	}
	return permit(ctx, &c.limiter, c, n, 0)
}

// Charge takes n from each limit whether it is there or not.
func (c *Combined) Charge(n int) {
	for _, p := range c.parts() {
		p.Charge(n)
	}
}

// Refund gives n back to each limit, which then count as not taken.
func (c *Combined) Refund(n int) {
	for _, p := range c.parts() {
		p.Refund(n)
	}
}

// Pause stops each of the limits: see TokenBucket's.
func (c *Combined) Pause(until time.Time) {
	for _, p := range c.parts() {
		p.Pause(until)
	}
}

// Ready reports whether a call of cost 1 would be admitted at once.
func (c *Combined) Ready() bool { return c.Peek(1).OK }

// Refusal is the *core.Rejection that a call of cost 1 would get now, or nil.
func (c *Combined) Refusal() *core.Rejection {
	if c == nil {
		return nil
	}
	if who, turn := c.binding(1, 0); who != nil {
		return who.base().limited(turn)
	}
	return nil
}

// Stats counts the calls of the combination. Available and Limit are those of
// the limit with the least left.
func (c *Combined) Stats() Stats {
	if c == nil {
		return Stats{}
	}
	d := c.Peek(0)
	return Stats{
		Admitted:  c.admitted(c.counts.Sum(countAdmitted)),
		Refused:   c.counts.Sum(countRefused),
		Cancelled: c.counts.Sum(countCancelled),
		Available: d.Remaining, Limit: d.Limit,
	}
}

// Name is "all".
func (c *Combined) Name() string {
	if c == nil {
		return ""
	}
	return c.name
}

// Inspect reports the combination as it is now; its children are the limits.
func (c *Combined) Inspect() core.Report {
	if c == nil {
		return core.Report{Kind: "combined_limit"}
	}
	s := c.Stats()
	r := core.Report{
		Kind: "combined_limit", Name: c.name, Since: c.since, Values: callValues(s.Admitted, s.Refused),
	}
	for _, p := range c.all {
		r.Children = append(r.Children, p.Inspect())
	}
	return r
}

func (c *Combined) parts() []part {
	if c == nil {
		return nil
	}
	return c.all
}

// misfit refuses a cost that one of the limits never admits.
func (c *Combined) misfit(ctx context.Context, n int) error {
	for _, p := range c.all {
		if r := p.base().misfit(n, p.most()); r != nil {
			c.counts.Add(countRefused, 1)
			return p.base().refuse(ctx, r, n)
		}
	}
	return nil
}

func (c *Combined) most() int { return maxBurst } // each limit has been asked

// binding is the limit that would keep n waiting for longest, if that is longer
// than patience, and when it would not, on its own clock.
func (c *Combined) binding(n int, patience time.Duration) (who part, turn int64) {
	longest := int64(patience)
	for _, p := range c.all {
		if t, now := p.when(n); t-now > max(longest, 0) {
			longest, who, turn = t-now, p, t
		}
	}
	return who, turn
}

// take is for meter.
func (c *Combined) take(n int, patience time.Duration) (charge, bool) {
	if who, turn := c.binding(n, patience); who != nil {
		return charge{who: who.base(), turn: turn}, false
	}
	s, _ := c.pooled.Get().(*share)
	if s == nil {
		s = &share{of: c, charges: make([]charge, 0, len(c.all))}
	}
	now := c.clock.Now()
	whole := charge{by: s, token: core.Token{A: s.turn.Load(), B: uint64(n)}, now: now, turn: now}
	for i, p := range c.all {
		got, ok := p.take(n, patience)
		if !ok {
			s.abandonAll()
			s.drop()
			return charge{who: p.base(), turn: got.turn}, false
		}
		s.charges = append(s.charges, got)
		whole = later(whole, got, c.ahead[i])
	}
	c.counts.Add(countAdmitted, 1)
	return whole, true
}

// share is one call's part of each limit. It is reused; turn tells its uses
// apart, so that a copied Permit cannot end a later call's.
type share struct {
	of      *Combined
	turn    atomic.Uint64
	charges []charge // in the order of the limits
}

// drop ends the use of s, whose charges stand.
func (s *share) drop() {
	s.turn.Add(1)
	clear(s.charges)
	s.charges = s.charges[:0]
	s.of.pooled.Put(s)
}

// abandonAll gives back what was taken, last first, as if it had never been.
func (s *share) abandonAll() {
	for i := len(s.charges) - 1; i >= 0; i-- {
		s.charges[i].by.abandon(s.charges[i].token)
		s.of.all[i].base().counts.Add(countPending, 1)
	}
}

// FinishPermit is for core.Permit: it settles with each limit.
func (s *share) FinishPermit(ctx context.Context, t core.Token, r core.Result) {
	if s.turn.CompareAndSwap(t.A, t.A+1) {
		for _, c := range s.charges {
			c.by.FinishPermit(ctx, c.token, r)
		}
		s.drop()
	}
}

// CancelPermit is for core.Permit.
func (s *share) CancelPermit(t core.Token) {
	if s.turn.CompareAndSwap(t.A, t.A+1) {
		s.of.counts.Add(countCancelled, 1)
		for i := len(s.charges) - 1; i >= 0; i-- {
			s.charges[i].by.CancelPermit(s.charges[i].token)
		}
		s.drop()
	}
}

func (s *share) abandon(t core.Token) {
	if s.turn.CompareAndSwap(t.A, t.A+1) {
		s.abandonAll()
		s.drop()
	}
}

// retime is for charger. A call that waits has the turn of the limit that keeps
// it longest.
func (s *share) retime(c charge) charge {
	if s.turn.Load() != c.token.A {
		return c
	}
	c.turn, c.changed = c.now, nil
	for i := range s.charges {
		s.charges[i] = s.charges[i].by.retime(s.charges[i])
		c = later(c, s.charges[i], s.of.ahead[i])
	}
	return c
}

// later is whole with the turn of one of its charges, if that comes later.
func later(whole, one charge, ahead int64) charge {
	if one.turn > one.now && one.turn+ahead > whole.turn {
		whole.turn, whole.changed = one.turn+ahead, one.changed
	}
	return whole
}
