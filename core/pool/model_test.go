package pool

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// model is a pool as its users see it: who waits, in what order and until when,
// who holds what. It knows no idle stack, no dialers and no clock of its own.
type model struct {
	p        *Pool[*conn]
	m        *maker
	max      int
	waiting  []*caller // in the order in which they asked
	held     []Lease[*conn]
	ended    []Lease[*conn]
	outdated int // the last dial before Reset: what it made is not lent again
	there    int // Total and Dialing when last looked at
	warming  []*warming
}

// warming is a call of Warm.
type warming struct {
	n      int
	cancel context.CancelFunc
	answer chan error
}

type caller struct {
	asked  time.Time
	cancel context.CancelFunc
	gone   bool // cancelled
	answer <-chan outcome
}

const modelTimeout = time.Second

func (s *model) acquire(*rapid.T) {
	ctx, cancel := context.WithCancel(context.Background())
	c := &caller{asked: time.Now(), cancel: cancel}
	s.waiting = append(s.waiting, c)
	c.answer = ask(ctx, s.p)
}

func (s *model) end(t *rapid.T, end func(Lease[*conn])) {
	if len(s.held) == 0 {
		t.Skip("nothing is held")
	}
	i := rapid.IntRange(0, len(s.held)-1).Draw(t, "held")
	l := s.held[i]
	s.held = slices.Delete(s.held, i, i+1)
	s.ended = append(s.ended, l)
	end(l)
}

func (s *model) endAgain(t *rapid.T) {
	if len(s.ended) == 0 {
		t.Skip("nothing has ended")
	}
	l := s.ended[rapid.IntRange(0, len(s.ended)-1).Draw(t, "ended")]
	l.Release()
	l.Destroy()
}

func (s *model) cancel(t *rapid.T) {
	if len(s.waiting) == 0 {
		t.Skip("nobody waits")
	}
	c := s.waiting[rapid.IntRange(0, len(s.waiting)-1).Draw(t, "waiting")]
	c.gone = true
	c.cancel()
}

func (s *model) resize(t *rapid.T) {
	s.max = rapid.IntRange(1, 5).Draw(t, "new max")
	minIdle := rapid.IntRange(0, s.max).Draw(t, "new minIdle")
	if minIdle == 0 {
		minIdle = Off
	}
	require.NoError(t, s.p.Resize(minIdle, s.max))
}

func (s *model) reset(*rapid.T) {
	s.outdated = int(s.m.dials.Load())
	s.p.Reset()
}

func (s *model) resetByLease(t *rapid.T) {
	s.end(t, func(l Lease[*conn]) {
		if l.Value().n > s.outdated {
			s.outdated = int(s.m.dials.Load())
		}
		l.Reset()
	})
}

func (s *model) warm(t *rapid.T) {
	ctx, cancel := context.WithCancel(context.Background())
	w := &warming{rapid.IntRange(0, s.max).Draw(t, "warm"), cancel, make(chan error, 1)}
	s.warming = append(s.warming, w)
	go func() { w.answer <- s.p.Warm(ctx, w.n) }()
}

func (s *model) sleep(t *rapid.T) {
	ms := rapid.SampledFrom([]int{1, 5, 20, 300, 2000, 40000}).Draw(t, "ms")
	time.Sleep(time.Duration(ms) * time.Millisecond)
}

