package sqlpool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/pool"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// refuse makes the guard refuse with err, or admit.
func (g *spy) refuseWith(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuse = err
}

// dbUses are all ways to use a connection through a *sql.DB.
func dbUses(ctx context.Context, db *sql.DB, st *sql.Stmt) map[string]func() error {
	rows := func(r *sql.Rows, err error) error {
		if err != nil {
			return err
		}
		for r.Next() {
		}
		return errors.Join(r.Err(), r.Close())
	}
	return map[string]func() error{
		"exec":  func() error { _, err := db.ExecContext(ctx, "select 1"); return err },
		"query": func() error { return rows(db.QueryContext(ctx, "select 1")) },
		"row":   func() error { return db.QueryRowContext(ctx, "select 1").Scan(new(int)) },
		"prepare": func() error {
			st, err := db.PrepareContext(ctx, "select 1")
			if err != nil {
				return err
			}
			return st.Close()
		},
		"stmt exec":  func() error { _, err := st.ExecContext(ctx, 1); return err },
		"stmt query": func() error { return rows(st.QueryContext(ctx, 1)) },
		"stmt row":   func() error { return st.QueryRowContext(ctx, 1).Scan(new(int)) },
		"begin": func() error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			return tx.Commit()
		},
		"ping": func() error { return db.PingContext(ctx) },
		"conn": func() error {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			return c.Close()
		},
		"raw": func() error {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			return c.Raw(func(dc any) error { return dc.(interface{ Conn() *pgx.Conn }).Conn().Ping(ctx) })
		},
	}
}

// atOnce makes database/sql keep n proxies.
func atOnce(t *testing.T, db *sql.DB, n int) {
	t.Helper()
	var held []*sql.Conn
	for range n {
		c, err := db.Conn(t.Context())
		require.NoError(t, err)
		held = append(held, c)
	}
	for _, c := range held {
		require.NoError(t, c.Close())
	}
	require.Equal(t, n, db.Stats().Idle)
}

// database/sql ignored what ResetSession returned, and where it did not, asked
// the guard three times.
func TestRefusalReachesTheUserOfAProxy(t *testing.T) {
	g := &spy{}
	p := open(t, Config{Max: 3, Guard: g})
	db := p.DB()
	st, err := db.PrepareContext(t.Context(), "select $1::int")
	require.NoError(t, err)
	for name, use := range dbUses(t.Context(), db, st) {
		g.refuseWith(nil)
		atOnce(t, db, 3)
		require.NoError(t, use(), name)
		g.take()
		g.refuseWith(errRefused)
		err := use()
		var r *core.Rejection
		require.ErrorAs(t, err, &r, name)
		require.Same(t, errRefused, r, name)
		require.Equal(t, errRefused.Error(), err.Error(), name)
		require.NotErrorIs(t, err, driver.ErrBadConn, name)
		asked, _ := g.take()
		require.Equal(t, 1, asked, name)
		require.Zero(t, p.Stats().Used, name)
		require.Zero(t, g.held(), name)
	}
}

// If database/sql ever lends a proxy that was refused, it says so when it is used.
func TestRefusedProxySaysSo(t *testing.T) {
	ctx := t.Context()
	g := &spy{}
	p := open(t, Config{Max: 1, Guard: g})
	c := &dbConn{p: p}
	g.refuseWith(errRefused)
	require.ErrorIs(t, c.ResetSession(ctx), driver.ErrBadConn)
	_, err := c.ExecContext(ctx, "select 1", nil)
	require.ErrorIs(t, err, errRefused)
	_, err = c.QueryContext(ctx, "select 1", nil)
	require.ErrorIs(t, err, errRefused)
	_, err = c.Prepare("select 1")
	require.ErrorIs(t, err, errRefused)
	_, err = c.Begin()
	require.ErrorIs(t, err, errRefused)
	require.ErrorIs(t, c.Ping(ctx), errRefused)
	require.Nil(t, c.Conn())
	require.True(t, c.IsValid())
	g.refuseWith(nil)
	require.NoError(t, c.ResetSession(ctx))
	require.NoError(t, c.Ping(ctx))
	require.NoError(t, c.Close(), "also while it is lent")
	require.Zero(t, p.Stats().Used)
}

