package httpmw

import (
	"encoding/base64"
	"math/bits"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core/limit"
)

// Headers says by which headers answers tell of a rate limit. One legacy form
// and one draft can be combined: HeadersLegacy | HeadersDraft11.
type Headers uint8

const (
	// HeadersNone: by none.
	HeadersNone Headers = 0

	// HeadersLegacy: X-RateLimit-Limit, -Remaining and -Reset, the seconds,
	// rounded up, until the limit is as if unused.
	//
	// Clients expect one value of each. Where limits are nested, they are those
	// of the limit that refused; otherwise of the one with the least remaining,
	// and of these of the one with the latest reset.
	HeadersLegacy Headers = 1 << 0

	// HeadersLegacyUnix is HeadersLegacy with the time of the reset in
	// seconds since 1970, as GitHub's API has it.
	HeadersLegacyUnix Headers = 1 << 1

	// HeadersDraft10: RateLimit-Policy and RateLimit as in
	// draft-ietf-httpapi-ratelimit-headers-10, two lists of structured fields
	// (RFC 9651). Each limit that a request passes appends an item to both:
	//
	//	RateLimit-Policy: "burst";q=100;w=60, "daily";q=1000;w=86400
	//	RateLimit: "burst";r=37;t=23, "daily";r=12;t=1037
	//
	// q units are the policy's quota in each window of w seconds: of a bucket its
	// burst, and the time in which that comes. w is rounded up, so that a window
	// of half a second looks twice as long; r of them remain. t seconds, rounded
	// up, are the time until there is more where none remains, and Retry-After
	// where the request was refused. Otherwise they are as long as it takes to use
	// r at the policy's mean rate,
	// q in w: r/t must not invite to more than the limit lets through in the
	// long run, as section 8.5 warns. A limit without a window, a bulkhead's,
	// has neither w nor t, and qu="concurrent-requests".
	HeadersDraft10 Headers = 1 << 2

	// HeadersDraft11: as in draft-ietf-httpapi-ratelimit-headers-11. The
	// fields look as in -10. The draft now calls r the available quota and t
	// the effective window in which the client can use no more than that; what
	// is sent meets both readings.
	HeadersDraft11 Headers = 1 << 3

	headersLegacy = HeadersLegacy | HeadersLegacyUnix
	headersDraft  = HeadersDraft10 | HeadersDraft11
)

// Names of headers, as http.Header has them.
const (
	headerPolicy    = "Ratelimit-Policy"
	headerLimit     = "Ratelimit"
	legacyLimit     = "X-Ratelimit-Limit"
	legacyRemaining = "X-Ratelimit-Remaining"
	legacyReset     = "X-Ratelimit-Reset"
)

// standing is how things stand with one limit after a request, as headers tell
// it.
type standing struct {
	policy    string
	unit      string // "" for requests
	partition []byte
	quota     int64
	window    int64 // in seconds; 0 for none
	remaining int64
	spread    int64         // t, in seconds; negative for none
	reset     time.Duration // until the limit is as if unused
}

// standingOf reads d, which is what the limiter says to one more unit.
// retryAfter is the refused request's, else 0.
func standingOf(d limit.Decision, retryAfter int64) standing {
	s := standing{
		policy: printable(d.Policy), quota: integer(d.Limit), window: integer(wholeSeconds(d.Window)),
		remaining: integer(d.Remaining), spread: -1, reset: d.ResetAfter,
	}
	if d.OK {
		s.remaining = integer(d.Remaining + 1)
	}
	if d.Window <= 0 {
		s.window, s.unit = 0, "concurrent-requests"
		return s
	}
	switch {
	case retryAfter > 0:
		s.spread = retryAfter
	case s.remaining == 0 && d.RetryAfter != limit.Never:
		s.spread = wholeSeconds(d.RetryAfter)
	case s.remaining > 0 && s.quota > 0:
		hi, lo := bits.Mul64(uint64(min(s.remaining, s.quota)), uint64(d.Window))
		ns, rest := bits.Div64(hi, lo, uint64(s.quota)) // at most d.Window
		s.spread = wholeSeconds(time.Duration(ns))
		if rest > 0 && ns%uint64(time.Second) == 0 {
			s.spread++ // rounded up, to the last
		}
	}
	s.spread = min(s.spread, maxInteger)
	return s
}

// maxInteger is the greatest Integer of a structured field.
const maxInteger = 999_999_999_999_999

func integer[N int | int64](n N) int64 { return max(0, min(int64(n), maxInteger)) }

// appendPolicy appends the item of RateLimit-Policy.
func (s *standing) appendPolicy(b []byte) []byte {
	b = appendString(b, s.policy)
	b = append(b, ";q="...)
	b = strconv.AppendInt(b, s.quota, 10)
	if s.unit != "" {
		b = append(b, ";qu="...)
		b = appendString(b, s.unit)
	}
	if s.window > 0 {
		b = append(b, ";w="...)
		b = strconv.AppendInt(b, s.window, 10)
	}
	return s.appendPartition(b)
}

