package limit

import (
	"math"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
)

// plainWindow is the sliding-window counter as one would tell it: counts of two
// windows, an estimate, and steps of 1 ns.
type plainWindow struct {
	limit, window int64
	id, prev, cur int64
}

func (m *plainWindow) next() {
	paid := min(m.cur, m.limit)
	m.id, m.prev, m.cur = m.id+1, paid, m.cur-paid
}

// fits reports whether there is room for n at now, which is not before window id.
func (m plainWindow) fits(now, n int64) bool {
	for m.id < now/m.window {
		m.next()
	}
	return m.prev*(m.window-now%m.window)+(m.cur+n)*m.window <= m.limit*m.window
}

// turn is the first instant from now on that has room for n.
func (m plainWindow) turn(now, n int64) int64 {
	for now = max(now, m.id*m.window); !m.fits(now, n); now++ {
	}
	return now
}

func (m *plainWindow) add(now, n int64) {
	for m.id < now/m.window {
		m.next()
	}
	m.cur += n
}

func (m plainWindow) room(now int64) (n int64) {
	if m.id > now/m.window {
		return 0
	}
	for n < m.limit && m.fits(now, n+1) {
		n++
	}
	return n
}

func (m plainWindow) reset(now int64) int64 {
	for m.id < now/m.window {
		m.next()
	}
	now = max(now, m.id*m.window)
	for m.prev > 0 || m.cur > 0 {
		m.next()
		now = m.id * m.window
	}
	return now
}

func TestWindowLawIsThePlainOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		window := rapid.Int64Range(1, 40).Draw(t, "window")
		limit := rapid.Int64Range(1, min(window, 12)).Draw(t, "limit")
		l := newWindowLaw(int(limit), time.Duration(window))
		m := plainWindow{limit: limit, window: window}
		var s windowState
		var now int64
		type made struct {
			token  core.Token
			turn   int64
			n      int
			before plainWindow
			after  windowState
		}
		var charges []made
		for range rapid.IntRange(1, 60).Draw(t, "ops") {
			if s.waits(l, now) {
				now += rapid.Int64Range(0, 2*window).Draw(t, "step")
			} else {
				now = max(0, now+rapid.Int64Range(-window/2, 2*window).Draw(t, "step"))
			}
			n := rapid.IntRange(1, int(limit)).Draw(t, "n")
			turn := m.turn(now, int64(n))
			switch rapid.SampledFrom([]string{"take", "take", "take", "peek", "charge", "refund", "back"}).Draw(t, "op") {
			case "take":
				patience := time.Duration(rapid.SampledFrom([]int64{0, 0, window, 10 * window}).Draw(t, "patience"))
				token, got, ok := l.take(&s, now, n, patience)
				require.Equal(t, turn, got)
				require.Equal(t, turn-now <= int64(patience), ok)
				if ok {
					before := m
					m.add(turn, int64(n))
					charges = append(charges, made{token, turn, n, before, s})
				}
			case "peek":
				d := l.peek(&s, now, now, n)
				room := m.room(now)
				want := Decision{
					OK: turn == now, Limit: int(limit), Remaining: int(room), Window: time.Duration(window),
					RetryAfter: time.Duration(turn - now), ResetAfter: time.Duration(m.reset(now) - now),
				}
				if want.OK {
					want.Remaining -= n
				}
				require.Equal(t, want, d)
				require.Equal(t, m.reset(now) == now, l.idle(&s, now))
			case "charge":
				n = rapid.IntRange(1, 3*int(limit)).Draw(t, "charge")
				l.charge(&s, now, n)
				m.add(max(now, m.id*window), int64(n))
			case "refund":
				n = rapid.IntRange(1, 3*int(limit)).Draw(t, "refund")
				l.refund(&s, now, n)
				for m.id < now/window {
					m.next()
				}
				back := min(m.cur, int64(n))
				m.cur -= back
				if m.id == now/window {
					m.prev -= min(m.prev, int64(n)-back)
				}
			case "back":
				if len(charges) == 0 {
					continue
				}
				i := rapid.IntRange(0, len(charges)-1).Draw(t, "which")
				c := charges[i]
				charges = append(charges[:i], charges[i+1:]...)
				was := s
				back := rapid.IntRange(1, c.n).Draw(t, "back")
				l.giveBack(&s, now, c.token, back)
				if now/window >= c.turn/window+2 {
					continue
				}
				if was == c.after { // as if it had taken so much less, or nothing
					if m = c.before; back < c.n {
						m.add(c.turn, int64(c.n-back))
					}
					continue
				}
				if m.turn(now, 0) > now {
					continue
				}
				switch m.id - c.turn/window {
				case 0:
					m.cur -= min(m.cur, int64(back))
				case 1:
					m.prev -= min(m.prev, int64(back))
				}
			}
		}
	})
}

