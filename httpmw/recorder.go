package httpmw

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/surgewall/surgewall/core"
)

// recorder is a ResponseWriter that notes how a request is answered, for one
// guard. It is not reused for another request: a goroutine that outlives its
// handler would write into a stranger's answer.
//
// Like any ResponseWriter it is used by one goroutine at a time, but for
// informational answers, which pass by its fields.
type recorder struct {
	base    http.ResponseWriter
	request *http.Request
	guard   *guarded
	started time.Duration // when the request was admitted, on the guard's clock
	left    time.Duration // until the request's deadline, at that time

	bytes   int64         // of the body, as the base took them
	latency time.Duration // from started to the answer; 0 until there is one
	status  int32         // of the answer; 0 until there is one; 101 for a hijack
	outcome core.Outcome  // what the answer says
	refused bool          // a guard further in refused the request
	costed  bool          // costAfter was asked
	thrown  bool          // the handler panicked, and somebody further in answers for it
	copying bool          // ReadFrom has begun, and has not returned

	// What Deadline has told of itself.
	doomed context.Context // the handler's, if its caller left it less than core.MinTime
	missed bool            // the answer is Deadline's own

	returned bool // the handler did
}

// Header is the base's.
func (rec *recorder) Header() http.Header { return rec.base.Header() }

// WriteHeader passes every call on and notes the first that is an answer. It
// notes after the base has taken the status, since the base panics on a bad one.
func (rec *recorder) WriteHeader(status int) {
	rec.base.WriteHeader(status)
	if status >= 200 || status == http.StatusSwitchingProtocols {
		rec.note(status)
	}
}

// Write implies status 200.
func (rec *recorder) Write(b []byte) (int, error) {
	rec.note(http.StatusOK)
	n, err := rec.base.Write(b)
	rec.bytes += int64(n)
	return n, err
}

// WriteString is there whatever the base has: it does what Write does.
func (rec *recorder) WriteString(s string) (int, error) {
	rec.note(http.StatusOK)
	n, err := io.WriteString(rec.base, s)
	rec.bytes += int64(n)
	return n, err
}

// FlushError is for http.ResponseController. It is there whatever the base has,
// as a base without it may still have a writer below that can flush, and the
// header must not go out unnoticed.
func (rec *recorder) FlushError() error {
	if _, ok := rec.base.(http.Flusher); ok {
		rec.note(http.StatusOK) // in time for the latency
	}
	err := http.NewResponseController(rec.base).Flush()
	if !errors.Is(err, http.ErrNotSupported) {
		rec.note(http.StatusOK)
	}
	return err
}

// Unwrap is for http.ResponseController. Where the base cannot be hijacked but a
// writer below it can, it is the base with a Hijack that is noticed.
func (rec *recorder) Unwrap() http.ResponseWriter {
	w := rec.base
	for {
		if _, ok := w.(http.Hijacker); ok {
			break
		}
		around, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return rec.base
		}
		w = around.Unwrap()
	}
	if w == rec.base {
		return w
	}
	return hijackedBelow{rec}
}

// self is the recorder in a writer that has more interfaces.
func (rec *recorder) self() *recorder { return rec }

// note takes the status of the answer, once, and judges it at that moment: a
// client that leaves afterwards does not undo a failure.
func (rec *recorder) note(status int) {
	if rec.status == 0 {
		rec.noteAt(status, rec.guard.now()-rec.started)
	}
}

func (rec *recorder) noteAt(status int, latency time.Duration) {
	rec.status = int32(status)    // the base took it, so it is at most 999
	rec.latency = max(1, latency) // 0 would mean that it is not known
	switch {
	case rec.missed && rec.doomed == nil:
		rec.outcome = core.Failure // whether or not the client still waits
	case rec.missed || status == http.StatusRequestTimeout:
		rec.outcome = core.Ignored
	case status == http.StatusTooManyRequests:
		rec.outcome = core.Throttled
	case status < 500 || status == http.StatusNotImplemented:
		rec.outcome = core.Success
	case rec.doomed != nil && deadlinePassed(rec.doomed):
		rec.outcome = core.Ignored
	default:
		rec.outcome = core.ClassifyLeft(rec.request.Context(), StatusError(status), rec.left)
	}
}