// The wait for a connection obeys the statement's context.
func TestDatabaseSQLWaitsAsLongAsItsContext(t *testing.T) {
	g := &spy{}
	p := open(t, Config{Max: 1, Guard: g, RequireServer: true})
	db := p.DB()
	st, err := db.PrepareContext(t.Context(), "select $1::int")
	require.NoError(t, err)
	for name := range dbUses(t.Context(), db, st) {
		c, err := p.Acquire(t.Context())
		require.NoError(t, err)
		g.take()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond) // real time: a real server
		err = dbUses(ctx, db, st)[name]()
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded, name)
		require.ErrorIs(t, err, pool.ErrAcquireTimeout, name)
		asked, _ := g.take()
		require.Equal(t, 1, asked, name)
		require.Equal(t, 1, p.Stats().Used, name)
		c.Release()
	}
	require.Zero(t, g.held())
}

func TestIdleProxiesHoldNothing(t *testing.T) {
	g := &spy{}
	p := open(t, Config{Max: 2, Guard: g})
	db := p.DB()
	st, err := db.PrepareContext(t.Context(), "select $1::int")
	require.NoError(t, err)
	for name, use := range dbUses(t.Context(), db, st) {
		require.NoError(t, use(), name)
		require.Zero(t, p.Stats().Used, name)
		require.Zero(t, g.held(), name)
		require.Equal(t, 1, db.Stats().Idle, name)
	}
}

// The queue is the pool's: first come, first served.
func TestDatabaseSQLPutsNoQueueInFront(t *testing.T) {
	const callers = 1000
	p := open(t, Config{Max: 1, MaxWaiters: Off, AcquireTimeout: Off})
	db := p.DB()
	for range 2 { // with new proxies, then with those that were kept
		held, err := p.Acquire(t.Context())
		require.NoError(t, err)
		var served []int // guarded by who has the only connection
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				c, err := db.Conn(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				served = append(served, i)
				_ = c.Close()
			})
			for p.Stats().Waiting <= i && !t.Failed() {
				runtime.Gosched()
			}
		}
		require.Zero(t, db.Stats().WaitCount)
		held.Release()
		wg.Wait()
		require.Len(t, served, callers)
		for i, who := range served {
			require.Equal(t, i, who)
		}
		require.Equal(t, callers, db.Stats().Idle)
		require.Zero(t, p.Stats().Used)
	}
}

