package limit

import (
	"math"
	"math/bits"
	"time"

	"github.com/surgewall/surgewall/core"
)

// gcra is the arithmetic of the generic cell rate algorithm (ITU-T I.371,
// virtual scheduling): a token bucket whose whole state is one instant, the
// theoretical arrival time (TAT). Each token pushes the TAT one interval ahead,
// from the present if it lies in the past; what lies between the present and
// the TAT is the debt, and a call is admitted while the debt is at most a full
// burst. A TAT in the past is the same as none: the bucket is full.
//
// Instants are counted in ticks, in 64 bits that wrap, and compared by their
// difference. A tick is 1/16 ns, or more where a full burst would not fit
// otherwise: 100 per day with a burst of a million still fits. Two instants
// compare rightly while they are less than 2^63 ticks apart, so a bucket may
// lie idle for 18 years before it refuses what it should not.
//
// The interval is a 64.64 fixed-point number of ticks, and a cost is rounded up
// to whole ticks once per call. So a limiter is never faster than its rate, and
// slower by at most 1/16 ns a call: 0.07 % at 10 million calls a second, and
// less at any slower rate, or if a call takes several tokens. The burst, rounded
// up likewise, comes at most two ticks early, and is never a token more.
//
// A gcra is immutable. Its methods are pure: whoever holds the TAT makes the
// change atomic.
type gcra struct {
	burst int
	whole uint64 // the interval, its whole ticks
	frac  uint64 // and its fraction, in 2^-64 ticks
	one   uint64 // the cost of 1 token, in ticks
	full  uint64 // the cost of a full burst: the most debt that Allow makes

	up, down uint8 // a tick is 2^(down-up) ns; one of them is 0
}

const (
	finest   = 4               // at most 2^4 ticks per ns
	maxSpan  = uint64(1) << 61 // a full burst and MaxWait together fit in it, in ticks
	maxDebt  = uint64(1) << 62 // no debt grows beyond it, in ticks
	maxBurst = 1<<30 - 1       // a cost fits in 30 bits of a core.Token
	forever  = time.Duration(math.MaxInt64)
)

// newGCRA is for a rate without a problem and a burst of 1 to maxBurst. Waits of
// up to maxWait are to fit.
func newGCRA(r Rate, burst int, maxWait time.Duration) gcra {
	// The interval in ns, rounded up in its last bit.
	tokens := uint64(r.Tokens)
	whole, rest := uint64(r.Per)/tokens, uint64(r.Per)%tokens
	frac, rest := bits.Div64(rest, 0, tokens)
	if rest != 0 {
		var carry uint64
		frac, carry = bits.Add64(frac, 1, 0)
		whole += carry
	}

	// The longest span in ns, below 2^96, decides how fine a tick can be.
	hi, lo := bits.Mul64(uint64(burst), whole+1)
	lo, carry := bits.Add64(lo, uint64(maxWait), 0)
	hi += carry
	length := bits.Len64(lo)
	if hi > 0 {
		length = 64 + bits.Len64(hi)
	}
	g := gcra{burst: burst}
	switch shift := min(finest, bits.Len64(maxSpan-1)-length); {
	case shift >= 0:
		g.up = uint8(shift)
		g.whole = whole<<g.up | frac>>(64-g.up)
		g.frac = frac << g.up
	default:
		g.down = uint8(-shift)
		g.whole = whole >> g.down
		g.frac = whole<<(64-g.down) | frac>>g.down
		if frac<<(64-g.down) != 0 {
			g.frac, carry = bits.Add64(g.frac, 1, 0)
			g.whole += carry
		}
	}
	g.one = g.cost(1)
	g.full = g.cost(burst)
	return g
}

// cost is n tokens in ticks, rounded up, and at most maxDebt. n is at least 0.
func (g *gcra) cost(n int) uint64 {
	over, ticks := bits.Mul64(uint64(n), g.whole)
	part, rest := bits.Mul64(uint64(n), g.frac)
	if rest != 0 {
		part++
	}
	ticks, carry := bits.Add64(ticks, part, 0)
	if over != 0 || carry != 0 {
		return maxDebt
	}
	return min(ticks, maxDebt)
}

