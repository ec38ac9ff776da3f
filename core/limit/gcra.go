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
// Instants are counted in units of 2^-8 to 2^-12 ns, in 64 bits that wrap, and
// compared by their difference. The lowest eight bits of an instant and of a cost
// are 0, so that a word that holds an instant has room for more: see regime.
// What is left is a tick, of 1 ns, or of less where tokens come faster than one
// in 4096 ns. It is more where they are seconds apart, and where a big burst
// would not fit otherwise: so there is always room for a debt of 131,072 tokens,
// for hours of it at ten million tokens a second and for days below 200,000, and
// for eight full bursts. More cannot be owed. What looks like twice that is a TAT
// long past, on which the clock has gained a lap: that takes 52 days idle at ten
// million a second, and two years at less than 200,000. In the last 64th of that
// time a bucket can refuse what it should not. The reverse would take a clock
// that runs backwards by as much, and a monotonic one does not.
//
// The interval is rounded up to ticks. So a limiter is never faster than its
// rate, and slower by at most 1/16 ns a token: 0.06 % at 10 million a second,
// and by at most 0.025 % up to 200,000. A rate whose interval is a whole number
// of ns is exact.
//
// A gcra is immutable. Its methods are pure: whoever holds the TAT makes the
// change atomic.
type gcra struct {
	burst int
	one   uint64 // the cost of 1 token: the interval
	full  uint64 // the cost of a full burst: the most debt that Allow makes

	up, down uint8 // a unit is 2^(down-up) ns; one of them is 0
}

const (
	coarse = 8  // a tick is 1 ns
	finest = 12 // a tick is 1/16 ns
	tick   = 1 << 8
	low    = tick - 1

	most     = 1<<57 - tick // the most debt that there can be, in units
	past     = 1 << 58      // what is as far ahead of a reading of the clock, is past
	maxBurst = 1<<30 - 1    // a cost fits in 30 bits of a core.Token
	forever  = time.Duration(math.MaxInt64)
	day      = 24 * time.Hour
)

// newGCRA is for a rate without a problem and a burst of 1 to maxBurst.
func newGCRA(r Rate, burst int) gcra {
	tokens := uint64(r.Tokens)
	whole, rest := uint64(r.Per)/tokens, uint64(r.Per)%tokens // the interval in ns
	frac, rest := bits.Div64(rest, 0, tokens)

	shift := max(coarse, min(finest, 20-bits.Len64(whole-1)))
	hi, lo := bits.Mul64(uint64(burst), whole+1)
	length := bits.Len64(lo)
	if hi > 0 {
		length = 64 + bits.Len64(hi)
	}
	shift = min(shift, 57-3-length, 57-17-bits.Len64(whole))

	g := gcra{burst: burst}
	var units, lost uint64
	if shift >= 0 {
		g.up = uint8(shift)
		units = whole<<g.up | frac>>(64-g.up)
		lost = frac << g.up
	} else {
		g.down = uint8(-shift)
		units = whole >> g.down
		lost = whole<<(64-g.down) | frac
	}
	if lost|rest != 0 {
		units++
	}
	g.one = roundUp(units)
	g.full = g.one * uint64(burst)
	return g
}

// cost is n tokens in units, at most the most. n is at least 0.
func (g *gcra) cost(n int) uint64 {
	if over, units := bits.Mul64(uint64(n), g.one); over == 0 {
		return min(units, most)
	}
	return most
}

func roundUp(units uint64) uint64 { return (units + low) &^ low }

// units is an instant of the clock, the tick that it lies in.
func (g *gcra) units(now int64) uint64 { return g.raw(now) &^ low }

func (g *gcra) raw(now int64) uint64 { return uint64(now << (g.up & 63) >> (g.down & 63)) }

// patience is a wait in units, rounded down, and at most what a debt may be.
func (g *gcra) patience(d time.Duration) uint64 {
	room, t := most-g.full, uint64(max(d, 0))
	switch {
	case g.down > 0:
		return min(room, t>>g.down)
	case t > room>>g.up:
		return room
	default:
		return t << g.up
	}
}

