package limit

import (
	"math"
	"math/bits"
	"time"

	"github.com/surgewall/surgewall/core"
)

// windowLaw is the arithmetic of the sliding-window counter. Time is cut into
// windows; what was taken is counted in the one that is running and in the one
// before. At a fraction f of the running window, previous·(1-f) + current is the
// estimate of what was taken in the time of one window up to now; it never
// exceeds the limit. It falls steadily, by at most limit/window, also where a
// window ends.
//
// The whole state is one word: the number of the newest window that something was
// taken in, and the two counts. Where that window is yet to come, calls wait, and
// a new one gets its turn there or later, at the first instant at which the
// estimate leaves room for it: the state alone says when, so turns are in order,
// and a call has its turn at once or knows when it comes.
//
// What is charged beyond the limit is a debt. It is part of the current count,
// and each window passes on to the next what is above the limit.
//
// A windowLaw is immutable, and its methods are pure but for those that get a
// pointer to the state.
type windowLaw struct {
	limit  uint64
	window uint64 // ns
	origin int64  // the clock reading at which window 0 begins

	// 1/window in units of 2^-(64+shift), so that no call divides.
	recip uint64
	shift uint8

	// How the word is divided: the current count in its lowest bits, above it the
	// previous one, then the window's number, modulo 2^30 or less. What is left
	// above is the user's.
	prevAt, idAt, size uint8
	curMax, prevMax    uint64
	idMax              uint64
	reach              uint64 // how many windows ahead of the clock a state may be
}

// windowState is that word.
type windowState uint64

const (
	maxWindowLimit = 1<<20 - 1
	maxWindow      = 10_000 * time.Hour // below 2^55 ns: 64 of them are a quarter of the clock's range

	debtBits = 21 // of a word, for the current count

	// Of a word, the highest bits are left to SlidingWindow: a mark, and the
	// number of calls admitted modulo 2^6 or more, where the limit leaves room.
	markBits, callBits = 1, 6
)

var _ law[windowState] = (*windowLaw)(nil)

// newWindowLaw is for a limit of 1 to maxWindowLimit and a window of limit ns to
// maxWindow.
func newWindowLaw(limit int, window time.Duration) *windowLaw {
	l := &windowLaw{limit: uint64(limit), window: uint64(window)}

	l.shift = uint8(bits.Len64(l.window) - 1)
	l.recip = math.MaxUint64
	if one := uint64(1) << l.shift; one < l.window {
		l.recip, _ = bits.Div64(one, 0, l.window)
	}

	// A count takes as many bits as the limit, and the current one those of a debt
	// of twice any limit: what is owed stays owed when the limit shrinks, and when
	// it grows again. What is left of the word goes, in this order, to the window's
	// number, so that it seldom wraps, to the calls, and to the number again.
	count := bits.Len64(l.limit)
	left := 64 - markBits - debtBits - count
	id := min(left, 24)
	if left -= id; left > callBits {
		id = min(30, id+left-callBits)
	}
	l.prevAt = debtBits
	l.idAt = l.prevAt + uint8(count)
	l.size = l.idAt + uint8(id)
	l.curMax, l.prevMax, l.idMax = 1<<debtBits-1, 1<<count-1, 1<<id-1

	// A state that has been idle until its number comes round again looks as if it
	// were ahead, and limits for reach windows at most; so where numbers are few,
	// reach is short.
	l.reach = min(1<<max(6, id-16), (1<<61)/l.window)
	return l
}

// index is the number of the window that is running at now, and how long it has.
func (l *windowLaw) index(now int64) (id, offset uint64) {
	t := uint64(max(0, now-l.origin))
	hi, _ := bits.Mul64(t, l.recip)
	id = hi >> (l.shift & 63)
	offset = t - id*l.window
	if offset >= l.window { // the reciprocal was rounded down
		id, offset = id+1, offset-l.window
	}
	return id, offset
}

// reading is the clock reading at an offset into a window.
func (l *windowLaw) reading(id, offset uint64) int64 {
	hi, lo := bits.Mul64(id, l.window)
	lo, carry := bits.Add64(lo, offset, 0)
	if hi|carry != 0 {
		return math.MaxInt64
	}
	return satAdd(l.origin, int64(min(lo, math.MaxInt64)))
}

func (l *windowLaw) pack(id, prev, cur uint64) windowState {
	return windowState((id&l.idMax)<<(l.idAt&63) | prev<<(l.prevAt&63) | cur)
}

func (l *windowLaw) id(s windowState) uint64 { return uint64(s) >> (l.idAt & 63) & l.idMax }

