package sqlpool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/retry"
)

// What programs do with a *sql.DB. Each says what it sees.

func (w *world) exec(ctx context.Context, db interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
}, args ...any,
) {
	r, err := db.ExecContext(ctx, "exec", args...)
	w.sawErr("exec", err)
	if err == nil {
		n, err := r.RowsAffected()
		w.saw("affected", n, err)
		n, err = r.LastInsertId()
		w.saw("inserted", n, err)
	}
}

func (w *world) query(ctx context.Context, db interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}, args ...any,
) {
	w.read(db.QueryContext(ctx, "query", args...))
}

func (w *world) read(r *sql.Rows, err error) {
	synctest.Wait() // until database/sql has heard of a context that has ended
	w.sawErr("query", err)
	if err != nil {
		return
	}
	types, err := r.ColumnTypes()
	w.sawErr("types", err)
	for _, t := range types {
		w.saw("type", t.Name(), fmt.Sprint(t.ScanType()), t.DatabaseTypeName())
		n, ok := t.Length()
		w.saw("length", n, ok)
		null, ok := t.Nullable()
		w.saw("nullable", null, ok)
		p, s, ok := t.DecimalSize()
		w.saw("decimal", p, s, ok)
	}
	for {
		columns, err := r.Columns()
		w.saw("columns", columns)
		w.sawErr("columns", err)
		for r.Next() {
			a, b, raw := 0, "", sql.RawBytes(nil)
			dest := []any{&a, &b}[:len(columns)]
			w.sawErr("scan", r.Scan(dest...))
			w.saw("row", a, b)
			if len(dest) == 2 {
				w.sawErr("scan", r.Scan(&raw, &a)) // text is no int
				w.saw("row", string(raw))
			}
			w.sawErr("scan", r.Scan(&a, &a, &a))
		}
		if !r.NextResultSet() {
			break
		}
	}
	w.sawErr("rows", r.Err())
	w.sawErr("closed", r.Close())
	w.sawErr("scan", r.Scan(new(int)))
}

func (w *world) stmtOf(ctx context.Context, db interface {
	PrepareContext(context.Context, string) (*sql.Stmt, error)
}, args ...any,
) {
	st, err := db.PrepareContext(ctx, "stmt")
	w.sawErr("prepare", err)
	if err != nil {
		return
	}
	for range 2 {
		_, err = st.ExecContext(ctx, args...)
		w.sawErr("stmt exec", err)
		w.read(st.QueryContext(ctx, args...))
	}
	w.sawErr("stmt close", st.Close())
}

// all uses everything once.
func (w *world) all(ctx context.Context, db *sql.DB) {
	w.sawErr("ping", db.PingContext(ctx))
	w.exec(ctx, db, 1, "a", errBroken)
	w.query(ctx, db, "b", []byte("c"))
	w.stmtOf(ctx, db, true, "d", errBroken)
	tx, err := db.BeginTx(ctx, nil)
	w.sawErr("begin", err)
	if err == nil {
		w.exec(ctx, tx, "e")
		w.query(ctx, tx)
		w.stmtOf(ctx, tx, 1.5)
		w.sawErr("commit", tx.Commit())
	}
	c, err := db.Conn(ctx)
	w.sawErr("conn", err)
	if err == nil {
		w.sawErr("ping", c.PingContext(ctx))
		w.exec(ctx, c)
		w.query(ctx, c)
		w.stmtOf(ctx, c)
		w.sawErr("conn close", c.Close())
	}
	w.exec(ctx, db)
}

