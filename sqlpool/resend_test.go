package sqlpool

import (
	"context"
	"database/sql/driver"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/retry"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// resends are the ways to ask the pool for a first statement, which is
// "insert into item ... returning id" or, of a transaction, BEGIN. Each inserts
// one row.
var resends = map[string]func(ctx context.Context, p *Pool) error{
	"exec": func(ctx context.Context, p *Pool) error {
		_, err := p.Exec(ctx, "insert into item values (1)")
		return err
	},
	"exec with arguments": func(ctx context.Context, p *Pool) error {
		_, err := p.Exec(ctx, "insert into item values ($1)", 1)
		return err
	},
	"query": func(ctx context.Context, p *Pool) error {
		r, err := p.Query(ctx, "insert into item values ($1) returning id", 1)
		if err != nil {
			return err
		}
		for r.Next() {
		}
		return r.Err()
	},
	"query of the simple protocol": func(ctx context.Context, p *Pool) error {
		r, err := p.Query(ctx, "insert into item values (1) returning id", pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			return err
		}
		r.Close()
		return r.Err()
	},
	"row": func(ctx context.Context, p *Pool) error {
		var id int
		return p.QueryRow(ctx, "insert into item values ($1) returning id", 1).Scan(&id)
	},
	"batch": func(ctx context.Context, p *Pool) error {
		b := &pgx.Batch{}
		b.Queue("insert into item values (@id)", pgx.NamedArgs{"id": 1})
		called := 0
		b.Queue("select 1").QueryRow(func(r pgx.Row) error { called++; return r.Scan(new(int)) })
		b.QueuedQueries[0].Query(func(r pgx.Rows) error { called++; r.Close(); return nil })
		err := p.SendBatch(ctx, b).Close()
		if err == nil && called != 2 {
			panic("the callbacks were not called once each")
		}
		return err
	},
	"transaction": func(ctx context.Context, p *Pool) error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "insert into item values (1)")
			return err
		})
	},
	"InTx": func(ctx context.Context, p *Pool) error {
		return p.InTx(ctx, pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "insert into item values (1)")
			return err
		})
	},
}

func armed(name string) string {
	if name == "transaction" || name == "InTx" {
		return "begin"
	}
	return "insert"
}

// A connection that breaks between the pool's look at it and its use costs
// nothing but another connection, if nothing was sent.
func TestStatementThatWasNotSentGoesToAnotherConnection(t *testing.T) {
	ctx, dsn := t.Context(), pgtest.DSN(t)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		for name, use := range resends {
			if name == "batch" && mode == pgx.QueryExecModeExec {
				continue // here pgx does not tell that nothing was sent
			}
			t.Run(mode.String()+"/"+name, func(t *testing.T) {
				w := &wire{}
				g := &spy{}
				cfg := w.config(t, dsn)
				cfg.DefaultQueryExecMode = mode
				p := open(t, Config{ConnConfig: cfg, Max: 2, Guard: g, RequireServer: true})
				_, err := p.Exec(ctx, "drop table if exists item; create table item (id int)")
				require.NoError(t, err)
				for range 2 { // unprepared, and prepared
					warm(t, p, 2)
					g.take()
					w.arm(cut, "") // whatever is written next
					require.NoError(t, use(ctx, p))
					struck, _ := w.seen()
					require.Equal(t, 1, struck)
					asked, outcomes := g.take()
					require.Equal(t, 2, asked)
					require.ElementsMatch(t, []core.Outcome{core.Ignored, core.Success}, outcomes)
				}
				var rows int
				require.NoError(t, p.QueryRow(ctx, "select count(*) from item").Scan(&rows))
				require.Equal(t, 2, rows)
				require.EqualValues(t, 2, p.Stats().DestroyedBroken)
				require.Zero(t, p.Stats().Used)
				require.Zero(t, g.held())
			})
		}
	}
}