func TestThousandCallersOnTwoConnections(t *testing.T) {
	p := open(t, Config{Max: 2, MaxWaiters: Off, AcquireTimeout: Off})
	db := p.DB()
	st, err := db.PrepareContext(t.Context(), "select $1::int")
	require.NoError(t, err)
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			for range 3 {
				var n int
				if err := st.QueryRowContext(t.Context(), i).Scan(&n); err != nil || n != i {
					t.Error(n, err)
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, p.Stats().Total, 2)
	require.Zero(t, p.Stats().Used)
	var servers int
	require.NoError(t, db.QueryRowContext(t.Context(),
		"select count(*) from pg_stat_activity where datname = current_database()").Scan(&servers))
	require.LessOrEqual(t, servers, 2)
}

func TestConnOfDatabaseSQLKeepsItsConnection(t *testing.T) {
	ctx := t.Context()
	g := &spy{}
	p := open(t, Config{Max: 2, MinIdle: 2, Guard: g})
	db := p.DB()
	pid := func(q interface {
		QueryRowContext(context.Context, string, ...any) *sql.Row
	},
	) (pid int) {
		require.NoError(t, q.QueryRowContext(ctx, "select pg_backend_pid()").Scan(&pid))
		return pid
	}
	c, err := db.Conn(ctx)
	require.NoError(t, err)
	mine := pid(c)
	_, err = c.ExecContext(ctx, "create temporary table own (id int)")
	require.NoError(t, err)
	for range 3 {
		require.NotEqual(t, mine, pid(db))
		require.Equal(t, mine, pid(c))
		tx, err := c.BeginTx(ctx, nil)
		require.NoError(t, err)
		require.Equal(t, mine, pid(tx))
		require.NoError(t, tx.Rollback())
		st, err := c.PrepareContext(ctx, "select count(*) from own")
		require.NoError(t, err)
		require.NoError(t, st.QueryRowContext(ctx).Scan(new(int)))
		require.NoError(t, st.Close())
		require.Equal(t, 1, p.Stats().Used)
	}
	g.take()
	require.NoError(t, c.Close())
	require.Zero(t, p.Stats().Used)
	_, outcomes := g.take()
	require.Equal(t, []core.Outcome{core.Success}, outcomes)
	require.ErrorIs(t, c.PingContext(ctx), sql.ErrConnDone)
}

// pgx closes the connection where its driver rolls back under a context that has
// ended, so that each caller who gave up cost a connection.
func TestTransactionThatItsContextEndsKeepsItsConnection(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 1, RequireServer: true})
	db := p.DB()
	_, err := db.ExecContext(ctx, "create table item (id int)")
	require.NoError(t, err)
	var before, after, items int
	require.NoError(t, db.QueryRowContext(ctx, "select pg_backend_pid()").Scan(&before))
	for range 20 {
		tctx, cancel := context.WithCancel(ctx)
		tx, err := db.BeginTx(tctx, nil)
		require.NoError(t, err)
		_, err = tx.ExecContext(ctx, "insert into item values (1)")
		require.NoError(t, err)
		cancel()
		require.Error(t, tx.Commit())
		eventually(t, func() bool { return p.Stats().Used == 0 })
	}
	require.NoError(t, db.QueryRowContext(ctx, "select pg_backend_pid(), count(*) from item").Scan(&after, &items))
	require.Equal(t, before, after)
	require.Zero(t, items)
	require.Zero(t, p.Stats().DestroyedBroken)

	c, err := db.Conn(ctx)
	require.NoError(t, err)
	tctx, cancel := context.WithCancel(ctx)
	cancel()
	_, err = c.BeginTx(tctx, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, c.PingContext(ctx))
	require.NoError(t, c.Close())

	// In the middle of a statement there is nothing to keep.
	tctx, cancel = context.WithTimeout(ctx, 20*time.Millisecond) // real time: a real server
	defer cancel()
	tx, err := db.BeginTx(tctx, nil)
	require.NoError(t, err)
	_, err = tx.ExecContext(tctx, "select pg_sleep(60)")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Error(t, tx.Rollback())
	eventually(t, func() bool { return p.Stats().Used == 0 })
	require.EqualValues(t, 1, p.Stats().DestroyedBroken)
	require.NoError(t, db.PingContext(ctx))
}

// A server that does not answer the rollback costs the grace.
func TestRollbackOfASilentServerEnds(t *testing.T) {
	srv := pgtest.Cluster(t)
	p := open(t, Config{DSN: srv.DSN(), Max: 1, RequireServer: true})
	ctx, cancel := context.WithCancel(t.Context())
	tx, err := p.DB().BeginTx(ctx, nil)
	require.NoError(t, err)
	var pid int
	require.NoError(t, tx.QueryRowContext(t.Context(), "select pg_backend_pid()").Scan(&pid))
	require.NoError(t, srv.Pause(pid))
	defer func() { require.NoError(t, srv.Resume()) }()
	cancel()
	eventually(t, func() bool { return p.Stats().Used == 0 })
	require.EqualValues(t, 1, p.Stats().DestroyedBroken)
}

