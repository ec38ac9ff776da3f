package httpmw

import (
	"net/http"
	"time"

	"github.com/surgewall/surgewall/core"
)

// GuardConfig configures GuardWith and GuardByWith. Every GuardConfig is valid.
type GuardConfig struct {
	// Refuse answers a request that was not admitted, with status; Retry-After
	// is set where it applies. err is the guard's *core.Rejection, or whatever
	// else kept the request out: a failed guard, a key that could not be told.
	// The function must write an answer, since net/http takes silence for 200,
	// and should repeat nothing of the request or of err to the client. It is
	// called concurrently.
	//
	// Default: the status and its standard text, as http.Error writes it. For
	// a body in JSON, see RefuseWithProblem.
	Refuse func(w http.ResponseWriter, r *http.Request, status int, err error)
}

// Guard puts g in front of a handler: one request is one call. The guard is
// asked before the body is read, and what it admitted is finished when the
// handler has ended, whether by return, by panic or by runtime.Goexit. Panics
// go on with their value and their stack.
//
// A refusal is answered with 429 when the caller's quota is used up and with
// 503 when capacity is short (see core.Reason.Quota), also when the client has
// gone meanwhile. Retry-After says how many whole seconds, rounded up and at
// least 1, it is until the guard may admit again: 1 when the guard cannot
// tell, and nothing when no retry can succeed. An error of g that is not a
// *core.Rejection is 503 without Retry-After.
//
// The response writer is wrapped only if the permit wants the result, at the
// cost of one allocation, and then has the interfaces http.Flusher,
// http.Hijacker, io.ReaderFrom and http.Pusher where the server's own writer
// has them and only there; http.ResponseController reaches the rest. A permit
// that does not want the result costs no allocation.
//
// A nil g admits every request. The middleware is safe for concurrent use.
func Guard(g core.Guard) func(http.Handler) http.Handler {
	return GuardWith(g, GuardConfig{})
}

// GuardWith is Guard with a configuration.
func GuardWith(g core.Guard, cfg GuardConfig) func(http.Handler) http.Handler {
	if g == nil {
		return Chain()
	}
	return guardedBy(cfg, func(r *http.Request) (core.Permit, error) {
		return g.Acquire(r.Context(), core.Call{})
	})
}

// guarded is a handler behind a guard.
type guarded struct {
	// admit asks the guard. Its error is a *keyError if the guard could not
	// even be asked.
	admit  func(*http.Request) (core.Permit, error)
	refuse func(http.ResponseWriter, *http.Request, int, error)
	next   http.Handler
	inner  *guarded // next, if that is a guard too
	epoch  time.Time
}

func guardedBy(cfg GuardConfig, admit func(*http.Request) (core.Permit, error)) func(http.Handler) http.Handler {
	if cfg.Refuse == nil {
		cfg.Refuse = refuseWithText
	}
	return func(next http.Handler) http.Handler {
		inner, _ := next.(*guarded)
		return &guarded{admit: admit, refuse: cfg.Refuse, next: next, inner: inner, epoch: time.Now()}
	}
}

func (g *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.serve(w, r) }

// serve is ServeHTTP, and tells a guard right around this one whether the
// request was refused, here or further in.
func (g *guarded) serve(w http.ResponseWriter, r *http.Request) (refused bool) {
	p, err := g.admit(r)
	if err != nil {
		return refuse(w, r, err, g.refuse)
	}
	if p.WantsResult() {
		return g.watch(w, r, &p)
	}
	defer abandon(r, &p)
	refused = g.call(w, r)
	if refused {
		p.Cancel()
	} else {
		p.Done(r.Context(), core.Ignored)
	}
	return refused
}

// call runs what is behind the guard.
func (g *guarded) call(w http.ResponseWriter, r *http.Request) (refused bool) {
	if g.inner != nil {
		return g.inner.serve(w, r)
	}
	g.next.ServeHTTP(w, r)
	return false
}

// watch is serve for a permit that wants the result.
func (g *guarded) watch(w http.ResponseWriter, r *http.Request, p *core.Permit) (refused bool) {
	rec, watched := g.record(w, r)
	defer rec.abandon(p)
	g.call(watched, r)
	if rec.refused {
		p.Cancel()
	} else {
		p.Finish(r.Context(), rec.result())
	}
	return rec.refused
}

// now is the time since the epoch, on the monotonic clock. It costs about half
// of time.Now.
func (g *guarded) now() time.Duration { return time.Since(g.epoch) }

// abandon finishes a permit whose handler did not return. After one that did,
// the permit is empty, and nothing happens.
func abandon(r *http.Request, p *core.Permit) {
	p.Finish(r.Context(), core.Result{Outcome: core.Failure, Err: core.ErrNoReturn})
}
