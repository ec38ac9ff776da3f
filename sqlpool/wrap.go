package sqlpool

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"time"

	"github.com/surgewall/surgewall/core"
)

// WrapConfig configures Wrap.
type WrapConfig struct {
	// Name is the component's name in events. Default: "sql".
	Name string

	// Guard is asked once for each statement outside a transaction, and once
	// for each transaction. It is not asked for preparing, pinging and
	// resetting, and not for statements inside a transaction that was begun with
	// database/sql's BeginTx; a BEGIN sent as a statement is unknown here. It is
	// asked when the connection has been taken from database/sql's pool: where
	// it waits, it waits with that in hand.
	//
	// A connection is not dialled while the guard says that it would refuse
	// (see core.Refuser), as an open breaker does. A dial that fails is a call of
	// its own: a core.Failure, unless the caller left or the server answered with
	// a SQLSTATE that is no failure of its own, such as a wrong password's.
	// Default nil: no guard.
	Guard core.Guard

	// Outcome says what the error of a statement means for the guard. It is
	// never asked about driver.ErrSkip and driver.ErrBadConn. With these nothing
	// was sent, and the permit is cancelled, but for a bad connection that was
	// in use: inside a transaction or among rows, or at its first statement,
	// as it was dialled for that, it is a core.Failure.
	//
	// Default: the package's Outcome for an error with a SQLSTATE, which it
	// knows by a method SQLState() string, and for one that core.Mark marked;
	// core.Failure for a missed deadline and an error of the network;
	// core.Ignored for all else, since what a driver's own errors mean, such as
	// a duplicate key or a full disk, only the program knows.
	Outcome func(ctx context.Context, err error) core.Outcome

	// Retry says what is tried again. Default: nothing, but for what
	// database/sql tries again by itself.
	Retry WrapRetry

	// Observer hears
	//
	//   - core.KindCreated for each dial, with ErrorType if it failed;
	//   - core.KindDestroyed when database/sql has closed a connection: To is
	//     "broken" if the driver said so, by IsValid or, of anything but rows, by
	//     driver.ErrBadConn; else "closed";
	//   - core.KindRetried for each retry of Retry.
	//
	// What the Guard refuses the Guard tells of. The Observer, like the Guard and
	// Outcome, is called while database/sql holds a lock of the connection, and
	// at times one of its sql.DB: it must not use that. Default: none.
	Observer core.Observer
}

// Wrap is c with a guard in front of its statements, retries of what was not
// sent, and events, for sql.OpenDB. When the guard refuses, database/sql returns
// its *core.Rejection as it is. There is nothing in a WrapConfig that is invalid;
// Wrap of a zero one is c itself.
//
// The guard's permit is held until a statement has returned, until its rows are
// closed, or until its transaction is committed or rolled back.
//
// The connections behave to database/sql as the driver's own do, whichever of
// the optional interfaces of database/sql/driver those implement: one whose
// presence alone changes what database/sql does is there exactly if the driver
// has it; the others fall back to what database/sql does without them. Errors,
// driver.ErrBadConn included, pass unchanged, but for those that Retry has tried
// again. What sql.Conn.Raw shows has a method Unwrap() driver.Conn for the
// driver's own connection.
//
// It is safe for concurrent use if c is. sql.DB.Close closes c if that is an
// io.Closer.
func Wrap(c driver.Connector, cfg WrapConfig) driver.Connector {
	g := &guarded{
		name:     cmp.Or(cfg.Name, "sql"),
		guard:    cfg.Guard,
		outcome:  cfg.Outcome,
		retry:    cfg.Retry,
		observer: cfg.Observer,
	}
	if g.guard == nil && g.observer == nil && !g.retry.on() {
		return c
	}
	return &wrapConnector{c, g}
}

// guarded asks a guard for statements and tells it how they went.
type guarded struct {
	name     string
	guard    core.Guard // nil admits every call
	outcome  func(context.Context, error) core.Outcome
	retry    WrapRetry
	observer core.Observer
}

// call is one guarded statement or transaction. It is where what lasts as long
// is: on the stack, or in the rows or the transaction.
type call struct {
	permit core.Permit
	course
}

// course is how a call goes.
type course struct {
	g       *guarded
	ctx     context.Context // of the statement or transaction, while it lasts
	left    time.Duration   // of the last statement's context, when it began
	began   time.Time
	latency time.Duration // until the driver returned for the first time
	err     error         // the first that is no answer
	outcome core.Outcome  // of err
}

// begin asks the guard for a call. abandon is deferred right after it.
func (k *call) begin(ctx context.Context, g *guarded) error {
	k.g, k.ctx = g, ctx
	if g.guard != nil {
		p, err := g.guard.Acquire(ctx, core.Call{})
		if err != nil {
			return err
		}
		k.permit = p.Take()
	}
	if k.permit.WantsResult() {
		k.left, k.began = core.TimeLeft(ctx), time.Now()
	}
	return nil
}

// heard notes that the driver returned for the first time: the rest is the
// length of the rows or of the transaction.
func (k *call) heard() {
	if k.permit.WantsResult() {
		k.latency = max(1, time.Since(k.began))
	}
}

// moveTo leaves k empty, for the call to last longer.
func (k *call) moveTo(to *call) {
	to.permit, to.course = k.permit.Take(), k.course
}

// abandon finishes the permit if nobody has: the driver, or what is asked about
// its error, has panicked or exited the goroutine.
func (k *call) abandon() {
	k.permit.Finish(k.ctx, core.Result{Outcome: core.Failure, Err: core.ErrNoReturn})
}

// done finishes the permit with what the driver made of a statement alone or
// of a BEGIN. When database/sql will try that again, another way or on another
// connection, it has not been run, and asks the guard again.
//
// A connection that is bad and was not stale, since it is new, says that the
// server is: some drivers, lib/pq among them, tell of a session that the server
// ended by driver.ErrBadConn alone.
func (k *call) done(err error, stale bool) {
	if errors.Is(err, driver.ErrSkip) || wasUnsent(err) || errBadConn(err) && (stale || k.ctx.Err() != nil) {
		k.permit.Cancel()
		return
	}
	k.end(err)
}

// end finishes the permit with what err says, or with what was noted before.
func (k *call) end(err error) {
	k.note(k.ctx, err)
	o := core.Success
	if k.err != nil {
		o = k.outcome
	}
	if o == core.Success {
		k.g.retry.Budget.Fund()
	}
	k.permit.Finish(k.ctx, core.Result{Outcome: o, Err: k.err, Latency: k.latency})
}

// note keeps the first error that is no answer. What has begun cannot be tried
// again: a connection that goes bad under it is a failure.
func (k *call) note(ctx context.Context, err error) {
	if err == nil || errors.Is(err, driver.ErrSkip) || k.err != nil {
		return
	}
	var o core.Outcome
	switch {
	case err == core.ErrNoReturn: //nolint:errorlint // our own
		o = core.Failure
	case k.g.outcome != nil && !errBadConn(err):
		o = k.g.outcome(ctx, err)
	case telling(err):
		o = outcome(ctx, err, k.left)
	default:
		o = core.Ignored
	}
	if o != core.Success {
		k.outcome, k.err = o, err
	}
}

// telling reports whether err, of any driver, says something of the server: by
// a SQLSTATE, by core.Mark, as an answer that was not expected, or as an error of
// the kind that a server which is gone or silent causes.
func telling(err error) bool {
	_, state := sqlState(err)
	_, marked := core.Marked(err)
	_, network := errors.AsType[net.Error](err)
	return state || marked || network || answered(err) || errBadConn(err) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
