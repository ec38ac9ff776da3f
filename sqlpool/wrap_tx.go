package sqlpool

import (
	"context"
	"database/sql/driver"

	"github.com/surgewall/surgewall/core"
)

func (c *wrapConn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

func (c *wrapConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if c.tx != nil { // the guard is not asked inside a transaction
		var tx driver.Tx
		err := c.inTx(ctx, func() (err error) {
			tx, err = c.driverBegin(ctx, opts)
			return err
		})
		return tx, err
	}
	var k call
	if err := k.begin(ctx, c.g); err != nil {
		return nil, err
	}
	defer k.abandon()
	tx, err := c.driverBegin(ctx, opts)
	k.heard()
	if err != nil {
		return nil, c.done(&k, err)
	}
	t := &wrapTx{Tx: tx, c: c}
	k.moveTo(&t.call)
	c.tx, c.served = &t.call, true
	return t, nil
}

// driverBegin is BeginTx of a driver that may not have it. What such a driver
// cannot do is an error, as in database/sql.
func (c *wrapConn) driverBegin(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if b, ok := c.Conn.(driver.ConnBeginTx); ok {
		return b.BeginTx(ctx, opts)
	}
	if opts.Isolation != 0 {
		return nil, core.Mark(errIsolation, core.Ignored)
	}
	if opts.ReadOnly {
		return nil, core.Mark(errReadOnly, core.Ignored)
	}
	tx, err := beginner(c.Conn).Begin()
	if err == nil && ctx.Err() != nil {
		_ = tx.Rollback()
		return nil, ctx.Err()
	}
	return tx, err
}

// wrapTx keeps the permit of a transaction until its end.
type wrapTx struct {
	driver.Tx
	c    *wrapConn
	call call
}

func (t *wrapTx) Commit() error { return t.end(t.Tx.Commit) }

func (t *wrapTx) Rollback() error { return t.end(t.Tx.Rollback) }

func (t *wrapTx) end(how func() error) error {
	k := &t.call
	if t.c.tx != k { // its connection was closed
		return how()
	}
	defer k.abandon()
	defer t.c.leaveTx()
	k.left = core.TimeLeft(k.ctx)
	err := t.c.saw(how())
	k.end(err)
	return err
}

func (c *wrapConn) leaveTx() { c.tx = nil }

// inTx calls the driver for a statement of the transaction that is open.
func (c *wrapConn) inTx(ctx context.Context, fn func() error) error {
	k := c.tx
	k.left = core.TimeLeft(ctx)
	err := core.ErrNoReturn // until it returns
	defer func() { k.note(ctx, err) }()
	err = fn()
	return c.saw(err)
}
