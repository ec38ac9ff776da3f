package sqlpool

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// rows are pgx's, which tell their session how they ended.
type rows struct {
	pgx.Rows
	s      *session
	ctx    context.Context // of the statement, which is still running
	stop   context.CancelFunc
	last   bool // the session ends with the rows
	closed bool
	err    error // once closed
}

// lentRows are rows and the session that ends with them.
type lentRows struct {
	rows
	own session
}

// Close reads what is left of the answer and ends the rows.
func (r *rows) Close() {
	if r.over() {
		return
	}
	r.closed = true
	defer r.stop()
	if r.last {
		defer r.s.end() // also if a tracer of pgx panics
	}
	r.Rows.Close()
	r.err = r.s.note(r.ctx, r.Rows.Err())
}

// over is true also when the connection was given back under the rows: it is
// no longer theirs to read from.
func (r *rows) over() bool { return r.closed || r.lost() }

// lost is true when the connection was given back before the rows were closed.
func (r *rows) lost() bool { return !r.closed && r.s.ended.Load() }

// Err is ErrReleased when there may have been more rows than could be read.
func (r *rows) Err() error {
	switch {
	case r.closed:
		return r.err
	case r.lost():
		return ErrReleased
	default:
		return r.Rows.Err()
	}
}

// FieldDescriptions is nil once the rows are closed: what pgx keeps them in is of
// the connection, which may be somebody else's by then.
func (r *rows) FieldDescriptions() []pgconn.FieldDescription {
	if r.over() {
		return nil
	}
	return r.Rows.FieldDescriptions()
}

// Conn is nil once the rows are closed.
func (r *rows) Conn() *pgx.Conn {
	if r.over() {
		return nil
	}
	return r.Rows.Conn()
}

func (r *rows) Next() bool {
	if r.over() {
		return false
	}
	more := false
	defer func() {
		if !more {
			r.Close()
		}
	}()
	more = r.Rows.Next()
	return more
}

func (r *rows) Scan(dest ...any) error { return r.read(func() error { return r.Rows.Scan(dest...) }) }

func (r *rows) Values() (values []any, err error) {
	err = r.read(func() error {
		values, err = r.Rows.Values()
		return err
	})
	return values, err
}

// read closes the rows if what it calls, which is also code of the caller's own
// types, fails or panics.
func (r *rows) read(scan func() error) error {
	if r.lost() {
		return ErrReleased
	}
	fine := false
	defer func() {
		if !fine {
			r.Close()
		}
	}()
	err := scan()
	fine = err == nil
	return err
}

// row is pgx's, which ends with Scan.
type row struct {
	row  pgx.Row
	s    *session
	ctx  context.Context // of the statement, which is still running
	stop context.CancelFunc
	last bool
}

// lentRow is a row and the session that ends with it.
type lentRow struct {
	row
	own session
}

func (r *row) Scan(dest ...any) error {
	if r.s.ended.Load() {
		return ErrReleased // scanned before, or released under the row
	}
	defer r.stop()
	if r.last {
		defer r.s.end()
	}
	err := r.row.Scan(dest...)
	if errors.Is(err, pgx.ErrNoRows) {
		_ = r.s.note(r.ctx, nil)
		return err
	}
	return r.s.note(r.ctx, err)
}

// errRows are rows, or a row, that could not be had.
type errRows struct{ err error }

func (errRows) Close()                                       {}
func (e errRows) Err() error                                 { return e.err }
func (errRows) CommandTag() pgconn.CommandTag                { return pgconn.CommandTag{} }
func (errRows) FieldDescriptions() []pgconn.FieldDescription { return nil }
func (errRows) Next() bool                                   { return false }
func (e errRows) Scan(...any) error                          { return e.err }
func (e errRows) Values() ([]any, error)                     { return nil, e.err }
func (errRows) RawValues() [][]byte                          { return nil }
func (errRows) Conn() *pgx.Conn                              { return nil }
func (errRows) TypeMap() *pgtype.Map                         { return nil }
