package sqlpool

import (
	"context"
	"sync"

	"github.com/surgewall/surgewall/core"
)

// herald tells the observer of changes, in order, on a goroutine of its own: what
// probes the nodes must not wait for an observer.
type herald struct {
	observer core.Observer
	ready    chan struct{} // holds one: something is pending, or it is closed

	mu      sync.Mutex
	pending []core.Event // guarded by mu, oldest first
	closed  bool         // guarded by mu
}

// maxPending is how many events wait behind an observer that does not return.
// Then the next are dropped; their Seq is missing.
const maxPending = 256

func newHerald(o core.Observer) *herald {
	return &herald{observer: o, ready: make(chan struct{}, 1)}
}

func (h *herald) push(e core.Event) {
	if h.observer == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.pending) < maxPending {
		h.pending = append(h.pending, e)
	}
}

// wake has what is pending told.
func (h *herald) wake() {
	select {
	case h.ready <- struct{}{}:
	default:
	}
}

// close has the goroutine end when all is told.
func (h *herald) close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.wake()
}

// run is the goroutine. It goes on where another ended that its observer exited.
func (h *herald) run() {
	for {
		e, ok, closed := h.pop()
		switch {
		case ok:
			core.Emit(context.Background(), h.observer, e)
		case closed:
			return
		default:
			<-h.ready
		}
	}
}

func (h *herald) pop() (e core.Event, ok, closed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.pending) == 0 {
		h.pending = nil
		return core.Event{}, false, h.closed
	}
	e = h.pending[0]
	h.pending = h.pending[1:]
	return e, true, h.closed
}

// backends is what the balancer tells of its changes. Of the picks that find
// nothing the cluster tells itself, when nothing else was found either.
func (h *herald) backends() core.Observer {
	if h.observer == nil {
		return nil
	}
	return backendChanges{h}
}

type backendChanges struct{ h *herald }

func (backendChanges) Enabled(k core.Kind) bool { return k == core.KindBackendChanged }

func (b backendChanges) Observe(_ context.Context, e core.Event) { b.h.push(e) }

// tellRoles notes the changes from old to v for the observer. mu is held.
func (c *Cluster) tellRoles(old, v *view) {
	for i := range v.nodes {
		was, is := &old.nodes[i], &v.nodes[i]
		if was.role == is.role {
			continue
		}
		c.seq++
		e := core.Event{
			Kind: core.KindStateChanged, Component: c.cfg.Name, Backend: c.nodes[i].name,
			From: was.role.String(), To: is.role.String(), Seq: c.seq, At: is.since,
		}
		if !was.since.IsZero() {
			e.Duration = is.since.Sub(was.since)
		}
		if is.role == RoleUnreachable {
			e.ErrorType = is.errType
		}
		c.herald.push(e)
	}
}
