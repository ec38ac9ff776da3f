package sqlpool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// mockConnector opens connections of a mock. The wrapper cannot be registered
// beside sqlmock's driver, so it goes around a connector.
type mockConnector struct {
	dsn string
	drv driver.Driver
}

func (c mockConnector) Connect(context.Context) (driver.Conn, error) { return c.drv.Open(c.dsn) }
func (c mockConnector) Driver() driver.Driver                        { return c.drv }

// mock is a *sql.DB over a mocked driver behind g.
func mock(t *testing.T, cfg WrapConfig) (*sql.DB, sqlmock.Sqlmock) {
	t.Helper()
	under, m, err := sqlmock.NewWithDSN(t.Name(), sqlmock.MonitorPingsOption(true))
	require.NoError(t, err)
	db := sql.OpenDB(Wrap(mockConnector{t.Name(), under.Driver()}, cfg))
	t.Cleanup(func() {
		require.NoError(t, m.ExpectationsWereMet())
		_, _ = db.Close(), under.Close() // the mock did not expect it
	})
	return db, m
}

func TestWrapAsksOncePerStatementAndTransaction(t *testing.T) {
	ctx := t.Context()
	g := &spy{}
	db, m := mock(t, WrapConfig{Guard: g})

	m.ExpectPing()
	require.NoError(t, db.PingContext(ctx))
	asked, _ := g.take()
	require.Zero(t, asked, "a ping is no statement")

	m.ExpectExec("update").WillReturnResult(sqlmock.NewResult(0, 1))
	_, err := db.ExecContext(ctx, "update item set stock = 0")
	require.NoError(t, err)
	asked, outcomes := g.take()
	require.Equal(t, 1, asked)
	require.Equal(t, []core.Outcome{core.Success}, outcomes)

	m.ExpectBegin()
	m.ExpectExec("insert").WillReturnResult(sqlmock.NewResult(0, 1))
	m.ExpectQuery("select").WillReturnRows(sqlmock.NewRows([]string{"n"}).AddRow(1))
	m.ExpectCommit()
	tx, err := db.BeginTx(ctx, nil)
	require.NoError(t, err)
	_, err = tx.ExecContext(ctx, "insert into item values (1)")
	require.NoError(t, err)
	var n int
	require.NoError(t, tx.QueryRowContext(ctx, "select 1").Scan(&n))
	require.Equal(t, 1, g.held(), "the permit lasts as long as the transaction")
	require.NoError(t, tx.Commit())
	asked, outcomes = g.take()
	require.Equal(t, 1, asked)
	require.Equal(t, []core.Outcome{core.Success}, outcomes)

	m.ExpectPrepare("select")
	m.ExpectQuery("select").WillReturnRows(sqlmock.NewRows([]string{"n"}).AddRow(1))
	m.ExpectExec("select").WillReturnResult(sqlmock.NewResult(0, 1))
	st, err := db.PrepareContext(ctx, "select 1")
	require.NoError(t, err)
	asked, _ = g.take()
	require.Zero(t, asked, "preparing is not running")
	require.NoError(t, st.QueryRowContext(ctx).Scan(&n))
	_, err = st.ExecContext(ctx)
	require.NoError(t, err)
	require.NoError(t, st.Close())
	asked, outcomes = g.take()
	require.Equal(t, 2, asked)
	require.Equal(t, []core.Outcome{core.Success, core.Success}, outcomes)
}

func TestWrapHoldsThePermitUntilRowsAreClosed(t *testing.T) {
	g := &spy{}
	db, m := mock(t, WrapConfig{Guard: g})
	m.ExpectQuery("select").WillReturnRows(sqlmock.NewRows([]string{"n"}).AddRow(1).AddRow(2).RowError(1, io.ErrUnexpectedEOF))
	r, err := db.QueryContext(t.Context(), "select n")
	require.NoError(t, err)
	require.True(t, r.Next())
	require.Equal(t, 1, g.held())
	require.False(t, r.Next())
	require.ErrorIs(t, r.Err(), io.ErrUnexpectedEOF)
	require.NoError(t, r.Close())
	_, outcomes := g.take()
	require.Equal(t, []core.Outcome{core.Failure}, outcomes)
}

