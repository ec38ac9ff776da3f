package sqlpool

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// tx is pgx's, which tells its session how its statements ended, and whose end
// ends the session. One nested in it is pgx's savepoint on the same connection.
type tx struct {
	pgx.Tx
	s      *session
	last   bool
	nested bool
	ended  atomic.Bool // by the first Commit or Rollback

	// What Commit came to, for InTx, whose function may have called it.
	committed bool // it was called first
	err       error
}

// lentTx is a transaction and the session that ends with it.
type lentTx struct {
	tx
	own session
}

// Commit commits. See ErrCommitUnknown.
func (t *tx) Commit(ctx context.Context) error {
	if !t.end() {
		return pgx.ErrTxClosed
	}
	if t.last {
		defer t.s.end()
	}
	t.committed, t.err = true, ErrCommitUnknown // until it returns
	err := t.finish(ctx, t.Tx.Commit)
	if !t.nested {
		err = commitError(t.s.p.Name(), err)
	}
	t.err = err
	return err
}

// Conn is the pgx connection, or nil once the transaction has ended.
func (t *tx) Conn() *pgx.Conn {
	if t.ended.Load() || t.s.ended.Load() {
		return nil
	}
	return t.s.show()
}

// Rollback under a context that has ended is given a little time of its own. pgx
// would close the connection without having asked.
func (t *tx) Rollback(ctx context.Context) error {
	if !t.end() {
		return pgx.ErrTxClosed
	}
	if t.last {
		defer t.s.end()
	}
	if ctx.Err() != nil {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(context.WithoutCancel(ctx), rollbackGrace)
		defer stop()
	}
	err := t.finish(ctx, t.Tx.Rollback)
	if t.nested && err == nil {
		t.s.refused = nil // the outer transaction is sound again
	}
	return err
}

// end ends the transaction, once: a second Rollback, of another goroutine, must
// not reach the connection, which may be somebody else's by then.
func (t *tx) end() bool { return !t.s.ended.Load() && !t.ended.Swap(true) }

// finish sends what ends it. pgx closes the connection if that fails.
func (t *tx) finish(ctx context.Context, how func(context.Context) error) error {
	ctx, stop := t.s.p.limited(ctx)
	defer stop()
	t.s.start(ctx)
	err := how(ctx)
	if errors.Is(err, pgx.ErrTxClosed) {
		return err
	}
	return t.s.note(ctx, err)
}

func (t *tx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if t.s.ended.Load() {
		return pgconn.CommandTag{}, pgx.ErrTxClosed
	}
	return t.s.exec(ctx, t.Tx, sql, args)
}

func (t *tx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if t.s.ended.Load() {
		return errRows{pgx.ErrTxClosed}, pgx.ErrTxClosed
	}
	return t.s.newRows(ctx, t.Tx, sql, args)
}

func (t *tx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if t.s.ended.Load() {
		return errRows{pgx.ErrTxClosed}
	}
	return t.s.newRow(ctx, t.Tx, sql, args)
}

func (t *tx) Begin(ctx context.Context) (pgx.Tx, error) {
	if t.s.ended.Load() {
		return nil, pgx.ErrTxClosed
	}
	ctx, stop := t.s.p.limited(ctx)
	defer stop()
	t.s.start(ctx)
	nested, err := t.Tx.Begin(ctx)
	if err = t.s.note(ctx, err); err != nil {
		return nil, err
	}
	return &tx{Tx: nested, s: t.s, nested: true}, nil
}

func (t *tx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	if t.s.ended.Load() {
		return nil, pgx.ErrTxClosed
	}
	if !t.s.named {
		return nil, ErrPooled
	}
	ctx, stop := t.s.p.limited(ctx)
	defer stop()
	t.s.start(ctx)
	d, err := t.Tx.Prepare(ctx, name, sql)
	return d, t.s.note(ctx, err)
}

func (t *tx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, from pgx.CopyFromSource) (int64, error) {
	if t.s.ended.Load() {
		return 0, pgx.ErrTxClosed
	}
	return t.s.copyFrom(ctx, t.Tx, table, columns, from)
}

func (t *tx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if t.s.ended.Load() {
		return pgx.FailedBatchResults(b, pgx.ErrTxClosed)
	}
	return t.s.newBatch(ctx, t.Tx, b)
}
