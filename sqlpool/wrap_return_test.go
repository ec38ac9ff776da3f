package sqlpool

import (
	"context"
	"database/sql/driver"
	"io"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// noReturns are the ways in which user code does not return.
var noReturns = map[string]func(){
	"panic":  func() { panic("user code") },
	"goexit": runtime.Goexit,
}

// apart runs fn, which may not return, on a goroutine of its own, and is what it
// panicked with.
func apart(fn func()) (panicked any) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { panicked = recover() }()
		fn()
	}()
	<-done
	return panicked
}

// useOf is what a program does with a connection whose driver fails at fail.
var useOf = map[string]struct {
	fail string
	use  func(ctx context.Context, c driver.Conn)
}{
	"exec": {"ExecContext", func(ctx context.Context, c driver.Conn) {
		_, _ = c.(driver.ExecerContext).ExecContext(ctx, "x", nil)
	}},
	"query": {"QueryContext", func(ctx context.Context, c driver.Conn) {
		_, _ = c.(driver.QueryerContext).QueryContext(ctx, "x", nil)
	}},
	"next": {"Rows.Next", func(ctx context.Context, c driver.Conn) {
		r, _ := c.(driver.QueryerContext).QueryContext(ctx, "x", nil)
		defer r.Close()
		_ = r.Next(make([]driver.Value, 2))
	}},
	"next result set": {"Rows.NextResultSet", func(ctx context.Context, c driver.Conn) {
		r, _ := c.(driver.QueryerContext).QueryContext(ctx, "x", nil)
		defer r.Close()
		_ = r.(driver.RowsNextResultSet).NextResultSet()
	}},
	"close of rows": {"Rows.Close", func(ctx context.Context, c driver.Conn) {
		r, _ := c.(driver.QueryerContext).QueryContext(ctx, "x", nil)
		_ = r.Close()
	}},
	"statement": {"Stmt.ExecContext", func(ctx context.Context, c driver.Conn) {
		st, _ := c.Prepare("x")
		_, _ = st.(driver.StmtExecContext).ExecContext(ctx, nil)
	}},
	"begin": {"BeginTx", func(ctx context.Context, c driver.Conn) {
		_, _ = c.(driver.ConnBeginTx).BeginTx(ctx, driver.TxOptions{})
	}},
	"commit": {"Commit", func(ctx context.Context, c driver.Conn) {
		tx, _ := c.(driver.ConnBeginTx).BeginTx(ctx, driver.TxOptions{})
		_ = tx.Commit()
	}},
	"rollback": {"Rollback", func(ctx context.Context, c driver.Conn) {
		tx, _ := c.(driver.ConnBeginTx).BeginTx(ctx, driver.TxOptions{})
		_ = tx.Rollback()
	}},
	"exec in a transaction": {"ExecContext", func(ctx context.Context, c driver.Conn) {
		tx, _ := c.(driver.ConnBeginTx).BeginTx(ctx, driver.TxOptions{})
		defer tx.Rollback()
		_, _ = c.(driver.ExecerContext).ExecContext(ctx, "x", nil)
	}},
	"next in a transaction": {"Rows.Next", func(ctx context.Context, c driver.Conn) {
		tx, _ := c.(driver.ConnBeginTx).BeginTx(ctx, driver.TxOptions{})
		defer tx.Rollback()
		r, _ := c.(driver.QueryerContext).QueryContext(ctx, "x", nil)
		defer r.Close()
		_ = r.Next(make([]driver.Value, 2))
	}},
}

// fullDriver is a connection that has everything, wrapped.
func fullDriver(w *world, cfg WrapConfig) driver.Connector {
	w.stmt, w.rows = len(stmtVariants(nil))-1, 1
	if w.fails == nil {
		w.fails = map[string][]error{}
	}
	if w.hooks == nil {
		w.hooks = map[string]func(){}
	}
	return Wrap(worldConnector{w: w, conn: 1}, cfg)
}

// The permit was lost when Outcome panicked or exited its goroutine.
func TestWrapOutcomeThatDoesNotReturnLosesNoPermit(t *testing.T) {
	for how, fail := range noReturns {
		for name, c := range useOf {
			t.Run(how+" "+name, func(t *testing.T) {
				g := &spy{}
				w := &world{fails: map[string][]error{c.fail: {io.ErrUnexpectedEOF}}}
				conn, err := fullDriver(w, WrapConfig{
					Guard: g, Outcome: func(context.Context, error) core.Outcome { fail(); return core.Success },
				}).Connect(t.Context())
				require.NoError(t, err)
				apart(func() { c.use(t.Context(), conn) })
				require.Zero(t, g.held())
				_, outcomes := g.take()
				require.Len(t, outcomes, 1)
				require.NoError(t, conn.Close())
			})
		}
	}
}

// What a driver did not return from is no success.
func TestWrapDriverThatDoesNotReturnIsAFailure(t *testing.T) {
	for how, fail := range noReturns {
		for name, c := range useOf {
			t.Run(how+" "+name, func(t *testing.T) {
				g := &spy{}
				w := &world{hooks: map[string]func(){c.fail: fail}}
				conn, err := fullDriver(w, WrapConfig{Guard: g}).Connect(t.Context())
				require.NoError(t, err)
				panicked := apart(func() { c.use(t.Context(), conn) })
				require.Equal(t, how == "panic", panicked != nil)
				require.Zero(t, g.held())
				require.Len(t, g.results, 1)
				require.Equal(t, core.Failure, g.results[0].Outcome)
				require.ErrorIs(t, g.results[0].Err, core.ErrNoReturn)
				require.NoError(t, conn.Close())
			})
		}
	}
}
