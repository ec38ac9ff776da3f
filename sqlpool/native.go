package sqlpool

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// ErrReleased is returned by the methods of a Conn that was released.
var ErrReleased = errors.New("sqlpool: the connection was released")

// Conn is a borrowed connection. It is used by one goroutine at a time; Release
// alone may be called by several, when the others' calls have returned.
type Conn struct{ s *session }

// Release gives the connection back; any later Release does nothing. One that
// is closed, in a transaction or in the middle of an answer is destroyed, and
// replaced if that is needed. What else was changed for the session stays with
// the connection for its next user: settings, temporary tables, advisory locks,
// LISTEN. Undo it, or close the connection.
func (c *Conn) Release() { c.s.end() }

// Conn is the pgx connection, or nil after Release. The pool sees neither what
// is done with it nor how that went, except for what is left when it is
// released.
func (c *Conn) Conn() *pgx.Conn {
	if c.s.ended.Load() {
		return nil
	}
	return c.s.pgx
}

// Exec runs a statement and returns when it is done.
func (c *Conn) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if c.s.ended.Load() {
		return pgconn.CommandTag{}, ErrReleased
	}
	return c.s.exec(ctx, sql, args)
}

// Query runs a statement that returns rows. Close them before the next.
func (c *Conn) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if c.s.ended.Load() {
		return errRows{ErrReleased}, ErrReleased
	}
	return c.s.query(ctx, false, sql, args)
}

// QueryRow runs a statement that returns at most one row. Call Scan.
func (c *Conn) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if c.s.ended.Load() {
		return errRows{ErrReleased}
	}
	return c.s.queryRow(ctx, false, sql, args)
}

// Begin starts a transaction on the connection.
func (c *Conn) Begin(ctx context.Context) (pgx.Tx, error) {
	return c.BeginTx(ctx, pgx.TxOptions{})
}

// BeginTx is Begin with options.
func (c *Conn) BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error) {
	if c.s.ended.Load() {
		return nil, ErrReleased
	}
	return c.s.beginTx(ctx, false, opts)
}

// Ping asks the server whether it is there.
func (c *Conn) Ping(ctx context.Context) error {
	if c.s.ended.Load() {
		return ErrReleased
	}
	return c.s.ping(ctx)
}

func (s *session) exec(ctx context.Context, sql string, args []any) (pgconn.CommandTag, error) {
	s.start(ctx)
	tag, err := s.pgx.Exec(ctx, sql, args...)
	s.note(ctx, err)
	return tag, err
}

func (s *session) ping(ctx context.Context) error {
	s.start(ctx)
	err := s.pgx.Ping(ctx)
	s.note(ctx, err)
	return err
}

// query runs a statement; last says that the session ends with its rows.
func (s *session) query(ctx context.Context, last bool, sql string, args []any) (pgx.Rows, error) {
	handed := false
	defer func() {
		if !handed && last { // an error, or a panic while encoding an argument
			s.end()
		}
	}()
	s.start(ctx)
	r, err := s.pgx.Query(ctx, sql, args...)
	if err != nil {
		s.note(ctx, err)
		return errRows{err}, err
	}
	s.heard()
	handed = true
	return &rows{Rows: r, s: s, ctx: ctx, last: last}, nil
}

func (s *session) queryRow(ctx context.Context, last bool, sql string, args []any) pgx.Row {
	handed := false
	defer func() {
		if !handed && last {
			s.end()
		}
	}()
	s.start(ctx)
	r := s.pgx.QueryRow(ctx, sql, args...)
	s.heard()
	handed = true
	return &row{row: r, s: s, ctx: ctx, last: last}
}

func (s *session) beginTx(ctx context.Context, last bool, opts pgx.TxOptions) (pgx.Tx, error) {
	handed := false
	defer func() {
		if !handed && last {
			s.end()
		}
	}()
	s.start(ctx)
	t, err := s.pgx.BeginTx(ctx, opts)
	s.note(ctx, err)
	if err != nil {
		return nil, err
	}
	handed = true
	return &tx{Tx: t, s: s, last: last}, nil
}

// rows are pgx's, which tell their session how they ended.
type rows struct {
	pgx.Rows
	s      *session
	ctx    context.Context // of the statement, which is still running
	last   bool            // the session ends with the rows
	closed bool
}

// Close reads what is left of the answer and ends the rows.
func (r *rows) Close() {
	if r.over() {
		return
	}
	r.closed = true
	if r.last {
		defer r.s.end() // also if a tracer of pgx panics
	}
	r.Rows.Close()
	r.s.note(r.ctx, r.Rows.Err())
}

