package core_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/surgewall/surgewall/core"
)

// slots is the smallest useful Guard: so many calls at a time.
type slots chan struct{}

var errBusy = errors.New("slots: all taken")

func (s slots) Acquire(context.Context, core.Call) (core.Permit, error) {
	select {
	case s <- struct{}{}:
		return core.NewPermit(s, core.Token{}, core.WantsEnd), nil
	default:
		return core.Permit{}, &core.Rejection{Guard: "slots", Reason: core.ConcurrencyLimited, Err: errBusy}
	}
}

func (s slots) FinishPermit(context.Context, core.Token, core.Result) { <-s }
func (s slots) CancelPermit(core.Token)                               { <-s }

// A Guard is anything that says yes or no to a call.
func ExampleGuard() {
	ctx := context.Background()
	guard := make(slots, 1)

	permit, err := guard.Acquire(ctx, core.Call{})
	fmt.Println("first:", err)

	_, err = guard.Acquire(ctx, core.Call{})
	fmt.Println("second:", err)

	permit.Done(ctx, core.Success)
	permit, err = guard.Acquire(ctx, core.Call{})
	fmt.Println("third:", err)
	permit.Done(ctx, core.Success)
	// Output:
	// first: <nil>
	// second: slots: all taken: refused by "slots"
	// third: <nil>
}

func ExampleDo() {
	guard := make(slots, 1)
	err := core.Do(context.Background(), guard, func(ctx context.Context) error {
		// The slot is taken meanwhile.
		return core.Do(ctx, guard, func(context.Context) error { return nil })
	})
	fmt.Println(err)
	fmt.Println("busy:", errors.Is(err, errBusy))
	// Output:
	// slots: all taken: refused by "slots"
	// busy: true
}

func ExampleDoValue() {
	n, err := core.DoValue(context.Background(), make(slots, 1), func(context.Context) (int, error) {
		return 42, nil
	})
	fmt.Println(n, err)
	// Output: 42 <nil>
}

func ExampleWrap() {
	greet := func(_ context.Context, name string) (string, error) {
		return "hello, " + name, nil
	}
	guarded := core.Wrap(make(slots, 1), greet)
	fmt.Println(guarded(context.Background(), "world"))
	// Output: hello, world <nil>
}

func ExampleChain() {
	const everybody, here = 2, 1
	total, perTenant := make(slots, everybody), make(slots, here)
	guard := core.Chain(total, perTenant)

	ctx := context.Background()
	permit, _ := guard.Acquire(ctx, core.Call{})
	_, err := guard.Acquire(ctx, core.Call{})
	fmt.Println(err)
	fmt.Println("taken in total:", len(total)) // the refused call gave its slot back
	permit.Done(ctx, core.Success)
	fmt.Println("taken in total:", len(total))
	// Output:
	// slots: all taken: refused by "slots"
	// taken in total: 1
	// taken in total: 0
}

