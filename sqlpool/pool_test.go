package sqlpool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/pool"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// DBTX is what sqlc generates for pgx.
type DBTX interface {
	Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
	Query(context.Context, string, ...any) (pgx.Rows, error)
	QueryRow(context.Context, string, ...any) pgx.Row
}

var (
	_ DBTX           = (*Pool)(nil)
	_ DBTX           = (*Conn)(nil)
	_ DBTX           = pgx.Tx(nil)
	_ core.Component = (*Pool)(nil)
	_ interface {
		Begin(context.Context) (pgx.Tx, error)
		BeginTx(context.Context, pgx.TxOptions) (pgx.Tx, error)
		Ping(context.Context) error
	} = (*Pool)(nil)
)

func TestStatements(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 2})
	require.NoError(t, p.Ping(ctx))
	_, err := p.Exec(ctx, "create table item (id int primary key, name text)")
	require.NoError(t, err)
	tag, err := p.Exec(ctx, "insert into item values ($1, $2), ($3, $4)", 1, "lamp", 2, "chair")
	require.NoError(t, err)
	require.EqualValues(t, 2, tag.RowsAffected())
	var name string
	require.NoError(t, p.QueryRow(ctx, "select name from item where id = $1", 2).Scan(&name))
	require.Equal(t, "chair", name)
	require.ErrorIs(t, p.QueryRow(ctx, "select name from item where id = 3").Scan(&name), sql.ErrNoRows)

	r, err := p.Query(ctx, "select name from item order by id")
	require.NoError(t, err)
	names, err := pgx.CollectRows(r, pgx.RowTo[string])
	require.NoError(t, err)
	require.Equal(t, []string{"lamp", "chair"}, names)

	c, err := p.Acquire(ctx)
	require.NoError(t, err)
	require.NoError(t, c.QueryRow(ctx, "select name from item where id = 1").Scan(&name))
	require.Equal(t, "lamp", name)
	require.NotNil(t, c.Conn())
	c.Release()
	c.Release()
	require.Nil(t, c.Conn())
	_, err = c.Exec(ctx, "select 1")
	require.ErrorIs(t, err, ErrReleased)
	_, err = c.Query(ctx, "select 1")
	require.ErrorIs(t, err, ErrReleased)
	require.ErrorIs(t, c.QueryRow(ctx, "select 1").Scan(&name), ErrReleased)
	_, err = c.Begin(ctx)
	require.ErrorIs(t, err, ErrReleased)
	require.ErrorIs(t, c.Ping(ctx), ErrReleased)
	require.Zero(t, p.Stats().Used)
}

// scream panics when it is scanned.
type scream struct{}

func (scream) Scan(any) error { panic("scan") }

func mustPanic(t *testing.T, fn func()) {
	t.Helper()
	require.Panics(t, fn)
}

