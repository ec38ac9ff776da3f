package sqlpool

import (
	"context"
	"database/sql/driver"
	"errors"
	"time"

	"github.com/surgewall/surgewall/core"
)

// What database/sql/driver has deprecated, and drivers still have.
type (
	execer interface {
		Exec(query string, args []driver.Value) (driver.Result, error)
	}
	queryer interface {
		Query(query string, args []driver.Value) (driver.Rows, error)
	}
	beginner interface{ Begin() (driver.Tx, error) }
	stmt     interface {
		Exec(args []driver.Value) (driver.Result, error)
		Query(args []driver.Value) (driver.Rows, error)
	}
	columnConverter interface {
		ColumnConverter(column int) driver.ValueConverter
	}
)

// wrapConn is a driver's connection behind a guard. It has the methods whose
// presence changes nothing, since each can fall back to what database/sql does
// without it. The rest are added by wrapDriverConn.
type wrapConn struct {
	driver.Conn
	g      *guarded
	made   time.Time
	tx     *call // the transaction that is open
	served bool  // a statement was run, or answered: if the connection is bad now, it has become so
	broken bool  // the driver said so
}

// The interfaces whose presence alone changes what database/sql does:
//
//   - with an Execer or Queryer, old or new, it converts arguments before it knows the
//     statement, and so without the statement's own converter;
//   - with both a SessionResetter and a Validator it keeps the connection of a
//     transaction that its context ended.
const (
	hasExec = 1 << iota
	hasQuery
	hasReset
	hasValid
)

type (
	wrapExecer   struct{ c *wrapConn }
	wrapQueryer  struct{ c *wrapConn }
	wrapResetter struct{ c *wrapConn }
	wrapValid    struct{ c *wrapConn }
	wrapConnExec struct {
		*wrapConn
		wrapExecer
	}
	wrapConnQuery struct {
		*wrapConn
		wrapQueryer
	}
	wrapConnBoth struct {
		*wrapConn
		wrapExecer
		wrapQueryer
	}
)

// wrapDriverConn is dc, just made, behind g, with exactly the telling interfaces
// of dc.
func wrapDriverConn(dc driver.Conn, g *guarded, made time.Time) driver.Conn {
	c := &wrapConn{Conn: dc, g: g, made: made}
	has := 0
	switch dc.(type) {
	case driver.ExecerContext, execer:
		has |= hasExec
	}
	switch dc.(type) {
	case driver.QueryerContext, queryer:
		has |= hasQuery
	}
	if _, ok := dc.(driver.SessionResetter); ok {
		has |= hasReset
	}
	if _, ok := dc.(driver.Validator); ok {
		has |= hasValid
	}
	e, q, r, v := wrapExecer{c}, wrapQueryer{c}, wrapResetter{c}, wrapValid{c}
	exec, query, both := wrapConnExec{c, e}, wrapConnQuery{c, q}, wrapConnBoth{c, e, q}
	switch has {
	case hasExec:
		return exec
	case hasQuery:
		return query
	case hasExec | hasQuery:
		return both
	case hasReset:
		return struct {
			*wrapConn
			wrapResetter
		}{c, r}
	case hasReset | hasExec:
		return struct {
			wrapConnExec
			wrapResetter
		}{exec, r}
	case hasReset | hasQuery:
		return struct {
			wrapConnQuery
			wrapResetter
		}{query, r}
	case hasReset | hasExec | hasQuery:
		return struct {
			wrapConnBoth
			wrapResetter
		}{both, r}
	case hasValid:
		return struct {
			*wrapConn
			wrapValid
		}{c, v}
	case hasValid | hasExec:
		return struct {
			wrapConnExec
			wrapValid
		}{exec, v}
	case hasValid | hasQuery:
		return struct {
			wrapConnQuery
			wrapValid
		}{query, v}
	case hasValid | hasExec | hasQuery:
		return struct {
			wrapConnBoth
			wrapValid
		}{both, v}
	case hasReset | hasValid:
		return struct {
			*wrapConn
			wrapResetter
			wrapValid
		}{c, r, v}
	case hasReset | hasValid | hasExec:
		return struct {
			wrapConnExec
			wrapResetter
			wrapValid
		}{exec, r, v}
	case hasReset | hasValid | hasQuery:
		return struct {
			wrapConnQuery
			wrapResetter
			wrapValid
		}{query, r, v}
	case hasReset | hasValid | hasExec | hasQuery:
		return struct {
			wrapConnBoth
			wrapResetter
			wrapValid
		}{both, r, v}
	}
	return c
}

// Unwrap is the driver's own connection.
func (c *wrapConn) Unwrap() driver.Conn { return c.Conn }

func (c *wrapConn) Ping(ctx context.Context) error {
	if p, ok := c.Conn.(driver.Pinger); ok {
		return c.saw(p.Ping(ctx))
	}
	return nil
}

func (r wrapResetter) ResetSession(ctx context.Context) error {
	return r.c.saw(r.c.Conn.(driver.SessionResetter).ResetSession(ctx))
}