func TestWrapRefuses(t *testing.T) {
	ctx := t.Context()
	db, m := mock(t, WrapConfig{Guard: &spy{refuse: errRefused}})
	m.ExpectPrepare("select")
	st, err := db.PrepareContext(ctx, "select 1")
	require.NoError(t, err)
	defer st.Close()
	for name, call := range map[string]func() error{
		"exec":      func() error { _, err := db.ExecContext(ctx, "select 1"); return err },
		"row":       func() error { return db.QueryRowContext(ctx, "select 1").Scan() },
		"begin":     func() error { _, err := db.BeginTx(ctx, nil); return err },
		"stmt exec": func() error { _, err := st.ExecContext(ctx); return err },
		"stmt row":  func() error { return st.QueryRowContext(ctx).Scan() },
	} {
		var r *core.Rejection
		require.ErrorAs(t, call(), &r, name)
		require.Same(t, errRefused, r, name)
	}
}

func TestWrapTellsHowItWent(t *testing.T) {
	for _, c := range []struct {
		err  error
		want core.Outcome
	}{
		{&pgconn.PgError{Code: "23505"}, core.Success},
		{&pgconn.PgError{Code: "53300"}, core.Failure},
		{errors.New("UNIQUE constraint failed"), core.Ignored}, // a driver of its own kind
		{&net.OpError{Op: "read", Err: errors.New("connection reset by peer")}, core.Failure},
		{io.ErrUnexpectedEOF, core.Failure},
		{core.Mark(errors.New("disk full"), core.Failure), core.Failure},
		{core.Mark(errors.New("duplicate"), core.Success), core.Success},
	} {
		t.Run(c.err.Error(), func(t *testing.T) {
			g := &spy{}
			db, m := mock(t, WrapConfig{Guard: g})
			m.ExpectExec("x").WillReturnError(c.err)
			_, err := db.ExecContext(t.Context(), "x")
			require.Equal(t, c.err, err, "errors pass unchanged")

			m.ExpectBegin()
			m.ExpectExec("x").WillReturnError(c.err)
			m.ExpectRollback()
			tx, err := db.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			_, err = tx.ExecContext(t.Context(), "x")
			require.Equal(t, c.err, err)
			require.NoError(t, tx.Rollback())

			m.ExpectBegin().WillReturnError(c.err)
			_, err = db.BeginTx(t.Context(), nil)
			require.Equal(t, c.err, err)
			_, outcomes := g.take()
			require.Equal(t, []core.Outcome{c.want, c.want, c.want}, outcomes, c.err)
			require.Zero(t, g.held())
		})
	}
}

func TestWrapOutcomeIsTheUsersOwn(t *testing.T) {
	g := &spy{}
	db, m := mock(t, WrapConfig{Guard: g, Outcome: func(context.Context, error) core.Outcome { return core.Throttled }})
	m.ExpectExec("x").WillReturnError(io.EOF)
	_, err := db.ExecContext(t.Context(), "x")
	require.ErrorIs(t, err, io.EOF)
	_, outcomes := g.take()
	require.Equal(t, []core.Outcome{core.Throttled}, outcomes)
}

