package circuit

import (
	"context"
	"math"
	"math/rand/v2"
	"time"

	"github.com/surgewall/surgewall/core"
)

// Why a state changed: what Event.Why says.
const (
	whyInARow      = "failures_in_a_row"
	whyFailureRate = "failure_rate"
	whySlowRate    = "slow_call_rate"
	whyTime        = "time_over"
	whyProbeFailed = "probe_failed"
	whyProbesOK    = "probes_succeeded"
	whyForced      = "forced"
	whyUnforced    = "force_cleared"
	whyReset       = "reset"
)

// change is what changes the state.
type change struct {
	to     State
	why    string
	n      uint64  // of the failures that it is for
	cause  error   // the last of them
	period *period // of an Open or ForcedOpen that is not new
}

// bookProbe counts and books the result of a probe. One that was finished before,
// by a copy of its permit, or is of another generation changes nothing.
func (b *Breaker) bookProbe(ctx context.Context, w word, id uint64, r core.Result, cancelled bool) (changed bool) {
	now := b.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.settings.Load()
	began, known := int64(0), false
	if b.current(w) {
		began, known = b.probes.end(id)
	}
	slow := false
	if !cancelled {
		slow = known && s.isSlow(r, now-began)
		b.count(w, r.Outcome, slow)
	}
	if !known {
		return false
	}
	b.full.Store(b.probes.fullUntil(s.Probes))
	switch {
	case cancelled || r.Outcome == core.Ignored:
		return false
	case r.Outcome == core.Success && !slow:
		if b.succeeded++; b.succeeded < s.needed {
			return false
		}
		b.streak = 0
		b.changeLocked(ctx, now, change{to: Closed, why: whyProbesOK})
	default:
		if b.failed++; b.failed <= s.allowed {
			return false
		}
		b.reopens++
		b.streak++
		b.changeLocked(ctx, now, change{to: Open, why: whyProbeFailed, n: uint64(b.failed), cause: r.Err})
	}
	return true
}

// trip opens the breaker that w says is closed. If it only looks on, it counts that
// it would have.
func (b *Breaker) trip(ctx context.Context, w word, why string, n uint64, r core.Result) (changed bool) {
	now := b.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.current(w) {
		return false
	}
	if w.state() == MetricsOnly {
		// As if it had opened, what is out by now is of an older generation: many
		// may come here at once, and only the first would have opened it.
		b.wouldTrip++
		b.beginLocked(max(now, b.since), makeWord(w.generation()+1, MetricsOnly, b.load()&timed))
		return false
	}
	b.trips++
	b.changeLocked(ctx, now, change{to: Open, why: why, n: n, cause: r.Err})
	return true
}

// endOpen is for a call after the time for which the breaker was to be open, if it
// still is as w says: what was forced ends, or probes begin.
func (b *Breaker) endOpen(ctx context.Context, w word, now int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.load() != w || now < b.open.Load().until:
	case w.state() == ForcedOpen:
		b.restoreLocked(ctx, now, whyTime)
	default:
		b.changeLocked(ctx, now, change{to: HalfOpen, why: whyTime})
	}
}

// changeLocked begins a new generation, in another state. The word is written
// last: whoever reads it finds the rest in place.
func (b *Breaker) changeLocked(ctx context.Context, now int64, c change) {
	from := b.load()
	now = max(now, b.since) // it was read before the lock was taken
	s := b.settings.Load()
	var flags word
	switch c.to {
	case Open, ForcedOpen:
		if c.period == nil {
			c.period = b.newPeriod(after(now, b.openTime(s)))
		}
		b.open.Store(c.period)
	case Closed:
		flags = s.flags()
		if c.why == whyProbesOK && s.RampFor > 0 {
			b.ramp.Store(newRamp(b, now, s.RampFor))
			flags |= ramping
		}
	case ForcedClosed, MetricsOnly:
		flags = s.flags()
	}
	next := makeWord(from.generation()+1, c.to, flags)
	b.notices.Push(notice{
		ctx: ctx, from: from.state(), to: c.to, seq: next.generation(), why: c.why,
		at: now, lasted: now - b.since, failures: c.n, cause: c.cause,
	})
	b.since, b.succeeded, b.failed = now, 0, 0
	b.probes.clear()
	b.full.Store(0)
	b.beginLocked(now, next)
}

// beginLocked makes next the word: a new generation, of which no result is known.
func (b *Breaker) beginLocked(now int64, next word) {
	b.run.Store(uint64(makeRun(next.generation(), 0)))
	if w := b.settings.Load().window; w != nil {
		w.begin(next.generation(), now)
	}
	b.word.Store(uint64(next))
}

// openTime is how long the breaker is to be open now.
func (b *Breaker) openTime(s *settings) time.Duration {
	d := s.OpenFor
	if b.streak > 0 && s.OpenGrowth > 1 {
		d = s.OpenMax
		if grown := float64(s.OpenFor) * math.Pow(s.OpenGrowth, float64(b.streak)); grown < float64(s.OpenMax) {
			d = time.Duration(grown)
		}
	}
	if share := s.OpenJitter * float64(d); share >= math.MaxInt64 {
		d -= rand.N(d)
	} else if share >= 1 {
		d -= rand.N(time.Duration(share))
	}
	return d
}

func (b *Breaker) newPeriod(until int64) *period {
	return &period{until, &core.Rejection{
		Guard: b.name, Reason: core.CircuitOpen, Err: ErrOpen, RetryAt: b.clock.Time(until),
	}}
}
