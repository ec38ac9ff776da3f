package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/surgewall/surgewall/core"
)

// ErrUnfit, returned by OnAcquire or wrapped in what it returns, says that this
// resource is of no use and another may be.
var ErrUnfit = errors.New("pool: unfit resource")

// loan is what is kept of a loan, if there is need to.
type loan struct {
	kept     bool            // something below is set
	ctx      context.Context // of Acquire, without its end; for OnRelease
	stack    []uintptr       // of Acquire; for Held
	reported bool            // KindHeld was sent
}

// valid asks Valid, and destroys what it does not approve of, also when it
// panics or exits the goroutine.
func (p *Pool[T]) valid(l Lease[T]) (ok bool) {
	defer func() {
		if !ok {
			_ = recover() // nil after runtime.Goexit, which nothing stops
			p.unlend(l)
		}
	}()
	return p.cfg.Valid(l.r.value)
}

// unlend destroys a resource whose loan never reached its caller.
func (p *Pool[T]) unlend(l Lease[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.r.turn++
	l.r.loan = loan{}
	p.used--
	p.n.unlent++
	p.pending.Add(-1)
	p.destroyLocked(l.r, unhealthy)
}

// prepare does what is to be done with a loan before its caller gets it. If it
// is not fit, it has been ended.
func (p *Pool[T]) prepare(ctx context.Context, l Lease[T], heard bool, start int64) (fit bool, err error) {
	var waited time.Duration
	if heard {
		waited = time.Duration(p.clock.Now() - start)
	}
	if p.cfg.OnAcquire != nil {
		err := p.greet(ctx, l)
		if errors.Is(err, ErrUnfit) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	p.delivered()
	p.remember(ctx, l)
	if !heard {
		return true, nil
	}
	defer func() {
		if !fit { // the observer has exited the goroutine, and nobody else will
			l.Release()
		}
	}()
	p.emit(ctx, core.Event{Kind: core.KindAcquired, Duration: waited})
	return true, nil
}

// greet calls OnAcquire, and destroys the resource unless that returns nil.
func (p *Pool[T]) greet(ctx context.Context, l Lease[T]) (err error) {
	fit := false
	defer func() {
		if fit {
			return
		}
		panicked := recover()
		p.unlend(l) // first: to print what was panicked with is the user's code, too
		if panicked != nil {
			err = fmt.Errorf("pool: OnAcquire: %v: %w", panicked, core.ErrNoReturn)
		}
	}()
	err = p.cfg.OnAcquire(ctx, l.r.value)
	fit = err == nil
	return err
}

// remember keeps of a loan what hooks and Held will want.
func (p *Pool[T]) remember(ctx context.Context, l Lease[T]) {
	var kept loan
	if p.cfg.OnRelease != nil {
		kept.kept, kept.ctx = true, context.WithoutCancel(ctx)
	}
	if p.cfg.LeakSample > 0 && p.sample.Add(1)%uint64(p.cfg.LeakSample) == 0 {
		kept.kept, kept.stack = true, callers()
	}
	if !kept.kept {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l.r.loan.kept, l.r.loan.ctx, l.r.loan.stack = true, kept.ctx, kept.stack
}

// cleanAndGiveBack is giveBack after OnRelease. The loan is over before it is
// called, so that another Release meanwhile does nothing; the resource counts as
// used until it has returned.
func (p *Pool[T]) cleanAndGiveBack(l Lease[T]) {
	r := l.r
	now := p.clock.Now()
	p.mu.Lock()
	if r.turn != l.turn {
		p.mu.Unlock()
		return
	}
	r.turn++
	held := now - r.lentAt
	ctx := r.loan.ctx
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, p.cfg.CheckTimeout)
	defer cancel()
	fit := false
	defer func() {
		_ = recover() // nil after runtime.Goexit, which nothing stops
		why := keep
		if !fit {
			why = broken
		}
		now := p.clock.Now()
		p.mu.Lock()
		w := p.returnLocked(r, why, held, now)
		p.mu.Unlock()
		p.handOver(w, held)
	}()
	fit = p.cfg.OnRelease(ctx, r.value)
}