// pgx's driver says that the connection is bad.
func TestBusyConnectionOfATransactionSaysSo(t *testing.T) {
	ctx := t.Context()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeSimpleProtocol} {
		cfg, err := pgx.ParseConfig(pgtest.DSN(t))
		require.NoError(t, err)
		cfg.DefaultQueryExecMode = mode
		p := open(t, Config{ConnConfig: cfg, Max: 1})
		tx, err := p.DB().BeginTx(ctx, nil)
		require.NoError(t, err)
		r, err := tx.QueryContext(ctx, "select generate_series(1, 100000)")
		require.NoError(t, err)
		require.True(t, r.Next())
		_, err = tx.ExecContext(ctx, "select 1")
		require.ErrorIs(t, err, errBusy, mode)
		_, err = tx.QueryContext(ctx, "select 1")
		require.ErrorIs(t, err, errBusy, mode)
		st, err := tx.PrepareContext(ctx, "select 1")
		if mode == pgx.QueryExecModeSimpleProtocol { // nothing is sent as yet
			require.NoError(t, err)
			_, err = st.ExecContext(ctx)
		}
		require.ErrorIs(t, err, errBusy, mode)
		require.NoError(t, r.Close())
		_, err = tx.ExecContext(ctx, "select 1")
		require.NoError(t, err)
		require.NoError(t, tx.Commit())
		require.Zero(t, p.Stats().DestroyedBroken)
	}
}

// What died after it was sent is not sent again.
func TestDatabaseSQLNeverSendsTwice(t *testing.T) {
	ctx := t.Context()
	dsn := pgtest.DSN(t)
	g := &spy{}
	p := open(t, Config{DSN: dsn, Max: 3, MinIdle: 3, Guard: g})
	db := p.DB()
	_, err := db.ExecContext(ctx, "create table hit (id int); create sequence tries")
	require.NoError(t, err)
	const suicide = "select nextval('tries'), pg_terminate_backend(pg_backend_pid()), $1::int"
	st, err := db.PrepareContext(ctx, suicide)
	require.NoError(t, err)
	g.take()
	for name, use := range map[string]func() error{
		"exec":      func() error { _, err := db.ExecContext(ctx, suicide, 1); return err },
		"row":       func() error { var a, b, c any; return db.QueryRowContext(ctx, suicide, 1).Scan(&a, &b, &c) },
		"stmt exec": func() error { _, err := st.ExecContext(ctx, 1); return err },
		"stmt row":  func() error { var a, b, c any; return st.QueryRowContext(ctx, 1).Scan(&a, &b, &c) },
	} {
		err := use()
		require.Error(t, err, name)
		require.NotErrorIs(t, err, driver.ErrBadConn, name)
		asked, _ := g.take()
		require.Equal(t, 1, asked, name)
	}
	var tries int
	require.NoError(t, db.QueryRowContext(ctx, "select last_value from tries").Scan(&tries))
	require.Equal(t, 4, tries)
}

