package transport

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/surgewall/surgewall/core"
)

// Outcome is what the status of a response says about the server that sent it:
//
//   - 408 and 429 are Throttled: it asks for less, or for later;
//   - 5xx is Failure, but for 501, which is an answer like 404;
//   - all else is Success: 4xx speaks of the request, 3xx and 101 are answers.
func Outcome(resp *http.Response) core.Outcome {
	switch code := resp.StatusCode; {
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout:
		return core.Throttled
	case code >= 500 && code != http.StatusNotImplemented:
		return core.Failure
	default:
		return core.Success
	}
}

// retryAfter is the wait that a Retry-After field asks for (RFC 9110, section
// 10.2.3: seconds, or a date). ok is false if there is none, or none that can be
// read; a date that is past is a wait of 0. What is beyond a Duration is the
// longest one; how long to obey is for the receiver to say.
func retryAfter(h http.Header) (d time.Duration, ok bool) {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if n, ok := digits(v); ok {
		return seconds(n), true
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0, false
	}
	return until(at, h), true
}

// until is the time from a response to an instant by the clock of whoever sent
// it, at least 0. Where the response says when it was made (RFC 9110, section
// 6.6.1) and how long it was kept since, a clock here that is wrong does no harm.
func until(at time.Time, h http.Header) time.Duration {
	made, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return max(0, time.Until(at))
	}
	return max(0, max(0, at.Sub(made))-age(h))
}

// age is for how long a response was kept by caches, by its Age field (RFC 9111,
// section 5.1): 0 if there is none, or none that can be read.
func age(h http.Header) time.Duration {
	first, _, _ := strings.Cut(h.Get("Age"), ",")
	n, _ := digits(strings.TrimSpace(first))
	return seconds(n)
}

// digits reads a number that is digits alone; one that is out of range is the
// greatest.
func digits(s string) (n int64, ok bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, _ = strconv.ParseInt(s, 10, 64)
	return n, true
}

// seconds is n of them, the longest Duration if they are more. n is at least 0.
func seconds(n int64) time.Duration {
	if n > int64(math.MaxInt64/time.Second) {
		return math.MaxInt64
	}
	return time.Duration(n) * time.Second
}
