package sqlpool

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// querier is what statements are sent to: a *pgx.Conn, or a pgx.Tx on it, which
// knows whether it has ended.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, from pgx.CopyFromSource) (int64, error)
}

// maxResends is how many more connections a statement is tried on when nothing
// of it could be sent. The pool looks at a connection before it lends it, so
// that even the first is rare.
const maxResends = 3

// resend reports whether the n-th try of what failed with err, where nothing
// ran yet, goes to another connection: this one was dead, by pgx's word nothing
// was sent, and the budget allows it.
func (s *session) resend(ctx context.Context, n int, err error) bool {
	return err != nil && n <= maxResends &&
		s.pgx.IsClosed() && pgconn.SafeToRetry(err) && // "conn busy" is safe, too, but no better elsewhere
		ctx.Err() == nil && s.p.budget.Take() == nil
}

func (s *session) exec(ctx context.Context, on querier, sql string, args []any) (pgconn.CommandTag, error) {
	ctx, stop := s.p.limited(ctx)
	defer stop()
	s.start(ctx)
	tag, err := on.Exec(ctx, sql, args...)
	return tag, s.note(ctx, err)
}

func (s *session) ping(ctx context.Context) error {
	ctx, stop := s.p.limited(ctx)
	defer stop()
	s.start(ctx)
	return s.note(ctx, s.pgx.Ping(ctx))
}

// query makes r the rows of a statement.
func (s *session) query(ctx context.Context, on querier, r *rows, sql string, args []any) error {
	ctx, stop := s.p.limited(ctx)
	defer func() {
		if r.Rows == nil { // an error, or a panic while encoding an argument
			stop()
		}
	}()
	s.start(ctx)
	pr, err := on.Query(ctx, sql, args...)
	if err == nil && s.pgx.IsClosed() {
		// It could not be sent, of which pgx may tell no earlier than at Next.
		pr.Close()
		err = pr.Err()
	}
	if err != nil {
		return s.note(ctx, err)
	}
	s.heard()
	r.Rows, r.s, r.ctx, r.stop = pr, s, ctx, stop
	return nil
}

// queryRow makes r the row of a statement. Errors are Scan's, except for that
// of a connection on which nothing can be sent.
func (s *session) queryRow(ctx context.Context, on querier, r *row, sql string, args []any) error {
	ctx, stop := s.p.limited(ctx)
	defer func() {
		if r.row == nil {
			stop()
		}
	}()
	s.start(ctx)
	pr := on.QueryRow(ctx, sql, args...)
	if s.pgx.IsClosed() {
		return s.note(ctx, pr.Scan())
	}
	s.heard()
	r.row, r.s, r.ctx, r.stop = pr, s, ctx, stop
	return nil
}

// beginTx makes t a transaction on the connection.
func (s *session) beginTx(ctx context.Context, t *tx, opts pgx.TxOptions) error {
	ctx, stop := s.p.limited(ctx)
	defer stop()
	s.start(ctx)
	pt, err := s.pgx.BeginTx(ctx, opts)
	if err = s.note(ctx, err); err != nil {
		return err
	}
	t.Tx, t.s = pt, s
	return nil
}

// newRows is query for rows that do not end the session.
func (s *session) newRows(ctx context.Context, on querier, sql string, args []any) (pgx.Rows, error) {
	r := &rows{}
	if err := s.query(ctx, on, r, sql, args); err != nil {
		return errRows{err}, err
	}
	return r, nil
}

// newRow is queryRow for a row that does not end the session.
func (s *session) newRow(ctx context.Context, on querier, sql string, args []any) pgx.Row {
	r := &row{}
	if err := s.queryRow(ctx, on, r, sql, args); err != nil {
		return errRows{err}
	}
	return r
}

// newBatch is sendBatch for results that do not end the session.
func (s *session) newBatch(ctx context.Context, on querier, b *pgx.Batch) pgx.BatchResults {
	r := &batch{}
	if err := s.sendBatch(ctx, on, r, b); err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	return r
}
