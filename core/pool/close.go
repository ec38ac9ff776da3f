package pool

import (
	"context"
	"fmt"
	"time"

	"github.com/surgewall/surgewall/core"
)

// destroyReason is why a resource is closed. Its name is in KindDestroyed.
type destroyReason uint8

const (
	keep      destroyReason = iota
	lifetime                // older than MaxAge
	unused                  // idle for MaxIdleTime
	broken                  // its user said so
	unhealthy               // Check or Valid said so
	outdated                // of a generation that Reset has ended
	surplus                 // more than Max, after Resize
	shutDown                // the pool is closed
	destroyReasons
)

var destroyNames = [destroyReasons]string{
	lifetime: "lifetime", unused: "idle", broken: "broken", unhealthy: "unhealthy", outdated: "reset", surplus: "resize", shutDown: "closed",
}

// destroyLocked closes r, which belongs to nobody, in a goroutine of its own. It
// keeps its slot until it is closed, at most for CloseGrace, so that the other
// side does not see more than Max.
func (p *Pool[T]) destroyLocked(r *resource[T], why destroyReason) {
	last := len(p.live) - 1
	p.live[r.at] = p.live[last]
	p.live[r.at].at = r.at
	p.live[last] = nil
	p.live = p.live[:last]
	if last == 0 {
		p.emptySince = p.clock.Now()
	}
	r.slotHeld = true
	p.closing++
	p.n.destroyed[why]++
	p.filling = true
	p.goroutines++
	go p.closeResource(r, why)
	p.dialLocked()
}

func (p *Pool[T]) closeResource(r *resource[T], why destroyReason) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.endLocked()
	}()
	defer p.emit(p.ctx, core.Event{
		Kind: core.KindDestroyed, To: destroyNames[why],
		Duration: time.Duration(p.clock.Now() - r.createdAt),
	})
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.CloseGrace)
	defer cancel()
	graceOver := time.AfterFunc(p.cfg.CloseGrace, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.freeSlotLocked(r)
	})
	defer func() {
		_ = recover() // nil after runtime.Goexit, which nothing stops
		graceOver.Stop()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.closing--
		p.freeSlotLocked(r)
	}()
	p.cfg.Close(ctx, r.value)
}

// freeSlotLocked ends what r, which is being closed, counts towards Max.
func (p *Pool[T]) freeSlotLocked(r *resource[T]) {
	if r.slotHeld {
		r.slotHeld = false
		p.slots--
		p.dialLocked()
	}
}

// endLocked books the end of one of the pool's goroutines, and ends the wait of
// Close if nothing is left to wait for. The last resource that comes back to a
// closed pool is closed by a goroutine, so that here is where everything ends.
func (p *Pool[T]) endLocked() {
	p.goroutines--
	if p.closed && p.goroutines == 0 && p.used == 0 {
		close(p.drained)
	}
}

// Close ends the pool. At once, it refuses all who wait or ask with ErrClosed,
// ends the ctx of dials and checks and closes what is idle; then it waits for
// the resources in use to be given back, which are closed too, and for the
// pool's goroutines. A nil error means that all of that has ended.
//
// If ctx ends first, Close returns an error that wraps ctx's, and what is left
// still ends when the resources come back. Closing again waits in the same way.
func (p *Pool[T]) Close(ctx context.Context) error {
	p.shut()
	p.cancel()
	select {
	case <-p.drained:
		return nil
	default:
	}
	select {
	case <-p.drained:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	used := p.used
	p.mu.Unlock()
	return fmt.Errorf("pool: close %q: %d still in use: %w", p.cfg.Name, used, ctx.Err())
}

// shut is what Close does at once.
func (p *Pool[T]) shut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.refuseAllLocked(refusedClosed)
	p.closed = true
	p.since = p.clock.Now()
	p.destroyUnusedLocked(shutDown)
}
