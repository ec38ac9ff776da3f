package limit

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/internal/clock"
	"github.com/surgewall/surgewall/core/internal/stripe"
)

// ErrFull: no slot of a Concurrency was free, or none came free in time. It is
// what errors.Is finds in the *core.Rejection.
var ErrFull = errors.New("limit: all slots are taken")

// ConcurrencyConfig configures NewConcurrency.
type ConcurrencyConfig struct {
	// Name is the name in rejections, events and reports. Default: "bulkhead".
	Name string

	// Limit is how many slots there are, so how many calls of cost 1 are in
	// flight at most; at most 2^30-1. Required.
	Limit int

	// MaxWait is how long Acquire may wait for slots, first come first served.
	// It has no say in Wait. Default: 0, Acquire never waits.
	MaxWait time.Duration

	// MaxWaiters is how many calls may wait at once, in Acquire and in Wait; the
	// next is refused at once. At most 2^30-1.
	// Default: 100 for each slot. The last then waits about as long as a
	// hundred calls take one after the other.
	MaxWaiters int

	// Observer hears core.KindRejected for each refusal, and
	// core.KindReconfigured. Default: none.
	Observer core.Observer
}

const waitersPerSlot = 100

// Concurrency is a bulkhead: at most Limit calls are in flight, so that what is
// slow or stuck cannot take up all of a program. A call takes a slot, or as many
// as its cost says, and holds them until its permit is ended. A call for which
// there is no room is refused at once, unless it may wait.
//
// Who waits is served strictly in order: no call overtakes another that came
// earlier, however few slots it wants, so a big one is not starved by small
// ones. A slot that comes free goes to the first who waits, and a call that gives
// up leaves its place to the next. When a slot comes just as a wait ends, the
// slot wins.
//
// Slots do not expire: Limit is exact, and whoever holds a permit may still be
// at work. What is stuck shows in the Stats instead: FullSince.
//
// A permit that was copied and ended twice gives back twice. The number in
// flight never falls below zero by it, and what nobody had taken is counted in
// Stats.Unmatched; but while other calls are in flight it cannot be told from a
// release of theirs, and until all of them have ended there may be more than
// Limit by as much. go vet finds such copies.
//
// Internally it is one atomic word. Where nobody waits, an admission and a
// release are a compare-and-swap each, with no lock and no clock; a refusal
// leaves the word unwritten. Nothing of it allocates.
//
// It is safe for concurrent use, a core.Guard, core.Ready, core.Refuser and
// core.Component, and needs no Close. A nil *Concurrency is no limit: it admits
// every call that is not malformed.
type Concurrency struct {
	name     string
	observer core.Observer
	clock    clock.Clock
	since    time.Time

	_         [128]byte // what is written often stays off the lines of what is read
	in        atomic.Pointer[bulkhead]
	limit     atomic.Int64 // in's; changed under mu
	fullSince atomic.Int64 // a clock reading and 1; 0: see markFull
	waiting   atomic.Int64 // queue.len(); changed under mu

	_    [128]byte
	word slotWord
	_    [128]byte

	mu        sync.Mutex
	queue     waitQueue // guarded by mu; empty if and only if the word says so
	unmatched uint64    // guarded by mu

	nodes    waiters
	waited   atomic.Uint64
	waitTime atomic.Int64
	counts   stripe.Group // of refusals, by kind, and of permits cancelled
}

