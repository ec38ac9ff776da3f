package pool

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/surgewall/surgewall/core"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errDial = errors.New("connection refused")

// conn is a resource that knows its number and whether it is closed.
type conn struct {
	n      int
	closed atomic.Bool
}

// maker dials conns.
type maker struct {
	dials  atomic.Int64
	closes atomic.Int64
	now    atomic.Int64 // dials that run
	most   atomic.Int64 // the most that ran at once
	took   time.Duration
	fails  atomic.Bool
}

func (m *maker) dial(ctx context.Context) (*conn, error) {
	n := m.dials.Add(1)
	now := m.now.Add(1)
	defer m.now.Add(-1)
	for most := m.most.Load(); now > most && !m.most.CompareAndSwap(most, now); most = m.most.Load() {
	}
	if m.took > 0 {
		select {
		case <-time.After(m.took):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if m.fails.Load() {
		return nil, errDial
	}
	return &conn{n: int(n)}, nil
}

func (m *maker) close(_ context.Context, c *conn) {
	if c.closed.Swap(true) {
		panic("closed twice")
	}
	m.closes.Add(1)
}

// config is a pool that dials with m and only on demand.
func (m *maker) config(maximum int) Config[*conn] {
	return Config[*conn]{Dial: m.dial, Close: m.close, MinIdle: Off, Max: maximum}
}

func open(t testing.TB, cfg Config[*conn]) *Pool[*conn] {
	t.Helper()
	p, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		// Longer than anything a test leaves running; only a failed one waits.
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		require.NoError(t, p.Close(ctx))
	})
	return p
}

func acquire(t testing.TB, p *Pool[*conn]) Lease[*conn] {
	t.Helper()
	l, err := p.Acquire(t.Context())
	require.NoError(t, err)
	require.False(t, l.Value().closed.Load(), "a closed resource was lent")
	return l
}

// inBubble runs a test in virtual time.
func inBubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, test)
}

func TestOneResourceServesAHundredCallers(t *testing.T) {
	var m maker
	p := open(t, m.config(1))
	var inside atomic.Int64
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for range 100 {
				l, err := p.Acquire(context.Background())
				if err != nil || inside.Add(1) != 1 {
					t.Error("lent to two at once, or refused:", err)
					return
				}
				inside.Add(-1)
				l.Release()
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, m.dials.Load())
	s := p.Stats()
	require.Equal(t, 1, s.Total)
	require.Equal(t, 1, s.Idle)
	require.EqualValues(t, 10000, s.Acquired)
}

func TestDoneContextIsRefusedBeforeAnything(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		p := open(t, m.config(1))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := p.Acquire(ctx)
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, err, ErrAcquireTimeout)
		synctest.Wait()
		require.Zero(t, m.dials.Load())
		require.EqualValues(t, 1, p.Stats().Cancelled)
		require.Zero(t, p.Stats().Acquired)
	})
}

func TestUsedLastIsLentFirst(t *testing.T) {
	var m maker
	p := open(t, m.config(3))
	a, b, c := acquire(t, p), acquire(t, p), acquire(t, p)
	for _, l := range []Lease[*conn]{b, c, a} {
		l.Release()
	}
	for _, want := range []Lease[*conn]{a, c, b} {
		got := acquire(t, p)
		defer got.Release()
		require.Same(t, want.Value(), got.Value())
	}
}

func TestSecondReleaseDoesNothing(t *testing.T) {
	var m maker
	p := open(t, m.config(2))
	first := acquire(t, p)
	first.Release()
	first.Release()
	require.Equal(t, 1, p.Stats().Idle)

	second := acquire(t, p)
	require.Same(t, first.Value(), second.Value())
	first.Release() // of the same resource, which is lent to second now
	first.Destroy()
	require.Equal(t, 1, p.Stats().Used)
	require.False(t, second.Value().closed.Load())
	third := acquire(t, p)
	require.NotSame(t, second.Value(), third.Value())
	second.Release()
	third.Release()

	var zero Lease[*conn]
	require.Nil(t, zero.Value())
	zero.Release()
	zero.Destroy()
	require.Equal(t, 2, p.Stats().Idle)
}

func TestDestroyedResourceIsReplaced(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(2)
		cfg.MinIdle = 2
		p := open(t, cfg)
		synctest.Wait()
		l := acquire(t, p)
		l.Destroy()
		l.Release()
		synctest.Wait()
		require.True(t, l.Value().closed.Load())
		s := p.Stats()
		require.Equal(t, 2, s.Idle)
		require.EqualValues(t, 1, s.DestroyedBroken)
		require.EqualValues(t, 3, s.Created)
	})
}

func TestEightWorkersOnMinThreeMaxTen(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		m := maker{took: 20 * time.Millisecond}
		cfg := m.config(10)
		cfg.Name, cfg.MinIdle = "demo", 3
		p := open(t, cfg)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 50 {
					l, err := p.Acquire(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					time.Sleep(5 * time.Millisecond)
					l.Release()
				}
			})
		}
		wg.Wait()
		s := p.Stats()
		require.EqualValues(t, 400, s.Acquired)
		require.Zero(t, s.TimedOut+s.Cancelled+s.Overloaded+s.Unavailable)
		require.Zero(t, s.Used)
		require.LessOrEqual(t, s.Total, 10)
		require.GreaterOrEqual(t, s.Idle, 3)
		require.LessOrEqual(t, m.most.Load(), int64(2), "more than MaxDials dials at once")
	})
}

