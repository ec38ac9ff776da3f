package pool

import (
	"context"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/internal/clock"
)

// Pool lends resources of type T. Make one with New and end it with Close,
// which also ends its goroutines. It is safe for concurrent use.
type Pool[T any] struct {
	cfg    Config[T] // complete; immutable
	clock  clock.Clock
	hooked bool // a loan is more than taking a resource: see prepare

	// A loan may come to nothing after it is booked, if Valid or a hook says so.
	// Until that is known it is pending, so that the count of loans never falls.
	doubtful bool
	pending  atomic.Int64

	// ctx is the pool's own life, under which it dials and checks: a caller's
	// context reaches no resource.
	ctx    context.Context
	cancel context.CancelFunc

	nodes  sync.Pool   // of *waiter[T]
	expiry *time.Timer // fires when the first waiter's time may be up

	sample  atomic.Uint64 // loans, for LeakSample
	drained chan struct{} // closed when the pool is closed and all has ended
	// said is the last *core.Rejection that may be said again.
	said atomic.Pointer[saidRefusal]

	// mu guards everything below. It is never held while user code runs.
	mu sync.Mutex

	idle    []*resource[T] // used longest ago first; the last is lent first
	due     []*resource[T] // to be checked before they are lent; the last is next
	live    []*resource[T] // all that are not being closed, in no order
	waiters waitList[T]    // empty while something is idle
	warmers []*warmer      // calls of Warm that wait

	// What Resize changes.
	max        int
	minIdle    int
	maxWaiters int // 0: no bound

	// slots is what max bounds: len(live) + dialing, and those of closing whose
	// grace is not over.
	slots    int
	used     int
	checking int // being checked now; those that wait for it are in due
	dialing  int
	closing  int

	armedFor int64 // when expiry will fire; the largest int64: it will not

	goroutines int // the pool's own, which Close waits for
	dialers    int // those of them that dial, or wait to
	checkers   int // those of them that check
	closed     bool

	generation uint64 // Reset begins the next; what is of an earlier one is not lent
	meanUse    int64  // moving average of how long loans last; one that is long for once moves it by 3/8 at most

	filling bool // idle resources are to be dialled up to minIdle
	asked   bool // somebody was refused because dials fail: worth another

	failures     int   // dials that failed since the last that did not
	failingSince int64 // when the first of them began
	emptySince   int64 // when live became empty
	telling      bool  // somebody is told of loans that last too long
	retryAt      int64 // no dial begins before
	lastErr      error // of the last failed dial that a guard let begin, if any; nil if failures is 0
	since        int64 // when the pool came into its state, unless unavailable

	n counters
}

// resource is one resource of a pool. Its value, its generation and its times of
// life are immutable; the rest is guarded by the pool's mu.
type resource[T any] struct {
	pool       *Pool[T]
	value      T
	generation uint64
	createdAt  int64
	expiresAt  int64

	at        int    // its place in live
	turn      uint64 // odd while it is lent; tells the loans apart
	lentAt    int64
	idleAt    int64 // when it became idle
	goodUntil int64 // until then it can be lent, when idle: it is neither too old nor to be checked
	slotHeld  bool  // it is being closed and counts towards max

	loan loan // what is kept of a loan for hooks and leaks
}

// New makes a Pool and begins to dial MinIdle resources in the background; it
// waits for none of them. The error reports all problems of the Config.
func New[T any](cfg Config[T]) (*Pool[T], error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	p := &Pool[T]{
		cfg:      cfg,
		clock:    clock.New(),
		expiry:   time.NewTimer(math.MaxInt64),
		drained:  make(chan struct{}),
		armedFor: math.MaxInt64,
		filling:  true,
		doubtful: cfg.Valid != nil || cfg.OnAcquire != nil,
		hooked:   cfg.OnAcquire != nil || cfg.OnRelease != nil || cfg.LeakSample > 0,
	}
	p.sizeLocked(cfg.MinIdle, cfg.Max) // nobody else has p yet
	p.expiry.Stop()
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.mu.Lock()
	defer p.mu.Unlock()
	p.goroutines++
	go p.maintain()
	p.dialLocked()
	return p, nil
}

// Name is the configured name.
func (p *Pool[T]) Name() string { return p.cfg.Name }

// Acquire lends a resource: an idle one at once, otherwise the first that comes
// free after all who asked before have been served. Give it back with Release
// or Destroy.
//
// The error is a *core.Rejection which says how many resources there are, in
// use and idle, and how many callers wait. Its sentinel is:
//
//   - ErrAcquireTimeout when AcquireTimeout is over, or ctx is: then the error
//     of ctx is in its chain;
//   - ErrOverloaded when MaxWaiters wait already, or so many that the turn of
//     this caller would come after its ctx has ended: see IgnoreDeadlines;
//   - ErrUnavailable when there is no resource at all and dials fail: at least
//     the last one did, lately, and both the first of those in a row and the
//     loss of the last resource were UnavailableAfter ago. The error of the last
//     dial that a DialGuard let begin, if any, is in its chain. Those who
//     wait are told within a second, those who come meanwhile at once, until a
//     dial succeeds;
//   - ErrClosed when the pool is closed, also while it waits.
//
// A caller whose ctx or timeout is over is never lent a resource. If one was
// lent at the same moment as the wait ended, Acquire succeeds.
//
// Only an error of OnAcquire is returned as it is, and no Rejection.
//
// To lend an idle resource allocates nothing, unless a hook or LeakSample does.
func (p *Pool[T]) Acquire(ctx context.Context) (Lease[T], error) {
	// Asked before anything is taken: what exits the goroutine loses nothing.
	heard := core.Hears(p.cfg.Observer, core.KindAcquired)
	var is patience
	start := p.clock.Now()
	now := start
	for asked, again := false, false; ; {
		if ctx.Err() != nil {
			return Lease[T]{}, p.refuse(ctx, refusedCancelled)
		}
		if again { // a resource was of no use, and to find out took time
			again = false
			if now = p.clock.Now(); now >= after(start, p.cfg.AcquireTimeout) {
				return Lease[T]{}, p.refuse(ctx, refusedTimedOut)
			}
		}
		p.mu.Lock()
		r := p.takeLocked(now)
		if r == nil && !asked {
			// The context is the caller's code, which must not run under mu;
			// and asking it before there is need to would allocate.
			p.mu.Unlock()
			is, asked = p.patienceOf(ctx), true
			continue
		}
		var lease Lease[T]
		if r != nil {
			lease = p.lendLocked(r, now)
			p.mu.Unlock()
			if p.cfg.Valid != nil && !p.valid(lease) {
				again = true
				continue
			}
		} else {
			var err error
			if lease, err = p.queue(ctx, is, start, now); err != nil { // unlocks
				return Lease[T]{}, err
			}
		}
		if !p.hooked && !heard {
			p.delivered()
			return lease, nil
		}
		if fit, err := p.prepare(ctx, lease, heard, start); err != nil {
			return Lease[T]{}, err
		} else if fit {
			return lease, nil
		}
		again = true
	}
}

