package pool_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/pool"
)

type session struct{ user string }

func Example() {
	ctx := context.Background()
	p, err := pool.New(pool.Config[*session]{
		Name:  "sessions",
		Dial:  func(context.Context) (*session, error) { return &session{user: "app"}, nil },
		Close: func(context.Context, *session) { fmt.Println("closed") },
		Max:   1,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	lease, err := p.Acquire(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("got a session of", lease.Value().user)
	lease.Release()
	lease.Release() // harmless
	fmt.Println("in use:", p.Stats().Used)
	fmt.Println(p.Close(ctx))
	// Output:
	// got a session of app
	// in use: 0
	// closed
	// <nil>
}

func ExampleNew() {
	_, err := pool.New(pool.Config[*session]{Max: 4, MinIdle: 9})
	fmt.Println(errors.Is(err, core.ErrConfig))
	fmt.Println(err)
	// Output:
	// true
	// pool.Config.Dial: must be set
	// pool.Config.MinIdle: 9: must not be above Max 4
}

func ExamplePool_Acquire() {
	ctx := context.Background()
	p, err := pool.New(pool.Config[*session]{
		Name: "sessions",
		Dial: func(context.Context) (*session, error) { return new(session), nil },
		Max:  1,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close(ctx)
	lease, err := p.Acquire(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer lease.Release()

	// The only session is in use, and this caller has no time to wait for it.
	hurried, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	_, err = p.Acquire(hurried)
	fmt.Println(errors.Is(err, pool.ErrAcquireTimeout), errors.Is(err, context.DeadlineExceeded))
	if r, ok := errors.AsType[*core.Rejection](err); ok {
		fmt.Println(r.Guard, r.Reason)
	}
	// Output:
	// true true
	// sessions wait_timeout
}

func ExamplePool_Close() {
	p, err := pool.New(pool.Config[*session]{
		Dial: func(context.Context) (*session, error) { return new(session), nil },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := p.Close(context.Background()); err != nil {
		fmt.Println(err)
	}
	_, err = p.Acquire(context.Background())
	fmt.Println(errors.Is(err, pool.ErrClosed))
	// Output: true
}