func TestConfigReportsAllProblems(t *testing.T) {
	_, err := New(Config[int]{
		Max: -2, MaxAge: -7, MaxAgeJitter: -7, MaxIdleTime: -7, AcquireTimeout: -7, MaxWaiters: -7, MinIdle: -3,
		UnavailableAfter: -7, MaxDials: -1, DialTimeout: -7, CheckEvery: -1, CheckTimeout: -1, CloseGrace: -1,
	})
	require.ErrorIs(t, err, core.ErrConfig)
	for _, field := range []string{
		"Dial", "Max", "MaxAge", "MaxAgeJitter", "MaxIdleTime", "AcquireTimeout", "MaxWaiters", "MinIdle",
		"UnavailableAfter", "MaxDials", "DialTimeout", "CheckEvery", "CheckTimeout", "CloseGrace",
	} {
		require.ErrorContains(t, err, "pool.Config."+field+":")
	}
	dial := func(context.Context) (int, error) { return 0, nil }
	_, err = New(Config[int]{Dial: dial, Max: 2, MinIdle: 3})
	require.ErrorContains(t, err, "MinIdle: 3: must not be above Max")
	_, err = New(Config[int]{Dial: dial, MaxAge: time.Second, MaxAgeJitter: time.Second})
	require.ErrorContains(t, err, "must be below MaxAge")
	require.NoError(t, Config[int]{Dial: dial}.Validate())
	require.ErrorIs(t, Config[int]{}.Validate(), core.ErrConfig)
}

func TestDefaults(t *testing.T) {
	cfg := Config[int]{Dial: func(context.Context) (int, error) { return 0, nil }}
	require.NoError(t, cfg.complete())
	require.Equal(t, 5, cfg.MinIdle)
	require.Equal(t, 20, cfg.Max)
	require.Equal(t, 300*time.Second, cfg.MaxAge)
	require.Equal(t, 30*time.Second, cfg.MaxAgeJitter)
	require.Equal(t, 10*time.Second, cfg.AcquireTimeout)
	require.Equal(t, 2, cfg.MaxDials)

	cfg = Config[int]{Dial: cfg.Dial, Max: 3}
	require.NoError(t, cfg.complete())
	require.Equal(t, 3, cfg.MinIdle)
}

func TestInvalidIdleResourceIsNeverLent(t *testing.T) {
	for name, verdict := range map[string]func() bool{
		"says no": func() bool { return false },
		"panics":  func() bool { panic("valid") },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				var m maker
				cfg := m.config(3)
				cfg.Valid = func(c *conn) bool { return c.n > 2 || verdict() }
				p := open(t, cfg)
				a, b := acquire(t, p), acquire(t, p)
				a.Release()
				b.Release()
				c := acquire(t, p)
				require.Equal(t, 3, c.Value().n)
				c.Release()
				synctest.Wait()
				s := p.Stats()
				require.EqualValues(t, 2, s.DestroyedUnhealthy)
				require.EqualValues(t, 3, s.Acquired)
				require.Equal(t, 1, s.Total)
				require.EqualValues(t, 2, m.closes.Load())
			})
		})
	}
}

func TestValidThatExitsTheGoroutineLeaksNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(1)
		cfg.Valid = func(c *conn) bool {
			if c.n == 1 {
				runtime.Goexit()
			}
			return true
		}
		p := open(t, cfg)
		acquire(t, p).Release()
		go p.Acquire(t.Context()) //nolint:errcheck // exits in Valid
		synctest.Wait()
		require.Zero(t, p.Stats().Total)
		acquire(t, p).Release()
	})
}

func TestStatsAndReport(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(2)
		cfg.Name, cfg.MinIdle = "orders", 1
		p := open(t, cfg)
		l := acquire(t, p)
		time.Sleep(3 * time.Second)
		l.Release()
		s := p.Stats()
		require.Equal(t, 3*time.Second, s.Use.Sum)

		r := p.Inspect()
		require.Equal(t, "pool", r.Kind)
		require.Equal(t, "orders", r.Name)
		require.Equal(t, "open", r.State)
		values := map[string]float64{}
		for _, v := range r.Values {
			values[v.Name+v.Attr.Value] = v.Number
		}
		require.EqualValues(t, s.Idle, values["surgewall.pool.resourcesidle"])
		require.EqualValues(t, 1, values["surgewall.pool.acquisitions"])
		require.EqualValues(t, 3, values["surgewall.pool.use_time"])
		require.Contains(t, r.Settings, core.Setting{Name: "MaxAge", Value: "5m0s"})
		require.NoError(t, p.Close(t.Context()))
		require.Equal(t, "closed", p.Inspect().State)
	})
}

func TestFastPathAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	var m maker
	p := open(t, m.config(1))
	acquire(t, p).Release()
	ctx := t.Context()
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		l, err := p.Acquire(ctx)
		if err != nil {
			t.Fatal(err)
		}
		l.Release()
	}))
}

func TestFloodOfRefusalsAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	var m maker
	cfg := m.config(1)
	cfg.MaxWaiters = 1
	p := open(t, cfg)
	l := acquire(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	waits := make(chan struct{})
	go func() {
		defer close(waits)
		_, _ = p.Acquire(ctx)
	}()
	for p.Stats().Waiting == 0 {
		runtime.Gosched()
	}
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		if _, err := p.Acquire(ctx); !errors.Is(err, ErrOverloaded) {
			t.Fatal(err)
		}
	}))
	cancel()
	<-waits
	l.Release()
}
