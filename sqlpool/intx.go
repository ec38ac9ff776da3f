package sqlpool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/retry"
)

const (
	defaultTxTries = 8
	defaultTxBase  = 5 * time.Millisecond
	defaultTxCap   = 250 * time.Millisecond

	// rollbackTime bounds the ROLLBACK of InTx, which ctx, having ended, may not.
	rollbackTime = time.Second

	inFailedTransaction = "25P02" // what is said of every statement after the error
)

// InTx runs fn in a transaction of its own, and commits it. When fn returns an
// error, panics or exits its goroutine, it rolls back, and that goes on as it
// was. So it does when fn has called Rollback; a Commit of fn's is the commit.
//
// The whole of it is tried again, on whichever connection, when Postgres says
// that another transaction was in the way: 40001 (serialization_failure) or
// 40P01 (deadlock_detected), in the error of fn, however wrapped, at COMMIT, or
// as the reason why fn's transaction can only be rolled back. So fn must be fit
// to run several times, and must not hide that error from InTx; core.Attempt of
// its context tells which time it is. What is tried again is the transaction that
// Postgres has rolled back, so nothing is applied twice.
//
// There are at most Config.TxTries tries, with a pause between them as
// Config.TxBackoff says, in which no connection is held, for as long as ctx and
// the retry budget allow. Each asks the guard, and for a connection, anew. Who
// gives up gets the last error of Postgres: alone after the last try, joined
// with a *core.Rejection that errors.Is finds retry.ErrBudget in, with ctx's
// error, or with the refusal of the guard or the pool.
//
// A COMMIT whose answer is lost is ErrCommitUnknown, and never tried again; if it
// was fn's, fn cannot hide it. That of a transaction in which a statement failed, which fn did not mind, is
// pgx.ErrTxCommitRollback, with that statement's error. Deferred constraints
// fail at COMMIT with their own.
func (p *Pool) InTx(ctx context.Context, opts pgx.TxOptions, fn func(ctx context.Context, tx pgx.Tx) error) error {
	var last error
	return p.retries.run(ctx, func(ctx context.Context) (again bool, err error) {
		t, err := p.beginTx(ctx, opts)
		if err != nil {
			return false, gaveUp(last, err)
		}
		again, last = t.try(ctx, fn)
		return again, last
	})
}

// try runs fn and ends the transaction. again says that it was rolled back for
// another's sake.
func (t *tx) try(ctx context.Context, fn func(context.Context, pgx.Tx) error) (again bool, err error) {
	defer t.abandon(ctx)
	err = fn(ctx, t)
	switch {
	case err == nil && t.committed:
		err = t.err
	case err == nil:
		err = t.Commit(ctx)
	case t.committed && errors.Is(t.err, ErrCommitUnknown) && !errors.Is(err, ErrCommitUnknown):
		err = errors.Join(t.err, err) // whatever fn made of it
	}
	if err == nil || t.committed && t.err == nil || errors.Is(err, ErrCommitUnknown) {
		return false, err
	}
	cause := t.s.refused
	if errors.Is(err, pgx.ErrTxCommitRollback) && cause != nil {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return conflict(err) || isState(err, inFailedTransaction) && conflict(cause), err
}

// abandon rolls back what has not ended. If that fails, the connection is closed,
// and the server does it.
func (t *tx) abandon(ctx context.Context) {
	if t.ended.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTime)
	defer cancel()
	_ = t.Rollback(ctx)
}

// conflict reports whether err says that another transaction was in the way.
func conflict(err error) bool { return isState(err, "40001") || isState(err, "40P01") }

func isState(err error, want string) bool {
	state, _ := sqlState(err)
	return state == want
}

// txRetry is how InTx tries again.
type txRetry struct {
	pool    string
	tries   int
	backoff retry.Backoff
	budget  *retry.Budget
}

// txRetry is how InTx of the named pool tries again.
func (c *Config) txRetry(name string) (r txRetry, err error) {
	r = txRetry{pool: name, tries: c.TxTries, backoff: c.TxBackoff, budget: c.RetryBudget}
	switch r.tries {
	case 0:
		r.tries = defaultTxTries
	case Off:
		r.tries = 1
	}
	r.backoff.Base = cmp.Or(r.backoff.Base, defaultTxBase)
	r.backoff.Cap = cmp.Or(r.backoff.Cap, defaultTxCap)
	if r.budget == nil {
		r.budget, err = retry.NewBudget(retry.BudgetConfig{Name: name, Observer: c.Observer})
	}
	return r, err
}

// run calls try until it succeeds, or does not ask for more, or may have none.
func (r *txRetry) run(ctx context.Context, try func(context.Context) (again bool, err error)) error {
	for n := 1; ; n++ {
		again, err := try(core.WithAttempt(ctx, n))
		switch {
		case !again:
			return err
		case n >= r.tries:
			return fmt.Errorf("sqlpool: %q: the transaction failed %d times: %w", r.pool, n, err)
		}
		if refused := r.budget.Take(); refused != nil {
			return gaveUp(err, refused)
		}
		if ended := pause(ctx, r.backoff.Pause(n)); ended != nil {
			return gaveUp(err, ended)
		}
	}
}

// gaveUp is the last error of a transaction, nil if there was none, and why there
// was no further try. That may be a refusal, which an outer guard takes for a
// call that never started: the mark says that the server was asked, and answered.
func gaveUp(last, why error) error {
	if last == nil {
		return why
	}
	return core.Mark(errors.Join(last, why), core.Success)
}

// pause waits for d. It returns ctx's error if that ends first.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
