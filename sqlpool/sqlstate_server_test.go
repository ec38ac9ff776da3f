package sqlpool

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/core/pool"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// client is one of the ways in which a program reaches the server.
type client struct {
	exec  func(ctx context.Context, query string) error
	begin func(ctx context.Context, serializable bool) (txn, error)
}

type txn struct {
	exec func(query string) error
	end  func(commit bool) error
}

// ways are the pool's own methods, its DB, and Wrap around another pool's driver,
// each behind g.
var ways = map[string]func(t *testing.T, dsn string, g core.Guard) client{
	"native": func(t *testing.T, dsn string, g core.Guard) client {
		p := open(t, Config{DSN: dsn, Max: 4, MinIdle: Off, Guard: g})
		return client{
			exec: func(ctx context.Context, query string) error { _, err := p.Exec(ctx, query); return err },
			begin: func(ctx context.Context, serializable bool) (txn, error) {
				var opts pgx.TxOptions
				if serializable {
					opts.IsoLevel = pgx.Serializable
				}
				tx, err := p.BeginTx(ctx, opts)
				return txn{
					func(query string) error { _, err := tx.Exec(ctx, query); return err },
					func(commit bool) error {
						if commit {
							return tx.Commit(ctx)
						}
						return tx.Rollback(ctx)
					},
				}, err
			},
		}
	},
	"DB": func(t *testing.T, dsn string, g core.Guard) client {
		return sqlClient(open(t, Config{DSN: dsn, Max: 4, MinIdle: Off, Guard: g}).DB())
	},
	"Wrap": func(t *testing.T, dsn string, g core.Guard) client {
		cfg, err := pgx.ParseConfig(dsn)
		require.NoError(t, err)
		db := sql.OpenDB(Wrap(stdlib.GetConnector(*cfg), WrapConfig{Guard: g}))
		t.Cleanup(func() { require.NoError(t, db.Close()) })
		return sqlClient(db)
	},
}

func sqlClient(db *sql.DB) client {
	return client{
		exec: func(ctx context.Context, query string) error { _, err := db.ExecContext(ctx, query); return err },
		begin: func(ctx context.Context, serializable bool) (txn, error) {
			var opts sql.TxOptions
			if serializable {
				opts.Isolation = sql.LevelSerializable
			}
			tx, err := db.BeginTx(ctx, &opts)
			return txn{
				func(query string) error { _, err := tx.ExecContext(ctx, query); return err },
				func(commit bool) error {
					if commit {
						return tx.Commit()
					}
					return tx.Rollback()
				},
			}, err
		},
	}
}

// with is dsn with a setting of the session.
func with(t *testing.T, dsn, name, value string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String()
}

// as is dsn with another user.
func as(t *testing.T, dsn, user, password string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	u.User = url.UserPassword(user, password)
	return u.String()
}