// Every way out of a query or a transaction gives the one connection back.
func TestEveryWayOutReleasesOnce(t *testing.T) {
	ctx, dsn := t.Context(), pgtest.DSN(t)
	const many = "select generate_series(1, 100000)"
	for name, use := range map[string]func(t *testing.T, p *Pool){
		"exec fails": func(t *testing.T, p *Pool) {
			_, err := p.Exec(ctx, "selec 1")
			require.Error(t, err)
		},
		"exec cannot encode": func(t *testing.T, p *Pool) {
			_, err := p.Exec(ctx, "select $1::int", struct{}{})
			require.Error(t, err)
		},
		"query fails": func(t *testing.T, p *Pool) {
			r, err := p.Query(ctx, "selec 1")
			require.Error(t, err)
			require.Equal(t, err, r.Err())
			r.Close()
		},
		"query fails late": func(t *testing.T, p *Pool) {
			r, err := p.Query(ctx, "select 1/(3-x) from generate_series(1, 5) x")
			require.NoError(t, err)
			for r.Next() {
			}
			require.Error(t, r.Err())
		},
		"rows read to the end": func(t *testing.T, p *Pool) {
			r, err := p.Query(ctx, "select 1")
			require.NoError(t, err)
			for r.Next() {
			}
			require.False(t, r.Next())
			r.Close()
		},
		"rows closed early": func(t *testing.T, p *Pool) {
			r, err := p.Query(ctx, many)
			require.NoError(t, err)
			require.True(t, r.Next())
			r.Close()
			r.Close()
			require.False(t, r.Next())
		},
		"rows scanned into the wrong type": func(t *testing.T, p *Pool) {
			r, err := p.Query(ctx, many)
			require.NoError(t, err)
			require.True(t, r.Next())
			var b bool
			require.Error(t, r.Scan(&b))
			require.False(t, r.Next())
		},
		"a panic while rows are scanned": func(t *testing.T, p *Pool) {
			r, err := p.Query(ctx, "select 'x'")
			require.NoError(t, err)
			require.True(t, r.Next())
			mustPanic(t, func() { _ = r.Scan(&scream{}) })
		},
		"row": func(t *testing.T, p *Pool) {
			var n int
			row := p.QueryRow(ctx, "select 1")
			require.NoError(t, row.Scan(&n))
			require.Error(t, row.Scan(&n))
		},
		"no row": func(t *testing.T, p *Pool) {
			require.ErrorIs(t, p.QueryRow(ctx, "select 1 where false").Scan(), pgx.ErrNoRows)
		},
		"row fails": func(t *testing.T, p *Pool) {
			require.Error(t, p.QueryRow(ctx, "selec 1").Scan())
		},
		"row of the wrong type": func(t *testing.T, p *Pool) {
			var b bool
			require.Error(t, p.QueryRow(ctx, many).Scan(&b))
		},
		"a panic while a row is scanned": func(t *testing.T, p *Pool) {
			mustPanic(t, func() { _ = p.QueryRow(ctx, "select 'x'").Scan(&scream{}) })
		},
		"commit": func(t *testing.T, p *Pool) {
			tx, err := p.Begin(ctx)
			require.NoError(t, err)
			require.NoError(t, tx.Commit(ctx))
			require.ErrorIs(t, tx.Commit(ctx), pgx.ErrTxClosed)
			require.ErrorIs(t, tx.Rollback(ctx), pgx.ErrTxClosed)
			_, err = tx.Exec(ctx, "select 1")
			require.ErrorIs(t, err, pgx.ErrTxClosed)
			_, err = tx.Query(ctx, "select 1")
			require.ErrorIs(t, err, pgx.ErrTxClosed)
			require.ErrorIs(t, tx.QueryRow(ctx, "select 1").Scan(), pgx.ErrTxClosed)
		},
		"rollback": func(t *testing.T, p *Pool) {
			tx, err := p.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.Serializable})
			require.NoError(t, err)
			_, err = tx.Exec(ctx, "selec 1")
			require.Error(t, err)
			require.NoError(t, tx.Rollback(ctx))
			require.ErrorIs(t, tx.Rollback(ctx), pgx.ErrTxClosed)
		},
		"commit of a failed transaction": func(t *testing.T, p *Pool) {
			tx, err := p.Begin(ctx)
			require.NoError(t, err)
			require.Error(t, tx.QueryRow(ctx, "selec 1").Scan())
			require.ErrorIs(t, tx.Commit(ctx), pgx.ErrTxCommitRollback)
		},
		"begin fails": func(t *testing.T, p *Pool) {
			_, err := p.BeginTx(ctx, pgx.TxOptions{BeginQuery: "begni"})
			require.Error(t, err)
		},
		"a nested transaction": func(t *testing.T, p *Pool) {
			tx, err := p.Begin(ctx)
			require.NoError(t, err)
			nested, err := tx.Begin(ctx)
			require.NoError(t, err)
			require.NoError(t, nested.Commit(ctx))
			require.Equal(t, 1, p.Stats().Used)
			require.NoError(t, tx.Commit(ctx))
		},
		"rows left open in a transaction": func(t *testing.T, p *Pool) {
			tx, err := p.Begin(ctx)
			require.NoError(t, err)
			_, err = tx.Query(ctx, many)
			require.NoError(t, err)
			require.Error(t, tx.Rollback(ctx))
		},
		"cancelled": func(t *testing.T, p *Pool) {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond) // real time: a real server
			defer cancel()
			_, err := p.Exec(ctx, "select pg_sleep(60)")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			r, err := p.Query(t.Context(), "select 1")
			require.NoError(t, err)
			r.Close()
		},
		"cancelled in a transaction": func(t *testing.T, p *Pool) {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond) // real time: a real server
			defer cancel()
			tx, err := p.Begin(t.Context())
			require.NoError(t, err)
			_, err = tx.Exec(ctx, "select pg_sleep(60)")
			require.Error(t, err)
			require.Error(t, tx.Rollback(ctx))
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := &spy{}
			p := open(t, Config{DSN: dsn, Max: 1, Guard: g, RequireServer: true})
			use(t, p)
			require.Zero(t, p.Stats().Used)
			require.Zero(t, g.held(), "a permit was lost")
			asked, outcomes := g.take()
			require.Equal(t, asked, len(outcomes)+g.canceled, "a permit was ended twice, or not")
			for range 3 {
				var n int
				require.NoError(t, p.QueryRow(ctx, "select 1").Scan(&n))
			}
		})
	}
}

