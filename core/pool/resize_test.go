package pool

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func TestResizeDownClosesIdleAtOnceAndTheRestAsItComesBack(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(6)
		cfg.MinIdle = 6
		p := open(t, cfg)
		synctest.Wait()
		a, b, c := acquire(t, p), acquire(t, p), acquire(t, p)
		require.NoError(t, p.Resize(Off, 2))
		synctest.Wait()
		s := p.Stats()
		require.Equal(t, 2, s.Max)
		require.Zero(t, s.MinIdle)
		require.Zero(t, s.Idle)
		require.Equal(t, 3, s.Used)
		waits := ask(t.Context(), p)
		a.Release()
		synctest.Wait()
		require.Empty(t, waits, "a third was lent, or dialled")
		require.Equal(t, 2, p.Stats().Total)
		b.Release()
		got := <-waits
		require.NoError(t, got.err)
		require.Same(t, b.Value(), got.lease.Value())
		c.Release()
		got.lease.Release()
		s = p.Stats()
		require.Equal(t, 2, s.Total)
		require.EqualValues(t, 4, s.DestroyedResize)
		require.EqualValues(t, 6, m.dials.Load())
		require.Contains(t, p.Inspect().Settings, core.Setting{Name: "Max", Value: 2})
		require.Contains(t, p.Inspect().Settings, core.Setting{Name: "MaxWaiters", Value: 200})
	})
}

func TestResizeUpServesWhoWaits(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		p := open(t, m.config(1))
		l := acquire(t, p)
		waits := ask(t.Context(), p)
		require.Empty(t, waits)
		require.NoError(t, p.Resize(2, 4))
		got := <-waits
		require.NoError(t, got.err)
		synctest.Wait()
		require.Equal(t, 2, p.Stats().Idle)
		l.Release()
		got.lease.Release()
	})
}

// A dial that was under way when Max fell below what there is.
func TestDialThatResizeMadeSuperfluousIsClosed(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := maker{took: time.Second}
		p := open(t, m.config(2))
		a, b := ask(t.Context(), p), ask(t.Context(), p)
		require.Equal(t, 2, p.Stats().Dialing)
		require.NoError(t, p.Resize(Off, 1))
		first := <-a
		require.NoError(t, first.err)
		require.Empty(t, b)
		synctest.Wait()
		require.Equal(t, 1, p.Stats().Total)
		require.EqualValues(t, 1, p.Stats().DestroyedResize)
		first.lease.Release()
		(<-b).lease.Release()
	})
}

func TestResizeThatIsWrongChangesNothing(t *testing.T) {
	var m maker
	p := open(t, m.config(3))
	err := p.Resize(-2, -1)
	require.ErrorIs(t, err, core.ErrConfig)
	require.ErrorContains(t, err, "pool.Config.Max: -1")
	require.ErrorContains(t, err, "pool.Config.MinIdle: -2")
	require.ErrorContains(t, p.Resize(5, 4), "must not be above Max")
	require.Equal(t, 3, p.Stats().Max)
	require.NoError(t, p.Resize(0, 0))
	require.Equal(t, 20, p.Stats().Max)
	require.Equal(t, 5, p.Stats().MinIdle)
}

func TestResetReplacesWhatThereIs(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(4)
		cfg.MinIdle = 2
		p := open(t, cfg)
		l := acquire(t, p)
		time.Sleep(time.Second)
		require.Equal(t, 2, p.Stats().Idle)
		p.Reset()
		synctest.Wait()
		require.False(t, l.Value().closed.Load(), "it is in use")
		next := acquire(t, p)
		require.Greater(t, next.Value().n, 3)
		l.Release()
		next.Release()
		synctest.Wait()
		s := p.Stats()
		require.True(t, l.Value().closed.Load())
		require.EqualValues(t, 3, s.DestroyedReset)
		require.GreaterOrEqual(t, s.Idle, 2)
	})
}

