package sqlpool

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sync"

	"github.com/surgewall/surgewall/core"
)

// world is a database and a driver for it that has every optional interface. It
// writes down each call, and fails where a test says so. The variants show a part
// of its interfaces.
type world struct {
	stmt, rows int // the variant, by its index

	mu    sync.Mutex
	log   []string
	fails map[string][]error // what the next calls of a method return
	hooks map[string]func()  // run by the next call of a method
	conns int
}

// did writes a call down, and is what it returns.
func (w *world) did(method string, args ...any) error {
	w.mu.Lock()
	w.log = append(w.log, fmt.Sprintln("  driver:", method, args))
	var err error
	if next := w.fails[method]; len(next) > 0 {
		err, w.fails[method] = next[0], next[1:]
	}
	hook := w.hooks[method]
	delete(w.hooks, method)
	w.mu.Unlock()
	if hook != nil {
		hook()
	}
	return err
}

// saw writes down what database/sql made of it.
func (w *world) saw(what string, values ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, fmt.Sprintln(append([]any{what + ":"}, values...)...))
}

// sawErr is saw for an error: its text, and what it is.
func (w *world) sawErr(what string, err error) {
	_, refused := errors.AsType[*core.Rejection](err)
	w.saw(what, fmt.Sprint(err), errors.Is(err, driver.ErrBadConn), errors.Is(err, driver.ErrSkip),
		errors.Is(err, errBroken), errors.Is(err, context.Canceled), refused)
}

type (
	worldConnector struct {
		w    *world
		conn int // the variant
	}
	closingConnector struct{ worldConnector }
	fullConn         struct {
		w  *world
		id int
	}
	fullTx   struct{ c *fullConn }
	fullStmt struct{ c *fullConn }
	fullRows struct {
		w       *world
		row     int
		set     int
		current []driver.Value
	}
)

