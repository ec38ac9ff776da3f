package pool

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func TestDialOutlivesTheCallerThatAskedForIt(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := maker{took: 100 * time.Millisecond}
		p := open(t, m.config(1))
		ctx, cancel := context.WithTimeout(t.Context(), 25*time.Millisecond)
		defer cancel()
		got := <-ask(ctx, p)
		require.ErrorIs(t, got.err, context.DeadlineExceeded)
		require.Equal(t, 25*time.Millisecond, got.after)
		time.Sleep(75 * time.Millisecond)
		synctest.Wait()
		s := p.Stats()
		require.Equal(t, 1, s.Total)
		require.Equal(t, 1, s.Idle)
		require.EqualValues(t, 1, m.dials.Load())
	})
}

func TestSpikeIsServedByWhatComesFirst(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := maker{}
		cfg := m.config(50)
		cfg.MinIdle = 5
		p := open(t, cfg)
		synctest.Wait()
		m.took = 150 * time.Millisecond
		require.Equal(t, 5, p.Stats().Idle)
		start := time.Now()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				l, err := p.Acquire(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(2 * time.Millisecond)
				l.Release()
			})
		}
		wg.Wait()
		require.Less(t, time.Since(start), 30*time.Millisecond)
		time.Sleep(500 * time.Millisecond)
		require.LessOrEqual(t, m.dials.Load(), int64(5+2))
	})
}

// Demand that has gone by the time a dialer gets to it is not dialled for.
func TestDialWhoseDemandHasGoneIsDropped(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := maker{took: time.Second}
		cfg := m.config(10)
		cfg.MaxDials = 1
		p := open(t, cfg)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		for range 5 {
			ask(ctx, p)
		}
		time.Sleep(10 * time.Second)
		require.EqualValues(t, 1, m.dials.Load())
	})
}

func TestDialsAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := maker{took: 100 * time.Millisecond}
		cfg := m.config(10)
		cfg.MaxDials = 3
		p := open(t, cfg)
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() {
				l, err := p.Acquire(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Second)
				l.Release()
			})
		}
		wg.Wait()
		require.EqualValues(t, 3, m.most.Load())
		require.EqualValues(t, 10, m.dials.Load())
	})
}

func TestFailedDialStrandsNobody(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		fail := true
		cfg := m.config(2)
		cfg.Dial = func(ctx context.Context) (*conn, error) {
			if fail {
				fail = false
				return nil, errDial
			}
			return m.dial(ctx)
		}
		cfg.MaxDials = 1
		p := open(t, cfg)
		a, b := ask(t.Context(), p), ask(t.Context(), p)
		first, second := <-a, <-b
		require.NoError(t, first.err)
		require.NoError(t, second.err)
		first.lease.Release()
		second.lease.Release()
		require.EqualValues(t, 1, p.Stats().DialFailures)
	})
}

func TestAllWhoWaitAreToldWhenNothingCanBeDialled(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		m.fails.Store(true)
		p := open(t, m.config(2))
		var asked []<-chan outcome
		for range 6 {
			asked = append(asked, ask(t.Context(), p))
		}
		for _, a := range asked {
			got := <-a
			require.ErrorIs(t, got.err, ErrUnavailable)
			require.ErrorIs(t, got.err, errDial)
			require.GreaterOrEqual(t, got.after, time.Second)
			require.LessOrEqual(t, got.after, 2*time.Second)
		}
		require.EqualValues(t, 6, p.Stats().Unavailable)
		require.Equal(t, "unavailable", p.Inspect().State)

		// Whoever comes meanwhile is told at once, and when to come back; by
		// having asked it causes one dial, and the first that succeeds ends it.
		got := <-ask(t.Context(), p)
		require.ErrorIs(t, got.err, ErrUnavailable)
		require.Zero(t, got.after)
		var r *core.Rejection
		require.ErrorAs(t, got.err, &r)
		after, ok := r.RetryAfter()
		require.True(t, ok)
		before := m.dials.Load()
		m.fails.Store(false)
		time.Sleep(after + time.Millisecond)
		require.Equal(t, before+1, m.dials.Load())
		acquire(t, p).Release()
		require.Equal(t, "open", p.Inspect().State)
	})
}

