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

	// AllowZeroKey makes GuardBy admit the zero key, "" or 0, as a key like any
	// other. By default it is taken for a key that could not be told.
	AllowZeroKey bool
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
	write := cfg.write()
	return behind(gate{admit: func(w http.ResponseWriter, r *http.Request) (core.Permit, verdict) {
		p, err := g.Acquire(r.Context(), core.Call{})
		if err != nil {
			return core.Permit{}, refuse(w, r, err, write)
		}
		return p.Take(), admitted
	}})
}

func (cfg GuardConfig) write() func(http.ResponseWriter, *http.Request, int, error) {
	if cfg.Refuse == nil {
		return refuseWithText
	}
	return cfg.Refuse
}

// gate is what stands before a handler.
type gate struct {
	// admit asks for one request. Unless it lets the request in, it has
	// answered it.
	admit func(http.ResponseWriter, *http.Request) (core.Permit, verdict)

	// costAfter, if set, is what an admitted request cost in the end.
	costAfter func(*http.Request, Answer) int
}

// verdict is what a gate says to a request.
type verdict uint8

const (
	admitted verdict = iota // with a permit
	passed                  // without asking the guard
	refused                 // by the guard, and answered
	keyless                 // answered: the guard could not be asked
)

// guarded is a handler behind a gate.
type guarded struct {
	gate
	link
	epoch time.Time
}

func behind(g gate) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return &guarded{gate: g, link: linkTo(next), epoch: time.Now()}
	}
}

// link is the handler behind a middleware of this package.
type link struct {
	next  http.Handler
	inner server // next, if that is a middleware of this package too
}

// server is a Handler that tells whether a guard refused the request, so that
// the permits of all guards in front of that are cancelled, also of those that
// have no recorder to be told by.
type server interface {
	serve(http.ResponseWriter, *http.Request) (wasRefused bool)
}

func linkTo(next http.Handler) link {
	inner, _ := next.(server)
	return link{next, inner}
}

// call runs the handler.
func (l *link) call(w http.ResponseWriter, r *http.Request) (wasRefused bool) {
	if l.inner != nil {
		return l.inner.serve(w, r)
	}
	l.next.ServeHTTP(w, r)
	return false
}

func (g *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.serve(w, r) }

// serve is ServeHTTP, and tells a guard right around this one whether the
// request was refused, here or further in.
func (g *guarded) serve(w http.ResponseWriter, r *http.Request) (wasRefused bool) {
	p, v := g.admit(w, r)
	switch {
	case v == passed:
		return g.call(w, r)
	case v != admitted:
		return v == refused
	case p.WantsResult() || g.costAfter != nil:
		return g.watch(w, r, &p)
	}
	defer abandon(r, &p)
	wasRefused = g.call(w, r)
	if wasRefused {
		p.Cancel()
	} else {
		p.Done(r.Context(), core.Ignored)
	}
	return wasRefused
}

// watch is serve for a permit that wants the result, or a cost that is known
// only afterwards.
func (g *guarded) watch(w http.ResponseWriter, r *http.Request, p *core.Permit) (wasRefused bool) {
	rec, watched := g.record(w, r)
	defer rec.abandon(p)
	g.call(watched, r)
	rec.returned = true
	if rec.refused {
		p.Cancel()
	} else {
		p.Finish(r.Context(), rec.result())
	}
	return rec.refused
}

// newClock is for recorders that watch for something other than a guard.
func newClock() *guarded { return &guarded{epoch: time.Now()} }

// now is the time since the epoch, on the monotonic clock. It costs about half
// of time.Now.
func (g *guarded) now() time.Duration { return time.Since(g.epoch) }

// abandon finishes a permit whose handler did not return. After one that did,
// the permit is empty, and nothing happens.
func abandon(r *http.Request, p *core.Permit) {
	p.Finish(r.Context(), core.Result{Outcome: core.Failure, Err: core.ErrNoReturn})
}
