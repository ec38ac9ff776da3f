package sqlpool

import (
	"database/sql"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// pgx calls an answer that breaks off under the simple protocol "conn closed",
// which it takes for safe to retry, and its driver for driver.ErrBadConn: upon
// that, database/sql would have run the statement twice.
func TestAnswerThatBreaksOffIsNotSentAgainByDatabaseSQL(t *testing.T) {
	ctx := t.Context()
	for name, use := range map[string]func(*sql.DB) error{
		"exec without arguments": func(db *sql.DB) error {
			_, err := db.ExecContext(ctx, "insert into hit values (1)")
			return err
		},
		"query by the simple protocol": func(db *sql.DB) error {
			return db.QueryRowContext(ctx, "insert into hit values (1) returning id", pgx.QueryExecModeSimpleProtocol).Scan(new(int))
		},
	} {
		for fault, f := range map[string]fault{"lost": lost, "unheard": unheard} {
			t.Run(name+"/"+fault, func(t *testing.T) {
				var w wire
				p := open(t, Config{ConnConfig: w.config(t, pgtest.DSN(t)), Max: 2, MinIdle: Off})
				_, err := p.Exec(ctx, "create table hit (id int)")
				require.NoError(t, err)
				w.arm(f, "into hit")
				require.Error(t, use(p.DB()))
				_, writes := w.seen()
				require.Equal(t, 1, writes)
				var hits int
				require.NoError(t, p.QueryRow(ctx, "select count(*) from hit").Scan(&hits))
				if f == lost {
					require.Zero(t, hits)
				} else {
					require.Equal(t, 1, hits)
				}
			})
		}
	}
}

// A COMMIT whose answer is lost says so under database/sql, too.
func TestCommitThatIsUnknownUnderDatabaseSQL(t *testing.T) {
	ctx := t.Context()
	var w wire
	p := open(t, Config{ConnConfig: w.config(t, pgtest.DSN(t)), Max: 2, MinIdle: Off})
	_, err := p.Exec(ctx, "create table hit (id int)")
	require.NoError(t, err)
	tx, err := p.DB().BeginTx(ctx, nil)
	require.NoError(t, err)
	_, err = tx.ExecContext(ctx, "insert into hit values (1)")
	require.NoError(t, err)
	w.arm(unheard, "commit")
	require.ErrorIs(t, tx.Commit(), ErrCommitUnknown)
	var hits int
	require.NoError(t, p.QueryRow(ctx, "select count(*) from hit").Scan(&hits))
	require.Equal(t, 1, hits)
}
