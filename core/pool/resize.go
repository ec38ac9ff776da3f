package pool

import (
	"context"
	"math"
	"slices"

	"github.com/surgewall/surgewall/core"
)

// Resize changes MinIdle and Max, by the rules of Config: 0 is the default, and
// Off a MinIdle of none. If there are more resources than the new Max, idle ones
// are closed at once, those used longest ago first, and the rest as it comes
// back; nobody's loan is cut short. The error lists all that is wrong, and then
// nothing has changed.
func (p *Pool[T]) Resize(minIdle, maximum int) error {
	c := Config[T]{MinIdle: minIdle, Max: maximum}
	c.completeSize()
	problems := core.Check("pool.Config")
	checkSize(problems, c.MinIdle, c.Max)
	if err := problems.Err(); err != nil {
		return err
	}
	p.resize(c.MinIdle, c.Max)
	p.emit(context.Background(), core.Event{Kind: core.KindReconfigured})
	return nil
}

func (p *Pool[T]) resize(minIdle, maximum int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sizeLocked(minIdle, maximum)
	for len(p.idle) > 0 && len(p.live)+p.dialing > p.max {
		r := p.idle[0]
		p.idle = slices.Delete(p.idle, 0, 1)
		p.destroyLocked(r, surplus)
	}
	p.warmedLocked()
	p.filling = true
	p.dialLocked()
}

func (p *Pool[T]) sizeLocked(minIdle, maximum int) {
	p.minIdle, p.max = max(minIdle, 0), maximum
	switch p.cfg.MaxWaiters {
	case 0:
		p.maxWaiters = 100 * min(maximum, math.MaxInt32/100)
	case Off:
		p.maxWaiters = 0
	default:
		p.maxWaiters = p.cfg.MaxWaiters
	}
}

// Reset replaces all resources: it closes those that are idle now and those in
// use when they come back; dials that are under way count as before it. It does
// not wait. It is for what happens to a server and shows on no single
// connection: a new password, a failover, a changed address.
func (p *Pool[T]) Reset() {
	p.mu.Lock()
	generation := p.generation
	p.mu.Unlock()
	p.reset(generation)
}

// reset ends a generation, unless it has ended before.
func (p *Pool[T]) reset(generation uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.generation != generation {
		return
	}
	p.generation++
	p.destroyUnusedLocked(outdated)
	p.filling = true
	p.dialLocked()
}

// destroyUnusedLocked destroys what is neither in use nor being checked.
func (p *Pool[T]) destroyUnusedLocked(why destroyReason) {
	idle, due := p.idle, p.due
	p.idle, p.due = nil, nil
	for _, r := range idle {
		p.destroyLocked(r, why)
	}
	for _, r := range due {
		p.destroyLocked(r, why)
	}
}

// warmer is a call of Warm that waits. ready holds one.
type warmer struct {
	n     int
	ready chan refusal
}

// Warm dials until there are n resources, idle or not, and waits for them: so a
// program that begins to serve has its connections already. More than Max are a
// *core.ConfigError. Other errors are those of Acquire: ErrAcquireTimeout when
// ctx ends first (there is no other timeout), ErrUnavailable, ErrClosed.
//
// If Resize makes Max less than n meanwhile, that many are enough. What is idle
// beyond MinIdle is closed again after MaxIdleTime.
func (p *Pool[T]) Warm(ctx context.Context, n int) error {
	w := &warmer{n, make(chan refusal, 1)}
	p.mu.Lock()
	most := p.max
	switch {
	case n > most:
	case p.closed:
		w.ready <- p.refuseLocked(refusedClosed)
	default:
		p.warmers = append(p.warmers, w)
		p.warmedLocked()
		p.dialLocked()
	}
	p.mu.Unlock()
	if n > most {
		return &core.ConfigError{Config: "pool.Warm", Field: "n", Value: n, Problem: "must not be above Max"}
	}
	select {
	case no := <-w.ready:
		return p.warm(ctx, no)
	case <-ctx.Done():
	}
	p.mu.Lock()
	if p.forgetLocked(w) {
		w.ready <- p.refuseLocked(refusedCancelled)
	}
	p.mu.Unlock()
	return p.warm(ctx, <-w.ready)
}

// warm is what Warm returns.
func (p *Pool[T]) warm(ctx context.Context, no refusal) error {
	if no.kind == notRefused {
		return nil
	}
	return p.tell(ctx, no, 0)
}

// forgetLocked takes w out of those that wait, and reports whether it was there.
func (p *Pool[T]) forgetLocked(w *warmer) bool {
	i := slices.Index(p.warmers, w)
	if i >= 0 {
		p.warmers = slices.Delete(p.warmers, i, i+1)
	}
	return i >= 0
}

// warmedLocked answers those whose resources are there.
func (p *Pool[T]) warmedLocked() {
	p.warmers = slices.DeleteFunc(p.warmers, func(w *warmer) bool {
		if len(p.live) < min(w.n, p.max) {
			return false
		}
		w.ready <- refusal{}
		return true
	})
}

// warmth is how many resources those want that wait.
func (p *Pool[T]) warmth() (n int) {
	for _, w := range p.warmers {
		n = max(n, w.n)
	}
	return min(n, p.max)
}
