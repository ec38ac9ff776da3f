package pool

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMaxAgeReachedInUseClosesOnRelease(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		p := open(t, m.config(1))
		l := acquire(t, p)
		time.Sleep(time.Hour)
		require.False(t, l.Value().closed.Load())
		l.Release()
		synctest.Wait()
		require.True(t, l.Value().closed.Load())
		require.EqualValues(t, 1, p.Stats().DestroyedLifetime)
	})
}

func TestMaxAgeReachedIdleIsNeverLent(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(1)
		cfg.MaxAge, cfg.MaxAgeJitter, cfg.MaxIdleTime = 1500*time.Microsecond, Off, Off
		p := open(t, cfg)
		l := acquire(t, p)
		first := l.Value()
		l.Release()
		time.Sleep(1500 * time.Microsecond) // before maintenance comes by
		l = acquire(t, p)
		require.NotSame(t, first, l.Value())
		l.Release()
	})
}

func TestIdleResourcesAreReplacedWhenOld(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(10)
		cfg.MinIdle, cfg.MaxAge = 5, 10*time.Minute
		p := open(t, cfg)
		time.Sleep(10*time.Minute + 2*time.Second)
		s := p.Stats()
		require.EqualValues(t, 5, s.DestroyedLifetime)
		require.EqualValues(t, 5, m.closes.Load())
		require.Equal(t, 5, s.Idle)
	})
}

func TestJitterSpreadsTheEnds(t *testing.T) {
	for _, age := range []time.Duration{10 * time.Minute, 400 * time.Millisecond} {
		inBubble(t, func(t *testing.T) {
			var m maker
			cfg := m.config(100)
			cfg.MinIdle, cfg.MaxAge = 100, age
			p := open(t, cfg)
			synctest.Wait()
			time.Sleep(age - age/10 - 1)
			synctest.Wait()
			require.Zero(t, p.Stats().DestroyedLifetime)
			p.mu.Lock()
			ends := map[int64]bool{}
			for _, r := range p.idle {
				ends[r.expiresAt] = true
				require.Greater(t, r.expiresAt, int64(age-age/10-1))
				require.LessOrEqual(t, r.expiresAt, int64(age))
			}
			p.mu.Unlock()
			require.Greater(t, len(ends), 90)
		})
	}
}

func TestMaxAgeOffIsForEver(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(1)
		cfg.MaxAge, cfg.MaxIdleTime = Off, Off
		p := open(t, cfg)
		acquire(t, p).Release()
		time.Sleep(24 * time.Hour)
		acquire(t, p).Release()
		require.EqualValues(t, 1, m.dials.Load())
	})
}

func TestMinIdleIsKeptAboveUse(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(10)
		cfg.MinIdle = 5
		p := open(t, cfg)
		var held []Lease[*conn]
		for range 7 {
			held = append(held, acquire(t, p))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, 3, p.Stats().Idle)
		for _, l := range held {
			l.Release()
		}
		require.Equal(t, 10, p.Stats().Idle)
		time.Sleep(58 * time.Second) // those dialled first may be idle since the start
		require.Equal(t, 10, p.Stats().Idle)
		time.Sleep(5 * time.Second)
		s := p.Stats()
		require.Equal(t, 5, s.Idle)
		require.EqualValues(t, 5, s.DestroyedIdle)
	})
}

func TestSickIdleResourceIsReplaced(t *testing.T) {
	for name, sick := range map[string]func(context.Context) error{
		"error":   func(context.Context) error { return errors.New("gone") },
		"silence": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"panic":   func(context.Context) error { panic("check") },
		"goexit":  func(context.Context) error { runtime.Goexit(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				var m maker
				cfg := m.config(4)
				cfg.MinIdle = 3
				cfg.Check = func(ctx context.Context, c *conn) error {
					if c.n == 2 {
						return sick(ctx)
					}
					return nil
				}
				p := open(t, cfg)
				synctest.Wait()
				time.Sleep(14 * time.Second)
				require.Zero(t, p.Stats().DestroyedUnhealthy)
				time.Sleep(5 * time.Second)
				s := p.Stats()
				require.EqualValues(t, 1, s.DestroyedUnhealthy)
				require.Equal(t, 3, s.Idle)
				require.EqualValues(t, 4, s.Created)
				require.EqualValues(t, 1, m.closes.Load())
			})
		})
	}
}

