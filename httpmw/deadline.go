package httpmw

import (
	"context"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/surgewall/surgewall/core"
)

// DeadlineConfig configures Deadline.
type DeadlineConfig struct {
	// Timeout is how long a request may take, from when it comes here: at least
	// 10 ms, so that guards further in find core.MinTime left. Required.
	Timeout time.Duration

	// Status is the answer to a request that took longer: 503 or 504. Default: 503.
	Status int

	// Header is the name of a header by which whoever calls says how much time
	// he has left, as a plain decimal number of HeaderUnits: "2", "0.25". It can
	// only make the time shorter than Timeout. What is not such a number, is
	// sent more than once, or has more than 9 digits before or after the point,
	// is ignored. A request with no time left is answered at once.
	//
	// Read it only if all who connect are trusted with it, or a proxy in front
	// sets or removes it. Others could ask, with too little time for anything,
	// until a breaker takes the service for a slow one.
	//
	// Default: none is read.
	Header string

	// HeaderUnit is the unit of Header: time.Millisecond for Envoy's
	// X-Envoy-Expected-Rq-Timeout-Ms. Default: time.Second.
	HeaderUnit time.Duration

	// Answer answers with Status in place of a handler that did not; err is
	// context.DeadlineExceeded. RefuseWithProblem is one. If it writes nothing,
	// the answer is the default. A panic in it is the handler's. It is called
	// concurrently.
	//
	// Default: the status and its standard text, as http.Error writes it.
	Answer func(w http.ResponseWriter, r *http.Request, status int, err error)
}

// Deadline gives each request a deadline. It is that of the request's context, so
// that pools, clients and databases which are given the context give up in time; an
// earlier one that the context has already stays.
//
// The handler runs where it would without, and is not cut off: nothing is
// buffered, and streams, hijacked connections and HTTP/2 work as ever. So a
// handler that does not look at its context takes as long as it takes. If it
// returns after the deadline and has written nothing, the answer is Status, and
// headers that were set further in are gone. An answer that it has begun is its
// own, also when it is late, and so is a panic.
//
// There is no Retry-After: nobody knows how much of its work the handler has done,
// and to do that again should be the client's own decision.
//
// To guards around Deadline its answer is a Failure with context.DeadlineExceeded,
// even if the client has given up meanwhile; unless, when the request came, less
// than core.MinTime was left by its context or Header. Then it is Ignored, and so
// is a 5xx of the handler's own after that deadline. A client that goes before the
// deadline is Ignored too, and nothing is written. A guard inside that wants the
// result learns the same of a handler that returns without an answer.
//
// The connection has no part in it: neither a body that is slow to come nor a
// client that is slow to read is cut off. Server.ReadTimeout and WriteTimeout are
// for that, and for single handlers http.ResponseController.
//
// The handler gets a copy of the request, as WithContext makes it. The Pattern
// that a mux finds for the copy is told to the original.
//
// The response writer is wrapped as Guard does it; with the context that makes six
// allocations. The error lists every bad field
// of cfg; errors.Is(err, core.ErrConfig). The middleware is safe for concurrent use.
func Deadline(cfg DeadlineConfig) (func(http.Handler) http.Handler, error) {
	bad := core.Check("httpmw.DeadlineConfig")
	bad.If(cfg.Timeout < minTimeout, "Timeout", cfg.Timeout, "must be at least "+minTimeout.String())
	if cfg.Status == 0 {
		cfg.Status = http.StatusServiceUnavailable
	}
	bad.If(cfg.Status != http.StatusServiceUnavailable && cfg.Status != http.StatusGatewayTimeout,
		"Status", cfg.Status, "must be 503 or 504, or 0 for 503")
	bad.If(cfg.HeaderUnit < 0, "HeaderUnit", cfg.HeaderUnit, "must be above 0, or 0 for 1s")
	if cfg.Header != "" {
		var problem string
		cfg.Header, problem = headerName(cfg.Header)
		bad.If(problem != "", "Header", cfg.Header, problem)
	} else {
		bad.If(cfg.HeaderUnit > 0, "HeaderUnit", cfg.HeaderUnit, "must be 0 without a Header")
	}
	if cfg.HeaderUnit == 0 {
		cfg.HeaderUnit = time.Second
	}
	if cfg.Answer == nil {
		cfg.Answer = refuseWithText
	}
	if err := bad.Err(); err != nil {
		return nil, err
	}
	return func(next http.Handler) http.Handler {
		return &deadlined{DeadlineConfig: cfg, link: linkTo(next), clock: newClock()}
	}, nil
}

const minTimeout = 2 * core.MinTime

type deadlined struct {
	DeadlineConfig
	link
	clock *guarded
}

func (h *deadlined) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.serve(w, r) }

func (h *deadlined) serve(w http.ResponseWriter, r *http.Request) (wasRefused bool) {
	timeout := h.timeout(r)
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	rec, watched := h.clock.record(w, r)
	before := cloneHeader(w.Header())
	left := min(timeout, rec.left)
	if left < core.MinTime {
		for outer := range recordersAround(w) {
			outer.doomed = ctx
		}
	}
	if left > 0 {
		wasRefused = h.run(watched, r, ctx) || rec.refused
		if rec.answered() || !deadlinePassed(ctx) {
			return wasRefused
		}
	}
	for outer := range recordersAround(w) {
		outer.missed = true
	}
	rec.answer(before, h.Answer, h.Status, context.DeadlineExceeded)
	return wasRefused
}

// run calls the handler with a copy of r that has ctx.
func (h *deadlined) run(w http.ResponseWriter, r *http.Request, ctx context.Context) (wasRefused bool) {
	within := r.WithContext(ctx)
	defer func() {
		if within.Pattern != r.Pattern {
			r.Pattern = within.Pattern
		}
	}()
	return h.call(w, within)
}

// timeout is how long r may take from now on; 0 or less if its caller has given up.
func (h *deadlined) timeout(r *http.Request) time.Duration {
	if h.Header == "" {
		return h.Timeout
	}
	values := r.Header[h.Header]
	if len(values) != 1 {
		return h.Timeout
	}
	told, ok := parseUnits(values[0], h.HeaderUnit)
	if !ok {
		return h.Timeout
	}
	return min(h.Timeout, told)
}

const maxUnitDigits = 9

// parseUnits is s, a decimal number without a sign or an exponent, times unit. It
// is rounded down, and the longest Duration if it would be longer.
func parseUnits(s string, unit time.Duration) (time.Duration, bool) {
	whole, part, pointed := strings.Cut(s, ".")
	n, ok := parseDigits(whole)
	if !ok {
		return 0, false
	}
	d := time.Duration(math.MaxInt64)
	if n <= int64(math.MaxInt64/unit) {
		d = time.Duration(n) * unit
	}
	if !pointed {
		return d, true
	}
	f, ok := parseDigits(part)
	if !ok {
		return 0, false
	}
	scale := time.Duration(1)
	for range part {
		scale *= 10
	}
	fraction := unit/scale*time.Duration(f) + unit%scale*time.Duration(f)/scale
	return d + min(fraction, math.MaxInt64-d), true
}

func parseDigits(s string) (int64, bool) {
	if s == "" || len(s) > maxUnitDigits || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}
