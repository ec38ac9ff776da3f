package transport

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
)

// exchange is one call: what it holds, and what is known of it so far. Each of
// its methods that end it gives back what is held; ending it twice is harmless.
type exchange struct {
	ctx    context.Context // the caller's: it says whose fault an error is
	permit core.Permit
	lease  balance.Lease[*url.URL]
	leased bool
	left   time.Duration // until the caller's deadline, when it began
	result core.Result   // by the headers

	sending *requestBody // nil unless the request's body is watched
}

// wantsResult reports whether the outcome matters: a Balancer counts it.
func (x *exchange) wantsResult() bool { return x.leased || x.permit.WantsResult() }

// wantsEnd reports whether the end of the body matters.
func (x *exchange) wantsEnd() bool { return x.leased || x.permit.WantsEnd() }

// finish ends the call, last acquired first.
func (x *exchange) finish(r core.Result) {
	defer x.permit.Finish(x.ctx, r)
	x.lease.Finish(x.ctx, r)
}

// finishErr ends a call of req that ended with err. One that a guard further in
// refused, unless core.Mark says that it counts, and one that no server could
// have been sent never started.
func (x *exchange) finishErr(req *http.Request, err error) {
	if core.NeverStarted(err) || malformed(req) || unsupported(req, err) {
		x.cancel()
		return
	}
	x.finish(core.Result{Outcome: x.classify(err), Err: err})
}

// classify is what an error that ended the call says of the server.
func (x *exchange) classify(err error) core.Outcome {
	if x.sending.failed() {
		return core.Ignored
	}
	// The Timeout of an http.Client ends a call by a channel too, which the base
	// may notice before the deadline of the context has been.
	if x.left < core.MinTime && core.TimeLeft(x.ctx) <= 0 {
		if _, marked := core.Marked(err); !marked {
			return core.Ignored
		}
	}
	return core.ClassifyLeft(x.ctx, err, x.left)
}

// cancel ends a call that never started.
func (x *exchange) cancel() {
	defer x.permit.Cancel()
	x.lease.Cancel()
}

// body is a response body that ends the call. Read and Close may meet in it: the
// first to end the call decides how it ended.
type body struct {
	base  io.ReadCloser
	call  exchange
	ended atomic.Bool
}

// newBody moves the call into the body that ends it.
func newBody(base io.ReadCloser, call *exchange) io.ReadCloser {
	if _, ok := base.(io.WriterTo); ok {
		b := &bodyWriterTo{}
		b.init(base, call)
		return b
	}
	b := &body{}
	b.init(base, call)
	return b
}

func (b *body) init(base io.ReadCloser, call *exchange) {
	b.base = base
	b.call.ctx, b.call.left, b.call.result, b.call.sending = call.ctx, call.left, call.result, call.sending
	b.call.permit, b.call.lease = call.permit.Take(), call.lease.Take()
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.base.Read(p)
	if err != nil {
		b.end(err)
	}
	return n, err
}

// Close ends a call that is not at its end by what the headers said: that the
// caller has read enough is no failure. It decides so before the base is
// closed, since a Read that this interrupts would take it for a broken stream.
func (b *body) Close() error {
	if b.ended.CompareAndSwap(false, true) {
		defer b.call.finish(b.call.result)
	}
	return b.base.Close()
}

// end ends the call with the error that ended the body, io.EOF if it is whole.
func (b *body) end(err error) {
	if !b.ended.CompareAndSwap(false, true) {
		return
	}
	r := b.call.result
	if err != io.EOF { //nolint:errorlint // a reader at its end returns io.EOF itself
		r.Err = err
		if r.Outcome == core.Success {
			r.Outcome = b.call.classify(err)
		}
	}
	b.call.finish(r)
}

// bodyWriterTo is a body whose base is an io.WriterTo.
type bodyWriterTo struct{ body }

func (b *bodyWriterTo) WriteTo(w io.Writer) (int64, error) {
	to := &watchedWriter{w: w}
	n, err := b.base.(io.WriterTo).WriteTo(to)
	switch {
	case to.failed: // says nothing of the body, which is still to be closed
	case err == nil:
		b.end(io.EOF)
	default:
		b.end(err)
	}
	return n, err
}

// watchedWriter tells an error of the writer from one of the body.
type watchedWriter struct {
	w      io.Writer
	failed bool
}

func (w *watchedWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.failed = w.failed || err != nil || n < len(p)
	return n, err
}
