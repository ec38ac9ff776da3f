package sqlpool

import (
	"context"
	"database/sql/driver"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/internal/pgtest"
)

const terminate = "select pg_terminate_backend(pg_backend_pid())"

// Two Rollbacks at once both reached the connection, where pgx panicked; one
// that came later could have ended the transaction of the connection's next user.
func TestConcurrentRollbacksEndTheTransactionOnce(t *testing.T) {
	p := open(t, Config{Max: 1, RequireServer: true})
	for range 20 {
		tx, err := p.Begin(t.Context())
		require.NoError(t, err)
		ended := make(chan error, 4)
		for range cap(ended) {
			go func() { ended <- tx.Rollback(t.Context()) }()
		}
		closed := 0
		for range cap(ended) {
			if err := <-ended; err != nil {
				require.ErrorIs(t, err, pgx.ErrTxClosed)
				closed++
			}
		}
		require.Equal(t, cap(ended)-1, closed)
	}
	require.Zero(t, p.Stats().DestroyedBroken)
}

// Rows whose connection was released under them looked like rows at their end.
func TestRowsOutlivedByTheirConnectionSaySo(t *testing.T) {
	p := open(t, Config{Max: 2})
	c, err := p.Acquire(t.Context())
	require.NoError(t, err)
	r, err := c.Query(t.Context(), "select generate_series(1, 100000)")
	require.NoError(t, err)
	require.True(t, r.Next())
	c.Release()
	require.False(t, r.Next())
	require.ErrorIs(t, r.Err(), ErrReleased)
	var n int
	require.ErrorIs(t, r.Scan(&n), ErrReleased)
	_, err = r.Values()
	require.ErrorIs(t, err, ErrReleased)
	r.Close()
	require.ErrorIs(t, r.Err(), ErrReleased)

	tx, err := p.Begin(t.Context())
	require.NoError(t, err)
	r, err = tx.Query(t.Context(), "select generate_series(1, 100000)")
	require.NoError(t, err)
	_, err = pgx.CollectRows(r, func(r pgx.CollectableRow) (int, error) {
		_ = tx.Rollback(t.Context())
		return 0, nil
	})
	require.ErrorIs(t, err, ErrReleased)
}

// The guard was told of Success, since BEGIN had succeeded.
func TestServerDeathInEveryPartOfATransactionIsAFailure(t *testing.T) {
	ctx, dsn := t.Context(), pgtest.DSN(t)
	kill := func(tx pgx.Tx) {
		other, err := pgx.Connect(ctx, dsn)
		require.NoError(t, err)
		_, err = other.Exec(ctx, "select pg_terminate_backend($1, 10000)", tx.Conn().PgConn().PID())
		require.NoError(t, err)
		require.NoError(t, other.Close(ctx))
	}
	for name, c := range map[string]struct {
		run  func(pgx.Tx) error
		want core.Outcome
	}{
		"nested": {want: core.Failure, run: func(tx pgx.Tx) error {
			return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { _, err := tx.Exec(ctx, terminate); return err })
		}},
		"nested twice": {want: core.Failure, run: func(tx pgx.Tx) error {
			return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return tx.QueryRow(ctx, terminate).Scan() })
			})
		}},
		"batch": {want: core.Failure, run: func(tx pgx.Tx) error {
			var b pgx.Batch
			b.Queue("select 1")
			b.Queue(terminate)
			return tx.SendBatch(ctx, &b).Close()
		}},
		"copy": {want: core.Failure, run: func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "create temporary table item (id int)"); err != nil {
				return err
			}
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"item"}, []string{"id"},
				pgx.CopyFromFunc(func() ([]any, error) { kill(tx); return nil, nil }))
			return err
		}},
		"prepare": {want: core.Failure, run: func(tx pgx.Tx) error {
			kill(tx)
			_, err := tx.Prepare(ctx, "x", "select 1")
			return err
		}},
		// Where the pool sees nothing, it learns nothing.
		"conn": {want: core.Ignored, run: func(tx pgx.Tx) error { _, err := tx.Conn().Exec(ctx, terminate); return err }},
		// The server is well; it was the caller that had nothing to copy.
		"source of a copy fails": {want: core.Success, run: func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "create temporary table item (id int)"); err != nil {
				return err
			}
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"item"}, []string{"id"},
				pgx.CopyFromFunc(func() ([]any, error) { return nil, io.ErrUnexpectedEOF }))
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g := &spy{}
			p := open(t, Config{DSN: dsn, Max: 1, Guard: g, RequireServer: true})
			require.Error(t, pgx.BeginFunc(ctx, p, c.run))
			_, outcomes := g.take()
			require.Equal(t, []core.Outcome{c.want}, outcomes)
			require.Zero(t, p.Stats().Used)
		})
	}
}