// A Scan of the caller's own type that panics is not here: database/sql waits for
// itself then, for ever, whatever the driver.
func TestEveryWayOutOfDatabaseSQLReleasesOnce(t *testing.T) {
	ctx, dsn := t.Context(), pgtest.DSN(t)
	for name, use := range map[string]func(t *testing.T, db *sql.DB){
		"a panic in a transaction": func(t *testing.T, db *sql.DB) {
			tx, err := db.BeginTx(ctx, nil)
			require.NoError(t, err)
			mustPanic(t, func() { _, _ = tx.ExecContext(ctx, "select $1::int", bomb{}) })
			_, err = tx.ExecContext(ctx, "select 1")
			require.ErrorIs(t, err, driver.ErrBadConn)
			require.ErrorIs(t, tx.Commit(), driver.ErrBadConn)
		},
		"a panic on a connection": func(t *testing.T, db *sql.DB) {
			c, err := db.Conn(ctx)
			require.NoError(t, err)
			mustPanic(t, func() { _, _ = c.ExecContext(ctx, "select $1::int", bomb{}) })
			require.NoError(t, c.Raw(func(dc any) error {
				require.Nil(t, dc.(interface{ Conn() *pgx.Conn }).Conn())
				return nil
			}))
			_, err = c.ExecContext(ctx, "select 1")
			require.ErrorIs(t, err, driver.ErrBadConn)
		},
		"a panic in Raw": func(t *testing.T, db *sql.DB) {
			c, err := db.Conn(ctx)
			require.NoError(t, err)
			mustPanic(t, func() { _ = c.Raw(func(any) error { panic("raw") }) })
		},
		"a connection closed in Raw": func(t *testing.T, db *sql.DB) {
			c, err := db.Conn(ctx)
			require.NoError(t, err)
			require.NoError(t, c.Raw(func(dc any) error {
				return dc.(interface{ Conn() *pgx.Conn }).Conn().Close(ctx)
			}))
			require.NoError(t, c.Close())
		},
		"a failed transaction": func(t *testing.T, db *sql.DB) {
			tx, err := db.BeginTx(ctx, nil)
			require.NoError(t, err)
			_, err = tx.ExecContext(ctx, "selec 1")
			require.Error(t, err)
			require.Error(t, tx.Commit())
			require.ErrorIs(t, tx.Rollback(), sql.ErrTxDone)
		},
		"a transaction left open on a connection": func(t *testing.T, db *sql.DB) {
			c, err := db.Conn(ctx)
			require.NoError(t, err)
			_, err = c.ExecContext(ctx, "begin")
			require.NoError(t, err)
			require.NoError(t, c.Close())
		},
		"the handle closed while it is used": func(t *testing.T, db *sql.DB) {
			r, err := db.QueryContext(ctx, "select generate_series(1, 3)")
			require.NoError(t, err)
			require.NoError(t, db.Close())
			for r.Next() {
			}
			require.NoError(t, r.Err())
			require.Error(t, db.PingContext(ctx))
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, proxies := range []string{"new", "kept"} {
				g := &spy{}
				p := open(t, Config{DSN: dsn, Max: 1, Guard: g, RequireServer: true})
				if proxies == "kept" {
					require.NoError(t, p.DB().PingContext(ctx))
				}
				use(t, p.DB())
				require.Zero(t, p.Stats().Used, proxies)
				require.Zero(t, g.held(), "a permit was lost")
				asked, outcomes := g.take()
				require.Equal(t, asked, len(outcomes)+g.canceled, "a permit was ended twice, or not")
				require.NoError(t, p.Ping(ctx))
			}
		})
	}
}

// wild is a guard that does what guards should not.
type wild struct {
	spy
	acquire, finish func()
}

func (g *wild) Acquire(ctx context.Context, c core.Call) (core.Permit, error) {
	if g.acquire != nil {
		g.acquire()
	}
	p, err := g.spy.Acquire(ctx, c)
	p.Cancel()
	return core.NewPermit(g, core.Token{}, core.WantsResult), err
}

func (g *wild) FinishPermit(context.Context, core.Token, core.Result) {
	if g.finish != nil {
		g.finish()
	}
}

func TestGuardThatPanicsOrExitsLosesNoConnectionOfDatabaseSQL(t *testing.T) {
	g := &wild{}
	p := open(t, Config{Max: 1, Guard: g, RequireServer: true})
	db := p.DB()
	for range 2 {
		for name, wildness := range map[string]func(){
			"panic": func() { panic("guard") },
			"exit":  runtime.Goexit,
		} {
			for when, where := range map[string]*func(){"acquire": &g.acquire, "finish": &g.finish} {
				*where = wildness
				for _, use := range dbUses(t.Context(), db, nil) {
					var wg sync.WaitGroup
					wg.Go(func() {
						defer func() { _ = recover() }()
						_ = use()
					})
					wg.Wait()
					require.Zero(t, p.Stats().Used, name+" at "+when)
				}
				*where = nil
				require.NoError(t, db.PingContext(t.Context()))
			}
		}
	}
}