func TestDirtyConnectionIsDestroyed(t *testing.T) {
	dsn := pgtest.DSN(t)
	for name, soil := range map[string]func(*testing.T, *Conn){
		"open transaction": func(t *testing.T, c *Conn) {
			_, err := c.Begin(t.Context())
			require.NoError(t, err)
		},
		"failed transaction": func(t *testing.T, c *Conn) {
			_, err := c.Exec(t.Context(), "begin")
			require.NoError(t, err)
			_, err = c.Exec(t.Context(), "selec 1")
			require.Error(t, err)
		},
		"half-read rows": func(t *testing.T, c *Conn) {
			r, err := c.Query(t.Context(), "select generate_series(1, 100000)")
			require.NoError(t, err)
			require.True(t, r.Next())
			t.Cleanup(func() { // too late, and without harm to whoever has the connection now
				require.False(t, r.Next())
				r.Close()
			})
		},
		"told that the server shuts down": func(t *testing.T, c *Conn) {
			_, err := c.Exec(t.Context(), "do $$ begin raise sqlstate '57P01'; end $$")
			require.Error(t, err)
			require.False(t, c.Conn().IsClosed())
		},
		"closed": func(t *testing.T, c *Conn) {
			require.NoError(t, c.Conn().Close(t.Context()))
		},
		"terminated": func(t *testing.T, c *Conn) {
			_, err := c.Exec(t.Context(), "select pg_terminate_backend(pg_backend_pid())")
			require.Error(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := open(t, Config{DSN: dsn, Max: 1, MinIdle: 1})
			c, err := p.Acquire(t.Context())
			require.NoError(t, err)
			before := c.Conn()
			soil(t, c)
			c.Release()
			require.EqualValues(t, 1, p.Stats().DestroyedBroken)
			warm(t, p, 1)
			c, err = p.Acquire(t.Context())
			require.NoError(t, err)
			require.NotSame(t, before, c.Conn())
			require.Equal(t, byte('I'), c.Conn().PgConn().TxStatus())
			c.Release()
			require.EqualValues(t, 1, p.Stats().DestroyedBroken)
		})
	}
}

// All idle connections die; nobody who comes afterwards notices.
func TestTerminatedBackendsCostNoRequest(t *testing.T) {
	for name, ping := range map[string]func(context.Context, *Pool) error{
		"native": func(ctx context.Context, p *Pool) error { _, err := p.Exec(ctx, "select 1"); return err },
		"database/sql": func(ctx context.Context, p *Pool) error {
			var n int
			return p.DB().QueryRowContext(ctx, "select $1::int", 1).Scan(&n)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dsn := pgtest.DSN(t)
			p := open(t, Config{DSN: dsn, MinIdle: 10, Max: 10})
			warm(t, p, 10)
			var wg sync.WaitGroup
			for range 10 { // each has been used: a first use is a special case in drivers
				wg.Go(func() { _ = ping(t.Context(), p) })
			}
			wg.Wait()
			admin := open(t, Config{DSN: dsn, MinIdle: Off, Max: 1})
			var killed int
			require.NoError(t, admin.QueryRow(t.Context(), `select count(pg_terminate_backend(pid, 5000))
				from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`).Scan(&killed))
			require.Equal(t, 10, killed)
			errs := make(chan error, 50)
			for range 50 {
				wg.Go(func() { errs <- ping(t.Context(), p) })
			}
			wg.Wait()
			close(errs)
			for err := range errs {
				require.NoError(t, err)
			}
			require.EqualValues(t, 10, p.Stats().DestroyedUnhealthy)
		})
	}
}

// While the server is down, callers are told so; when it is back, the pool finds
// it by itself, with the password that it was given.
func TestOutageIsToldAndOutlived(t *testing.T) {
	server := pgtest.Cluster(t)
	p := open(t, Config{DSN: server.DSN(), MinIdle: 2, Max: 4, RequireServer: true, UnavailableAfter: 50 * time.Millisecond})
	require.NoError(t, server.Stop(t.Context()))
	eventually(t, func() bool {
		_, err := p.Exec(t.Context(), "select 1")
		return errors.Is(err, pool.ErrUnavailable)
	})
	require.NoError(t, server.Restart(t.Context()))
	eventually(t, func() bool { return p.Ping(t.Context()) == nil })
	warm(t, p, 2)
}

