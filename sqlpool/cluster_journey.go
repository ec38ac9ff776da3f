package sqlpool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
	"github.com/surgewall/surgewall/core/pool"
)

// The errors of a Cluster, which errors.Is finds in a *core.Rejection.
var (
	// ErrNoPrimary: no node is known that accepts writes, and in the time there
	// was for it none came up.
	ErrNoPrimary = errors.New("sqlpool: no primary")

	// ErrNoReplica: no replica can serve the read, and the primary may not.
	ErrNoReplica = errors.New("sqlpool: no replica can serve the read")
)

// errUnheardOf: the nodes were asked since the token came, and none has got as far.
// It is made up, or of another cluster, or what it stands for was lost.
var errUnheardOf = errors.New("sqlpool: no node has got as far as the token")

// router sends the sessions of a Pool to the nodes of a Cluster.
type router struct {
	c     *Cluster
	write bool
	by    Consistency
}

// open opens s: it finds a node and borrows a connection from its pool. Nothing of
// the caller's is sent meanwhile, so what was done in vain is done elsewhere.
func (r *router) open(ctx context.Context, s *session) error {
	if r.c == nil {
		return errNowhere
	}
	j := journey{router: r, ctx: ctx, s: s, started: time.Now()}
	defer j.end()
	for {
		v := r.c.view.Load()
		if done, err := j.try(v); done {
			return err
		}
		if err := j.wait(v); err != nil {
			return err
		}
	}
}

// journey is the way of one session to its connection.
type journey struct {
	*router
	ctx     context.Context // the caller's
	s       *session        // to be opened
	started time.Time
	last    error // why a node that was to serve did not

	// failures are the nodes that could not be dialled, and when the last probe
	// that saw them had begun.
	failures map[int]time.Time

	late    context.Context // ctx, until the acquire timeout is over; nil until it is needed
	cancel  context.CancelFunc
	asked   bool // all nodes were kicked
	waiting bool // it counts as waiting
	hurried bool // it counts as hurried
	paid    bool // for the primary in place of a replica
}

func (j *journey) end() {
	if j.cancel != nil {
		j.cancel()
	}
	if j.waiting {
		j.c.waiting.Add(-1)
	}
	j.calm()
}

// try looks for a connection as things are in v. Not being done means that it is
// worth another try when they have changed.
func (j *journey) try(v *view) (done bool, err error) {
	if !j.write {
		done, err := j.replica(v)
		if done || !v.complete() || j.mayCatchUp(v) {
			return done, err
		}
		if err := j.unheardOf(v); err != nil {
			return true, j.refuse(j.none(), core.NoBackend, err)
		}
		if err := j.pay(v); err != nil {
			return true, err
		}
	}
	why, err := j.visit(v, true, nil)
	switch why {
	case boarded, turnedDown:
		return true, err
	}
	if j.c.cfg.RefuseWithoutPrimary && v.complete() && j.c.view.Load().primary == v.primary {
		return true, j.refuse(j.none(), core.NoBackend, cmp.Or(j.last, err))
	}
	return false, nil
}

// replica tries the replicas, one after the other until one serves.
func (j *journey) replica(v *view) (done bool, err error) {
	var tried balance.Tried
	for range j.c.nodes {
		why, err := j.visit(v, false, &tried)
		switch why {
		case boarded, turnedDown:
			return true, err
		case nobody:
			return false, nil
		}
		v = j.c.view.Load()
	}
	return false, nil
}

// mayCatchUp reports whether there is a replica that may catch up, and time left
// for it.
func (j *journey) mayCatchUp(v *view) bool {
	return !j.write && j.by.kind != anyAge && v.complete() &&
		slices.ContainsFunc(v.nodes, func(n nodeView) bool { return n.reads && n.replica }) &&
		time.Since(j.started) < j.c.cfg.CatchUpWait
}

// unheardOf is why no node will serve the token, as of what no node has got to,
// though they were asked since it came. A node that cannot be asked may know of
// it, for as long as it takes to be sure that it cannot.
func (j *journey) unheardOf(v *view) error {
	if j.by.kind != afterToken {
		return nil
	}
	asked := func(n nodeView) bool { return n.at.After(j.started) }
	all := time.Since(j.started) >= 2*j.c.cfg.ProbeInterval ||
		!slices.ContainsFunc(v.nodes, func(n nodeView) bool { return !asked(n) })
	switch foreign := v.family() != j.by.token.family; {
	case foreign && all:
		return ErrForeignToken
	case !foreign && v.timeline() < j.by.token.timeline && all:
		return errUnheardOf
	case foreign || v.primary < 0 || v.timeline() < j.by.token.timeline:
		return nil
	}
	if n := v.nodes[v.primary]; asked(n) && !j.by.servedBy(&n, true, time.Now()) {
		return errUnheardOf
	}
	return nil
}

