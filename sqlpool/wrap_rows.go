package sqlpool

import (
	"context"
	"database/sql/driver"
	"io"
	"reflect"

	"github.com/surgewall/surgewall/core"
)

// wrapRows keep the permit of a statement until they are closed, or tell their
// transaction how they ended. Where the driver's rows lack an optional interface,
// they answer as database/sql does without it.
type wrapRows struct {
	driver.Rows
	call *call           // own, or that of the transaction
	own  call            // ends with the rows
	ctx  context.Context // of the statement, which is still running
	err  error           // that ended them early
}

func (r *wrapRows) Next(dest []driver.Value) error {
	r.err = core.ErrNoReturn // until it returns
	return r.read(r.Rows.Next(dest))
}

// read keeps what ended the rows before their end.
func (r *wrapRows) read(err error) error {
	r.err = err
	if err == io.EOF { //nolint:errorlint // the contract is io.EOF itself
		r.err = nil
	}
	return err
}

func (r *wrapRows) Close() error {
	defer r.own.abandon()
	err := r.Rows.Close()
	if r.err == nil {
		r.err = err
	}
	if r.call == &r.own {
		r.own.end(r.err)
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
		r.err = core.ErrNoReturn
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
