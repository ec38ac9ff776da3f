package core

import (
	"context"
	"time"
)

// Do runs fn if g admits it, and finishes the permit however fn ends: with what
// DoneErr makes of its error, or with Failure and ErrNoReturn if it panics or
// calls runtime.Goexit. A panic goes on as it was, its stack kept. The error is
// fn's, or the guard's *Rejection if fn was not run.
//
// A nil g admits every call. Do allocates nothing.
func Do(ctx context.Context, g Guard, fn func(context.Context) error) error {
	if g == nil {
		return fn(ctx)
	}
	p, err := g.Acquire(ctx, Call{})
	if err != nil {
		return err
	}
	defer p.abandon(ctx)
	left := p.timeLeft(ctx)
	err = fn(ctx)
	p.DoneErrLeft(ctx, err, left)
	return err
}

// DoValue is Do for a function that returns a value.
func DoValue[T any](ctx context.Context, g Guard, fn func(context.Context) (T, error)) (T, error) {
	if g == nil {
		return fn(ctx)
	}
	p, err := g.Acquire(ctx, Call{})
	if err != nil {
		var none T
		return none, err
	}
	defer p.abandon(ctx)
	left := p.timeLeft(ctx)
	v, err := fn(ctx)
	p.DoneErrLeft(ctx, err, left)
	return v, err
}

// Wrap returns fn behind g: the same function, run by DoValue. It is what a
// decorator is elsewhere. The function returned is as safe for concurrent use
// as fn is.
func Wrap[In, Out any](g Guard, fn func(context.Context, In) (Out, error)) func(context.Context, In) (Out, error) {
	return func(ctx context.Context, in In) (Out, error) {
		return DoValue(ctx, g, func(ctx context.Context) (Out, error) { return fn(ctx, in) })
	}
}

// abandon finishes a permit that nobody else finished: the call is over, and
// it did not return. It must be deferred right after Acquire.
func (p *Permit) abandon(ctx context.Context) {
	if p.finisher != nil {
		p.end(ctx, Failure, ErrNoReturn)
	}
}

// timeLeft spares the clock read where nobody will ask for the outcome.
func (p *Permit) timeLeft(ctx context.Context) time.Duration {
	if !p.WantsResult() {
		return unlimited
	}
	return TimeLeft(ctx)
}
