package pool

import (
	"slices"
	"time"
)

// maintainEvery is the pace of maintenance. Limits shorter than that are looked
// after four times in their length.
const maintainEvery = time.Second

// maintain is the goroutine that looks after the idle and the waiters. It runs no
// user code.
func (p *Pool[T]) maintain() {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.endLocked()
	}()
	tick := time.NewTicker(p.cfg.pace())
	defer tick.Stop()
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
	for _, d := range []time.Duration{c.MaxAge, c.MaxIdleTime, c.CheckEvery, c.LeakAfter} {
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
	spare := p.unusedLocked() - p.minIdle
	p.idle = slices.DeleteFunc(p.idle, func(r *resource[T]) bool {
		switch {
		case now >= r.expiresAt:
			p.destroyLocked(r, lifetime)
		case spare > 0 && now >= after(r.idleAt, p.cfg.MaxIdleTime):
			p.destroyLocked(r, unused)
		case now >= r.goodUntil:
			p.due = append(p.due, r)
			return true
		default:
			return false
		}
		spare--
		return true
	})
	p.checkLocked()
	p.forgetFailuresLocked(now)
	if p.unavailableLocked(now) {
		p.refuseAllLocked(refusedUnavailable)
	}
	p.filling = true
	p.dialLocked()
	p.newlyHeldLocked(now)
}