// database/sql tries a bad connection's statement again, and each try asks. What
// was found to be bad since its last use was not run, and teaches nothing; what
// was dialled for the statement and is bad tells of the server.
func TestWrapPassesErrBadConn(t *testing.T) {
	for _, begin := range []bool{false, true} {
		t.Run(fmt.Sprint("begin ", begin), func(t *testing.T) {
			g := &spy{}
			db, m := mock(t, WrapConfig{Guard: g, Outcome: func(context.Context, error) core.Outcome { return core.Throttled }})
			run := func() error { _, err := db.ExecContext(t.Context(), "x"); return err }
			fail := func() { m.ExpectExec("x").WillReturnError(driver.ErrBadConn) }
			if begin {
				run = func() error { _, err := db.BeginTx(t.Context(), nil); return err }
				fail = func() { m.ExpectBegin().WillReturnError(driver.ErrBadConn) }
			}
			m.ExpectExec("first").WillReturnResult(sqlmock.NewResult(0, 0))
			_, err := db.ExecContext(t.Context(), "first")
			require.NoError(t, err)
			for range 3 {
				fail()
				m.ExpectClose()
			}
			require.Equal(t, driver.ErrBadConn, run())
			require.Equal(t, 1, g.canceled)
			_, outcomes := g.take()
			require.Equal(t, []core.Outcome{core.Success, core.Failure, core.Failure}, outcomes)
			require.Zero(t, g.held())
		})
	}
}

// badConn is bad, as pgx's driver says also where the context had ended before
// anything was sent.
type badConn struct{ bareConn }

func (*badConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return nil, driver.ErrBadConn
}

func TestWrapNewConnectionThatWasNotUsedTeachesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	g := &spy{}
	c, err := Wrap(oneConnector{&badConn{}}, WrapConfig{Guard: g}).Connect(ctx)
	require.NoError(t, err)
	cancel()
	for _, ctx := range []context.Context{ctx, t.Context()} { // the second: nothing was run as yet
		_, err = c.(driver.ExecerContext).ExecContext(ctx, "x", nil)
		require.Equal(t, driver.ErrBadConn, err)
	}
	require.Equal(t, 1, g.canceled)
	_, outcomes := g.take()
	require.Equal(t, []core.Outcome{core.Failure}, outcomes)
}

func TestWrapWithoutGuardIsTheConnector(t *testing.T) {
	c := mockConnector{dsn: "x"}
	require.Equal(t, c, Wrap(c, WrapConfig{}))
}

func TestWrapAroundARealDriver(t *testing.T) {
	ctx := t.Context()
	cfg, err := pgx.ParseConfig(pgtest.DSN(t))
	require.NoError(t, err)
	g := &spy{}
	db := sql.OpenDB(Wrap(stdlib.GetConnector(*cfg), WrapConfig{Guard: g}))
	defer db.Close()
	_, err = db.ExecContext(ctx, "create table item (id int primary key, price numeric(10,2))")
	require.NoError(t, err)
	_, err = db.ExecContext(ctx, "insert into item values ($1, $2)", 1, "9.90")
	require.NoError(t, err)
	_, err = db.ExecContext(ctx, "insert into item values ($1, $2)", 1, "9.90")
	require.Error(t, err)
	_, outcomes := g.take()
	require.Equal(t, []core.Outcome{core.Success, core.Success, core.Success}, outcomes)

	r, err := db.QueryContext(ctx, "select price from item")
	require.NoError(t, err)
	types, err := r.ColumnTypes()
	require.NoError(t, err)
	precision, scale, ok := types[0].DecimalSize()
	require.True(t, ok)
	require.EqualValues(t, 10, precision)
	require.EqualValues(t, 2, scale)
	require.Equal(t, "NUMERIC", types[0].DatabaseTypeName())
	require.NoError(t, r.Close())
	require.NoError(t, r.Err())

	// A deadline that the caller gave the server time to meet is held against it.
	g.take()
	tctx, cancel := context.WithTimeout(ctx, 150*time.Millisecond) // real time: a real server
	defer cancel()
	_, err = db.ExecContext(tctx, "select pg_sleep(60)")
	require.Error(t, err)
	_, outcomes = g.take()
	require.Equal(t, []core.Outcome{core.Failure}, outcomes)
	require.NoError(t, db.PingContext(ctx))
}

// The drivers below have as few or as many of the optional interfaces as a test
// asks for.