// sameCases are what a driver and a program do to each other.
var sameCases = []struct {
	name  string
	fails map[string][]error
	run   func(w *world, ctx context.Context, cancel func(), db *sql.DB) // default: all
}{
	{name: "all"},
	{name: "skip", fails: map[string][]error{
		"Exec": {driver.ErrSkip}, "ExecContext": {driver.ErrSkip}, "Query": {driver.ErrSkip}, "QueryContext": {driver.ErrSkip},
	}},
	{name: "stmt skips", fails: map[string][]error{
		"Stmt.Exec": {driver.ErrSkip}, "Stmt.ExecContext": {driver.ErrSkip}, "Stmt.Query": {driver.ErrSkip}, "Stmt.QueryContext": {driver.ErrSkip},
	}},
	{name: "broken", fails: map[string][]error{
		"Exec": {errBroken}, "ExecContext": {errBroken}, "Query": {errBroken}, "QueryContext": {errBroken},
		"Begin": {errBroken}, "BeginTx": {errBroken}, "Prepare": {nil, errBroken}, "PrepareContext": {nil, errBroken},
		"Ping": {errBroken}, "Connect": {core.Mark(errBroken, core.Ignored)}, "Close": {errBroken}, "Connector.Close": {errBroken},
	}},
	{name: "stmt broken", fails: map[string][]error{
		"Stmt.Exec": {errBroken}, "Stmt.ExecContext": {nil, errBroken}, "Stmt.Query": {nil, errBroken}, "Stmt.QueryContext": {errBroken},
		"Stmt.Close": {errBroken, errBroken},
	}},
	{name: "bad once", fails: map[string][]error{
		"Exec": {driver.ErrBadConn}, "ExecContext": {driver.ErrBadConn}, "Query": {driver.ErrBadConn}, "QueryContext": {driver.ErrBadConn},
		"Begin": {driver.ErrBadConn}, "BeginTx": {driver.ErrBadConn}, "Prepare": {driver.ErrBadConn}, "PrepareContext": {driver.ErrBadConn},
		"Ping": {driver.ErrBadConn}, "Stmt.ExecContext": {driver.ErrBadConn}, "Stmt.Query": {nil, driver.ErrBadConn},
	}},
	{name: "bad thrice", fails: map[string][]error{
		"ExecContext": {driver.ErrBadConn, driver.ErrBadConn, driver.ErrBadConn},
		"Query":       {driver.ErrBadConn, driver.ErrBadConn, driver.ErrBadConn},
		"BeginTx":     {driver.ErrBadConn, driver.ErrBadConn, driver.ErrBadConn},
		"Prepare":     {driver.ErrBadConn, driver.ErrBadConn, driver.ErrBadConn},
	}},
	{name: "wrapped bad", fails: map[string][]error{
		"ExecContext": {nil, fmt.Errorf("gone: %w", driver.ErrBadConn)}, "Exec": {fmt.Errorf("gone: %w", driver.ErrBadConn)},
		"Connect": {fmt.Errorf("gone: %w", driver.ErrBadConn)}, "Commit": {fmt.Errorf("gone: %w", driver.ErrBadConn)},
	}},
	{name: "reset bad", fails: map[string][]error{"ResetSession": {driver.ErrBadConn, errBroken, nil, driver.ErrBadConn}}},
	{name: "not valid", fails: map[string][]error{"IsValid": {errBroken, nil, errBroken}}},
	{name: "rows broken", fails: map[string][]error{
		"Rows.Next": {nil, errBroken}, "Rows.NextRow": {nil, errBroken}, "Rows.ScanColumn": {errBroken, nil, errBroken},
		"Rows.Close": {nil, errBroken}, "Rows.NextResultSet": {nil, errBroken},
	}},
	{name: "rows bad", fails: map[string][]error{
		"Rows.Next": {driver.ErrBadConn}, "Rows.NextRow": {driver.ErrBadConn}, "Rows.Close": {driver.ErrBadConn, nil, driver.ErrBadConn},
	}},
	{name: "checks broken", fails: map[string][]error{
		"CheckNamedValue": {errBroken, nil, errBroken}, "Stmt.CheckNamedValue": {nil, errBroken},
	}},
	{name: "names", run: func(w *world, ctx context.Context, _ func(), db *sql.DB) {
		w.exec(ctx, db, sql.Named("n", "x"))
		w.query(ctx, db, sql.Named("n", "x"))
		w.stmtOf(ctx, db, sql.Named("n", 1))
	}},
	{name: "types", run: func(w *world, ctx context.Context, _ func(), db *sql.DB) {
		for _, v := range []any{struct{}{}, []int{1}, sql.NullString{String: "x", Valid: true}, pointer, nil} {
			w.exec(ctx, db, v)
			w.query(ctx, db, v)
			w.stmtOf(ctx, db, v)
		}
	}},
	{name: "tx options", run: func(w *world, ctx context.Context, _ func(), db *sql.DB) {
		for _, o := range []sql.TxOptions{{ReadOnly: true}, {Isolation: sql.LevelSerializable}, {}} {
			tx, err := db.BeginTx(ctx, &o)
			w.sawErr("begin", err)
			if err == nil {
				w.sawErr("rollback", tx.Rollback())
				w.sawErr("rollback", tx.Rollback())
			}
		}
	}},
	{name: "tx ends badly", fails: map[string][]error{
		"Commit": {errBroken, driver.ErrBadConn}, "Rollback": {errBroken, driver.ErrBadConn},
	}, run: func(w *world, ctx context.Context, _ func(), db *sql.DB) {
		for range 3 {
			for _, how := range []func(*sql.Tx) error{(*sql.Tx).Commit, (*sql.Tx).Rollback} {
				tx, err := db.BeginTx(ctx, nil)
				w.sawErr("begin", err)
				w.exec(ctx, tx)
				w.sawErr("end", how(tx))
			}
		}
	}},
	{name: "tx cancelled", run: func(w *world, ctx context.Context, cancel func(), db *sql.DB) {
		tx, err := db.BeginTx(ctx, nil)
		w.sawErr("begin", err)
		w.exec(context.WithoutCancel(ctx), tx)
		cancel()
		synctest.Wait()
		w.sawErr("commit", tx.Commit())
		w.all(context.WithoutCancel(ctx), db) // on the same connection, or on another
	}},
	{name: "rows cancelled", run: func(w *world, ctx context.Context, cancel func(), db *sql.DB) {
		r, err := db.QueryContext(ctx, "query")
		w.sawErr("query", err)
		w.saw("next", r.Next())
		cancel()
		synctest.Wait()
		w.saw("next", r.Next())
		w.sawErr("rows", r.Err())
		w.all(context.WithoutCancel(ctx), db)
	}},
	{name: "result sets in a hurry", run: func(w *world, ctx context.Context, _ func(), db *sql.DB) {
		r, err := db.QueryContext(ctx, "query")
		w.sawErr("query", err)
		w.saw("next", r.Next())
		w.saw("next result set", r.NextResultSet())
		w.saw("next", r.Next())
		w.sawErr("rows", r.Err())
		w.sawErr("close", r.Close())
	}},
	{name: "rows read to their end alone", run: func(w *world, ctx context.Context, _ func(), db *sql.DB) {
		r, err := db.QueryContext(ctx, "query")
		w.sawErr("query", err)
		for r.Next() {
			w.saw("next")
		}
		w.exec(ctx, db) // on the same connection, unless there are more results
		w.sawErr("close", r.Close())
	}},
	{name: "rows of a tx", run: func(w *world, ctx context.Context, _ func(), db *sql.DB) {
		tx, err := db.BeginTx(ctx, nil)
		w.sawErr("begin", err)
		r, err := tx.QueryContext(ctx, "query")
		w.sawErr("query", err)
		w.saw("next", r.Next())
		w.exec(ctx, tx)
		w.sawErr("commit", tx.Commit())
		synctest.Wait()
		w.saw("next", r.Next())
		w.sawErr("rows", r.Err())
	}},
	{name: "rows of a stmt without a conn's query", fails: map[string][]error{
		"Query": {driver.ErrSkip}, "QueryContext": {driver.ErrSkip}, "Stmt.Close": {errBroken},
	}, run: func(w *world, ctx context.Context, _ func(), db *sql.DB) {
		var n int
		w.sawErr("row", db.QueryRowContext(ctx, "query").Scan(&n, new(string)))
		w.saw("n", n)
	}},
	{name: "cancelled before", run: func(w *world, ctx context.Context, cancel func(), db *sql.DB) {
		c, err := db.Conn(ctx)
		w.sawErr("conn", err)
		cancel()
		w.sawErr("ping", c.PingContext(ctx))
		w.exec(ctx, c, 1)
		w.query(ctx, c, 1)
		w.stmtOf(ctx, c)
		_, err = c.BeginTx(ctx, nil)
		synctest.Wait() // database/sql has rolled back
		w.sawErr("begin", err)
		w.sawErr("close", c.Close())
	}},
	{name: "cancelled within", run: func(w *world, ctx context.Context, cancel func(), db *sql.DB) {
		for _, m := range []string{"Prepare", "Begin", "PrepareContext", "BeginTx"} {
			w.hooks[m] = cancel
		}
		w.stmtOf(ctx, db)
		ctx = context.WithoutCancel(ctx)
		for _, m := range []string{"Prepare", "Begin", "PrepareContext", "BeginTx"} {
			ctx, cancel := context.WithCancel(ctx)
			w.hooks[m] = cancel
			_, err := db.BeginTx(ctx, nil)
			cancel()
			synctest.Wait() // database/sql has rolled back
			w.sawErr("begin", err)
		}
		w.all(ctx, db)
	}},
	{name: "raw", run: func(w *world, ctx context.Context, _ func(), db *sql.DB) {
		c, err := db.Conn(ctx)
		w.sawErr("conn", err)
		w.sawErr("raw", c.Raw(func(any) error { return errBroken }))
		w.exec(ctx, c)
		w.sawErr("raw", c.Raw(func(any) error { return driver.ErrBadConn }))
		w.exec(ctx, c)
	}},
}

