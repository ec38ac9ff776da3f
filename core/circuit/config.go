package circuit

import (
	"cmp"
	"time"

	"github.com/surgewall/surgewall/core"
)

// Config configures a Breaker. The zero Config is a good one.
type Config struct {
	// Name is the name in rejections, events and reports. Default: "breaker".
	Name string

	// FailureThreshold is how many failures in a row open the breaker, 1 to
	// 10000. A success between them starts the count anew; calls that were
	// throttled or ignored neither count nor interrupt. Default: 5.
	FailureThreshold int

	// OpenFor is how long the breaker refuses before it admits a probe.
	// Default: 30 s.
	OpenFor time.Duration

	// SuccessThreshold is how many probes must succeed to close the breaker,
	// 1 to 10000. Default: 3.
	SuccessThreshold int

	// Probes is how many probes may be out at the same time, 1 to 10000.
	// Default: SuccessThreshold.
	Probes int

	// ProbeLease is how long a probe occupies its place. One that is not
	// finished by then, because its permit was lost or its call hangs, makes
	// room for another; should it still end while the breaker is half-open,
	// its result counts. Default: OpenFor, but at least 10 s.
	ProbeLease time.Duration

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
	// OnStateChange, and KindRejected. Default: none.
	Observer core.Observer
}

const (
	maxThreshold  = 10_000
	minProbeLease = 10 * time.Second
)

func (c Config) withDefaults() Config {
	c.Name = cmp.Or(c.Name, "breaker")
	c.FailureThreshold = cmp.Or(c.FailureThreshold, 5)
	c.OpenFor = cmp.Or(c.OpenFor, 30*time.Second)
	c.SuccessThreshold = cmp.Or(c.SuccessThreshold, 3)
	c.Probes = cmp.Or(c.Probes, c.SuccessThreshold)
	c.ProbeLease = cmp.Or(c.ProbeLease, max(c.OpenFor, minProbeLease))
	return c
}

// check is given a Config with defaults. Probes is only reported for itself:
// where it was taken from a bad SuccessThreshold, that is the problem.
func (c Config) check() error {
	bad := core.Check("circuit.Config")
	count := func(field string, n int) {
		bad.If(n < 1 || n > maxThreshold, field, n, "must be 1 to 10000, or 0 for the default")
	}
	count("FailureThreshold", c.FailureThreshold)
	count("SuccessThreshold", c.SuccessThreshold)
	if c.Probes != c.SuccessThreshold {
		count("Probes", c.Probes)
	}
	bad.If(c.OpenFor < 0, "OpenFor", c.OpenFor, "must be above 0, or 0 for the default")
	bad.If(c.ProbeLease < 0, "ProbeLease", c.ProbeLease, "must be above 0, or 0 for the default")
	return bad.Err()
}
