package sqlpool

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/core/pool"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// A pool that was connected to a primary learns from one refused write that the
// server is a standby now, and replaces all connections, not that one alone.
func TestDemotedPrimaryResetsThePool(t *testing.T) {
	ctx := t.Context()
	srv := pgtest.Cluster(t)
	a := admin(t, srv.DSN())
	_, err := a.Exec(ctx, "create table item (id int)")
	require.NoError(t, err)
	p := open(t, Config{DSN: srv.DSN(), Max: 6, MinIdle: Off})
	require.NoError(t, p.Warm(ctx, 2))
	standby(t, srv, a)()

	require.NoError(t, p.Ping(ctx))
	require.NoError(t, p.Warm(ctx, 4))
	const write = "insert into item values (1)"
	_, err = p.Exec(ctx, write)
	requireState(t, "25006", err)
	require.GreaterOrEqual(t, p.Stats().DestroyedReset, uint64(4))

	// A pool that never saw a primary reads from the standby, and goes on.
	r := open(t, Config{DSN: srv.DSN(), Max: 6, MinIdle: Off})
	require.NoError(t, r.Warm(ctx, 4))
	_, err = r.Exec(ctx, write)
	requireState(t, "25006", err)
	require.Zero(t, r.Stats().DestroyedReset)
	require.EqualValues(t, 1, r.Stats().DestroyedBroken)

	_, err = admin(t, srv.DSN()).Exec(ctx, "select pg_promote()")
	require.NoError(t, err)
	_, err = p.Exec(ctx, write)
	require.NoError(t, err)
}

func TestResetAndResize(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 3, MinIdle: Off})
	require.NoError(t, p.Warm(ctx, 3))
	c, err := p.Acquire(ctx)
	require.NoError(t, err)
	p.Reset()
	require.NoError(t, c.Ping(ctx), "it is in use")
	c.Release()
	require.EqualValues(t, 3, p.Stats().DestroyedReset)
	require.NoError(t, p.Ping(ctx))
	require.NoError(t, p.Resize(Off, 1))
	require.Equal(t, 1, p.Stats().Max)
	require.Empty(t, p.Held())
}

type tenantKey struct{}

// The hooks of a loan reach every way to use a connection.
func TestHooksOfALoan(t *testing.T) {
	var set, reset atomic.Int64
	cfg := Config{
		Max: 1, MinIdle: Off,
		OnAcquire: func(ctx context.Context, c *pgx.Conn) error {
			set.Add(1)
			tenant, ok := ctx.Value(tenantKey{}).(string)
			if !ok {
				return errors.New("no tenant")
			}
			_, err := c.Exec(ctx, "select set_config('app.tenant', $1, false)", tenant)
			return err
		},
		OnRelease: func(ctx context.Context, c *pgx.Conn) bool {
			reset.Add(1)
			_, err := c.Exec(ctx, "reset app.tenant")
			return err == nil
		},
	}
	p := open(t, cfg)
	_, err := p.Exec(t.Context(), "select 1")
	require.EqualError(t, err, "no tenant")
	ctx := context.WithValue(t.Context(), tenantKey{}, "ada")
	const ask = "select current_setting('app.tenant')"
	var got string
	require.NoError(t, p.QueryRow(ctx, ask).Scan(&got))
	require.Equal(t, "ada", got)
	require.NoError(t, p.DB().QueryRowContext(context.WithValue(t.Context(), tenantKey{}, "bob"), ask).Scan(&got))
	require.Equal(t, "bob", got)
	require.NoError(t, p.With(ctx, func(c *Conn) error { return c.QueryRow(ctx, ask).Scan(&got) }))
	require.Equal(t, "ada", got)
	require.EqualValues(t, 4, set.Load())
	require.EqualValues(t, 3, reset.Load())
}

