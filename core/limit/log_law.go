package limit

import (
	"sort"
	"time"

	"github.com/surgewall/surgewall/core"
)

// logLaw is the arithmetic of the sliding-window log: it remembers when units were
// taken, and the next may be taken when the one that is limit before it is a
// window ago. So in any window, wherever it begins, there are at most limit of
// them. A unit that waits is remembered with its turn, and turns are in order.
type logLaw struct {
	limit  int
	window int64 // ns
}

// logState is the units taken that still count. It must not be copied: a copy
// would share what it points to.
type logState struct {
	seen  int64 // the latest clock reading at which something was taken
	units *units
}

const (
	maxLogLimit = 1 << 16
	lastTurn    = int64(1) << 61 // no turn is later; a window more fits in the clock's range
)

var _ law[logState] = (*logLaw)(nil)

func newLogLaw(limit int, window time.Duration) *logLaw { return &logLaw{limit, int64(window)} }

func (l *logLaw) begin(s *logState, now int64) { *s = logState{seen: now} }

func (l *logLaw) most() int { return l.limit }

// turn is when n can be taken at the earliest, from now on.
func (l *logLaw) turn(u *units, now int64, n int) int64 {
	if u == nil || u.n == 0 {
		return now
	}
	turn := max(now, u.last())
	if over := u.n + n - l.limit; over > 0 {
		turn = max(turn, u.at(over-1)+l.window)
	}
	return turn
}

// held is the units of s, without those that count no more at now.
func (l *logLaw) held(s *logState, now int64) *units {
	if s.units == nil {
		s.units = new(units)
	}
	u := s.units
	for u.n > 0 && u.first()+l.window <= now {
		u.dropFirst(1)
		u.lost = 0
	}
	if u.n == 0 && len(u.ring) > 2*l.limit {
		u.ring, u.head = nil, 0 // from a greater limit
	}
	return u
}

// add appends n units. No more than the newest 2·limit are kept: those that the
// next ones depend on, and as many that will matter if others are given back; or
// as many as a greater limit has left.
func (l *logLaw) add(u *units, at int64, n int) {
	most := max(2*l.limit, len(u.ring))
	if over := u.n + n - most; over > 0 {
		u.dropFirst(over)
		u.lost += int64(over)
	}
	u.add(at, n, most)
}

// The token of a charge is its turn and its cost, see tokensOf.
func (l *logLaw) take(s *logState, now int64, n int, patience time.Duration) (t core.Token, turn int64, ok bool) {
	seen := max(now, s.seen) // a reading that is stale is as good as the one that is not
	turn = l.turn(s.units, seen, n)
	t = core.Token{A: uint64(turn), B: uint64(n) << 32}
	if turn == seen {
		turn = now
	}
	if turn-now > int64(patience) || turn > lastTurn {
		return core.Token{}, turn, false
	}
	l.add(l.held(s, seen), int64(t.A), n)
	s.seen = seen
	return t, turn, true
}

// giveBack forgets the units of a charge, wherever they are: what came later keeps
// its turn, and was spaced for more.
func (l *logLaw) giveBack(s *logState, _ int64, t core.Token, n int) {
	if u := s.units; u != nil && u.n > 0 {
		at := l.latest(u)
		l.restore(u, at, u.remove(int64(t.A), n))
	}
}

// latest is when the units that u has lost were taken at the latest: before the
// first that it has, and a window before the one that is limit after them.
func (l *logLaw) latest(u *units) int64 {
	if u.n < l.limit || u.moved {
		return u.first()
	}
	return min(u.first(), u.at(l.limit-1)-l.window)
}

// restore brings back up to n of the units that u has lost.
func (l *logLaw) restore(u *units, at int64, n int) {
	n = int(min(int64(n), u.lost))
	u.lost -= int64(n)
	u.addFirst(at, n, max(2*l.limit, len(u.ring)))
}

// refund forgets the newest units.
func (l *logLaw) refund(s *logState, now int64, n int) {
	u, now := s.units, max(now, s.seen)
	for steps := 0; u != nil && n > 0 && u.n > 0; steps++ {
		// Once all were replaced, each is a window after the one that is limit before
		// it, and to replace limit of them is to shift all by a window.
		if rounds := min(int64(n/l.limit), u.lost/int64(l.limit), (u.first()-now)/l.window); rounds > 0 && steps >= u.n && !u.moved {
			u.shift(-rounds * l.window)
			u.lost -= rounds * int64(l.limit)
			n -= int(rounds) * l.limit
			continue
		}
		if u.moved && steps >= 2*l.limit {
			return // they come from before a change, and there can be any number: so much is not given back
		}
		at := l.latest(u)
		u.n--
		l.restore(u, at, 1)
		n--
	}
}

// charge takes units one by one, each at the turn that it would have.
func (l *logLaw) charge(s *logState, now int64, n int) {
	s.seen = min(max(now, s.seen), lastTurn)
	u := l.held(s, s.seen)
	if free := min(n, l.limit-u.n); free > 0 {
		l.add(u, l.turn(u, s.seen, 1), free)
		n -= free
	}
	for steps := 0; n > 0; steps++ {
		at := l.turn(u, s.seen, 1)
		if at > lastTurn {
			return
		}
		// As in refund.
		if rounds := min(int64(n/l.limit), (lastTurn-u.last())/l.window); rounds > 0 && steps >= 2*l.limit {
			u.shift(rounds * l.window)
			u.lost += rounds * int64(l.limit)
			n -= int(rounds) * l.limit
			continue
		}
		l.add(u, at, 1)
		n--
	}
}