// pay asks whether the primary may serve a read in the place of a replica, once.
func (j *journey) pay(v *view) error {
	c := j.c
	switch {
	case c.cfg.NoFallback:
		return j.refuse(ErrNoReplica, core.NoBackend, j.last)
	case v.primary < 0 || j.paid || !j.by.servedBy(&v.nodes[v.primary], true, time.Now()):
		return nil // it is paid for when there is one that serves it
	}
	if err := c.fallback.Take(); err != nil {
		return j.refuse(ErrNoReplica, core.RetryBudget, err)
	}
	j.paid = true
	c.n.fallbacks.Add(1)
	return nil
}

// wait waits for a newer view than v, as long as the acquire timeout and ctx
// allow, or until the time is over in which a replica may catch up.
func (j *journey) wait(v *view) error {
	c := j.c
	if c.ctx.Err() != nil {
		return j.refuse(pool.ErrClosed, core.Closed, nil)
	}
	var until <-chan time.Time
	if j.mayCatchUp(v) {
		j.hurry()
		timer := time.NewTimer(time.Until(j.started.Add(c.cfg.CatchUpWait)))
		defer timer.Stop()
		until = timer.C
	} else if !j.waiting {
		j.calm()
		j.waiting = true
		if n := c.waiting.Add(1); c.cfg.Pool.MaxWaiters > 0 && n > int64(c.cfg.Pool.MaxWaiters) {
			return j.refuse(pool.ErrOverloaded, core.Overloaded, j.last)
		}
	}
	if !j.asked {
		j.asked = true
		c.kick()
	}
	select {
	case <-v.next:
		return nil
	case <-until:
		return nil
	case <-c.ctx.Done():
		return j.refuse(pool.ErrClosed, core.Closed, nil)
	case <-j.bounded().Done():
	}
	why := j.last
	if err := j.ctx.Err(); err != nil {
		why = err
	}
	return j.refuse(j.none(), core.WaitTimeout, why)
}

// hurry has the nodes probed more often, until the journey ends or waits for what
// no hurry helps.
func (j *journey) hurry() {
	if !j.hurried {
		j.hurried = true
		j.c.hurried.Add(1)
	}
}

func (j *journey) calm() {
	if j.hurried {
		j.hurried = false
		j.c.hurried.Add(-1)
	}
}

// none is the error of who finds no node.
func (j *journey) none() error {
	if j.write {
		return ErrNoPrimary
	}
	return ErrNoReplica
}

// bounded is ctx, until the acquire timeout is over since the beginning.
func (j *journey) bounded() context.Context {
	if j.late == nil {
		j.late = j.ctx
		if timeout := j.c.cfg.Pool.AcquireTimeout; timeout > 0 {
			j.late, j.cancel = context.WithDeadline(j.ctx, j.started.Add(timeout))
		}
	}
	return j.late
}

// refuse is the error of a caller who gets nothing. Said twice in a row for the
// same cause, it is the same Rejection.
func (j *journey) refuse(sentinel error, reason core.Reason, cause error) error {
	c := j.c
	switch sentinel {
	case ErrNoPrimary:
		c.n.noPrimary.Add(1)
	case ErrNoReplica:
		c.n.noReplica.Add(1)
	}
	core.Emit(j.ctx, c.cfg.Observer, core.Event{
		Kind: core.KindRejected, Component: c.cfg.Name, Reason: reason, N: 1,
	})
	v := c.view.Load()
	last := v.said.Load()
	if _, shared := cause.(*core.Rejection); (shared || cause == nil) && last != nil &&
		last.Err == sentinel && last.Reason == reason && last.Cause == cause {
		return last
	}
	r := &core.Rejection{Guard: c.cfg.Name, Reason: reason, Err: sentinel, Cause: cause, Detail: v.String()}
	v.said.Store(r)
	return r
}

// timeline is the latest that a node was seen on.
func (v *view) timeline() (latest uint32) {
	for i := range v.nodes {
		if v.nodes[i].server.system == v.system {
			latest = max(latest, v.nodes[i].timeline)
		}
	}
	return latest
}

// family is that of the nodes.
func (v *view) family() uint32 { return identity{system: v.system}.family() }

// String is the view in few words, for the Detail of a refusal.
func (v *view) String() string {
	var count [len(roleNames)]int
	lagging := 0
	for i := range v.nodes {
		count[v.nodes[i].role]++
		if v.nodes[i].lagging && v.nodes[i].role == RoleReplica {
			lagging++
		}
	}
	return fmt.Sprintf("nodes %d, primary %d, replicas %d, lagging %d, old primaries %d, unreachable %d, not asked %d",
		len(v.nodes), count[RolePrimary], count[RoleReplica], lagging,
		count[RoleOldPrimary], count[RoleUnreachable], count[RoleUnknown])
}
