package sqlpool

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// rollbackGrace is how long a rollback may take when the context of its
// transaction has ended.
const rollbackGrace = 250 * time.Millisecond

// Ping asks pgx itself: its driver's Ping tells of nothing but a bad connection,
// which would hide a server that does not answer from the guard, and from the
// caller.
func (c *dbConn) Ping(ctx context.Context) error {
	s, err := c.use()
	if err != nil {
		return err
	}
	return s.ping(ctx)
}

func (c *dbConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	s, err := c.use()
	if err != nil {
		return nil, err
	}
	return s.driverExec(ctx, query, args, false)
}

func (c *dbConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	s, err := c.use()
	if err != nil {
		return nil, err
	}
	return s.driverQuery(ctx, query, args, false)
}

func (c *dbConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	s, err := c.use()
	if err != nil {
		return nil, err
	}
	inputs, err := s.driverPrepare(ctx, query)
	if err != nil {
		return nil, err
	}
	return &dbStmt{c, query, inputs}, nil
}

func (c *dbConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	s, err := c.use()
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err // pgx would close the connection
	}
	t, err := s.driverBegin(ctx, opts)
	if err != nil {
		return nil, err
	}
	return &dbTx{c, t, ctx}, nil
}

// CheckNamedValue leaves arguments as they are, for pgx to encode.
func (c *dbConn) CheckNamedValue(*driver.NamedValue) error { return nil }