func (l *logLaw) peek(s *logState, now, start int64, n int) Decision {
	seen := max(start, s.seen)
	d := Decision{Limit: l.limit, Window: time.Duration(l.window), ResetAfter: time.Duration(start - now)}
	room := l.limit
	if u := s.units; u != nil && u.n > 0 {
		if last := u.last(); last+l.window > seen {
			d.ResetAfter = time.Duration(last + l.window - now)
		}
		room -= u.since(seen - l.window)
		if u.last() > seen {
			room = 0
		}
	}
	if start == now {
		d.Remaining = max(0, room)
	}
	switch {
	case n < 0 || n > l.limit:
		d.RetryAfter = Never
	case n == 0:
		d.OK = true
	default:
		turn := l.turn(s.units, seen, n)
		if d.OK = turn == seen && start == now; d.OK {
			d.Remaining -= n
		} else {
			d.RetryAfter = time.Duration(turn - now)
		}
	}
	return d
}

func (l *logLaw) idle(s *logState, now int64) bool {
	return s.units == nil || s.units.n == 0 || s.units.last()+l.window <= now
}

// convert keeps the times of units that still count. See moved for what becomes of
// them.
func (l *logLaw) convert(s *logState, c change[logState]) {
	from, before, after := c.from.(*logLaw), max(c.at, c.paused), max(c.at, c.till)
	old := s.units
	s.seen, s.units = after, nil
	if old == nil {
		return
	}
	first := old.n - old.since(before-from.window)
	if first == old.n {
		return
	}
	u := l.held(s, after)
	u.grow(old.n-first, old.n)
	for i := first; i < old.n; i++ {
		l.add(u, l.moved(old.at(i), c), 1)
	}
	// With a greater limit, the next units depend on more of those before.
	if first == 0 {
		u.lost = old.lost
	}
	u.moved = u.lost > 0
	l.restore(u, u.first(), max(0, 2*l.limit-u.n))
	l.held(s, after)
}

// moved is a time after a change. A pause is no time: as long as something was ago
// before, it is after. If the window gets shorter, it is as great a part of a
// window ago, so nothing counts for less than it would have; if it gets longer,
// all is counted from when it was. For turns to come, see shifted.
func (l *logLaw) moved(at int64, c change[logState]) int64 {
	from := c.from.(*logLaw)
	before, after := max(c.at, c.paused), max(c.at, c.till)
	if at > before {
		return min(satAdd(after, shifted(at-before, from.limit, l.limit, from.window, l.window)), lastTurn)
	}
	ago := before - at
	if l.window < from.window {
		ago -= scaled(ago, uint64(from.window-l.window), uint64(from.window))
	}
	return after - ago
}

func (l *logLaw) retime(t core.Token, turn int64, c change[logState]) (core.Token, int64) {
	t.A = uint64(l.moved(int64(t.A), c))
	if turn > c.at {
		turn = int64(t.A)
	}
	return t, turn
}

// units is times in order, in a ring that grows up to a limit.
type units struct {
	ring    []int64
	head, n int
	lost    int64 // older units that are not remembered, and may still count
	moved   bool  // those were taken by another law
}

func (u *units) at(i int) int64 {
	if i += u.head; i >= len(u.ring) {
		i -= len(u.ring)
	}
	return u.ring[i]
}

func (u *units) set(i int, at int64) {
	if i += u.head; i >= len(u.ring) {
		i -= len(u.ring)
	}
	u.ring[i] = at
}

func (u *units) first() int64 { return u.at(0) }
func (u *units) last() int64  { return u.at(u.n - 1) }

func (u *units) dropFirst(n int) {
	if u.head += n; u.head >= len(u.ring) && n > 0 {
		u.head -= len(u.ring)
	}
	u.n -= n
}

// grow makes room for n more; there are at most most then.
func (u *units) grow(n, most int) {
	if n += u.n; n <= len(u.ring) {
		return
	}
	ring := make([]int64, min(max(n, 2*len(u.ring), 4), most))
	for i := range u.n {
		ring[i] = u.at(i)
	}
	u.ring, u.head = ring, 0
}

// add appends n at a time that is none before the last.
func (u *units) add(at int64, n, most int) {
	u.grow(n, most)
	for range n {
		u.n++
		u.set(u.n-1, at)
	}
}

// addFirst is add for a time that is none after the first.
func (u *units) addFirst(at int64, n, most int) {
	u.grow(n, most)
	for range n {
		if u.head--; u.head < 0 {
			u.head += len(u.ring)
		}
		u.n++
		u.set(0, at)
	}
}

// since is how many are later than a time.
func (u *units) since(at int64) int {
	return u.n - sort.Search(u.n, func(i int) bool { return u.at(i) > at })
}

// remove takes out up to n that are of that time, and says how many.
func (u *units) remove(at int64, n int) int {
	first := sort.Search(u.n, func(i int) bool { return u.at(i) >= at })
	end := first
	for end < u.n && end-first < n && u.at(end) == at {
		end++
	}
	for i := end; i < u.n; i++ {
		u.set(first+i-end, u.at(i))
	}
	u.n -= end - first
	return end - first
}

func (u *units) shift(by int64) {
	for i := range u.n {
		u.set(i, u.at(i)+by)
	}
}
