package sqlpool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/core/retry"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// unsentErr is the error of a driver that says that nothing was sent.
type unsentErr struct{ safe bool }

func (unsentErr) Error() string       { return "nothing was sent" }
func (e unsentErr) SafeToRetry() bool { return e.safe }

var errRefusedDial = &net.OpError{Op: "dial", Err: errors.New("connection refused")}

// dialler fails as often as a test says, and then dials.
type dialler struct {
	worldConnector
	errs     []error
	attempts []int
}

func (d *dialler) Connect(ctx context.Context) (driver.Conn, error) {
	d.attempts = append(d.attempts, core.Attempt(ctx))
	if n := len(d.attempts); n <= len(d.errs) && d.errs[n-1] != nil {
		return nil, d.errs[n-1]
	}
	return d.worldConnector.Connect(ctx)
}

func newDialler(errs ...error) *dialler {
	return &dialler{worldConnector: worldConnector{w: &world{}, conn: 1}, errs: errs}
}

func drained(t *testing.T) *retry.Budget {
	t.Helper()
	b, err := retry.NewBudget(retry.BudgetConfig{Max: 1, MinPerSecond: retry.Off})
	require.NoError(t, err)
	require.NoError(t, b.Take())
	return b
}

func TestWrapDialsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, e, g := newDialler(errRefusedDial, &pgconn.PgError{Code: "57P03"}, unsentErr{safe: true}), &ear{}, &spy{}
		budget, err := retry.NewBudget(retry.BudgetConfig{Name: "b"})
		require.NoError(t, err)
		start := time.Now()
		c, err := Wrap(d, WrapConfig{
			Name: "orders", Guard: g, Observer: e,
			Retry: WrapRetry{Tries: 4, Backoff: retry.Backoff{Base: time.Second, Cap: time.Minute}, Budget: budget},
		}).Connect(t.Context())
		require.NoError(t, err)
		require.Equal(t, []int{1, 2, 3, 4}, d.attempts, "core.Attempt tells the driver")
		require.EqualValues(t, 3, budget.Stats().Taken)

		created, retried := e.take(core.KindCreated), e.take(core.KindRetried)
		require.Len(t, created, 4)
		for i, event := range created {
			require.Equal(t, "orders", event.Component)
			require.Equal(t, i < 3, event.ErrorType != "")
		}
		require.Len(t, retried, 3)
		var paused time.Duration
		for i, event := range retried {
			require.Equal(t, core.Event{
				Kind: core.KindRetried, Component: "orders", N: int64(i + 1), ErrorType: "other", Duration: event.Duration,
			}, event)
			require.LessOrEqual(t, event.Duration, time.Second<<i)
			paused += event.Duration
		}
		require.Equal(t, paused, time.Since(start))

		asked, outcomes := g.take()
		require.Equal(t, 3, asked, "each failed dial is a call of its own")
		require.Equal(t, []core.Outcome{core.Failure, core.Failure, core.Ignored}, outcomes)
		require.NoError(t, c.Close())
	})
}

