package pool

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

type tenantKey struct{}

// A hook sees the values of Acquire's ctx at both ends of a loan, whether the
// resource was idle or came from hand to hand; its end reaches only the first.
func TestHooksHaveTheCallersContext(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		var seen []string
		cfg := m.config(1)
		cfg.OnAcquire = func(ctx context.Context, c *conn) error {
			seen = append(seen, fmt.Sprint("+", ctx.Value(tenantKey{})))
			return ctx.Err()
		}
		cfg.OnRelease = func(ctx context.Context, c *conn) bool {
			deadline, ok := ctx.Deadline()
			require.True(t, ok)
			require.Equal(t, time.Second, time.Until(deadline))
			require.NoError(t, ctx.Err())
			seen = append(seen, fmt.Sprint("-", ctx.Value(tenantKey{})))
			return true
		}
		p := open(t, cfg)
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), tenantKey{}, "a"))
		l, err := p.Acquire(ctx)
		require.NoError(t, err)
		next := ask(context.WithValue(t.Context(), tenantKey{}, "b"), p)
		cancel()
		l.Release()
		l.Release()
		l.Destroy()
		got := <-next
		require.NoError(t, got.err)
		got.lease.Release()
		require.Equal(t, []string{"+a", "-a", "+b", "-b"}, seen)
		require.EqualValues(t, 1, m.dials.Load())
		require.Equal(t, 1, p.Stats().Idle)
	})
}

func TestOnAcquireThatFailsIsTheCallersError(t *testing.T) {
	errTenant := errors.New("no such tenant")
	for name, hook := range map[string]struct {
		says error
		want error
	}{
		"error": {errTenant, errTenant},
		"panic": {nil, core.ErrNoReturn},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				var m maker
				cfg := m.config(1)
				cfg.OnAcquire = func(_ context.Context, c *conn) error {
					if c.n > 1 {
						return nil
					}
					if hook.says == nil {
						panic("hook")
					}
					return hook.says
				}
				p := open(t, cfg)
				_, err := p.Acquire(t.Context())
				require.ErrorIs(t, err, hook.want)
				var refused *core.Rejection
				require.False(t, errors.As(err, &refused))
				synctest.Wait()
				s := p.Stats()
				require.Zero(t, s.Used)
				require.Zero(t, s.Acquired)
				require.EqualValues(t, 1, s.DestroyedUnhealthy)
				require.EqualValues(t, 1, m.closes.Load())
				acquire(t, p).Release()
			})
		})
	}
}

func TestOnAcquireMayAskForAnother(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(2)
		cfg.OnAcquire = func(_ context.Context, c *conn) error {
			if c.n < 3 {
				return fmt.Errorf("read only: %w", ErrUnfit)
			}
			return nil
		}
		p := open(t, cfg)
		l := acquire(t, p)
		require.Equal(t, 3, l.Value().n)
		l.Release()
		require.EqualValues(t, 2, p.Stats().DestroyedUnhealthy)
		require.EqualValues(t, 1, p.Stats().Acquired)
	})
}

// Nothing is ever fit, and the caller's time ends it.
func TestOnAcquireThatAlwaysAsksForAnotherEndsWithTheCaller(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := maker{took: 7 * time.Millisecond}
		cfg := m.config(1)
		cfg.MaxDials = 1
		cfg.AcquireTimeout = 50 * time.Millisecond
		cfg.OnAcquire = func(context.Context, *conn) error { return ErrUnfit }
		p := open(t, cfg)
		got := <-ask(t.Context(), p)
		require.ErrorIs(t, got.err, ErrAcquireTimeout)
		require.Equal(t, 50*time.Millisecond, got.after)
		synctest.Wait()
		require.Zero(t, p.Stats().Used)
	})
}

func TestHookThatExitsTheGoroutineLeaksNothing(t *testing.T) {
	for name, set := range map[string]func(*Config[*conn]){
		"OnAcquire": func(c *Config[*conn]) {
			c.OnAcquire = func(_ context.Context, c *conn) error {
				if c.n == 1 {
					runtime.Goexit()
				}
				return nil
			}
		},
		"OnRelease": func(c *Config[*conn]) {
			c.OnRelease = func(_ context.Context, c *conn) bool {
				if c.n == 1 {
					runtime.Goexit()
				}
				return true
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				var m maker
				cfg := m.config(1)
				set(&cfg)
				p := open(t, cfg)
				go func() {
					if l, err := p.Acquire(t.Context()); err == nil {
						l.Release()
					}
				}()
				synctest.Wait()
				require.Zero(t, p.Stats().Total)
				require.Zero(t, p.Stats().Used)
				acquire(t, p).Release()
			})
		})
	}
}

func TestUncleanResourceIsDestroyed(t *testing.T) {
	for name, hook := range map[string]func(context.Context, *conn) bool{
		"says no": func(context.Context, *conn) bool { return false },
		"panics":  func(context.Context, *conn) bool { panic("hook") },
		"hangs":   func(ctx context.Context, _ *conn) bool { <-ctx.Done(); return false },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				var m maker
				cfg := m.config(1)
				cfg.OnRelease = hook
				p := open(t, cfg)
				l := acquire(t, p)
				next := ask(t.Context(), p)
				l.Release()
				got := <-next
				require.NoError(t, got.err)
				require.NotSame(t, l.Value(), got.lease.Value())
				require.EqualValues(t, 1, p.Stats().DestroyedBroken)
				got.lease.Destroy()
			})
		})
	}
}

// While OnRelease runs, the loan is over and its resource is nobody else's.
func TestResourceIsUsedUntilOnReleaseReturns(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		go1 := make(chan struct{})
		cfg := m.config(1)
		cfg.OnRelease = func(context.Context, *conn) bool { <-go1; return true }
		p := open(t, cfg)
		l := acquire(t, p)
		time.Sleep(time.Second)
		go l.Release()
		synctest.Wait()
		l.Release()
		l.Destroy()
		require.Equal(t, 1, p.Stats().Used)
		next := ask(t.Context(), p)
		closed := make(chan error)
		time.Sleep(time.Second / 2)
		close(go1)
		got := <-next
		require.NoError(t, got.err)
		require.Same(t, l.Value(), got.lease.Value())
		require.Equal(t, time.Second, p.Stats().Use.Sum)
		go func() { closed <- p.Close(context.Background()) }()
		synctest.Wait()
		got.lease.Release()
		require.NoError(t, <-closed)
		require.EqualValues(t, 1, m.closes.Load())
	})
}

func TestHooksCostNothingUnlessSet(t *testing.T) {
	var m maker
	p := open(t, m.config(1))
	require.False(t, p.hooked)
}

// An observer that exits the pool's own goroutine, told of a loan that lasts too
// long, does not end the maintenance.
func TestObserverThatExitsMaintenanceEndsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(1)
		cfg.AcquireTimeout = time.Second
		cfg.LeakAfter = 10 * time.Second
		cfg.Observer = &recorder{exitOn: core.KindHeld}
		p := open(t, cfg)
		l := acquire(t, p)
		time.Sleep(15 * time.Second)
		got := <-ask(t.Context(), p)
		require.ErrorIs(t, got.err, ErrAcquireTimeout)
		require.Equal(t, time.Second, got.after)
		l.Release()
	})
}
