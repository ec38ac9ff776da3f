package sqlpool

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
	"github.com/surgewall/surgewall/core/pool"
)

// whither is how an attempt to get to a node ended.
type whither uint8

const (
	boarded    whither = iota // with a connection
	turnedDown                // with an error that the caller gets
	elsewhere                 // the node, or its connection, does not serve after all
	nobody                    // no node serves it
)

// visit picks a node and borrows a connection of its pool.
func (j *journey) visit(v *view, primary bool, tried *balance.Tried) (whither, error) {
	ctx := j.ctx
	if j.late != nil {
		ctx = j.late
	}
	t := &trip{Context: ctx, journey: j, view: v, primary: primary, now: time.Now()}
	defer t.end()
	lease, err := j.c.balancer.Pick(t, balance.PickInfo{Tried: tried})
	if err != nil {
		if primary && v.primary >= 0 {
			// While the primary cannot be asked, what its guard says of it is no
			// reason not to wait for another.
			there := v.nodes[v.primary].role == RolePrimary && !j.failed(v.primary, v)
			switch {
			case t.refused != nil:
				err = t.refused
			case j.c.nodes[v.primary].Ready():
				there = false // it is not for its guard that it was not picked
			}
			if there {
				return turnedDown, err
			}
		}
		switch {
		case ctx.Err() != nil:
			return turnedDown, j.refuse(j.none(), core.WaitTimeout, ctx.Err())
		}
		return nobody, err
	}
	if tried != nil {
		lease.MarkTried(tried)
	}
	n := lease.Value()
	t.stint = v.stints[n.index]
	_, again := j.failures[n.index]
	visit := &visit{n: n, lease: lease.Take(), reads: !primary && v.nodes[n.index].role == RoleReplica, again: again}
	j.s.ctx, j.s.reads = j.ctx, visit.reads
	j.s.permit = core.NewPermit(visit, core.Token{}, core.WantsResult)
	if err := j.s.borrow(t, n.pool); err != nil {
		unavailable := errors.Is(err, pool.ErrUnavailable)
		left := t.stint.Err() != nil && ctx.Err() == nil
		switch {
		case unavailable:
			j.fail(n, v)
		case left: // so err says that a context has ended, which is not the caller's
			err = errBehind
			if j.write {
				err = errReplaced
			}
		}
		j.last = err
		if unavailable || left {
			n.kick()
			return elsewhere, err
		}
		return turnedDown, err
	}
	admitted := false
	defer func() {
		if !admitted { // or code of the user's, such as a net.Conn, has panicked
			j.s.abandon()
		}
	}()
	if err := j.admit(t, n, j.s); err != nil {
		j.last = err
		if j.ctx.Err() != nil {
			return turnedDown, j.refuse(j.none(), core.WaitTimeout, j.ctx.Err())
		}
		return elsewhere, err
	}
	admitted = true
	return boarded, nil
}

// fail notes that n, as it is in v, had no connection and could not be dialled.
func (j *journey) fail(n *node, v *view) {
	if j.failures == nil {
		j.failures = make(map[int]time.Time)
	}
	j.failures[n.index] = v.nodes[n.index].at
}

// failed reports whether node i has failed the journey, and no probe that began
// later has seen it. A server that had no room may have some at any time.
func (j *journey) failed(i int, v *view) bool {
	at, failed := j.failures[i]
	is := &v.nodes[i]
	return failed && is.at.Equal(at) && (is.err == nil || !is.reachable)
}

// trip is one visit to one node, and the context in which a connection is waited
// for: it ends with the caller's, and when the node has to be left.
type trip struct {
	context.Context // the caller's, or bounded
	*journey
	view    *view
	primary bool // or a node that serves reads
	now     time.Time
	refused error // by the guard of a node that would have served

	stint *stint

	// once guards what follows. Only who has to wait for a connection asks for
	// Done, and pays for a context that two others end.
	once   sync.Once
	merged context.Context
	cancel context.CancelFunc
	stop   func() bool
	over   atomic.Bool // merged was cancelled since the trip has ended
}