// over is true also when the connection was given back under the rows: it is
// no longer theirs to read from.
func (r *rows) over() bool { return r.closed || r.lost() }

// lost is true when the connection was given back before the rows were closed.
func (r *rows) lost() bool { return !r.closed && r.s.ended.Load() }

// Err is ErrReleased when there may have been more rows than could be read.
func (r *rows) Err() error {
	if r.lost() {
		return ErrReleased
	}
	return r.Rows.Err()
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
	last bool
}

func (r *row) Scan(dest ...any) error {
	if r.s.ended.Load() {
		return ErrReleased // scanned before, or released under the row
	}
	if r.last {
		defer r.s.end()
	}
	err := r.row.Scan(dest...)
	if errors.Is(err, pgx.ErrNoRows) {
		r.s.note(r.ctx, nil)
	} else {
		r.s.note(r.ctx, err)
	}
	return err
}

// tx is pgx's, which tells its session how its statements ended, and whose end
// ends the session. One nested in it is pgx's savepoint on the same connection.
type tx struct {
	pgx.Tx
	s     *session
	last  bool
	ended atomic.Bool // by the first Commit or Rollback
}

func (t *tx) Commit(ctx context.Context) error { return t.end(ctx, t.Tx.Commit) }

func (t *tx) Rollback(ctx context.Context) error { return t.end(ctx, t.Tx.Rollback) }

// end ends the transaction, once: a second Rollback, of another goroutine, must
// not reach the connection, which may be somebody else's by then. pgx closes the
// connection if that fails.
func (t *tx) end(ctx context.Context, how func(context.Context) error) error {
	if t.s.ended.Load() || t.ended.Swap(true) {
		return pgx.ErrTxClosed
	}
	if t.last {
		defer t.s.end()
	}
	t.s.start(ctx)
	err := how(ctx)
	if !errors.Is(err, pgx.ErrTxClosed) {
		t.s.note(ctx, err)
	}
	return err
}

func (t *tx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if t.s.ended.Load() {
		return pgconn.CommandTag{}, pgx.ErrTxClosed
	}
	t.s.start(ctx)
	tag, err := t.Tx.Exec(ctx, sql, args...)
	t.s.note(ctx, err)
	return tag, err
}

func (t *tx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if t.s.ended.Load() {
		return errRows{pgx.ErrTxClosed}, pgx.ErrTxClosed
	}
	t.s.start(ctx)
	r, err := t.Tx.Query(ctx, sql, args...)
	if err != nil {
		t.s.note(ctx, err)
		return r, err
	}
	return &rows{Rows: r, s: t.s, ctx: ctx}, nil
}

func (t *tx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if t.s.ended.Load() {
		return errRows{pgx.ErrTxClosed}
	}
	t.s.start(ctx)
	return &row{row: t.Tx.QueryRow(ctx, sql, args...), s: t.s, ctx: ctx}
}

func (t *tx) Begin(ctx context.Context) (pgx.Tx, error) {
	if t.s.ended.Load() {
		return nil, pgx.ErrTxClosed
	}
	t.s.start(ctx)
	nested, err := t.Tx.Begin(ctx)
	t.s.note(ctx, err)
	if err != nil {
		return nil, err
	}
	return &tx{Tx: nested, s: t.s}, nil
}

func (t *tx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	if t.s.ended.Load() {
		return nil, pgx.ErrTxClosed
	}
	if !t.s.named {
		return nil, ErrPooled
	}
	t.s.start(ctx)
	d, err := t.Tx.Prepare(ctx, name, sql)
	t.s.note(ctx, err)
	return d, err
}

func (t *tx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, from pgx.CopyFromSource) (int64, error) {
	if t.s.ended.Load() {
		return 0, pgx.ErrTxClosed
	}
	t.s.start(ctx)
	n, err := t.Tx.CopyFrom(ctx, table, columns, from)
	if state, _ := sqlState(err); state == "57014" && ctx.Err() == nil {
		// The server's echo of a source that failed, which is the caller's.
		t.s.note(ctx, nil)
	} else {
		t.s.note(ctx, err)
	}
	return n, err
}

func (t *tx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if t.s.ended.Load() {
		return pgx.FailedBatchResults(b, pgx.ErrTxClosed)
	}
	t.s.start(ctx)
	return batch{t.Tx.SendBatch(ctx, b), t.s, ctx}
}

// batch are pgx's results, whose Close returns the first error of all.
type batch struct {
	pgx.BatchResults
	s   *session
	ctx context.Context // of the statements, which are still running
}

func (b batch) Close() error {
	err := b.BatchResults.Close()
	b.s.note(b.ctx, err)
	return err
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
