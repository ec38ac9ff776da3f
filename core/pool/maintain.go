package pool

import (
	"context"
	"slices"
	"time"
)

// maintainEvery is the pace of maintenance. Limits shorter than that are looked
// after four times in their length.
const maintainEvery = time.Second

// maintain is the goroutine that looks after the idle and the waiters.
func (p *Pool[T]) maintain() {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.endLocked()
	}()
	tick := time.NewTicker(p.cfg.pace())
	defer tick.Stop()
	defer p.expiry.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.expiry.C:
			p.expireWaiters()
		case <-tick.C:
			p.tend()
		}
	}
}

func (c *Config[T]) pace() time.Duration {
	pace := maintainEvery
	for _, d := range []time.Duration{c.MaxAge, c.MaxIdleTime, c.CheckEvery} {
		if d > 0 {
			pace = min(pace, max(d/4, time.Millisecond))
		}
	}
	return pace
}

// tend destroys what has been idle or alive for too long, has the rest checked
// and fills up to MinIdle.
func (p *Pool[T]) tend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	now := p.clock.Now()
	spare := len(p.idle) + p.checking - p.cfg.idleFloor()
	p.idle = slices.DeleteFunc(p.idle, func(r *resource[T]) bool {
		switch {
		case now >= r.expiresAt:
			p.destroyLocked(r, lifetime)
		case spare > 0 && now >= after(r.idleAt, p.cfg.MaxIdleTime):
			p.destroyLocked(r, unused)
		default:
			return false
		}
		spare--
		return true
	})
	if p.cfg.Check != nil && !p.checker && p.checkDueLocked(now) >= 0 {
		p.checker = true
		p.goroutines++
		go p.check()
	}
	if p.unavailableLocked(now) {
		p.refuseAllLocked(refusedUnavailable)
	}
	p.filling = true
	p.dialLocked()
}

// checkDueLocked is the index of an idle resource that is to be checked, or -1.
func (p *Pool[T]) checkDueLocked(now int64) int {
	return slices.IndexFunc(p.idle, func(r *resource[T]) bool {
		return now-max(r.idleAt, r.checkedAt) >= int64(p.cfg.CheckEvery)
	})
}

// check is a goroutine that checks what is due, one at a time, so that a server
// which answers none of them leaves the rest to be lent.
func (p *Pool[T]) check() {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.checker = false
		p.endLocked()
	}()
	for {
		p.mu.Lock()
		i := p.checkDueLocked(p.clock.Now())
		if i < 0 || p.closed {
			p.mu.Unlock()
			return
		}
		r := p.idle[i]
		p.idle = slices.Delete(p.idle, i, i+1)
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
		case now >= r.expiresAt:
			p.destroyLocked(r, lifetime)
		default:
			r.checkedAt = now
			p.restoreLocked(r, now)
		}
	}()
	well = p.cfg.Check(ctx, r.value) == nil
}

// restoreLocked puts a checked resource back among the idle, below those used
// since, unless somebody waits for it.
func (p *Pool[T]) restoreLocked(r *resource[T], now int64) {
	idleAt := r.idleAt
	if p.offerLocked(r, now) {
		return
	}
	r.idleAt = idleAt
	p.idle = slices.Insert(p.idle[:len(p.idle)-1], 0, r)
}