func (l *windowLaw) counts(s windowState) (prev, cur uint64) {
	return uint64(s) >> (l.prevAt & 63) & l.prevMax, uint64(s) & l.curMax
}

// at is what a state says in the window id: by how many windows it is ahead of
// it, and the two counts, of id itself if it is not ahead.
func (l *windowLaw) at(s windowState, id uint64) (ahead, prev, cur uint64) {
	prev, cur = l.counts(s)
	if ahead = (l.id(s) - id) & l.idMax; ahead <= l.reach {
		return ahead, prev, cur
	}
	prev, cur = l.rolled(cur, (id-l.id(s))&l.idMax)
	return 0, prev, cur
}

// isPast reports whether at takes a state for one of a window before id.
func (l *windowLaw) isPast(s windowState, id uint64) bool { return (l.id(s)-id)&l.idMax > l.reach }

// rolled is the counts, of which cur was the current one, some windows later, at
// least one.
func (l *windowLaw) rolled(cur, windows uint64) (prev, rest uint64) {
	if windows > cur { // each pays at least 1 of a debt
		return 0, 0
	}
	left := cur - min(cur, (windows-1)*l.limit)
	prev = min(left, l.limit)
	return prev, left - prev
}

// has reports whether there is room for n when offset of the window has passed.
func (l *windowLaw) has(prev, cur, n, offset uint64) bool {
	if cur+n > l.limit {
		return false
	}
	free := l.limit - cur - n
	if prev <= free {
		return true
	}
	// prev·(1-f) <= free
	hi, lo := bits.Mul64(prev, l.window-offset)
	freeHi, freeLo := bits.Mul64(free, l.window)
	return hi < freeHi || hi == freeHi && lo <= freeLo
}

// room is the most that there is room for.
func (l *windowLaw) room(prev, cur, offset uint64) uint64 {
	hi, lo := bits.Mul64(prev, l.window-offset)
	counted, rest := bits.Div64(hi, lo, l.window)
	if counted += cur; rest != 0 {
		counted++
	}
	return l.limit - min(l.limit, counted)
}

// fit is where there is room for n at the earliest, if nothing else is taken: so
// many windows later, from an offset on. It also returns the two counts of that
// window.
func (l *windowLaw) fit(prev, cur, n uint64) (later, offset, prev2, cur2 uint64) {
	if cur > l.limit {
		later = (cur - 1) / l.limit
		prev, cur = l.limit, cur-later*l.limit
	}
	if cur+n > l.limit {
		later++
		prev, cur = cur, 0
	}
	switch free := l.limit - cur - n; {
	case prev <= free:
	case free == 0: // when the window ends
		later++
		prev, cur = cur, 0
	default:
		// window-offset <= free·window/prev
		hi, lo := bits.Mul64(free, l.window)
		left, _ := bits.Div64(hi, lo, prev)
		offset = l.window - left
	}
	return later, offset, prev, cur
}

// admit is the state after taking n at now, if that can be done at once. late says
// that it is now, and the state is ahead.
func (l *windowLaw) admit(s windowState, now int64, n uint64) (next windowState, ok, late bool) {
	id, offset := l.index(now)
	ahead, prev, cur := l.at(s, id)
	if ahead != 0 || !l.has(prev, cur, n, offset) {
		return s, false, ahead != 0
	}
	return l.pack(id, prev, cur+n), true, false
}

// place is the state after taking n as early as it fits, and its turn: now, if
// that is at once. ok is false if that is out of reach.
func (l *windowLaw) place(s windowState, now int64, n int) (next windowState, t core.Token, turn int64, ok bool) {
	id, offset := l.index(now)
	ahead, prev, cur := l.at(s, id)
	later, from, prev, cur := l.fit(prev, cur, uint64(n))
	if turn = now; ahead+later > 0 || from > offset {
		turn = l.reading(id+ahead+later, from)
	}
	id += ahead + later
	t = core.Token{A: uint64(s), B: uint64(n)<<32 | id&windowOf}
	return l.pack(id, prev, cur+uint64(n)), t, turn, ahead+later <= l.reach
}

// The token of a charge: in A the state before it, in B its cost (see tokensOf),
// the window that it was counted in, modulo 2^31, and a mark if nothing of it can
// be given back.
const (
	windowOf = 1<<31 - 1
	spent    = 1 << 31
)

// after is the state that a charge left.
func (l *windowLaw) after(t core.Token) windowState {
	before, in := windowState(t.A), t.B&windowOf
	prev, cur := l.counts(before)
	if passed := (in - l.id(before)) & l.idMax; passed != 0 {
		prev, cur = l.rolled(cur, passed)
	}
	return l.pack(in, prev, cur+uint64(tokensOf(t)))
}

