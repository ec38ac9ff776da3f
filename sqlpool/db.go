package sqlpool

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// connector gives database/sql connections of a Pool. To database/sql each is a
// new one, and its Close is the release.
type connector struct{ p *Pool }

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	s, err := c.p.begin(ctx)
	if err != nil {
		return nil, err
	}
	return &dbConn{s.std, s}, nil
}

func (connector) Driver() driver.Driver { return stdlib.GetDefaultDriver() }

// stdConn names the field below, so that it does not hide the method Conn.
type stdConn = stdlib.Conn

// dbConn is pgx's driver connection for the time of one loan. What it does not
// override is pgx's, and so the interfaces that database/sql looks for are.
type dbConn struct {
	*stdConn
	s *session
}

// Close gives the connection back.
func (c *dbConn) Close() error {
	c.s.end()
	return nil
}

// Ping asks pgx itself: its driver's Ping tells of nothing but a bad connection,
// which would hide a server that does not answer from the guard, and from the
// caller. database/sql may try it on another connection while there is time.
func (c *dbConn) Ping(ctx context.Context) error {
	err := c.s.run(ctx, func() error { return c.s.pgx.Ping(ctx) })
	if err == nil {
		return nil
	}
	c.s.gone = true
	if ctx.Err() != nil {
		return err
	}
	return driver.ErrBadConn
}

func (c *dbConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (r driver.Result, err error) {
	err = c.s.run(ctx, func() error {
		r, err = c.stdConn.ExecContext(ctx, query, args)
		return err
	})
	return r, err
}

func (c *dbConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.s.driverRows(ctx, func() (driver.Rows, error) { return c.stdConn.QueryContext(ctx, query, args) })
}

func (c *dbConn) PrepareContext(ctx context.Context, query string) (st driver.Stmt, err error) {
	err = c.s.run(ctx, func() error {
		st, err = c.stdConn.PrepareContext(ctx, query)
		return err
	})
	if pgx, ok := st.(*stdlib.Stmt); ok {
		return &dbStmt{pgx, c.s}, err
	}
	return st, err
}

func (c *dbConn) BeginTx(ctx context.Context, opts driver.TxOptions) (t driver.Tx, err error) {
	err = c.s.run(ctx, func() error {
		t, err = c.stdConn.BeginTx(ctx, opts)
		return err
	})
	if err != nil {
		return nil, err
	}
	return dbTx{t, c.s, ctx}, nil
}

type dbTx struct {
	driver.Tx
	s   *session
	ctx context.Context // under which database/sql runs Commit and Rollback
}

func (t dbTx) Commit() error { return t.s.run(t.ctx, t.Tx.Commit) }

func (t dbTx) Rollback() error { return t.s.run(t.ctx, t.Tx.Rollback) }

type dbStmt struct {
	*stdlib.Stmt
	s *session
}

func (st *dbStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (r driver.Result, err error) {
	err = st.s.run(ctx, func() error {
		r, err = st.Stmt.ExecContext(ctx, args)
		return err
	})
	return r, err
}

func (st *dbStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return st.s.driverRows(ctx, func() (driver.Rows, error) { return st.Stmt.QueryContext(ctx, args) })
}

// run sends a statement and notes how that went. When it panics, as the code of
// an argument's type or of a tracer may, the session is over: database/sql would
// never close the connection.
func (s *session) run(ctx context.Context, fn func() error) error {
	returned := false
	defer func() {
		if !returned {
			s.end()
		}
	}()
	s.start(ctx)
	err := fn()
	returned = true
	if errBadConn(err) && !s.dead && s.pgx.IsClosed() && ctx.Err() == nil {
		// pgx's driver says so also of a connection that broke before the answer
		// came, where database/sql would send the statement once more.
		err = &answerLost{pgconn.ErrConnClosed}
	}
	_ = s.note(ctx, err)
	return err
}

// driverRows are pgx's, which tell the session how they ended.
func (s *session) driverRows(ctx context.Context, query func() (driver.Rows, error)) (r driver.Rows, err error) {
	err = s.run(ctx, func() error {
		r, err = query()
		return err
	})
	if pgx, ok := r.(*stdlib.Rows); ok && err == nil {
		return &dbRows{pgx, s, ctx}, nil
	}
	return r, err
}

type dbRows struct {
	*stdlib.Rows
	s   *session
	ctx context.Context // of the statement, which is still running
}

func (r *dbRows) Next(dest []driver.Value) error {
	err := r.Rows.Next(dest)
	if err != nil && !errors.Is(err, io.EOF) {
		r.s.note(r.ctx, err)
	}
	return err
}

// Close reads what is left of the answer, which may fail too.
func (r *dbRows) Close() error {
	err := r.Rows.Close()
	r.s.note(r.ctx, err)
	return err
}
