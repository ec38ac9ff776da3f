package sqlpool

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrReleased is returned by the methods of a Conn that was released.
var ErrReleased = errors.New("sqlpool: the connection was released")

// Conn is a borrowed connection. It is used by one goroutine at a time; Release
// alone may be called by several, when the others' calls have returned.
type Conn struct{ s session }

// Acquire borrows a connection, for several statements on the same one. Give it
// back with Release.
func (p *Pool) Acquire(ctx context.Context) (*Conn, error) {
	var s session
	if err := s.open(ctx, p); err != nil {
		return nil, err
	}
	c := &Conn{}
	s.moveTo(&c.s)
	return c, nil
}

// With borrows a connection for the time of fn, and returns fn's error. The
// connection is given back however fn ends, by a panic or runtime.Goexit too; fn
// must not keep it.
func (p *Pool) With(ctx context.Context, fn func(*Conn) error) error {
	c, err := p.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	return fn(c)
}

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
	return c.s.show()
}

// Exec runs a statement and returns when it is done.
func (c *Conn) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if c.s.ended.Load() {
		return pgconn.CommandTag{}, ErrReleased
	}
	return c.s.exec(ctx, c.s.pgx, sql, args)
}

// Query runs a statement that returns rows. Close them before the next.
func (c *Conn) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if c.s.ended.Load() {
		return errRows{ErrReleased}, ErrReleased
	}
	return c.s.newRows(ctx, c.s.pgx, sql, args)
}

// QueryRow runs a statement that returns at most one row. Call Scan.
func (c *Conn) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if c.s.ended.Load() {
		return errRows{ErrReleased}
	}
	return c.s.newRow(ctx, c.s.pgx, sql, args)
}

// SendBatch sends all statements of b at once. Close the results before the
// next statement.
func (c *Conn) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if c.s.ended.Load() {
		return pgx.FailedBatchResults(b, ErrReleased)
	}
	return c.s.newBatch(ctx, c.s.pgx, b)
}

// CopyFrom is Pool.CopyFrom on the connection.
func (c *Conn) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, from pgx.CopyFromSource) (int64, error) {
	if c.s.ended.Load() {
		return 0, ErrReleased
	}
	return c.s.copyFrom(ctx, c.s.pgx, table, columns, from)
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
	t := &tx{}
	if err := c.s.beginTx(ctx, t, opts); err != nil {
		return nil, err
	}
	return t, nil
}

// Ping asks the server whether it is there.
func (c *Conn) Ping(ctx context.Context) error {
	if c.s.ended.Load() {
		return ErrReleased
	}
	return c.s.ping(ctx)
}
