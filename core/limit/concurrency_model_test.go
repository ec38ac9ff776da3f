package limit

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
)

// bulkheadModel is a Concurrency as its users see it: a list of those who wait,
// and a number of slots taken. It says beforehand what becomes of every call.
type bulkheadModel struct {
	c   *Concurrency
	cfg ConcurrencyConfig

	taken   int
	queue   []*modelCall // in the order in which they asked
	held    []*modelCall
	ended   []*core.Permit // whose slots have been given back
	decided []*modelCall   // since the last check
	want    ConcurrencyStats
}

type modelCall struct {
	n      int
	until  time.Time // the end of MaxWait
	cancel context.CancelFunc
	want   error // what it is to be told, nil if it gets its slots

	done   atomic.Bool
	permit core.Permit
	err    error
}

// Errors that stand for what a call is to be told.
var (
	errModelFull       = &core.Rejection{Reason: core.ConcurrencyLimited, Err: ErrFull}
	errModelOverloaded = &core.Rejection{Reason: core.Overloaded, Err: ErrFull}
	errModelLate       = &core.Rejection{Reason: core.WaitTimeout, Err: ErrFull}
	errModelGone       = &core.Rejection{Reason: core.WaitTimeout, Err: ErrFull, Cause: context.Canceled}
	errModelNeverFits  = &core.Rejection{Reason: core.NeverFits, Err: ErrNeverFits}
)

func (m *bulkheadModel) decide(c *modelCall, want error) {
	c.want = want
	m.decided = append(m.decided, c)
	if want != nil {
		m.want.Refused++
		switch want {
		case errModelOverloaded:
			m.want.Overloaded++
		case errModelLate:
			m.want.TimedOut++
		case errModelGone:
			m.want.Abandoned++
		}
		return
	}
	m.taken += c.n
	m.want.Admitted++
	m.held = append(m.held, c)
}

func (m *bulkheadModel) serve() {
	for len(m.queue) > 0 && m.taken+m.queue[0].n <= m.cfg.Limit {
		c := m.queue[0]
		m.queue = m.queue[1:]
		m.want.Waited++
		m.decide(c, nil)
	}
}

func (m *bulkheadModel) leave(c *modelCall, want error) {
	m.queue = slices.Delete(m.queue, slices.Index(m.queue, c), slices.Index(m.queue, c)+1)
	m.decide(c, want)
	m.serve()
}

func (m *bulkheadModel) acquire(t *rapid.T) {
	time.Sleep(time.Microsecond) // so that no two have the same end
	c := &modelCall{n: rapid.IntRange(1, 7).Draw(t, "n"), until: time.Now().Add(m.cfg.MaxWait)}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	switch {
	case c.n > m.cfg.Limit:
		m.decide(c, errModelNeverFits)
	case len(m.queue) == 0 && m.taken+c.n <= m.cfg.Limit:
		m.decide(c, nil)
	case m.cfg.MaxWait == 0:
		m.decide(c, errModelFull)
	case len(m.queue) >= m.cfg.MaxWaiters:
		m.decide(c, errModelOverloaded)
	default:
		m.queue = append(m.queue, c)
	}
	go func() {
		c.permit, c.err = m.c.Acquire(ctx, core.Call{Cost: c.n})
		c.done.Store(true)
	}()
}

func (m *bulkheadModel) tryAcquire(t *rapid.T) {
	n := rapid.IntRange(1, 7).Draw(t, "n")
	ok := len(m.queue) == 0 && m.taken+n <= m.cfg.Limit
	require.Equal(t, ok, m.c.Peek(n).OK)
	require.Equal(t, ok, m.c.TryAcquire(n))
	if ok {
		m.want.Admitted++
		m.taken += n
		c := &modelCall{n: n, cancel: func() {}, permit: core.NewPermit(m.c, core.Token{A: uint64(n)}, core.WantsEnd)}
		m.held = append(m.held, c)
	} else {
		m.want.Refused++
	}
}

func (m *bulkheadModel) end(t *rapid.T) {
	if len(m.held) == 0 {
		t.Skip("nothing is held")
	}
	i := rapid.IntRange(0, len(m.held)-1).Draw(t, "held")
	c := m.held[i]
	m.held = slices.Delete(m.held, i, i+1)
	m.taken -= c.n
	m.serve()
	c.cancel() // what ends after the admission has no say
	switch p := &c.permit; rapid.IntRange(0, 2).Draw(t, "how") {
	case 0:
		p.Cancel()
		m.want.Cancelled++
	case 1:
		p.Done(context.Background(), core.Success)
	default:
		*p = core.Permit{}
		require.True(t, m.c.Release(c.n))
	}
	m.ended = append(m.ended, &c.permit)
}

