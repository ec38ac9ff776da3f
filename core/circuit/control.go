package circuit

import (
	"context"
	"math"
	"time"

	"github.com/surgewall/surgewall/core"
)

// below is what a force has covered: the state that comes back when it is cleared.
type below struct {
	state  State
	period *period // if that is Open
}

// ForceOpen refuses every call for so long, whatever the results were, and admits
// no probe; with a d of 0 or less, until ClearForce. Called again it changes how
// long. Calls that are out already are counted in Stats when they end.
func (b *Breaker) ForceOpen(d time.Duration) {
	if b == nil {
		return
	}
	p := b.newPeriod(math.MaxInt64)
	p.rejection.RetryAt = time.Time{} // nobody knows
	if d > 0 {
		p = b.newPeriod(after(b.clock.Now(), d))
	}
	b.force(change{to: ForcedOpen, why: whyForced, period: p})
}

// ForceClosed admits every call until ClearForce, whatever the results are. They
// are counted in Stats, and change nothing.
func (b *Breaker) ForceClosed() { b.force(change{to: ForcedClosed, why: whyForced}) }

// Disable admits every call until ClearForce, as if there were no breaker: nothing
// is counted, and no callback called.
func (b *Breaker) Disable() { b.force(change{to: Disabled, why: whyForced}) }

// MetricsOnly admits every call until ClearForce. Results are counted, by the
// conditions too: Stats.WouldTrip is how often these would have opened the breaker.
func (b *Breaker) MetricsOnly() { b.force(change{to: MetricsOnly, why: whyForced}) }

// force puts the breaker into a state that results do not end.
func (b *Breaker) force(c change) {
	if b == nil {
		return
	}
	now := b.clock.Now()
	b.mu.Lock()
	if b.load().state() == ForcedOpen && now >= b.open.Load().until {
		b.restoreLocked(context.Background(), now, whyTime) // nobody has asked since then
	}
	switch from := b.load().state(); {
	case from == c.to:
		if c.period != nil {
			b.open.Store(c.period)
		}
	case !from.forced():
		b.below = below{from, b.open.Load()}
		fallthrough
	default:
		b.changeLocked(context.Background(), now, c)
	}
	b.mu.Unlock()
	b.notices.Drain(b.tell)
}

// ClearForce ends what ForceOpen, ForceClosed, Disable or MetricsOnly began. What
// the breaker was before, it is again: an open one is open for as long as it would
// have been, a half-open one begins anew with its probes, and a closed one anew too:
// without the failures that it knew of, and without a ramp. It does nothing if nothing
// is forced.
func (b *Breaker) ClearForce() {
	if b == nil {
		return
	}
	now := b.clock.Now()
	b.mu.Lock()
	if b.load().state().forced() {
		b.restoreLocked(context.Background(), now, whyUnforced)
	}
	b.mu.Unlock()
	b.notices.Drain(b.tell)
}

func (b *Breaker) restoreLocked(ctx context.Context, now int64, why string) {
	c := change{to: b.below.state, why: why}
	if c.to == Open {
		c.period = b.below.period
	}
	b.below = below{}
	b.changeLocked(ctx, now, c)
}

// Reset closes the breaker and forgets what it knows of failures, a force and a
// grown open time included. What Stats counts since New stays. Results of calls
// that are out already change nothing when they end.
func (b *Breaker) Reset() {
	if b == nil {
		return
	}
	now := b.clock.Now()
	b.mu.Lock()
	b.streak, b.below = 0, below{}
	if w := b.load(); w.state() == Closed {
		b.beginLocked(max(now, b.since), makeWord(w.generation()+1, Closed, w&timed))
	} else {
		b.changeLocked(context.Background(), now, change{to: Closed, why: whyReset})
	}
	b.mu.Unlock()
	b.notices.Drain(b.tell)
}

// Reconfigure changes the conditions, times and counts of probes, while calls go
// on. The breaker keeps its state, and what it knows of failures unless the
// window is another; an open time or a ramp that runs stays as it is, and probes that
// are out get the ProbeLease if it is shorter than theirs. Name, the callbacks and
// Observer stay as they are, whatever cfg says. If cfg is bad, nothing
// changes.
func (b *Breaker) Reconfigure(cfg Config) error {
	if b != nil {
		old := b.settings.Load()
		cfg.Name, cfg.Observer = b.name, old.Observer
		cfg.OnSuccess, cfg.OnFailure, cfg.OnStateChange = old.OnSuccess, old.OnFailure, old.OnStateChange
	}
	given := cfg
	cfg = cfg.withDefaults()
	if err := cfg.check(given); err != nil || b == nil {
		return err
	}
	now := b.clock.Now()
	b.mu.Lock()
	old := b.settings.Load()
	s := newSettings(b, cfg, old)
	if s.window != nil && s.window != old.window {
		s.window.begin(b.load().generation(), now)
	}
	b.settings.Store(s)
	if w := b.load(); w.state().judges() || w.state() == ForcedClosed {
		b.word.Store(uint64(makeWord(w.generation(), w.state(), w&ramping|s.flags())))
	}
	b.full.Store(0)
	if b.load().state() == HalfOpen {
		b.probes.shorten(s.ProbeLease)
		b.full.Store(b.probes.fullUntil(s.Probes))
	}
	b.mu.Unlock()
	b.emit(context.Background(), s.Observer, core.Event{Kind: core.KindReconfigured, Component: b.name})
	return nil
}
