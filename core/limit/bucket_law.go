package limit

import (
	"math"
	"time"

	"github.com/surgewall/surgewall/core"
)

// bucketLaw is the law of token buckets and of leaky ones.
type bucketLaw struct {
	gcra
	shaped bool // leaky: what may wait, waits for all before it
}

type bucketState struct {
	tat      uint64
	returned uint32 // tokens given back so far; it wraps
}

var _ law[bucketState] = (*bucketLaw)(nil)

func (l *bucketLaw) begin(s *bucketState, now int64) { s.tat = l.units(now) }

func (l *bucketLaw) most() int { return l.burst }

func (l *bucketLaw) take(s *bucketState, now int64, n int, patience time.Duration) (t core.Token, turn int64, ok bool) {
	after, wait, ok := l.admit(s.tat, l.units(now), l.cost(n), l.patience(patience), l.shaped && patience > 0)
	if turn = now; wait > 0 {
		turn = l.instant(now, wait)
	}
	if !ok {
		return t, turn, false
	}
	s.tat = after
	return charged(after, n, s.returned), turn, true
}

func (l *bucketLaw) giveBack(s *bucketState, now int64, t core.Token, n int) {
	slack := l.full
	if l.shaped {
		slack = 0
	}
	if back := l.gcra.refund(s.tat, l.units(now), t, n, s.returned, slack); back > 0 {
		s.tat -= back
		s.returned += uint32(n)
	}
}

func (l *bucketLaw) refund(s *bucketState, now int64, n int) {
	at := l.units(now)
	before := at + l.debt(s.tat, at)
	s.tat = l.paid(s.tat, at, n)
	s.returned += l.tokens(before - s.tat)
}

func (l *bucketLaw) charge(s *bucketState, now int64, n int) {
	s.tat = l.owed(s.tat, l.units(now), n)
}

func (l *bucketLaw) peek(s *bucketState, now, start int64, n int) Decision {
	return l.gcra.peek(s.tat, now, start, n)
}

func (l *bucketLaw) idle(s *bucketState, now int64) bool { return l.debt(s.tat, l.units(now)) == 0 }

func (l *bucketLaw) convert(s *bucketState, c change[bucketState]) {
	s.tat = l.moved(s.tat, c)
}

// moved is a TAT before a change as one after it: as many tokens of debt.
func (l *bucketLaw) moved(tat uint64, c change[bucketState]) uint64 {
	from := c.from.(*bucketLaw)
	debt := from.debt(tat, from.units(max(c.at, c.paused)))
	return l.units(max(c.at, c.till)) + l.converted(debt, &from.gcra)
}

func (l *bucketLaw) retime(t core.Token, turn int64, c change[bucketState]) (core.Token, int64) {
	n := tokensOf(t)
	t = charged(l.moved(t.A, c), n, returnedBefore(t))
	if turn > c.at && turn != math.MaxInt64 {
		start := max(c.at, c.till)
		turn = l.turnAt(t.A, start, n, l.shaped)
	}
	return t, turn
}