// Each deferred Rollback of a cancelled request cost a connection.
func TestRollbackUnderAnEndedContextKeepsTheConnection(t *testing.T) {
	g := &spy{}
	p := open(t, Config{Max: 1, Guard: g, RequireServer: true})
	_, err := p.Exec(t.Context(), "create table item (id int)")
	require.NoError(t, err)
	g.take()
	cancelled := func(t *testing.T) (pgx.Tx, context.Context) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		tx, err := p.Begin(ctx)
		require.NoError(t, err)
		_, err = tx.Exec(ctx, "insert into item values (1)")
		require.NoError(t, err)
		return tx, ctx
	}
	rows := func(t *testing.T) (n int) {
		require.NoError(t, p.QueryRow(t.Context(), "select count(*) from item").Scan(&n))
		return n
	}
	t.Run("of a transaction", func(t *testing.T) {
		tx, ctx := cancelled(t)
		require.NoError(t, tx.Rollback(ctx))
		require.ErrorIs(t, tx.Rollback(ctx), pgx.ErrTxClosed)
		require.Zero(t, rows(t))
	})
	t.Run("of a nested one", func(t *testing.T) {
		tx, ctx := cancelled(t)
		nested, err := tx.Begin(t.Context())
		require.NoError(t, err)
		_, err = nested.Exec(t.Context(), "insert into item values (2)")
		require.NoError(t, err)
		require.NoError(t, nested.Rollback(ctx))
		require.NoError(t, tx.Commit(t.Context()))
		require.Equal(t, 1, rows(t))
	})
	_, outcomes := g.take()
	require.Equal(t, []core.Outcome{core.Success, core.Success, core.Success, core.Success}, outcomes)
	require.Zero(t, p.Stats().DestroyedBroken)
	t.Run("but not a Commit", func(t *testing.T) {
		tx, ctx := cancelled(t)
		err := tx.Commit(ctx)
		require.ErrorIs(t, err, context.Canceled)
		require.NotErrorIs(t, err, ErrCommitUnknown, "it was not sent")
		require.Equal(t, 1, rows(t))
		require.EqualValues(t, 1, p.Stats().DestroyedBroken)
	})
	require.Zero(t, p.Stats().Used)
}

func TestEndedTransactionDoesNothing(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 1})
	tx, err := p.Begin(ctx)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(ctx))
	_, err = tx.Begin(ctx)
	require.ErrorIs(t, err, pgx.ErrTxClosed)
	_, err = tx.Prepare(ctx, "x", "select 1")
	require.ErrorIs(t, err, pgx.ErrTxClosed)
	_, err = tx.CopyFrom(ctx, pgx.Identifier{"item"}, nil, pgx.CopyFromRows(nil))
	require.ErrorIs(t, err, pgx.ErrTxClosed)
	require.ErrorIs(t, tx.SendBatch(ctx, &pgx.Batch{}).Close(), pgx.ErrTxClosed)
}

// A deadline that was nearly over when the statement was sent was held against
// the server: what had been spent on waiting for the connection was not, nor did
// the statement's own context count in a transaction.
func TestDeadlineSpentBeforeTheStatementIsNotTheServers(t *testing.T) {
	g := &spy{}
	p := open(t, Config{Max: 1, Guard: g, RequireServer: true})
	slow := "select pg_sleep(60)"
	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), core.MinTime/2) // real time: a real server
		t.Cleanup(cancel)
		return ctx
	}
	for range 3 {
		tx, err := p.Begin(t.Context())
		require.NoError(t, err)
		_, err = tx.Exec(soon(), slow)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		_ = tx.Rollback(t.Context())

		db, err := p.DB().BeginTx(t.Context(), nil)
		require.NoError(t, err)
		_, err = db.ExecContext(soon(), slow)
		require.Error(t, err)
		_ = db.Rollback()
	}
	_, outcomes := g.take()
	require.NotContains(t, outcomes, core.Failure)

	// Having waited for the connection, the caller has no time left for the server.
	c, err := p.Acquire(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond) // real time: a real server
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { _, err = p.Exec(ctx, slow) })
	eventually(t, func() bool { return p.Stats().Waiting == 1 })
	deadline, _ := ctx.Deadline()
	time.Sleep(time.Until(deadline) - core.MinTime/2) // real time: a real server
	c.Release()
	wg.Wait()
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, outcomes = g.take()
	require.NotContains(t, outcomes, core.Failure)
}

