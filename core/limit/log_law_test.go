package limit

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
)

// plainLog keeps every time for ever.
type plainLog struct {
	limit, window int64
	times         []int64 // in order
}

func (m *plainLog) fits(at, n int64) bool {
	for _, x := range m.times {
		if at-m.window < x && x <= at {
			n++
		}
	}
	return n <= m.limit
}

// turn is the first instant from now on, and not before that of another, with room
// for n.
func (m *plainLog) turn(now, n int64) int64 {
	if len(m.times) > 0 {
		now = max(now, m.times[len(m.times)-1])
	}
	for ; !m.fits(now, n); now++ {
	}
	return now
}

func (m *plainLog) add(at int64, n int) {
	for range n {
		m.times = append(m.times, at)
	}
}

func (m *plainLog) remove(at int64, n int) {
	for i := 0; i < len(m.times) && n > 0; {
		if m.times[i] == at {
			m.times = append(m.times[:i], m.times[i+1:]...)
			n--
		} else {
			i++
		}
	}
}

func TestLogLawIsThePlainOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		window := rapid.Int64Range(1, 40).Draw(t, "window")
		limit := rapid.IntRange(1, int(min(window, 12))).Draw(t, "limit")
		l := newLogLaw(limit, time.Duration(window))
		m := plainLog{limit: int64(limit), window: window}
		var s logState
		var now, seen int64
		var acts []act
		for range rapid.IntRange(1, 60).Draw(t, "ops") {
			now = max(0, now+rapid.Int64Range(-3, window).Draw(t, "step"))
			n := rapid.IntRange(1, limit).Draw(t, "n")
			start := max(now, seen)
			at := m.turn(start, int64(n))
			turn := at
			if at == start {
				turn = now
			}
			switch rapid.SampledFrom([]string{"take", "take", "peek", "charge", "back"}).Draw(t, "op") {
			case "take":
				patience := time.Duration(rapid.SampledFrom([]int64{0, 0, window, 10 * window}).Draw(t, "patience"))
				token, got, ok := l.take(&s, now, n, patience)
				require.Equal(t, turn, got)
				require.Equal(t, turn-now <= int64(patience), ok)
				if ok {
					m.add(at, n)
					seen = start
					acts = append(acts, act{token: token, turn: at, n: n})
				}
			case "peek":
				want := Decision{
					OK: at == start, Limit: limit, Remaining: limit, Window: time.Duration(window),
					RetryAfter: time.Duration(turn - now),
				}
				if last := len(m.times) - 1; last >= 0 {
					if reset := m.times[last] + window; reset > start {
						want.ResetAfter = time.Duration(reset - now)
					}
					for want.Remaining > 0 && m.turn(start, int64(want.Remaining)) > start {
						want.Remaining--
					}
				}
				if want.OK {
					want.Remaining -= n
				}
				require.Equal(t, want, l.peek(&s, now, now, n))
				if now == start {
					require.Equal(t, want.ResetAfter == 0, l.idle(&s, now))
				}
			case "charge":
				n = rapid.IntRange(1, 5*limit).Draw(t, "charge")
				l.charge(&s, now, n)
				seen = start
				for range n {
					m.add(m.turn(start, 1), 1)
				}
			case "back": // of one that ran
				if len(acts) == 0 {
					continue
				}
				i := rapid.IntRange(0, len(acts)-1).Draw(t, "which")
				if acts[i].turn > start {
					continue
				}
				back := rapid.IntRange(1, acts[i].n).Draw(t, "back")
				l.giveBack(&s, now, acts[i].token, back)
				m.remove(acts[i].turn, back)
				acts = append(acts[:i], acts[i+1:]...)
			}
			if s.units != nil {
				require.LessOrEqual(t, len(s.units.ring), 2*limit)
			}
		}
	})
}