type bareConn struct {
	stmt   driver.Stmt
	begun  int
	closed int
	boom   func()
}

func (c *bareConn) Prepare(string) (driver.Stmt, error) { return c.stmt, nil }
func (c *bareConn) Close() error                        { c.closed++; return nil }
func (c *bareConn) Begin() (driver.Tx, error)           { c.begun++; return bareTx{c}, nil }

type bareTx struct{ c *bareConn }

func (t bareTx) Commit() error   { t.c.misbehave(); return nil }
func (t bareTx) Rollback() error { return nil }

func (c *bareConn) misbehave() {
	if c.boom != nil {
		c.boom()
	}
}

type bareStmt struct{ c *bareConn }

func (bareStmt) Close() error  { return nil }
func (bareStmt) NumInput() int { return -1 }
func (s bareStmt) Exec([]driver.Value) (driver.Result, error) {
	s.c.misbehave()
	return driver.RowsAffected(1), nil
}

func (s bareStmt) Query([]driver.Value) (driver.Rows, error) {
	s.c.misbehave()
	return &bareRows{}, nil
}

type bareRows struct{ at int }

func (*bareRows) Columns() []string { return []string{"n"} }
func (*bareRows) Close() error      { return nil }
func (r *bareRows) Next(dest []driver.Value) error {
	if r.at++; r.at > 1 {
		return io.EOF
	}
	dest[0] = int64(7)
	return nil
}

type (
	oldExec  struct{}
	oldQuery struct{}
	newExec  struct{}
	newQuery struct{}
	resets   struct{}
	valids   struct{}
)

func (oldExec) Exec(string, []driver.Value) (driver.Result, error) {
	return driver.RowsAffected(2), nil
}
func (oldQuery) Query(string, []driver.Value) (driver.Rows, error) { return &bareRows{}, nil }
func (newExec) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return driver.RowsAffected(3), nil
}

func (newQuery) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return &bareRows{}, nil
}
func (resets) ResetSession(context.Context) error { return nil }
func (valids) IsValid() bool                      { return true }

// The sixteen combinations of the interfaces whose presence matters, as the
// driver has them and as the wrapper shows them.
func TestWrapKeepsExactlyTheTellingInterfaces(t *testing.T) {
	b := &bareConn{}
	conns := []driver.Conn{
		b,
		struct {
			*bareConn
			oldExec
		}{bareConn: b},
		struct {
			*bareConn
			newQuery
		}{bareConn: b},
		struct {
			*bareConn
			newExec
			oldQuery
		}{bareConn: b},
		struct {
			*bareConn
			resets
		}{bareConn: b},
		struct {
			*bareConn
			resets
			newExec
		}{bareConn: b},
		struct {
			*bareConn
			resets
			oldQuery
		}{bareConn: b},
		struct {
			*bareConn
			resets
			oldExec
			newQuery
		}{bareConn: b},
		struct {
			*bareConn
			valids
		}{bareConn: b},
		struct {
			*bareConn
			valids
			newExec
		}{bareConn: b},
		struct {
			*bareConn
			valids
			newQuery
		}{bareConn: b},
		struct {
			*bareConn
			valids
			newExec
			newQuery
		}{bareConn: b},
		struct {
			*bareConn
			resets
			valids
		}{bareConn: b},
		struct {
			*bareConn
			resets
			valids
			newExec
		}{bareConn: b},
		struct {
			*bareConn
			resets
			valids
			newQuery
		}{bareConn: b},
		struct {
			*bareConn
			resets
			valids
			newExec
			newQuery
		}{bareConn: b},
	}
	seen := map[[4]bool]bool{}
	for _, dc := range conns {
		w := wrapDriverConn(dc, &guarded{guard: &spy{}}, time.Now())
		_, wantReset := dc.(driver.SessionResetter)
		_, wantValid := dc.(driver.Validator)
		_, ne := dc.(driver.ExecerContext)
		_, oe := dc.(execer)
		_, nq := dc.(driver.QueryerContext)
		_, oq := dc.(queryer)
		_, reset := w.(driver.SessionResetter)
		_, valid := w.(driver.Validator)
		x, exec := w.(driver.ExecerContext)
		q, query := w.(driver.QueryerContext)
		require.Equal(t, wantReset, reset)
		require.Equal(t, wantValid, valid)
		require.Equal(t, ne || oe, exec)
		require.Equal(t, nq || oq, query)
		seen[[4]bool{reset, valid, exec, query}] = true
		require.Equal(t, dc, w.(interface{ Unwrap() driver.Conn }).Unwrap())
		if exec {
			r, err := x.ExecContext(t.Context(), "x", nil)
			require.NoError(t, err)
			n, _ := r.RowsAffected()
			require.EqualValues(t, map[bool]int{true: 3, false: 2}[ne], n)
		}
		if query {
			r, err := q.QueryContext(t.Context(), "x", nil)
			require.NoError(t, err)
			require.NoError(t, r.Close())
		}
	}
	require.Len(t, seen, 16)
}

