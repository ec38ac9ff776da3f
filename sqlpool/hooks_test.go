package sqlpool

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/pool"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// roleWithPassword makes a login role, and returns a DSN for it that has another
// password.
func roleWithPassword(t *testing.T, password string) string {
	t.Helper()
	dsn := pgtest.DSN(t)
	admin, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	role := fmt.Sprintf("app%d", time.Now().UnixNano())
	_, err = admin.Exec(t.Context(), "create role "+role+" login password '"+password+"'")
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := admin.Exec(context.Background(), "drop role "+role)
		require.NoError(t, err)
		require.NoError(t, admin.Close(context.Background()))
	})
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	u.User = url.UserPassword(role, "0ut0fdate")
	return u.String()
}

// What the documentation of OnRelease says of ways to undo a session.
func TestOnReleaseUndoesTheSession(t *testing.T) {
	ctx := t.Context()
	for name, undo := range map[string]func(context.Context, *pgx.Conn) error{
		"reset": func(ctx context.Context, c *pgx.Conn) error {
			_, err := c.Exec(ctx, "reset all; reset role")
			return err
		},
		"discard": func(ctx context.Context, c *pgx.Conn) error {
			if _, err := c.Exec(ctx, "discard all"); err != nil {
				return err
			}
			return c.DeallocateAll(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := open(t, Config{Max: 1, OnRelease: func(ctx context.Context, c *pgx.Conn) bool { return undo(ctx, c) == nil }})
			st, err := p.DB().PrepareContext(ctx, "select $1::int")
			require.NoError(t, err)
			for n := range 4 {
				_, err := p.Exec(ctx, "set role pg_monitor; set work_mem = '1234kB'")
				require.NoError(t, err)
				var role, mem string
				require.NoError(t, p.QueryRow(ctx, "select current_setting('role'), current_setting($1)", "work_mem").Scan(&role, &mem))
				require.Equal(t, "none", role)
				require.NotEqual(t, "1234kB", mem)
				var got int
				require.NoError(t, st.QueryRowContext(ctx, n).Scan(&got))
			}
			require.EqualValues(t, 1, p.Stats().Created)
		})
	}
}

// When the statements of a session are gone and pgx has not heard of it, each of
// them failed once, those that a hook had prepared for good.
func TestStatementsThatAreGoneFailOnce(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 1, AfterConnect: func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Prepare(ctx, "mine", "select $1::int")
		return err
	}})
	texts := []string{"select $1::int + 1", "select $1::int + 2", "select $1::int + 3", "mine"}
	row := func(text string) error { return p.QueryRow(ctx, text, 1).Scan(new(int)) }
	for _, inTx := range []bool{false, true} {
		for _, text := range texts {
			require.NoError(t, row(text))
		}
		_, err := p.Exec(ctx, "discard all")
		require.NoError(t, err)
		if inTx {
			err = pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error { return tx.QueryRow(ctx, texts[0], 1).Scan(new(int)) })
		} else {
			err = row(texts[0])
		}
		require.ErrorContains(t, err, "26000")
		for _, text := range texts {
			require.NoError(t, row(text))
		}
	}
	require.EqualValues(t, 2, p.Stats().DestroyedBroken)

	// A name of the program's own, which it got wrong, says nothing of the rest.
	_, err := p.Exec(ctx, "execute gone")
	require.ErrorContains(t, err, "26000")
	require.EqualValues(t, 2, p.Stats().DestroyedBroken)
}

// A token that is good for one login each: no dial may reuse another's.
func TestBeforeConnectGivesEachDialItsPassword(t *testing.T) {
	dsn := roleWithPassword(t, secret)
	var dials atomic.Int64
	p := open(t, Config{DSN: dsn, Max: 3, MinIdle: 3, BeforeConnect: func(ctx context.Context, cfg *pgx.ConnConfig) error {
		n := dials.Add(1)
		_, bounded := ctx.Deadline()
		if !bounded || cfg.Password != "0ut0fdate" || cfg.RuntimeParams["application_name"] != "" {
			return fmt.Errorf("dial %d was given what another has changed", n)
		}
		cfg.Password = secret
		cfg.RuntimeParams["application_name"] = fmt.Sprint("dial ", n)
		return nil
	}})
	warm(t, p, 3)
	names := map[string]bool{}
	for range 3 {
		c, err := p.Acquire(t.Context())
		require.NoError(t, err)
		defer c.Release()
		var name string
		require.NoError(t, c.QueryRow(t.Context(), "show application_name").Scan(&name))
		names[name] = true
	}
	require.Len(t, names, 3)
	require.EqualValues(t, 3, dials.Load())
	require.Zero(t, p.Stats().DialFailures)
}

// What the hook sets is in no error, whether it is refused or the dial fails.
func TestPasswordOfBeforeConnectIsInNoError(t *testing.T) {
	setPassword := func(_ context.Context, cfg *pgx.ConnConfig) error {
		cfg.Password = secret
		return nil
	}
	for name, dsn := range map[string]string{
		"refused":        roleWithPassword(t, "another"),
		"nothing there":  "postgres://app@127.0.0.1:1/shop",
		"no such socket": "postgres://app@/shop?host=/nonexistent",
	} {
		t.Run(name, func(t *testing.T) {
			p := open(t, Config{DSN: dsn, MinIdle: Off, UnavailableAfter: 1, BeforeConnect: setPassword})
			_, err := p.Exec(t.Context(), "select 1")
			require.ErrorIs(t, err, pool.ErrUnavailable)
			failed, ok := errors.AsType[*pgconn.ConnectError](err)
			require.True(t, ok)
			require.Empty(t, failed.Config.Password)
			for _, text := range []string{err.Error(), deep(err), fmt.Sprintf("%+v %#v", failed, failed.Config), fmt.Sprintf("%+v", p.Inspect())} {
				require.NotContains(t, text, secret)
			}
		})
	}
}

