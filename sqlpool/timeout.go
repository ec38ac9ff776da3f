package sqlpool

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrStatementTimeout is found by errors.Is in the error of a statement that
// took longer than Config.StatementTimeout, beside context.DeadlineExceeded.
var ErrStatementTimeout = errors.New("sqlpool: the statement took too long")

// statementTimeout is that error. One without a cause of each Pool is the cause
// of the contexts that it limits.
type statementTimeout struct {
	pool  string
	limit time.Duration
	cause error // pgx's error
}

func (e *statementTimeout) Error() string {
	text := fmt.Sprintf("sqlpool: %q: the statement took longer than its %v", e.pool, e.limit)
	if e.cause == nil {
		return text
	}
	return text + ": " + e.cause.Error()
}

func (e *statementTimeout) Is(target error) bool {
	return target == ErrStatementTimeout || target == context.DeadlineExceeded
}

func (e *statementTimeout) Unwrap() error { return e.cause }

// Timeout is for those who look for net.Error's.
func (e *statementTimeout) Timeout() bool { return true }

// limited is ctx for one statement. stop must be called when it has ended.
func (p *Pool) limited(ctx context.Context) (_ context.Context, stop context.CancelFunc) {
	if p.timeout == nil {
		return ctx, nothing
	}
	return context.WithTimeoutCause(ctx, p.timeout.limit, p.timeout)
}

func nothing() {}

// late is the error of a statement under ctx, from limited and not yet stopped,
// as the caller is told: with its reason if it was our timeout.
func (p *Pool) late(ctx context.Context, err error) error {
	if p.timeout == nil || context.Cause(ctx) != error(p.timeout) {
		return err
	}
	// 57014 is the server's answer where the context's end sends a cancel request.
	if state, _ := sqlState(err); state != "57014" && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.Is(err, ErrStatementTimeout) {
		return err // a batch tells of one error several times
	}
	return &statementTimeout{p.timeout.pool, p.timeout.limit, err}
}