func ExampleShadow() {
	shadow, err := core.Shadow(make(slots), core.ShadowConfig{
		Name:     "new-limit",
		Observer: printer{},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = shadow.Acquire(context.Background(), core.Call{})
	fmt.Println("refused:", err != nil)
	// Output:
	// shadowed new-limit concurrency_limited
	// refused: false
}

func ExampleShadowKeyed() {
	shadow, err := core.ShadowKeyed[string](byKey{"tenant": newFake("tenant", 0)}, core.ShadowKeyedConfig[string]{
		ShadowConfig: core.ShadowConfig{EnforcePercent: 100},
		ExemptKey:    func(tenant string) bool { return tenant == "staff" },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = shadow.AcquireKey(context.Background(), "tenant", core.Call{})
	fmt.Println(err)
	// Output: fake: full: refused by "tenant"
}

func ExampleForKey() {
	perTenant := byKey{"acme": newFake("acme", 0)}
	err := core.Do(context.Background(), core.ForKey(perTenant, "acme"), func(context.Context) error { return nil })
	fmt.Println(err)
	// Output: fake: full: refused by "acme"
}

// printer is an Observer.
type printer struct{}

func (printer) Enabled(core.Kind) bool { return true }
func (printer) Observe(_ context.Context, e core.Event) {
	fmt.Println(e.Kind, e.Component, e.Reason)
}

func ExampleObservers() {
	both := core.Observers(printer{}, nil, printer{})
	core.Emit(context.Background(), both, core.Event{Kind: core.KindRejected, Component: "orders", Reason: core.RateLimited})
	// Output:
	// rejected orders rate_limited
	// rejected orders rate_limited
}

func ExampleMark() {
	errNoRow := errors.New("no such row")
	err := core.Mark(errNoRow, core.Success) // an answer, not an outage
	fmt.Println(err, core.Classify(context.Background(), err), errors.Is(err, errNoRow))
	// Output: no such row success true
}

func ExampleRejection() {
	err := core.Do(context.Background(), make(slots), func(context.Context) error { return nil })
	if r, ok := errors.AsType[*core.Rejection](err); ok {
		_, known := r.RetryAfter()
		fmt.Println(r.Guard, r.Reason, "quota:", r.Reason.Quota(), "retry instant known:", known)
	}
	// Output: slots concurrency_limited quota: false retry instant known: false
}

func ExampleClassify() {
	ctx, cancel := context.WithCancel(context.Background())
	fmt.Println(core.Classify(ctx, nil))
	fmt.Println(core.Classify(ctx, errors.New("connection refused")))
	cancel() // the caller has gone: what it made of the call says nothing
	fmt.Println(core.Classify(ctx, errors.New("connection reset")))
	// Output:
	// success
	// failure
	// ignored
}

func ExampleAttempt() {
	send := func(ctx context.Context) { fmt.Println("attempt", core.Attempt(ctx)) }
	ctx := context.Background()
	send(ctx)
	send(core.WithAttempt(ctx, 2)) // as whatever retries does
	// Output:
	// attempt 1
	// attempt 2
}

func ExampleWithPriority() {
	ctx := core.WithPriority(context.Background(), core.PriorityBackground)
	fmt.Println(core.Call{}.PriorityIn(ctx))
	fmt.Println(core.Call{Priority: core.PriorityHigh}.PriorityIn(ctx)) // the call's own comes first
	// Output:
	// background
	// high
}

// A balancer passes over a guard that would refuse, and can say why.
func ExampleRefusalOf() {
	no := &core.Rejection{Guard: "eu-1", Reason: core.CircuitOpen, Err: errFull}
	guard := foretelling{shut{no}}
	fmt.Println("ready:", core.IsReady(guard))
	fmt.Println(core.RefusalOf(guard))
	// Output:
	// ready: false
	// fake: full: refused by "eu-1"
}

func ExampleErrorType() {
	err := core.Do(context.Background(), make(slots), func(context.Context) error { return nil })
	fmt.Println(core.ErrorType(err), core.ErrorType(context.Canceled), core.ErrorType(errors.New("secret")))
	// Output: concurrency_limited canceled other
}

// A call that began with next to no time left says nothing of what it called.
func ExampleClassifyLeft() {
	ctx := context.Background()
	fmt.Println(core.ClassifyLeft(ctx, context.DeadlineExceeded, core.MinTime))
	fmt.Println(core.ClassifyLeft(ctx, context.DeadlineExceeded, core.MinTime-1))
	// Output:
	// failure
	// ignored
}

// Check is for the author of a component: all that is wrong is told at once.
func ExampleCheck() {
	name, limit := "", -1
	bad := core.Check("slots.Config")
	bad.If(name == "", "Name", name, "must be set")
	bad.If(limit < 0, "Limit", limit, "must not be negative")
	fmt.Println(bad.Err())
	fmt.Println(errors.Is(bad.Err(), core.ErrConfig))
	// Output:
	// slots.Config.Name: : must be set
	// slots.Config.Limit: -1: must not be negative
	// true
}
