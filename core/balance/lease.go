package balance

import (
	"context"
	"math"
	"time"

	"github.com/surgewall/surgewall/core"
)

// Lease is one call on a backend that Pick chose. It lives on the caller's
// stack and is finished exactly once, by Finish, Done, DoneErr or Cancel; after
// that each of them does nothing. It counts as in flight until then, and holds
// the permit of the backend's guard.
//
// A Lease is used by one goroutine at a time and is not copied (go vet tells);
// Take moves it. The zero Lease is finished.
type Lease[T any] struct {
	member *member[T]
	out    bool
	permit core.Permit
}

// newLease counts the pick, and moves the permit in.
func newLease[T any](m *member[T], p *core.Permit) Lease[T] {
	m.picks.Add(1)
	return Lease[T]{member: m, out: true, permit: p.Take()}
}

// ID is the backend's ID. It remains after the lease is finished.
func (l *Lease[T]) ID() string {
	if l.member == nil {
		return ""
	}
	return l.member.ID
}

// Value is the backend's Value. It remains after the lease is finished.
func (l *Lease[T]) Value() T {
	if l.member == nil {
		var none T
		return none
	}
	return l.member.Value
}

// MarkTried adds the backend to t, so that another Pick of the same call goes
// elsewhere.
func (l *Lease[T]) MarkTried(t *Tried) {
	if l.member != nil {
		t.add(l.member.node)
	}
}

// Finish ends the call with r, and the permit of the backend's guard with it.
func (l *Lease[T]) Finish(ctx context.Context, r core.Result) {
	if !l.out {
		return
	}
	as := end(r.Outcome)
	if as >= cancelled {
		as = end(core.Ignored)
	}
	l.end(as)
	l.permit.Finish(ctx, r)
}

// Done is Finish with an Outcome only.
func (l *Lease[T]) Done(ctx context.Context, o core.Outcome) {
	l.Finish(ctx, core.Result{Outcome: o})
}

// DoneErr is Finish with what core.Classify makes of err, or Cancel if err is
// or wraps a *core.Rejection: the call never started. To count work that was
// done before that refusal, core.Mark the error with an Outcome that counts.
func (l *Lease[T]) DoneErr(ctx context.Context, err error) {
	l.DoneErrLeft(ctx, err, math.MaxInt64)
}

// DoneErrLeft is DoneErr for a caller that noted core.TimeLeft(ctx) when the
// call began; see core.ClassifyLeft.
func (l *Lease[T]) DoneErrLeft(ctx context.Context, err error, left time.Duration) {
	if core.NeverStarted(err) {
		l.Cancel()
		return
	}
	l.Finish(ctx, core.Result{Outcome: core.ClassifyLeft(ctx, err, left), Err: err})
}

// Cancel says that the call never started. The guard's tokens and probe slots
// go back.
func (l *Lease[T]) Cancel() {
	if !l.out {
		return
	}
	l.end(cancelled)
	l.permit.Cancel()
}

// Take moves the lease: it returns it and leaves l finished.
func (l *Lease[T]) Take() Lease[T] {
	out := l.out
	l.out = false
	return Lease[T]{member: l.member, out: out, permit: l.permit.Take()}
}

// end counts the end first, so that it counts even if the guard's callbacks do
// not return.
func (l *Lease[T]) end(as end) {
	l.out = false
	l.member.ends[as].Add(1)
}
