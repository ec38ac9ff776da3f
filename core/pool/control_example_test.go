package pool_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/surgewall/surgewall/core/pool"
)

// sessions is a pool for the examples.
func sessions(change func(*pool.Config[*session])) *pool.Pool[*session] {
	cfg := pool.Config[*session]{
		Name:    "sessions",
		Dial:    func(context.Context) (*session, error) { return new(session), nil },
		MinIdle: pool.Off,
		Max:     4,
	}
	if change != nil {
		change(&cfg)
	}
	p, err := pool.New(cfg)
	if err != nil {
		panic(err)
	}
	return p
}

func ExamplePool_Warm() {
	ctx := context.Background()
	p := sessions(nil)
	defer p.Close(ctx)
	fmt.Println(p.Warm(ctx, 3), p.Stats().Total)
	fmt.Println(p.Warm(ctx, 5))
	// Output:
	// <nil> 3
	// pool.Warm.n: 5: must not be above Max
}

func ExamplePool_Resize() {
	ctx := context.Background()
	p := sessions(nil)
	defer p.Close(ctx)
	fmt.Println(p.Resize(1, 2), p.Stats().Max)
	fmt.Println(p.Resize(3, 2))
	// Output:
	// <nil> 2
	// pool.Config.MinIdle: 3: must not be above Max 2
}

// After a failover, what is connected to the old primary is of no more use.
func ExamplePool_Reset() {
	ctx := context.Background()
	p := sessions(nil)
	defer p.Close(ctx)
	before, err := p.Acquire(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	p.Reset()
	before.Release() // closed, not lent again
	after, err := p.Acquire(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer after.Release()
	fmt.Println(before.Value() == after.Value(), p.Stats().DestroyedReset)
	// Output: false 1
}

// Of many callers that find out at the same time, one resets the pool.
func ExampleLease_Reset() {
	ctx := context.Background()
	p := sessions(nil)
	defer p.Close(ctx)
	a, errA := p.Acquire(ctx)
	b, errB := p.Acquire(ctx)
	if err := errors.Join(errA, errB); err != nil {
		fmt.Println(err)
		return
	}
	a.Reset()
	fresh, err := p.Acquire(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	fresh.Release()
	b.Reset() // of what a has reset before
	fmt.Println(p.Stats().Idle, p.Stats().DestroyedReset)
	// Output: 1 2
}

func ExampleLease_Destroy() {
	ctx := context.Background()
	p := sessions(nil)
	defer p.Close(ctx)
	lease, err := p.Acquire(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	lease.Destroy() // it broke
	lease.Release() // harmless
	fmt.Println(p.Stats().Total, p.Stats().DestroyedBroken)
	// Output: 0 1
}

func ExamplePool_Held() {
	ctx := context.Background()
	p := sessions(func(c *pool.Config[*session]) {
		c.LeakAfter = time.Millisecond
		c.LeakSample = 1
	})
	defer p.Close(ctx)
	lease, err := p.Acquire(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer lease.Release()
	for len(p.Held()) == 0 { // until it has lasted for a millisecond
	}
	for _, held := range p.Held() {
		fmt.Println(held.For >= time.Millisecond, strings.Contains(held.Stack, "ExamplePool_Held"))
	}
	// Output: true true
}

// Each loan is told whom it is for, and forgets it afterwards.
func ExampleConfig_hooks() {
	type tenant struct{}
	p := sessions(func(c *pool.Config[*session]) {
		c.OnAcquire = func(ctx context.Context, s *session) error {
			user, ok := ctx.Value(tenant{}).(string)
			if !ok {
				return errors.New("no tenant")
			}
			s.user = user
			return nil
		}
		c.OnRelease = func(_ context.Context, s *session) bool {
			s.user = ""
			return true
		}
	})
	defer p.Close(context.Background())
	lease, err := p.Acquire(context.WithValue(context.Background(), tenant{}, "ada"))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(lease.Value().user)
	lease.Release()
	_, err = p.Acquire(context.Background())
	fmt.Println(err)
	// Output:
	// ada
	// no tenant
}

func ExamplePool_Stats() {
	ctx := context.Background()
	p := sessions(nil)
	defer p.Close(ctx)
	for range 3 {
		lease, err := p.Acquire(ctx)
		if err != nil {
			fmt.Println(err)
			return
		}
		lease.Release()
	}
	s := p.Stats()
	fmt.Println(s.Acquired, s.Waited, s.Created, s.Use.Count(), s.Use.Quantile(0.99) > 0)
	// Output: 3 1 1 3 true
}

func ExamplePool_Inspect() {
	p := sessions(nil)
	defer p.Close(context.Background())
	r := p.Inspect()
	fmt.Println(r.Kind, r.Name, r.State)
	// Output: pool sessions open
}
