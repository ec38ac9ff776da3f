package sqlpool

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Exec runs a statement and returns when it is done.
func (p *Pool) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	for n := 1; ; n++ {
		tag, again, err := p.tryExec(ctx, n, sql, args)
		if !again {
			return tag, err
		}
	}
}

// tryExec, as each of the tries below, is a session of its own. again says that
// nothing was sent, and that another connection is worth a try: see resend.
func (p *Pool) tryExec(ctx context.Context, n int, sql string, args []any) (tag pgconn.CommandTag, again bool, err error) {
	var s session
	if err := s.open(ctx, p); err != nil {
		return tag, false, err
	}
	defer s.end()
	tag, err = s.exec(ctx, s.pgx, sql, args)
	return tag, s.resend(ctx, n, err), err
}

// Query runs a statement that returns rows. The connection is in use until the
// rows are closed, which they are by Close, by an error, and by Next when it
// returns false.
func (p *Pool) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	for n := 1; ; n++ {
		r, again, err := p.tryQuery(ctx, n, sql, args)
		switch {
		case again:
		case err != nil:
			return errRows{err}, err
		default:
			return r, nil
		}
	}
}

func (p *Pool) tryQuery(ctx context.Context, n int, sql string, args []any) (_ *rows, again bool, err error) {
	var s session
	if err := s.open(ctx, p); err != nil {
		return nil, false, err
	}
	r := &lentRows{}
	s.moveTo(&r.own)
	defer func() {
		if r.Rows == nil { // an error, or a panic while encoding an argument
			r.own.end()
		}
	}()
	r.last = true
	err = r.own.query(ctx, r.own.pgx, &r.rows, sql, args)
	return &r.rows, r.own.resend(ctx, n, err), err
}

// QueryRow runs a statement that returns at most one row. Its errors are those
// of Scan, which must be called: it gives the connection back.
func (p *Pool) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	for n := 1; ; n++ {
		r, again, err := p.tryQueryRow(ctx, n, sql, args)
		switch {
		case again:
		case err != nil:
			return errRows{err}
		default:
			return r
		}
	}
}

func (p *Pool) tryQueryRow(ctx context.Context, n int, sql string, args []any) (_ *row, again bool, err error) {
	var s session
	if err := s.open(ctx, p); err != nil {
		return nil, false, err
	}
	r := &lentRow{}
	s.moveTo(&r.own)
	defer func() {
		if r.row.row == nil {
			r.own.end()
		}
	}()
	r.last = true
	err = r.own.queryRow(ctx, r.own.pgx, &r.row, sql, args)
	return &r.row, r.own.resend(ctx, n, err), err
}

// SendBatch sends all statements of b at once, which Postgres runs as one
// transaction unless they say otherwise. The connection is in use until the
// results are closed, which they must be: defer their Close, as a callback or a
// Scan may panic. If b began a transaction, by its BeginTx, it is in use until
// that ends.
func (p *Pool) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	for n := 1; ; n++ {
		r, again, err := p.trySendBatch(ctx, n, b)
		switch {
		case again:
			b = resendable(b)
		case err != nil:
			return pgx.FailedBatchResults(b, err)
		default:
			return r
		}
	}
}

func (p *Pool) trySendBatch(ctx context.Context, n int, b *pgx.Batch) (_ *batch, again bool, err error) {
	var s session
	if err := s.open(ctx, p); err != nil {
		return nil, false, err
	}
	r := &lentBatch{}
	s.moveTo(&r.own)
	defer func() {
		if r.BatchResults == nil {
			r.own.end()
		}
	}()
	r.last = true
	err = r.own.sendBatch(ctx, r.own.pgx, &r.batch, b)
	return &r.batch, r.own.resend(ctx, n, err), err
}

// CopyFrom copies rows into a table by Postgres's COPY, and returns how many.
// It is never tried again, as its source can be read once; nor has it a
// StatementTimeout.
//
// pgx reads the source on another goroutine. A panic of the source's methods
// comes up here, as does runtime.Goexit. A panic of the values that they return
// does not, and ends the program: of a driver.Valuer's Value, and of whatever
// else pgx calls to encode them, as json.Marshaler or fmt.Stringer. Which of these
// it calls depends on the column's type, so they are not called beforehand. Nor
// does CopyFrom return before the source does, also when ctx has ended: a source
// that may block must see the end of ctx by itself.
func (p *Pool) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, from pgx.CopyFromSource) (int64, error) {
	var s session
	if err := s.open(ctx, p); err != nil {
		return 0, err
	}
	defer s.end()
	return s.copyFrom(ctx, s.pgx, table, columns, from)
}

// Begin starts a transaction, with a connection of its own until Commit or
// Rollback: one of them must be called. Unlike in database/sql, the end of ctx
// does not end the transaction. A Rollback whose context has ended is sent all
// the same, and given 250 ms, so that `defer tx.Rollback(ctx)` keeps the
// connection of a request that was cancelled; a Commit is not sent then, and the
// connection is closed. InTx ends the transaction by itself, and tries again what
// only another was in the way of.
func (p *Pool) Begin(ctx context.Context) (pgx.Tx, error) {
	return p.BeginTx(ctx, pgx.TxOptions{})
}

// BeginTx is Begin with options. A Commit whose answer is lost says so: see
// ErrCommitUnknown.
func (p *Pool) BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error) {
	t, err := p.beginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (p *Pool) beginTx(ctx context.Context, opts pgx.TxOptions) (*tx, error) {
	for n := 1; ; n++ {
		t, again, err := p.tryBeginTx(ctx, n, opts)
		switch {
		case again:
		case err != nil:
			return nil, err
		default:
			return t, nil
		}
	}
}

func (p *Pool) tryBeginTx(ctx context.Context, n int, opts pgx.TxOptions) (_ *tx, again bool, err error) {
	var s session
	if err := s.open(ctx, p); err != nil {
		return nil, false, err
	}
	t := &lentTx{}
	s.moveTo(&t.own)
	defer func() {
		if t.Tx == nil {
			t.own.end()
		}
	}()
	t.last = true
	err = t.own.beginTx(ctx, &t.tx, opts)
	return &t.tx, t.own.resend(ctx, n, err), err
}
