package pool

import (
	"context"
	"slices"
)

// maxChecks is how many resources are checked at once. A check costs a server
// little, and those who wait for one that does not answer wait for the others
// behind it too.
const maxChecks = 8

// checkLocked starts as many checkers as there is work for. It is called
// whenever something was added to due.
func (p *Pool[T]) checkLocked() {
	for p.checkers < min(len(p.due)+p.checking, maxChecks) {
		p.checkers++
		p.goroutines++
		go p.check()
	}
}

// check is a goroutine that checks what is due.
func (p *Pool[T]) check() {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.checkers--
		if !p.closed {
			p.checkLocked() // what is due outlives a Check that exited the goroutine
		}
		p.endLocked()
	}()
	for {
		p.mu.Lock()
		last := len(p.due) - 1
		if last < 0 {
			p.mu.Unlock()
			return
		}
		r := p.due[last]
		p.due[last] = nil
		p.due = p.due[:last]
		p.checking++
		p.mu.Unlock()
		p.checkOne(r)
	}
}

// checkOne asks Check about r, which belongs to nobody meanwhile, and destroys
// it if the answer is an error, a panic or the goroutine's exit.
func (p *Pool[T]) checkOne(r *resource[T]) {
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.CheckTimeout)
	defer cancel()
	well := false
	defer func() {
		_ = recover() // nil after runtime.Goexit, which nothing stops
		now := p.clock.Now()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.checking--
		switch {
		case p.closed:
			p.destroyLocked(r, shutDown)
		case !well:
			p.destroyLocked(r, unhealthy)
		case r.generation != p.generation:
			p.destroyLocked(r, outdated)
		case now >= r.expiresAt:
			p.destroyLocked(r, lifetime)
		case len(p.live)+p.dialing > p.max:
			p.destroyLocked(r, surplus)
		default:
			p.restoreLocked(r, now)
		}
	}()
	well = p.cfg.Check(ctx, r.value) == nil
}

// restoreLocked puts a checked resource back among the idle, below those used
// since, unless somebody waits for it.
func (p *Pool[T]) restoreLocked(r *resource[T], now int64) {
	idleAt := r.idleAt
	if w := p.offerLocked(r, now); w != nil {
		w.ready <- struct{}{}
		return
	}
	r.idleAt = idleAt // and good for another CheckEvery
	p.idle = slices.Insert(p.idle[:len(p.idle)-1], 0, r)
}
