package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Many callers that cancel at random, resources that break, dials that fail and
// checks that say no: nobody shares a resource, and nothing is lost.
func TestStress(t *testing.T) {
	var m maker
	var users [1 << 16]atomic.Int32
	cfg := m.config(4)
	cfg.MinIdle = 2
	cfg.MaxAge = 3 * time.Millisecond
	cfg.CheckEvery = time.Millisecond
	cfg.UnavailableAfter = Off
	cfg.Dial = func(ctx context.Context) (*conn, error) {
		if rand.IntN(20) == 0 {
			return nil, errDial
		}
		return m.dial(ctx)
	}
	cfg.Check = func(context.Context, *conn) error {
		if rand.IntN(4) == 0 {
			return errDial
		}
		return nil
	}
	cfg.Valid = func(*conn) bool { return rand.IntN(50) != 0 }
	p, err := New(cfg)
	require.NoError(t, err)

	var granted atomic.Uint64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 300 {
				ctx, cancel := context.WithCancel(context.Background())
				stop := time.AfterFunc(time.Duration(rand.IntN(300))*time.Microsecond, cancel) // real time: races are the point
				l, err := p.Acquire(ctx)
				if err == nil {
					granted.Add(1)
					c := l.Value()
					if users[c.n%len(users)].Add(1) != 1 || c.closed.Load() {
						t.Error("shared or closed")
					}
					users[c.n%len(users)].Add(-1)
					if rand.IntN(10) == 0 {
						l.Destroy()
					}
					l.Release()
				}
				stop.Stop()
				cancel()
			}
		})
	}
	wg.Wait()
	s := p.Stats()
	require.Zero(t, s.Used)
	require.Zero(t, s.Waiting)
	require.Equal(t, granted.Load(), s.Acquired)
	require.EqualValues(t, 16*300, s.Acquired+s.Cancelled+s.TimedOut)
	require.NoError(t, p.Close(context.Background()))
	require.EqualValues(t, m.closes.Load(), p.Stats().Created)
}

// Close comes in the middle: everybody gets an answer, everything is closed.
func TestCloseUnderLoad(t *testing.T) {
	for range 50 {
		var m maker
		p, err := New(m.config(3))
		require.NoError(t, err)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					l, err := p.Acquire(context.Background())
					if err != nil {
						if !errors.Is(err, ErrClosed) {
							t.Error(err)
						}
						return
					}
					l.Release()
				}
			})
		}
		for p.Stats().Acquired < 20 {
			time.Sleep(10 * time.Microsecond) // real time: let the callers run
		}
		require.NoError(t, p.Close(context.Background()))
		wg.Wait()
		require.EqualValues(t, p.Stats().Created, m.closes.Load())
	}
}
