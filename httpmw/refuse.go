package httpmw

import (
	"encoding/json"
	"errors"
	"iter"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/surgewall/surgewall/core"
)

// StatusError is an HTTP status as an error: that of a Result whose handler
// answered with 5xx, and what a key function returns to choose the answer to a
// request without a key.
type StatusError int

func (e StatusError) Error() string {
	return "httpmw: status " + strconv.Itoa(int(e)) + " " + http.StatusText(int(e))
}

// ErrorType is the status in digits, as OpenTelemetry's HTTP conventions have
// it in error.type.
func (e StatusError) ErrorType() string { return strconv.Itoa(int(e)) }

// Refuse answers a request whose handler was refused by a guard of its own, a
// pool or a client behind a breaker say, as Guard answers one that it refuses:
// with 429 or 503, Retry-After and the standard text. Guards in front that want
// the result have their permits cancelled, as for a request that never started.
//
// err is or wraps the *core.Rejection; any other error is a plain 503, which is
// a failure to those guards. A handler should write its own answer if it has
// done work that counts, and if the limit that is used up is none of its
// client's, since Refuse says 429 then.
func Refuse(w http.ResponseWriter, r *http.Request, err error) {
	if _, ok := errors.AsType[*core.Rejection](err); !ok {
		refuseWithText(w, r, http.StatusServiceUnavailable, err)
		return
	}
	refuse(w, r, err, refuseWithText)
}

// refuse answers a request that was not admitted, by write. A request without
// a key was not refused by a guard, so it stays charged to those further out.
func refuse(w http.ResponseWriter, r *http.Request, err error, write func(http.ResponseWriter, *http.Request, int, error)) verdict {
	n := refusalOf(err)
	n.tell(w)
	write(w, r, n.status, err)
	return n.verdict
}

// refusal is how a request is answered that was not admitted.
type refusal struct {
	rejection  *core.Rejection // nil if there is none
	verdict    verdict         // refused or keyless
	status     int
	retryAfter int64 // in seconds; 0 for none
}

func refusalOf(err error) refusal {
	n := refusal{verdict: refused, status: http.StatusServiceUnavailable}
	rejection, rejected := errors.AsType[*core.Rejection](err)
	_, noKey := errors.AsType[*keyError](err)
	switch {
	case rejected:
		n.rejection, n.retryAfter = rejection, retryAfter(rejection, 0)
		if rejection.Reason.Quota() {
			n.status = http.StatusTooManyRequests
		}
	case noKey:
		n.verdict, n.status = keyless, keylessStatus(err)
	}
	return n
}

// tell does what comes before the answer: it lets guards further out know, and
// says when to come again.
func (n refusal) tell(w http.ResponseWriter) {
	if n.verdict == refused {
		markRefused(w)
	}
	if n.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(n.retryAfter, 10))
	}
}

// retryAfter is the value of Retry-After, or 0 for none. later is a time beyond
// what the rejection asks for.
func retryAfter(r *core.Rejection, later time.Duration) int64 {
	d, ok := r.RetryAfter()
	switch {
	case ok:
		return max(1, wholeSeconds(d+min(later, math.MaxInt64-d)))
	case !r.Reason.Retryable():
		return 0
	default:
		return wholeSeconds(time.Second + later)
	}
}

// wholeSeconds is d, rounded up.
func wholeSeconds(d time.Duration) int64 {
	seconds := int64(d / time.Second)
	if d%time.Second > 0 {
		seconds++
	}
	return seconds
}

// keylessStatus is what a key function chose, if it chose an error's status.
func keylessStatus(err error) int {
	if chosen, ok := errors.AsType[StatusError](err); ok && chosen >= 400 && chosen <= 599 {
		return int(chosen)
	}
	return http.StatusBadRequest
}

// markRefused tells the guards around w that want the result that the request
// went no further.
func markRefused(w http.ResponseWriter) {
	for rec := range recordersAround(w) {
		rec.refused = true
	}
}

// markThrown tells them that the handler panicked, whatever comes now.
func markThrown(w http.ResponseWriter) {
	for rec := range recordersAround(w) {
		rec.thrown, rec.refused = true, false
	}
}

// recordersAround are those that can be told, from the innermost on.
func recordersAround(w http.ResponseWriter) iter.Seq[*recorder] {
	return func(yield func(*recorder) bool) {
		for w != nil {
			switch around := w.(type) {
			case interface{ self() *recorder }:
				rec := around.self()
				if !yield(rec) {
					return
				}
				w = rec.base
			case interface{ Unwrap() http.ResponseWriter }:
				w = around.Unwrap()
			default:
				return
			}
		}
	}
}

func refuseWithText(w http.ResponseWriter, _ *http.Request, status int, _ error) {
	http.Error(w, http.StatusText(status), status)
}

// RefuseWithProblem is a GuardConfig.Refuse that answers with problem details
// in JSON. They say no more than the status does.
func RefuseWithProblem(w http.ResponseWriter, _ *http.Request, status int, _ error) {
	Problem(w, status, "")
}

// Problem answers a request with problem details in JSON, as RFC 9457 has
// them: of type about:blank, with the status, its standard text as the title,
// and detail if it is not empty. Headers set before are kept, but for
// Content-Length.
func Problem(w http.ResponseWriter, status int, detail string) {
	writeProblem(w, status, problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail})
}

// problem is problem details of RFC 9457.
type problem struct {
	Type     string   `json:"type"`
	Title    string   `json:"title"`
	Status   int      `json:"status"`
	Detail   string   `json:"detail,omitempty"`
	Violated []string `json:"violated-policies,omitempty"`
}

func writeProblem(w http.ResponseWriter, status int, p problem) {
	body, _ := json.Marshal(p) // strings and a number always marshal
	h := w.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", "application/problem+json")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may have gone
}