// waits reports whether somebody waits, or there is a debt.
func (s windowState) waits(l *windowLaw, now int64) bool {
	id, offset := l.index(now)
	ahead, prev, cur := l.at(s, id)
	return !l.settled(ahead, prev, cur, offset)
}

// act is a call that may run.
type act struct {
	token core.Token
	turn  int64 // by the reading that it was decided by, which may have been stale
	n     int
	ended bool
}

// play is a run of a law, made up: of calls that wait and calls that do not, some
// of which cost less than they took, or are cancelled while they wait.
type play[S any] struct {
	law    law[S]
	s      S
	since  int64 // when the law came into force
	now    int64
	paused int64
	acts   []act
	stale  bool // readings of the clock may be
}

func (p *play[S]) run(t *rapid.T, unit int64) {
	for range rapid.IntRange(1, 40).Draw(t, "ops") {
		switch rapid.SampledFrom([]string{"sleep", "take", "take", "back"}).Draw(t, "op") {
		case "sleep":
			p.now += rapid.Int64Range(0, 2*unit).Draw(t, "sleep")
		case "take":
			n := rapid.IntRange(1, p.law.most()).Draw(t, "n")
			patience := rapid.SampledFrom([]int64{0, 0, unit, 5 * unit}).Draw(t, "patience")
			now := p.now
			if p.stale {
				now = max(p.since, now-rapid.SampledFrom([]int64{0, 0, 0, 1, unit / 3}).Draw(t, "stale"))
			}
			start := max(now, p.paused)
			token, turn, ok := p.law.take(&p.s, start, n, time.Duration(patience-(start-now)))
			if ok != (turn <= now+patience) || turn < start {
				t.Fatalf("%v: a turn at %d within %d of %d", ok, turn, patience, now)
			}
			if ok {
				p.acts = append(p.acts, act{token: token, turn: turn, n: n})
			}
		case "back":
			if len(p.acts) == 0 {
				continue
			}
			i := rapid.IntRange(0, len(p.acts)-1).Draw(t, "which")
			a := &p.acts[i]
			if a.ended {
				continue
			}
			n := a.n
			if a.turn <= p.now {
				n = rapid.IntRange(1, n).Draw(t, "back")
			}
			p.law.giveBack(&p.s, max(p.now, p.paused), a.token, n)
			a.n, a.ended = a.n-n, true
		}
	}
}

// ran is how many ran from the first to the last of the clock readings.
func (p *play[S]) ran(first, last int64) (n int64) {
	for _, a := range p.acts {
		if first <= a.turn && a.turn <= last {
			n += int64(a.n)
		}
	}
	return n
}

// In each window no more ran than the estimate allows at that moment, and in any
// time t at most limit + limit·t/window.
func TestWindowLawHoldsTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		window := rapid.Int64Range(1, 60).Draw(t, "window")
		limit := rapid.Int64Range(1, min(window, 8)).Draw(t, "limit")
		p := play[windowState]{law: newWindowLaw(int(limit), time.Duration(window)), stale: true}
		p.run(t, window)
		for _, a := range p.acts {
			if a.n == 0 {
				continue
			}
			var prev, cur int64
			for _, b := range p.acts {
				switch {
				case b.turn/window == a.turn/window && b.turn <= a.turn:
					cur += int64(b.n)
				case b.turn/window == a.turn/window-1:
					prev += int64(b.n)
				}
			}
			if prev*(window-a.turn%window)+cur*window > limit*window {
				t.Fatalf("%d in the window before, %d in this one at %d", prev, cur, a.turn)
			}
			for _, b := range p.acts {
				n, span := p.ran(a.turn, b.turn), b.turn-a.turn
				if span >= 0 && (n-limit)*window > limit*span {
					t.Fatalf("%d from %d to %d", n, a.turn, b.turn)
				}
			}
		}
	})
}