func TestHooksThatSpoilTheConnection(t *testing.T) {
	for name, spoil := range map[string]func(context.Context, *pgx.Conn){
		"transaction": func(ctx context.Context, c *pgx.Conn) { _, _ = c.Exec(ctx, "begin") },
		"closed":      func(ctx context.Context, c *pgx.Conn) { _ = c.Close(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			spoilt := 0
			once := func(ctx context.Context, c *pgx.Conn) {
				if spoilt++; spoilt == 1 {
					spoil(ctx, c)
				}
			}
			p := open(t, Config{Max: 1, MinIdle: Off, OnAcquire: func(ctx context.Context, c *pgx.Conn) error {
				once(ctx, c)
				return nil
			}})
			_, err := p.Exec(t.Context(), "select 1")
			require.ErrorIs(t, err, errUncleanHook)
			require.EqualValues(t, 1, p.Stats().DestroyedUnhealthy)
			require.NoError(t, p.Ping(t.Context()))

			spoilt = 0
			p = open(t, Config{Max: 1, MinIdle: Off, OnRelease: func(ctx context.Context, c *pgx.Conn) bool {
				once(ctx, c)
				return true
			}})
			require.NoError(t, p.Ping(t.Context()))
			require.EqualValues(t, 1, p.Stats().DestroyedBroken)
			require.NoError(t, p.Ping(t.Context()))
		})
	}
	t.Run("goexit", func(t *testing.T) {
		p := open(t, Config{Max: 1, MinIdle: Off, OnRelease: func(context.Context, *pgx.Conn) bool {
			runtime.Goexit()
			return true
		}})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = p.Ping(context.Background())
		}()
		<-ended
		require.Zero(t, p.Stats().Used)
	})
}

// A breaker in front of the dials opens while the server is away; who asks is
// told why the last dial failed, and when the breaker will let another go.
func TestBreakerOfDialsOpensAndCloses(t *testing.T) {
	ctx := t.Context()
	proxy, dsn := pgtest.Proxy(t, pgtest.DSN(t))
	breaker, err := circuit.New(circuit.Config{Name: "dials", FailureThreshold: 3, OpenFor: 200 * time.Millisecond})
	require.NoError(t, err)
	p := open(t, Config{
		Name: "orders", DSN: dsn, Max: 4, MinIdle: Off, DialGuard: breaker, UnavailableAfter: time.Millisecond,
	})
	require.NoError(t, p.Ping(ctx))
	proxy.Refuse()
	proxy.Cut()
	eventually(t, func() bool {
		err = p.Ping(ctx)
		return breaker.State() == circuit.Open && errors.Is(err, pool.ErrUnavailable)
	})
	require.Contains(t, fmt.Sprint(err), "connection refused")
	require.NotContains(t, fmt.Sprint(err), circuit.ErrOpen.Error())
	require.NoError(t, proxy.Pass())
	eventually(t, func() bool { return p.Ping(ctx) == nil })
	require.NotEqual(t, circuit.Open, breaker.State())
}

// What OnAcquire asks, the server may fail at: the guard hears of it.
func TestGuardLearnsHowOnAcquireFared(t *testing.T) {
	g := &spy{}
	p := open(t, Config{Max: 1, MinIdle: Off, Guard: g, OnAcquire: func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, "select pg_terminate_backend(pg_backend_pid())")
		return err
	}})
	_, err := p.Exec(t.Context(), "select 1")
	requireState(t, "57P01", err)
	asked, outcomes := g.take()
	require.Equal(t, 1, asked)
	require.Equal(t, []core.Outcome{core.Failure}, outcomes)
	require.Zero(t, g.held())
}

// A connection that is dead when OnAcquire finds it is no error of the caller's.
func TestOnAcquireOnADeadConnectionGetsAnother(t *testing.T) {
	n := 0
	p := open(t, Config{Max: 1, MinIdle: Off, OnAcquire: func(ctx context.Context, c *pgx.Conn) error {
		if n++; n == 1 {
			_ = c.Close(ctx)
		}
		_, err := c.Exec(ctx, "select 1")
		return err
	}})
	require.NoError(t, p.Ping(t.Context()))
	require.Equal(t, 2, n)
	require.EqualValues(t, 1, p.Stats().DestroyedUnhealthy)
}

// What is closed does not show what is now somebody else's.
func TestWhatHasEndedShowsNothingOfTheNext(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 1})
	mine, err := p.Query(ctx, "select 1 as mine")
	require.NoError(t, err)
	require.Equal(t, "mine", mine.FieldDescriptions()[0].Name)
	require.NotNil(t, mine.Conn())
	mine.Close()
	tx, err := p.Begin(ctx)
	require.NoError(t, err)
	require.NotNil(t, tx.Conn())
	require.NoError(t, tx.Commit(ctx))
	theirs, err := p.Query(ctx, "select 'x' as secret_column, 2 as other")
	require.NoError(t, err)
	defer theirs.Close()
	require.Nil(t, mine.FieldDescriptions())
	require.Nil(t, mine.Conn())
	require.Nil(t, tx.Conn())
}
