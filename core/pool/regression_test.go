package pool

import (
	"context"
	"errors"
	"math"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// blocker is an observer that does not return from one kind of event.
type blocker struct {
	on    core.Kind
	until chan struct{}
}

func (b *blocker) Enabled(k core.Kind) bool            { return k == b.on }
func (b *blocker) Observe(context.Context, core.Event) { <-b.until }

// The goroutine that ends waits told of long loans as well.
func TestObserverThatBlocksOnHeldStopsNoTimeout(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		o := &blocker{core.KindHeld, make(chan struct{})}
		cfg := m.config(2)
		cfg.AcquireTimeout, cfg.LeakAfter, cfg.Observer = time.Second, 2*time.Second, o
		p := open(t, cfg)
		a := acquire(t, p)
		time.Sleep(10 * time.Second)
		b := acquire(t, p)
		got := <-ask(context.Background(), p)
		require.ErrorIs(t, got.err, ErrAcquireTimeout)
		require.Equal(t, time.Second, got.after)
		time.Sleep(10 * time.Second)
		require.EqualValues(t, 1, p.Stats().Held, "the second is told of when the first has been")
		close(o.until)
		time.Sleep(time.Second)
		require.EqualValues(t, 2, p.Stats().Held)
		a.Release()
		b.Release()
	})
}

// The goroutine that dials told of it, and held its place meanwhile.
func TestObserverThatBlocksOnCreatedStopsNoDial(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		o := &blocker{core.KindCreated, make(chan struct{})}
		cfg := m.config(10)
		cfg.AcquireTimeout, cfg.Observer = time.Second, o
		p := open(t, cfg)
		var all []Lease[*conn]
		for range 10 {
			all = append(all, acquire(t, p))
		}
		close(o.until)
		for _, l := range all {
			l.Release()
		}
	})
}

// exitEnabled is an observer whose Enabled exits the goroutine, once.
type exitEnabled struct{ armed atomic.Bool }

func (e *exitEnabled) Enabled(k core.Kind) bool {
	if k == core.KindAcquired && e.armed.CompareAndSwap(true, false) {
		runtime.Goexit()
	}
	return false
}

func (e *exitEnabled) Observe(context.Context, core.Event) {}

func TestEnabledThatExitsTheGoroutineLosesNoResource(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		o := &exitEnabled{}
		cfg := m.config(1)
		cfg.Observer = o
		p := open(t, cfg)
		acquire(t, p).Release()
		o.armed.Store(true)
		go p.Acquire(context.Background()) //nolint:errcheck // exits
		synctest.Wait()
		require.False(t, o.armed.Load())
		require.Zero(t, p.Stats().Used)
		acquire(t, p).Release()
	})
}

// A dial failed once, and what had asked for it was served otherwise. When all
// resources go at once later on, that failure is no reason to refuse.
func TestDialThatFailedBeforeIsNoReasonToRefuse(t *testing.T) {
	for name, rest := range map[string]time.Duration{"an hour ago": time.Hour, "two seconds ago": 2 * time.Second} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				m := maker{}
				cfg := m.config(2)
				cfg.MaxAge, cfg.MaxIdleTime, cfg.LeakAfter = Off, Off, Off
				p := open(t, cfg)
				a := acquire(t, p)
				m.fails.Store(true)
				m.took = time.Millisecond
				w := ask(t.Context(), p)
				a.Release()
				got := <-w
				require.NoError(t, got.err)
				time.Sleep(10 * time.Millisecond)
				got.lease.Release()
				require.EqualValues(t, 1, p.Stats().DialFailures)
				m.fails.Store(false)
				time.Sleep(rest)
				p.Reset()
				got = <-ask(t.Context(), p)
				require.NoError(t, got.err)
				got.lease.Release()
			})
		})
	}
}

// Nothing was asked for a while after an outage: whoever comes then waits for a
// new dial, and is not told what the last one of long ago said.
func TestOutageOfLongAgoIsForgotten(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		m.fails.Store(true)
		p := open(t, m.config(2))
		require.ErrorIs(t, (<-ask(t.Context(), p)).err, ErrUnavailable)
		require.Equal(t, "unavailable", p.Inspect().State)
		time.Sleep(time.Minute)
		require.Equal(t, "open", p.Inspect().State)
		m.fails.Store(false)
		got := <-ask(t.Context(), p)
		require.NoError(t, got.err)
		require.Zero(t, got.after)
		got.lease.Release()
	})
}

