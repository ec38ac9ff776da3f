package circuit

import (
	"time"

	"github.com/surgewall/surgewall/core"
)

// Stats is a Breaker at one moment. The counts are since New; they are read
// while others count, so that two of them may differ by the calls in between.
type Stats struct {
	State State     // as State reports it
	Since time.Time // when it came into State

	// Admitted calls that ended, by outcome, late ones included.
	Successes, Failures, Throttled, Ignored uint64

	// Refused calls, by sentinel.
	RejectedOpen, RejectedProbesTaken uint64

	Trips   uint64 // changes from closed to open
	Reopens uint64 // changes from half-open to open

	FailuresInARow  int // while closed: FailureThreshold of them open the breaker
	ProbesOut       int // while half-open: probes that hold a place
	ProbesSucceeded int // while half-open: SuccessThreshold of them close the breaker

	// RetryAt is, while open, when the breaker will admit a probe; else zero.
	RetryAt time.Time

	// CallbackPanics is how often a callback or the observer panicked or
	// exited its goroutine.
	CallbackPanics uint64
}

// Name is the configured name.
func (b *Breaker) Name() string {
	if b == nil {
		return ""
	}
	return b.cfg.Name
}

// State is what the breaker would do with a call now. It changes nothing: a
// breaker whose open time is over is HalfOpen, though the change is told only
// when a call makes it. A nil Breaker is Closed.
func (b *Breaker) State() State {
	if b == nil {
		return Closed
	}
	s := b.load().state()
	if s == Open && b.clock.Now() >= b.open.Load().until {
		return HalfOpen
	}
	return s
}

// Ready reports whether Acquire would admit a call, without taking a probe's
// place.
func (b *Breaker) Ready() bool { return b.Refusal() == nil }

// Refusal is the *core.Rejection that Acquire would return now, or nil: see
// core.Refuser.
func (b *Breaker) Refusal() *core.Rejection {
	if b == nil {
		return nil
	}
	switch b.load().state() {
	case Open:
		if open := b.open.Load(); b.clock.Now() < open.until {
			return open.rejection
		}
	case HalfOpen:
		if b.clock.Now() < b.full.Load() {
			return b.probesTaken
		}
	}
	return nil
}

// Stats reads the counts. That of a nil Breaker is zero.
func (b *Breaker) Stats() Stats {
	if b == nil {
		return Stats{}
	}
	now := b.clock.Now()
	s := Stats{
		Successes:           b.counts.Sum(countSuccess),
		Failures:            b.counts.Sum(countFailure),
		Throttled:           b.counts.Sum(countThrottled),
		Ignored:             b.counts.Sum(countIgnored),
		RejectedOpen:        b.counts.Sum(countOpen),
		RejectedProbesTaken: b.counts.Sum(countProbes),
		CallbackPanics:      b.panics.Load() + b.notices.Panics(),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.State, s.Since = b.load().state(), b.clock.Time(b.since)
	s.Trips, s.Reopens = b.trips, b.reopens
	switch s.State {
	case Closed:
		s.FailuresInARow = run(b.run.Load()).failures()
	case HalfOpen:
		s.ProbesOut = len(b.probes.out) - b.probes.overdue(now)
		s.ProbesSucceeded = b.succeeded
	case Open:
		if until := b.open.Load().until; now < until {
			s.RetryAt = b.clock.Time(until)
		} else {
			s.State, s.Since = HalfOpen, b.clock.Time(until)
		}
	}
	return s
}

// Inspect reports the breaker to a page or an exporter.
func (b *Breaker) Inspect() core.Report {
	r := core.Report{Kind: "circuit_breaker", Name: b.Name(), State: b.State().String()}
	if b == nil {
		return r
	}
	const (
		calls  = "surgewall.circuit_breaker.calls"
		states = "surgewall.circuit_breaker.state"
	)
	s := b.Stats()
	r.State, r.Since = s.State.String(), s.Since
	count := func(outcome string, n uint64) {
		r.Values = append(r.Values, core.Count(calls, "{call}", n).With("outcome", outcome))
	}
	count("success", s.Successes)
	count("failure", s.Failures)
	count("throttled", s.Throttled)
	count("ignored", s.Ignored)
	count("rejected", s.RejectedOpen+s.RejectedProbesTaken)
	for _, state := range []State{Closed, Open, HalfOpen} {
		var is int64
		if state == s.State {
			is = 1
		}
		r.Values = append(r.Values, core.Amount(states, "{circuit}", is).With("state", state.String()))
	}
	r.Settings = []core.Setting{
		{Name: "FailureThreshold", Value: b.cfg.FailureThreshold},
		{Name: "OpenFor", Value: b.cfg.OpenFor},
		{Name: "SuccessThreshold", Value: b.cfg.SuccessThreshold},
		{Name: "Probes", Value: b.cfg.Probes},
		{Name: "ProbeLease", Value: b.cfg.ProbeLease},
	}
	return r
}
