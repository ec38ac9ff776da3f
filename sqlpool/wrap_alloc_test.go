package sqlpool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// idleConn is a connection of a driver that does nothing, and allocates nothing.
type idleConn struct{}

func (idleConn) Connect(context.Context) (driver.Conn, error) { return idleConn{}, nil }
func (idleConn) Driver() driver.Driver                        { return nil }
func (idleConn) Prepare(string) (driver.Stmt, error)          { return idleConn{}, nil }
func (idleConn) Close() error                                 { return nil }
func (idleConn) Begin() (driver.Tx, error)                    { return idleConn{}, nil }
func (idleConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return idleConn{}, nil
}
func (idleConn) Commit() error   { return nil }
func (idleConn) Rollback() error { return nil }

func (idleConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return driver.ResultNoRows, nil
}

func (idleConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return idleConn{}, nil
}

func (idleConn) NumInput() int                              { return 0 }
func (idleConn) Exec([]driver.Value) (driver.Result, error) { return driver.ResultNoRows, nil }
func (idleConn) Query([]driver.Value) (driver.Rows, error)  { return idleConn{}, nil }
func (idleConn) Columns() []string                          { return nil }
func (idleConn) Next([]driver.Value) error                  { return io.EOF }

// endGuard admits, and has no use for outcomes, or for the end of a call.
type endGuard struct{ wants core.Wants }

func (g endGuard) Acquire(context.Context, core.Call) (core.Permit, error) {
	return core.NewPermit(g, core.Token{}, g.wants), nil
}
func (endGuard) FinishPermit(context.Context, core.Token, core.Result) {}
func (endGuard) CancelPermit(core.Token)                               {}

// What Wrap adds to a statement of a *sql.DB: nothing to an Exec, the rows that
// keep the permit to a Query, and the transaction to a Begin.
func TestWrapAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ctx := context.Background()
	measure := func(c driver.Connector) (exec, query, stmt, tx float64) {
		db := sql.OpenDB(c)
		defer db.Close()
		st, err := db.PrepareContext(ctx, "x")
		require.NoError(t, err)
		defer st.Close()
		exec = allocations(func() { _, _ = db.ExecContext(ctx, "x") })
		query = allocations(func() {
			r, _ := db.QueryContext(ctx, "x")
			_ = r.Close()
		})
		stmt = allocations(func() { _, _ = st.ExecContext(ctx) })
		tx = allocations(func() {
			tx, _ := db.BeginTx(ctx, nil)
			_, _ = tx.ExecContext(ctx, "x")
			_ = tx.Commit()
		})
		return exec, query, stmt, tx
	}
	exec, query, stmt, tx := measure(idleConn{})
	for name, c := range map[string]struct {
		cfg  WrapConfig
		rows float64
	}{
		"limit":    {cfg: WrapConfig{Guard: endGuard{core.WantsNothing}}},
		"bulkhead": {cfg: WrapConfig{Guard: endGuard{core.WantsEnd}}, rows: 1},
		"breaker":  {cfg: WrapConfig{Guard: endGuard{core.WantsResult}}, rows: 1},
		"retry":    {cfg: WrapConfig{Retry: WrapRetry{Tries: 2}}},
		"observer": {cfg: WrapConfig{Observer: &ear{}}},
	} {
		e, q, s, x := measure(Wrap(idleConn{}, c.cfg))
		require.LessOrEqual(t, e, exec, name)
		require.LessOrEqual(t, q, query+c.rows, name)
		require.LessOrEqual(t, s, stmt, name)
		require.LessOrEqual(t, x, tx+1, name)
	}
}