// sameWraps are ways to wrap that refuse nothing, and retry nothing: what fails
// here is of errors that do not say that nothing was sent, nor of dials.
var sameWraps = map[string]func() WrapConfig{
	"guard": func() WrapConfig { return WrapConfig{Guard: &spy{}} },
	"limit, observer and retry": func() WrapConfig {
		return WrapConfig{Guard: endGuard{core.WantsNothing}, Observer: &ear{}, Retry: WrapRetry{Tries: 2, Backoff: retry.Backoff{Base: -1}}}
	},
	"observer": func() WrapConfig { return WrapConfig{Observer: &ear{}} },
}

// There is no driver with which a *sql.DB does anything else because of Wrap: to
// the driver, or to the program.
func TestWrapChangesNothing(t *testing.T) {
	const stmts = 16
	conns := len(connVariants(nil))
	rows := len(rowsVariants(nil))
	const step = 7 // of the combinations, so that each has its share of the others
	for _, tc := range sameCases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			for i := 0; i < conns*stmts; i += step {
				conn := worldConnector{conn: i % conns}
				bare := observe(t, conn, i/conns, i%rows, nil, tc.fails, tc.run)
				for name, cfg := range sameWraps {
					wrapped := observe(t, conn, i/conns, i%rows, cfg, tc.fails, tc.run)
					sameLog(t, bare, wrapped, "connection %d, statement %d, rows %d, %s", i%conns, i/conns, i%rows, name)
				}
			}
		})
	}
}

