package circuit

import (
	"cmp"
	"math"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
)

// Config configures a Breaker. The zero Config is a good one: five failures in a
// row open the breaker for 30 s, and three probes that succeed close it.
//
// There are three conditions that open it, in any combination: failures in a row,
// the rate of failures, and the rate of slow calls. The rates are of the calls that
// ended within a Window, or of the last WindowCalls; a call counts when it ends.
type Config struct {
	// Name is the name in rejections, events and reports. Default: "breaker".
	Name string

	// FailureThreshold is how many failures in a row open the breaker, 1 to
	// 10000, or Off. A success between them starts the count anew; calls that
	// were throttled or ignored neither count nor interrupt. Default: 5.
	FailureThreshold int

	// FailurePercent is the part of the calls that have to fail, or be
	// throttled, to open the breaker: 1 to 100. Default: 0, no such condition.
	FailurePercent int

	// SlowPercent is the part of the calls that have to take SlowCall or longer
	// to open the breaker: 1 to 100. It goes with SlowCall. Default: 0, no such
	// condition.
	SlowPercent int

	// SlowCall is how long a slow call takes: to the first byte of the answer,
	// where whoever calls knows that, else to the end. A probe that is slow has
	// failed. Default: 0, no call is slow.
	SlowCall time.Duration

	// Window is over how much time the rates are taken, 10 ns to 24 h; it
	// moves on by tenths. Default: 10 s, if there is a rate and no WindowCalls.
	Window time.Duration

	// WindowCalls is over how many calls the rates are taken, 1 to 10000,
	// instead of a Window. Results take a lock then, for some nanoseconds.
	// Default: 0, the window is one of time.
	WindowCalls int

	// MinCalls is how many calls there must have been in the window for the
	// rates to be known, 1 to 10^9. Default: 20, but at most WindowCalls.
	MinCalls int

	// OpenFor is how long the breaker refuses before it admits a probe.
	// Default: 30 s.
	OpenFor time.Duration

	// OpenGrowth is by what OpenFor is multiplied with each time that probes
	// fail: 2 doubles it. Once the breaker has closed, it is OpenFor again.
	// 1 to 10. Default: 1.
	OpenGrowth float64

	// OpenMax is how long the breaker refuses at most, however OpenFor has grown.
	// Default: 10 times OpenFor.
	OpenMax time.Duration

	// OpenJitter is a part of the open time, 0 to 1: each is shorter by a random
	// share of that part, so that many breakers do not probe at once. Default: 0.
	OpenJitter float64

	// SuccessThreshold is how many probes decide, 1 to 10000. Default: 3.
	SuccessThreshold int

	// SuccessPercent is the part of SuccessThreshold probes that have to succeed
	// for the breaker to close, 1 to 100. It closes once so many have, and opens
	// again once so many cannot any more: by default, with the first that fails
	// or is throttled. Default: 100.
	SuccessPercent int

	// Probes is how many probes may be out at the same time, 1 to 10000.
	// Default: SuccessThreshold.
	Probes int

	// ProbeLease is how long a probe occupies its place. One that is not
	// finished by then, because its permit was lost or its call hangs, makes
	// room for another; should it still end while the breaker is half-open,
	// its result counts. Default: OpenFor, but at least 10 s and SlowCall.
	ProbeLease time.Duration

	// RampFor is how long it takes, after probes have closed the breaker, until
	// all calls are admitted: 10 % of them in its first third, then 25 %, then
	// 50 %. What a ramp refuses is refused with ErrRamping. Default: 0, all are
	// admitted at once.
	RampFor time.Duration

	// Uncounted leaves calls that end in success out of Stats, where nothing
	// else needs to know of them: it makes the breaker faster. It does not go
	// with the rates.
	Uncounted bool

	// OnSuccess, if set, hears the Result of each admitted call that ended in
	// Success. See OnFailure.
	OnSuccess func(core.Result)

	// OnFailure, if set, hears the Result of each admitted call that ended in
	// Failure or was Throttled, late ones included. It runs on the goroutine
	// that finishes the permit, after the result was booked and under no lock,
	// concurrently with others; a change of state that the result caused is
	// told after it. Only the call that it is told of waits for it. A panic in
	// it is contained, and counted in Stats.CallbackPanics.
	OnFailure func(core.Result)

	// OnStateChange, if set, hears each change of state, one at a time and in
	// order, so that from is always the to before it. It runs under no lock, on
	// the goroutine of a call that caused a change, after the change. While it
	// runs, no other call waits for it: later changes are told by the same
	// goroutine afterwards. If it does not return, changes beyond some hundreds
	// are merged, still in order and ending on the true state. It may call the
	// breaker. A panic in it is contained, and counted in Stats.CallbackPanics.
	OnStateChange func(from, to State)

	// Observer hears events of KindStateChanged, in the order of
	// OnStateChange, KindRejected and KindReconfigured. Default: none.
	Observer core.Observer
}

