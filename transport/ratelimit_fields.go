package transport

import (
	"net/http"
	"strings"
	"time"
)

// PauseAsked is how long a response asks its client to send nothing, 0 if it
// does not ask. It asks by
//
//   - Retry-After (RFC 9110, section 10.2.3: seconds, or a date) with a status of
//     429 or 503. With others the field means that one request, as with a
//     redirect, and is not heeded;
//   - RateLimit (draft-ietf-httpapi-ratelimit-headers-10), with any status, where
//     nothing remains of one of its policies: the longest of their t, in
//     seconds. If there is a Retry-After too, that is the answer.
//
// It also reads RateLimit as other drafts write it: as a Dictionary of remaining
// and reset, as in -07, and with a and w for r and t, as is proposed for a later
// one.
//
// The unit of t is the second. A server that lets a request through every 100 ms
// and says "r=0;t=1" after each gets one a second from whoever believes it. To
// heed refusals alone, set RateLimitConfig.Asked to a function that calls
// PauseAsked for the status 429 and 503 and else returns 0.
//
// A field that is malformed is ignored as a whole, and so is the RateLimit of a
// response that comes from a cache, by its Age. Fields in trailers are not
// looked at. A date is taken by the Date of the response, if it has one, and
// not by the clock here. An answer beyond a Duration is the longest one.
func PauseAsked(resp *http.Response) time.Duration {
	d, _ := pauseAsked(resp)
	return d
}

// PauseAskedSeconds is PauseAsked that, of a response without a readable
// Retry-After or RateLimit, also heeds the older RateLimit-Remaining and
// RateLimit-Reset, or X-RateLimit-Remaining and X-RateLimit-Reset, where reset
// is a number of seconds. The names are used for other things too: see
// PauseAskedUnix, and know the server.
func PauseAskedSeconds(resp *http.Response) time.Duration {
	d, told := pauseAsked(resp)
	if told {
		return d
	}
	for _, names := range [...][2]string{
		{"Ratelimit-Remaining", "Ratelimit-Reset"},
		{"X-Ratelimit-Remaining", "X-Ratelimit-Reset"},
	} {
		if reset, ok := exhausted(resp.Header, names[0], names[1]); ok {
			return seconds(reset)
		}
	}
	return 0
}

// PauseAskedUnix is PauseAskedSeconds for servers whose X-RateLimit-Reset is a
// time, in seconds since 1970, such as GitHub's.
func PauseAskedUnix(resp *http.Response) time.Duration {
	d, told := pauseAsked(resp)
	if told {
		return d
	}
	if reset, ok := exhausted(resp.Header, "X-Ratelimit-Remaining", "X-Ratelimit-Reset"); ok {
		const year9999 = 253402300799
		return until(time.Unix(min(reset, year9999), 0), resp.Header)
	}
	return 0
}

// exhausted is what a field for the reset says, if one for the remainder says
// that there is none.
func exhausted(h http.Header, remaining, reset string) (n int64, ok bool) {
	left, ok := digits(h.Get(remaining))
	if !ok || left > 0 || age(h) > 0 {
		return 0, false
	}
	return digits(h.Get(reset))
}

// pauseAsked is PauseAsked. told says that one of the fields was there and could
// be read.
func pauseAsked(resp *http.Response) (d time.Duration, told bool) {
	if code := resp.StatusCode; code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable {
		if d, told = retryAfter(resp.Header); told {
			return d, true
		}
	}
	lines := resp.Header["Ratelimit"]
	if len(lines) == 0 || age(resp.Header) > 0 {
		return 0, false
	}
	d, told = serviceLimit(strings.Join(lines, ", "))
	if d > 0 {
		if after, ok := retryAfter(resp.Header); ok {
			return after, true
		}
	}
	return d, told
}

// serviceLimit reads a RateLimit field: how long it is until something remains
// of every policy, 0 if it does now. ok is false if the field is malformed.
func serviceLimit(field string) (d time.Duration, ok bool) {
	if d, ok = limitItems(field); !ok {
		d, ok = limitEntries(field)
	}
	return d, ok
}

// limitItems reads a RateLimit field of draft 08 or later: a List of the names
// of policies.
func limitItems(field string) (longest time.Duration, ok bool) {
	var r, t, a, w bare
	valid, found := true, false
	s := structured{rest: field}
	ok = s.eachItem(func(key string, v bare) {
		switch key {
		case "r":
			r = v
		case "t":
			t = v
		case "a":
			a = v
		case "w":
			w = v
		}
	}, func(policy bare) {
		if r.kind == 0 { // else a and w are comments
			r, t = a, w
		}
		d, sound := untilReset(r, t)
		longest = max(longest, d)
		valid, found = valid && sound && policy.kind == bareString, true
		r, t, a, w = bare{}, bare{}, bare{}, bare{}
	})
	return longest, ok && valid && found
}

// limitEntries reads a RateLimit field of draft 07: a Dictionary for the policy
// that is nearest to its end. A List of draft 08 is not one, nor the reverse.
func limitEntries(field string) (d time.Duration, ok bool) {
	var remaining, reset bare
	s := structured{rest: field}
	if !s.eachEntry(func(key string, v bare) {
		switch key {
		case "remaining":
			remaining = v
		case "reset":
			reset = v
		}
	}) {
		return 0, false
	}
	return untilReset(remaining, reset)
}

// untilReset is how long to wait for a policy of which so much remains: 0 if
// something does, or if nobody knows. ok is false if the values do not fit.
func untilReset(remaining, reset bare) (d time.Duration, ok bool) {
	known := reset.kind != 0
	if remaining.kind != bareInteger || remaining.number < 0 ||
		known && (reset.kind != bareInteger || reset.number < 0) {
		return 0, false
	}
	if remaining.number > 0 || !known {
		return 0, true
	}
	return seconds(reset.number), true
}
