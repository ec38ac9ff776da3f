package sqlpool

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/pool"
)

// session is one use of a connection, from its acquisition to its release: the
// loan, the guard's permit, and what was learnt of the server meanwhile. It is
// used by one goroutine at a time, but may be ended by several: once.
type session struct {
	*conn
	p      *Pool
	lease  pool.Lease[*conn]
	permit core.Permit
	ctx    context.Context // the caller's, for what ends without one: Rows.Close

	// What follows is kept only for a guard that wants a result.
	left    time.Duration // of the statement's context, when it began
	began   time.Time     // the first statement
	latency time.Duration // of the first answer

	answered bool         // the server was heard
	outcome  core.Outcome // of the first error that is no answer
	err      error        // that error
	gone     bool         // an error said that the connection is of no more use
	ended    atomic.Bool
}

// begin asks the guard, then the pool. A refusal of the pool cancels the
// permit, as the call never started; but that no connection can be dialled is
// the server's failure, and what a breaker in front is there for.
func (p *Pool) begin(ctx context.Context) (*session, error) {
	if p.router != nil {
		return p.router.begin(ctx)
	}
	var permit core.Permit
	if p.guard != nil {
		admitted, err := p.guard.Acquire(ctx, core.Call{})
		if err != nil {
			return nil, err
		}
		permit = admitted.Take()
	}
	return p.borrow(ctx, &permit)
}

// borrow is begin for who was admitted: it moves the permit into the session, or
// ends it.
func (p *Pool) borrow(ctx context.Context, permit *core.Permit) (*session, error) {
	s := &session{p: p, ctx: ctx, permit: permit.Take()}
	begun := false
	defer func() {
		if !begun { // refused, or an observer exited the goroutine
			s.permit.Cancel()
		}
	}()
	lease, err := p.pool.Acquire(ctx)
	if errors.Is(err, pool.ErrUnavailable) {
		s.permit.Finish(ctx, core.Result{Outcome: core.Failure, Err: err})
	}
	if err != nil {
		return nil, err
	}
	begun = true
	s.lease, s.conn = lease, lease.Value()
	return s, nil
}

// start notes that a statement under ctx is about to be sent. What the caller
// spent on waiting for the connection is not the server's doing.
func (s *session) start(ctx context.Context) {
	if !s.permit.WantsResult() {
		return
	}
	s.left = core.TimeLeft(ctx)
	if s.began.IsZero() {
		s.began = time.Now()
	}
}

// heard notes that the first statement was answered, or failed: the rest is the
// length of a stream or of a transaction.
func (s *session) heard() {
	if s.latency == 0 && !s.began.IsZero() {
		s.latency = max(1, time.Since(s.began))
	}
}

// note learns from err, nil included, of a statement under ctx.
func (s *session) note(ctx context.Context, err error) {
	s.heard()
	if err == nil {
		s.answered = true
		return
	}
	o := core.Ignored
	class, ok := judge(err)
	switch {
	case ok:
		readOnly := wentReadOnly(err, s.pgx.PgConn())
		s.gone = s.gone || class.gone || readOnly
		if readOnly && s.p.node != nil {
			s.p.node.readOnly()
		}
		o = outcome(ctx, err, s.left)
		s.answered = true
	case errBadConn(err):
		s.gone = true // and database/sql tries again: nothing is learnt yet
	case pgconn.SafeToRetry(err):
		return // nothing was sent: the context had ended, or the connection
	case s.pgx.IsClosed() || errors.Is(err, context.DeadlineExceeded):
		o = outcome(ctx, err, s.left)
	default:
		// The connection stands and the server said nothing: an argument that
		// could not be encoded, a value that could not be scanned.
		return
	}
	if s.err == nil && o != core.Success {
		s.outcome, s.err = o, err
	}
}

// end gives the connection back, unless that has been done: to the pool if it
// is clean, else to be destroyed. Then the guard learns how the session went.
func (s *session) end() {
	if s.ended.Swap(true) {
		return
	}
	defer s.finish()
	if s.err == nil && s.pgx.IsClosed() {
		s.answered = false // it broke where nobody noted why, as under Conn.Conn
	}
	if s.gone || !s.clean() {
		s.lease.Destroy()
	} else {
		s.lease.Release()
	}
}

// abandon gives back a connection on which nothing was asked. It is not counted
// as a call.
func (s *session) abandon() {
	if s.ended.Swap(true) {
		return
	}
	defer s.permit.Cancel()
	if s.gone || !s.clean() {
		s.lease.Destroy()
	} else {
		s.lease.Release()
	}
}

// finish tells the guard. A session in which the server was not heard, because
// nothing was asked or because of a panic, teaches nothing.
func (s *session) finish() {
	o := s.outcome
	if s.err == nil && s.answered {
		o = core.Success
	}
	s.permit.Finish(s.ctx, core.Result{Outcome: o, Err: s.err, Latency: s.latency})
}
