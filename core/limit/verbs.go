package limit

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/internal/clock"
	"github.com/surgewall/surgewall/core/internal/stripe"
)

// limiter is what every rate limiter has beside its arithmetic: a name, the
// rejections, the counters. With a meter it makes the verbs.
type limiter struct {
	refusals
	since  time.Time
	counts stripe.Group
	shown  atomic.Uint64 // the most admissions that a report has shown
}

// The counters of a limiter. Admissions are counted by the meter, which has a
// word of its own to write anyway.
const (
	countAdmitted = iota
	countPending  // of those, charges that are none yet, since they wait, or never were
	countServed   // of these, those whose turn has come
	countRefused
	countCancelled
)

// meter is the arithmetic and the state of one limiter, safe for concurrent
// use.
type meter interface {
	// most is the greatest cost that can ever fit.
	most() int

	// take charges n, 1 to most, if its turn comes within patience. If it says
	// no, turn is the first clock reading at which the call need not wait. It
	// counts what it admits.
	take(n int, patience time.Duration) (c charge, ok bool)
}

// charge is what a meter admitted.
type charge struct {
	by      charger
	token   core.Token
	now     int64           // the clock reading that it was decided by
	turn    int64           // the clock reading from which the call may run
	latest  int64           // the last turn that is waited for
	changed <-chan struct{} // closed when turn may have changed; may be nil
	who     *limiter        // of a no: whose it is, on whose clock turn is; nil: the limiter asked
}

// charger is where a charge was made, and where it can be undone.
type charger interface {
	core.Finisher

	// abandon gives back what it can of a call that never had its turn.
	abandon(t core.Token)

	// retime is c with its turn as it is after the limiter was reconfigured or
	// paused.
	retime(c charge) charge
}

func (l *limiter) init(name string, o core.Observer) {
	c := clock.New()
	l.refusals.init(name, o, c)
	l.since = c.Time(0)
}

// acquire takes n and waits for its turn as long as patience and ctx allow.
func acquire[M meter](ctx context.Context, l *limiter, m M, n int, patience time.Duration) (charge, error) {
	if r := l.misfit(n, m.most()); r != nil {
		return charge{}, l.refuse(ctx, r, n)
	}
	if patience > 0 {
		if err := ctx.Err(); err != nil {
			return charge{}, l.refuse(ctx, l.ended(err), n)
		}
		// Some is left, even if the deadline has passed by now: without any, a
		// leaky bucket does not shape.
		patience = max(1, min(patience, core.TimeLeft(ctx)))
	}
	if n == 0 {
		return charge{by: free{}}, nil
	}
	c, ok := m.take(n, patience)
	if !ok {
		return charge{}, l.refuseUntil(ctx, c, n)
	}
	if c.turn > c.now {
		c.latest = turnWaitedFor(c.now, patience)
		l.counts.Add(countPending, 1)
		var err error
		if c, err = l.await(ctx, c); err != nil {
			c.by.abandon(c.token)
			return charge{}, l.refuse(ctx, l.unserved(c, err), n)
		}
		l.counts.Add(countServed, 1)
	}
	return c, nil
}

// turnWaitedFor is the last turn that a call which began at now waits for. One at
// MaxInt64 never comes.
func turnWaitedFor(now int64, patience time.Duration) int64 {
	return min(satAdd(now, int64(patience)), math.MaxInt64-1)
}

// reading is an instant as a clock reading, at most 50 years from now: nothing
// overflows that is counted from it.
func (l *limiter) reading(t time.Time) int64 {
	return min(int64(t.Sub(l.clock.Time(0))), l.clock.Now()+50*365*int64(day))
}

// errLate is why a wait ends when a pause or new settings have put off its turn.
var errLate = errors.New("limit: the turn comes too late")

// unserved is the refusal of a call that has waited in vain.
func (l *limiter) unserved(c charge, err error) *core.Rejection {
	if err == errLate {
		return l.limited(c.turn)
	}
	return l.ended(err)
}

// admitted is the number of calls admitted, of so many charges. It never falls,
// though the counters are read one after the other.
func (l *limiter) admitted(charges uint64) uint64 {
	n := uint64(max(0, int64(charges+l.counts.Sum(countServed)-l.counts.Sum(countPending))))
	for {
		shown := l.shown.Load()
		if n <= shown {
			return shown
		}
		if l.shown.CompareAndSwap(shown, n) {
			return n
		}
	}
}

