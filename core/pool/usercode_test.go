package pool

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// nosyErr is the error of a dial that looks at the pool when it is asked what it
// wraps.
type nosyErr struct{ ask func() }

func (nosyErr) Error() string   { return "nosy" }
func (e nosyErr) Unwrap() error { e.ask(); return nil }

// The pool asked a failed dial's error what it wraps while it held its lock.
func TestErrorOfADialIsNotAskedUnderTheLock(t *testing.T) {
	for name, ask := range map[string]func(*Pool[*conn]){
		"calls back": func(p *Pool[*conn]) { p.Stats() },
		"panics":     func(*Pool[*conn]) { panic("in Unwrap") },
		"goexits":    func(*Pool[*conn]) { runtime.Goexit() },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				var m maker
				var p *Pool[*conn]
				fails := true
				cfg := m.config(1)
				cfg.Dial = func(ctx context.Context) (*conn, error) {
					if fails {
						fails = false
						return nil, nosyErr{func() { ask(p) }}
					}
					return m.dial(ctx)
				}
				p = open(t, cfg)
				acquire(t, p).Release()
				require.EqualValues(t, 1, p.Stats().DialFailures)
			})
		})
	}
}

// nosyCtx looks at the pool when it is asked for its end.
type nosyCtx struct {
	context.Context
	p *Pool[*conn]
}

func (c nosyCtx) Done() <-chan struct{} { c.p.Stats(); return c.Context.Done() }

// A caller that had to wait had its context asked for Done under the lock.
func TestContextIsNotAskedUnderTheLock(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		m.took = time.Second
		p := open(t, m.config(1))
		l, err := p.Acquire(nosyCtx{t.Context(), p})
		require.NoError(t, err)
		l.Release()
	})
}

// badEnd is a guard whose permits do not return when they are finished.
type badEnd struct{ end func() }

func (g badEnd) Acquire(context.Context, core.Call) (core.Permit, error) {
	return core.NewPermit(g, core.Token{}, core.WantsResult), nil
}
func (g badEnd) FinishPermit(context.Context, core.Token, core.Result) { g.end() }
func (g badEnd) CancelPermit(core.Token)                               {}

// A resource was lost, and never closed, when the guard of its dial panicked or
// exited the goroutine on hearing of the success.
func TestDialGuardThatDoesNotReturnLosesNoResource(t *testing.T) {
	for name, end := range map[string]func(){
		"panics":              func() { panic(errors.New("guard")) },
		"exits its goroutine": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				var m maker
				cfg := m.config(1)
				cfg.DialGuard = badEnd{end}
				p := open(t, cfg)
				acquire(t, p).Destroy()
				acquire(t, p).Release()
				require.NoError(t, p.Close(t.Context()))
				require.EqualValues(t, 2, m.dials.Load())
				require.EqualValues(t, 2, m.closes.Load())
			})
		})
	}
}