type oneConnector struct{ c driver.Conn }

func (o oneConnector) Connect(context.Context) (driver.Conn, error) { return o.c, nil }
func (o oneConnector) Driver() driver.Driver                        { return nil }

// A driver that has nothing optional behaves as it does bare.
func TestWrapAroundABareDriver(t *testing.T) {
	ctx := t.Context()
	b := &bareConn{}
	b.stmt = bareStmt{b}
	g := &spy{}
	db := sql.OpenDB(Wrap(oneConnector{b}, WrapConfig{Guard: g}))
	defer db.Close()
	require.NoError(t, db.PingContext(ctx))
	_, err := db.ExecContext(ctx, "x", 1)
	require.NoError(t, err)
	var n int
	require.NoError(t, db.QueryRowContext(ctx, "x").Scan(&n))
	require.Equal(t, 7, n)
	asked, outcomes := g.take()
	require.Equal(t, 2, asked)
	require.Equal(t, []core.Outcome{core.Success, core.Success}, outcomes)

	r, err := db.QueryContext(ctx, "x")
	require.NoError(t, err)
	types, err := r.ColumnTypes()
	require.NoError(t, err)
	require.Equal(t, reflect.TypeFor[any](), types[0].ScanType())
	require.Empty(t, types[0].DatabaseTypeName())
	_, ok := types[0].Nullable()
	require.False(t, ok)
	_, ok = types[0].Length()
	require.False(t, ok)
	_, _, ok = types[0].DecimalSize()
	require.False(t, ok)
	require.False(t, r.NextResultSet())
	require.NoError(t, r.Err())
	require.NoError(t, r.Close())
	g.take()

	// What it cannot do is an error, not silence, and no failure of a server.
	_, err = db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelSerializable})
	require.EqualError(t, err, "sql: driver does not support non-default isolation level")
	_, err = db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	require.EqualError(t, err, "sql: driver does not support read-only transactions")
	_, err = db.ExecContext(ctx, "x", sql.Named("id", 1))
	require.EqualError(t, err, "sql: driver does not support the use of Named Parameters")
	require.Zero(t, b.begun)
	_, outcomes = g.take()
	require.Equal(t, []core.Outcome{core.Ignored, core.Ignored, core.Ignored}, outcomes)

	tx, err := db.BeginTx(ctx, nil)
	require.NoError(t, err)
	require.NoError(t, tx.Commit())
	require.Equal(t, 1, b.begun)
	require.Zero(t, g.held())
}

// checkedConn converts arguments; its statements have no opinion.
type checkedConn struct {
	*bareConn
	checks int
}

func (c *checkedConn) CheckNamedValue(v *driver.NamedValue) error {
	c.checks++
	v.Value = "converted"
	return nil
}

type convertingStmt struct{ bareStmt }

func (convertingStmt) ColumnConverter(int) driver.ValueConverter { return driver.String }

