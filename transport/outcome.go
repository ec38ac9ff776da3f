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

// retryAfter is the wait that a Retry-After header asks for (RFC 9110, section
// 10.2.3: seconds, or a date), 0 if there is none, it is past, or it cannot be
// read. What is beyond a Duration is the longest one; how long to obey is for
// the receiver to say.
func retryAfter(h http.Header) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if v == "" {
		return 0
	}
	if strings.Trim(v, "0123456789") == "" {
		const most = uint64(math.MaxInt64 / time.Second)
		seconds, _ := strconv.ParseUint(v, 10, 64) // out of range: the greatest
		if seconds > most {
			return math.MaxInt64
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	return max(0, time.Until(at))
}