// takeLocked takes the idle resource used last. Those too old it destroys, and
// those idle for so long that they are to be checked it has checked.
func (p *Pool[T]) takeLocked(now int64) *resource[T] {
	for last := len(p.idle) - 1; last >= 0; last-- {
		r := p.idle[last]
		p.idle[last] = nil
		p.idle = p.idle[:last]
		switch {
		case now < r.goodUntil:
			return r
		case now >= r.expiresAt:
			p.destroyLocked(r, lifetime)
		default:
			p.due = append(p.due, r)
			p.checkLocked()
		}
	}
	return nil
}

// lendLocked books r, which belongs to nobody, as lent.
func (p *Pool[T]) lendLocked(r *resource[T], now int64) Lease[T] {
	r.turn++
	r.lentAt = now
	p.used++
	p.n.lent++
	if p.doubtful {
		p.pending.Add(1)
	}
	return Lease[T]{r, r.turn}
}

// delivered counts a loan that has reached its caller.
func (p *Pool[T]) delivered() {
	if p.doubtful {
		p.pending.Add(-1)
	}
}

// giveBack ends a loan, once: a lease that was ended before changes nothing,
// wherever its resource is by now. With a reason it destroys the resource.
func (p *Pool[T]) giveBack(l Lease[T], why destroyReason) (ended bool) {
	now := p.clock.Now()
	r := l.r
	p.mu.Lock()
	if r.turn != l.turn {
		p.mu.Unlock()
		return false
	}
	r.turn++
	held := now - r.lentAt
	w := p.returnLocked(r, why, held, now)
	p.mu.Unlock()
	if w != nil || p.cfg.Observer != nil {
		p.handOver(w, held)
	}
	return true
}

// returnLocked books the end of a loan that lasted for held. It returns whoever
// gets the resource next.
func (p *Pool[T]) returnLocked(r *resource[T], why destroyReason, held, now int64) *waiter[T] {
	p.used--
	p.n.use.add(time.Duration(held))
	p.meanUse += (min(held, 4*p.meanUse+1024) - p.meanUse) / 8
	if r.loan.kept {
		r.loan = loan{}
	}
	if why == keep {
		why = p.unfitLocked(r, now)
	}
	if why == keep {
		return p.offerLocked(r, now)
	}
	p.destroyLocked(r, why)
	return nil
}

// unfitLocked is why a resource that works is not to be used again, or keep.
func (p *Pool[T]) unfitLocked(r *resource[T], now int64) destroyReason {
	switch {
	case p.closed:
		return shutDown
	case r.generation != p.generation:
		return outdated
	case now >= r.expiresAt:
		return lifetime
	case len(p.live)+p.dialing > p.max:
		return surplus
	}
	return keep
}

// handOver wakes who got a resource that came back after held, with no lock
// held.
func (p *Pool[T]) handOver(w *waiter[T], held int64) {
	if w != nil {
		w.ready <- struct{}{}
	}
	if core.Hears(p.cfg.Observer, core.KindReleased) {
		p.emit(context.Background(), core.Event{Kind: core.KindReleased, Duration: time.Duration(held)})
	}
	if w != nil {
		// The waiter runs on this processor next. Without the yield, it and
		// the resource would wait until this goroutine blocks.
		runtime.Gosched()
	}
}

// offerLocked lends a resource that belongs to nobody to the first who waits for
// one, else makes it idle. Whom it returns is to be woken: by a send on ready,
// under mu or after.
func (p *Pool[T]) offerLocked(r *resource[T], now int64) *waiter[T] {
	if p.waiters.first != nil {
		if w := p.nextWaiterLocked(now); w != nil {
			p.n.waited++
			p.n.wait.add(time.Duration(now - w.start))
			w.lease = p.lendLocked(r, now)
			return w
		}
	}
	p.restLocked(r, now)
	p.idle = append(p.idle, r)
	return nil
}

// restLocked begins the idle time of r.
func (p *Pool[T]) restLocked(r *resource[T], now int64) {
	r.idleAt, r.goodUntil = now, r.expiresAt
	if p.cfg.Check != nil {
		r.goodUntil = min(r.goodUntil, now+int64(p.cfg.CheckEvery))
	}
}

// emit sends an event of this pool, with no lock held.
func (p *Pool[T]) emit(ctx context.Context, e core.Event) {
	e.Component = p.cfg.Name
	core.Emit(ctx, p.cfg.Observer, e)
}
