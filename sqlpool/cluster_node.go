package sqlpool

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
	"github.com/surgewall/surgewall/core/pool"
)

// node is one server of a Cluster. To the balancer it is a guard as well, which
// admits the calls that the node serves.
type node struct {
	cluster *Cluster
	index   int
	name    string
	guard   core.Guard // the user's, or nil
	pool    *Pool
	refusal *core.Rejection // of what the node does not serve

	prober   prober
	kicked   chan struct{} // holds one
	redial   atomic.Bool   // the next probe is to be on a new connection
	failures int           // of probes in a row; the prober's goroutine's own
}

func (c *Cluster) newNode(ctx context.Context, index int, at place) (*node, error) {
	n := &node{
		cluster: c, index: index, name: at.name,
		refusal: &core.Rejection{Guard: at.name, Reason: core.NoBackend},
		prober:  newProber(at.cfg),
		kicked:  make(chan struct{}, 1),
	}
	if c.cfg.Guard != nil {
		n.guard = c.cfg.Guard(n.name)
	}
	at.cfg.DialGuard = dialWatch{at.cfg.DialGuard, n}
	var err error
	if n.pool, err = Open(ctx, at.cfg); err != nil {
		return nil, err
	}
	n.pool.node = n
	return n, nil
}

// Acquire admits what the node serves, and then asks the user's guard.
func (n *node) Acquire(ctx context.Context, call core.Call) (core.Permit, error) {
	t, ok := ctx.(*trip)
	if !ok || !t.servedBy(n) {
		return core.Permit{}, n.refusal
	}
	if n.guard == nil {
		return core.Permit{}, nil
	}
	p, err := n.guard.Acquire(t.Context, call)
	if err != nil {
		t.refused = err
		return core.Permit{}, err
	}
	return p.Take(), nil
}

// Ready is that of the user's guard.
func (n *node) Ready() bool { return core.IsReady(n.guard) }

// Refusal is that of the user's guard.
func (n *node) Refusal() *core.Rejection { return core.RefusalOf(n.guard) }

// Name is the node's name.
func (n *node) Name() string { return n.name }

// readOnly hears that the node, which was to write, has refused to, perhaps since
// it is a standby.
func (n *node) readOnly() { n.cluster.kick() }

// dialWatch hears of the pool's dials. One that fails is a reason to look at
// once: who waits for it may go elsewhere.
type dialWatch struct {
	guard core.Guard
	n     *node
}

func (w dialWatch) Acquire(ctx context.Context, call core.Call) (core.Permit, error) {
	d := &watchedDial{n: w.n}
	if w.guard != nil {
		p, err := w.guard.Acquire(ctx, call)
		if err != nil {
			return core.Permit{}, err
		}
		d.permit = p.Take()
	}
	return core.NewPermit(d, core.Token{}, core.WantsResult), nil
}

type watchedDial struct {
	n      *node
	permit core.Permit
}

func (d *watchedDial) FinishPermit(ctx context.Context, _ core.Token, r core.Result) {
	if r.Outcome == core.Failure {
		d.n.kick()
	}
	d.permit.Finish(ctx, r)
}

func (d *watchedDial) CancelPermit(core.Token) { d.permit.Cancel() }

// visit is one use of a node: what the balancer counts as in flight, from the
// wait for a connection to its release.
type visit struct {
	n     *node
	lease balance.Lease[*node]
	reads bool // of a replica
	again bool // the node could not be dialled for this journey, which was counted
}

func (v *visit) FinishPermit(ctx context.Context, _ core.Token, r core.Result) {
	switch {
	case v.again && errors.Is(r.Err, pool.ErrUnavailable):
		v.lease.Cancel()
		return
	case r.Outcome == core.Failure:
		v.n.kick()
	case r.Outcome == core.Success && v.reads:
		v.n.cluster.fallback.Fund()
	}
	v.lease.Finish(ctx, r)
}

func (v *visit) CancelPermit(core.Token) { v.lease.Cancel() }