// ticks is an instant of the clock, in ticks.
func (g *gcra) ticks(now int64) uint64 { return uint64(now << (g.up & 63) >> (g.down & 63)) }

// patience is a wait in ticks, rounded down, and at most what a debt may be.
func (g *gcra) patience(d time.Duration) uint64 {
	most := maxDebt - g.full
	t := uint64(max(d, 0))
	if t >= most>>g.up {
		return min(most, t>>g.down)
	}
	return t << g.up >> g.down
}

// instant is the first clock reading that is wait ticks after the reading now.
// For one TAT it is the same whenever it is asked for.
func (g *gcra) instant(now int64, wait uint64) int64 {
	base := now >> g.down << g.down
	ns := wait >> g.up
	if wait&(1<<g.up-1) != 0 {
		ns++
	}
	if g.down > 0 && bits.Len64(ns)+int(g.down) > 62 {
		return math.MaxInt64
	}
	return satAdd(base, int64(ns<<g.down))
}

// add is the TAT after a call of that cost at now, and how long from now the
// call has to wait, in ticks.
func (g *gcra) add(tat, now, cost uint64) (after, wait uint64) {
	if int64(tat-now) < 0 {
		tat = now
	}
	after = tat + cost
	if debt := after - now; debt > g.full {
		wait = debt - g.full
	}
	return after, wait
}

// debt is what the bucket lacks at now to be full, in ticks.
func (g *gcra) debt(tat, now uint64) uint64 { return uint64(max(0, int64(tat-now))) }

// available is the number of tokens that a call could take at now.
func (g *gcra) available(tat, now uint64) int {
	debt := g.debt(tat, now)
	if debt >= g.full {
		return 0
	}
	// The most tokens whose cost fits.
	low, high := 0, g.burst
	for low < high {
		if mid := low + (high-low+1)/2; g.cost(mid) <= g.full-debt {
			low = mid
		} else {
			high = mid - 1
		}
	}
	return low
}

// refund is how much of a charge can be given back at now without breaking the
// limit, if n of its tokens were not needed, in ticks: the TAT may be set back by
// it. Since the charge the TAT came to tat, and what had been given back came to
// returned tokens.
//
// Of the charge there is left what has not drained since: had it not been made,
// the bucket would have been full sooner, and full buckets do not fill. What
// others were given back may have come before this charge, and let it drain
// that much earlier. And while calls still wait that were admitted after this
// one, their times are fixed: what they took is kept, or somebody new would be
// given the same times again.
func (g *gcra) refund(tat, now uint64, t core.Token, n int, returned uint32) uint64 {
	after, taken := t.A, tokensOf(t)
	// What is kept costs no less than if it had been taken alone.
	charge := g.cost(taken) - g.cost(taken-n)
	// Each token by itself, for no sum of refunds was rounded up more.
	over, before := bits.Mul64(uint64(returned-returnedBefore(t)), g.one)
	if over != 0 {
		before = maxDebt
	}
	left := int64(after-now) - int64(min(before, maxDebt))
	if g.debt(tat, now) > g.full {
		left = min(left, int64(charge)-int64(tat-after))
	}
	return uint64(max(0, min(left, int64(charge))))
}

// charged is what a refund has to know of a charge: the TAT that it left, its
// tokens, and how many tokens others had been given back before.
func charged(after uint64, n int, returned uint32) core.Token {
	return core.Token{A: after, B: uint64(n)<<32 | uint64(returned)}
}

func tokensOf(t core.Token) int          { return int(t.B >> 32) }
func returnedBefore(t core.Token) uint32 { return uint32(t.B) }

func satAdd(a, b int64) int64 {
	if s := a + b; s >= a {
		return s
	}
	return math.MaxInt64
}