// instant is the first clock reading that is wait, whole ticks, after the
// reading now. For one TAT it is the same whenever it is asked for.
func (g *gcra) instant(now int64, wait uint64) int64 {
	wait -= min(wait, g.raw(now)&low) // so far is it into its tick
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

// span is wait in ns, rounded up.
func (g *gcra) span(wait uint64) time.Duration { return time.Duration(g.instant(0, wait)) }

// admit is the TAT after a call at now, and how long from now the call has to
// wait. It is admitted if that is at most patience; if not, wait is until it would
// not have to. Shaped, it waits until the bucket is full, which is empty seen as
// a leaky one, and is not admitted if it does not fit.
func (g *gcra) admit(tat, now, cost, patience uint64, shaped bool) (after, wait uint64, ok bool) {
	debt := g.debt(tat, now)
	after = now + debt + cost
	if debt+cost > g.full {
		wait = debt + cost - g.full
		return after, wait, wait <= patience && !shaped
	}
	if shaped {
		wait = debt
	}
	return after, wait, wait <= patience
}

// owed is the TAT when n were taken that may not be there.
func (g *gcra) owed(tat, now uint64, n int) uint64 {
	return now + min(g.debt(tat, now)+g.cost(n), most)
}

// paid is the TAT when n were given back that were taken at some time.
func (g *gcra) paid(tat, now uint64, n int) uint64 {
	debt := g.debt(tat, now)
	return now + debt - min(debt, g.cost(n))
}

// tokens is how many tokens a part of a debt is, rounded up, and at most 2^30: as
// many as any charge.
func (g *gcra) tokens(units uint64) uint32 {
	return uint32(min((units+g.one-1)/g.one, maxBurst+1))
}

// turn is how long from now a charge of n that left the TAT after has to wait.
func (g *gcra) turn(after, now uint64, n int, shaped bool) uint64 {
	debt := g.debt(after, now)
	if shaped {
		return debt - min(debt, g.cost(n))
	}
	return debt - min(debt, g.full)
}

// turnAt is turn as a clock reading, from start on. A debt as great as can be may
// have been greater: its turn never comes.
func (g *gcra) turnAt(after uint64, start int64, n int, shaped bool) int64 {
	at := g.units(start)
	if g.debt(after, at) == most {
		return math.MaxInt64
	}
	return g.instant(start, g.turn(after, at, n, shaped))
}

// debt is what the bucket lacks at now to be full. A TAT that is not ahead is
// past, and so is one that is too far ahead to be: the difference wraps.
func (g *gcra) debt(tat, now uint64) uint64 {
	if d := tat - now; d < past {
		return d
	}
	return 0
}

// available is the number of tokens that a call could take at now.
func (g *gcra) available(tat, now uint64) int {
	debt := g.debt(tat, now)
	if debt >= g.full {
		return 0
	}
	return int((g.full - debt) / g.one)
}

// refund is how much of a charge can be given back at now without breaking the
// limit, if n of its tokens were not needed: the TAT may be set back by it. Since
// the charge the TAT came to tat, and what had been given back came to returned
// tokens. slack is how much debt may be before calls wait.
//
// Of the charge there is left what has not drained since: had it not been made,
// the bucket would have been full sooner, and full buckets do not fill. What
// others were given back may have come before this charge, and let it drain
// that much earlier. And while calls still wait that were admitted after this
// one, their times are fixed: what they took is kept, or somebody new would be
// given the same times again.
func (g *gcra) refund(tat, now uint64, t core.Token, n int, returned uint32, slack uint64) uint64 {
	charge := g.cost(n)
	over, before := bits.Mul64(uint64(returned-returnedBefore(t)), g.one)
	if over != 0 {
		before = most
	}
	left := int64(g.debt(t.A, now)) - int64(min(before, most))
	if g.debt(tat, now) > slack {
		left = min(left, int64(charge)-int64(tat-t.A))
	}
	return uint64(max(0, min(left, int64(charge)))) &^ low
}

// converted is a debt by another rate in the units of g: as many tokens, rounded
// up.
func (g *gcra) converted(debt uint64, from *gcra) uint64 {
	if g.one == from.one {
		return debt // the same share of an interval
	}
	hi, lo := bits.Mul64(debt, g.one)
	if hi >= from.one {
		return most
	}
	units, rest := bits.Div64(hi, lo, from.one)
	if rest != 0 {
		units++
	}
	return min(roundUp(min(units, most)), most)
}

// peek is what a limiter with that TAT says to n at now. It is paused until start,
// or start is now.
func (g *gcra) peek(tat uint64, now, start int64, n int) Decision {
	at := g.units(start)
	d := Decision{
		Limit: g.burst, Window: g.span(g.full),
		ResetAfter: time.Duration(g.instant(start, g.debt(tat, at)) - now),
	}
	if start == now {
		d.Remaining = g.available(tat, at)
	}
	switch {
	case n < 0 || n > g.burst:
		d.RetryAfter = Never
	case n == 0:
		d.OK = true
	default:
		_, wait, ok := g.admit(tat, at, g.cost(n), 0, false)
		if d.OK = ok && start == now; d.OK {
			d.Remaining -= n
		} else {
			d.RetryAfter = time.Duration(g.instant(start, wait) - now)
		}
	}
	return d
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