func (c worldConnector) Connect(context.Context) (driver.Conn, error) {
	if err := c.w.did("Connect"); err != nil {
		return nil, err
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.conns++
	return connVariants(&fullConn{c.w, c.w.conns})[c.conn], nil
}
func (c worldConnector) Driver() driver.Driver { return nil }
func (c closingConnector) Close() error        { return c.w.did("Connector.Close") }

func (c *fullConn) did(method string, args ...any) error {
	return c.w.did(method, append([]any{"on", c.id}, args...)...)
}

func (c *fullConn) prepare(err error) (driver.Stmt, error) {
	if err != nil {
		return nil, err
	}
	return stmtVariants(&fullStmt{c})[c.w.stmt], nil
}

func (c *fullConn) Prepare(q string) (driver.Stmt, error) { return c.prepare(c.did("Prepare", q)) }
func (c *fullConn) PrepareContext(_ context.Context, q string) (driver.Stmt, error) {
	return c.prepare(c.did("PrepareContext", q))
}
func (c *fullConn) Close() error { return c.did("Close") }

func (c *fullConn) begin(err error) (driver.Tx, error) {
	if err != nil {
		return nil, err
	}
	return fullTx{c}, nil
}
func (c *fullConn) Begin() (driver.Tx, error) { return c.begin(c.did("Begin")) }
func (c *fullConn) BeginTx(_ context.Context, o driver.TxOptions) (driver.Tx, error) {
	return c.begin(c.did("BeginTx", o))
}
func (c *fullConn) Ping(context.Context) error         { return c.did("Ping") }
func (c *fullConn) ResetSession(context.Context) error { return c.did("ResetSession") }
func (c *fullConn) IsValid() bool                      { return c.did("IsValid") == nil }
func (c *fullConn) CheckNamedValue(v *driver.NamedValue) error {
	return check(c.did, "CheckNamedValue", v)
}

// check converts strings, leaves out what says so, and has no opinion on others.
func check(did func(string, ...any) error, method string, v *driver.NamedValue) error {
	if err := did(method, *v); err != nil {
		return err
	}
	switch x := v.Value.(type) {
	case string:
		v.Value = "checked " + x
		return nil
	case error:
		return driver.ErrRemoveArgument
	}
	return driver.ErrSkip
}

func (c *fullConn) exec(err error) (driver.Result, error) {
	if err != nil {
		return nil, err
	}
	return driver.RowsAffected(c.id), nil
}

func (c *fullConn) query(err error) (driver.Rows, error) {
	if err != nil {
		return nil, err
	}
	return rowsVariants(&fullRows{w: c.w})[c.w.rows], nil
}

func (c *fullConn) Exec(q string, a []driver.Value) (driver.Result, error) {
	return c.exec(c.did("Exec", q, a))
}

func (c *fullConn) ExecContext(_ context.Context, q string, a []driver.NamedValue) (driver.Result, error) {
	return c.exec(c.did("ExecContext", q, a))
}

func (c *fullConn) Query(q string, a []driver.Value) (driver.Rows, error) {
	return c.query(c.did("Query", q, a))
}

func (c *fullConn) QueryContext(_ context.Context, q string, a []driver.NamedValue) (driver.Rows, error) {
	return c.query(c.did("QueryContext", q, a))
}

func (t fullTx) Commit() error   { return t.c.did("Commit") }
func (t fullTx) Rollback() error { return t.c.did("Rollback") }

func (s *fullStmt) Close() error  { return s.c.did("Stmt.Close") }
func (s *fullStmt) NumInput() int { _ = s.c.did("Stmt.NumInput"); return -1 }
func (s *fullStmt) Exec(a []driver.Value) (driver.Result, error) {
	return s.c.exec(s.c.did("Stmt.Exec", a))
}

func (s *fullStmt) ExecContext(_ context.Context, a []driver.NamedValue) (driver.Result, error) {
	return s.c.exec(s.c.did("Stmt.ExecContext", a))
}

func (s *fullStmt) Query(a []driver.Value) (driver.Rows, error) {
	return s.c.query(s.c.did("Stmt.Query", a))
}

func (s *fullStmt) QueryContext(_ context.Context, a []driver.NamedValue) (driver.Rows, error) {
	return s.c.query(s.c.did("Stmt.QueryContext", a))
}

func (s *fullStmt) CheckNamedValue(v *driver.NamedValue) error {
	return check(s.c.did, "Stmt.CheckNamedValue", v)
}

func (s *fullStmt) ColumnConverter(i int) driver.ValueConverter {
	_ = s.c.did("Stmt.ColumnConverter", i)
	return driver.String
}

// What rows may have: as in database/sql/driver, without Rows itself.
type (
	rowsNextResultSet interface {
		HasNextResultSet() bool
		NextResultSet() error
	}
	rowsScanType         interface{ ColumnTypeScanType(int) reflect.Type }
	rowsDatabaseTypeName interface{ ColumnTypeDatabaseTypeName(int) string }
	rowsLength           interface{ ColumnTypeLength(int) (int64, bool) }
	rowsNullable         interface{ ColumnTypeNullable(int) (bool, bool) }
	rowsPrecisionScale   interface {
		ColumnTypePrecisionScale(int) (int64, int64, bool)
	}
)

func (r *fullRows) Columns() []string { return []string{"a", "b"}[:2-r.set] }
func (r *fullRows) Close() error      { return r.w.did("Rows.Close") }

func (r *fullRows) next(method string) error {
	if err := r.w.did(method); err != nil {
		return err
	}
	if r.row++; r.row > 2 {
		return io.EOF
	}
	r.current = []driver.Value{int64(r.row), "text"}[:2-r.set]
	return nil
}

func (r *fullRows) Next(dest []driver.Value) error {
	err := r.next("Rows.Next")
	copy(dest, r.current)
	return err
}

func (r *fullRows) HasNextResultSet() bool {
	_ = r.w.did("Rows.HasNextResultSet")
	return r.set == 0
}

func (r *fullRows) NextResultSet() error {
	if err := r.w.did("Rows.NextResultSet"); err != nil {
		return err
	}
	if r.set++; r.set > 1 {
		return io.EOF
	}
	r.row = 0
	return nil
}

func (r *fullRows) ColumnTypeScanType(i int) reflect.Type {
	_ = r.w.did("ScanType", i)
	return reflect.TypeFor[int64]()
}

func (r *fullRows) ColumnTypeDatabaseTypeName(i int) string {
	_ = r.w.did("DatabaseTypeName", i)
	return "INT8"
}

func (r *fullRows) ColumnTypeLength(i int) (int64, bool) {
	_ = r.w.did("Length", i)
	return 8, true
}

func (r *fullRows) ColumnTypeNullable(i int) (bool, bool) {
	_ = r.w.did("Nullable", i)
	return true, true
}

func (r *fullRows) ColumnTypePrecisionScale(i int) (int64, int64, bool) {
	_ = r.w.did("PrecisionScale", i)
	return 10, 2, true
}

var (
	errBroken = errors.New("broken")
	pointer   = new(int) // one, as it is written down
)