// servedBy reports whether n serves the trip, as far as is known.
func (t *trip) servedBy(n *node) bool {
	is := &t.view.nodes[n.index]
	switch {
	case t.primary && t.view.primary != n.index:
		return false
	case !t.primary && !is.reads:
		return false
	case t.failed(n.index, t.view):
		return false
	}
	return t.write || t.by.servedBy(is, t.view.primary == n.index, t.now)
}

// Done is closed when the caller's context ends, or the stint of the node.
func (t *trip) Done() <-chan struct{} {
	t.once.Do(func() {
		if t.stint == nil {
			t.merged = t.Context
			return
		}
		t.merged, t.cancel = context.WithCancel(t.Context)
		t.stop = context.AfterFunc(t.stint, t.cancel)
	})
	return t.merged.Done()
}

// Err is set as Done says: a context that was derived of t, by a hook of the
// user's too, may learn of the end of the trip, and asks why.
func (t *trip) Err() error {
	if err := t.Context.Err(); err != nil || t.stint == nil {
		return err
	}
	if err := t.stint.Err(); err != nil || !t.over.Load() {
		return err
	}
	return context.Canceled
}

func (t *trip) end() {
	t.once.Do(func() { t.merged = t.Context })
	if t.cancel != nil {
		t.over.Store(true)
		t.stop()
		t.cancel()
	}
}

var (
	errStandby  = errors.New("sqlpool: the connection is to a standby")
	errSilent   = errors.New("sqlpool: the server did not say whether it is a standby")
	errReplaced = errors.New("sqlpool: the node is not the primary any more")
	errBehind   = errors.New("sqlpool: the node has fallen behind")
)

// admit makes sure, with a connection in hand, that it is to what the trip wanted.
//
// A server may have been restarted as something else, or to an earlier position,
// since it was probed. No connection survives that: so one that is older than a
// probe of the same server is to what that probe saw, or broken. Of a younger one
// nothing is known, and n is asked again first; if that sees another server, the
// address leads elsewhere than it did, and the prober makes a new connection too.
// Time has passed as well, if the connection was waited for.
func (j *journey) admit(t *trip, n *node, s *session) error {
	if j.write {
		return j.acceptsWrites(t, n, s)
	}
	if j.by.kind == anyAge {
		return nil
	}
	if err := s.identify(j.ctx, j.c.cfg.ProbeTimeout); err != nil {
		return err
	}
	var deadline <-chan time.Time
	var redialled time.Time
	for {
		v := j.c.view.Load()
		is := &v.nodes[n.index]
		if is.at.After(s.madeAt) && is.server == s.server {
			if !j.by.servedBy(is, v.primary == n.index, time.Now()) {
				return errBehind
			}
			return nil
		}
		switch {
		case is.server == s.server:
		case redialled.IsZero():
			redialled = time.Now()
			n.redial.Store(true)
		case is.at.After(redialled):
			s.gone = true
			return errBehind
		}
		if deadline == nil {
			timer := time.NewTimer(j.c.cfg.ProbeTimeout)
			defer timer.Stop()
			deadline = timer.C
		}
		j.hurry()
		n.kick()
		select {
		case <-v.next:
		case <-deadline:
			return errBehind
		case <-t.stint.Done():
			return errBehind
		case <-j.ctx.Done():
			return j.ctx.Err()
		}
	}
}

// acceptsWrites makes sure that n is still the primary, as far as is known: time
// has passed if the connection was waited for, or a hook took it. And that the
// connection is not to a standby. PostgreSQL tells so when it is made, since
// version 14, and of a promotion with the next answer: so one that was to a
// standby is asked.
func (j *journey) acceptsWrites(t *trip, n *node, s *session) error {
	if j.c.view.Load().primary != n.index {
		return errReplaced
	}
	standby := func() bool { return s.pgx.PgConn().ParameterStatus("in_hot_standby") == "on" }
	if !standby() {
		return nil
	}
	ctx, cancel := context.WithTimeout(t, j.c.cfg.ProbeTimeout)
	defer cancel()
	err := s.pgx.Ping(ctx)
	switch {
	case j.c.view.Load().primary != n.index:
		return errReplaced
	case err == nil && !standby():
		return nil
	}
	s.gone = true
	n.readOnly()
	if err != nil {
		return errSilent
	}
	return errStandby
}