// appendLimit appends the item of RateLimit.
func (s *standing) appendLimit(b []byte) []byte {
	b = appendString(b, s.policy)
	b = append(b, ";r="...)
	b = strconv.AppendInt(b, s.remaining, 10)
	if s.spread >= 0 {
		b = append(b, ";t="...)
		b = strconv.AppendInt(b, s.spread, 10)
	}
	return s.appendPartition(b)
}

func (s *standing) appendPartition(b []byte) []byte {
	if s.partition == nil {
		return b
	}
	b = append(b, ";pk=:"...)
	b = base64.StdEncoding.AppendEncode(b, s.partition)
	return append(b, ':')
}

// appendString appends a String of RFC 9651, of printable ASCII.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}

// printable is s as a String can hold it: all but printable ASCII is
// percent-encoded.
func printable(s string) string {
	if isString(s) {
		return s
	}
	var b []byte
	for i := range len(s) {
		if c := s[i]; ' ' <= c && c <= '~' {
			b = append(b, c)
		} else {
			b = append(b, '%', "0123456789abcdef"[c>>4], "0123456789abcdef"[c&15])
		}
	}
	return string(b)
}

// isString reports whether s can be a String of RFC 9651 as it is.
func isString(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// teller writes the headers of one limit.
type teller struct {
	headers  Headers
	policies atomic.Pointer[[]policyItem] // the items written so far; read-only
}

// policyItem is an item of RateLimit-Policy, which seldom changes.
type policyItem struct {
	policy, unit  string
	quota, window int64
	item          string
}

// maxPolicyItems bounds what is kept of limits that change all the time.
const maxPolicyItems = 64

// tell adds s to the headers of an answer. refusedHere is whether it is this
// limit that refused the request.
func (t *teller) tell(h http.Header, s *standing, refusedHere bool) {
	if t.headers&headersDraft != 0 {
		t.draft(h, s)
	}
	if t.headers&headersLegacy != 0 {
		t.legacy(h, s, refusedHere)
	}
}

// draft appends an item to both fields, on the line that is there, since some
// clients read one line only.
func (t *teller) draft(h http.Header, s *standing) {
	values := make([]string, 2)
	policies, limits := h[headerPolicy], h[headerLimit]
	if values[0] = t.policyItem(s); len(policies) > 0 {
		values[0] = strings.Join(policies, ", ") + ", " + values[0]
	}
	var space [256]byte
	b := space[:0]
	for _, before := range limits {
		b = append(append(b, before...), ", "...)
	}
	values[1] = string(s.appendLimit(b))
	h[headerPolicy], h[headerLimit] = values[0:1:1], values[1:2:2]
}

// policyItem is the item of RateLimit-Policy, made anew only where it has not
// been needed before.
func (t *teller) policyItem(s *standing) string {
	if s.partition != nil {
		return string(s.appendPolicy(nil))
	}
	var kept []policyItem
	if p := t.policies.Load(); p != nil {
		kept = *p
	}
	for i := range kept {
		if k := &kept[i]; k.policy == s.policy && k.quota == s.quota && k.window == s.window && k.unit == s.unit {
			return k.item
		}
	}
	item := string(s.appendPolicy(nil))
	if len(kept) == maxPolicyItems {
		kept = nil
	}
	more := append(kept[:len(kept):len(kept)], policyItem{s.policy, s.unit, s.quota, s.window, item})
	t.policies.Store(&more) // who lost a race makes his item again
	return item
}

// legacy sets the three headers, unless those of a tighter limit are there.
func (t *teller) legacy(h http.Header, s *standing, refusedHere bool) {
	if refusedHere {
		s.reset = max(s.reset, time.Duration(min(s.spread, int64(maxJitter/time.Second)))*time.Second) // not before Retry-After
	}
	reset := integer(wholeSeconds(s.reset))
	if t.headers&HeadersLegacyUnix != 0 {
		at := time.Now().Add(s.reset)
		if reset = at.Unix(); at.Nanosecond() > 0 {
			reset++
		}
		reset = integer(reset)
	}
	if !refusedHere {
		remaining, ok := number(h[legacyRemaining])
		before, _ := number(h[legacyReset])
		if ok && (remaining < s.remaining || remaining == s.remaining && before >= reset) {
			return
		}
	}
	var space [48]byte // three numbers of 15 digits
	b := strconv.AppendInt(space[:0], s.quota, 10)
	first := len(b)
	b = strconv.AppendInt(b, s.remaining, 10)
	second := len(b)
	text := string(strconv.AppendInt(b, reset, 10))
	values := []string{text[:first], text[first:second], text[second:]}
	h[legacyLimit], h[legacyRemaining], h[legacyReset] = values[0:1:1], values[1:2:2], values[2:3:3]
}

// number is the value of a header with one line that is a number.
func number(values []string) (n int64, ok bool) {
	if len(values) != 1 {
		return 0, false
	}
	n, err := strconv.ParseInt(values[0], 10, 64)
	return n, err == nil
}
