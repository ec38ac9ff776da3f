package sqlpool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// The permit of the first of two transactions on one connection was lost.
func TestWrapSecondBeginOnAConnectionLosesNoPermit(t *testing.T) {
	ctx := t.Context()
	cfg, err := pgx.ParseConfig(pgtest.DSN(t))
	require.NoError(t, err)
	g := &spy{}
	db := sql.OpenDB(Wrap(stdlib.GetConnector(*cfg), WrapConfig{Guard: g}))
	defer db.Close()
	c, err := db.Conn(ctx)
	require.NoError(t, err)
	outer, err := c.BeginTx(ctx, nil)
	require.NoError(t, err)
	inner, err := c.BeginTx(ctx, nil) // Postgres warns, and goes on
	require.NoError(t, err)
	require.NoError(t, inner.Commit())
	require.Equal(t, 1, g.held())
	require.NoError(t, outer.Commit())
	require.Zero(t, g.held())
	asked, outcomes := g.take()
	require.Equal(t, 1, asked, "never inside a transaction")
	require.Equal(t, []core.Outcome{core.Success}, outcomes)
	require.NoError(t, c.Close())
}

// What has begun is not tried again: driver.ErrBadConn then says that the server
// went away, and not that the call never started.
func TestWrapBadConnectionUnderWhatHasBegunIsAFailure(t *testing.T) {
	ctx := t.Context()
	rows := func(err error) *sqlmock.Rows {
		return sqlmock.NewRows([]string{"n"}).AddRow(1).AddRow(2).RowError(1, err)
	}
	read := func(r *sql.Rows, err error) error {
		require.NoError(t, err)
		for r.Next() {
		}
		return errors.Join(r.Err(), r.Close())
	}
	dead := errors.New("server closed the connection")
	for name, c := range map[string]struct {
		expect func(sqlmock.Sqlmock)
		run    func(*sql.DB) error
		fails  error
	}{
		"among rows": {fails: driver.ErrBadConn, expect: func(m sqlmock.Sqlmock) {
			m.ExpectQuery("x").WillReturnRows(rows(driver.ErrBadConn))
		}, run: func(db *sql.DB) error {
			r, err := db.QueryContext(ctx, "x")
			return read(r, err)
		}},
		"inside a transaction": {fails: driver.ErrBadConn, expect: func(m sqlmock.Sqlmock) {
			m.ExpectBegin()
			m.ExpectExec("x").WillReturnError(driver.ErrBadConn)
			m.ExpectRollback()
		}, run: func(db *sql.DB) error {
			tx, err := db.BeginTx(ctx, nil)
			require.NoError(t, err)
			_, err = tx.ExecContext(ctx, "x")
			return errors.Join(err, tx.Rollback())
		}},
		"among rows of a transaction": {fails: dead, expect: func(m sqlmock.Sqlmock) {
			m.ExpectBegin()
			m.ExpectQuery("x").WillReturnRows(rows(dead))
			m.ExpectRollback()
		}, run: func(db *sql.DB) error {
			tx, err := db.BeginTx(ctx, nil)
			require.NoError(t, err)
			r, err := tx.QueryContext(ctx, "x")
			return errors.Join(read(r, err), tx.Rollback())
		}},
		"commit": {fails: driver.ErrBadConn, expect: func(m sqlmock.Sqlmock) {
			m.ExpectBegin()
			m.ExpectCommit().WillReturnError(driver.ErrBadConn)
			m.ExpectClose()
		}, run: func(db *sql.DB) error {
			tx, err := db.BeginTx(ctx, nil)
			require.NoError(t, err)
			return tx.Commit()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g := &spy{}
			custom := func(context.Context, error) core.Outcome { return core.Failure }
			db, m := mock(t, WrapConfig{Guard: g, Outcome: custom})
			c.expect(m)
			require.ErrorIs(t, c.run(db), c.fails)
			asked, outcomes := g.take()
			require.Equal(t, 1, asked)
			require.Equal(t, []core.Outcome{core.Failure}, outcomes)
			require.Zero(t, g.canceled)
			require.Zero(t, g.held())
		})
	}
}

// The latency that a guard learns was the length of the rows or the transaction.
func TestWrapLatencyIsThatOfTheFirstAnswer(t *testing.T) {
	ctx := t.Context()
	const pause = 50 * time.Millisecond
	g := &spy{}
	db, m := mock(t, WrapConfig{Guard: g})
	m.ExpectBegin()
	m.ExpectRollback()
	m.ExpectQuery("x").WillReturnRows(sqlmock.NewRows([]string{"n"}).AddRow(1))
	start := time.Now()
	tx, err := db.BeginTx(ctx, nil)
	require.NoError(t, err)
	time.Sleep(pause) // real time: database/sql has goroutines of its own
	require.NoError(t, tx.Rollback())
	r, err := db.QueryContext(ctx, "x")
	require.NoError(t, err)
	time.Sleep(pause) // real time: as above
	require.NoError(t, r.Close())
	require.NoError(t, r.Err())
	took := time.Since(start)
	require.Len(t, g.results, 2)
	require.Positive(t, g.results[0].Latency)
	require.Positive(t, g.results[1].Latency)
	require.LessOrEqual(t, g.results[0].Latency+g.results[1].Latency, took-2*pause)
}