func (l *windowLaw) begin(s *windowState, now int64) {
	id, _ := l.index(now)
	*s = l.pack(id, 0, 0)
}

func (l *windowLaw) most() int { return int(l.limit) }

func (l *windowLaw) take(s *windowState, now int64, n int, patience time.Duration) (t core.Token, turn int64, ok bool) {
	next, t, turn, ok := l.place(*s, now, n)
	if !ok || turn-now > int64(patience) {
		return core.Token{}, turn, false
	}
	*s = next
	return t, turn, true
}

// giveBack takes n out of the window that they were counted in, so all others are
// counted as if those had never been. What was counted in windows before those two
// is counted no more. If nothing has changed since, the state is the one before;
// otherwise, while calls wait, nothing is given back: their turns are fixed, and
// nobody is to be let in before them.
func (l *windowLaw) giveBack(s *windowState, now int64, t core.Token, n int) {
	if t.B&spent != 0 {
		return
	}
	taken, in := tokensOf(t), t.B&windowOf
	id, offset := l.index(now)
	if age := (id - in) & windowOf; age >= 2 && age <= windowOf/2 {
		return // since then the numbers may have come round
	}
	if *s == l.after(t) {
		if *s = windowState(t.A); n < taken {
			t.B = uint64(taken-n)<<32 | in
			*s = l.after(t)
		}
		return
	}
	if ahead, prev, cur := l.at(*s, id); !l.settled(ahead, prev, cur, offset) {
		return
	}
	prev, cur := l.counts(*s)
	switch (l.id(*s) - in) & l.idMax {
	case 0:
		cur -= min(cur, uint64(n))
	case 1:
		prev -= min(prev, uint64(n))
	}
	*s = l.pack(l.id(*s), prev, cur)
}

// settled reports whether nobody waits, and there is no debt.
func (l *windowLaw) settled(ahead, prev, cur, offset uint64) bool {
	return ahead == 0 && l.has(prev, cur, 0, offset)
}

func (l *windowLaw) refund(s *windowState, now int64, n int) { *s = l.refunded(*s, now, n) }

// refunded is the state with n off the newest counts. Of what calls that wait have
// made it forget, it gives nothing back.
func (l *windowLaw) refunded(s windowState, now int64, n int) windowState {
	id, _ := l.index(now)
	ahead, prev, cur := l.at(s, id)
	back := min(cur, uint64(n))
	cur -= back
	if ahead == 0 {
		prev -= min(prev, uint64(n)-back)
	}
	return l.pack(id+ahead, prev, cur)
}

func (l *windowLaw) charge(s *windowState, now int64, n int) { *s = l.charged(*s, now, n) }

func (l *windowLaw) charged(s windowState, now int64, n int) windowState {
	id, _ := l.index(now)
	ahead, prev, cur := l.at(s, id)
	return l.owe(id, ahead, prev, cur+uint64(n))
}

// owe is the state with a count that may be more than there are bits for: then it
// is that of the windows to come, up to reach.
func (l *windowLaw) owe(id, ahead, prev, cur uint64) windowState {
	if cur > l.curMax {
		ahead = min(ahead, l.reach)
		windows := min((cur-l.curMax-1)/l.limit+1, l.reach-ahead)
		if windows > 0 {
			prev = l.limit
		}
		ahead += windows
		cur = min(cur-windows*l.limit, l.curMax)
	}
	return l.pack(id+ahead, prev, cur)
}

func (l *windowLaw) peek(s *windowState, now, start int64, n int) Decision {
	id, offset := l.index(start)
	ahead, prev, cur := l.at(*s, id)
	d := Decision{
		Limit: int(l.limit), Window: time.Duration(l.window),
		ResetAfter: time.Duration(l.reset(start, id, ahead, prev, cur) - now),
	}
	if start == now && ahead == 0 {
		d.Remaining = int(l.room(prev, cur, offset))
	}
	switch {
	case n < 0 || uint64(n) > l.limit:
		d.RetryAfter = Never
	case n == 0:
		d.OK = true
	default:
		_, _, turn, _ := l.place(*s, start, n)
		if d.OK = turn == now; d.OK {
			d.Remaining -= n
		} else {
			d.RetryAfter = time.Duration(turn - now)
		}
	}
	return d
}

// reset is the clock reading, now or later, at which nothing is counted any more.
func (l *windowLaw) reset(now int64, id, ahead, prev, cur uint64) int64 {
	switch {
	case cur > 0:
		ahead += 2 + (cur-1)/l.limit
	case prev > 0:
		ahead++
	}
	if ahead == 0 {
		return now
	}
	return l.reading(id+ahead, 0)
}