func TestWrapDoesNotDialAgain(t *testing.T) {
	for name, c := range map[string]struct {
		cfg   WrapConfig
		err   error
		tries int // default 1
	}{
		"by default":           {err: errRefusedDial},
		"a negative number":    {err: errRefusedDial, cfg: WrapConfig{Retry: WrapRetry{Tries: -1}}},
		"once is no retry":     {err: errRefusedDial, cfg: WrapConfig{Retry: WrapRetry{Tries: 1}}},
		"more often than said": {err: errRefusedDial, cfg: WrapConfig{Retry: WrapRetry{Tries: 3}}, tries: 3},
		"without budget":       {err: errRefusedDial, cfg: WrapConfig{Retry: WrapRetry{Tries: 3, Budget: drained(t)}}},
		"a wrong password":     {err: &pgconn.PgError{Code: "28P01"}, cfg: WrapConfig{Retry: WrapRetry{Tries: 3}}},
		"an inner refusal":     {err: errRefused, cfg: WrapConfig{Retry: WrapRetry{Tries: 3}}},
		"what is marked":       {err: core.Mark(errRefusedDial, core.Ignored), cfg: WrapConfig{Retry: WrapRetry{Tries: 3}}},
		"what database/sql does": {
			err: fmt.Errorf("gone: %w", driver.ErrBadConn), cfg: WrapConfig{Retry: WrapRetry{Tries: 3}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, e := newDialler(c.err, c.err, c.err, c.err, c.err), &ear{}
				c.cfg.Observer = e
				dc, err := Wrap(d, c.cfg).Connect(t.Context())
				require.Nil(t, dc)
				require.Same(t, c.err, err, "the error passes unchanged")
				require.Len(t, d.attempts, max(1, c.tries))
				require.Len(t, e.take(core.KindCreated), len(d.attempts))
				require.Len(t, e.take(core.KindRetried), len(d.attempts)-1)
			})
		})
	}
}

func TestWrapPauseEndsWithItsContext(t *testing.T) {
	long := retry.Backoff{Base: 1000 * time.Hour, Cap: 1000 * time.Hour}
	synctest.Test(t, func(t *testing.T) {
		d := newDialler(errRefusedDial)
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		time.AfterFunc(time.Second, cancel)
		_, err := Wrap(d, WrapConfig{Retry: WrapRetry{Tries: 2, Backoff: long}}).Connect(ctx)
		require.Same(t, errRefusedDial, err)
		require.Equal(t, time.Second, time.Since(start))
		require.Len(t, d.attempts, 1)
	})
	synctest.Test(t, func(t *testing.T) { // a pause beyond the deadline is not begun, and costs nothing
		d := newDialler(errRefusedDial)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		budget, err := retry.NewBudget(retry.BudgetConfig{})
		require.NoError(t, err)
		start := time.Now()
		_, err = Wrap(d, WrapConfig{Retry: WrapRetry{Tries: 2, Backoff: long, Budget: budget}}).Connect(ctx)
		require.Same(t, errRefusedDial, err)
		require.Zero(t, time.Since(start))
		require.Zero(t, budget.Stats().Taken)
	})
	synctest.Test(t, func(t *testing.T) { // sql.DB.Close ends that of a dial for those who wait
		d, e := newDialler(nil, errRefusedDial), &ear{}
		db := sql.OpenDB(Wrap(d, WrapConfig{Observer: e, Retry: WrapRetry{Tries: 2, Backoff: long}}))
		db.SetMaxOpenConns(1)
		held, err := db.Conn(t.Context())
		require.NoError(t, err)
		waited := make(chan error)
		go func() { _, err := db.Conn(t.Context()); waited <- err }()
		synctest.Wait()
		require.ErrorIs(t, held.Raw(func(any) error { return driver.ErrBadConn }), driver.ErrBadConn)
		synctest.Wait()
		require.Len(t, e.take(core.KindRetried), 1, "database/sql dials for the one who waits")
		start := time.Now()
		require.NoError(t, db.Close())
		require.EqualError(t, <-waited, "sql: database is closed")
		synctest.Wait()
		require.Zero(t, time.Since(start))
		require.Len(t, d.attempts, 2)
	})
}

// A guard that came to refuse is not asked for another dial, nor retried itself.
func TestWrapDoesNotDialAgainBehindAnOpenBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &ear{}
		breaker, err := circuit.New(circuit.Config{Name: "db", FailureThreshold: 2, Observer: e})
		require.NoError(t, err)
		d := newDialler(errRefusedDial, errRefusedDial, errRefusedDial, errRefusedDial)
		budget, err := retry.NewBudget(retry.BudgetConfig{})
		require.NoError(t, err)
		w := Wrap(d, WrapConfig{Guard: breaker, Retry: WrapRetry{Tries: 9, Budget: budget}})
		_, err = w.Connect(t.Context())
		require.Same(t, errRefusedDial, err, "what went wrong, not that it is now open")
		require.Equal(t, circuit.Open, breaker.State())
		require.Len(t, d.attempts, 2)
		require.EqualValues(t, 1, budget.Stats().Taken)

		_, err = w.Connect(t.Context())
		require.ErrorIs(t, err, circuit.ErrOpen)
		require.Len(t, d.attempts, 2)
		require.Len(t, e.take(core.KindRejected), 1, "the breaker tells of what it refuses")
	})
}

