package sqlpool

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/surgewall/surgewall/core"
)

// conn is one physical connection. It is used by one goroutine at a time: by
// the pool's while it is idle, by the borrower's while it is lent.
type conn struct {
	pgx   *pgx.Conn
	std   *stdlib.Conn // the same connection, for database/sql
	named bool         // statements are kept under names at the other end
	peeker
	dials    *dials     // for this connection alone
	madeAt   time.Time  // when the server had let it in
	server   identity   // which it is to; zero: not asked
	prepared statements // for database/sql
}

// dialer makes physical connections, with pgx for the protocol. Its methods may
// be called concurrently.
type dialer struct {
	config *pgx.ConnConfig
	before func(context.Context, *pgx.ConnConfig) error
	after  func(context.Context, *pgx.Conn) error
	pooled atomic.Int32 // a Pooled: what was declared, or found
	probes bool         // for connections that send no cancel requests, as to a pooler

	// sawPrimary is set once a dial has reached a server that is no standby. In
	// a pool of which that is true, a standby is a primary that was demoted, or
	// has taken its address; in one to a replica, it is what was asked for.
	sawPrimary atomic.Bool
}

// newDialer is a dialer to conn, which is its own from then on.
func newDialer(conn *pgx.ConnConfig, cfg *Config) *dialer {
	d := &dialer{config: conn, before: cfg.BeforeConnect, after: cfg.AfterConnect}
	d.pooled.Store(int32(cfg.Pooled))
	return d
}

// dial connects, logs in and lets the user's hooks do their part. Whatever they
// do, a connection that dial does not return is closed.
func (d *dialer) dial(ctx context.Context) (*conn, error) {
	cfg := d.config.Copy()
	if d.before != nil {
		if err := d.before(ctx, cfg); err != nil {
			// The server was not asked, and is not to be blamed.
			return nil, core.Mark(fmt.Errorf("sqlpool: BeforeConnect: %w", err), core.Ignored)
		}
	}
	pooled := Pooled(d.pooled.Load())
	c, err := d.connect(ctx, cfg, pooled == PooledYes)
	if err != nil {
		return nil, err
	}
	fit := false
	defer func() {
		if !fit {
			closeSoon(ctx, c)
		}
	}()
	if pooled == PooledDetect {
		found, err := behindPooler(ctx, c.pgx.PgConn())
		if err != nil {
			return nil, err
		}
		pooled = PooledNo
		if found {
			pooled = PooledYes
			closeSoon(ctx, c)
			if c, err = d.connect(ctx, cfg, true); err != nil {
				fit = true // there is none
				return nil, err
			}
		}
		d.pooled.CompareAndSwap(int32(PooledDetect), int32(pooled))
	}
	if d.after != nil {
		if err := d.after(ctx, c.pgx); err != nil {
			return nil, fmt.Errorf("sqlpool: AfterConnect: %w", err)
		}
		if !c.clean() {
			return nil, errors.New("sqlpool: AfterConnect left the connection closed, in a transaction or with an answer unread")
		}
	}
	if c.pgx.PgConn().ParameterStatus("in_hot_standby") == "off" {
		d.sawPrimary.Store(true)
	}
	fit = true
	return c, nil
}

// connect connects and logs in, with a copy of cfg. The driver's connection is
// made here, once, since only its connector can make one. The connector's own
// hooks are not used: it does not close what they fail on.
func (d *dialer) connect(ctx context.Context, cfg *pgx.ConnConfig, pooled bool) (*conn, error) {
	cfg = cfg.Copy()
	if pooled {
		forPooler(cfg)
	}
	dials := newDials(cfg.DialFunc)
	cfg.DialFunc = dials.dial
	made := false
	defer func() {
		if !made {
			dials.end()
		}
	}()
	dc, err := stdlib.GetConnector(*cfg).Connect(ctx)
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
	c := &conn{pgx: std.Conn(), std: std, madeAt: time.Now(), prepared: newStatements(cfg), dials: dials}
	c.named = !pooled || cfg.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement
	c.peeker = newPeeker(c.pgx.PgConn().Conn())
	if pooled || d.probes {
		dials.forbid()
	}
	made = true
	return c, nil
}

// keepAlive is pgx's own dialer, but with TCP keepalive that gives a silent peer
// up within 30 s, where the system's would take minutes.
func keepAlive(timeout time.Duration) pgconn.DialFunc {
	d := &net.Dialer{Timeout: timeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable:   true,
		Idle:     15 * time.Second,
		Interval: 5 * time.Second,
		Count:    3,
	}}
	return d.DialContext
}

// show is the pgx connection for the user to do with what he will.
func (c *conn) show() *pgx.Conn {
	c.prepared.shown++
	return c.pgx
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

// closeGrace is how much longer than until the end of its context closeConn
// waits for pgx, which has nothing left to wait for by then, unless the user's
// DialFunc does not heed its context.
const closeGrace = 250 * time.Millisecond

// closeConn closes c, and waits until all its sockets are closed, and pgx's
// goroutine has ended. What pgx does in its own time, after a cancelled query, is
// cut short when ctx ends.
func closeConn(ctx context.Context, c *conn) {
	done := c.pgx.PgConn().CleanupDone()
	_ = c.pgx.Close(ctx) // it is being thrown away
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	c.dials.end()
	_ = c.pgx.PgConn().Conn().Close()
	grace := time.NewTimer(closeGrace)
	defer grace.Stop()
	select {
	case <-done:
	case <-grace.C:
	}
}

// closeSoon closes a connection that the pool does not have yet. It waits also if
// ctx has ended: pgx sends a cancel request for what that cut short, on another
// connection, which would outlive the pool.
func closeSoon(ctx context.Context, c *conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 250*time.Millisecond)
	defer cancel()
	closeConn(ctx, c)
}

// errBadConn reports whether the driver says that nothing was sent.
func errBadConn(err error) bool { return errors.Is(err, driver.ErrBadConn) }