// Prepare is there for the interface: database/sql prefers PrepareContext.
func (c *dbConn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// Begin is there for the interface: database/sql prefers BeginTx.
func (c *dbConn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// dbTx is pgx's transaction.
type dbTx struct {
	c   *dbConn
	tx  driver.Tx
	ctx context.Context // under which database/sql runs Commit and Rollback
}

func (t *dbTx) Commit() error {
	return commitError(t.c.session.p.Name(), t.end(t.ctx, t.tx.Commit))
}

// Rollback of a transaction whose context has ended is given a little time of
// its own. pgx would close the connection without having asked.
func (t *dbTx) Rollback() error {
	if t.ctx.Err() == nil {
		return t.end(t.ctx, t.tx.Rollback)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.ctx), rollbackGrace)
	defer cancel()
	return t.end(t.ctx, func() error {
		_, err := t.c.session.pgx.Exec(ctx, "rollback")
		return err
	})
}

func (t *dbTx) end(ctx context.Context, how func() error) error {
	s, err := t.c.use()
	if err != nil {
		return err
	}
	returned := false
	defer s.endUnless(&returned)
	s.start(ctx)
	err = how()
	returned = true
	return s.note(ctx, err)
}

// What follows sends a statement of database/sql's and notes how that went.

// endUnless is deferred to end a session in which the code of an argument's type
// or of a tracer has panicked: database/sql would never give the connection back.
func (s *session) endUnless(returned *bool) {
	if !*returned {
		s.end()
	}
}

func (s *session) driverExec(ctx context.Context, query string, args []driver.NamedValue, prepared bool) (r driver.Result, err error) {
	returned := false
	defer s.endUnless(&returned)
	s.start(ctx)
	for again := false; ; again = true {
		var st *statement
		if st, err = s.known(ctx, query, prepared); err == nil {
			r, err = s.driverRun(ctx, query, st, args)
		}
		if again || !s.unplanned(query, err) || !prepared && len(args) == 0 || !s.extended(args) {
			break
		}
	}
	returned = true
	return r, s.told(ctx, err, len(args) == 0 || !s.extended(args))
}

// driverRun is what pgx's driver does, but for the error of an answer that breaks
// off: it makes driver.ErrBadConn of that, too, upon which database/sql would
// send the statement again.
func (s *session) driverRun(ctx context.Context, query string, st *statement, named []driver.NamedValue) (driver.Result, error) {
	args := make([]any, 0, len(named)+1)
	if st != nil {
		args = append(args, st)
	}
	for _, arg := range named {
		args = append(args, arg.Value)
	}
	tag, err := s.pgx.Exec(ctx, query, args...)
	return driver.RowsAffected(tag.RowsAffected()), err
}

func (s *session) driverQuery(ctx context.Context, query string, args []driver.NamedValue, prepared bool) (r driver.Rows, err error) {
	returned := false
	defer s.endUnless(&returned)
	s.start(ctx)
	for again := false; ; again = true {
		var st *statement
		if st, err = s.known(ctx, query, prepared); err == nil {
			r, err = s.std.QueryContext(ctx, query, s.prepared.with(st, args))
			clear(s.prepared.args)
		}
		if again || !s.unplanned(query, err) || !s.extended(args) {
			break
		}
	}
	returned = true
	if errBadConn(err) && !s.dead && s.pgx.IsClosed() && !s.extended(args) {
		err = pgconn.ErrConnClosed // in the simple protocol, pgx has begun to read by now
	}
	if err = s.told(ctx, err, !s.extended(args)); err != nil {
		return nil, err
	}
	if pgx, ok := r.(*stdlib.Rows); ok {
		return &dbRows{pgx, s, ctx}, nil
	}
	return r, nil
}

// known has a prepared statement prepared before it is run.
func (s *session) known(ctx context.Context, query string, prepared bool) (*statement, error) {
	if !prepared {
		return nil, nil
	}
	return s.prepared.ready(ctx, s.pgx, query)
}

// unplanned reports whether a statement failed since the server had no plan for
// it any more. If the protocol is the extended one, which takes one statement at
// a time, it has not been run, and can be sent again; the simple one may have
// committed others before it.
func (s *session) unplanned(query string, err error) bool {
	if err == nil {
		return false
	}
	s.prepared.doubt(query, err)
	return planLost(err) && s.pgx.PgConn().TxStatus() == 'I'
}

// extended reports whether pgx uses the extended protocol, if it does not for
// want of arguments.
func (s *session) extended(args []driver.NamedValue) bool {
	for _, arg := range args {
		if _, chosen := arg.Value.(pgx.QueryExecMode); chosen {
			return false // which of them, is not looked at
		}
	}
	return s.prepared.mode != pgx.QueryExecModeSimpleProtocol
}

func (s *session) driverPrepare(ctx context.Context, query string) (inputs int, err error) {
	returned := false
	defer s.endUnless(&returned)
	s.start(ctx)
	inputs, err = s.prepared.prepare(ctx, s.pgx, query)
	returned = true
	return inputs, s.told(ctx, err, false)
}

func (s *session) driverBegin(ctx context.Context, opts driver.TxOptions) (t driver.Tx, err error) {
	returned := false
	defer s.endUnless(&returned)
	s.start(ctx)
	t, err = s.std.BeginTx(ctx, opts)
	returned = true
	return t, s.told(ctx, err, false) // BEGIN may be sent twice
}

// told notes err, and returns what database/sql is told of it: ErrBadConn, upon
// which it tries another connection, if nothing was sent since the connection is
// dead. pgx's driver says so, too, if the context had ended, or the caller has
// not closed the rows before. In the simple protocol, pgx says so of an answer
// that breaks off as well: see answerLost.
func (s *session) told(ctx context.Context, err error, simple bool) error {
	lost := simple && !s.dead && errors.Is(err, pgconn.ErrConnClosed)
	if err == nil || lost || !errBadConn(err) && !pgconn.SafeToRetry(err) {
		return s.note(ctx, err)
	}
	s.heard()
	switch pg := s.pgx.PgConn(); {
	case ctx.Err() != nil:
		return ctx.Err()
	case !pg.IsClosed() && pg.IsBusy():
		return errBusy
	default:
		s.gone = true
		return driver.ErrBadConn
	}
}

// dbRows are pgx's, which tell the session how they ended.
type dbRows struct {
	*stdlib.Rows
	s   *session
	ctx context.Context // of the statement, which is still running
}

func (r *dbRows) Next(dest []driver.Value) error {
	err := r.Rows.Next(dest)
	if err != nil && !errors.Is(err, io.EOF) {
		return r.s.note(r.ctx, err)
	}
	return err
}

// Close reads what is left of the answer, which may fail too.
func (r *dbRows) Close() error {
	return r.s.note(r.ctx, r.Rows.Close())
}
