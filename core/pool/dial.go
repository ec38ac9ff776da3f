package pool

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/internal/jitter"
)

// The pause after failed dials: a random part of minBackoff, which doubles with
// each failure in a row, up to maxBackoff.
const (
	minBackoff = 10 * time.Millisecond
	maxBackoff = 5 * time.Second
)

func backoff(failures int) time.Duration { return jitter.Full(failures, minBackoff, maxBackoff) }

// dialLocked starts as many dialers as there is demand for. It is called
// whenever demand, slots or the state of dialling have changed.
func (p *Pool[T]) dialLocked() {
	most := p.cfg.MaxDials
	if p.failures > 0 {
		most = 1
	}
	// A dialer that is not in Dial is about to be: it will meet one demand.
	for p.dialers < most && p.demandLocked() > max(p.dialers-p.dialing, 0) {
		p.dialers++
		p.goroutines++
		go p.dialer()
	}
}

// demandLocked is how many more dials should begin now.
func (p *Pool[T]) demandLocked() int {
	if p.closed {
		return 0
	}
	demand := p.waiters.n - p.dialing
	if p.filling {
		if missing := p.minIdle - p.unusedLocked(); missing > 0 {
			demand += missing
		} else {
			p.filling = false
		}
	}
	if len(p.warmers) > 0 {
		demand = max(demand, p.warmth()-len(p.live)-p.dialing)
	}
	if p.asked && p.dialing == 0 {
		demand = max(demand, 1)
	}
	return min(demand, p.max-p.slots)
}

// unusedLocked is how many resources are idle, also those that are checked first.
func (p *Pool[T]) unusedLocked() int { return len(p.idle) + len(p.due) + p.checking }

// dialer is a goroutine that dials while there is demand. One whose dial is to be
// told of gives up its place first, so that an observer which does not return
// keeps nobody from dialling.
func (p *Pool[T]) dialer() {
	var made *core.Event
	defer func() {
		p.mu.Lock()
		p.dialers--
		p.dialLocked() // the demand outlives a Dial that exited the goroutine
		p.mu.Unlock()
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.endLocked()
		}()
		if made != nil {
			p.emit(p.ctx, *made)
		}
	}()
	for made == nil {
		generation, ok := p.beginDial()
		if !ok {
			return
		}
		p.dial(generation, &made)
	}
}

// beginDial waits until the backoff is over and takes a slot, if then there is
// still demand. Otherwise the dialer is to end. The generation is the one that
// the dial is for.
func (p *Pool[T]) beginDial() (generation uint64, ok bool) {
	for {
		p.mu.Lock()
		now := p.clock.Now()
		p.forgetFailuresLocked(now)
		pause := time.Duration(p.retryAt - now)
		if p.demandLocked() <= 0 || p.failures > 0 && p.dialers > 1 {
			p.mu.Unlock()
			return 0, false
		}
		if pause <= 0 {
			p.asked = false
			p.slots++
			p.dialing++
			generation = p.generation
			p.mu.Unlock()
			return generation, true
		}
		p.mu.Unlock()
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-p.ctx.Done():
			timer.Stop()
			return 0, false
		}
	}
}

// dial calls Dial and books what came of it, also when it panics or exits the
// goroutine. made is what the observer is to be told, if there is one.
func (p *Pool[T]) dial(generation uint64, made **core.Event) {
	ctx, cancel := within(p.ctx, p.cfg.DialTimeout)
	defer cancel()
	start := p.clock.Now()
	var v T
	dialled := false
	why := noDial(fmt.Errorf("pool: dial: %w", core.ErrNoReturn))
	defer func() {
		if dialled { // also when the guard did not return afterwards
			why = dialFailure{}
		}
		*made = p.endDial(v, why, start, generation)
	}()
	defer func() { // before that: to print what was panicked with is the user's code, too
		if panicked := recover(); panicked != nil {
			why = noDial(fmt.Errorf("pool: dial: %v: %w", panicked, core.ErrNoReturn))
		}
	}()
	why = noDial(core.Do(ctx, p.cfg.DialGuard, func(ctx context.Context) (err error) {
		v, err = p.cfg.Dial(ctx)
		dialled = err == nil
		return err
	}))
}

