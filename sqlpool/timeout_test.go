package sqlpool

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// A statement that takes longer than StatementTimeout is cut off, and says so.
func TestStatementTimeout(t *testing.T) {
	ctx, dsn := t.Context(), pgtest.DSN(t)
	const slow = "select pg_sleep(60)"
	const limit = 100 * time.Millisecond // real time: a real server
	canceling, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	canceling.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: 10 * time.Second}
	}
	closing, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	uses := map[string]func(p *Pool) error{
		"exec": func(p *Pool) error { _, err := p.Exec(ctx, slow); return err },
		"row":  func(p *Pool) error { return p.QueryRow(ctx, slow).Scan(nil) },
		"rows": func(p *Pool) error {
			r, err := p.Query(ctx, slow)
			if err != nil {
				return err
			}
			for r.Next() {
			}
			return r.Err()
		},
		"rows that are not closed": func(p *Pool) error {
			r, err := p.Query(ctx, "select generate_series(1, 10000000)")
			if err != nil {
				return err
			}
			require.True(t, r.Next())
			time.Sleep(2 * limit) // real time: a real server
			r.Close()
			return r.Err()
		},
		"batch": func(p *Pool) error { return p.SendBatch(ctx, queue("select 1", slow)).Close() },
		"batch, read": func(p *Pool) error {
			r := p.SendBatch(ctx, queue("select 1", slow))
			defer r.Close()
			if _, err := r.Exec(); err != nil { // the server keeps back what it has
				return err
			}
			_, err := r.Exec()
			return err
		},
		"transaction": func(p *Pool) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error { _, err := tx.Exec(ctx, slow); return err })
		},
		"InTx": func(p *Pool) error {
			return p.InTx(ctx, pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error { return tx.QueryRow(ctx, slow).Scan(nil) })
		},
		"Conn": func(p *Pool) error {
			return p.With(ctx, func(c *Conn) error { _, err := c.Exec(ctx, slow); return err })
		},
	}
	for how, cfg := range map[string]*pgx.ConnConfig{"closing": closing, "canceling": canceling} {
		for name, use := range uses {
			t.Run(how+"/"+name, func(t *testing.T) {
				g := &spy{}
				p := open(t, Config{ConnConfig: cfg, Name: "shop", Max: 1, Guard: g, StatementTimeout: limit, RequireServer: true})
				err := use(p)
				require.ErrorIs(t, err, ErrStatementTimeout)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorContains(t, err, `"shop": the statement took longer than its 100ms`)
				require.NoError(t, ctx.Err())
				require.Zero(t, p.Stats().Used)
				_, outcomes := g.take()
				require.Equal(t, []core.Outcome{core.Failure}, outcomes)
				require.NoError(t, p.Ping(ctx))
			})
		}
	}
}

// What is not StatementTimeout's is told as it is.
func TestStatementTimeoutIsNotForOtherErrors(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 1, StatementTimeout: time.Minute, RequireServer: true})
	soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond) // real time: a real server
	defer cancel()
	_, err := p.Exec(soon, "select pg_sleep(60)")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrStatementTimeout)
	_, err = p.Exec(ctx, "set statement_timeout = 10; select pg_sleep(60)")
	require.True(t, isState(err, "57014"))
	require.NotErrorIs(t, err, ErrStatementTimeout)

	// Nor is a late error that the statement would have had anyway.
	expired, stop := context.WithTimeoutCause(ctx, 0, p.timeout)
	defer stop()
	<-expired.Done()
	other := &pgconn.PgError{Code: "23505"}
	require.Equal(t, error(other), p.late(expired, other))
	late := p.late(expired, context.DeadlineExceeded)
	require.ErrorIs(t, late, ErrStatementTimeout)
	require.Equal(t, late, p.late(expired, late))
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](late)
	require.True(t, ok && timeout.Timeout())
}

// The wait for a connection, the time between statements and a copy are no part
// of it.
func TestStatementTimeoutIsOfTheStatementAlone(t *testing.T) {
	ctx := t.Context()
	const limit = 300 * time.Millisecond // real time: a real server
	p := open(t, Config{Max: 1, StatementTimeout: limit, RequireServer: true})
	c, err := p.Acquire(ctx)
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() { _, err = p.Exec(ctx, "select 1") })
	eventually(t, func() bool { return p.Stats().Waiting == 1 })
	time.Sleep(limit * 3 / 2) // real time: a real server
	require.NoError(t, c.Ping(ctx))
	_, copied := c.Exec(ctx, "create temporary table item (id int)")
	require.NoError(t, copied)
	n := 0
	_, copied = c.CopyFrom(ctx, pgx.Identifier{"item"}, []string{"id"}, pgx.CopyFromFunc(func() ([]any, error) {
		if n++; n > 1 {
			return nil, nil
		}
		time.Sleep(limit * 3 / 2) // real time: a real server
		return []any{1}, nil
	}))
	require.NoError(t, copied)
	c.Release()
	wg.Wait()
	require.NoError(t, err)
}
