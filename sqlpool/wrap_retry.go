package sqlpool

import (
	"context"
	"database/sql/driver"
	"errors"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/retry"
)

// WrapRetry says what Wrap tries again. Around any driver that is what was
// certainly not sent:
//
//   - a dial that failed: after a pause, as long as the context and the budget
//     allow and the guard would not refuse. Not one that the guard refused or the
//     server's SQLSTATE is no failure of its own, such as a wrong password's, and
//     not driver.ErrBadConn, which database/sql dials again for;
//   - a statement, a BEGIN or a prepare outside a transaction, with an error that
//     has a method SafeToRetry() bool, as pgx's have, which says true. It goes to
//     database/sql as driver.ErrBadConn does, and that tries it at once on two
//     more connections at most, the last of them new. Who gets the error in the
//     end finds the driver's in it. On a sql.Conn, which has one connection,
//     nothing is tried again, and it is closed.
//
// Beside these database/sql does what it does with a driver's own
// driver.ErrBadConn: no budget bounds that.
//
// What may have been sent is never tried again, nor is anything inside a
// transaction, nor what a guard refused. A whole transaction that Postgres rolled
// back for another's sake cannot be tried again here: only its program can run
// it again. Pool.InTx does that.
type WrapRetry struct {
	// Tries is how often a dial is tried at most, the first included; above 1
	// statements are retried, too. Default 0, and all below 2: nothing is.
	Tries int

	// Backoff is the pause before each retry of a dial. database/sql has one
	// goroutine that dials for those who wait for a connection; a pause there
	// holds up the dials after it.
	Backoff retry.Backoff

	// Budget bounds retries; statements that succeed fund it. Default nil: no
	// bound.
	Budget *retry.Budget
}

func (r *WrapRetry) on() bool { return r.Tries > 1 }

// redial reports whether a dial, whose n-th try failed with err, is tried again.
// It has paused then.
func (g *guarded) redial(ctx context.Context, n int, err error) bool {
	switch {
	case n >= g.retry.Tries, ctx.Err() != nil, errBadConn(err), core.NeverStarted(err):
		return false
	case outcome(ctx, err, core.TimeLeft(ctx)) != core.Failure && !safeToRetry(err):
		return false
	case core.RefusalOf(g.guard) != nil:
		return false
	}
	d := g.retry.Backoff.Pause(n)
	if d >= core.TimeLeft(ctx) || g.retry.Budget.Take() != nil {
		return false
	}
	core.Emit(ctx, g.observer, core.Event{
		Kind: core.KindRetried, Component: g.name, N: int64(n), ErrorType: core.ErrorType(err), Duration: d,
	})
	return pause(ctx, d) == nil && core.RefusalOf(g.guard) == nil
}

// unsentError is an error of a driver that says that nothing was sent. To
// database/sql it is driver.ErrBadConn.
type unsentError struct{ error }

func (e *unsentError) Unwrap() error { return e.error }

func (e *unsentError) Is(target error) bool { return target == driver.ErrBadConn }

func wasUnsent(err error) bool {
	_, ok := errors.AsType[*unsentError](err)
	return ok
}

// elsewhere is err, of a statement outside a transaction, as it is to reach
// database/sql: so that this tries another connection, if nothing was sent.
func (g *guarded) elsewhere(ctx context.Context, err error) error {
	if err == nil || !g.retry.on() || ctx.Err() != nil ||
		errBadConn(err) || core.NeverStarted(err) || !safeToRetry(err) || g.retry.Budget.Take() != nil {
		return err
	}
	core.Emit(ctx, g.observer, core.Event{
		Kind: core.KindRetried, Component: g.name, ErrorType: core.ErrorType(err),
	})
	return &unsentError{err}
}

// safeToRetry reports whether err, of any driver, says that nothing was sent.
func safeToRetry(err error) bool {
	s, ok := errors.AsType[interface {
		error
		SafeToRetry() bool
	}](err)
	return ok && s.SafeToRetry()
}
