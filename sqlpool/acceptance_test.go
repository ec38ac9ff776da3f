package sqlpool

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/surgewall/surgewall/core/pool"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// These tests show what the pool promises when the server or the network fails.
// Their times are those of our own timers, with room for a busy machine.

// faces are the ways to send a statement that a program has.
var faces = []struct {
	name string
	exec func(context.Context, *Pool, string) error
}{
	{"native", func(ctx context.Context, p *Pool, sql string) error {
		_, err := p.Exec(ctx, sql)
		return err
	}},
	{"database/sql", func(ctx context.Context, p *Pool, sql string) error {
		_, err := p.DB().ExecContext(ctx, sql)
		return err
	}},
}

// used makes every one of n connections a used one: pgx's driver looks after the
// first reuse by itself.
func used(t *testing.T, p *Pool, n int, exec func(context.Context, *Pool, string) error) {
	t.Helper()
	warm(t, p, n)
	for range 3 {
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				if err := exec(t.Context(), p, "select pg_sleep(0.01)"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	warm(t, p, n)
}

// The server restarts under load, and not one request fails that begins when it
// accepts again.
func TestRestartUnderLoad(t *testing.T) {
	for how, restart := range map[string]func(context.Context, *pgtest.Server) error{
		"fast": func(ctx context.Context, s *pgtest.Server) error { return s.Restart(ctx) },
		"immediate": func(ctx context.Context, s *pgtest.Server) error {
			return errors.Join(s.Kill(ctx), s.Restart(ctx))
		},
	} {
		for _, face := range faces {
			t.Run(how+"/"+face.name, func(t *testing.T) {
				server := pgtest.Cluster(t)
				// A restart on a busy machine may take longer than UnavailableAfter,
				// and then callers are told so until a dial has succeeded.
				p := open(t, Config{DSN: server.DSN(), MinIdle: 10, Max: 10, UnavailableAfter: Off})
				used(t, p, 10, face.exec)
				var accepts, stop atomic.Bool
				var late atomic.Int64
				var wg sync.WaitGroup
				for range 50 {
					wg.Go(func() {
						for !stop.Load() {
							begun := accepts.Load()
							err := face.exec(t.Context(), p, "select 1")
							if !begun {
								continue // it may have been on its way
							}
							if late.Add(1); err != nil {
								t.Error(err)
								return
							}
						}
					})
				}
				err := restart(t.Context(), server)
				accepts.Store(true)
				if err == nil {
					eventually(t, func() bool { return late.Load() > 1000 || t.Failed() })
				}
				stop.Store(true)
				wg.Wait()
				require.NoError(t, err)
			})
		}
	}
}

// The same when nothing is asked meanwhile, so that all idle connections are
// dead and the pool has not noticed.
func TestRestartWhileIdle(t *testing.T) {
	for _, face := range faces {
		t.Run(face.name, func(t *testing.T) {
			server := pgtest.Cluster(t)
			p := open(t, Config{DSN: server.DSN(), MinIdle: 10, Max: 10})
			used(t, p, 10, face.exec)
			require.NoError(t, server.Restart(t.Context()))
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					if err := face.exec(t.Context(), p, "select 1"); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		})
	}
}

// While the server refuses, callers do not make the pool storm it, whether they
// wait or are told at once that it is unavailable.
func TestRefusedDialsAreFew(t *testing.T) {
	for _, told := range []bool{false, true} {
		for _, how := range []string{"closed port", "reset"} {
			name := how + ", callers wait"
			if told {
				name = how + ", callers are told"
			}
			t.Run(name, func(t *testing.T) {
				proxy, dsn := pgtest.Proxy(t, pgtest.DSN(t))
				cfg, err := pgx.ParseConfig(dsn)
				require.NoError(t, err)
				var dials atomic.Int64 // the proxy cannot count those that the system refuses
				dial := cfg.DialFunc
				cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
					dials.Add(1)
					return dial(ctx, network, addr)
				}
				if how == "reset" {
					require.NoError(t, proxy.Reset())
				} else {
					proxy.Refuse()
				}
				p := open(t, Config{ConnConfig: cfg, Max: 20})
				if told {
					eventually(t, func() bool {
						return errors.Is(p.Ping(t.Context()), pool.ErrUnavailable)
					})
				}
				before := dials.Load()
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond) // real time: a real network
				defer cancel()
				var refused atomic.Int64
				var wg sync.WaitGroup
				for range 50 {
					wg.Go(func() {
						for ctx.Err() == nil {
							_, err := p.Exec(ctx, "select 1")
							if err == nil {
								t.Error("who answered?")
							}
							if errors.Is(err, pool.ErrUnavailable) {
								refused.Add(1)
							}
						}
					})
				}
				wg.Wait()
				require.LessOrEqual(t, dials.Load()-before, int64(20))
				require.Equal(t, told, refused.Load() > 0)
				if how == "reset" {
					require.LessOrEqual(t, int64(proxy.Stats().Accepted), dials.Load())
				}
				require.NoError(t, proxy.Pass())
				eventually(t, func() bool { return p.Ping(t.Context()) == nil })
			})
		}
	}
}