var errToken = errors.New("the token service is down")

// A hook that fails, panics or exits its goroutine fails its dial, closes what
// was dialled and leaves the pool in order.
func TestHooksThatFail(t *testing.T) {
	for how, fail := range map[string]func() error{
		"fails":               func() error { return errToken },
		"panics":              func() error { panic("hook") },
		"exits its goroutine": func() error { runtime.Goexit(); return nil },
	} {
		want := core.ErrNoReturn
		if how == "fails" {
			want = errToken
		}
		for _, hook := range []string{"BeforeConnect", "AfterConnect"} {
			t.Run(hook+" "+how, func(t *testing.T) {
				var bad atomic.Bool
				bad.Store(true)
				var made atomic.Pointer[pgx.Conn]
				cfg := Config{DSN: pgtest.DSN(t), MinIdle: Off, UnavailableAfter: 1}
				switch hook {
				case "BeforeConnect":
					cfg.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
						if bad.Load() {
							return fail()
						}
						return nil
					}
				case "AfterConnect":
					cfg.AfterConnect = func(_ context.Context, c *pgx.Conn) error {
						made.Store(c)
						if bad.Load() {
							return fail()
						}
						return nil
					}
				}
				p := open(t, cfg)
				_, err := p.Exec(t.Context(), "select 1")
				require.ErrorIs(t, err, pool.ErrUnavailable)
				require.ErrorIs(t, err, want)
				if how == "fails" {
					require.ErrorContains(t, err, "sqlpool: "+hook+": ")
				}
				if c := made.Load(); hook == "AfterConnect" {
					require.True(t, c.IsClosed())
					<-c.PgConn().CleanupDone()
				}
				require.Zero(t, p.Stats().Total)
				bad.Store(false)
				eventually(t, func() bool { return p.Ping(t.Context()) == nil })
			})
		}
	}
}

func TestHooksEndWithTheDial(t *testing.T) {
	for _, hook := range []string{"BeforeConnect", "AfterConnect"} {
		t.Run(hook, func(t *testing.T) {
			cfg := Config{DSN: pgtest.DSN(t), MinIdle: Off, UnavailableAfter: 1, DialTimeout: 100 * time.Millisecond}
			if hook == "BeforeConnect" {
				cfg.BeforeConnect = func(ctx context.Context, _ *pgx.ConnConfig) error {
					<-ctx.Done()
					return ctx.Err()
				}
			} else {
				cfg.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
					_, err := c.Exec(ctx, "select pg_sleep(60)")
					return err
				}
			}
			p := open(t, cfg)
			_, err := p.Exec(t.Context(), "select 1")
			require.ErrorIs(t, err, pool.ErrUnavailable)
			require.ErrorIs(t, err, context.DeadlineExceeded)
		})
	}
}

// That the hook fails says nothing of the server; a guard of dials that other
// pools share must not shut them out.
func TestDialGuardIsNotToldOfBeforeConnect(t *testing.T) {
	g := &spy{}
	p := open(t, Config{DSN: pgtest.DSN(t), MinIdle: Off, UnavailableAfter: 1, DialGuard: g, BeforeConnect: func(context.Context, *pgx.ConnConfig) error { return errToken }})
	require.ErrorIs(t, p.Ping(t.Context()), errToken)
	_, outcomes := g.take()
	require.NotEmpty(t, outcomes)
	for _, o := range outcomes {
		require.Equal(t, core.Ignored, o)
	}
}

func TestAfterConnectPreparesTheSession(t *testing.T) {
	ctx := t.Context()
	dsn := pgtest.DSN(t)
	admin := open(t, Config{DSN: dsn, Max: 1})
	_, err := admin.Exec(ctx, "create type mood as enum ('calm', 'storm')")
	require.NoError(t, err)
	p := open(t, Config{DSN: dsn, Max: 2, AfterConnect: func(ctx context.Context, c *pgx.Conn) error {
		mood, err := c.LoadType(ctx, "mood")
		if err != nil {
			return err
		}
		c.TypeMap().RegisterType(mood)
		if _, err = c.Prepare(ctx, "ask", "select $1::mood"); err != nil {
			return err
		}
		_, err = c.Exec(ctx, "set lock_timeout = '7s'")
		return err
	}})
	var got string
	require.NoError(t, p.QueryRow(ctx, "ask", "storm").Scan(&got))
	require.Equal(t, "storm", got)
	require.NoError(t, p.DB().QueryRowContext(ctx, "show lock_timeout").Scan(&got))
	require.Equal(t, "7s", got)
}

func TestAfterConnectMustLeaveTheConnectionClean(t *testing.T) {
	for name, after := range map[string]func(context.Context, *pgx.Conn) error{
		"in a transaction": func(ctx context.Context, c *pgx.Conn) error {
			_, err := c.Exec(ctx, "begin")
			return err
		},
		"busy": func(ctx context.Context, c *pgx.Conn) error {
			_, err := c.Query(ctx, "select generate_series(1, 100)")
			return err
		},
		"closed": func(ctx context.Context, c *pgx.Conn) error { return c.Close(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			p := open(t, Config{DSN: pgtest.DSN(t), MinIdle: Off, UnavailableAfter: 1, AfterConnect: after})
			err := p.Ping(t.Context())
			require.ErrorIs(t, err, pool.ErrUnavailable)
			require.ErrorContains(t, err, "AfterConnect left the connection")
		})
	}
}