type checkingStmt struct{ bareStmt }

func (checkingStmt) CheckNamedValue(*driver.NamedValue) error { return nil }

func TestWrapAsksTheRightConverter(t *testing.T) {
	// The statement has none: the connection's is asked, though both are wrapped.
	b := &bareConn{}
	b.stmt = bareStmt{b}
	c := &checkedConn{bareConn: b}
	db := sql.OpenDB(Wrap(oneConnector{c}, WrapConfig{Guard: &spy{}}))
	defer db.Close()
	_, err := db.ExecContext(t.Context(), "x", struct{}{})
	require.NoError(t, err)
	require.Equal(t, 1, c.checks)

	for _, st := range []driver.Stmt{
		bareStmt{b},
		convertingStmt{bareStmt{b}},
		checkingStmt{bareStmt{b}},
		struct {
			checkingStmt
			convert
		}{checkingStmt: checkingStmt{bareStmt{b}}},
	} {
		w := wrapDriverStmt(st, &wrapConn{Conn: b, g: &guarded{guard: &spy{}}})
		_, wantCheck := st.(driver.NamedValueChecker)
		_, check := w.(driver.NamedValueChecker)
		_, wantConvert := st.(columnConverter)
		_, convert := w.(columnConverter)
		require.Equal(t, wantCheck, check)
		require.Equal(t, wantConvert, convert)
	}
}

type convert struct{}

func (convert) ColumnConverter(int) driver.ValueConverter { return driver.Bool }

// skipConn has an ExecContext that declines, so that database/sql prepares.
type skipConn struct{ *bareConn }

func (skipConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return nil, driver.ErrSkip
}

func TestWrapCountsADeclinedExecOnce(t *testing.T) {
	b := &bareConn{}
	b.stmt = bareStmt{b}
	g := &spy{}
	db := sql.OpenDB(Wrap(oneConnector{skipConn{b}}, WrapConfig{Guard: g}))
	defer db.Close()
	_, err := db.ExecContext(t.Context(), "x", 1)
	require.NoError(t, err)
	require.Equal(t, 1, g.canceled)
	_, outcomes := g.take()
	require.Equal(t, []core.Outcome{core.Success}, outcomes)
}

func TestWrapFinishesThePermitWhenTheDriverPanics(t *testing.T) {
	b := &bareConn{}
	b.stmt = bareStmt{b}
	g := &spy{}
	db := sql.OpenDB(Wrap(oneConnector{b}, WrapConfig{Guard: g}))
	tx, err := db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	b.boom = func() { panic("driver") }
	require.Panics(t, func() { _ = tx.Commit() })
	require.Panics(t, func() { _, _ = bareExec(t.Context(), b, g) })
	_, outcomes := g.take()
	require.Equal(t, []core.Outcome{core.Failure, core.Failure}, outcomes)
	require.Zero(t, g.held())
	b.boom = nil
	require.NoError(t, db.Close())
}

// bareExec runs a wrapped statement without database/sql, which a panic leaves
// in no state to be used again.
func bareExec(ctx context.Context, b *bareConn, g core.Guard) (driver.Result, error) {
	w := wrapDriverConn(b, &guarded{guard: g}, time.Now())
	st, err := w.Prepare("x")
	if err != nil {
		return nil, err
	}
	return st.(driver.StmtExecContext).ExecContext(ctx, nil)
}

// A connection that goes while its transaction is open takes the permit along.
func TestWrapClosedConnectionEndsItsTransaction(t *testing.T) {
	b := &bareConn{}
	g := &spy{}
	w := wrapDriverConn(b, &guarded{guard: g}, time.Now())
	_, err := w.(driver.ConnBeginTx).BeginTx(t.Context(), driver.TxOptions{})
	require.NoError(t, err)
	require.Equal(t, 1, g.held())
	require.NoError(t, w.Close())
	require.Zero(t, g.held())
	require.Equal(t, 1, b.closed)
}