func admin(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func requireState(t *testing.T, want string, err error) {
	t.Helper()
	state, _ := sqlState(err)
	require.Equal(t, want, state, "%v", err)
}

// standby closes c, and is then what makes its server a standby, of nobody.
func standby(t *testing.T, srv *pgtest.Server, c *pgx.Conn) func() {
	t.Helper()
	var data string
	require.NoError(t, c.QueryRow(t.Context(), "show data_directory").Scan(&data))
	require.NoError(t, c.Close(t.Context()))
	return func() {
		require.NoError(t, srv.Stop(t.Context()))
		require.NoError(t, os.WriteFile(filepath.Join(data, "standby.signal"), nil, 0o644))
		require.NoError(t, srv.Restart(t.Context()))
	}
}

// What the guard learns of each SQLSTATE is the same on every way to the server.
func TestGuardLearnsWhatTheServersErrorsMean(t *testing.T) {
	for way, connect := range ways {
		t.Run(way, func(t *testing.T) {
			dsn := pgtest.DSN(t)
			a := admin(t, dsn)
			_, noDblink := a.Exec(t.Context(), "create extension dblink") // not on every server
			_, err := a.Exec(t.Context(), `
				create table item (id int primary key, stock int check (stock >= 0));
				insert into item values (1, 10), (2, 10)`)
			require.NoError(t, err)
			// Nobody else gets this lock.
			_, err = a.Exec(t.Context(), "select pg_advisory_lock(9)")
			require.NoError(t, err)
			raise := func(state string) string {
				return "do $$ begin raise exception using errcode = '" + state + "'; end $$"
			}
			for _, c := range []struct {
				name, query, state string
				setting, value     string
				want               core.Outcome
			}{
				{name: "unique", query: "insert into item values (1, 1)", state: "23505", want: core.Success},
				{name: "check", query: "update item set stock = -1", state: "23514", want: core.Success},
				{name: "syntax", query: "selec 1", state: "42601", want: core.Success},
				{name: "no table", query: "select * from nothing", state: "42P01", want: core.Success},
				{name: "division by zero", query: "select 1/0", state: "22012", want: core.Success},
				{name: "statement_timeout", query: "select pg_sleep(60)", state: "57014", setting: "statement_timeout", value: "50", want: core.Failure},
				{name: "lock_timeout", query: "select pg_advisory_lock(9)", state: "55P03", setting: "lock_timeout", value: "50", want: core.Success},
				{name: "read-only", query: "update item set stock = 1", state: "25006", setting: "default_transaction_read_only", value: "on", want: core.Success},
				{name: "terminated", query: terminate, state: "57P01", want: core.Failure},
				{name: "cancelled by another", query: "select pg_cancel_backend(pg_backend_pid()), pg_sleep(60)", state: "57014", want: core.Failure},
				{name: "temp_file_limit", query: "select count(*) from (select x, repeat('x', 100) from generate_series(1, 100000) x order by 2, 1) y", setting: "temp_file_limit", value: "64kB", state: "53400", want: core.Success},
				{name: "too deep", query: "create function f(int) returns int language sql as 'select f($1)'; select f(1)", setting: "max_stack_depth", value: "100kB", state: "54001", want: core.Success},
				{name: "foreign server down", query: "select * from dblink('host=127.0.0.1 port=1', 'select 1') as t(n int)", state: "08001", want: core.Failure},
				{name: "no such dblink", query: "select dblink_disconnect('nobody')", state: "08003", want: core.Success},
				{name: "disk full", query: raise("53100"), state: "53100", want: core.Failure},
				{name: "out of memory", query: raise("53200"), state: "53200", want: core.Failure},
				{name: "io error", query: raise("58030"), state: "58030", want: core.Failure},
				{name: "corrupt", query: raise("XX001"), state: "XX001", want: core.Failure},
				{name: "the program's own", query: raise("SHOP1"), state: "SHOP1", want: core.Success},
			} {
				t.Run(c.name, func(t *testing.T) {
					if strings.Contains(c.query, "dblink") && noDblink != nil {
						t.Skip(noDblink)
					}
					g := &spy{}
					dsn := with(t, dsn, "default_query_exec_mode", "simple_protocol") // for two statements at once
					if c.setting != "" {
						dsn = with(t, dsn, c.setting, c.value)
					}
					err := connect(t, dsn, g).exec(t.Context(), c.query)
					requireState(t, c.state, err)
					eventually(t, func() bool { return g.held() == 0 })
					_, outcomes := g.take()
					require.Equal(t, []core.Outcome{c.want}, outcomes)
				})
			}
		})
	}
}

// Callers in each other's way, who have the server's answer that they are.
func TestGuardLearnsNothingBadOfConflicts(t *testing.T) {
	ctx := t.Context()
	for way, connect := range ways {
		t.Run(way, func(t *testing.T) {
			dsn := pgtest.DSN(t)
			_, err := admin(t, dsn).Exec(ctx, "create table item (id int primary key, stock int); insert into item values (1, 10), (2, 10)")
			require.NoError(t, err)
			g := &spy{}
			c := connect(t, with(t, dsn, "deadlock_timeout", "20ms"), g)
			for state, conflict := range map[string]func(a, b txn) error{
				"40P01": func(a, b txn) error {
					require.NoError(t, a.exec("update item set stock = 1 where id = 1"))
					require.NoError(t, b.exec("update item set stock = 2 where id = 2"))
					first := make(chan error, 1)
					go func() {
						err := a.exec("update item set stock = 1 where id = 2")
						_ = a.end(false) // lets b go on
						first <- err
					}()
					err := b.exec("update item set stock = 2 where id = 1")
					_ = b.end(false)
					return errors.Join(err, <-first) // one of them
				},
				"40001": func(a, b txn) error { // write skew
					const sum = "select sum(stock) from item"
					require.NoError(t, errors.Join(a.exec(sum), b.exec(sum)))
					require.NoError(t, a.exec("update item set stock = 0 where id = 1"))
					require.NoError(t, b.exec("update item set stock = 0 where id = 2"))
					return errors.Join(a.end(true), b.end(true))
				},
			} {
				a, err := c.begin(ctx, state == "40001")
				require.NoError(t, err)
				b, err := c.begin(ctx, state == "40001")
				require.NoError(t, err)
				requireState(t, state, conflict(a, b))
				eventually(t, func() bool { return g.held() == 0 })
				_, outcomes := g.take()
				require.Equal(t, []core.Outcome{core.Success, core.Success}, outcomes, state)
			}
		})
	}
}

// A statement with too few arguments has the code of a broken protocol, over a
// session that goes on.
func TestTooFewArgumentsAreAnAnswer(t *testing.T) {
	g := &spy{}
	p := open(t, Config{Max: 1, Guard: g})
	for range 3 {
		_, err := p.Exec(t.Context(), "select $1::int, $2::int", pgx.QueryExecModeExec, 1)
		requireState(t, "08P01", err)
	}
	_, outcomes := g.take()
	require.Equal(t, []core.Outcome{core.Success, core.Success, core.Success}, outcomes)
	require.Zero(t, p.Stats().DestroyedBroken)
}

// A login that is refused is an answer to whoever dials; that the server takes
// no more, or is not there, is a failure. A pool without any connection is of no
// use to its callers, whatever the reason.
func TestGuardsLearnWhyThereIsNoConnection(t *testing.T) {
	srv := pgtest.Cluster(t)
	a := admin(t, srv.DSN())
	_, err := a.Exec(t.Context(), "create role crowd login password 'x' connection limit 0; create role stranger login password 'x'; revoke connect on database postgres from public; grant connect on database postgres to crowd")
	require.NoError(t, err)
	_, err = a.Exec(t.Context(), "alter system set hot_standby = off") // from the next start
	require.NoError(t, err)
	beStandby := standby(t, srv, a)
	u, err := url.Parse(srv.DSN())
	require.NoError(t, err)
	u.Path = "/nothing"
	check := func(name, dsn, state string, want core.Outcome) {
		t.Run(name, func(t *testing.T) {
			g, dials := &spy{}, &spy{}
			cfg, err := pgx.ParseConfig(dsn)
			require.NoError(t, err)
			db := sql.OpenDB(Wrap(stdlib.GetConnector(*cfg), WrapConfig{Guard: g}))
			defer db.Close()
			_, err = db.ExecContext(t.Context(), "select 1")
			requireState(t, state, err)
			_, outcomes := g.take()
			require.Equal(t, []core.Outcome{want}, outcomes, "Wrap")

			p := open(t, Config{DSN: dsn, MinIdle: Off, Max: 1, UnavailableAfter: time.Millisecond, Guard: g, DialGuard: dials})
			_, err = p.Exec(t.Context(), "select 1")
			require.ErrorIs(t, err, pool.ErrUnavailable)
			requireState(t, state, err)
			require.Equal(t, core.Ignored, Outcome(t.Context(), err), "who stands before the pool")
			_, err = p.DB().ExecContext(t.Context(), "select 1")
			require.ErrorIs(t, err, pool.ErrUnavailable)
			_, outcomes = g.take()
			require.Equal(t, []core.Outcome{core.Failure, core.Failure}, outcomes, "Guard")
			eventually(t, func() bool { return dials.held() == 0 })
			_, outcomes = dials.take()
			require.NotEmpty(t, outcomes)
			for _, o := range outcomes {
				require.Equal(t, want, o, "DialGuard")
			}
		})
	}
	check("wrong password", as(t, srv.DSN(), "postgres", "wrong"), "28P01", core.Success)
	check("no such user", as(t, srv.DSN(), "nobody", "x"), "28P01", core.Success)
	check("no such database", u.String(), "3D000", core.Success)
	check("no right to connect", as(t, srv.DSN(), "stranger", "x"), "42501", core.Success)
	check("no such setting", with(t, srv.DSN(), "nothing", "1"), "42704", core.Success)
	check("too many connections", as(t, srv.DSN(), "crowd", "x"), "53300", core.Failure)
	beStandby() // not a hot one: it recovers for ever
	check("recovers", srv.DSN(), "57P03", core.Failure)
	require.NoError(t, srv.Stop(t.Context()))
	check("stopped", srv.DSN(), "", core.Failure)
}

// What is safe to retry after a dial is no statement that was not sent: the server
// did not let the client in.
func TestDialThatDidNotSucceedIsAFailure(t *testing.T) {
	cfg, err := pgconn.ParseConfig(pgtest.DSN(t))
	require.NoError(t, err)
	cfg.ValidateConnect = func(context.Context, *pgconn.PgConn) error { return safeError{} }
	_, err = pgconn.ConnectConfig(t.Context(), cfg)
	require.True(t, pgconn.SafeToRetry(err))
	require.Equal(t, core.Failure, Outcome(t.Context(), err))
}

// A refused login of one pool does not keep the others of its server from
// dialling, as their breaker stays closed.
func TestWrongPasswordDoesNotOpenTheBreakerOfDials(t *testing.T) {
	dsn := pgtest.Cluster(t).DSN() // which asks for a password
	breaker, err := circuit.New(circuit.Config{FailureThreshold: 2})
	require.NoError(t, err)
	wrong := open(t, Config{DSN: as(t, dsn, "postgres", "wrong"), MinIdle: Off, UnavailableAfter: time.Millisecond, DialGuard: breaker})
	for range 3 {
		_, err := wrong.Exec(t.Context(), "select 1")
		requireState(t, "28P01", err)
	}
	right := open(t, Config{DSN: dsn, MinIdle: Off, DialGuard: breaker})
	require.NoError(t, right.Ping(t.Context()))
	require.Equal(t, circuit.Closed, breaker.State())
}

// Backends that are killed open a breaker, by failures in a row and by their rate,
// on every way to the server; violated constraints never do.
func TestKilledBackendsOpenABreakerAndConstraintsDoNot(t *testing.T) {
	ctx := t.Context()
	for name, cfg := range map[string]circuit.Config{
		"in a row": {FailureThreshold: 5},
		"by rate":  {FailureThreshold: circuit.Off, FailurePercent: 50, Window: time.Hour, MinCalls: 20},
	} {
		for way, connect := range ways {
			t.Run(name+"/"+way, func(t *testing.T) {
				dsn := pgtest.DSN(t)
				_, err := admin(t, dsn).Exec(ctx, "create table item (id int primary key); insert into item values (1)")
				require.NoError(t, err)
				breaker, err := circuit.New(cfg)
				require.NoError(t, err)
				c := connect(t, dsn, breaker)
				for range 10 {
					requireState(t, "23505", c.exec(ctx, "insert into item values (1)"))
					requireState(t, "42601", c.exec(ctx, "selec 1"))
				}
				require.Equal(t, circuit.Closed, breaker.State())
				killed := 0
				for breaker.State() == circuit.Closed && killed < 100 {
					requireState(t, "57P01", c.exec(ctx, terminate))
					killed++
				}
				require.Equal(t, circuit.Open, breaker.State())
				if cfg.FailurePercent > 0 {
					require.Equal(t, 20, killed, "half of all calls")
				} else {
					require.Equal(t, 5, killed)
				}
				require.ErrorIs(t, c.exec(ctx, "select 1"), circuit.ErrOpen)
			})
		}
	}
}

// A write that a standby refuses is an answer; the connection is replaced by one
// that may be to the primary, and here is, as the standby was promoted.
func TestConnectionToAStandbyIsReplacedWhenItRefusesToWrite(t *testing.T) {
	ctx := t.Context()
	srv := pgtest.Cluster(t)
	a := admin(t, srv.DSN())
	_, err := a.Exec(ctx, "create table item (id int)")
	require.NoError(t, err)
	standby(t, srv, a)()

	g := &spy{}
	p := open(t, Config{DSN: srv.DSN(), Max: 1, MinIdle: Off, Guard: g})
	const write = "insert into item values (1)"
	require.NoError(t, p.Ping(ctx))
	for n := range uint64(2) {
		_, err = p.Exec(ctx, write)
		requireState(t, "25006", err)
		require.Equal(t, n+1, p.Stats().DestroyedBroken)
	}
	_, outcomes := g.take()
	require.NotContains(t, outcomes, core.Failure)

	_, err = admin(t, srv.DSN()).Exec(ctx, "select pg_promote()")
	require.NoError(t, err)
	_, err = p.Exec(ctx, write)
	require.NoError(t, err)
	// On a primary it is the transaction that is read-only, and the connection stays.
	broken := p.Stats().DestroyedBroken
	require.Error(t, pgx.BeginTxFunc(ctx, p, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, write)
		requireState(t, "25006", err)
		return err
	}))
	require.Equal(t, broken, p.Stats().DestroyedBroken)
}
