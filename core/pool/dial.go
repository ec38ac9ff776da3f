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
	for p.dialers < most && p.demandLocked() > p.dialers-p.dialing {
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

// dialer is a goroutine that dials while there is demand.
func (p *Pool[T]) dialer() {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.dialers--
		p.endLocked()
		p.dialLocked() // the demand outlives a Dial that exited the goroutine
	}()
	for {
		generation, ok := p.beginDial()
		if !ok {
			return
		}
		p.dial(generation)
	}
}

// beginDial waits until the backoff is over and takes a slot, if then there is
// still demand. Otherwise the dialer is to end. The generation is the one that
// the dial is for.
func (p *Pool[T]) beginDial() (generation uint64, ok bool) {
	for {
		p.mu.Lock()
		pause := time.Duration(p.retryAt - p.clock.Now())
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
// goroutine.
func (p *Pool[T]) dial(generation uint64) {
	ctx, cancel := within(p.ctx, p.cfg.DialTimeout)
	defer cancel()
	start := p.clock.Now()
	var v T
	made := false
	why := noDial(fmt.Errorf("pool: dial: %w", core.ErrNoReturn))
	defer func() {
		if panicked := recover(); panicked != nil {
			why = noDial(fmt.Errorf("pool: dial: %v: %w", panicked, core.ErrNoReturn))
		}
		if made { // also when the guard did not return afterwards
			why = dialFailure{}
		}
		p.endDial(v, why, start, generation)
	}()
	why = noDial(core.Do(ctx, p.cfg.DialGuard, func(ctx context.Context) (err error) {
		v, err = p.cfg.Dial(ctx)
		made = err == nil
		return err
	}))
}

// dialFailure is why a dial failed, and what was asked of the error: it may be
// of a type of the user's, whose methods must not run under mu.
type dialFailure struct {
	err        error
	errorType  string
	retryAfter time.Duration // as the guard that refused it said, or 0
}

func noDial(err error) dialFailure {
	f := dialFailure{err: err, errorType: core.ErrorType(err)}
	if refused, ok := errors.AsType[*core.Rejection](err); ok {
		f.retryAfter, _ = refused.RetryAfter()
	}
	return f
}

// endDial makes a resource of v, or books the failure.
func (p *Pool[T]) endDial(v T, why dialFailure, start int64, generation uint64) {
	now := p.clock.Now()
	p.mu.Lock()
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
	p.mu.Unlock()
	if !stopped {
		p.emit(p.ctx, core.Event{
			Kind: core.KindCreated, ErrorType: why.errorType, Duration: time.Duration(now - start),
		})
	}
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
	if p.failures > 0 {
		p.failures, p.lastErr, p.retryAt, p.since = 0, nil, 0, now
	}
	switch {
	case p.closed:
		p.destroyLocked(r, shutDown)
	case generation != p.generation:
		p.destroyLocked(r, outdated)
	case len(p.live)+p.dialing > p.max:
		p.destroyLocked(r, surplus)
	default:
		p.warmedLocked()
		if w := p.offerLocked(r, now); w != nil {
			w.ready <- struct{}{}
		}
	}
}

// failLocked books a failed dial.
func (p *Pool[T]) failLocked(why dialFailure, start, now int64) {
	if p.failures == 0 {
		p.failingSince = start
	}
	p.failures++
	p.lastErr = why.err
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

// unavailableLocked is the state in which nobody is left waiting.
func (p *Pool[T]) unavailableLocked(now int64) bool {
	return p.failures > 0 && p.cfg.UnavailableAfter > 0 &&
		len(p.live) == 0 && now-p.failingSince >= int64(p.cfg.UnavailableAfter)
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