// A hook took longer than the caller has, and asks for another resource.
func TestCallerWhoseTimeAHookHasUsedUpIsLentNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(2)
		cfg.AcquireTimeout = 2 * time.Second
		takes := time.Duration(0)
		cfg.OnAcquire = func(context.Context, *conn) error {
			took := takes
			takes = 0
			time.Sleep(took)
			if took > 0 {
				return ErrUnfit
			}
			return nil
		}
		p := open(t, cfg)
		a, b := acquire(t, p), acquire(t, p)
		a.Release()
		b.Release()
		takes = 5 * time.Second
		got := <-ask(t.Context(), p)
		require.ErrorIs(t, got.err, ErrAcquireTimeout)

		// What is lent after a shorter hook is not booked as lent before it.
		takes = time.Second
		l := acquire(t, p)
		before := p.Stats().Use.Sum
		l.Release()
		require.Equal(t, before, p.Stats().Use.Sum)
	})
}

func TestWarmForMoreThanResizeLeavesEnds(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := maker{took: time.Second}
		p := open(t, m.config(10))
		warmed := make(chan error, 1)
		go func() { warmed <- p.Warm(context.Background(), 10) }()
		time.Sleep(1500 * time.Millisecond)
		require.NoError(t, p.Resize(Off, 3))
		require.NoError(t, <-warmed)
		require.Equal(t, 3, p.Stats().Total)
	})
}

// exitErr is an error that exits the goroutine of whoever prints it.
type exitErr struct{}

func (exitErr) Error() string { runtime.Goexit(); return "" }

func TestPanicWithAValueThatExitsTheGoroutineLosesNothing(t *testing.T) {
	for name, set := range map[string]func(*Config[*conn], *maker){
		"OnAcquire": func(c *Config[*conn], _ *maker) {
			c.OnAcquire = func(_ context.Context, c *conn) error {
				if c.n == 1 {
					panic(exitErr{})
				}
				return nil
			}
		},
		"Dial": func(c *Config[*conn], m *maker) {
			c.Dial = func(ctx context.Context) (*conn, error) {
				if m.now.Add(1) == 1 {
					panic(exitErr{})
				}
				return m.dial(ctx)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				var m maker
				cfg := m.config(1)
				set(&cfg, &m)
				p := open(t, cfg)
				go func() {
					if l, err := p.Acquire(context.Background()); err == nil {
						l.Release()
					}
				}()
				synctest.Wait()
				require.Zero(t, p.Stats().Used)
				acquire(t, p).Release()
			})
		})
	}
}

func TestLoanThatItsHookOutlastsIsReportedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(1)
		cfg.LeakAfter, cfg.LeakSample = time.Second, 1
		cfg.OnAcquire = func(context.Context, *conn) error { time.Sleep(2 * time.Second); return nil }
		p := open(t, cfg)
		l := acquire(t, p)
		time.Sleep(5 * time.Second)
		l.Release()
		require.EqualValues(t, 1, p.Stats().Held)
	})
}

// A loan counts when its caller has it: a count that was taken back would look
// like a new beginning to whoever reads it.
func TestCountOfLoansNeverFalls(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		var p *Pool[*conn]
		var meanwhile []uint64
		look := func() { meanwhile = append(meanwhile, p.Stats().Acquired) }
		cfg := m.config(1)
		cfg.Valid = func(c *conn) bool { look(); return c.n != 2 }
		cfg.OnAcquire = func(_ context.Context, c *conn) error {
			look()
			if c.n == 1 {
				return errors.New("no")
			}
			return nil
		}
		p = open(t, cfg)
		_, err := p.Acquire(t.Context())
		require.EqualError(t, err, "no")
		acquire(t, p).Release() // the second
		acquire(t, p).Release() // which is not valid any more
		look()
		require.IsNonDecreasing(t, meanwhile)
		require.EqualValues(t, 2, p.Stats().Acquired)
		require.EqualValues(t, 2, p.Stats().Unfit)
	})
}

func TestDefaultOfMaxWaitersDoesNotOverflow(t *testing.T) {
	var m maker
	p := open(t, m.config(math.MaxInt))
	require.Positive(t, p.maxWaiters)
}