func (m *bulkheadModel) endAgain(t *rapid.T) {
	if len(m.ended) == 0 {
		t.Skip("nothing has ended")
	}
	m.ended[rapid.IntRange(0, len(m.ended)-1).Draw(t, "ended")].Cancel()
}

// tooMuch gives back more than is taken.
func (m *bulkheadModel) tooMuch(t *rapid.T) {
	if len(m.held) > 0 {
		t.Skip("it would be somebody's")
	}
	n := rapid.IntRange(1, 7).Draw(t, "n")
	m.want.Unmatched += uint64(n)
	require.False(t, m.c.Release(n))
}

func (m *bulkheadModel) cancel(t *rapid.T) {
	if len(m.queue) == 0 {
		t.Skip("nobody waits")
	}
	c := m.queue[rapid.IntRange(0, len(m.queue)-1).Draw(t, "waiting")]
	c.cancel()
	m.leave(c, errModelGone)
}

func (m *bulkheadModel) sleep(t *rapid.T) {
	d := time.Duration(rapid.IntRange(1, 30).Draw(t, "ms")) * ms
	until := time.Now().Add(d)
	for len(m.queue) > 0 {
		first := slices.MinFunc(m.queue, func(a, b *modelCall) int { return cmp.Compare(a.until.UnixNano(), b.until.UnixNano()) })
		if first.until.After(until) {
			break
		}
		m.leave(first, errModelLate)
	}
	time.Sleep(d)
}

func (m *bulkheadModel) reconfigure(t *rapid.T) {
	m.cfg = drawBulkhead(t)
	for _, c := range slices.Clone(m.queue) {
		if c.n > m.cfg.Limit {
			m.queue = slices.Delete(m.queue, slices.Index(m.queue, c), slices.Index(m.queue, c)+1)
			m.decide(c, errModelNeverFits)
		}
	}
	m.serve()
	require.NoError(t, m.c.Reconfigure(m.cfg))
}

func drawBulkhead(t *rapid.T) ConcurrencyConfig {
	return ConcurrencyConfig{
		Limit:      rapid.IntRange(1, 6).Draw(t, "limit"),
		MaxWait:    time.Duration(rapid.SampledFrom([]int{0, 10, 40}).Draw(t, "maxWait")) * ms,
		MaxWaiters: rapid.IntRange(1, 5).Draw(t, "maxWaiters"),
	}
}

// check settles the bubble and compares.
func (m *bulkheadModel) check(t *rapid.T) {
	synctest.Wait()
	for _, c := range m.decided {
		require.True(t, c.done.Load(), "it still waits")
		if c.want == nil {
			require.NoError(t, c.err)
			continue
		}
		want, _ := errors.AsType[*core.Rejection](c.want)
		got, ok := errors.AsType[*core.Rejection](c.err)
		require.True(t, ok, "%v, and not %v", c.err, c.want)
		require.Equal(t, *want, core.Rejection{Reason: got.Reason, Err: got.Err, Cause: got.Cause})
		c.cancel()
	}
	m.decided = nil
	for _, c := range m.queue {
		require.False(t, c.done.Load(), "it waits no more: %v", c.err)
	}
	m.want.Limit, m.want.InFlight, m.want.Waiting = m.cfg.Limit, m.taken, len(m.queue)
	got := m.c.Stats()
	require.Equal(t, !got.FullSince.IsZero() && got.InFlight < got.Limit && got.Waiting == 0, false)
	got.WaitTime, got.FullSince = 0, time.Time{}
	require.Equal(t, m.want, got)
	require.Equal(t, len(m.queue) == 0 && m.taken < m.cfg.Limit, m.c.Ready())
}

func (m *bulkheadModel) finish() {
	for len(m.queue) > 0 || len(m.held) > 0 {
		for _, c := range m.queue {
			c.cancel()
		}
		synctest.Wait()
		m.queue = nil
		for _, c := range m.held {
			c.permit.Cancel()
		}
		m.held = nil
	}
	synctest.Wait()
}

// noDeadlineTB hides t.Deadline, which panics in a bubble.
type noDeadlineTB struct{ rapid.TB }

func TestConcurrencyAgainstModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(noDeadlineTB{t}, func(t *rapid.T) {
			m := &bulkheadModel{cfg: drawBulkhead(t)}
			c, err := NewConcurrency(m.cfg)
			require.NoError(t, err)
			m.c = c
			t.Cleanup(m.finish) // also when rapid gives a run up
			t.Repeat(map[string]func(*rapid.T){
				"acquire":     m.acquire,
				"acquire2":    m.acquire, // as often as what ends a call
				"tryAcquire":  m.tryAcquire,
				"end":         m.end,
				"endAgain":    m.endAgain,
				"tooMuch":     m.tooMuch,
				"cancel":      m.cancel,
				"sleep":       m.sleep,
				"reconfigure": m.reconfigure,
				"":            m.check,
			})
		})
	})
}

// crowd has many goroutines take slots of c in every way, and end in every way,
// for a number of rounds each. Together they never hold more than most, and
// nothing in the end.
func crowd(t *testing.T, c *Concurrency, rounds, most int) {
	var held atomic.Int64
	var wg sync.WaitGroup
	hold := func(n int) {
		if got := held.Add(int64(n)); got > int64(most) {
			t.Errorf("%d slots of %d are taken", got, most)
		}
		if rand.IntN(4) == 0 {
			time.Sleep(time.Duration(rand.IntN(50)) * time.Microsecond)
		}
		held.Add(-int64(n))
	}
	for range 8 {
		wg.Go(func() {
			for range rounds {
				n := 1 + rand.IntN(3)
				ctx, cancel := context.WithCancel(context.Background())
				switch rand.IntN(4) {
				case 0:
					cancel()
				case 1:
					time.AfterFunc(time.Duration(rand.IntN(100))*time.Microsecond, cancel)
				}
				switch rand.IntN(3) {
				case 0:
					if c.TryAcquire(n) {
						hold(n)
						c.Release(n)
					}
				case 1:
					if c.Wait(ctx, n) == nil {
						hold(n)
						c.Release(n)
					}
				default:
					if p, err := c.Acquire(ctx, core.Call{Cost: n}); err == nil {
						hold(n)
						p.Done(ctx, core.Success)
					}
				}
				cancel()
			}
		})
	}
	wg.Wait()
	s := c.Stats()
	require.Zero(t, s.InFlight)
	require.Zero(t, s.Waiting)
	require.Zero(t, s.Unmatched)
	require.False(t, c.word.waited())
	require.True(t, c.TryAcquire(1))
	require.True(t, c.Release(1))
}

// No slot is lost and none is made up, whatever calls, deadlines and
// cancellations race.
func TestConcurrencyUnderFire(t *testing.T) {
	for _, cfg := range []ConcurrencyConfig{
		{Limit: 3},
		{Limit: 3, MaxWait: 50 * time.Microsecond},
		{Limit: 4, MaxWait: time.Second, MaxWaiters: 2},
		{Limit: 10, MaxWait: time.Second},
	} {
		c := newConcurrency(t, cfg)
		crowd(t, c, 3000, cfg.Limit)
	}
}

// Nobody is forgotten: with one slot and callers that wait for ever, one wake-up
// that is lost would be the end.
func TestConcurrencyWakesAll(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Limit: 1})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range 20_000 {
				if c.Wait(context.Background(), 1) != nil || !c.Release(1) {
					t.Error("not admitted")
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 60_000, c.Stats().Admitted)
}

// The limit holds across changes of it: once it was raised no more than that,
// once it was lowered and those in flight have ended no more than that.
func TestConcurrencyReconfigureUnderFire(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Limit: 3, MaxWait: time.Millisecond})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				if err := c.Reconfigure(ConcurrencyConfig{Limit: 1 + i%7, MaxWait: time.Millisecond}); err != nil {
					t.Error(err)
				}
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	crowd(t, c, 3000, 7)
}

// After a limit was lowered, nobody is admitted beyond it, not even a call that
// was under way.
func TestConcurrencyLoweredLimitHoldsAtOnce(t *testing.T) {
	c := newConcurrency(t, ConcurrencyConfig{Limit: 8})
	for range 2000 {
		var admitted atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for c.TryAcquire(1) {
					admitted.Add(1)
				}
			})
		}
		require.NoError(t, c.Reconfigure(ConcurrencyConfig{Limit: 2}))
		before := c.Stats().InFlight
		wg.Wait()
		require.LessOrEqual(t, c.Stats().InFlight, max(before, 2))
		require.True(t, c.Release(int(admitted.Load())))
		require.NoError(t, c.Reconfigure(ConcurrencyConfig{Limit: 8}))
	}
}
