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
	started time.Time
	left    time.Duration // until the request's deadline, when it started

	status  int // of the answer; 0 until there is one; 101 also for a hijack
	answer  core.Result
	refused bool // a guard further in refused the request
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
	return rec.base.Write(b)
}

// WriteString is there whatever the base has: it does what Write does.
func (rec *recorder) WriteString(s string) (int, error) {
	rec.note(http.StatusOK)
	return io.WriteString(rec.base, s)
}

// Unwrap is for http.ResponseController.
func (rec *recorder) Unwrap() http.ResponseWriter { return rec.base }

// markRefused notes that the request went no further than a guard inside.
func (rec *recorder) markRefused() { rec.refused = true }

// note takes the status of the answer, once, and judges it at that moment: a
// client that leaves afterwards does not undo a failure.
func (rec *recorder) note(status int) {
	if rec.status == 0 {
		rec.noteAt(status, time.Since(rec.started))
	}
}

func (rec *recorder) noteAt(status int, latency time.Duration) {
	rec.status = status
	rec.answer.Latency = max(1, latency) // 0 would mean that it is not known
	switch {
	case status == http.StatusTooManyRequests:
		rec.answer.Outcome = core.Throttled
	case status == http.StatusRequestTimeout:
		rec.answer.Outcome = core.Ignored
	case status < 500 || status == http.StatusNotImplemented:
		rec.answer.Outcome = core.Success
	default:
		rec.answer.Err = StatusError(status)
		rec.answer.Outcome = core.ClassifyLeft(rec.request.Context(), rec.answer.Err, rec.left)
	}
}

// result is how a request ended whose handler has returned.
func (rec *recorder) result() core.Result {
	if rec.status == 0 {
		rec.answer.Outcome = core.Success // net/http answers 200
	}
	left := errors.Is(rec.request.Context().Err(), context.Canceled)
	if left && rec.answer.Outcome == core.Success && rec.status != http.StatusSwitchingProtocols {
		rec.answer.Outcome = core.Ignored
	}
	return rec.answer
}

// abandon ends the permit of a handler that did not return; after one that
// did, the permit is empty and nothing happens. It must be deferred itself,
// because it recovers: there is no other way to tell http.ErrAbortHandler from
// the rest. It raises the panic again while the frames below are still there,
// so that whoever prints the stack sees where it began.
func (rec *recorder) abandon(p *core.Permit) {
	thrown := recover() // nil on return and on runtime.Goexit
	switch {
	case thrown == http.ErrAbortHandler && rec.refused:
		p.Cancel()
	case thrown == http.ErrAbortHandler:
		rec.answer.Outcome, rec.answer.Err = core.Ignored, nil
		p.Finish(rec.request.Context(), rec.answer)
	default:
		rec.answer.Outcome, rec.answer.Err = core.Failure, core.ErrNoReturn
		p.Finish(rec.request.Context(), rec.answer)
	}
	if thrown != nil {
		panic(thrown)
	}
}
