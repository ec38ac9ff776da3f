package sqlpool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// dbResends are the ways to ask a *sql.DB for a first statement. Each inserts one
// row.
func dbResends(ctx context.Context, db *sql.DB, st *sql.Stmt) map[string]func() error {
	id := new(int)
	return map[string]func() error{
		"exec": func() error { _, err := db.ExecContext(ctx, "insert into item values (1)"); return err },
		"exec with arguments": func() error {
			_, err := db.ExecContext(ctx, "insert into item values ($1)", 1)
			return err
		},
		"row": func() error { return db.QueryRowContext(ctx, "insert into item values (1) returning id").Scan(id) },
		"row of the simple protocol": func() error {
			return db.QueryRowContext(ctx, "insert into item values (1) returning id", pgx.QueryExecModeSimpleProtocol).Scan(id)
		},
		"stmt exec": func() error { _, err := st.ExecContext(ctx, 1); return err },
		"stmt row":  func() error { return st.QueryRowContext(ctx, 1).Scan(id) },
		"transaction": func() error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer func() { _ = tx.Rollback() }()
			if _, err := tx.ExecContext(ctx, "insert into item values (1)"); err != nil {
				return err
			}
			return tx.Commit()
		},
	}
}

// openWired is a *sql.DB over w, and a statement that each connection knows.
func openWired(t *testing.T, w *wire) (*Pool, *sql.Stmt) {
	p := open(t, Config{ConnConfig: w.config(t, pgtest.DSN(t)), Max: 2, RequireServer: true})
	_, err := p.Exec(t.Context(), "create table item (id int)")
	require.NoError(t, err)
	st, err := p.DB().PrepareContext(t.Context(), "insert into item values ($1) returning id")
	require.NoError(t, err)
	know(t, p, st)
	return p, st
}

// know has both connections know st.
func know(t *testing.T, p *Pool, st *sql.Stmt) {
	t.Helper()
	warm(t, p, 2)
	for range 2 {
		tx, err := p.DB().BeginTx(t.Context(), nil)
		require.NoError(t, err)
		defer func() { require.NoError(t, tx.Rollback()) }()
		_, err = tx.StmtContext(t.Context(), st).ExecContext(t.Context(), 1)
		require.NoError(t, err)
	}
}

func items(t *testing.T, p *Pool) (n int) {
	t.Helper()
	require.NoError(t, p.QueryRow(t.Context(), "select count(*) from item").Scan(&n))
	return n
}

// A connection that breaks before anything is sent costs nothing but another.
func TestUnsentStatementOfDatabaseSQLGoesToAnotherConnection(t *testing.T) {
	for name := range dbResends(t.Context(), nil, nil) {
		if name == "row of the simple protocol" {
			continue // here pgx's driver does not tell whether it was sent
		}
		w := &wire{}
		p, st := openWired(t, w)
		w.arm(cut, "") // whatever is written next
		require.NoError(t, dbResends(t.Context(), p.DB(), st)[name](), name)
		struck, _ := w.seen()
		require.Equal(t, 1, struck, name)
		require.Equal(t, 1, items(t, p), name)
		require.Zero(t, p.Stats().Used, name)
	}
}

// What may have reached the server is not sent again: it may have been applied.
func TestSentStatementOfDatabaseSQLIsNeverSentAgain(t *testing.T) {
	for name := range dbResends(t.Context(), nil, nil) {
		text := "insert"
		switch name {
		case "transaction":
			text = "commit"
		case "stmt exec", "stmt row":
			text = "stmt_" // its name
		case "exec with arguments", "row":
			text = "stmtcache_"
		}
		for of, f := range map[string]fault{"lost": lost, "unheard": unheard} {
			w := &wire{}
			p, st := openWired(t, w)
			use := dbResends(t.Context(), p.DB(), st)[name]
			for range 2 { // so that both connections know the text
				c, err := p.Acquire(t.Context())
				require.NoError(t, err)
				require.NoError(t, use())
				c.Release()
				require.NoError(t, use())
			}
			before := items(t, p)
			w.arm(f, text)
			err := use()
			require.Error(t, err, name)
			require.NotErrorIs(t, err, driver.ErrBadConn, name)
			struck, writes := w.seen()
			require.Equal(t, []int{1, 1}, []int{struck, writes}, name+" "+of)
			want := before
			if f == unheard {
				want++
			}
			require.Equal(t, want, items(t, p), name+" "+of)
			require.Zero(t, p.Stats().Used, name)
		}
	}
}

// On a connection of one's own there is no other to try.
func TestConnOfDatabaseSQLThatBreaksIsOver(t *testing.T) {
	w := &wire{}
	p, _ := openWired(t, w)
	c, err := p.DB().Conn(t.Context())
	require.NoError(t, err)
	w.arm(cut, "")
	_, err = c.ExecContext(t.Context(), "select 1")
	require.ErrorIs(t, err, driver.ErrBadConn)
	require.ErrorIs(t, c.Close(), sql.ErrConnDone)
	require.Zero(t, p.Stats().Used)
}