// Whatever is changed while calls go on and others wait, no more run than the
// rates before and after allow in the time, and the larger limit. A pause is no
// time. (Over several changes, a call that waits and costs more than a limit
// between them can make it a little more.)
func testChanges[S any](t *testing.T, make func(limit, window int64) law[S]) {
	rapid.Check(t, func(t *rapid.T) {
		type phase struct {
			from, paused  int64 // running from then on
			limit, window int64
		}
		draw := func() phase {
			window := rapid.Int64Range(1, 40).Draw(t, "window")
			return phase{window: window, limit: rapid.Int64Range(1, min(window, 12)).Draw(t, "limit")}
		}
		phases := []phase{draw()}
		p := play[S]{law: make(phases[0].limit, phases[0].window)}
		p.law.begin(&p.s, 0)
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			last := phases[len(phases)-1]
			p.run(t, last.window)
			next := last
			next.from = p.now
			c := change[S]{at: p.now, from: p.law, paused: p.paused}
			if next.limit != phases[0].limit || next.window != phases[0].window || rapid.Bool().Draw(t, "pause") {
				p.paused = p.now + rapid.Int64Range(-5, 3*last.window).Draw(t, "paused")
			} else {
				next = draw()
				next.from = p.now
				p.law = make(next.limit, next.window)
			}
			c.till = p.paused
			next.paused = p.paused
			p.law.convert(&p.s, c)
			for i := range p.acts {
				a := &p.acts[i]
				was := a.turn
				a.token, a.turn = p.law.retime(a.token, a.turn, c)
				if was <= p.now && a.turn != was {
					t.Fatalf("a call that ran at %d at %d", was, a.turn)
				}
			}
			p.since = p.now
			phases = append(phases, next)
		}
		p.run(t, phases[len(phases)-1].window)

		bound := func(first, last int64) *big.Rat {
			most, sum := int64(0), new(big.Rat)
			for i, ph := range phases {
				from, to := max(ph.from, first), last
				if i+1 < len(phases) {
					to = min(to, phases[i+1].from)
				}
				if ph.from <= last {
					most = max(most, ph.limit) // what waits was let in by an earlier one
				}
				if from = max(from, ph.paused); from < to {
					sum.Add(sum, big.NewRat((to-from)*ph.limit, ph.window))
				}
			}
			return sum.Add(sum, big.NewRat(most, 1))
		}
		for _, a := range p.acts {
			var in phase
			for _, ph := range phases {
				if ph.from <= a.turn {
					in = ph
				}
			}
			if a.n > 0 && in.from < a.turn && a.turn < in.paused {
				t.Fatalf("ran at %d, in a pause: %+v", a.turn, phases)
			}
			for _, b := range p.acts {
				if n := p.ran(a.turn, b.turn); a.turn <= b.turn && big.NewRat(n, 1).Cmp(bound(a.turn, b.turn+1)) > 0 {
					t.Fatalf("%d from %d to %d, phases %v, acts %v", n, a.turn, b.turn, phases, p.acts)
				}
			}
		}
	})
}

func TestWindowLawChanges(t *testing.T) {
	testChanges(t, func(limit, window int64) law[windowState] {
		return newWindowLaw(int(limit), time.Duration(window))
	})
}

// At any size of limit and window, a call is due at the first instant at which
// there is room, and not 1 ns before.
func TestWindowLawIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.OneOf(rapid.IntRange(1, 20), rapid.IntRange(1, maxWindowLimit)).Draw(t, "limit")
		window := rapid.OneOf(
			rapid.Int64Range(int64(limit), 10*int64(limit)), rapid.Int64Range(int64(limit), int64(maxWindow)),
			rapid.Map(rapid.IntRange(20, 54), func(b int) int64 { return 1 << b }),
		).Draw(t, "window")
		l := newWindowLaw(limit, time.Duration(window))
		now := rapid.Int64Range(0, math.MaxInt64/2).Draw(t, "now")

		id, offset := l.index(now)
		require.Equal(t, uint64(now/window), id)
		require.Equal(t, uint64(now%window), offset)
		require.Equal(t, now, l.reading(id, offset))

		prev := uint64(rapid.IntRange(0, limit).Draw(t, "prev"))
		cur := uint64(rapid.IntRange(0, 2*limit).Draw(t, "cur"))
		s := l.pack(id, prev, cur)
		n := rapid.IntRange(1, limit).Draw(t, "n")
		_, _, turn, ok := l.place(s, now, n)
		require.True(t, ok)
		fits := func(at int64) bool {
			p, c, i := prev, cur, int64(id)
			for ; i < at/window; i++ {
				p, c = min(c, uint64(limit)), c-min(c, uint64(limit))
			}
			left := new(big.Int).Mul(big.NewInt(int64(p)), big.NewInt(window-at%window))
			right := new(big.Int).Mul(big.NewInt(int64(limit)-int64(c)-int64(n)), big.NewInt(window))
			return left.Cmp(right) <= 0
		}
		require.True(t, fits(turn))
		_, admitted, _ := l.admit(s, turn, uint64(n))
		require.True(t, admitted)
		if turn > now {
			require.False(t, fits(turn-1))
			_, admitted, _ := l.admit(s, turn-1, uint64(n))
			require.False(t, admitted)
			require.Equal(t, turn-now, int64(l.peek(&s, now, now, n).RetryAfter))
		}
		// As much as remains fits, and no more.
		if r := l.peek(&s, now, now, 0).Remaining; cur <= uint64(limit) {
			_, ok, _ := l.admit(s, now, uint64(r))
			require.True(t, ok || r == 0)
			_, ok, _ = l.admit(s, now, uint64(r+1))
			require.False(t, ok)
		}
	})
}