// NewConcurrency makes an empty bulkhead. The error lists every bad field of
// cfg; errors.Is(err, core.ErrConfig).
func NewConcurrency(cfg ConcurrencyConfig) (*Concurrency, error) {
	p := core.Check("limit.ConcurrencyConfig")
	cfg.check(p, "")
	if err := p.Err(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	c := &Concurrency{name: cfg.Name, observer: cfg.Observer, clock: clock.New()}
	c.since = c.clock.Time(0)
	c.in.Store(newBulkhead(c.name, cfg))
	c.limit.Store(int64(cfg.Limit))
	c.word.init(cfg.Limit)
	return c, nil
}

func (cfg ConcurrencyConfig) check(p *core.Problems, in string) {
	p.If(cfg.Limit < 1 || cfg.Limit > maxSlots, in+"Limit", cfg.Limit, "must be 1 to 1073741823")
	p.If(cfg.MaxWait < 0, in+"MaxWait", cfg.MaxWait, "must not be negative")
	p.If(cfg.MaxWaiters < 0 || cfg.MaxWaiters > maxSlots, in+"MaxWaiters", cfg.MaxWaiters, "must be 0 to 1073741823")
}

func (cfg ConcurrencyConfig) withDefaults() ConcurrencyConfig {
	if cfg.Name == "" {
		cfg.Name = "bulkhead"
	}
	if cfg.MaxWaiters == 0 {
		cfg.MaxWaiters = min(cfg.Limit, maxSlots/waitersPerSlot) * waitersPerSlot
	}
	return cfg
}

// TryAcquire takes n slots if they are free and nobody waits, and reports
// whether it did; it never takes a part, and never waits. It is false for a
// negative n and for one above the limit, and true for 0. Release gives them
// back.
func (c *Concurrency) TryAcquire(n int) bool {
	if c == nil {
		return n >= 0
	}
	return n > 0 && c.word.take(n) || c.enter(context.Background(), n, nil, 0) == nil
}

// Wait takes n slots as soon as they are free, after those who asked before. It
// fails at once, and takes nothing, if ctx is done already or its deadline is
// past, and if MaxWaiters wait already. Release gives the slots back.
//
// The error is a *core.Rejection: ErrFull, with the context's error in it if
// that ended the wait; ErrNeverFits if n is above the limit, also if the limit
// is lowered to that during the wait; ErrInvalidCost if n is negative.
func (c *Concurrency) Wait(ctx context.Context, n int) error {
	if c == nil {
		return boundless(ctx, n)
	}
	err := ctx.Err()
	if err == nil && n > 0 && c.word.take(n) {
		return nil
	}
	return c.enter(ctx, n, err, forever)
}

// Release gives back n slots that were taken by TryAcquire or Wait. It reports
// whether as many were taken at all: if not, all that were taken are free now,
// and the rest is counted in Stats.Unmatched. Slots of a permit are given back
// by the permit.
func (c *Concurrency) Release(n int) bool {
	if c == nil || n == 0 {
		return true
	}
	return n > 0 && c.release(n)
}

// Acquire takes the slots of one call: call.Weight() of them. If they are not
// free, it waits for at most MaxWait, and no longer than ctx allows; a call whose
// ctx is done is refused even if there are free slots. The errors are those of
// Wait; that of a full bulkhead has the reason core.ConcurrencyLimited, that of a
// full queue core.Overloaded, and that of a wait in vain core.WaitTimeout.
//
// However the permit is ended, the slots are free then; what a Result says the
// call cost has no say.
func (c *Concurrency) Acquire(ctx context.Context, call core.Call) (core.Permit, error) {
	n := call.Weight()
	if c == nil {
		return core.Permit{}, malformed(n)
	}
	err := ctx.Err()
	if err != nil || n < 0 || !c.word.take(n) {
		if err := c.enter(ctx, n, err, c.in.Load().maxWait); err != nil {
			return core.Permit{}, err
		}
	}
	return core.NewPermit(c, core.Token{A: uint64(n)}, core.WantsEnd), nil
}

// FinishPermit is for core.Permit: it gives back what a call took.
func (c *Concurrency) FinishPermit(_ context.Context, t core.Token, _ core.Result) {
	c.release(int(t.A))
}

// CancelPermit is for core.Permit: it gives back what a call took that never
// started.
func (c *Concurrency) CancelPermit(t core.Token) {
	c.counts.Add(countCancelledPermits, 1)
	c.release(int(t.A))
}

// Peek is what TryAcquire would say, without taking anything: Peek(0) is how
// things stand. A bulkhead does not know when a slot will come free.
func (c *Concurrency) Peek(n int) Decision {
	if c == nil {
		return unlimited(n)
	}
	limit, free := int(c.limit.Load()), max(0, c.word.room())
	d := Decision{Limit: limit, Remaining: min(free, limit), Policy: c.name}
	switch {
	case n < 0 || n > limit:
		d.RetryAfter = Never
	case n <= free:
		d.OK = true
		d.Remaining = max(0, d.Remaining-n)
	}
	return d
}

// Ready reports whether a call of cost 1 would be admitted at once.
func (c *Concurrency) Ready() bool { return c == nil || c.word.room() > 0 }

// Refusal is the *core.Rejection that a call of cost 1 would get that does not
// wait, or nil.
func (c *Concurrency) Refusal() *core.Rejection {
	if c.Ready() {
		return nil
	}
	return &c.in.Load().rejections[refusedFull]
}

// Reconfigure changes Limit, MaxWait and MaxWaiters, while calls go on. Slots
// that are new go to those who wait. Where there are fewer, calls in flight go
// on, and none is admitted until there is room; those who wait for more slots
// than there are now are refused with ErrNeverFits. Who waits already waits as
// long as before. Name and Observer stay as they are, whatever cfg says. If cfg
// is bad, nothing changes.
func (c *Concurrency) Reconfigure(cfg ConcurrencyConfig) error {
	p := core.Check("limit.ConcurrencyConfig")
	cfg.check(p, "")
	if err := p.Err(); err != nil || c == nil {
		return err
	}
	c.reconfigure(cfg.withDefaults())
	core.Emit(context.Background(), c.observer, core.Event{Kind: core.KindReconfigured, Component: c.name})
	return nil
}

func (c *Concurrency) reconfigure(cfg ConcurrencyConfig) {
	in := newBulkhead(c.name, cfg)
	c.mu.Lock()
	defer c.mu.Unlock()
	grown := cfg.Limit - int(c.limit.Load())
	c.in.Store(in)
	// Before the word: whoever finds the word changed knows the new limit too.
	c.limit.Store(int64(cfg.Limit))
	c.unmatched += uint64(c.word.grow(grown, cfg.Limit))
	c.queue.refit(cfg.Limit)
	c.serve()
}
