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
	cfg   Config[T] // complete; immutable
	clock clock.Clock

	// ctx is the pool's own life, under which it dials and checks: a caller's
	// context reaches no resource.
	ctx    context.Context
	cancel context.CancelFunc

	nodes  sync.Pool   // of *waiter[T]
	expiry *time.Timer // fires when the first waiter's time may be up

	drained chan struct{} // closed when the pool is closed and all has ended
	// said is the last *core.Rejection that may be said again.
	said atomic.Pointer[saidRefusal]

	// mu guards everything below. It is never held while user code runs.
	mu sync.Mutex

	idle    []*resource[T] // used longest ago first; the last is lent first
	waiters waitList[T]    // empty while something is idle

	// slots is what Max bounds: len(idle) + used + checking + dialing, and
	// those of closing whose grace is not over.
	slots    int
	used     int
	checking int
	dialing  int
	closing  int

	goroutines int  // the pool's own, which Close waits for
	dialers    int  // those of them that dial, or wait to
	checker    bool // one of them checks idle resources
	armed      bool // expiry will fire
	closed     bool

	filling bool // idle resources are to be dialled up to MinIdle
	asked   bool // somebody was refused because dials fail: worth another

	failures     int   // dials that failed since the last that did not
	failingSince int64 // when the first of them began
	retryAt      int64 // no dial begins before
	lastErr      error // of the last failed dial; nil if failures is 0
	since        int64 // when the pool came into its state, unless unavailable

	n counters
}

// resource is one resource of a pool. Its value and its times of life are
// immutable; the rest is guarded by the pool's mu.
type resource[T any] struct {
	pool      *Pool[T]
	value     T
	createdAt int64
	expiresAt int64

	turn      uint64 // odd while it is lent; tells the loans apart
	lentAt    int64
	idleAt    int64 // when it became idle
	checkedAt int64 // when a check last found it well
	slotHeld  bool  // it is being closed and counts towards Max
}