// Off, as a FailureThreshold, is none: failures in a row do not open the breaker.
const Off = -1

const (
	maxThreshold  = 10_000
	maxMinCalls   = 1_000_000_000
	maxTimeWindow = 24 * time.Hour
	minProbeLease = 10 * time.Second
)

// rated reports whether a condition is a rate.
func (c Config) rated() bool { return c.FailurePercent != 0 || c.SlowPercent != 0 }

func (c Config) withDefaults() Config {
	c.Name = cmp.Or(c.Name, "breaker")
	c.FailureThreshold = cmp.Or(c.FailureThreshold, 5)
	c.OpenFor = cmp.Or(c.OpenFor, 30*time.Second)
	c.OpenGrowth = cmp.Or(c.OpenGrowth, 1)
	if c.OpenMax == 0 {
		c.OpenMax = math.MaxInt64
		if c.OpenFor < math.MaxInt64/10 {
			c.OpenMax = 10 * c.OpenFor
		}
	}
	c.SuccessThreshold = cmp.Or(c.SuccessThreshold, 3)
	c.SuccessPercent = cmp.Or(c.SuccessPercent, 100)
	c.Probes = cmp.Or(c.Probes, c.SuccessThreshold)
	c.ProbeLease = cmp.Or(c.ProbeLease, max(c.OpenFor, minProbeLease, c.SlowCall))
	if c.rated() {
		if c.WindowCalls == 0 {
			c.Window = cmp.Or(c.Window, 10*time.Second)
		}
		c.MinCalls = cmp.Or(c.MinCalls, 20)
		if c.WindowCalls > 0 {
			c.MinCalls = min(c.MinCalls, c.WindowCalls)
		}
	}
	return c
}

