package sqlpool

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// batch are pgx's results, which tell their session how each of them ended.
type batch struct {
	pgx.BatchResults
	s      *session
	ctx    context.Context // of the statements, which are still running
	stop   context.CancelFunc
	last   bool // the session ends with the results, or with the transaction
	tx     *tx  // that the batch began, or nil
	empty  bool // nothing was asked
	closed bool
	err    error // once closed
}

// lentBatch are results and the session that ends with them.
type lentBatch struct {
	batch
	own session
}

// sendBatch makes r the results of b. Errors are those of the results, except
// for that of a connection on which nothing can be sent.
func (s *session) sendBatch(ctx context.Context, on querier, r *batch, b *pgx.Batch) error {
	ctx, stop := s.p.limited(ctx)
	defer func() {
		if r.BatchResults == nil { // an error, or a panic while encoding an argument
			stop()
		}
	}()
	s.start(ctx)
	pr := on.SendBatch(ctx, b)
	if s.pgx.IsClosed() {
		return s.note(ctx, closeUnsent(pr, b))
	}
	if t := pr.Tx(); t != nil {
		r.tx = &tx{Tx: t, s: s, last: r.last}
	}
	r.BatchResults, r.s, r.ctx, r.stop, r.empty = pr, s, ctx, stop, b.Len() == 0
	return nil
}

// lost is true when the connection was given back before the results were
// closed.
func (b *batch) lost() bool { return !b.closed && b.s.ended.Load() }

func (b *batch) Exec() (pgconn.CommandTag, error) {
	if b.lost() {
		return pgconn.CommandTag{}, ErrReleased
	}
	tag, err := b.BatchResults.Exec()
	if b.closed {
		return tag, err
	}
	return tag, b.s.note(b.ctx, err)
}

func (b *batch) Query() (pgx.Rows, error) {
	if b.lost() {
		return errRows{ErrReleased}, ErrReleased
	}
	r, err := b.BatchResults.Query()
	switch {
	case err == nil:
		b.s.heard()
		return &rows{Rows: r, s: b.s, ctx: b.ctx, stop: nothing}, nil
	case !b.closed:
		err = b.s.note(b.ctx, err)
	}
	return errRows{err}, err
}

func (b *batch) QueryRow() pgx.Row {
	if b.lost() {
		return errRows{ErrReleased}
	}
	r := b.BatchResults.QueryRow()
	if b.closed {
		return r
	}
	b.s.heard()
	return &row{row: r, s: b.s, ctx: b.ctx, stop: nothing}
}

// Close reads what is left of the answers, and runs the callbacks of those that
// have one. It returns the first error of all.
func (b *batch) Close() error {
	if b.closed {
		return b.err // pgx would touch a connection that may be another's by now
	}
	lost := b.lost()
	b.closed = true
	defer b.stop()
	if lost {
		b.err = ErrReleased
		return b.err
	}
	defer func() {
		if b.last && !b.begun() {
			b.s.end()
		}
	}()
	err := b.BatchResults.Close()
	if b.err = err; !b.empty {
		b.err = b.s.note(b.ctx, err)
	}
	return b.err
}

// begun reports whether a transaction of the batch goes on, which then has the
// connection until its end. After a callback that panicked none does: the server's
// word that it began is among what was left unread.
func (b *batch) begun() bool {
	return b.tx != nil && !b.s.pgx.IsClosed() && b.s.pgx.PgConn().TxStatus() != 'I'
}

// Tx is the transaction that Batch.BeginTx began.
func (b *batch) Tx() pgx.Tx {
	if b.tx == nil {
		return nil
	}
	return b.tx
}

// closeUnsent is why b could not be sent. Its callbacks, which pgx would run in
// some modes, hear nothing: they may yet run on another connection.
func closeUnsent(pr pgx.BatchResults, b *pgx.Batch) error {
	queued := b.QueuedQueries
	b.QueuedQueries = resendable(b).QueuedQueries
	for _, q := range b.QueuedQueries {
		q.Fn = nil
	}
	defer func() { b.QueuedQueries = queued }()
	return pr.Close()
}

// resendable is b to be sent on another connection: pgx notes in the statements
// how the first one knows them.
func resendable(b *pgx.Batch) *pgx.Batch {
	again := *b
	again.QueuedQueries = make([]*pgx.QueuedQuery, len(b.QueuedQueries))
	for i, q := range b.QueuedQueries {
		again.QueuedQueries[i] = &pgx.QueuedQuery{SQL: q.SQL, Arguments: q.Arguments, Fn: q.Fn}
	}
	return &again
}
