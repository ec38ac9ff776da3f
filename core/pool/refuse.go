package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/surgewall/surgewall/core"
)

// The errors of Acquire, which errors.Is finds in its *core.Rejection.
var (
	// ErrAcquireTimeout: AcquireTimeout or ctx was over before a resource came
	// free.
	ErrAcquireTimeout = errors.New("pool: no resource in time")

	// ErrOverloaded: MaxWaiters wait already, or too many for the caller's
	// deadline.
	ErrOverloaded = errors.New("pool: too many waiters")

	// ErrUnavailable: there is no resource, and none can be dialled.
	ErrUnavailable = errors.New("pool: dials fail")

	// ErrClosed: the pool is closed.
	ErrClosed = errors.New("pool: closed")
)

// refusalKind is why Acquire lent nothing.
type refusalKind uint8

const (
	notRefused refusalKind = iota
	refusedTimedOut
	refusedCancelled
	refusedOverloaded
	refusedDoomed
	refusedUnavailable
	refusedClosed
	refusalKinds
)

var refusalReasons = [refusalKinds]core.Reason{
	refusedTimedOut:    core.WaitTimeout,
	refusedCancelled:   core.WaitTimeout,
	refusedOverloaded:  core.Overloaded,
	refusedDoomed:      core.Overloaded,
	refusedUnavailable: core.Unavailable,
	refusedClosed:      core.Closed,
}

var refusalErrors = [refusalKinds]error{
	refusedTimedOut:    ErrAcquireTimeout,
	refusedCancelled:   ErrAcquireTimeout,
	refusedOverloaded:  ErrOverloaded,
	refusedDoomed:      ErrOverloaded,
	refusedUnavailable: ErrUnavailable,
	refusedClosed:      ErrClosed,
}

// refusal is what a Rejection will say: the state of the pool when the caller
// was refused, the caller itself still counted among those who wait. It is
// taken under mu and put into words later.
type refusal struct {
	refusalState
	lastErr error
}

// refusalState is the part that can be compared. Two equal ones read the same,
// since failures and retryAt tell one lastErr from another.
type refusalState struct {
	kind                       refusalKind
	total, used, idle, waiting int
	failures                   int
	retryAt                    int64
}

type saidRefusal struct {
	state refusalState
	said  *core.Rejection
}

// refuseLocked counts a refusal and notes the state that led to it.
func (p *Pool[T]) refuseLocked(kind refusalKind) refusal {
	p.n.refused[kind]++
	return refusal{
		refusalState: refusalState{
			kind:     kind,
			total:    len(p.live),
			used:     p.used,
			idle:     len(p.idle),
			waiting:  p.waiters.n,
			failures: p.failures,
			retryAt:  p.retryAt,
		},
		lastErr: p.lastErr,
	}
}

// refuse is refuseLocked and tell for a caller that did not wait.
func (p *Pool[T]) refuse(ctx context.Context, kind refusalKind) error {
	p.mu.Lock()
	no := p.refuseLocked(kind)
	p.mu.Unlock()
	return p.tell(ctx, no, 0)
}

// tell makes the error of a refused Acquire, and tells the observer.
func (p *Pool[T]) tell(ctx context.Context, no refusal, waited time.Duration) error {
	r := p.rejection(ctx, no)
	p.emit(ctx, core.Event{Kind: core.KindAcquireFailed, Reason: r.Reason, Duration: waited})
	return r
}

// rejection puts a refusal into words. Said twice in a row, it is the same
// Rejection, so that a flood of refusals does not allocate; only one that a
// context led to is the caller's own.
func (p *Pool[T]) rejection(ctx context.Context, no refusal) *core.Rejection {
	if last := p.said.Load(); last != nil && last.state == no.refusalState && no.kind != refusedCancelled {
		return last.said
	}
	r := &core.Rejection{
		Guard:  p.cfg.Name,
		Reason: refusalReasons[no.kind],
		Err:    refusalErrors[no.kind],
		Detail: fmt.Sprintf("total %d, used %d, idle %d, waiting %d", no.total, no.used, no.idle, no.waiting),
	}
	switch no.kind {
	case refusedDoomed:
		r.Detail += ": the deadline comes before the turn"
	case refusedCancelled:
		r.Cause = ctx.Err()
		return r
	case refusedTimedOut:
		r.Cause = no.lastErr
	case refusedUnavailable:
		r.Cause = no.lastErr
		r.RetryAt = p.clock.Time(no.retryAt)
	}
	p.said.Store(&saidRefusal{no.refusalState, r})
	return r
}
