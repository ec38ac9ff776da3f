package sqlpool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// commits are the ways to a COMMIT that the pool sees. Each runs insert in a
// transaction, and before just before its end.
var commits = map[string]func(ctx context.Context, p *Pool, before func(pgx.Tx)) error{
	"Begin": func(ctx context.Context, p *Pool, before func(pgx.Tx)) error {
		tx, err := p.Begin(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		return insertAndCommit(ctx, tx, before)
	},
	"Conn": func(ctx context.Context, p *Pool, before func(pgx.Tx)) error {
		return p.With(context.WithoutCancel(ctx), func(c *Conn) error {
			tx, err := c.Begin(context.WithoutCancel(ctx))
			if err != nil {
				return err
			}
			return insertAndCommit(ctx, tx, before)
		})
	},
	"batch": func(ctx context.Context, p *Pool, before func(pgx.Tx)) error {
		b := &pgx.Batch{}
		b.BeginTx(pgx.TxOptions{})
		b.Queue("insert into item values (1)")
		r := p.SendBatch(context.WithoutCancel(ctx), b)
		if err := r.Close(); err != nil {
			return err
		}
		before(r.Tx())
		return r.Tx().Commit(ctx)
	},
	"InTx": func(ctx context.Context, p *Pool, before func(pgx.Tx)) error {
		return p.InTx(ctx, pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error {
			if _, err := tx.Exec(context.WithoutCancel(ctx), "insert into item values (1)"); err != nil {
				return err
			}
			before(tx)
			return nil
		})
	},
	"InTx with a Commit of its own": func(ctx context.Context, p *Pool, before func(pgx.Tx)) error {
		return p.InTx(ctx, pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error {
			_ = insertAndCommit(ctx, tx, before)
			return nil // which makes nothing better
		})
	},
}

func insertAndCommit(ctx context.Context, tx pgx.Tx, before func(pgx.Tx)) error {
	if _, err := tx.Exec(context.WithoutCancel(ctx), "insert into item values (1)"); err != nil {
		return err
	}
	before(tx)
	return tx.Commit(ctx)
}

// A COMMIT is applied once or not at all, and its error says whether that is
// known.
func TestCommitSaysWhetherItIsKnown(t *testing.T) {
	dsn := pgtest.DSN(t)
	_, err := open(t, Config{DSN: dsn, Max: 1}).Exec(t.Context(), `
		create function trouble() returns trigger language plpgsql as $$ begin
			case current_setting('test.trouble')
				when 'fk' then raise exception 'parent' using errcode = '23503';
				when '40003' then raise exception 'lost' using errcode = '40003';
				when '08007' then raise exception 'lost' using errcode = '08007';
				when '57014' then perform pg_cancel_backend(pg_backend_pid()); perform pg_sleep(60);
				when 'shutdown' then perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(60);
				else null;
			end case;
			return null;
		end $$;
		create table item (id int);
		create constraint trigger trouble after insert on item deferrable initially deferred
			for each row execute function trouble()`)
	require.NoError(t, err)
	set := func(trouble string) func(*testing.T, pgx.Tx) {
		return func(t *testing.T, tx pgx.Tx) {
			_, err := tx.Exec(t.Context(), "select set_config('test.trouble', $1, true)", trouble)
			require.NoError(t, err)
		}
	}
	quick := func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, 500*time.Millisecond) // real time: a real server
	}
	for name, c := range map[string]struct {
		fault   fault
		limit   time.Duration // StatementTimeout
		ctx     func(context.Context) (context.Context, context.CancelFunc)
		before  func(*testing.T, pgx.Tx)
		unknown bool
		rows    int
		cause   error  // that the error wraps
		state   string // that it has
	}{
		"answered":        {rows: 1},
		"answer lost":     {fault: unheard, unknown: true, rows: 1, cause: pgconn.ErrConnClosed},
		"request lost":    {fault: lost, unknown: true, cause: pgconn.ErrConnClosed},
		"deadline":        {fault: silent, ctx: quick, unknown: true, rows: 1, cause: context.DeadlineExceeded},
		"statement limit": {fault: silent, limit: 500 * time.Millisecond, unknown: true, rows: 1, cause: ErrStatementTimeout},
		"not sent":        {fault: cut, cause: errUnsent},
		"connection was dead": {cause: pgconn.ErrConnClosed, before: func(t *testing.T, tx pgx.Tx) {
			require.NoError(t, tx.Conn().Close(t.Context()))
		}},
		"context was over": {cause: context.Canceled, ctx: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithCancel(ctx)
		}},
		"deferred constraint": {before: set("fk"), state: "23503"},
		"cancelled there":     {before: set("57014"), state: "57014"},
		"unknown to it":       {before: set("40003"), unknown: true, state: "40003"},
		"transaction manager": {before: set("08007"), unknown: true, state: "08007"},
		"shutdown":            {before: set("shutdown"), unknown: true, state: "57P01"},
	} {
		for way, commit := range commits {
			t.Run(name+"/"+way, func(t *testing.T) {
				w := &wire{}
				p := open(t, Config{ConnConfig: w.config(t, dsn), Max: 1, Name: "shop", StatementTimeout: c.limit, RequireServer: true})
				_, err := p.Exec(t.Context(), "truncate item; set test.trouble = ''")
				require.NoError(t, err)
				w.arm(c.fault, "commit\x00")
				ctx, cancel := t.Context(), func() {}
				if c.ctx != nil {
					ctx, cancel = c.ctx(ctx)
				}
				defer cancel()
				runs := 0
				err = commit(ctx, p, func(tx pgx.Tx) {
					runs++
					if c.before != nil {
						c.before(t, tx)
					}
					if errors.Is(c.cause, context.Canceled) {
						cancel()
					}
				})
				require.Equal(t, 1, runs)
				require.Equal(t, c.unknown, errors.Is(err, ErrCommitUnknown), "%v", err)
				if c.cause != nil {
					require.ErrorIs(t, err, c.cause)
				} else if c.state != "" {
					require.True(t, isState(err, c.state), "%v", err)
				} else {
					require.NoError(t, err)
				}
				if c.unknown {
					require.ErrorContains(t, err, `"shop"`)
					require.False(t, pgconn.SafeToRetry(err))
				}
				_, writes := w.seen()
				require.LessOrEqual(t, writes, 1)
				require.Zero(t, p.Stats().Used)
				var rows int
				require.NoError(t, p.QueryRow(t.Context(), "select count(*) from item").Scan(&rows))
				require.Equal(t, c.rows, rows)
			})
		}
	}
}

