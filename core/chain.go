package core

import (
	"context"
	"sync"
	"sync/atomic"
)

// Chain is the guard that admits a call when all of guards do. It asks them in
// order; when one refuses, those before it are cancelled and its *Rejection is
// the answer. Permits are finished last first. Put guards that may wait first,
// so that nothing scarce is held meanwhile, and cheap ones before dear ones.
//
// Nil guards are left out; the Chain of none admits every call. A Chain is
// Ready when all its guards are. It allocates nothing per call.
func Chain(guards ...Guard) Guard {
	c := &chain{}
	for _, g := range guards {
		switch g := g.(type) {
		case nil:
		case *chain:
			c.guards = append(c.guards, g.guards...)
		default:
			c.guards = append(c.guards, g)
		}
	}
	if len(c.guards) == 1 {
		return c.guards[0]
	}
	return c
}

type chain struct {
	guards []Guard
	nodes  sync.Pool // of *chainNode
}

// chainNode is one admitted call: the permits behind a Permit of the chain. It
// is reused; turn tells its uses apart, so that a copied Permit cannot finish a
// later call's.
type chainNode struct {
	chain   *chain
	turn    atomic.Uint64
	permits []Permit // those held, in the order of the guards
}

func (c *chain) Acquire(ctx context.Context, call Call) (Permit, error) {
	if len(c.guards) == 0 {
		return Permit{}, nil
	}
	n, _ := c.nodes.Get().(*chainNode)
	if n == nil {
		n = &chainNode{chain: c, permits: make([]Permit, 0, len(c.guards))}
	}
	wants, err := n.acquire(ctx, call)
	if err != nil {
		return Permit{}, err
	}
	return NewPermit(n, Token{A: n.turn.Load()}, wants), nil
}

// acquire asks all guards. Unless all admit, it leaves the node empty and back
// in the pool, also when a guard panics or exits the goroutine.
func (n *chainNode) acquire(ctx context.Context, call Call) (wants Wants, err error) {
	whole := false
	defer func() {
		if !whole {
			n.end(context.Background(), Result{}, true)
		}
	}()
	for i, g := range n.chain.guards {
		n.permits = n.permits[:i+1]
		if n.permits[i], err = g.Acquire(ctx, call); err != nil {
			return WantsNothing, err
		}
		wants = max(wants, n.permits[i].wants())
	}
	whole = true
	return wants, nil
}

func (c *chain) Ready() bool {
	for _, g := range c.guards {
		if !IsReady(g) {
			return false
		}
	}
	return true
}

func (c *chain) Refusal() *Rejection {
	for _, g := range c.guards {
		if r := RefusalOf(g); r != nil {
			return r
		}
	}
	return nil
}

func (n *chainNode) FinishPermit(ctx context.Context, t Token, r Result) {
	if n.turn.CompareAndSwap(t.A, t.A+1) {
		n.end(ctx, r, false)
	}
}

func (n *chainNode) CancelPermit(t Token) {
	if n.turn.CompareAndSwap(t.A, t.A+1) {
		n.end(context.Background(), Result{}, true)
	}
}

// end finishes or cancels what is held, last first, and gives the node back.
// When a callback below panics or exits the goroutine, the rest is ended on the
// way out.
func (n *chainNode) end(ctx context.Context, r Result, cancel bool) {
	defer func() {
		if len(n.permits) > 0 {
			n.end(ctx, r, cancel)
		} else {
			n.chain.nodes.Put(n) // the last touch: another call may have it now
		}
	}()
	for last := len(n.permits) - 1; last >= 0; last-- {
		p := n.permits[last].Take()
		n.permits = n.permits[:last]
		if cancel {
			p.Cancel()
		} else {
			p.Finish(ctx, r)
		}
	}
}
