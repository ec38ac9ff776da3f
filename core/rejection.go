package core

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// Reason is why a guard refused. The set is closed: it is safe as an attribute
// of a metric.
type Reason uint8

// The reasons. Those of quota say that this caller asked for more than its
// share, those of capacity that nobody can be served now.
const (
	ReasonUnknown Reason = iota

	// Quota. The last two are not Retryable: no retry of the same call helps.
	RateLimited // a rate limit is used up
	NeverFits   // the cost is above what the limit can ever admit
	InvalidCost // the cost is negative

	// Capacity.
	CircuitOpen        // the breaker is open
	ProbesTaken        // the breaker is half-open and all its probes are out
	CircuitRamping     // the breaker has closed, and admits a part of the calls yet
	ConcurrencyLimited // a bulkhead is full
	Overloaded         // a queue is full, or the call was shed
	WaitTimeout        // the wait was longer than MaxWait, or than ctx allows
	Unavailable        // what is behind cannot be reached: dials fail
	NoBackend          // no backend can take the call
	RetryBudget        // so many retries are not paid for by successes
	Closed             // the component was closed

	reasonCount
)

var reasonNames = [reasonCount]string{
	ReasonUnknown:      "unknown",
	RateLimited:        "rate_limited",
	CircuitOpen:        "circuit_open",
	ProbesTaken:        "circuit_half_open",
	CircuitRamping:     "circuit_ramping",
	ConcurrencyLimited: "concurrency_limited",
	Overloaded:         "overloaded",
	WaitTimeout:        "wait_timeout",
	Unavailable:        "unavailable",
	NoBackend:          "no_backend",
	RetryBudget:        "retry_budget",
	Closed:             "closed",
	NeverFits:          "never_fits",
	InvalidCost:        "invalid_cost",
}

func (r Reason) String() string {
	if r < reasonCount {
		return reasonNames[r]
	}
	return reasonNames[ReasonUnknown]
}

// Quota reports whether the caller asked for more than its share, so that the
// answer in HTTP is 429; otherwise capacity is short, and it is 503.
func (r Reason) Quota() bool {
	switch r {
	case RateLimited, NeverFits, InvalidCost:
		return true
	default:
		return false
	}
}

// Retryable reports whether another try of the same call can succeed, now or
// later, even where nobody knows when.
func (r Reason) Retryable() bool { return r != NeverFits && r != InvalidCost }

// Rejection is the error of a guard that refused. It is what errors.As finds,
// and errors.Is finds its sentinel (limit.ErrLimited, circuit.ErrOpen, …) and
// what its Cause wraps.
//
// A Rejection is read-only once it was returned: a guard returns the same one
// to all callers while its state is unchanged, so that a flood of refusals does
// not allocate. It is safe for concurrent use.
type Rejection struct {
	// Guard is the configured name of the component that refused.
	Guard string

	// Reason is why, from a closed set.
	Reason Reason

	// Err is the sentinel of the component's package.
	Err error

	// RetryAt is the first instant at which another try can succeed. It is
	// zero when no instant is known, and when no retry can ever succeed.
	RetryAt time.Time

	// Cause is what led to the refusal, or nil: the error of a context that
	// ended the wait, the last failure to dial.
	Cause error

	// Detail is the state that led to it, for a reader: "total 10, used 10".
	Detail string
}

// RetryAfter is the time until RetryAt, at least 0. ok is false when no instant
// is known, and when no retry can ever succeed.
func (r *Rejection) RetryAfter() (d time.Duration, ok bool) {
	if r.RetryAt.IsZero() {
		return 0, false
	}
	return max(0, time.Until(r.RetryAt)), true
}

// Error says what was refused, by which component, why, and when to try again.
func (r *Rejection) Error() string {
	var b strings.Builder
	if r.Err != nil {
		b.WriteString(r.Err.Error())
	} else {
		b.WriteString(r.Reason.String())
	}
	b.WriteString(": refused by ")
	b.WriteString(strconv.Quote(r.Guard))
	if r.Detail != "" {
		b.WriteString(" (")
		b.WriteString(r.Detail)
		b.WriteString(")")
	}
	if d, ok := r.RetryAfter(); ok {
		b.WriteString(": retry after ")
		b.WriteString(readable(d).String())
	}
	if r.Cause != nil {
		b.WriteString(": ")
		b.WriteString(r.Cause.Error())
	}
	return b.String()
}

// Is makes errors.Is find the sentinel.
func (r *Rejection) Is(target error) bool { return r.Err != nil && errors.Is(r.Err, target) }

// Unwrap makes errors.Is and errors.As find the cause.
func (r *Rejection) Unwrap() error { return r.Cause }

// ErrorType is the Reason's name. OpenTelemetry's HTTP instrumentation looks
// for this method when it sets error.type.
func (r *Rejection) ErrorType() string { return r.Reason.String() }

// readable is d without the digits that nobody reads.
func readable(d time.Duration) time.Duration {
	switch {
	case d >= time.Minute:
		return d.Round(time.Second)
	case d >= time.Second:
		return d.Round(time.Millisecond)
	default:
		return d.Round(time.Microsecond)
	}
}