func TestUsedResourcesAreNotChecked(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		var checks atomic.Int64
		cfg := m.config(1)
		cfg.MaxIdleTime = Off
		cfg.Check = func(context.Context, *conn) error { checks.Add(1); return nil }
		p := open(t, cfg)
		for range 10 {
			l := acquire(t, p)
			time.Sleep(10 * time.Second)
			l.Release()
		}
		require.Zero(t, checks.Load())
		time.Sleep(50 * time.Second)
		synctest.Wait()
		require.EqualValues(t, 3, checks.Load()) // one each 15 s
		require.Equal(t, 1, p.Stats().Idle)
	})
}

// Whoever comes while the only resource is being checked gets it afterwards.
func TestCheckedResourceServesWhoWaits(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(1)
		cfg.CheckTimeout = 30 * time.Second
		cfg.Check = func(context.Context, *conn) error { time.Sleep(5 * time.Second); return nil }
		p := open(t, cfg)
		acquire(t, p).Release()
		time.Sleep(16 * time.Second)
		require.Equal(t, 1, p.Stats().Checking)
		l := acquire(t, p)
		require.Equal(t, 1, l.Value().n)
		require.EqualValues(t, 2, p.Stats().Waited)
		l.Release()
	})
}

// What was idle for long is not lent before it was checked, even before
// maintenance comes by: the caller waits for the check, or for what comes first.
func TestLongIdleResourceIsCheckedBeforeItIsLent(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		sick := false
		cfg := m.config(2)
		cfg.CheckEvery = 1500 * time.Millisecond // maintenance comes each 375 ms
		cfg.Check = func(context.Context, *conn) error {
			time.Sleep(time.Millisecond)
			if sick {
				return errors.New("gone")
			}
			return nil
		}
		p := open(t, cfg)
		time.Sleep(100 * time.Millisecond)
		l := acquire(t, p)
		first := l.Value()
		l.Release()
		time.Sleep(1600 * time.Millisecond) // due for 100 ms, which maintenance sees in 175
		got := <-ask(t.Context(), p)
		require.NoError(t, got.err)
		require.Zero(t, got.after, "a dial was sooner than the check")
		require.NotSame(t, first, got.lease.Value())
		time.Sleep(time.Millisecond)
		synctest.Wait()
		require.Equal(t, 1, p.Stats().Idle, "checked, and well")
		second := acquire(t, p)
		require.Same(t, first, second.Value())
		time.Sleep(99 * time.Millisecond)
		second.Release() // at 1.8 s

		sick = true
		time.Sleep(1550 * time.Millisecond) // due for 50 ms, which maintenance sees in 25
		third := acquire(t, p)
		require.NotSame(t, first, third.Value())
		synctest.Wait()
		require.EqualValues(t, 1, p.Stats().DestroyedUnhealthy)
		third.Release()
		got.lease.Release()
	})
}

// Twenty connections went silent while nobody used them: they are checked eight at
// a time, and nobody is lent one.
func TestManySilentResourcesKeepNobodyForLong(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(20)
		cfg.MinIdle = 20
		cfg.MaxAge = Off
		cfg.Check = func(ctx context.Context, c *conn) error {
			if c.n > 20 {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		p := open(t, cfg)
		synctest.Wait()
		time.Sleep(15*time.Second + 1)
		got := <-ask(t.Context(), p)
		require.NoError(t, got.err)
		require.LessOrEqual(t, got.after, time.Second, "CheckTimeout, and a dial")
		require.Greater(t, got.lease.Value().n, 20)
		got.lease.Release()
		time.Sleep(3 * time.Second)
		require.EqualValues(t, 20, p.Stats().DestroyedUnhealthy)
		require.Equal(t, 20, p.Stats().Idle)
	})
}
