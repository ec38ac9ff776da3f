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

	Slow uint64 // of these, those that took SlowCall or longer

	// Refused calls, by sentinel.
	RejectedOpen, RejectedProbesTaken, RejectedRamping uint64

	Trips     uint64 // changes from closed to open
	Reopens   uint64 // changes from half-open to open
	WouldTrip uint64 // how often it would have opened, but for MetricsOnly

	FailuresInARow  int // while closed: FailureThreshold of them open the breaker
	ProbesOut       int // while half-open: probes that hold a place
	ProbesSucceeded int // while half-open
	ProbesFailed    int // while half-open

	// While closed and with rates: the calls in the window, and of these those
	// that failed or were throttled, and those that were slow.
	WindowCalls, WindowFailures, WindowSlow uint64

	// RetryAt is, while open, when the breaker will admit a probe; while forced
	// open, when that ends; zero if it does not, and else.
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
	return b.name
}

// State is what the breaker would do with a call now. It changes nothing: a
// breaker whose open time is over is HalfOpen, and one that was forced open for a
// time that is over is as it was, though the change is told only when a call makes
// it. A nil Breaker is Closed.
func (b *Breaker) State() State {
	if b == nil {
		return Closed
	}
	s := b.load().state()
	switch {
	case s != Open && s != ForcedOpen || b.clock.Now() < b.open.Load().until:
		return s
	case s == Open:
		return HalfOpen
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s, _, _ = b.stateAt(b.clock.Now())
	return s
}

// stateAt is the state that a call at now finds, and since when; and if that is
// open, the time of that. The caller holds mu.
func (b *Breaker) stateAt(now int64) (s State, since int64, open *period) {
	s, since, open = b.load().state(), b.since, b.open.Load()
	if s == ForcedOpen && now >= open.until {
		s, since, open = b.below.state, open.until, b.below.period
	}
	if s == Open && now >= open.until {
		return HalfOpen, max(since, open.until), nil
	}
	if s != Open && s != ForcedOpen {
		open = nil
	}
	return s, since, open
}

// Ready reports whether Acquire would admit a call, without taking a probe's
// place. It is true during a ramp, since that admits some. A nil Breaker is ready.
func (b *Breaker) Ready() bool { return b.Refusal() == nil }

// Refusal is the *core.Rejection that Acquire would return now, or nil: see
// core.Refuser. It is nil during a ramp, and for a nil Breaker.
func (b *Breaker) Refusal() *core.Rejection {
	if b == nil {
		return nil
	}
	switch s := b.load().state(); s {
	case Open, ForcedOpen:
		if open := b.open.Load(); b.clock.Now() < open.until {
			return open.rejection
		}
		if s == ForcedOpen {
			b.mu.Lock()
			defer b.mu.Unlock()
			if _, _, open := b.stateAt(b.clock.Now()); open != nil {
				return open.rejection
			}
		}
	case HalfOpen:
		if b.clock.Now() < b.full.Load() {
			return b.probesTaken
		}
	}
	return nil
}

// Stats reads the counts and changes no state. That of a nil Breaker is zero.
func (b *Breaker) Stats() Stats {
	if b == nil {
		return Stats{}
	}
	now := b.clock.Now()
	ended := func(i int) uint64 { return b.counts.Sum(i) + b.late[i].Load() }
	s := Stats{
		Successes:           ended(countSuccess),
		Failures:            ended(countFailure),
		Throttled:           ended(countThrottled),
		Ignored:             ended(countIgnored),
		Slow:                ended(countSlow),
		RejectedOpen:        b.counts.Sum(countOpen),
		RejectedProbesTaken: b.counts.Sum(countProbes),
		RejectedRamping:     b.counts.Sum(countRamp),
		CallbackPanics:      b.panics.Load() + b.notices.Panics(),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	state, since, open := b.stateAt(now)
	s.State, s.Since = state, b.clock.Time(since)
	s.Trips, s.Reopens, s.WouldTrip = b.trips, b.reopens, b.wouldTrip
	switch {
	case open != nil:
		s.RetryAt = open.rejection.RetryAt
	case state != b.load().state(): // nothing is known of it yet
	case state.judges():
		s.FailuresInARow = run(b.run.Load()).failures()
		if w := b.settings.Load().window; w != nil {
			w.tick(now)
			t := w.tally()
			s.WindowCalls, s.WindowFailures, s.WindowSlow = t.total, t.bad, t.slow
		}
	case state == HalfOpen:
		s.ProbesOut = len(b.probes.out) - b.probes.overdue(now)
		s.ProbesSucceeded, s.ProbesFailed = b.succeeded, b.failed
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
	count("rejected", s.RejectedOpen+s.RejectedProbesTaken+s.RejectedRamping)
	settings := b.settings.Load()
	if settings.SlowCall > 0 {
		r.Values = append(r.Values, core.Count("surgewall.circuit_breaker.slow_calls", "{call}", s.Slow))
	}
	shown := []State{Closed, Open, HalfOpen}
	if s.State.forced() {
		shown = append(shown, s.State)
	}
	for _, state := range shown {
		var is int64
		if state == s.State {
			is = 1
		}
		r.Values = append(r.Values, core.Amount(states, "{circuit}", is).With("state", state.String()))
	}
	r.Settings = settings.report()
	return r
}

func (s *settings) report() (list []core.Setting) {
	set := func(name string, value any) { list = append(list, core.Setting{Name: name, Value: value}) }
	set("FailureThreshold", s.FailureThreshold)
	if s.rated() {
		set("FailurePercent", s.FailurePercent)
		set("SlowPercent", s.SlowPercent)
		set("SlowCall", s.SlowCall)
		set("Window", s.Window)
		set("WindowCalls", s.WindowCalls)
		set("MinCalls", s.MinCalls)
	}
	set("OpenFor", s.OpenFor)
	set("OpenGrowth", s.OpenGrowth)
	set("OpenMax", s.OpenMax)
	set("OpenJitter", s.OpenJitter)
	set("SuccessThreshold", s.SuccessThreshold)
	set("SuccessPercent", s.SuccessPercent)
	set("Probes", s.Probes)
	set("ProbeLease", s.ProbeLease)
	set("RampFor", s.RampFor)
	return list
}