// With MinIdle Off and nobody asking, a pool that is unavailable is at rest.
func TestNobodyAsksNobodyDials(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		m.fails.Store(true)
		p := open(t, m.config(2))
		require.ErrorIs(t, (<-ask(t.Context(), p)).err, ErrUnavailable)
		before := m.dials.Load()
		time.Sleep(time.Hour)
		require.Equal(t, before, m.dials.Load())
	})
}

func TestShortOutageIsWaitedOut(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		m.fails.Store(true)
		cfg := m.config(4)
		cfg.AcquireTimeout = 2800 * time.Millisecond
		p := open(t, cfg)
		a := ask(t.Context(), p)
		time.Sleep(300 * time.Millisecond)
		m.fails.Store(false)
		got := <-a
		require.NoError(t, got.err)
		require.GreaterOrEqual(t, got.after, 300*time.Millisecond)
		require.LessOrEqual(t, got.after, 425*time.Millisecond, "an eighth of UnavailableAfter later")
		got.lease.Release()
	})
}

func TestFewDialsWhileRefused(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		m.fails.Store(true)
		cfg := m.config(50)
		cfg.MinIdle = 5
		p := open(t, cfg)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for ctx.Err() == nil {
					_, _ = p.Acquire(ctx)
				}
			})
		}
		wg.Wait()
		require.LessOrEqual(t, m.dials.Load(), int64(20))
		require.GreaterOrEqual(t, m.dials.Load(), int64(3))
	})
}

// While something is alive, failing dials refuse nobody: it will come back.
func TestFailingDialsRefuseNobodyWhileAResourceLives(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(2)
		cfg.AcquireTimeout = time.Minute
		p := open(t, cfg)
		l := acquire(t, p)
		m.fails.Store(true)
		a := ask(t.Context(), p)
		time.Sleep(30 * time.Second)
		require.Empty(t, a)
		l.Release()
		got := <-a
		require.NoError(t, got.err)

		// Its loss is noticed within a second.
		b := ask(t.Context(), p)
		got.lease.Destroy()
		lost := <-b
		require.ErrorIs(t, lost.err, ErrUnavailable)
		require.LessOrEqual(t, lost.after, time.Second)
	})
}

func TestUnavailableOffWaits(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		m.fails.Store(true)
		cfg := m.config(2)
		cfg.UnavailableAfter = Off
		p := open(t, cfg)
		got := <-ask(t.Context(), p)
		require.ErrorIs(t, got.err, ErrAcquireTimeout)
		require.ErrorIs(t, got.err, errDial)
		require.Equal(t, 10*time.Second, got.after)
	})
}

func TestHungDialEndsWithItsTimeout(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := maker{took: time.Hour}
		p := open(t, m.config(1))
		got := <-ask(t.Context(), p)
		require.ErrorIs(t, got.err, ErrUnavailable)
		require.ErrorIs(t, got.err, context.DeadlineExceeded)
		require.Equal(t, 5*time.Second, got.after)
		require.NoError(t, t.Context().Err())
	})
}

func TestDialThatDoesNotReturnAValueIsAFailedDial(t *testing.T) {
	for name, misbehave := range map[string]func(){
		"panics":                   func() { panic("dial went wrong") },
		"exits its goroutine":      runtime.Goexit,
		"panics with a nil error":  func() { panic(error(nil)) },
		"panics with a wild value": func() { panic(wild{}) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				var m maker
				bad := true
				cfg := m.config(2)
				cfg.Dial = func(ctx context.Context) (*conn, error) {
					if bad {
						misbehave()
					}
					return m.dial(ctx)
				}
				p := open(t, cfg)
				got := <-ask(t.Context(), p)
				require.ErrorIs(t, got.err, ErrUnavailable)
				require.ErrorIs(t, got.err, core.ErrNoReturn)
				require.Zero(t, p.Stats().Dialing)
				bad = false
				a := ask(t.Context(), p)
				require.ErrorIs(t, (<-a).err, ErrUnavailable)
				time.Sleep(5 * time.Second)
				one, two := acquire(t, p), acquire(t, p)
				one.Release()
				two.Release()
			})
		})
	}
}

