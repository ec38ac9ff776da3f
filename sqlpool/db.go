package sqlpool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// maxProxies is how many idle proxies a *sql.DB keeps. There are no more of them
// than there have been callers at once, which Max and MaxWaiters bound unless that
// is Off.
const maxProxies = 10_000

// proxyIdleTime is how long a proxy stays idle before database/sql drops it.
// What a burst of callers has left goes with it: each proxy remembers each
// sql.Stmt that has been used on it.
const proxyIdleTime = time.Minute

// DB is a *sql.DB on the connections of this pool, always the same. Each of its
// statements and transactions acquires a connection here, in this pool's queue
// and after its Guard was asked, and gives it back at its end; an sql.Conn does
// so until its Close. The wait obeys the context of the statement, and a refusal
// is its error, or that of DB.Conn: errors.As finds the *core.Rejection.
//
// A prepared sql.Stmt is prepared once on each connection that it is used on,
// where it stays after its Close, for whoever prepares the same text. As many
// stay as pgx caches of other statements: ConnConfig.StatementCacheCapacity, 512
// by default; then that used least recently is deallocated. The execution mode
// of ConnConfig holds for prepared statements, too: only in
// QueryExecModeCacheStatement, the default, do they leave anything on the
// server. In QueryExecModeSimpleProtocol nothing is sent before the statement is
// used, so that a wrong one, or a wrong number of arguments, shows no earlier.
//
// A statement whose plan the server has given up for a change of the schema, or
// no longer knows, is sent once more, prepared anew; in a transaction, which has
// failed by then, its error is returned.
//
// A transaction that its context ends is rolled back, and its connection is
// kept, unless it was in the middle of a statement.
//
// What database/sql takes for connections costs little and holds nothing while
// it is idle. So its Stats say little: read the Pool's. Leave its limits as they
// are. SetMaxOpenConns would put a queue in front of the pool's, in random
// order, and may keep a connection from the pool that nobody uses;
// SetMaxIdleConns, SetConnMaxLifetime and SetConnMaxIdleTime do no harm, and no
// good: MaxAge and MaxIdleTime of the Config are those of the connections.
//
// The Pool's Close closes it too; its own Close leaves the Pool open, and is for
// good. After either, it returns database/sql's error of a closed database.
//
// A Scan method of the caller's own type must not panic: database/sql then waits
// for a lock that it holds itself, and keeps the connection, with any driver.
//
// What sql.Conn.Raw shows has a method Conn() *pgx.Conn, which returns nil when
// the connection was lost to a panic.
func (p *Pool) DB() *sql.DB { return p.db }

// openDB makes the *sql.DB of p. The connections are the pool's to keep, and so
// is the queue for them: database/sql keeps proxies, as many as there are
// callers at once.
func openDB(p *Pool) *sql.DB {
	db := sql.OpenDB(connector{p})
	db.SetMaxIdleConns(maxProxies)
	db.SetConnMaxIdleTime(proxyIdleTime)
	return db
}

// connector makes proxies for database/sql.
type connector struct{ p *Pool }

// Connect makes a proxy, with a connection: whoever asked is about to use it.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	d := &dbConn{p: c.p}
	if err := d.acquire(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

func (connector) Driver() driver.Driver { return stdlib.GetDefaultDriver() }

// dbConn is what database/sql takes for a connection: a proxy that has one of the
// pool's for as long as database/sql lends the proxy to somebody. database/sql
// tells when that begins, by ResetSession or Connect, and when it ends, by
// IsValid or Close. It uses a proxy from one goroutine at a time, and what it was
// given by one, such as rows, not after the end.
type dbConn struct {
	p       *Pool
	session session // while lent
	lent    bool
	refused error // why it is not lent
}

// The interfaces that database/sql looks for. With the first two, it does not
// throw away the connection of a transaction that its context has ended.
var _ interface {
	driver.SessionResetter
	driver.Validator
	driver.Pinger
	driver.ExecerContext
	driver.QueryerContext
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.NamedValueChecker
} = (*dbConn)(nil)

func (c *dbConn) acquire(ctx context.Context) error {
	c.session = session{}
	if err := c.session.open(ctx, c.p); err != nil {
		return err
	}
	c.lent = true
	return nil
}

// release gives the connection back, if there is one.
func (c *dbConn) release() {
	c.refused = nil
	if c.lent {
		c.lent = false
		c.session.end()
	}
}

// ResetSession acquires a connection for the caller that database/sql is about
// to lend the proxy to.
func (c *dbConn) ResetSession(ctx context.Context) error {
	if err := c.acquire(ctx); err != nil {
		c.refused = &refusedReset{error: err}
		return c.refused
	}
	return nil
}

// IsValid gives the connection back, as database/sql has the proxy back. The
// proxy is always valid.
func (c *dbConn) IsValid() bool {
	c.release()
	return true
}

// Close ends the proxy, and gives back a connection that it still has.
func (c *dbConn) Close() error {
	c.release()
	return nil
}

// use is the session of whoever has the proxy.
func (c *dbConn) use() (*session, error) {
	if c.refused != nil {
		return nil, c.refused
	}
	if !c.lent || c.session.ended.Load() { // by a panic
		return nil, driver.ErrBadConn
	}
	return &c.session, nil
}

// Conn is the pgx connection, for sql.Conn.Raw.
func (c *dbConn) Conn() *pgx.Conn {
	s, err := c.use()
	if err != nil {
		return nil
	}
	return s.show()
}

// refusedReset is the error of an acquisition that database/sql asked for by
// ResetSession. It would ignore the error, and so let DB.Conn succeed, unless
// errors.Is finds driver.ErrBadConn in it; and if it finds that again, it would
// try other proxies, and have the guard asked again for each. So it is
// ErrBadConn when it is first asked, in order to be returned, and not when it is
// asked whether to try again. If database/sql asked otherwise, it would do one
// or the other: a proxy that is lent in spite of all returns the error at its
// first use.
type refusedReset struct {
	error
	asked atomic.Bool
}

func (e *refusedReset) Is(target error) bool {
	return target == driver.ErrBadConn && !e.asked.Swap(true)
}

func (e *refusedReset) Unwrap() error { return e.error }

// errBusy is returned for a statement that comes before the rows of another, on
// the same connection, have been closed.
var errBusy = errors.New("sqlpool: the connection is busy: close the rows of the statement before")