// What may have reached the server is never sent twice. pgx has it that an answer
// which breaks off under the simple protocol was safe to retry.
func TestStatementThatWasSentIsNeverSentAgain(t *testing.T) {
	ctx, dsn := t.Context(), pgtest.DSN(t)
	for name, use := range resends {
		for of, f := range map[string]fault{"lost": lost, "unheard": unheard} {
			t.Run(name+"/"+of, func(t *testing.T) {
				w := &wire{}
				cfg := w.config(t, dsn)
				cfg.DefaultQueryExecMode = pgx.QueryExecModeExec // one write
				g := &spy{}
				p := open(t, Config{ConnConfig: cfg, Max: 2, Guard: g, RequireServer: true})
				_, err := p.Exec(ctx, "drop table if exists item; create table item (id int)")
				require.NoError(t, err)
				g.take()
				w.arm(f, armed(name))
				err = use(ctx, p)
				require.Error(t, err)
				_, outcomes := g.take()
				require.Equal(t, []core.Outcome{core.Failure}, outcomes)
				require.False(t, pgconn.SafeToRetry(err))
				struck, writes := w.seen()
				require.Equal(t, []int{1, 1}, []int{struck, writes})
				want := 0
				if f == unheard && armed(name) == "insert" {
					want = 1
				}
				var rows int
				require.NoError(t, p.QueryRow(ctx, "select count(*) from item").Scan(&rows))
				require.Equal(t, want, rows)
				require.Zero(t, p.Stats().Used)
			})
		}
	}
}

// A server that kills every connection is not asked for ever.
func TestResendsAreBounded(t *testing.T) {
	ctx, dsn := t.Context(), pgtest.DSN(t)
	for name, c := range map[string]struct {
		budget retry.BudgetConfig
		want   int
	}{
		"by number": {retry.BudgetConfig{}, 1 + maxResends},
		"by budget": {retry.BudgetConfig{Max: 2, MinPerSecond: 1, Percent: retry.Off}, 1 + 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wire{}
			budget, err := retry.NewBudget(c.budget)
			require.NoError(t, err)
			p := open(t, Config{ConnConfig: w.config(t, dsn), Max: 2, RetryBudget: budget, RequireServer: true})
			w.arm(cutAlways, "select 'x'")
			_, err = p.Exec(ctx, "select 'x'")
			require.ErrorIs(t, err, errUnsent)
			require.True(t, pgconn.SafeToRetry(err))
			_, writes := w.seen()
			require.Equal(t, c.want, writes)
			require.Zero(t, p.Stats().Used)

			// A Conn is one connection: it is not replaced by another.
			w.arm(cut, "select 'x'")
			require.Error(t, p.With(ctx, func(c *Conn) error {
				_, err := c.Exec(ctx, "select 'x'")
				return err
			}))
			_, writes = w.seen()
			require.Equal(t, 1, writes)
		})
	}
}

// pgx's driver took an answer that breaks off for a statement that was not sent:
// database/sql sent it again, and an insert was applied twice.
func TestLostAnswerUnderDatabaseSQLIsNotSentAgain(t *testing.T) {
	ctx, dsn := t.Context(), pgtest.DSN(t)
	for of, f := range map[string]fault{"lost": lost, "unheard": unheard} {
		t.Run(of, func(t *testing.T) {
			w := &wire{}
			g := &spy{}
			p := open(t, Config{ConnConfig: w.config(t, dsn), Max: 2, Guard: g, RequireServer: true})
			_, err := p.Exec(ctx, "drop table if exists item; create table item (id int)")
			require.NoError(t, err)
			warm(t, p, 2)
			g.take()
			w.arm(f, "insert")
			_, err = p.DB().ExecContext(ctx, "insert into item values (1)")
			require.Error(t, err)
			require.NotErrorIs(t, err, driver.ErrBadConn)
			_, writes := w.seen()
			require.Equal(t, 1, writes)
			_, outcomes := g.take()
			require.Equal(t, []core.Outcome{core.Failure}, outcomes)
			want := 0
			if f == unheard {
				want = 1
			}
			var rows int
			require.NoError(t, p.QueryRow(ctx, "select count(*) from item").Scan(&rows))
			require.Equal(t, want, rows)
		})
	}
}