func (v wrapValid) IsValid() bool {
	valid := v.c.Conn.(driver.Validator).IsValid()
	v.c.broken = v.c.broken || !valid
	return valid
}

// saw notes whether err says that the connection is broken.
func (c *wrapConn) saw(err error) error {
	c.broken = c.broken || err != nil && errBadConn(err)
	return err
}

// CheckNamedValue leaves the value to the next converter if the driver has none.
func (c *wrapConn) CheckNamedValue(v *driver.NamedValue) error {
	if checker, ok := c.Conn.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

func (c *wrapConn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c *wrapConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	st, err := c.driverPrepare(ctx, query)
	if err != nil {
		if c.tx == nil {
			err = c.g.elsewhere(ctx, err)
		}
		return nil, c.saw(err)
	}
	return wrapDriverStmt(st, c), nil
}

// driverPrepare is PrepareContext of a driver that may not have it.
func (c *wrapConn) driverPrepare(ctx context.Context, query string) (driver.Stmt, error) {
	if p, ok := c.Conn.(driver.ConnPrepareContext); ok {
		return p.PrepareContext(ctx, query)
	}
	st, err := c.Conn.Prepare(query)
	if err == nil && ctx.Err() != nil {
		_ = st.Close()
		return nil, ctx.Err()
	}
	return st, err
}

// Close ends a transaction that database/sql did not.
func (c *wrapConn) Close() error {
	defer c.g.destroyed(c.made, c.broken)
	if k := c.tx; k != nil {
		defer k.abandon()
		c.leaveTx()
		k.end(nil)
	}
	return c.Conn.Close()
}

// The texts are those of database/sql, which does not export them.
var (
	errIsolation = errors.New("sql: driver does not support non-default isolation level")
	errReadOnly  = errors.New("sql: driver does not support read-only transactions")
	errNamed     = errors.New("sql: driver does not support the use of Named Parameters")
)

// exec calls the driver for a statement: guarded, or noted in the transaction
// that it belongs to.
func (c *wrapConn) exec(ctx context.Context, fn func() error) error {
	if c.tx != nil {
		return c.inTx(ctx, fn)
	}
	var k call
	if err := k.begin(ctx, c.g); err != nil {
		return err
	}
	defer k.abandon()
	err := fn()
	k.heard()
	return c.done(&k, err)
}

// query is exec for what returns rows. They keep the permit, if the guard has a
// use for that, or tell their transaction how they ended.
func (c *wrapConn) query(ctx context.Context, fn func() (driver.Rows, error)) (driver.Rows, error) {
	if c.tx != nil {
		var r driver.Rows
		err := c.inTx(ctx, func() (err error) {
			r, err = fn()
			return err
		})
		if err != nil || r == nil || !c.tx.permit.WantsResult() {
			return r, err
		}
		return shown(&wrapRows{Rows: r, call: c.tx, ctx: ctx}), nil
	}
	var k call
	if err := k.begin(ctx, c.g); err != nil {
		return nil, err
	}
	defer k.abandon()
	r, err := fn()
	k.heard()
	if err != nil || r == nil || !k.permit.WantsEnd() {
		return r, c.done(&k, err)
	}
	c.served = true
	w := &wrapRows{Rows: r, ctx: ctx}
	k.moveTo(&w.own)
	w.call = &w.own
	return shown(w), nil
}

// done ends the call of a statement alone, or of a BEGIN that failed, and is err
// as database/sql is told.
func (c *wrapConn) done(k *call, err error) error {
	err = c.g.elsewhere(k.ctx, err)
	k.done(err, c.served)
	c.served = c.served || !errors.Is(err, driver.ErrSkip) && !errBadConn(err)
	return c.saw(err)
}

// ExecContext of a driver that has it, or the older Exec.
func (e wrapExecer) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (r driver.Result, err error) {
	err = e.c.exec(ctx, func() (err error) {
		if x, ok := e.c.Conn.(driver.ExecerContext); ok {
			r, err = x.ExecContext(ctx, query, args)
			return err
		}
		values, err := plain(ctx, args)
		if err == nil {
			r, err = e.c.Conn.(execer).Exec(query, values)
		}
		return err
	})
	return r, err
}

// QueryContext of a driver that has it, or the older Query.
func (q wrapQueryer) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return q.c.query(ctx, func() (driver.Rows, error) {
		if x, ok := q.c.Conn.(driver.QueryerContext); ok {
			return x.QueryContext(ctx, query, args)
		}
		values, err := plain(ctx, args)
		if err != nil {
			return nil, err
		}
		return q.c.Conn.(queryer).Query(query, values)
	})
}

// plain are the arguments for a driver that knows neither names nor contexts.
func plain(ctx context.Context, named []driver.NamedValue) ([]driver.Value, error) {
	values := make([]driver.Value, len(named))
	for i, v := range named {
		if v.Name != "" {
			return nil, core.Mark(errNamed, core.Ignored)
		}
		values[i] = v.Value
	}
	return values, ctx.Err()
}