// check settles the bubble, takes in the answers and holds them against what a
// fair queue over a set of resources must have given.
func (s *model) check(t *rapid.T) {
	synctest.Wait()
	var left []*caller
	passedOver := false // somebody who asked earlier is still waiting
	for _, c := range s.waiting {
		select {
		case got := <-c.answer:
			waited := got.after
			switch {
			case got.err == nil:
				require.False(t, passedOver, "served before one who asked earlier")
				require.Less(t, waited, modelTimeout, "served after its time")
				require.False(t, got.lease.Value().closed.Load(), "a closed resource was lent")
				require.Greater(t, got.lease.Value().n, s.outdated, "lent after Reset")
				for _, l := range s.held {
					require.NotSame(t, l.Value(), got.lease.Value(), "lent to two")
				}
				s.held = append(s.held, got.lease)
			case errors.Is(got.err, context.Canceled):
				require.True(t, c.gone)
			default:
				require.ErrorIs(t, got.err, ErrAcquireTimeout)
				require.Equal(t, modelTimeout, waited)
			}
			c.cancel()
		default:
			require.False(t, c.gone, "cancelled, and still waiting")
			require.Less(t, time.Since(c.asked), modelTimeout, "its time is over, and it waits")
			passedOver = true
			left = append(left, c)
		}
	}
	s.waiting = left

	st := s.p.Stats()
	require.Equal(t, len(s.held), st.Used)
	require.Equal(t, len(s.waiting), st.Waiting)
	// Only Resize leaves more than Max, and no call adds to them.
	require.LessOrEqual(t, st.Total+st.Dialing, max(s.max, s.there))
	s.there = st.Total + st.Dialing
	require.False(t, st.Waiting > 0 && st.Idle > 0, "a waiter and an idle resource")
	require.EqualValues(t, st.Total+st.Closing, int64(st.Created)-s.m.closes.Load())
	for _, l := range s.held {
		require.False(t, l.Value().closed.Load(), "closed while lent")
	}
	s.warming = slices.DeleteFunc(s.warming, func(w *warming) bool {
		select {
		case err := <-w.answer:
			require.NoError(t, err)
			w.cancel()
			return true
		default:
			require.Less(t, st.Total, w.n, "warm, and waiting")
			return false
		}
	})
	if (st.Waiting > 0 || len(s.warming) > 0) && st.Total+st.Closing < s.max && !s.m.fails.Load() {
		require.Positive(t, s.p.dialersNow(), "there is room and demand, and nobody dials")
	}
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	require.Equal(t, st.Total+st.Dialing+st.Closing, s.p.slots, "a slot was lost or made up")
}

func (p *Pool[T]) dialersNow() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dialers
}

// finish lets everybody go and ends the pool.
func (s *model) finish() {
	for _, c := range s.waiting {
		c.cancel()
	}
	for _, w := range s.warming {
		w.cancel()
	}
	for _, l := range s.held {
		l.Release()
	}
	synctest.Wait()
	for _, c := range s.waiting {
		if got := <-c.answer; got.err == nil {
			got.lease.Release() // lent while the others let go
		}
	}
	s.waiting, s.held, s.warming = nil, nil, nil
	_ = s.p.Close(context.Background())
}

// noDeadline hides t.Deadline, which panics in a bubble.
type noDeadline struct{ rapid.TB }

func TestAgainstModel(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		rapid.Check(noDeadline{t}, func(t *rapid.T) {
			m := &maker{took: 10 * time.Millisecond}
			cfg := m.config(rapid.IntRange(1, 4).Draw(t, "max"))
			cfg.MinIdle = rapid.IntRange(0, cfg.Max).Draw(t, "minIdle")
			if cfg.MinIdle == 0 {
				cfg.MinIdle = Off
			}
			cfg.AcquireTimeout, cfg.UnavailableAfter = modelTimeout, Off
			cfg.CheckEvery = 3 * time.Second
			if rapid.Bool().Draw(t, "checked") {
				cfg.Check = func(ctx context.Context, c *conn) error {
					if m.fails.Load() {
						return errDial
					}
					return nil
				}
			}
			cfg.MaxAge, cfg.MaxIdleTime = 30*time.Second, 5*time.Second
			cfg.MaxDials = rapid.IntRange(1, 3).Draw(t, "maxDials")
			p, err := New(cfg)
			require.NoError(t, err)
			s := &model{p: p, m: m, max: cfg.Max}
			t.Cleanup(s.finish) // also when rapid gives a run up
			t.Repeat(map[string]func(*rapid.T){
				"acquire":  s.acquire,
				"acquire2": s.acquire, // as often as what ends a loan
				"release":  func(t *rapid.T) { s.end(t, Lease[*conn].Release) },
				"destroy":  func(t *rapid.T) { s.end(t, Lease[*conn].Destroy) },
				"endAgain": s.endAgain,
				"cancel":   s.cancel,
				"sleep":    s.sleep,
				"resize":   s.resize,
				"reset":    s.reset,
				"reset1":   s.resetByLease,
				"warm":     s.warm,
				"outage":   func(*rapid.T) { m.fails.Store(!m.fails.Load()) },
				"":         s.check,
			})
			s.finish()
			require.Zero(t, p.Stats().Total)
			require.EqualValues(t, p.Stats().Created, m.closes.Load())
		})
	})
}