// dialFailure is why a dial failed, and what was asked of the error: it may be
// of a type of the user's, whose methods must not run under mu.
type dialFailure struct {
	err        error
	errorType  string
	refused    bool          // a guard did not let it begin
	retryAfter time.Duration // as that guard said, or 0
}

func noDial(err error) dialFailure {
	f := dialFailure{err: err, errorType: core.ErrorType(err)}
	if refused, ok := errors.AsType[*core.Rejection](err); ok {
		f.refused = true
		f.retryAfter, _ = refused.RetryAfter()
	}
	return f
}

// endDial makes a resource of v, or books the failure. It returns what the
// observer is to be told.
func (p *Pool[T]) endDial(v T, why dialFailure, start int64, generation uint64) *core.Event {
	now := p.clock.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dialing--
	stopped := p.closed && why.err != nil
	switch {
	case why.err == nil:
		p.n.create.add(time.Duration(now - start))
		p.addLocked(v, now, generation)
	default:
		p.slots--
		if !stopped {
			p.failLocked(why, start, now)
		}
	}
	p.dialLocked()
	if stopped || p.cfg.Observer == nil {
		return nil
	}
	return &core.Event{Kind: core.KindCreated, ErrorType: why.errorType, Duration: time.Duration(now - start)}
}

// addLocked takes in a resource that was dialled.
func (p *Pool[T]) addLocked(v T, now int64, generation uint64) {
	r := &resource[T]{
		pool:       p,
		value:      v,
		generation: generation,
		createdAt:  now,
		expiresAt:  after(now, p.cfg.MaxAge),
		at:         len(p.live),
	}
	p.live = append(p.live, r)
	if jitter := p.cfg.MaxAgeJitter; jitter > 0 && p.cfg.MaxAge > 0 {
		r.expiresAt -= int64(rand.N(jitter + 1))
	}
	p.endFailuresLocked(now)
	if why := p.unfitLocked(r, now); why != keep {
		p.destroyLocked(r, why)
		return
	}
	p.warmedLocked()
	if w := p.offerLocked(r, now); w != nil {
		w.ready <- struct{}{}
	}
}

// failLocked books a failed dial.
func (p *Pool[T]) failLocked(why dialFailure, start, now int64) {
	if p.failures == 0 {
		p.failingSince = start
	}
	p.failures++
	if !why.refused || p.lastErr == nil {
		p.lastErr = why.err // what made a breaker open says more than that it is open
	}
	p.n.dialFailures++
	pause := backoff(p.failures)
	if grace := p.cfg.UnavailableAfter; grace > 0 && now-p.failingSince < int64(grace) {
		// So that those who wait out a short outage hear of its end in time.
		pause = min(pause, grace/8)
	}
	p.retryAt = max(p.retryAt, after(now, max(pause, why.retryAfter)))
	if p.unavailableLocked(now) {
		p.refuseAllLocked(refusedUnavailable)
	}
}

// endFailuresLocked ends a run of failed dials.
func (p *Pool[T]) endFailuresLocked(now int64) {
	if p.failures > 0 {
		p.failures, p.lastErr, p.retryAt, p.since = 0, nil, 0, now
	}
}

// forgetFailuresLocked ends a run of failed dials that nobody has gone on with:
// what went wrong long ago says nothing of now.
func (p *Pool[T]) forgetFailuresLocked(now int64) {
	if p.dialing == 0 && now > after(p.retryAt, maxBackoff) {
		p.endFailuresLocked(now)
	}
}

// unavailableLocked is the state in which nobody is left waiting: dials have been
// failing for long enough, and for as long there has been nothing to lend.
func (p *Pool[T]) unavailableLocked(now int64) bool {
	return p.failures > 0 && p.cfg.UnavailableAfter > 0 && len(p.live) == 0 &&
		now-max(p.failingSince, p.emptySince) >= int64(p.cfg.UnavailableAfter)
}

// after is d after now, and never if d is off.
func after(now int64, d time.Duration) int64 {
	if d < 0 || int64(d) > math.MaxInt64-now {
		return math.MaxInt64
	}
	return now + int64(d)
}

// within is ctx with a timeout, unless d is off.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d < 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}
