package pool

import (
	"context"
	"io"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/surgewall/surgewall/core"
)

func TestCloseWakesAllWaitersAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		p := open(t, m.config(1))
		l := acquire(t, p)
		var asked []<-chan outcome
		for range 5 {
			asked = append(asked, ask(t.Context(), p))
		}
		closed := make(chan error)
		go func() { closed <- p.Close(t.Context()) }()
		for _, a := range asked {
			got := <-a
			require.ErrorIs(t, got.err, ErrClosed)
			require.Zero(t, got.after)
		}
		got := <-ask(t.Context(), p)
		require.ErrorIs(t, got.err, ErrClosed)
		var r *core.Rejection
		require.ErrorAs(t, got.err, &r)
		require.Equal(t, core.Closed, r.Reason)
		synctest.Wait()
		require.Empty(t, closed)
		l.Release()
		require.NoError(t, <-closed)
		require.True(t, l.Value().closed.Load())
	})
}

func TestCloseGivesUpWithItsContext(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		p := open(t, m.config(2))
		l, idle := acquire(t, p), acquire(t, p)
		idle.Release()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		err := p.Close(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "1 still in use")
		require.Equal(t, 100*time.Millisecond, time.Since(start))
		require.True(t, idle.Value().closed.Load())
		require.False(t, l.Value().closed.Load())
		require.ErrorIs(t, p.Close(ctx), context.DeadlineExceeded)

		l.Release()
		l.Release()
		require.NoError(t, p.Close(t.Context()))
		require.NoError(t, p.Close(ctx), "a pool that has ended needs no time")
		require.True(t, l.Value().closed.Load())
		require.EqualValues(t, 2, m.closes.Load())
		require.Zero(t, p.Stats().Total)
	})
}

func TestConcurrentCloses(t *testing.T) {
	var m maker
	p := open(t, m.config(3))
	acquire(t, p).Release()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := p.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, m.closes.Load())
}

// A resource that is being closed counts towards Max, but not for long.
func TestSlowCloseCostsItsSlotForTheGrace(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(1)
		ended := make(chan struct{})
		cfg.Close = func(ctx context.Context, c *conn) {
			if c.n == 1 {
				<-ended // whatever ctx says
			}
		}
		p := open(t, cfg)
		acquire(t, p).Destroy()
		got := <-ask(t.Context(), p)
		require.NoError(t, got.err)
		require.Equal(t, 250*time.Millisecond, got.after)
		require.Equal(t, 1, p.Stats().Closing)
		close(ended)
		synctest.Wait()
		require.Zero(t, p.Stats().Closing)
		p.mu.Lock()
		require.Equal(t, 1, p.slots)
		p.mu.Unlock()
		got.lease.Release()
	})
}

func TestCloseFunctionIsContained(t *testing.T) {
	for name, misbehave := range map[string]func(){
		"panics":              func() { panic("close") },
		"exits its goroutine": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				var m maker
				o := &recorder{}
				cfg := m.config(1)
				cfg.Close = func(context.Context, *conn) { misbehave() }
				cfg.Observer = o
				p := open(t, cfg)
				for range 3 {
					acquire(t, p).Destroy()
				}
				require.NoError(t, p.Close(t.Context()))
				require.Zero(t, p.Stats().Closing)
				destroyed := 0
				for _, e := range o.heard() {
					if e.Kind == core.KindDestroyed {
						destroyed++
					}
				}
				require.Equal(t, 3, destroyed)
			})
		})
	}
}

func TestOpenUseCloseLeavesNoGoroutine(t *testing.T) {
	before := goleak.IgnoreCurrent()
	for range 1000 {
		var m maker
		cfg := m.config(4)
		cfg.MinIdle = 2
		p, err := New(cfg)
		require.NoError(t, err)
		l := acquire(t, p)
		acquire(t, p).Destroy()
		l.Release()
		require.NoError(t, p.Close(t.Context()))
		require.Equal(t, m.dials.Load(), m.closes.Load())
	}
	goleak.VerifyNone(t, before)
}

// closer is a resource that knows how to close itself.
type closer struct{ closed chan struct{} }

func (c closer) Close() error {
	close(c.closed)
	return nil
}

func TestCloserIsClosedByDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := closer{make(chan struct{})}
		p, err := New(Config[io.Closer]{Dial: func(context.Context) (io.Closer, error) { return c, nil }, Max: 1})
		require.NoError(t, err)
		synctest.Wait()
		require.NoError(t, p.Close(t.Context()))
		<-c.closed
	})
}
