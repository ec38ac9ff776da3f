package limit

import (
	"fmt"
	"math/bits"
	"time"
)

// Rate is how often something may happen: Tokens in every Per. It is two
// integers, so it is exact, and what no rate can be, such as NaN, cannot be
// written. Half a token a second is Per(1, 2*time.Second).
//
// The zero Rate is no rate; a Config with it is refused.
type Rate struct {
	Tokens int
	Per    time.Duration
}

// Per is n in every d: Per(3, time.Minute).
func Per(n int, d time.Duration) Rate { return Rate{n, d} }

// PerSecond is n in every second.
func PerSecond(n int) Rate { return Rate{n, time.Second} }

// PerMinute is n in every minute.
func PerMinute(n int) Rate { return Rate{n, time.Minute} }

// PerHour is n in every hour.
func PerHour(n int) Rate { return Rate{n, time.Hour} }

// PerDay is n in every 24 hours.
func PerDay(n int) Rate { return Rate{n, 24 * time.Hour} }

// String is "100 per 1s".
func (r Rate) String() string { return fmt.Sprintf("%d per %v", r.Tokens, r.Per) }

// problem says what is wrong with r, or "".
func (r Rate) problem() string {
	switch {
	case r.Tokens <= 0:
		return "must have Tokens above 0"
	case r.Per <= 0:
		return "must have a Per above 0"
	case r.tooFast():
		return "must be at most 10^9 per second"
	default:
		return ""
	}
}

// tooFast: more than a token a nanosecond is below what the clock can tell
// apart.
func (r Rate) tooFast() bool { return int64(r.Tokens) > int64(r.Per) }

// inOneSecond is the number of tokens that a second brings, at least 1: the
// default burst.
func (r Rate) inOneSecond() int {
	hi, lo := bits.Mul64(uint64(r.Tokens), uint64(time.Second))
	if hi >= uint64(r.Per) {
		return maxBurst
	}
	n, _ := bits.Div64(hi, lo, uint64(r.Per))
	return int(min(max(n, 1), maxBurst))
}