func TestSixWorkersOnMinTwoMaxFive(t *testing.T) {
	p := open(t, Config{Name: "demo", MinIdle: 2, Max: 5})
	_, err := p.Exec(t.Context(), "create table hit (worker int)")
	require.NoError(t, err)
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for range 50 {
				if _, err := p.Exec(t.Context(), "insert into hit values ($1)", w); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	var hits, servers int
	require.NoError(t, p.QueryRow(t.Context(), "select count(*) from hit").Scan(&hits))
	require.Equal(t, 300, hits)
	require.NoError(t, p.QueryRow(t.Context(),
		"select count(*) from pg_stat_activity where datname = current_database()").Scan(&servers))
	require.LessOrEqual(t, servers, 5)
	warm(t, p, 2)
}

func TestClose(t *testing.T) {
	p := open(t, Config{Max: 2, MinIdle: 1})
	c, err := p.Acquire(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond) // real time: a real server
	defer cancel()
	require.ErrorIs(t, p.Close(ctx), context.DeadlineExceeded)
	_, err = p.Exec(t.Context(), "select 1")
	require.ErrorIs(t, err, pool.ErrClosed)
	require.Error(t, p.QueryRow(t.Context(), "select 1").Scan())
	_, err = p.Query(t.Context(), "select 1")
	require.ErrorIs(t, err, pool.ErrClosed)
	_, err = p.Begin(t.Context())
	require.ErrorIs(t, err, pool.ErrClosed)
	require.Error(t, p.DB().PingContext(t.Context()))
	_, err = c.Exec(t.Context(), "select 1")
	require.NoError(t, err, "what is in use stays in use")
	c.Release()
	require.NoError(t, p.Close(t.Context()))
	require.NoError(t, p.Close(t.Context()))
	require.Equal(t, "closed", p.Inspect().State)
}

func TestReportUsesOpenTelemetrysNames(t *testing.T) {
	p := open(t, Config{Name: "orders", MinIdle: 1, Max: 3})
	c, err := p.Acquire(t.Context())
	require.NoError(t, err)
	defer c.Release()
	r := p.Inspect()
	require.Equal(t, "sqlpool", r.Kind)
	require.Equal(t, "orders", r.Name)
	got := map[string]float64{}
	for _, v := range r.Values {
		got[v.Name+"/"+v.Attr.Value] = v.Number
	}
	require.EqualValues(t, 1, got["db.client.connection.count/used"])
	require.EqualValues(t, 3, got["db.client.connection.max/"])
	require.EqualValues(t, 1, got["db.client.connection.idle.min/"])
	for _, name := range []string{
		"db.client.connection.count/idle", "db.client.connection.pending_requests/", "db.client.connection.timeouts/",
		"surgewall.pool.acquisitions/",
	} {
		require.Contains(t, got, name)
	}
}

func TestPeekAllocatesNothing(t *testing.T) {
	p := open(t, Config{Max: 1})
	c, err := p.Acquire(t.Context())
	require.NoError(t, err)
	defer c.Release()
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if !c.s.valid() {
			t.Fatal("not valid")
		}
	}))
}

