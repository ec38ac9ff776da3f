package core

import "context"

type attemptKey struct{}

// WithAttempt tells whatever runs under ctx that it is attempt n of one call,
// counted from 1. It is for what retries.
func WithAttempt(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, attemptKey{}, n)
}

// Attempt is the number of the attempt that ctx belongs to: 1 for the first,
// and for a call that nothing retries.
func Attempt(ctx context.Context) int {
	if n, ok := ctx.Value(attemptKey{}).(int); ok {
		return n
	}
	return 1
}
