package core_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func TestDoFinishesOnEveryPath(t *testing.T) {
	failed := errors.New("failed")
	for _, c := range []struct {
		name string
		fn   func(context.Context) error
		want core.Result
	}{
		{"return", func(context.Context) error { return nil }, core.Result{Outcome: core.Success}},
		{"error", func(context.Context) error { return failed }, core.Result{Outcome: core.Failure, Err: failed}},
		{"panic", func(context.Context) error { panic("boom") }, core.Result{Outcome: core.Failure, Err: core.ErrNoReturn}},
		{"goexit", func(context.Context) error { runtime.Goexit(); return nil }, core.Result{Outcome: core.Failure, Err: core.ErrNoReturn}},
	} {
		for _, form := range []string{"Do", "DoValue", "Wrap"} {
			t.Run(c.name+"/"+form, func(t *testing.T) {
				g := newFake("g", -1)
				over := make(chan any)
				go func() {
					defer func() { over <- recover() }()
					value := func(ctx context.Context, _ int) (int, error) { return 7, c.fn(ctx) }
					switch form {
					case "Do":
						_ = core.Do(t.Context(), g, c.fn)
					case "DoValue":
						_, _ = core.DoValue(t.Context(), g, func(ctx context.Context) (int, error) { return value(ctx, 0) })
					case "Wrap":
						_, _ = core.Wrap(g, value)(t.Context(), 0)
					}
				}()
				panicked := <-over
				if c.name == "panic" {
					require.Equal(t, "boom", panicked, "the panic goes on as it was")
				}
				require.Equal(t, []core.Result{c.want}, g.results)
				require.Empty(t, g.live)
				require.Zero(t, g.twice)
				require.Zero(t, g.cancelled)
			})
		}
	}
}

func TestDoReturnsTheRejectionAndDoesNotRun(t *testing.T) {
	g := newFake("full up", 0)
	err := core.Do(t.Context(), g, func(context.Context) error { panic("ran") })
	require.ErrorIs(t, err, errFull)
	rejection, ok := errors.AsType[*core.Rejection](err)
	require.True(t, ok)
	require.Equal(t, "full up", rejection.Guard)
	require.Empty(t, g.results)
}

func TestDoWithoutGuardAdmits(t *testing.T) {
	v, err := core.DoValue(t.Context(), nil, func(context.Context) (int, error) { return 3, nil })
	require.NoError(t, err)
	require.Equal(t, 3, v)
	require.NoError(t, core.Do(t.Context(), nil, func(context.Context) error { return nil }))
}

func TestInnerRejectionCancelsTheOuterPermit(t *testing.T) {
	outer, inner := newFake("outer", -1), newFake("inner", 0)
	err := core.Do(t.Context(), outer, func(ctx context.Context) error {
		return fmt.Errorf("charge: %w", core.Do(ctx, inner, func(context.Context) error { return nil }))
	})
	require.ErrorIs(t, err, errFull)
	require.Equal(t, 1, outer.cancelled)
	require.Empty(t, outer.results)
}

func TestMarkedRejectionCounts(t *testing.T) {
	outer, inner := newFake("outer", -1), newFake("inner", 0)
	err := core.Do(t.Context(), outer, func(ctx context.Context) error {
		return core.Mark(core.Do(ctx, inner, func(context.Context) error { return nil }), core.Failure)
	})
	require.ErrorIs(t, err, errFull)
	require.Zero(t, outer.cancelled)
	require.Equal(t, core.Failure, outer.results[0].Outcome)
}

func TestPermitIsFinishedOnce(t *testing.T) {
	g := newFake("g", -1)
	p, err := g.Acquire(t.Context(), core.Call{})
	require.NoError(t, err)
	moved := p.Take()
	p.Done(t.Context(), core.Failure) // empty since Take
	require.False(t, p.WantsEnd())
	require.True(t, moved.WantsResult())
	moved.Done(t.Context(), core.Success)
	moved.Done(t.Context(), core.Failure)
	moved.Cancel()
	moved.DoneErr(t.Context(), errFull)
	require.Equal(t, []core.Result{{Outcome: core.Success}}, g.results)
	require.Zero(t, g.twice)
}

func TestTokenComesBackWhole(t *testing.T) {
	for _, w := range []core.Wants{core.WantsNothing, core.WantsEnd, core.WantsResult} {
		want := core.Token{A: math.MaxUint64, B: 1<<62 - 1}
		var got tokens
		p := core.NewPermit(&got, want, w)
		require.Equal(t, w >= core.WantsEnd, p.WantsEnd())
		require.Equal(t, w >= core.WantsResult, p.WantsResult())
		moved := p.Take()
		require.Equal(t, w >= core.WantsResult, moved.WantsResult())
		moved.Done(t.Context(), core.Success)
		p = core.NewPermit(&got, want, w)
		p.Cancel()
		require.Equal(t, tokens{want, want}, got)
	}
	require.LessOrEqual(t, unsafe.Sizeof(core.Permit{}), uintptr(32))
}

// tokens is a Finisher that remembers what it was given.
type tokens []core.Token

func (s *tokens) FinishPermit(_ context.Context, t core.Token, _ core.Result) { *s = append(*s, t) }
func (s *tokens) CancelPermit(t core.Token)                                   { *s = append(*s, t) }