// unsentCases are what may be tried on another connection.
var unsentCases = map[string]struct {
	fail string
	run  func(ctx context.Context, db *sql.DB) error
}{
	"exec": {"ExecContext", func(ctx context.Context, db *sql.DB) error {
		_, err := db.ExecContext(ctx, "x")
		return err
	}},
	"query": {"QueryContext", func(ctx context.Context, db *sql.DB) error {
		r, err := db.QueryContext(ctx, "x")
		if err == nil {
			err = errors.Join(r.Close(), r.Err())
		}
		return err
	}},
	"prepare": {"PrepareContext", func(ctx context.Context, db *sql.DB) error {
		st, err := db.PrepareContext(ctx, "x")
		if err == nil {
			err = st.Close()
		}
		return err
	}},
	"statement": {"Stmt.ExecContext", func(ctx context.Context, db *sql.DB) error {
		st, err := db.PrepareContext(ctx, "x")
		if err == nil {
			_, err = st.ExecContext(ctx)
			err = errors.Join(err, st.Close())
		}
		return err
	}},
	"begin": {"BeginTx", func(ctx context.Context, db *sql.DB) error {
		tx, err := db.BeginTx(ctx, nil)
		if err == nil {
			err = tx.Commit()
		}
		return err
	}},
}

func TestWrapTriesElsewhereWhatWasNotSent(t *testing.T) {
	unsent := fmt.Errorf("driver: %w", unsentErr{safe: true})
	for name, c := range unsentCases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, g := &ear{}, &spy{}
				budget, err := retry.NewBudget(retry.BudgetConfig{})
				require.NoError(t, err)
				w := &world{fails: map[string][]error{c.fail: {unsent, unsent}}}
				db := sql.OpenDB(fullDriver(w, WrapConfig{Guard: g, Observer: e, Retry: WrapRetry{Tries: 2, Budget: budget}}))
				require.NoError(t, c.run(t.Context(), db))
				require.Equal(t, 3, w.conns)
				require.EqualValues(t, 2, budget.Stats().Taken)
				require.Equal(t, []core.Event{
					{Kind: core.KindRetried, Component: "sql", ErrorType: "other"},
					{Kind: core.KindRetried, Component: "sql", ErrorType: "other"},
				}, e.take(core.KindRetried))
				broken := e.take(core.KindDestroyed)
				require.Len(t, broken, 2)
				require.Equal(t, "broken", broken[0].To)
				_, outcomes := g.take()
				require.NotContains(t, outcomes, core.Failure, "the server was not asked")
				require.NotContains(t, outcomes, core.Ignored)
				require.Zero(t, g.held())
				require.NoError(t, db.Close())

				// After three tries the program gets the driver's error.
				w = &world{fails: map[string][]error{c.fail: {unsent, unsent, unsent, unsent}}}
				db = sql.OpenDB(fullDriver(w, WrapConfig{Retry: WrapRetry{Tries: 2}}))
				err = c.run(t.Context(), db)
				require.EqualError(t, err, "driver: nothing was sent")
				require.ErrorIs(t, err, driver.ErrBadConn)
				require.ErrorIs(t, err, unsentErr{safe: true})
				require.Equal(t, 3, w.conns)
				require.NoError(t, db.Close())
			})
		})
	}
}