func (l *windowLaw) idle(s *windowState, now int64) bool {
	id, _ := l.index(now)
	ahead, prev, cur := l.at(*s, id)
	return ahead|prev|cur == 0
}

// convert keeps the counts if the windows stay as they are, and nobody waits.
// Otherwise what was owed at the change is owed after it, rounded up, and is paid
// by no more than the new limit in the new window. Where calls wait, or a debt is
// to be paid, it is what moved takes the last of them to owe.
func (l *windowLaw) convert(s *windowState, c change[windowState]) {
	from := c.from.(*windowLaw)
	before, after := max(c.at, c.paused), max(c.at, c.till)
	id, offset := from.index(before)
	ahead, prev, cur := from.at(*s, id)
	settled := from.settled(ahead, prev, cur, offset)
	if l.continues(c) && (l.limit == from.limit || settled && prev <= l.prevMax) {
		*s = l.owe(id, ahead, prev, cur)
		return
	}
	var owed uint64 // in units of 2^-32
	if settled {
		hi, lo := bits.Mul64(prev<<32, from.window-offset)
		part, rest := bits.Div64(hi, lo, from.window)
		if owed = cur<<32 + part; rest != 0 {
			owed++
		}
	} else {
		later, first, _, _ := from.fit(prev, cur, 0)
		owed = owedAfter(from.reading(id+ahead+later, first)-before, int(from.limit), int64(from.window))
		prev = l.limit
	}
	id, offset = l.index(after)
	hi, lo := bits.Mul64(1<<32, l.window-offset)
	left, _ := bits.Div64(hi, lo, l.window)
	prev = min(prev, l.limit, owed/(left+1))
	cur = (owed - prev*left + 1<<32 - 1) >> 32
	*s = l.owe(id, 0, prev, cur)
}

// moved is the turn, after a change, of a call that had its turn to come. It never
// comes if what was taken before it is more than can be owed.
func (l *windowLaw) moved(turn int64, c change[windowState]) int64 {
	if turn == math.MaxInt64 {
		return turn
	}
	from := c.from.(*windowLaw)
	wait := max(0, turn-max(c.at, c.paused))
	after := max(c.at, c.till)
	turn = satAdd(after, shifted(wait, int(from.limit), int(l.limit), int64(from.window), int64(l.window)))
	id, _ := l.index(after)
	if later, offset, _, _ := l.fit(l.limit, l.curMax, 0); turn > l.reading(id+l.reach+later, offset) {
		return math.MaxInt64
	}
	return turn
}

// continues reports whether windows are the same before and after a change, by
// number and length, and so are offsets into them.
func (l *windowLaw) continues(c change[windowState]) bool {
	from := c.from.(*windowLaw)
	return l.window == from.window &&
		max(c.at, c.till)-l.origin == max(c.at, c.paused)-from.origin
}

func (l *windowLaw) retime(t core.Token, turn int64, c change[windowState]) (core.Token, int64) {
	if turn > c.at {
		turn = l.moved(turn, c)
	}
	if from := c.from.(*windowLaw); l.limit != from.limit || !l.continues(c) {
		t.B |= spent
	}
	return t, turn
}

// shifted is how long a call has to wait after a change of limit and window that
// had to wait so long before it: until what was owed for it has been paid, as fast
// as it can be, but for the new limit.
func shifted(wait int64, limit, newLimit int, window, newWindow int64) int64 {
	if limit == newLimit && window == newWindow {
		return wait
	}
	owed, left := owedAfter(wait, limit, window), uint64(newLimit)<<32
	return scaled(int64(owed-min(owed, left)), uint64(newWindow), left)
}

// owedAfter is what is owed, in units of 2^-32 and at most, where a call has to
// wait so long: the limit is owed when it has its turn, and no more than the limit
// is paid in a window.
func owedAfter(wait int64, limit int, window int64) uint64 {
	units := uint64(limit) << 32
	return uint64(satAdd(scaled(wait, units, uint64(window)), int64(units)))
}

// scaled is t·num/den, rounded up, and at most what a clock can read.
func scaled(t int64, num, den uint64) int64 {
	if num == den {
		return t
	}
	hi, lo := bits.Mul64(uint64(t), num)
	if hi >= den {
		return math.MaxInt64
	}
	q, rest := bits.Div64(hi, lo, den)
	if rest != 0 {
		q++
	}
	return int64(min(q, math.MaxInt64))
}