// The end of a savepoint commits nothing.
func TestLostReleaseOfASavepointIsNoUnknownCommit(t *testing.T) {
	ctx := t.Context()
	w := &wire{}
	p := open(t, Config{ConnConfig: w.config(t, pgtest.DSN(t)), Max: 1, RequireServer: true})
	w.arm(unheard, "release savepoint")
	err := pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
		return pgx.BeginFunc(ctx, tx, func(pgx.Tx) error { return nil })
	})
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrCommitUnknown)
	require.Zero(t, p.Stats().Used)
}

func TestCommitError(t *testing.T) {
	pg := func(code, severity string) error {
		return fmt.Errorf("wrapped: %w", &pgconn.PgError{Code: code, SeverityUnlocalized: severity})
	}
	for _, err := range []error{
		nil, pgx.ErrTxClosed, pgx.ErrTxCommitRollback, pg("40001", "ERROR"), pg("23505", "ERROR"),
		pg("57014", "ERROR"), pg("XX000", "ERROR"),
	} {
		require.Equal(t, err, commitError("shop", err))
	}
	for _, err := range []error{
		io.ErrUnexpectedEOF, context.Canceled, context.DeadlineExceeded, pg("57P01", "FATAL"), pg("XX000", "PANIC"),
		pg("40003", "ERROR"), pg("08007", "ERROR"), pg("08P01", "ERROR"), pg("40001", ""),
		&answerLost{pgconn.ErrConnClosed},
	} {
		got := commitError("shop", err)
		require.ErrorIs(t, got, ErrCommitUnknown)
		require.ErrorIs(t, got, err)
		require.Equal(t, Outcome(t.Context(), err), Outcome(t.Context(), got))
		require.NotErrorIs(t, got, core.ErrConfig)
	}
}