// sameLog shows the first difference alone.
func sameLog(t *testing.T, bare, wrapped []string, format string, args ...any) {
	t.Helper()
	for i := range max(len(bare), len(wrapped)) {
		if i >= len(bare) || i >= len(wrapped) || bare[i] != wrapped[i] {
			at := func(log []string) []string { return log[min(len(log), max(0, i-5)):min(len(log), i+2)] }
			require.Equal(t, strings.Join(at(bare), ""), strings.Join(at(wrapped), ""), fmt.Sprintf(format, args...))
		}
	}
}

// observe is what happens to a program that runs over such a driver.
func observe(t *testing.T, c worldConnector, stmt, rows int, cfg func() WrapConfig, fails map[string][]error,
	run func(*world, context.Context, func(), *sql.DB),
) []string {
	t.Helper()
	w := &world{stmt: stmt, rows: rows, fails: map[string][]error{}, hooks: map[string]func(){}}
	for method, errs := range fails {
		w.fails[method] = errs
	}
	synctest.Test(t, func(*testing.T) {
		c.w = w
		var connector driver.Connector = c
		if c.conn%2 == 0 {
			connector = closingConnector{c}
		}
		if cfg != nil {
			connector = Wrap(connector, cfg())
		}
		db := sql.OpenDB(connector)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		if run == nil {
			w.all(ctx, db)
		} else {
			run(w, ctx, cancel, db)
		}
		w.sawErr("db close", db.Close())
	})
	return w.log
}
