package sqlpool

import (
	"context"
	"database/sql/driver"
	"io"
	"reflect"
)

// wrapStmt is a driver's prepared statement behind a guard.
type wrapStmt struct {
	driver.Stmt
	c *wrapConn
}

// wrapDriverStmt is st behind the guard of c. A checker or converter of its own
// is there exactly if st has one: a checker that had nothing to say would keep
// database/sql from asking the connection's.
func wrapDriverStmt(st driver.Stmt, c *wrapConn) driver.Stmt {
	s := &wrapStmt{st, c}
	checker, checks := st.(driver.NamedValueChecker)
	converter, converts := st.(columnConverter)
	switch {
	case checks && converts:
		return struct {
			*wrapStmt
			driver.NamedValueChecker
			columnConverter
		}{s, checker, converter}
	case checks:
		return struct {
			*wrapStmt
			driver.NamedValueChecker
		}{s, checker}
	case converts:
		return struct {
			*wrapStmt
			columnConverter
		}{s, converter}
	}
	return s
}

func (s *wrapStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (r driver.Result, err error) {
	err = s.c.run(ctx, func() (err error) {
		if x, ok := s.Stmt.(driver.StmtExecContext); ok {
			r, err = x.ExecContext(ctx, args)
			return err
		}
		values, err := plain(ctx, args)
		if err == nil {
			r, err = stmt(s.Stmt).Exec(values)
		}
		return err
	})
	return r, err
}

func (s *wrapStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.c.query(ctx, func() (driver.Rows, error) {
		if x, ok := s.Stmt.(driver.StmtQueryContext); ok {
			return x.QueryContext(ctx, args)
		}
		values, err := plain(ctx, args)
		if err != nil {
			return nil, err
		}
		return stmt(s.Stmt).Query(values)
	})
}

// wrapRows keep the permit of a statement until they are closed, or tell their
// transaction how they ended. Where the driver's rows lack an optional interface,
// they answer as database/sql does without it.
type wrapRows struct {
	driver.Rows
	call *call
	ctx  context.Context // of the statement, which is still running
	last bool            // the call ends with the rows
	err  error           // that ended them early
}

func (r *wrapRows) Next(dest []driver.Value) error { return r.read(r.Rows.Next(dest)) }

// read keeps what ended the rows before their end.
func (r *wrapRows) read(err error) error {
	if err != nil && err != io.EOF { //nolint:errorlint // the contract is io.EOF itself
		r.err = err
	}
	return err
}

func (r *wrapRows) Close() error {
	returned := !r.last // a transaction has its own end
	defer r.call.abandon(&returned)
	err := r.Rows.Close()
	returned = true
	if r.err == nil {
		r.err = err
	}
	if r.last {
		r.call.end(r.err)
	} else {
		r.call.note(r.ctx, r.err)
	}
	return err
}

func (r *wrapRows) HasNextResultSet() bool {
	n, ok := r.Rows.(driver.RowsNextResultSet)
	return ok && n.HasNextResultSet()
}

func (r *wrapRows) NextResultSet() error {
	if n, ok := r.Rows.(driver.RowsNextResultSet); ok {
		return r.read(n.NextResultSet())
	}
	return io.EOF
}

func (r *wrapRows) ColumnTypeScanType(i int) reflect.Type {
	if t, ok := r.Rows.(driver.RowsColumnTypeScanType); ok {
		return t.ColumnTypeScanType(i)
	}
	return reflect.TypeFor[any]()
}

func (r *wrapRows) ColumnTypeDatabaseTypeName(i int) string {
	if t, ok := r.Rows.(driver.RowsColumnTypeDatabaseTypeName); ok {
		return t.ColumnTypeDatabaseTypeName(i)
	}
	return ""
}

func (r *wrapRows) ColumnTypeLength(i int) (length int64, ok bool) {
	if t, ok := r.Rows.(driver.RowsColumnTypeLength); ok {
		return t.ColumnTypeLength(i)
	}
	return 0, false
}

func (r *wrapRows) ColumnTypeNullable(i int) (nullable, ok bool) {
	if t, ok := r.Rows.(driver.RowsColumnTypeNullable); ok {
		return t.ColumnTypeNullable(i)
	}
	return false, false
}

func (r *wrapRows) ColumnTypePrecisionScale(i int) (precision, scale int64, ok bool) {
	if t, ok := r.Rows.(driver.RowsColumnTypePrecisionScale); ok {
		return t.ColumnTypePrecisionScale(i)
	}
	return 0, 0, false
}