// await waits until a charge has its turn, which wins over the end of ctx.
func (l *limiter) await(ctx context.Context, c charge) (charge, error) {
	t := time.NewTimer(time.Duration(c.turn - l.clock.Now()))
	defer t.Stop()
	for {
		var ended error
		select {
		case <-t.C:
		case <-c.changed:
		case <-ctx.Done():
			ended = ctx.Err()
		}
		c = c.by.retime(c)
		left := c.turn - l.clock.Now()
		switch {
		case left <= 0:
			return c, nil
		case ended != nil:
			return c, ended
		case c.turn > c.latest:
			return c, errLate
		}
		t.Reset(time.Duration(left))
	}
}

// takeAtOnce is what a meter says to n now. Its refusal is counted and told.
func takeAtOnce[M meter](l *limiter, m M, n int) (c charge, ok bool) {
	if r := l.misfit(n, m.most()); r != nil {
		l.refused(context.Background(), r.Reason, n)
		return c, false
	}
	if n == 0 {
		return c, true
	}
	if c, ok = m.take(n, 0); !ok {
		l.refused(context.Background(), core.RateLimited, n)
		if c.who != nil {
			c.who.refused(context.Background(), core.RateLimited, n)
		}
	}
	return c, ok
}

// permit is acquire for a core.Guard.
func permit[M meter](ctx context.Context, l *limiter, m M, n int, patience time.Duration) (core.Permit, error) {
	c, err := acquire(ctx, l, m, n, patience)
	if err != nil {
		return core.Permit{}, err
	}
	return core.NewPermit(c.by, c.token, core.WantsNothing), nil
}

// reserve takes n if its turn comes within maxWait.
func reserve[M meter](l *limiter, m M, n int, maxWait time.Duration) (Reservation, error) {
	if r := l.misfit(n, m.most()); r != nil {
		return Reservation{}, l.refuse(context.Background(), r, n)
	}
	if n == 0 {
		return Reservation{}, nil
	}
	c, ok := m.take(n, max(0, maxWait))
	if !ok {
		return Reservation{}, l.refuseUntil(context.Background(), c, n)
	}
	return Reservation{c, l}, nil
}

// Reservation is a place in the future of a limiter: what it took is taken, and
// may be used after Delay. It is used by one goroutine at a time, and not copied:
// a copy that is cancelled too gives back twice. The zero Reservation has no
// delay, and nothing to cancel.
type Reservation struct {
	charge  charge
	limiter *limiter
}

// Delay is how long to wait until the call may run, 0 if it may now. Ask anew
// after the limiter was paused or reconfigured.
func (r *Reservation) Delay() time.Duration {
	if r.limiter == nil {
		return 0
	}
	r.charge = r.charge.by.retime(r.charge)
	return time.Duration(max(0, r.charge.turn-r.limiter.clock.Now()))
}

// Cancel says that the call will not run: what can be given back without
// breaking the limit is given back, and nobody else's turn changes. Once the
// turn has come, and a second time, it does nothing.
func (r *Reservation) Cancel() {
	if r.limiter == nil {
		return
	}
	c := r.charge
	due := r.limiter.clock.Now()
	*r = Reservation{}
	if c = c.by.retime(c); due <= c.turn {
		c.by.CancelPermit(c.token)
	}
}

// refuseUntil is the refusal of a call that a meter said no to.
func (l *limiter) refuseUntil(ctx context.Context, no charge, n int) error {
	if no.who != nil {
		l.refused(ctx, core.RateLimited, n)
		l = no.who
	}
	return l.refuse(ctx, l.limited(no.turn), n)
}

func (l *limiter) refuse(ctx context.Context, r *core.Rejection, n int) error {
	l.refused(ctx, r.Reason, n)
	return r
}

func (l *limiter) refused(ctx context.Context, why core.Reason, n int) {
	l.counts.Add(countRefused, 1)
	l.tell(ctx, why, n)
}

// tellChange tells of a pause or of new settings.
func (l *limiter) tellChange(kind core.Kind, d time.Duration) {
	core.Emit(context.Background(), l.observer, core.Event{Kind: kind, Component: l.name, Duration: d})
}

// settle books what a call of n cost in the end: more is charged, less is given
// back.
func settle(r core.Result, n int, giveBack, charge func(int)) {
	switch {
	case r.Cost == 0:
	case r.Cost < n:
		giveBack(n - max(r.Cost, 0))
	case r.Cost > n:
		charge(r.Cost - n)
	}
}

// free is the charger of a call that cost nothing.
type free struct{}

func (free) FinishPermit(context.Context, core.Token, core.Result) {}
func (free) CancelPermit(core.Token)                               {}
func (free) abandon(core.Token)                                    {}
func (free) retime(c charge) charge                                { return c }
