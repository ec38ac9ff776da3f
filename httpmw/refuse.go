package httpmw

import (
	"encoding/json"
	"errors"
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

// refuse answers a request that was not admitted, by write, and reports
// whether that was a guard's doing. A request without a key was not refused by
// a guard, so it stays charged to those further out.
func refuse(w http.ResponseWriter, r *http.Request, err error, write func(http.ResponseWriter, *http.Request, int, error)) bool {
	rejection, rejected := errors.AsType[*core.Rejection](err)
	_, keyless := errors.AsType[*keyError](err)
	byGuard := rejected || !keyless
	if byGuard {
		markRefused(w)
	}
	status := http.StatusServiceUnavailable
	switch {
	case rejected:
		if rejection.Reason.Quota() {
			status = http.StatusTooManyRequests
		}
		if seconds := retryAfter(rejection); seconds > 0 {
			w.Header().Set("Retry-After", strconv.FormatInt(seconds, 10))
		}
	case keyless:
		status = keylessStatus(err)
	}
	write(w, r, status, err)
	return byGuard
}

// retryAfter is the value of Retry-After, or 0 for none.
func retryAfter(r *core.Rejection) int64 {
	d, ok := r.RetryAfter()
	switch {
	case ok:
		seconds := int64(d / time.Second)
		if d%time.Second > 0 {
			seconds++
		}
		return max(1, seconds)
	case !r.Reason.Retryable():
		return 0
	default:
		return 1
	}
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
	for w != nil {
		if rec, ok := w.(interface{ markRefused() }); ok {
			rec.markRefused()
		}
		around, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return
		}
		w = around.Unwrap()
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
	body, _ := json.Marshal(struct { // strings and a number always marshal
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail,omitempty"`
	}{"about:blank", http.StatusText(status), status, detail})
	h := w.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", "application/problem+json")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may have gone
}