// New makes a Pool and begins to dial MinIdle resources in the background; it
// waits for none of them. The error reports all problems of the Config.
func New[T any](cfg Config[T]) (*Pool[T], error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	p := &Pool[T]{
		cfg:     cfg,
		clock:   clock.New(),
		expiry:  time.NewTimer(math.MaxInt64),
		drained: make(chan struct{}),
		filling: true,
	}
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
//   - ErrOverloaded when MaxWaiters wait already;
//   - ErrUnavailable when there is no resource at all and dials fail: at least
//     the last one did, and the first of those in a row that did began
//     UnavailableAfter ago. The last dial's error is in its chain. Those who
//     wait are told within a second, those who come meanwhile at once, until a
//     dial succeeds;
//   - ErrClosed when the pool is closed, also while it waits.
//
// A caller whose ctx or timeout is over is never lent a resource. If one was
// lent at the same moment as the wait ended, Acquire succeeds.
//
// A nil error on an idle resource allocates nothing.
func (p *Pool[T]) Acquire(ctx context.Context) (Lease[T], error) {
	if ctx.Err() != nil {
		p.mu.Lock()
		no := p.refuseLocked(refusedCancelled)
		p.mu.Unlock()
		return Lease[T]{}, p.tell(ctx, no, 0)
	}
	heard := core.Hears(p.cfg.Observer, core.KindAcquired)
	start := p.clock.Now()
	lease, err := p.lend(ctx, start)
	if heard && err == nil {
		p.tellAcquired(ctx, lease, start)
	}
	return lease, err
}

func (p *Pool[T]) lend(ctx context.Context, start int64) (Lease[T], error) {
	var done <-chan struct{}
	for asked := false; ; {
		p.mu.Lock()
		r := p.takeLocked(start)
		if r == nil && !asked {
			// The context is the caller's code, which must not run under mu;
			// and asking it before there is need to would allocate.
			p.mu.Unlock()
			done, asked = ctx.Done(), true
			continue
		}
		if r == nil {
			return p.queue(ctx, done, start) // unlocks
		}
		lease := p.lendLocked(r, start)
		p.mu.Unlock()
		if p.cfg.Valid == nil || p.valid(lease) {
			return lease, nil
		}
	}
}

// tellAcquired tells the observer of a loan, and ends the loan if the observer
// exits the goroutine: nobody else could.
func (p *Pool[T]) tellAcquired(ctx context.Context, l Lease[T], start int64) {
	returned := false
	defer func() {
		if !returned {
			l.Release()
		}
	}()
	p.emit(ctx, core.Event{Kind: core.KindAcquired, Duration: time.Duration(p.clock.Now() - start)})
	returned = true
}

// takeLocked takes the idle resource used last, and destroys those too old.
func (p *Pool[T]) takeLocked(now int64) *resource[T] {
	for last := len(p.idle) - 1; last >= 0; last-- {
		r := p.idle[last]
		p.idle[last] = nil
		p.idle = p.idle[:last]
		if now < r.expiresAt {
			return r
		}
		p.destroyLocked(r, lifetime)
	}
	return nil
}

// lendLocked books r, which belongs to nobody, as lent.
func (p *Pool[T]) lendLocked(r *resource[T], now int64) Lease[T] {
	r.turn++
	r.lentAt = now
	p.used++
	p.n.acquired++
	return Lease[T]{r, r.turn}
}

// valid asks Valid, and destroys what it does not approve of, also when it
// panics or exits the goroutine.
func (p *Pool[T]) valid(l Lease[T]) (ok bool) {
	defer func() {
		if !ok {
			_ = recover() // nil after runtime.Goexit, which nothing stops
			p.mu.Lock()
			defer p.mu.Unlock()
			l.r.turn++
			p.used--
			p.n.acquired-- // it never reached the caller
			p.destroyLocked(l.r, unhealthy)
		}
	}()
	return p.cfg.Valid(l.r.value)
}

// giveBack ends a loan, once: a lease that was ended before changes nothing,
// wherever its resource is by now. With a reason it destroys the resource.
func (p *Pool[T]) giveBack(l Lease[T], why destroyReason) {
	now := p.clock.Now()
	r := l.r
	p.mu.Lock()
	if r.turn != l.turn {
		p.mu.Unlock()
		return
	}
	r.turn++
	p.used--
	held := time.Duration(now - r.lentAt)
	p.n.useTime += held
	served := false
	switch {
	case why != keep:
		p.destroyLocked(r, why)
	case p.closed:
		p.destroyLocked(r, shutDown)
	case now >= r.expiresAt:
		p.destroyLocked(r, lifetime)
	default:
		served = p.offerLocked(r, now)
	}
	p.mu.Unlock()
	if core.Hears(p.cfg.Observer, core.KindReleased) {
		p.emit(context.Background(), core.Event{Kind: core.KindReleased, Duration: held})
	}
	if served {
		// The waiter runs on this processor next. Without the yield, it and
		// the resource would wait until this goroutine blocks.
		runtime.Gosched()
	}
}

// offerLocked gives a resource that belongs to nobody to the first who waits
// for one, else makes it idle. It reports whether somebody waited.
func (p *Pool[T]) offerLocked(r *resource[T], now int64) (served bool) {
	if w := p.nextWaiterLocked(now); w != nil {
		p.n.waited++
		p.n.waitTime += time.Duration(now - w.start)
		w.lease = p.lendLocked(r, now)
		w.ready <- struct{}{}
		return true
	}
	r.idleAt = now
	p.idle = append(p.idle, r)
	return false
}

// emit sends an event of this pool, with no lock held.
func (p *Pool[T]) emit(ctx context.Context, e core.Event) {
	e.Component = p.cfg.Name
	core.Emit(ctx, p.cfg.Observer, e)
}

// Lease is one loan of a resource. It is a small value: copy it freely, all
// copies are the same loan. The zero Lease lends nothing. Release and Destroy
// are safe for concurrent use.
type Lease[T any] struct {
	r    *resource[T]
	turn uint64
}

// Value is the resource. It must not be used once the lease has ended.
func (l Lease[T]) Value() T {
	if l.r == nil {
		var none T
		return none
	}
	return l.r.value
}

// Release gives the resource back, fit for the next. Only the first Release or
// Destroy of a loan counts; any later does nothing, even if the resource has
// been lent to somebody else by then.
func (l Lease[T]) Release() {
	if l.r != nil {
		l.r.pool.giveBack(l, keep)
	}
}

// Destroy gives the resource back as broken: it is closed in the background,
// and replaced if that is needed.
func (l Lease[T]) Destroy() {
	if l.r != nil {
		l.r.pool.giveBack(l, broken)
	}
}