// What is dialled or checked while Reset is called is of the old generation.
func TestResetReachesDialsAndChecksUnderWay(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := maker{took: time.Second}
		cfg := m.config(1)
		cfg.CheckTimeout = time.Minute
		cfg.Check = func(context.Context, *conn) error { time.Sleep(10 * time.Second); return nil }
		p := open(t, cfg)
		waits := ask(t.Context(), p)
		p.Reset()
		got := <-waits
		require.NoError(t, got.err)
		require.Equal(t, 2, got.lease.Value().n)
		require.Equal(t, 2*time.Second, got.after)
		got.lease.Release()

		time.Sleep(18 * time.Second)
		require.Equal(t, 1, p.Stats().Checking)
		p.Reset()
		l := acquire(t, p)
		require.Equal(t, 3, l.Value().n)
		l.Release()
		require.EqualValues(t, 2, p.Stats().DestroyedReset)
	})
}

// Ten callers find out that the server is of no use any more: one Reset is done,
// and what was dialled since is kept.
func TestLeaseResetIsDoneOnceForAGeneration(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(10)
		cfg.MinIdle = 10
		p := open(t, cfg)
		synctest.Wait()
		var all []Lease[*conn]
		for range 5 {
			all = append(all, acquire(t, p))
		}
		all[0].Reset()
		synctest.Wait()
		s := p.Stats()
		require.EqualValues(t, 6, s.DestroyedReset, "itself and the idle five")
		require.Equal(t, 6, s.Idle)
		for _, l := range all {
			l.Reset()
		}
		synctest.Wait()
		s = p.Stats()
		require.EqualValues(t, 10, s.DestroyedReset)
		require.Equal(t, 10, s.Idle)
		require.EqualValues(t, 20, m.dials.Load())

		// A loan that has ended says nothing.
		l := acquire(t, p)
		l.Release()
		l.Reset()
		require.EqualValues(t, 10, p.Stats().DestroyedReset)
		Lease[*conn]{}.Reset()
	})
}

func TestWarmWaitsForSoMany(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := maker{took: 100 * time.Millisecond}
		cfg := m.config(10)
		p := open(t, cfg)
		start := time.Now()
		require.NoError(t, p.Warm(t.Context(), 5))
		require.Equal(t, 300*time.Millisecond, time.Since(start), "two at a time")
		require.GreaterOrEqual(t, p.Stats().Idle, 5)
		start = time.Now()
		require.NoError(t, p.Warm(t.Context(), 5))
		require.NoError(t, p.Warm(t.Context(), 0))
		require.Zero(t, time.Since(start))
		require.LessOrEqual(t, m.most.Load(), int64(2))

		err := p.Warm(t.Context(), 11)
		require.ErrorIs(t, err, core.ErrConfig)
		require.EqualError(t, err, "pool.Warm.n: 11: must not be above Max")
	})
}

func TestWarmEnds(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := maker{took: time.Second}
		p := open(t, m.config(10))
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		err := p.Warm(ctx, 9)
		require.ErrorIs(t, err, ErrAcquireTimeout)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		time.Sleep(time.Minute)
		require.LessOrEqual(t, m.dials.Load(), int64(4), "the demand has gone with who asked")

		warmed := make(chan error, 1)
		go func() { warmed <- p.Warm(context.Background(), 10) }()
		synctest.Wait()
		require.NoError(t, p.Close(t.Context()))
		require.ErrorIs(t, <-warmed, ErrClosed)
		require.ErrorIs(t, p.Warm(t.Context(), 1), ErrClosed)
	})
}

func TestWarmIsToldWhenNothingCanBeDialled(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		m.fails.Store(true)
		p := open(t, m.config(2))
		start := time.Now()
		err := p.Warm(t.Context(), 1)
		require.ErrorIs(t, err, ErrUnavailable)
		require.ErrorIs(t, err, errDial)
		require.Less(t, time.Since(start), 2*time.Second)
		var r *core.Rejection
		require.True(t, errors.As(err, &r))
	})
}