func TestWrapDoesNotTryElsewhere(t *testing.T) {
	for why, cfg := range map[string]struct {
		retry WrapRetry
		err   error
	}{
		"by default":       {err: unsentErr{safe: true}},
		"what was sent":    {err: unsentErr{safe: false}, retry: WrapRetry{Tries: 9}},
		"what says naught": {err: errBroken, retry: WrapRetry{Tries: 9}},
		"without budget":   {err: unsentErr{safe: true}, retry: WrapRetry{Tries: 9, Budget: drained(t)}},
		"a refusal": {
			err: &core.Rejection{Guard: "inner", Err: errBroken, Cause: unsentErr{safe: true}}, retry: WrapRetry{Tries: 9},
		},
	} {
		for name, c := range unsentCases {
			t.Run(why+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := &world{fails: map[string][]error{c.fail: {cfg.err}}}
					e := &ear{}
					db := sql.OpenDB(fullDriver(w, WrapConfig{Observer: e, Retry: cfg.retry}))
					err := c.run(t.Context(), db)
					require.ErrorIs(t, err, cfg.err)
					require.NotErrorIs(t, err, driver.ErrBadConn)
					require.Equal(t, 1, w.conns)
					require.Empty(t, e.take(core.KindRetried))
					require.NoError(t, db.Close())
				})
			})
		}
	}
}

// Inside a transaction nothing is tried again, whatever the driver says, nor is
// what ends it, nor rows, nor what its context has ended.
func TestWrapTriesNothingAgainThatHasBegun(t *testing.T) {
	for name, c := range map[string]struct {
		fail string
		run  func(ctx context.Context, cancel func(), w *world, db *sql.DB) error
	}{
		"exec in a transaction": {"ExecContext", func(ctx context.Context, _ func(), _ *world, db *sql.DB) error {
			tx, err := db.BeginTx(ctx, nil)
			if err == nil {
				_, err = tx.ExecContext(ctx, "x")
				err = errors.Join(err, tx.Rollback())
			}
			return err
		}},
		"prepare in a transaction": {"PrepareContext", func(ctx context.Context, _ func(), _ *world, db *sql.DB) error {
			tx, err := db.BeginTx(ctx, nil)
			if err == nil {
				_, err = tx.PrepareContext(ctx, "x")
				err = errors.Join(err, tx.Rollback())
			}
			return err
		}},
		"begin in a transaction": {"BeginTx", func(ctx context.Context, _ func(), w *world, db *sql.DB) error {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			fails := w.fails["BeginTx"]
			w.fails["BeginTx"] = nil
			tx, err := c.BeginTx(ctx, nil)
			if err == nil {
				w.fails["BeginTx"] = fails
				_, err = c.BeginTx(ctx, nil)
				err = errors.Join(err, tx.Rollback())
			}
			return err
		}},
		"commit": {"Commit", func(ctx context.Context, _ func(), _ *world, db *sql.DB) error {
			tx, err := db.BeginTx(ctx, nil)
			if err == nil {
				err = tx.Commit()
			}
			return err
		}},
		"rows": {"Rows.Next", func(ctx context.Context, _ func(), _ *world, db *sql.DB) error {
			return db.QueryRowContext(ctx, "x").Scan(new(int), new(string))
		}},
		"a context that has ended": {"ExecContext", func(ctx context.Context, cancel func(), w *world, db *sql.DB) error {
			w.hooks["ExecContext"] = cancel
			_, err := db.ExecContext(ctx, "x")
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				w := &world{fails: map[string][]error{c.fail: {unsentErr{safe: true}}, "Rows.NextRow": {unsentErr{safe: true}}}}
				e := &ear{}
				db := sql.OpenDB(fullDriver(w, WrapConfig{Observer: e, Retry: WrapRetry{Tries: 9}}))
				err := c.run(ctx, cancel, w, db)
				require.ErrorIs(t, err, unsentErr{safe: true})
				require.NotErrorIs(t, err, driver.ErrBadConn)
				require.Equal(t, 1, w.conns)
				require.Empty(t, e.take(core.KindRetried))
				require.NoError(t, db.Close())
			})
		})
	}
}