// result is how a request ended whose handler has returned.
func (rec *recorder) result() core.Result {
	r := core.Result{Outcome: rec.outcome, Latency: rec.latency, Cost: rec.cost()}
	if rec.status == 0 {
		r.Outcome, r.Err = rec.silent()
	}
	switch {
	case rec.thrown:
		r.Outcome, r.Err = core.Failure, core.ErrNoReturn
	case rec.outcome != core.Failure:
	case rec.missed:
		r.Err = context.DeadlineExceeded
	default:
		r.Err = StatusError(rec.status)
	}
	if r.Outcome == core.Success && rec.status != http.StatusSwitchingProtocols && rec.clientLeft() {
		r.Outcome = core.Ignored
	}
	return r
}

// silent is the outcome of a handler that wrote nothing: net/http answers 200 for
// it. But who gives up when its deadline passes leaves the answer to whoever has
// set that.
func (rec *recorder) silent() (core.Outcome, error) {
	ctx := rec.request.Context()
	if !deadlinePassed(ctx) {
		return core.Success, nil
	}
	o := core.ClassifyLeft(ctx, context.DeadlineExceeded, rec.left)
	if o == core.Failure {
		return o, context.DeadlineExceeded
	}
	return o, nil
}

// deadlinePassed reports whether the deadline of ctx has passed, and nothing else
// has ended ctx before.
func deadlinePassed(ctx context.Context) bool {
	err := ctx.Err()
	return errors.Is(err, context.DeadlineExceeded) || err == nil && core.TimeLeft(ctx) <= 0
}

// clientLeft reports whether the client has gone, or whoever else may cancel
// the request has done so.
func (rec *recorder) clientLeft() bool {
	return errors.Is(rec.request.Context().Err(), context.Canceled)
}

// cost is what the request cost in the end, as a core.Result has it. It asks
// once: not again on the way out of a callback that panicked.
func (rec *recorder) cost() int {
	if rec.guard.costAfter == nil || rec.costed {
		return 0
	}
	rec.costed = true
	a := Answer{Status: int(rec.status), Bytes: rec.bytes, Returned: rec.returned}
	if rec.returned && a.Status == 0 {
		a.Status = http.StatusOK // net/http answers so
	}
	switch n := rec.guard.costAfter(rec.request, a); {
	case n > 0:
		return n
	case n == 0:
		return core.CostNothing
	default:
		return 0 // a mistake: as acquired
	}
}

// abandon ends the permit of a handler that did not return; after one that
// did, the permit is empty and nothing happens. It must be deferred itself,
// because it recovers: there is no other way to tell http.ErrAbortHandler from
// the rest. It raises the panic again while the frames below are still there,
// so that whoever prints the stack sees where it began.
func (rec *recorder) abandon(p *core.Permit) {
	thrown := recover() // nil on return and on runtime.Goexit
	ctx := rec.request.Context()
	if rec.guard.costAfter != nil {
		defer func() { p.Finish(ctx, rec.failed()) }() // it may not return either
	}
	switch {
	case thrown != http.ErrAbortHandler || rec.thrown:
		r := rec.failed()
		if !rec.returned {
			r.Cost = rec.cost()
		}
		p.Finish(ctx, r)
	case rec.refused:
		p.Cancel()
	default:
		p.Finish(ctx, core.Result{Outcome: core.Ignored, Latency: rec.latency, Cost: rec.cost()})
	}
	if thrown != nil {
		panic(thrown)
	}
}

func (rec *recorder) failed() core.Result {
	return core.Result{Outcome: core.Failure, Err: core.ErrNoReturn, Latency: rec.latency}
}