// wild panics when it is printed.
type wild struct{}

func (wild) Error() string { panic("in Error") }

// refuser is a guard that says no until an instant.
type refuser struct{ until time.Time }

func (g *refuser) Acquire(context.Context, core.Call) (core.Permit, error) {
	if time.Now().Before(g.until) {
		return core.Permit{}, &core.Rejection{Guard: "dials", Reason: core.CircuitOpen, RetryAt: g.until}
	}
	return core.Permit{}, nil
}

func TestDialGuardIsAskedAndHeeded(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		o := &recorder{}
		g := &refuser{until: time.Now().Add(700 * time.Millisecond)}
		cfg := m.config(1)
		cfg.DialGuard, cfg.Observer = g, o
		p := open(t, cfg)
		got := <-ask(t.Context(), p)
		require.NoError(t, got.err)
		require.Equal(t, 700*time.Millisecond, got.after)
		require.EqualValues(t, 1, m.dials.Load())
		got.lease.Release()
		require.Equal(t, "circuit_open", o.heard()[0].ErrorType)
	})
}

func TestBackoffIsBoundedAndGrows(t *testing.T) {
	require.Zero(t, backoff(0))
	for failures := 1; failures < 200; failures++ {
		ceiling := maxBackoff
		if failures < 10 {
			ceiling = min(minBackoff<<(failures-1), maxBackoff)
		}
		for range 50 {
			d := backoff(failures)
			require.GreaterOrEqual(t, d, time.Duration(0))
			require.LessOrEqual(t, d, ceiling, fmt.Sprint(failures))
		}
	}
}

func TestCloseEndsADial(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := maker{took: time.Hour}
		o := &recorder{}
		cfg := m.config(1)
		cfg.DialTimeout, cfg.Observer = Off, o
		p := open(t, cfg)
		a := ask(t.Context(), p)
		require.NoError(t, p.Close(t.Context()))
		got := <-a
		require.ErrorIs(t, got.err, ErrClosed)
		require.Zero(t, got.after)
		require.Zero(t, p.Stats().DialFailures)
		for _, e := range o.heard() {
			require.NotEqual(t, core.KindCreated, e.Kind)
		}
	})
}

// A dial that succeeds although the pool was closed meanwhile is not kept.
func TestResourceDialledTooLateIsClosed(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(1)
		cfg.Dial = func(ctx context.Context) (*conn, error) {
			<-ctx.Done()
			return &conn{}, nil
		}
		p := open(t, cfg)
		a := ask(t.Context(), p)
		require.NoError(t, p.Close(t.Context()))
		require.ErrorIs(t, (<-a).err, ErrClosed)
		require.EqualValues(t, 1, m.closes.Load())
		require.Zero(t, p.Stats().Total)
	})
}

// A guard of dials that refuses says when, and the last dial that it let begin
// says why.
func TestRefusalOfTheDialGuardHidesNoError(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		m.fails.Store(true)
		cfg := m.config(2)
		guard := &doorman{admits: 2}
		cfg.DialGuard = guard
		p := open(t, cfg)
		got := <-ask(t.Context(), p)
		require.ErrorIs(t, got.err, ErrUnavailable)
		require.ErrorIs(t, got.err, errDial)
		require.EqualValues(t, 2, m.dials.Load())
		require.Greater(t, p.Stats().DialFailures, uint64(2))

		p = open(t, Config[*conn]{Dial: m.dial, MinIdle: Off, DialGuard: &doorman{}})
		got = <-ask(t.Context(), p)
		require.ErrorIs(t, got.err, errDoorman, "there is no other")
	})
}

var errDoorman = errors.New("not today")

// doorman is a guard that admits so many calls.
type doorman struct{ admits int }

func (d *doorman) Acquire(context.Context, core.Call) (core.Permit, error) {
	if d.admits > 0 {
		d.admits--
		return core.Permit{}, nil
	}
	return core.Permit{}, &core.Rejection{Guard: "doorman", Reason: core.CircuitOpen, Err: errDoorman}
}