// check is given a Config, and the same with defaults. Probes is only reported
// for itself: where it was taken from a bad SuccessThreshold, that is the problem.
func (c Config) check(given Config) error {
	bad := core.Check("circuit.Config")
	count := func(field string, n int) {
		bad.If(n < 1 || n > maxThreshold, field, n, "must be 1 to 10000, or 0 for the default")
	}
	percent := func(field string, n int) {
		bad.If(n < 0 || n > 100, field, n, "must be 1 to 100, or 0 for the default")
	}
	if c.FailureThreshold != Off {
		count("FailureThreshold", c.FailureThreshold)
	}
	percent("FailurePercent", c.FailurePercent)
	percent("SlowPercent", c.SlowPercent)
	bad.If(c.SlowCall < 0, "SlowCall", c.SlowCall, "must not be negative")
	bad.If(c.SlowPercent > 0 && c.SlowCall == 0, "SlowCall", nil, "must be set with SlowPercent")
	bad.If(c.SlowCall > 0 && c.SlowPercent == 0, "SlowPercent", nil, "must be set with SlowCall")
	bad.If(given.Window != 0 && (given.Window < windowSlots || given.Window > maxTimeWindow), "Window", given.Window, "must be 10ns to 24h, or 0 for the default")
	bad.If(given.WindowCalls < 0 || given.WindowCalls > maxThreshold, "WindowCalls", given.WindowCalls, "must be 1 to 10000, or 0 for a window of time")
	bad.If(given.Window != 0 && given.WindowCalls != 0, "Window", given.Window, "must be 0 with WindowCalls")
	bad.If(given.MinCalls < 0 || given.MinCalls > maxMinCalls, "MinCalls", given.MinCalls, "must be 1 to 1000000000, or 0 for the default")
	bad.If(given.WindowCalls > 0 && given.MinCalls > given.WindowCalls, "MinCalls", given.MinCalls, "must be at most WindowCalls")
	if !c.rated() {
		const needed = "needs a FailurePercent or a SlowPercent"
		bad.If(given.Window != 0, "Window", given.Window, needed)
		bad.If(given.WindowCalls != 0, "WindowCalls", given.WindowCalls, needed)
		bad.If(given.MinCalls != 0, "MinCalls", given.MinCalls, needed)
	}
	bad.If(c.FailureThreshold == Off && !c.rated(), "FailureThreshold", c.FailureThreshold, "must not be Off without a FailurePercent or a SlowPercent")
	const positive = "must be above 0, or 0 for the default"
	bad.If(c.OpenFor < 0, "OpenFor", c.OpenFor, positive)
	bad.If(!(c.OpenGrowth >= 1 && c.OpenGrowth <= 10), "OpenGrowth", c.OpenGrowth, "must be 1 to 10, or 0 for the default")
	bad.If(given.OpenMax < 0 || given.OpenMax != 0 && given.OpenMax < c.OpenFor, "OpenMax", given.OpenMax, "must be at least OpenFor, or 0 for the default")
	bad.If(!(c.OpenJitter >= 0 && c.OpenJitter <= 1), "OpenJitter", c.OpenJitter, "must be 0 to 1")
	count("SuccessThreshold", c.SuccessThreshold)
	percent("SuccessPercent", c.SuccessPercent)
	if c.Probes != c.SuccessThreshold {
		count("Probes", c.Probes)
	}
	bad.If(c.ProbeLease < 0, "ProbeLease", c.ProbeLease, positive)
	bad.If(c.RampFor < 0, "RampFor", c.RampFor, "must not be negative")
	bad.If(c.Uncounted && c.rated(), "Uncounted", c.Uncounted, "must be false with FailurePercent and SlowPercent")
	return bad.Err()
}

// settings is a Config in force. It is immutable, but for known.
type settings struct {
	Config
	window window // nil without rates
	simple bool   // nobody needs to know of a success but who counts failures in a row

	// Of SuccessThreshold probes so many have to succeed, and so many may fail.
	needed, allowed int

	// known is 1 more than the newest generation in which there have been
	// MinCalls, or 0. It says which, so that a result that is late does not make
	// the rates known of a generation that has begun meanwhile.
	known atomic.Uint64
}

// newSettings is for a Config that has been checked. It takes over the window of
// the settings before, if that is the same.
func newSettings(b *Breaker, cfg Config, before *settings) *settings {
	s := &settings{Config: cfg, simple: !cfg.rated() && cfg.OnSuccess == nil}
	s.needed = (cfg.SuccessThreshold*cfg.SuccessPercent + 99) / 100
	s.allowed = cfg.SuccessThreshold - s.needed
	switch {
	case !cfg.rated():
	case before != nil && before.rated() && before.Window == cfg.Window && before.WindowCalls == cfg.WindowCalls:
		s.window = before.window
	case cfg.WindowCalls > 0:
		s.window = newCountWindow(cfg.WindowCalls)
	default:
		s.window = newTimeWindow(&b.counts, cfg.Window)
	}
	return s
}

// flags are those of a word while calls are admitted.
func (s *settings) flags() word {
	if s.SlowCall > 0 {
		return timed
	}
	return 0
}

// exceeded is why the calls of a window open the breaker, and how many of them do;
// "" if they do not.
func (s *settings) exceeded(t tally) (why string, n uint64) {
	switch {
	case t.total < uint64(s.MinCalls):
	case s.FailurePercent > 0 && t.bad*100 >= t.total*uint64(s.FailurePercent):
		return whyFailureRate, t.bad
	case s.SlowPercent > 0 && t.slow*100 >= t.total*uint64(s.SlowPercent):
		return whySlowRate, t.slow
	}
	return "", 0
}