// A state that was idle until the numbers of windows come round is taken for new,
// at worst: for reach windows, and not for longer.
func TestWindowLawNumbersComeRound(t *testing.T) {
	for _, limit := range []int{1, 1000, 1<<16 - 1, 1 << 16, 1<<19 - 1, 1 << 19, maxWindowLimit} {
		window := int64(limit)
		l := newWindowLaw(limit, time.Duration(window))
		require.GreaterOrEqual(t, l.curMax, 2*l.limit)
		require.LessOrEqual(t, l.size, uint8(63))
		require.GreaterOrEqual(t, l.reach, uint64(64))
		require.True(t, limit >= 1<<18 || l.reach >= 256)
		require.GreaterOrEqual(t, (l.idMax+1)/(l.reach+2), uint64(60_000))

		var used windowState
		_, _, ok := l.take(&used, 10*window, limit, 0)
		require.True(t, ok)
		round := int64(l.idMax + 1)
		reach := int64(l.reach)
		for _, tc := range []struct {
			later int64 // windows
			wait  int64
		}{
			{2, 0},
			{round/2 - 1, 0},
			{round / 2, 0},
			{round/2 + 1, 0},
			{round - reach - 1, 0},
			{round - reach, reach + 2},
			{round - 1, 3},
			{round, 2},
			{round + 1, 1},
			{round + 2, 0},
		} {
			now := (10 + tc.later) * window
			d := l.peek(&used, now, now, limit)
			require.Equal(t, time.Duration(tc.wait*window), d.RetryAfter, "%d, %d windows later", limit, tc.later)
			require.Equal(t, tc.wait == 0, l.idle(&used, now))
		}

		// A permit that is as old gives nothing back.
		var s windowState
		token, _, ok := l.take(&s, 0, 1, 0)
		require.True(t, ok)
		s = used
		for _, now := range []int64{round * window, (round + 10) * window} {
			l.giveBack(&s, now, token, 1)
			require.Equal(t, used, s)
		}
	}
}

func TestWindowLawReach(t *testing.T) {
	for _, window := range []time.Duration{maxWindowLimit, time.Second, maxWindow} {
		l := newWindowLaw(maxWindowLimit, window)
		require.EqualValues(t, 64, l.reach)
		var s windowState
		taken := 0
		for {
			was := s
			_, turn, ok := l.take(&s, 5, maxWindowLimit, forever)
			if !ok {
				require.Equal(t, was, s)
				require.EqualValues(t, 66*window, turn, "when it fits, if that is too far")
				break
			}
			require.EqualValues(t, max(5, 2*taken*int(window)), turn)
			taken++
		}
		require.Equal(t, 33, taken)
	}
}

func TestWindowLawDebtSaturates(t *testing.T) {
	for _, limit := range []int{1, 7, 1000, maxWindowLimit} {
		for _, window := range []time.Duration{maxWindowLimit, maxWindow} {
			l := newWindowLaw(limit, window)
			var s windowState
			l.charge(&s, 5, 40*limit)
			wait := l.peek(&s, 5, 5, 1).RetryAfter
			require.Greater(t, wait, 39*window, "forty windows' worth")
			require.LessOrEqual(t, wait, 41*window)
			for range 3 {
				l.charge(&s, 5, int(^uint(0)>>1))
			}
			d := l.peek(&s, 5, 5, 1)
			require.Greater(t, d.RetryAfter, 64*window-6)
			if window < maxWindow {
				require.LessOrEqual(t, d.RetryAfter, time.Duration(l.reach+l.curMax/l.limit+2)*window)
			}
			_, _, ok := l.take(&s, 5, 1, forever)
			require.False(t, ok)
			l.refund(&s, 5, int(^uint(0)>>1))
			require.Less(t, l.peek(&s, 5, 5, 1).RetryAfter, d.RetryAfter)
		}
	}
}
