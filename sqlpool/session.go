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
//
// It lies on the stack of a call that ends it, or within what the caller is
// given and ends it with: rows, a row, a transaction, a Conn. Each use has its
// own, so that a caller who has kept something of an earlier use finds it ended,
// and not the next user's.
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

	dead     bool         // the connection was closed before the statement began
	answered bool         // the server was heard
	outcome  core.Outcome // of the first error that is no answer
	err      error        // that error
	refused  error        // the server's last error that is not 25P02, its echo, nor undone
	conflict bool         // and whether the last, undone or not, was one
	gone     bool         // an error said that the connection is of no more use
	reads    bool         // of a replica of a Cluster: it is not to write
	demoted  bool         // and so are all dialled before: what was a primary is none
	ended    atomic.Bool
}

// open asks the guard, then the pool.
func (s *session) open(ctx context.Context, p *Pool) error {
	if p.router != nil {
		far := &session{} // which the router keeps hold of, so that s can stay on the stack
		if err := p.router.open(ctx, far); err != nil {
			return err
		}
		far.moveTo(s)
		return nil
	}
	s.ctx = ctx
	if p.guard != nil {
		permit, err := p.guard.Acquire(ctx, core.Call{})
		if err != nil {
			return err
		}
		s.permit = permit.Take()
	}
	return s.borrow(ctx, p)
}

// borrow is open for who was admitted. A refusal of the pool cancels the permit,
// as the call never started; but that no connection can be dialled is the
// server's failure, and what a breaker in front is there for.
func (s *session) borrow(ctx context.Context, p *Pool) error {
	s.p = p
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
	if _, refused := errors.AsType[*core.Rejection](err); err != nil && !refused {
		// OnAcquire's, which may have asked the server.
		s.permit.Finish(ctx, core.Result{Outcome: Outcome(ctx, err), Err: err})
	}
	if err != nil {
		return err
	}
	begun = true
	s.lease, s.conn = lease, lease.Value()
	return nil
}

// abandon gives back the connection of a session in which nothing was asked of
// it, which is not counted as a call. The session may be opened again.
func (s *session) abandon() {
	defer s.permit.Cancel()
	if s.gone || !s.clean() {
		s.lease.Destroy()
	} else {
		s.lease.Release()
	}
	s.conn, s.lease, s.gone = nil, pool.Lease[*conn]{}, false
}

// moveTo moves a session in which nothing has been asked yet.
func (s *session) moveTo(d *session) {
	d.conn, d.p, d.lease, d.permit, d.ctx = s.conn, s.p, s.lease, s.permit.Take(), s.ctx
	d.reads = s.reads
}

// start notes that a statement under ctx is about to be sent. What the caller
// spent on waiting for the connection is not the server's doing.
func (s *session) start(ctx context.Context) {
	s.dead = s.pgx.IsClosed()
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

// note learns from err, nil included, of a statement under ctx. It returns what
// the caller is told.
func (s *session) note(ctx context.Context, err error) error {
	s.heard()
	if err == nil {
		s.answered = true
		return nil
	}
	if s.named {
		hintPooled(err)
	}
	if !s.dead && errors.Is(err, pgconn.ErrConnClosed) && pgconn.SafeToRetry(err) {
		err = &answerLost{err}
	}
	s.learn(ctx, err)
	return s.p.late(ctx, err)
}

// answerLost is what pgx calls "conn closed" when it reads, and the connection
// was open when the statement was sent. By itself, that error is safe to retry,
// as is right for a connection that was closed before: but pgx gives it for an
// answer that breaks off under the simple protocol too, that of COMMIT included.
type answerLost struct{ cause error }

func (e *answerLost) Error() string {
	return "sqlpool: the connection broke before the answer came: " + e.cause.Error()
}

func (e *answerLost) Unwrap() error { return e.cause }

// SafeToRetry is what pgconn.SafeToRetry finds first.
func (e *answerLost) SafeToRetry() bool { return false }

func (s *session) learn(ctx context.Context, err error) {
	o := core.Ignored
	class, ok := judge(err)
	switch {
	case ok:
		// A read that writes by mistake is refused by its replica, as it should be.
		readOnly := !s.reads && wentReadOnly(err, s.pgx.PgConn())
		s.gone = s.gone || class.gone || readOnly || sessionLost(err)
		if readOnly && s.p.dialer.sawPrimary.CompareAndSwap(true, false) {
			s.demoted = true
		}
		if s.p.node != nil && !s.reads && isState(err, "25006") {
			s.p.node.readOnly()
		}
		o = outcome(ctx, err, s.left)
		s.answered = true
		if state, _ := sqlState(err); state != inFailedTransaction {
			s.refused, s.conflict = err, conflict(err)
		}
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
	switch {
	case s.demoted:
		s.lease.Reset()
	case s.gone || !s.clean():
		s.lease.Destroy()
	default:
		s.lease.Release()
	}
}

// finish tells the guard, and funds retries. A session in which the server was
// not heard, because nothing was asked or because of a panic, teaches nothing.
func (s *session) finish() {
	o := s.outcome
	if s.err == nil && s.answered {
		o = core.Success
		if !s.conflict {
			s.p.budget.Fund()
		}
	}
	s.permit.Finish(s.ctx, core.Result{Outcome: o, Err: s.err, Latency: s.latency})
}