// Settings of database/sql that programs are used to make do no harm.
func TestSettingsOfDatabaseSQLDoNoHarm(t *testing.T) {
	dsn := pgtest.DSN(t)
	for name, set := range map[string]func(*sql.DB){
		"no idle":        func(db *sql.DB) { db.SetMaxIdleConns(0) },
		"one idle":       func(db *sql.DB) { db.SetMaxIdleConns(1) },
		"short lifetime": func(db *sql.DB) { db.SetConnMaxLifetime(time.Nanosecond) },
		"short idle":     func(db *sql.DB) { db.SetConnMaxIdleTime(time.Nanosecond) },
		"few open":       func(db *sql.DB) { db.SetMaxOpenConns(3) },
	} {
		t.Run(name, func(t *testing.T) {
			g := &spy{}
			p := open(t, Config{DSN: dsn, Max: 2, Guard: g})
			db := p.DB()
			st, err := db.PrepareContext(t.Context(), "select $1::int")
			require.NoError(t, err)
			set(db)
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					for range 3 {
						for what, use := range dbUses(t.Context(), db, st) {
							if err := use(); err != nil {
								t.Error(what, err)
							}
						}
					}
				})
			}
			wg.Wait()
			require.Zero(t, p.Stats().Used)
			require.Zero(t, g.held())
			require.Zero(t, p.Stats().DestroyedBroken)
			require.LessOrEqual(t, p.Stats().Total, 2)
		})
	}
}

// Callers of a *sql.DB that give up at any point leave no connection that is in
// use, nor one that answers another's question.
func TestCancelAtEveryPointOfDatabaseSQL(t *testing.T) {
	g := &spy{}
	p := open(t, Config{Max: 4, MaxDials: 4, Guard: g, RequireServer: true})
	db := p.DB()
	st, err := db.PrepareContext(t.Context(), "select $1::int from generate_series(1, 200)")
	require.NoError(t, err)
	row := func(r *sql.Row) (got int, err error) {
		err = r.Scan(&got)
		return got, err
	}
	uses := []func(ctx context.Context, id int) (int, error){
		func(ctx context.Context, id int) (int, error) { return row(st.QueryRowContext(ctx, id)) },
		func(ctx context.Context, id int) (int, error) {
			return row(db.QueryRowContext(ctx, "select $1::int", id))
		},
		func(ctx context.Context, id int) (int, error) {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return 0, err
			}
			defer func() { _ = tx.Rollback() }()
			got, err := row(tx.StmtContext(ctx, st).QueryRowContext(ctx, id))
			if err != nil {
				return 0, err
			}
			return got, tx.Commit()
		},
		func(ctx context.Context, id int) (int, error) {
			c, err := db.Conn(ctx)
			if err != nil {
				return 0, err
			}
			defer c.Close()
			if err := c.PingContext(ctx); err != nil {
				return 0, err
			}
			return row(c.QueryRowContext(ctx, "select $1::int", id))
		},
		func(ctx context.Context, id int) (got int, err error) {
			c, err := db.Conn(ctx)
			if err != nil {
				return 0, err
			}
			defer c.Close()
			err = c.Raw(func(dc any) error {
				return dc.(interface{ Conn() *pgx.Conn }).Conn().QueryRow(ctx, "select $1::int", id).Scan(&got)
			})
			return got, err
		},
		func(ctx context.Context, id int) (got int, err error) {
			own, err := db.PrepareContext(ctx, "select $1::int + 0")
			if err != nil {
				return 0, err
			}
			defer own.Close()
			return row(own.QueryRowContext(ctx, id))
		},
	}
	var wg sync.WaitGroup
	for worker := range 12 {
		wg.Go(func() {
			for i := range 60 {
				id := worker*1000 + i
				ctx, cancel := context.WithCancel(t.Context())
				stop := func() bool { return false }
				if rand.IntN(3) == 0 {
					after := time.Duration(rand.IntN(4000)) * time.Microsecond
					stop = time.AfterFunc(after, cancel).Stop // real time: a real server
				}
				got, err := uses[rand.IntN(len(uses))](ctx, id)
				if err == nil && got != id {
					t.Errorf("asked for %d, was answered %d", id, got)
				}
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				stop()
				cancel()
			}
		})
	}
	wg.Wait()
	eventually(t, func() bool { return p.Stats().Used == 0 && g.held() == 0 })
	asked, outcomes := g.take()
	require.Equal(t, asked, len(outcomes)+g.canceled)
	s := p.Stats()
	t.Logf("%d loans, %d of them ended by a cancel", s.Acquired, s.DestroyedBroken)
}
