package sqlpool

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// conn is one physical connection. It is used by one goroutine at a time: by
// the pool's while it is idle, by the borrower's while it is lent.
type conn struct {
	pgx *pgx.Conn
	std *stdlib.Conn // the same connection, for database/sql
	// madeAt is when the server had let it in.
	madeAt time.Time
	peeker
}

// dialer makes physical connections, with pgx for the protocol.
type dialer struct{ connector driver.Connector }

// newDialer keeps a copy of cfg.
func newDialer(cfg *pgx.ConnConfig) *dialer {
	return &dialer{stdlib.GetConnector(*cfg)}
}

// dial connects and logs in. The driver's connection is made here, once, since
// only its connector can make one.
func (d *dialer) dial(ctx context.Context) (*conn, error) {
	dc, err := d.connector.Connect(ctx)
	if err != nil {
		// pgx attaches its Config, a copy made for this dial.
		if failed, ok := errors.AsType[*pgconn.ConnectError](err); ok && failed.Config != nil {
			failed.Config.Password = ""
		}
		return nil, err
	}
	std, ok := dc.(*stdlib.Conn)
	if !ok {
		_ = dc.Close()
		return nil, fmt.Errorf("sqlpool: pgx made a %T", dc)
	}
	c := &conn{pgx: std.Conn(), std: std, madeAt: time.Now()}
	c.peeker = newPeeker(c.pgx.PgConn().Conn())
	return c, nil
}

// valid tells, without a round trip, whether an idle connection may be lent:
// it is neither closed by us nor has it anything to be read, since what a
// server says unasked is that it ends the connection.
func (c *conn) valid() bool {
	return !c.pgx.IsClosed() && c.quiet()
}

// clean tells whether a connection that comes back is fit for the next: not
// closed, not in the middle of an answer, not in a transaction.
func (c *conn) clean() bool {
	pg := c.pgx.PgConn()
	return !pg.IsClosed() && !pg.IsBusy() && pg.TxStatus() == 'I'
}

func pingConn(ctx context.Context, c *conn) error { return c.pgx.Ping(ctx) }

// closeConn closes c, and waits until the socket is closed too. What pgx does
// in its own time, after a cancelled query, is cut short when ctx ends.
func closeConn(ctx context.Context, c *conn) {
	pg := c.pgx.PgConn()
	_ = c.pgx.Close(ctx) // it is being thrown away
	select {
	case <-pg.CleanupDone():
	case <-ctx.Done():
		_ = pg.Conn().Close()
	}
}

// errBadConn reports whether the driver says that nothing was sent.
func errBadConn(err error) bool { return errors.Is(err, driver.ErrBadConn) }