func TestClassify(t *testing.T) {
	plain := errors.New("plain")
	live := t.Context()
	cancelled, late := doneCtx(context.Canceled), doneCtx(context.DeadlineExceeded)
	rejection := &core.Rejection{Guard: "g", Reason: core.RateLimited, Err: errFull}
	const enough, short = time.Second, core.MinTime - 1
	for _, c := range []struct {
		name string
		ctx  context.Context
		err  error
		left time.Duration
		want core.Outcome
	}{
		{"no error", live, nil, enough, core.Success},
		{"no error, though the caller left", cancelled, nil, enough, core.Success},
		{"error", live, plain, enough, core.Failure},
		{"caller left", cancelled, context.Canceled, enough, core.Ignored},
		{"caller left, another error", cancelled, plain, enough, core.Ignored},
		{"somebody else cancelled", live, context.Canceled, enough, core.Failure},
		{"own timeout", live, context.DeadlineExceeded, enough, core.Failure},
		{"own timeout, shorter than MinTime", live, context.DeadlineExceeded, short, core.Ignored},
		{"caller's deadline", late, context.DeadlineExceeded, enough, core.Failure},
		{"caller's deadline, at MinTime", late, context.DeadlineExceeded, core.MinTime, core.Failure},
		{"caller's deadline, begun too late", late, context.DeadlineExceeded, short, core.Ignored},
		{"caller's deadline, begun too late, another error", late, plain, short, core.Ignored},
		{"socket's deadline, begun too late", live, os.ErrDeadlineExceeded, short, core.Ignored},
		{"socket's deadline", live, os.ErrDeadlineExceeded, enough, core.Failure},
		{"error with little time left, in time", live, plain, short, core.Failure},
		{"rejection", live, fmt.Errorf("call: %w", rejection), enough, core.Ignored},
		{"marked success", live, fmt.Errorf("call: %w", core.Mark(plain, core.Success)), enough, core.Success},
		{"marked throttled", cancelled, core.Mark(plain, core.Throttled), enough, core.Throttled},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, core.ClassifyLeft(c.ctx, c.err, c.left))
			if c.left == enough {
				require.Equal(t, c.want, core.Classify(c.ctx, c.err))
			}
		})
	}
}

func TestDoomedCallTeachesNothing(t *testing.T) {
	for _, c := range []struct {
		deadline time.Duration
		want     core.Outcome
	}{{core.MinTime - 1, core.Ignored}, {core.MinTime, core.Failure}, {time.Minute, core.Failure}} {
		synctest.Test(t, func(t *testing.T) {
			g := newFake("g", -1)
			ctx, cancel := context.WithTimeout(t.Context(), c.deadline)
			defer cancel()
			err := core.Do(ctx, g, func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			})
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, c.want, g.results[0].Outcome, "deadline %v", c.deadline)
		})
	}
}

func TestMarkKeepsTheError(t *testing.T) {
	require.NoError(t, core.Mark(nil, core.Success))
	marked := core.Mark(fmt.Errorf("no row: %w", errFull), core.Success)
	require.EqualError(t, marked, "no row: fake: full")
	o, ok := core.Marked(fmt.Errorf("wrapped: %w", marked))
	require.True(t, ok)
	require.Equal(t, core.Success, o)
	_, ok = core.Marked(errFull)
	require.False(t, ok)
	require.ErrorIs(t, marked, errFull)
}

func TestPanickingErrorStillFinishes(t *testing.T) {
	g := newFake("g", -1)
	require.Panics(t, func() {
		_ = core.Do(t.Context(), g, func(context.Context) error { return badError{} })
	})
	require.Equal(t, []core.Result{{Outcome: core.Failure, Err: core.ErrNoReturn}}, g.results)
}

// badError panics when errors.As asks it.
type badError struct{}

func (badError) Error() string { return "bad" }
func (badError) As(any) bool   { panic("bad As") }

func TestErrorType(t *testing.T) {
	for want, err := range map[string]error{
		"":             nil,
		"rate_limited": fmt.Errorf("x: %w", &core.Rejection{Reason: core.RateLimited, Err: errFull}),
		"canceled":     fmt.Errorf("x: %w", context.Canceled),
		"timeout":      fmt.Errorf("x: %w", context.DeadlineExceeded),
		"panic":        core.ErrNoReturn,
		"other":        errors.New("password=hunter2"),
	} {
		require.Equal(t, want, core.ErrorType(err))
	}
	require.Equal(t, "timeout", core.ErrorType(slow{}))
}

type slow struct{}

func (slow) Error() string { return "slow" }
func (slow) Timeout() bool { return true }

func TestPriority(t *testing.T) {
	ctx := core.WithPriority(t.Context(), core.PriorityLow)
	require.Equal(t, core.PriorityNormal, core.Call{}.PriorityIn(t.Context()))
	require.Equal(t, core.PriorityLow, core.Call{}.PriorityIn(ctx))
	require.Equal(t, core.PriorityHigh, core.Call{Priority: core.PriorityHigh}.PriorityIn(ctx))
	require.Equal(t, "background", core.Priority(-100).String())
	require.Equal(t, "critical", core.Priority(100).String())
}

func TestAttempt(t *testing.T) {
	require.Equal(t, 1, core.Attempt(t.Context()))
	require.Equal(t, 3, core.Attempt(core.WithAttempt(t.Context(), 3)))
}

func TestWeight(t *testing.T) {
	require.Equal(t, 1, core.Call{}.Weight())
	require.Equal(t, 5, core.Call{Cost: 5}.Weight())
	require.Equal(t, -5, core.Call{Cost: -5}.Weight(), "a guard refuses it, nobody hides it")
}
