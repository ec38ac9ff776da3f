package sqlpool

import (
	"context"

	"github.com/surgewall/surgewall/core"
)

// dialGuard tells a guard of dials what Outcome makes of their errors. The pool
// underneath knows no SQLSTATE: to it, a dial that did not succeed has failed.
type dialGuard struct{ core.Guard }

func guardDials(g core.Guard) core.Guard {
	if g == nil {
		return nil
	}
	return dialGuard{g}
}

func (g dialGuard) Acquire(ctx context.Context, call core.Call) (core.Permit, error) {
	p, err := g.Guard.Acquire(ctx, call)
	if err != nil || !p.WantsResult() {
		return p.Take(), err
	}
	return core.NewPermit(&dialPermit{p.Take()}, core.Token{}, core.WantsResult), nil
}

// dialPermit is the guard's own permit, held for one dial.
type dialPermit struct{ permit core.Permit }

func (p *dialPermit) FinishPermit(ctx context.Context, _ core.Token, r core.Result) {
	if class, ok := judge(r.Err); ok && !class.failed && r.Outcome == core.Failure {
		r.Outcome = core.Success
	}
	p.permit.Finish(ctx, r)
}

func (p *dialPermit) CancelPermit(core.Token) { p.permit.Cancel() }
