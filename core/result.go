package core

import (
	"context"
	"errors"
	"math"
	"time"
)

// Outcome is what an admitted call says about what it called.
type Outcome uint8

const (
	// Ignored: nothing is learnt. The caller went away, or the call was of a
	// kind that says nothing. It is the zero value, so that an outcome which
	// nobody set teaches nobody anything.
	Ignored Outcome = iota
	// Success: it works.
	Success
	// Failure: it does not: an error of the other side, or no answer in time.
	Failure
	// Throttled: it works, and asked for less: HTTP 429.
	Throttled
)

func (o Outcome) String() string {
	switch o {
	case Ignored:
		return "ignored"
	case Success:
		return "success"
	case Failure:
		return "failure"
	case Throttled:
		return "throttled"
	default:
		return "unknown"
	}
}

// Result is how an admitted call ended.
type Result struct {
	Outcome Outcome

	// Err is the error that the call ended with, if any.
	Err error

	// Latency is the time to the first byte of the answer. 0 means the time
	// since Acquire, which a guard that needs it takes itself.
	Latency time.Duration

	// RetryAfter is how long the other side asked to be left alone. 0 means
	// that it did not ask.
	RetryAfter time.Duration

	// Cost is what the call really cost. 0 means as acquired; CostNothing that
	// it cost nothing after all.
	Cost int
}

// CostNothing is the Cost of a Result whose call was made and is to be free.
const CostNothing = -1

// ErrNoReturn is the Err of a Result whose call neither returned a value nor
// an error: it panicked, or exited its goroutine.
var ErrNoReturn = errors.New("core: the call panicked or exited its goroutine")

// MinTime is the time that a call must have had before its deadline for the
// deadline to say anything about the callee. A call begun with less left was
// doomed by its caller, and its missed deadline is Ignored.
const MinTime = 5 * time.Millisecond

const unlimited = time.Duration(math.MaxInt64)

// Classify is the Outcome of a call that was made under ctx, the caller's own
// context, and ended with err:
//
//   - nil is Success;
//   - an error that Mark marked is what it was marked as;
//   - a *Rejection is Ignored: the call never started;
//   - any error is Ignored when the caller has cancelled ctx;
//   - any other error is Failure, a deadline included, ours or the caller's,
//     and so is context.Canceled while ctx is live: somebody else gave up.
//
// Classify calls errors.Is and errors.As on err, so on code of err's type.
func Classify(ctx context.Context, err error) Outcome {
	return ClassifyLeft(ctx, err, unlimited)
}

// ClassifyLeft is Classify for a caller that noted TimeLeft(ctx) when the call
// began: a deadline missed with less than MinTime left is Ignored.
func ClassifyLeft(ctx context.Context, err error, left time.Duration) Outcome {
	if err == nil {
		return Success
	}
	if o, ok := Marked(err); ok {
		return o
	}
	if _, ok := errors.AsType[*Rejection](err); ok {
		return Ignored
	}
	switch ended := ctx.Err(); {
	case errors.Is(ended, context.Canceled):
		return Ignored
	case left < MinTime && (ended != nil || timedOut(err)):
		return Ignored
	}
	return Failure
}

// timedOut reports whether err is a missed deadline: a context's, or that of a
// socket, which often is noticed before the context that it was taken from.
func timedOut(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && t.Timeout()
}

// TimeLeft is the time until ctx's deadline, or the longest Duration if it has
// none. It reads the clock only if there is a deadline.
func TimeLeft(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return unlimited
	}
	return time.Until(deadline)
}

// Mark says how Classify is to take err: Mark(err, Success) for an answer such
// as "no such row", Mark(err, Throttled) for a quota of the other side. The
// text of err is unchanged, and errors.Is and errors.As see through the mark.
// A nil err stays nil.
func Mark(err error, o Outcome) error {
	if err == nil {
		return nil
	}
	return &marked{err, o}
}

// Marked is what Mark said of err, or of an error that it wraps.
func Marked(err error) (o Outcome, ok bool) {
	if m, ok := errors.AsType[*marked](err); ok {
		return m.outcome, true
	}
	return Ignored, false
}

type marked struct {
	error
	outcome Outcome
}

func (m *marked) Unwrap() error { return m.error }

// ErrorType is a short name for err's class, for use as OpenTelemetry's
// error.type: what an ErrorType method in err's chain says, which must be one
// of few constants; "canceled", "timeout" or "panic"; else "other". It is ""
// for a nil err, and never contains the error's text.
func ErrorType(err error) string {
	if err == nil {
		return ""
	}
	if t, ok := errors.AsType[interface {
		error
		ErrorType() string
	}](err); ok {
		return t.ErrorType()
	}
	switch {
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, ErrNoReturn):
		return "panic"
	case timedOut(err):
		return "timeout"
	}
	return "other"
}

// DoneErrLeft is DoneErr for a caller that noted TimeLeft(ctx) when the call
// began; see ClassifyLeft.
func (p *Permit) DoneErrLeft(ctx context.Context, err error, left time.Duration) {
	if p.finisher == nil {
		return
	}
	if NeverStarted(err) {
		p.Cancel()
		return
	}
	p.end(ctx, ClassifyLeft(ctx, err, left), err)
}

// NeverStarted reports whether err is or wraps the refusal of a guard further
// in, and nobody has marked it (see Mark): whoever holds a permit for the call
// cancels it. DoneErr does.
func NeverStarted(err error) bool {
	if err == nil {
		return false
	}
	if _, ok := Marked(err); ok {
		return false
	}
	_, ok := errors.AsType[*Rejection](err)
	return ok
}