func BenchmarkAcquireRelease(b *testing.B) {
	p := open(b, Config{Max: 1, RequireServer: true})
	b.ReportAllocs()
	for b.Loop() {
		c, err := p.Acquire(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		c.Release()
	}
}

func BenchmarkExec(b *testing.B) {
	p := open(b, Config{Max: 1, RequireServer: true})
	for name, exec := range map[string]func(context.Context) error{
		"native": func(ctx context.Context) error { _, err := p.Exec(ctx, "select 1"); return err },
		"db":     func(ctx context.Context) error { _, err := p.DB().ExecContext(ctx, "select 1"); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := exec(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

var errRefused = &core.Rejection{Guard: "breaker", Reason: core.CircuitOpen, Err: errors.New("circuit: open")}

func TestRefusalReachesTheCallerAsItIs(t *testing.T) {
	ctx := t.Context()
	g := &spy{refuse: errRefused}
	p := open(t, Config{Max: 1, Guard: g})
	db := p.DB()
	for name, call := range map[string]func() error{
		"exec":    func() error { _, err := p.Exec(ctx, "select 1"); return err },
		"query":   func() error { _, err := p.Query(ctx, "select 1"); return err },
		"row":     func() error { return p.QueryRow(ctx, "select 1").Scan() },
		"begin":   func() error { _, err := p.Begin(ctx); return err },
		"acquire": func() error { _, err := p.Acquire(ctx); return err },
		"ping":    func() error { return p.Ping(ctx) },
		"db exec": func() error { _, err := db.ExecContext(ctx, "select 1"); return err },
		"db query": func() error {
			r, err := db.QueryContext(ctx, "select 1")
			if err == nil {
				err = errors.Join(r.Close(), r.Err())
			}
			return err
		},
		"db row":   func() error { return db.QueryRowContext(ctx, "select 1").Scan() },
		"db begin": func() error { _, err := db.BeginTx(ctx, nil); return err },
		"db conn":  func() error { _, err := db.Conn(ctx); return err },
	} {
		err := call()
		var r *core.Rejection
		require.ErrorAs(t, err, &r, name)
		require.Same(t, errRefused, r, name)
		asked, _ := g.take()
		require.Equal(t, 1, asked, name)
	}
	require.Zero(t, p.Stats().Acquired)
}

func TestGuardIsAskedOncePerAcquisition(t *testing.T) {
	ctx := t.Context()
	g := &spy{}
	p := open(t, Config{Max: 1, Guard: g})
	tx, err := p.Begin(ctx)
	require.NoError(t, err)
	for range 3 {
		_, err = tx.Exec(ctx, "select 1")
		require.NoError(t, err)
	}
	require.NoError(t, tx.Commit(ctx))
	asked, outcomes := g.take()
	require.Equal(t, 1, asked)
	require.Equal(t, []core.Outcome{core.Success}, outcomes)

	dbtx, err := p.DB().BeginTx(ctx, nil)
	require.NoError(t, err)
	for range 3 {
		_, err = dbtx.ExecContext(ctx, "select 1")
		require.NoError(t, err)
	}
	require.NoError(t, dbtx.Commit())
	asked, outcomes = g.take()
	require.Equal(t, 1, asked)
	require.Equal(t, []core.Outcome{core.Success}, outcomes)

	c, err := p.Acquire(ctx)
	require.NoError(t, err)
	c.Release()
	asked, outcomes = g.take()
	require.Equal(t, 1, asked)
	require.Equal(t, []core.Outcome{core.Ignored}, outcomes, "the server was not heard")
}

func TestRefusalOfThePoolCancelsThePermit(t *testing.T) {
	g := &spy{}
	p := open(t, Config{Max: 1, Guard: g, AcquireTimeout: time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := p.Exec(ctx, "select 1")
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, pool.ErrAcquireTimeout)
	require.Equal(t, 1, g.canceled)
	require.Zero(t, g.held())
}

func TestGuardLearnsHowTheServerFared(t *testing.T) {
	dsn := pgtest.DSN(t)
	type caller struct {
		name string
		run  func(context.Context, *Pool, string) error
	}
	callers := []caller{
		{"native", func(ctx context.Context, p *Pool, q string) error { _, err := p.Exec(ctx, q); return err }},
		{"rows", func(ctx context.Context, p *Pool, q string) error {
			r, err := p.Query(ctx, q)
			for r.Next() {
			}
			return errors.Join(err, r.Err())
		}},
		{"transaction", func(ctx context.Context, p *Pool, q string) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error { _, err := tx.Exec(ctx, q); return err })
		}},
		{"database/sql", func(ctx context.Context, p *Pool, q string) error {
			_, err := p.DB().ExecContext(ctx, q)
			return err
		}},
		{"database/sql rows", func(ctx context.Context, p *Pool, q string) error {
			r, err := p.DB().QueryContext(ctx, q)
			if err != nil {
				return err
			}
			for r.Next() {
			}
			return errors.Join(r.Err(), r.Close())
		}},
		{"database/sql statement", func(ctx context.Context, p *Pool, q string) error {
			st, err := p.DB().PrepareContext(ctx, q)
			if err != nil {
				return err
			}
			defer st.Close()
			_, err = st.ExecContext(ctx)
			return err
		}},
	}
	for _, c := range callers {
		for _, want := range []struct {
			query   string
			timeout time.Duration
			cancel  time.Duration
			fails   bool
			outcome core.Outcome
		}{
			{query: "select 1", outcome: core.Success},
			{query: "selec 1", fails: true, outcome: core.Success},
			{query: "select 1/(3-x) from generate_series(1, 5) x", fails: true, outcome: core.Success},
			{query: "do $$ begin raise sqlstate '53100'; end $$", fails: true, outcome: core.Failure},
			{query: "select pg_terminate_backend(pg_backend_pid())", fails: true, outcome: core.Failure},
			{query: "select pg_sleep(60)", timeout: 150 * time.Millisecond, fails: true, outcome: core.Failure},
			{query: "select pg_sleep(60)", cancel: 150 * time.Millisecond, fails: true, outcome: core.Ignored},
		} {
			t.Run(c.name+"/"+want.query+fmt.Sprint(want.cancel), func(t *testing.T) {
				g := &spy{}
				p := open(t, Config{DSN: dsn, Max: 2, Guard: g, RequireServer: true})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if want.timeout > 0 {
					ctx, cancel = context.WithTimeout(ctx, want.timeout) // real time: a real server
					defer cancel()
				}
				if want.cancel > 0 {
					stop := time.AfterFunc(want.cancel, cancel) // real time: a real server
					defer stop.Stop()
				}
				err := c.run(ctx, p, want.query)
				require.Equal(t, want.fails, err != nil, err)
				eventually(t, func() bool { return g.held() == 0 })
				asked, outcomes := g.take()
				require.Len(t, outcomes, asked)
				require.Equal(t, want.outcome, outcomes[len(outcomes)-1])
			})
		}
	}
}

// A statement that its context kept from being sent says nothing of the server.
func TestUnsentStatementTeachesNothing(t *testing.T) {
	g := &spy{}
	p := open(t, Config{Max: 1, Guard: g})
	tx, err := p.Begin(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Hour))
	defer cancel()
	_, err = tx.Exec(ctx, "select 1")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, tx.Rollback(t.Context()))
	_, outcomes := g.take()
	require.Equal(t, []core.Outcome{core.Success}, outcomes)
	require.Zero(t, p.Stats().DestroyedBroken)
}

func TestPanicInTheCallersCodeTeachesNothing(t *testing.T) {
	g := &spy{}
	p := open(t, Config{Max: 1, Guard: g})
	mustPanic(t, func() { _ = p.QueryRow(t.Context(), "select 'x'").Scan(&scream{}) })
	_, outcomes := g.take()
	require.Equal(t, []core.Outcome{core.Ignored}, outcomes)
}

func TestDatabaseSQLSharesTheConnections(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 1})
	db := p.DB()
	require.Same(t, db, p.DB())
	var pid1, pid2 int
	require.NoError(t, p.QueryRow(ctx, "select pg_backend_pid()").Scan(&pid1))
	require.NoError(t, db.QueryRowContext(ctx, "select pg_backend_pid()").Scan(&pid2))
	require.Equal(t, pid1, pid2)

	st, err := db.PrepareContext(ctx, "select $1::int + 1")
	require.NoError(t, err)
	for i := range 3 {
		var n int
		require.NoError(t, st.QueryRowContext(ctx, i).Scan(&n))
		require.Equal(t, i+1, n)
	}
	require.NoError(t, st.Close())

	c, err := db.Conn(ctx)
	require.NoError(t, err)
	require.Equal(t, 1, p.Stats().Used)
	require.NoError(t, c.Raw(func(dc any) error {
		require.NotNil(t, dc.(interface{ Conn() *pgx.Conn }).Conn())
		return nil
	}))
	require.NoError(t, c.Close())
	require.Zero(t, p.Stats().Used)

	r, err := db.QueryContext(ctx, "select 1::numeric(10,2) as price")
	require.NoError(t, err)
	types, err := r.ColumnTypes()
	require.NoError(t, err)
	precision, scale, ok := types[0].DecimalSize()
	require.True(t, ok)
	require.EqualValues(t, 10, precision)
	require.EqualValues(t, 2, scale)
	require.NoError(t, r.Close())
	require.NoError(t, r.Err())

	// A transaction that its context ends is rolled back by database/sql.
	tctx, cancel := context.WithCancel(ctx)
	_, err = db.BeginTx(tctx, nil)
	require.NoError(t, err)
	cancel()
	eventually(t, func() bool { return p.Stats().Used == 0 })
	require.NoError(t, db.PingContext(ctx))
	require.Zero(t, p.Stats().Used)
}