// Statements that succeed pay for retries: an answer does, a failure does not.
func TestWrapFundsItsBudget(t *testing.T) {
	for name, guard := range map[string]core.Guard{"guard": &spy{}, "none": nil} {
		t.Run(name, func(t *testing.T) {
			b, err := retry.NewBudget(retry.BudgetConfig{Max: 10, Percent: 100, MinPerSecond: retry.Off})
			require.NoError(t, err)
			for b.Take() == nil {
			}
			w := &world{fails: map[string][]error{"ExecContext": {nil, &pgconn.PgError{Code: "23505"}, &pgconn.PgError{Code: "53300"}}}}
			db := sql.OpenDB(fullDriver(w, WrapConfig{Guard: guard, Retry: WrapRetry{Tries: 2, Budget: b}}))
			defer db.Close()
			for range 3 {
				_, _ = db.ExecContext(t.Context(), "x")
			}
			require.Equal(t, 2, b.Stats().Available)
			tx, err := db.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			_, err = tx.ExecContext(t.Context(), "x")
			require.NoError(t, err)
			require.NoError(t, tx.Commit())
			require.Equal(t, 3, b.Stats().Available, "a transaction is one call")
			require.NoError(t, db.QueryRowContext(t.Context(), "x").Scan(new(int), new(string)))
			require.Equal(t, 4, b.Stats().Available)
		})
	}
}

// A mock's driver.ErrBadConn is database/sql's to try again: with Retry, as
// without, it does so twice, and no budget is asked.
func TestWrapRetryLeavesErrBadConnToDatabaseSQL(t *testing.T) {
	budget := drained(t)
	db, m := mock(t, WrapConfig{Retry: WrapRetry{Tries: 9, Budget: budget}})
	for range 3 {
		m.ExpectExec("x").WillReturnError(driver.ErrBadConn)
		m.ExpectClose()
	}
	_, err := db.ExecContext(t.Context(), "x")
	require.Equal(t, driver.ErrBadConn, err)
	require.Zero(t, budget.Stats().Refused)

	m.ExpectExec("x").WillReturnError(unsentErr{safe: true})
	_, err = db.ExecContext(t.Context(), "x")
	require.Equal(t, unsentErr{safe: true}, err, "which a budget that is used up does not try again")
	require.EqualValues(t, 1, budget.Stats().Refused)
}

// Over a real driver: a server that is down is dialled until it accepts, and the
// statement is run once.
func TestWrapRetriesOverARealDriver(t *testing.T) {
	ctx := t.Context()
	server := pgtest.Cluster(t)
	cfg, err := pgx.ParseConfig(server.DSN())
	require.NoError(t, err)
	e := &ear{}
	db := sql.OpenDB(Wrap(stdlib.GetConnector(*cfg), WrapConfig{
		Name: "orders", Guard: &spy{}, Observer: e,
		Retry: WrapRetry{Tries: 1000, Backoff: retry.Backoff{Base: 20 * time.Millisecond, Cap: 20 * time.Millisecond}},
	}))
	defer db.Close()
	_, err = db.ExecContext(ctx, "create table item (n int)")
	require.NoError(t, err)

	require.NoError(t, server.Stop(ctx))
	started := make(chan error)
	go func() {
		time.Sleep(100 * time.Millisecond) // real time: a real server that is down for a while
		started <- server.Restart(ctx)
	}()
	_, err = db.ExecContext(ctx, "insert into item values (1)") // pgx's ping finds the old connection dead
	require.NoError(t, err)
	require.NoError(t, <-started)
	require.NotEmpty(t, e.take(core.KindRetried))
	var n int
	require.NoError(t, db.QueryRowContext(ctx, "select count(*) from item").Scan(&n))
	require.Equal(t, 1, n)
}
