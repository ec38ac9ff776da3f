package balance

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
)

// snapshot is the backends at one moment. Nothing in it changes, but for the
// counts that its nodes share with earlier and later snapshots.
type snapshot[T any] struct {
	members  []*member[T] // all, in the order given
	eligible []*member[T] // those that may be picked, in the same order
	table    table        // the policy's choice among the eligible

	refusals [refusalCount]*core.Rejection
	guarded  atomic.Pointer[core.Rejection] // the last refusal that had a cause
}

// member is a backend in a snapshot.
type member[T any] struct {
	*node
	Backend[T]
	ready   core.Ready   // the Guard's, or nil
	refuser core.Refuser // likewise
	state   state
	since   int64 // on the Balancer's clock: when it came into state
}

// node is what lasts of a backend while its ID stays in the list. A backend
// that was removed and is added again has a new node, so what is still out on
// the old one reports to nobody.
type node struct {
	_ [128]byte // processors fetch lines in pairs: share none with a neighbour
	counts
	_ [128]byte
}

// counts says all there is to say of a backend's calls with two writes for
// each: those in flight are the picks that have not ended.
type counts struct {
	picks atomic.Uint64
	ends  [endCount]atomic.Uint64
}

// An end is how a lease was finished: a core.Outcome, or cancelled.
type end uint8

const (
	cancelled = end(core.Throttled) + 1
	endCount  = cancelled + 1
)

// inFlight is never negative: what ends meanwhile was picked before.
func (c *counts) inFlight() int64 {
	var ended uint64
	for i := range c.ends {
		ended += c.ends[i].Load()
	}
	return int64(c.picks.Load() - ended)
}

// state is what a backend is marked as.
type state uint8

const (
	healthy state = iota
	unhealthy
)

func (s state) String() string {
	if s == healthy {
		return "healthy"
	}
	return "unhealthy"
}

// removed is the name of the state that a backend which left is in.
const removed = "removed"

func newMember[T any](b Backend[T], n *node, s state, since int64) *member[T] {
	m := &member[T]{node: n, Backend: b, state: s, since: since}
	m.ready, _ = b.Guard.(core.Ready)
	m.refuser, _ = b.Guard.(core.Refuser)
	return m
}

// weight is Weight with its default.
func (m *member[T]) weight() int { return max(1, m.Weight) }

// SetHealthy marks a backend. An unhealthy one is not picked, and its share is
// spread evenly over the others; calls that are out on it are left alone. It
// reports whether there is a backend with that ID.
func (b *Balancer[T]) SetHealthy(id string, isHealthy bool) (known bool) {
	to := unhealthy
	if isHealthy {
		to = healthy
	}
	known = b.mark(id, to)
	b.tell()
	return known
}

func (b *Balancer[T]) mark(id string, to state) (known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.snap.Load().members
	i := slices.IndexFunc(old, func(m *member[T]) bool { return m.ID == id })
	if i < 0 {
		return false
	}
	if m := old[i]; m.state != to {
		now := b.clock.Now()
		members := slices.Clone(old)
		members[i] = newMember(m.Backend, m.node, to, now)
		b.publish(members)
		b.changed(id, m.state.String(), to.String(), now, m.since)
	}
	return true
}

// Backends is a copy of the list as it is now.
func (b *Balancer[T]) Backends() []Backend[T] {
	members := b.snap.Load().members
	list := make([]Backend[T], len(members))
	for i, m := range members {
		list[i] = m.Backend
	}
	return list
}

// Update replaces the list of backends. One whose ID was in the list before
// keeps its health, its counts and what is in flight, and takes on the new
// Value, Weight and Guard; a new one begins as healthy; one that is gone is
// picked no more, and leases that are out on it finish as they would have. A
// backend that comes back later begins anew, whatever is still out from before.
//
// The error is that of New, and then nothing has changed.
func (b *Balancer[T]) Update(backends []Backend[T]) error {
	if err := check(backends, b.allowEmpty); err != nil {
		return err
	}
	b.replace(backends)
	b.tell()
	return nil
}

func (b *Balancer[T]) replace(backends []Backend[T]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.clock.Now()
	old := b.snap.Load().members
	gone := make(map[string]*member[T], len(old))
	for _, m := range old {
		gone[m.ID] = m
	}
	members := make([]*member[T], len(backends))
	var added []string
	for i, backend := range backends {
		if m, ok := gone[backend.ID]; ok {
			delete(gone, backend.ID)
			members[i] = newMember(backend, m.node, m.state, m.since)
			continue
		}
		members[i] = newMember(backend, &node{}, healthy, now)
		added = append(added, backend.ID)
	}
	b.publish(members)
	for _, m := range old {
		if gone[m.ID] != nil {
			b.changed(m.ID, m.state.String(), removed, now, m.since)
		}
	}
	for _, id := range added {
		b.changed(id, "", healthy.String(), now, now)
	}
}

// publish makes members what picks choose from. b.mu is held, except in New.
func (b *Balancer[T]) publish(members []*member[T]) {
	s := &snapshot[T]{members: members}
	for _, m := range members {
		if m.state == healthy {
			s.eligible = append(s.eligible, m)
		}
	}
	candidates := make([]candidate, len(s.eligible))
	for i, m := range s.eligible {
		candidates[i] = candidate{m.node, uint64(m.weight())}
	}
	var old table
	if before := b.snap.Load(); before != nil {
		old = before.table
	}
	s.table = b.policy.table(candidates, old)
	detail := fmt.Sprintf("%d backends, %d marked unhealthy", len(members), len(members)-len(s.eligible))
	if n := len(s.eligible); n > 0 {
		detail += fmt.Sprintf(", %d refused by their guards or tried", n)
	}
	for r := range s.refusals {
		s.refusals[r] = &core.Rejection{
			Guard: b.name, Reason: core.NoBackend, Err: refusal(r).sentinel(), Detail: detail,
		}
	}
	b.snap.Store(s)
}

// changed notes a change for the observer. b.mu is held, so that the order of
// the notices is that of the changes.
func (b *Balancer[T]) changed(id, from, to string, now, since int64) {
	b.seq++
	if b.observer != nil {
		b.changes.Push(core.Event{
			Kind: core.KindBackendChanged, Component: b.name, Backend: id, From: from, To: to,
			Seq: b.seq, At: b.clock.Time(now), Duration: time.Duration(now - since),
		})
	}
}

// tell delivers what was noted. b.mu is not held.
func (b *Balancer[T]) tell() {
	b.changes.Drain(func(e core.Event) { core.Emit(context.Background(), b.observer, e) })
}

// mergeChanges folds changes of one backend into one while an observer that
// does not return lets them pile up. A change of another backend that no longer
// fits is dropped; its Seq is missing then.
func mergeChanges(last *core.Event, next core.Event) bool {
	if last.Backend != next.Backend {
		return true
	}
	last.To, last.Seq = next.To, next.Seq
	return last.From != last.To
}