// In no window, wherever it begins, more ran than the limit.
func TestLogLawHoldsTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		window := rapid.Int64Range(1, 60).Draw(t, "window")
		limit := rapid.IntRange(1, int(min(window, 8))).Draw(t, "limit")
		p := play[logState]{law: newLogLaw(limit, time.Duration(window)), stale: true}
		p.run(t, window)
		for i := range p.acts {
			p.acts[i].turn = int64(p.acts[i].token.A) // by a reading that was not stale
		}
		for _, a := range p.acts {
			if n := p.ran(a.turn, a.turn+window-1); n > int64(limit) {
				t.Fatalf("%d in the window from %d", n, a.turn)
			}
		}
	})
}

func TestLogLawChanges(t *testing.T) {
	testChanges(t, func(limit, window int64) law[logState] {
		return newLogLaw(int(limit), time.Duration(window))
	})
}

// drawLog is a log of some limit of which something was taken, at times up to now.
func drawLog(t *rapid.T, window int64) (l *logLaw, s logState, now int64) {
	limit := rapid.IntRange(1, 8).Draw(t, "limit")
	l = newLogLaw(limit, time.Duration(window))
	for range rapid.IntRange(0, 10).Draw(t, "before") {
		now += rapid.Int64Range(0, window/2).Draw(t, "step")
		l.take(&s, now, rapid.IntRange(1, limit).Draw(t, "n"), 0)
	}
	return l, s, now
}

// Reservations that are cancelled leave all as it was, if they were for no more
// than the limit.
func TestLogLawCancelled(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const window = 20
		l, s, now := drawLog(t, window)
		limit := l.most()
		before := l.decisions(&s, now)
		var tokens []core.Token
		for left := limit; left > 0 && rapid.Bool().Draw(t, "more"); {
			n := rapid.IntRange(1, left).Draw(t, "n")
			left -= n
			token, _, ok := l.take(&s, now, n, 100*window)
			require.True(t, ok)
			tokens = append(tokens, token)
		}
		for len(tokens) > 0 {
			i := rapid.IntRange(0, len(tokens)-1).Draw(t, "which")
			l.giveBack(&s, now, tokens[i], tokensOf(tokens[i]))
			tokens = append(tokens[:i], tokens[i+1:]...)
		}
		require.Equal(t, before, l.decisions(&s, now))
	})
}

func (l *logLaw) decisions(s *logState, now int64) (all []Decision) {
	for n := range l.limit + 1 {
		all = append(all, l.peek(s, now, now, n))
	}
	return all
}

// What is refunded at once leaves as much room as there was, however much it is.
func TestLogLawRefunded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, s, now := drawLog(t, 20)
		before := l.peek(&s, now, now, 0).Remaining
		n := rapid.IntRange(1, 1000).Draw(t, "charged")
		l.charge(&s, now, n)
		back := rapid.IntRange(1, n).Draw(t, "refunded")
		l.refund(&s, now, back)
		left := l.peek(&s, now, now, 0).Remaining
		require.LessOrEqual(t, left, max(0, before-(n-back)))
		l.refund(&s, now, n-back)
		require.Equal(t, before, l.peek(&s, now, now, 0).Remaining)
		l.refund(&s, now, math.MaxInt)
		require.True(t, l.idle(&s, now))
	})
}

func TestLogLawSaturates(t *testing.T) {
	for _, window := range []time.Duration{3, time.Second, maxWindow} {
		l := newLogLaw(3, window)
		var s logState
		for range 3 {
			l.charge(&s, 5, int(^uint(0)>>1))
		}
		d := l.peek(&s, 5, 5, 1)
		require.False(t, d.OK)
		require.Greater(t, d.RetryAfter, 70*365*24*time.Hour)
		_, _, ok := l.take(&s, 5, 1, forever)
		require.False(t, ok)
		l.refund(&s, 5, int(^uint(0)>>1))
		l.refund(&s, 5, int(^uint(0)>>1))
		require.True(t, l.idle(&s, 5))
	}
}