// A peer that falls silent costs the one connection that there may be for the
// quarter of a second that its close may take. pgx alone waits for 15 s.
func TestSilentPeerGivesItsSlotBack(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("cannot stop a process")
	}
	const room = 2 * time.Second
	server := pgtest.Cluster(t)
	for _, face := range faces {
		for _, how := range []string{"backend stopped", "network frozen"} {
			t.Run(how+"/"+face.name, func(t *testing.T) {
				proxy, dsn := pgtest.Proxy(t, server.DSN())
				p := open(t, Config{DSN: dsn, Max: 1})
				used(t, p, 1, face.exec)
				if how == "network frozen" {
					proxy.Freeze()
				} else {
					var pid int
					require.NoError(t, p.QueryRow(t.Context(), "select pg_backend_pid()").Scan(&pid))
					require.NoError(t, server.Pause(pid))
					defer func() { require.NoError(t, server.Resume()) }()
				}
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // real time: a real server
				defer cancel()
				require.ErrorIs(t, face.exec(ctx, p, "select 1"), context.DeadlineExceeded)
				start := time.Now()
				require.NoError(t, face.exec(t.Context(), p, "select 1"))
				took := time.Since(start)
				t.Log("the slot was back after", took)
				require.Less(t, took, room)
				eventually(t, func() bool { return p.Stats().Closing == 0 })
			})
		}
	}
}

// A spike is served by the connections that there are, and does not make the
// pool dial more than MaxDials at once, however slow the dials are.
func TestSpikeIsServedByWhatIsWarm(t *testing.T) {
	for _, face := range faces {
		t.Run(face.name, func(t *testing.T) {
			const warmed, maxDials, callers = 5, 2, 50
			proxy, dsn := pgtest.Proxy(t, pgtest.DSN(t))
			p := open(t, Config{DSN: dsn, MinIdle: warmed, Max: callers, MaxDials: maxDials, DialTimeout: time.Minute})
			warm(t, p, warmed)
			proxy.DelayDials(time.Hour) // longer than any spike
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					if err := face.exec(t.Context(), p, "select pg_sleep(0.002)"); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			require.LessOrEqual(t, proxy.Stats().Accepted, warmed+maxDials)
			require.Equal(t, warmed, p.Stats().Total, "none of the dials has ended")
		})
	}
}

// A postmaster that accepts and never answers has MaxDials connections to keep,
// whatever the callers do; when it goes on, so does the pool.
func TestSilentServerHasMaxDialsOutstanding(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("cannot stop a process")
	}
	server := pgtest.Cluster(t)
	proxy, dsn := pgtest.Proxy(t, server.DSN())
	require.NoError(t, server.Pause())
	const maxDials = 2
	// Dials do not end while the test counts them.
	p := open(t, Config{DSN: dsn, MinIdle: Off, Max: 10, MaxDials: maxDials, DialTimeout: time.Minute})
	for range 3 {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond) // real time: a real server
				defer cancel()
				_, err := p.Acquire(ctx)
				if !errors.Is(err, pool.ErrAcquireTimeout) || !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.LessOrEqual(t, proxy.Stats().MostOpen, maxDials)
	}
	require.Positive(t, proxy.Stats().Accepted)
	require.NoError(t, server.Resume())
	require.NoError(t, p.Ping(t.Context()))
}

// A silent network is the same to the pool as a silent server, and costs it no
// more dials when it lasts longer than a dial may.
func TestSilentNetworkHeals(t *testing.T) {
	proxy, dsn := pgtest.Proxy(t, pgtest.DSN(t))
	require.NoError(t, proxy.Silence())
	const maxDials = 2
	p := open(t, Config{DSN: dsn, Max: 10, MaxDials: maxDials, DialTimeout: 50 * time.Millisecond, UnavailableAfter: 100 * time.Millisecond})
	eventually(t, func() bool {
		_, err := p.Exec(t.Context(), "select 1")
		return errors.Is(err, pool.ErrUnavailable)
	})
	require.LessOrEqual(t, p.Stats().Dialing, maxDials)
	require.NoError(t, proxy.Pass())
	eventually(t, func() bool { return p.Ping(t.Context()) == nil })
}

func TestThousandPoolsLeaveNothing(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("counts descriptors in /proc")
	}
	dsn := pgtest.DSN(t)
	descriptors := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(fds)
	}
	use := func(i int) {
		cfg := Config{DSN: dsn, MinIdle: Off, Max: 2}
		if i%10 == 0 {
			cfg.MinIdle, cfg.RequireServer = 2, true // dials are under way when it is closed
		}
		p, err := Open(t.Context(), cfg)
		require.NoError(t, err)
		require.NoError(t, faces[i%len(faces)].exec(t.Context(), p, "select 1"))
		require.NoError(t, p.Close(t.Context()))
	}
	use(0) // opens what the runtime keeps
	before, already := descriptors(), goleak.IgnoreCurrent()
	for i := range 1000 {
		use(i)
		// At once: in time, the garbage collector closes what was forgotten.
		require.LessOrEqual(t, descriptors(), before)
	}
	require.NoError(t, goleak.Find(already))
}