// pgx's driver tells of a bad connection only; the guard learnt nothing.
func TestPingOfASilentServerIsAFailure(t *testing.T) {
	srv := pgtest.Cluster(t)
	g := &spy{}
	p := open(t, Config{DSN: srv.DSN(), Max: 1, Guard: g, RequireServer: true})
	var pid int
	require.NoError(t, p.QueryRow(t.Context(), "select pg_backend_pid()").Scan(&pid))
	g.take()
	require.NoError(t, srv.Pause(pid))
	defer func() { require.NoError(t, srv.Resume()) }()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // real time: a real server
	defer cancel()
	require.ErrorIs(t, p.DB().PingContext(ctx), context.DeadlineExceeded)
	_, outcomes := g.take()
	require.Equal(t, []core.Outcome{core.Failure}, outcomes)
}

// A server that does not answer keeps the Rollback of a cancelled caller no longer
// than its grace.
func TestRollbackUnderAnEndedContextDoesNotWaitForASilentServer(t *testing.T) {
	srv := pgtest.Cluster(t)
	p := open(t, Config{DSN: srv.DSN(), Max: 1, RequireServer: true})
	ctx, cancel := context.WithCancel(t.Context())
	tx, err := p.Begin(ctx)
	require.NoError(t, err)
	var pid int
	require.NoError(t, tx.QueryRow(ctx, "select pg_backend_pid()").Scan(&pid))
	require.NoError(t, srv.Pause(pid))
	defer func() { require.NoError(t, srv.Resume()) }()
	cancel()
	require.ErrorIs(t, tx.Rollback(ctx), context.DeadlineExceeded)
	s := p.Stats()
	require.Zero(t, s.Used)
	require.EqualValues(t, 1, s.DestroyedBroken)
}

// The latency that a guard learns was the length of the rows, of the
// transaction and of the wait for a connection.
func TestLatencyIsThatOfTheFirstAnswer(t *testing.T) {
	ctx := t.Context()
	const pause = 100 * time.Millisecond
	g := &spy{}
	p := open(t, Config{Max: 1, Guard: g, RequireServer: true})
	for name, use := range map[string]func(){
		"rows": func() {
			r, err := p.Query(ctx, "select generate_series(1, 100000)")
			require.NoError(t, err)
			time.Sleep(pause) // real time: a real server
			r.Close()
		},
		"transaction": func() {
			tx, err := p.Begin(ctx)
			require.NoError(t, err)
			time.Sleep(pause) // real time: a real server
			require.NoError(t, tx.Rollback(ctx))
		},
		"connection": func() {
			c, err := p.Acquire(ctx)
			require.NoError(t, err)
			time.Sleep(pause) // real time: a real server
			require.NoError(t, c.Ping(ctx))
			time.Sleep(pause) // real time: a real server
			c.Release()
		},
		"database/sql": func() {
			tx, err := p.DB().BeginTx(ctx, nil)
			require.NoError(t, err)
			time.Sleep(pause) // real time: a real server
			require.NoError(t, tx.Rollback())
		},
	} {
		g.take()
		start := time.Now()
		use()
		took := time.Since(start)
		require.Len(t, g.results, 1, name)
		latency := g.results[0].Latency
		require.Positive(t, latency, name)
		require.LessOrEqual(t, latency, took-pause, name)
	}
}

// bomb is an argument that panics when it is encoded.
type bomb struct{}

func (bomb) Value() (driver.Value, error) { panic("value") }

// A statement of database/sql that panicked kept its connection for ever.
func TestPanicUnderDatabaseSQLLosesNoConnection(t *testing.T) {
	ctx := t.Context()
	g := &spy{}
	p := open(t, Config{Max: 1, Guard: g, RequireServer: true})
	db := p.DB()
	st, err := db.PrepareContext(ctx, "select $1::int")
	require.NoError(t, err)
	for name, use := range map[string]func(){
		"exec":       func() { _, _ = db.ExecContext(ctx, "select $1::int", bomb{}) },
		"row":        func() { _ = db.QueryRowContext(ctx, "select $1::int", bomb{}).Scan() },
		"stmt exec":  func() { _, _ = st.ExecContext(ctx, bomb{}) },
		"stmt query": func() { _ = st.QueryRowContext(ctx, bomb{}).Scan() },
	} {
		mustPanic(t, use)
		require.Zero(t, p.Stats().Used, name)
		require.Zero(t, g.held(), name)
	}
	require.NoError(t, p.Ping(ctx))
}
