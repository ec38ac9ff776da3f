package limit

import (
	"context"
	"time"

	"github.com/surgewall/surgewall/core"
)

// enter is for a call that was not admitted right away. ended is the error of
// its context.
func (c *Concurrency) enter(ctx context.Context, n int, ended error, patience time.Duration) error {
	in := c.in.Load()
	switch {
	case n < 0:
		return c.refuse(ctx, n, &in.rejections[refusedInvalid], refusedInvalid)
	case n > in.limit:
		return c.refuse(ctx, n, &in.rejections[refusedNeverFits], refusedNeverFits)
	case ended != nil:
		kind := endedBy(ended)
		return c.refuse(ctx, n, in.rejection(kind, ended), kind)
	case n == 0:
		return nil
	case patience > 0:
		kind, ended := c.wait(ctx, n, patience)
		if kind == notRefused {
			return nil
		}
		return c.refuse(ctx, n, c.in.Load().rejection(kind, ended), kind)
	default:
		c.markFull()
		return c.refuse(ctx, n, &in.rejections[refusedFull], refusedFull)
	}
}

// refuse counts and tells a refusal.
func (c *Concurrency) refuse(ctx context.Context, n int, r *core.Rejection, kind refusedKind) error {
	c.counts.Add(int(kind), 1)
	if c.observer != nil {
		c.tell(ctx, n, r.Reason)
	}
	return r
}

func (c *Concurrency) tell(ctx context.Context, n int, why core.Reason) {
	core.Emit(ctx, c.observer, core.Event{Kind: core.KindRejected, Reason: why, Component: c.name, N: int64(n)})
}

// wait takes n slots when it is the call's turn. The error is that of the
// context, if that ended the wait.
func (c *Concurrency) wait(ctx context.Context, n int, patience time.Duration) (refusedKind, error) {
	if c.waiting.Load() >= int64(c.in.Load().maxWaiters) {
		c.markFull()
		return refusedOverloaded, nil // and those who come in a flood need no lock
	}
	left, done := core.TimeLeft(ctx), ctx.Done()
	if left <= 0 {
		return refusedDeadline, context.DeadlineExceeded
	}
	if patience = min(patience, left); patience == left && done != nil {
		patience = forever // ctx sees to it
	}
	w := c.nodes.get(n, done)
	kind, queued := c.queueUp(w)
	if !queued {
		c.nodes.put(w)
		return kind, nil
	}
	c.markFull()
	start := c.clock.Now()
	verdict, final := w.await(patience)
	if !final {
		verdict = c.abandon(w, verdict)
	}
	c.nodes.put(w)
	switch verdict {
	case granted:
		c.waited.Add(1)
		c.waitTime.Add(c.clock.Now() - start)
		return notRefused, nil
	case misfit:
		return refusedNeverFits, nil
	case gone:
		err := ctx.Err()
		return endedBy(err), err
	default:
		return refusedLate, nil
	}
}

// queueUp puts w at the end of the queue, unless there is no need to wait, or no
// use.
func (c *Concurrency) queueUp(w *waiter) (kind refusedKind, queued bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch in := c.in.Load(); {
	case w.n > in.limit:
		return refusedNeverFits, false
	case c.queue.len() >= in.maxWaiters:
		return refusedOverloaded, false
	case c.word.takeOrWait(w.n):
		return notRefused, false
	}
	c.queue.push(w)
	c.waiting.Store(int64(c.queue.len()))
	return notRefused, true
}

// abandon takes w out of the queue and returns why, unless w has its verdict by
// now: that holds then.
func (c *Concurrency) abandon(w *waiter, why verdict) verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.queue.remove(w) {
		return w.decided() // sent under mu, so it is there
	}
	c.serve()
	return why
}

// release gives n slots back, and reports whether as many were taken.
func (c *Concurrency) release(n int) bool {
	if !c.word.giveBack(n, &c.limit) {
		return c.releaseLocked(n)
	}
	if c.fullSince.Load() != 0 && c.word.room() > 0 {
		c.fullSince.Store(0)
	}
	return true
}

// releaseLocked is release where somebody waits, or more is given back than was
// taken.
func (c *Concurrency) releaseLocked(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	excess := c.word.giveBackAtMost(n, int(c.limit.Load()))
	c.unmatched += uint64(excess)
	c.serve()
	return excess == 0
}

// serve gives free slots to those who wait. It is called with mu held. While
// somebody waits, the word is changed under mu alone.
func (c *Concurrency) serve() {
	if c.word.waited() {
		limit := int(c.limit.Load())
		for w := c.queue.next(c.word.free(), limit); w != nil; w = c.queue.next(c.word.free(), limit) {
			c.word.admit(w.n)
			w.end(granted)
		}
		c.waiting.Store(int64(c.queue.len()))
		if c.queue.empty() {
			c.word.clearWaited()
		}
	}
	if c.fullSince.Load() != 0 && c.word.room() > 0 {
		c.fullSince.Store(0)
	}
}

// markFull notes that calls are not admitted from now on, unless that is noted
// already. It is asked only by calls that were not admitted, so that others need
// no clock.
func (c *Concurrency) markFull() {
	if c.fullSince.Load() == 0 {
		c.markFullNow()
	}
}

func (c *Concurrency) markFullNow() {
	if c.word.room() > 0 {
		return
	}
	// A slot that came free between the look at the word and the mark would not
	// have cleared it.
	if c.fullSince.CompareAndSwap(0, c.clock.Now()+1) && c.word.room() > 0 {
		c.fullSince.Store(0)
	}
}
