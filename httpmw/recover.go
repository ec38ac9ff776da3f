package httpmw

import (
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"runtime/debug"

	"github.com/surgewall/surgewall/core"
)

// RecoverConfig configures Recover. Every RecoverConfig is valid.
type RecoverConfig struct {
	// OnPanic hears of each panic, with its value and the stack on which it
	// began. It runs before the answer, on the goroutine of the handler, so
	// concurrently with others, and must not write an answer itself. If it
	// panics, that panic is contained, and the first is logged as by default.
	//
	// Default: one record at slog.LevelError of slog.Default, with the request's
	// method, path and pattern, the value and the stack; nothing of its query,
	// headers or body. The value is what the program threw, and can have any of
	// those in it.
	OnPanic func(r *http.Request, v any, stack []byte)

	// Answer answers with status, where nothing was written yet; err is
	// core.ErrNoReturn. RefuseWithProblem is one. If it writes nothing or
	// panics, the answer is the default. It is called concurrently.
	//
	// Default: the status and its standard text, as http.Error writes it.
	Answer func(w http.ResponseWriter, r *http.Request, status int, err error)
}

// Recover answers for a handler that panicked, and tells of it. Put it outermost.
//
//   - If nothing was written yet, the answer is 500. Headers that were set further
//     in are gone: nobody is to cache a failure, or get a cookie of half a login.
//   - If something was, the answer cannot be taken back, and to end it in good
//     order would pass a part of it for the whole. So Recover panics with
//     http.ErrAbortHandler: the connection, or the stream of HTTP/2, is cut off,
//     and the client can tell. So it does where the connection was hijacked.
//   - http.ErrAbortHandler is not reported, and goes on as it is.
//   - runtime.Goexit is not stopped, and no answer is written.
//
// An informational status other than 101 is nothing written. To guards around
// Recover the request is a Failure with core.ErrNoReturn, also when it is cut off.
//
// The response writer is wrapped as Guard does it. The middleware is safe for
// concurrent use.
func Recover(cfg RecoverConfig) func(http.Handler) http.Handler {
	if cfg.OnPanic == nil {
		cfg.OnPanic = logPanic
	}
	if cfg.Answer == nil {
		cfg.Answer = refuseWithText
	}
	return func(next http.Handler) http.Handler {
		return &recoverer{RecoverConfig: cfg, link: linkTo(next), clock: newClock()}
	}
}

type recoverer struct {
	RecoverConfig
	link
	clock *guarded
}

func (h *recoverer) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.serve(w, r) }

func (h *recoverer) serve(w http.ResponseWriter, r *http.Request) (wasRefused bool) {
	rec, watched := h.clock.record(w, r)
	before := cloneHeader(w.Header())
	defer h.recover(rec, before)
	return h.call(watched, r) || rec.refused
}

// recover must be deferred itself. The stack below it is that of the panic.
func (h *recoverer) recover(rec *recorder, before http.Header) {
	thrown := recover()
	switch thrown {
	case nil:
		return // returned, or runtime.Goexit goes on
	case http.ErrAbortHandler:
		panic(thrown)
	}
	markThrown(rec.base)
	h.report(rec.request, thrown)
	if !h.answer(rec, before) {
		panic(http.ErrAbortHandler)
	}
}

func (h *recoverer) report(r *http.Request, thrown any) {
	stack := debug.Stack()
	defer func() {
		if recover() != nil {
			defer func() { _ = recover() }() // of a slog.Handler
			logPanic(r, thrown, stack)
		}
	}()
	h.OnPanic(r, thrown, stack)
}

func logPanic(r *http.Request, thrown any, stack []byte) {
	path := ""
	if r.URL != nil {
		path = r.URL.Path
	}
	slog.LogAttrs(r.Context(), slog.LevelError, "httpmw: a handler panicked",
		slog.String("method", r.Method), slog.String("path", path), slog.String("pattern", r.Pattern),
		slog.String("panic", fmt.Sprint(thrown)), slog.String("stack", string(stack)))
}

// answer reports whether the client gets an answer that is whole.
func (h *recoverer) answer(rec *recorder, before http.Header) (whole bool) {
	if rec.answered() {
		return false
	}
	defer func() {
		switch thrown := recover(); {
		case thrown == nil:
		case thrown == http.ErrAbortHandler || rec.answered():
			whole = false
		default:
			rec.answer(before, refuseWithText, http.StatusInternalServerError, core.ErrNoReturn)
		}
	}()
	whole = true
	rec.answer(before, h.Answer, http.StatusInternalServerError, core.ErrNoReturn)
	return whole
}

// answered reports whether the handler has written an answer, or may have.
func (rec *recorder) answered() bool { return rec.status != 0 || rec.copying }

// answer writes the answer in place of a handler that is done and wrote none, with
// the headers that there were before it.
func (rec *recorder) answer(before http.Header, write func(http.ResponseWriter, *http.Request, int, error), status int, err error) {
	rec.restore(before)
	write(rec, rec.request, status, err)
	if !rec.answered() {
		rec.restore(before)
		refuseWithText(rec, rec.request, status, err)
	}
}

func (rec *recorder) restore(before http.Header) {
	h := rec.Header()
	clear(h)
	maps.Copy(h, cloneHeader(before))
}

// cloneHeader is a deep copy, and costs nothing where there is none.
func cloneHeader(h http.Header) http.Header {
	if len(h) == 0 {
		return nil
	}
	return h.Clone()
}
