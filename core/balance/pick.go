package balance

import (
	"context"
	"time"

	"github.com/surgewall/surgewall/core"
)

// PickInfo is what a Policy and the backends' guards are told of a call. The
// zero PickInfo is an ordinary call.
type PickInfo struct {
	// Call is what the backends' guards are asked with.
	Call core.Call

	// Tried, if set, holds backends that are not to be picked: those that
	// earlier attempts of the same call went to.
	Tried *Tried
}

// Tried remembers the backends that the attempts of one call went to, so that a
// retry goes to another. It holds the last 8. The zero Tried is empty; it is
// used by one goroutine at a time, with one Balancer.
type Tried struct {
	nodes [maxTried]*node
	n     int
}

const maxTried = 8

func (t *Tried) add(n *node) {
	t.nodes[t.n%maxTried] = n
	t.n++
}

func (t *Tried) has(n *node) bool {
	if t == nil {
		return false
	}
	for _, tried := range t.nodes[:min(t.n, maxTried)] {
		if tried == n {
			return true
		}
	}
	return false
}

// Pick picks a backend for one call. A nil error means that the Lease is to be
// finished exactly once. Otherwise the error is a *core.Rejection, at once:
//
//   - ErrNoBackend when the list is empty,
//   - ErrAllTried when a backend that could take the call is in info.Tried,
//   - ErrNoneHealthy when none could; the Cause is the refusal of the guard
//     that will admit first, as far as the guards tell, and RetryAt is when,
//     if each of them does,
//   - the refusal of a backend's guard if ctx is done by then.
//
// A pick asks each backend at most once. It allocates nothing, unless it is
// refused for a new Cause.
func (b *Balancer[T]) Pick(ctx context.Context, info PickInfo) (Lease[T], error) {
	s := b.snap.Load()
	var a *asked
	var no verdict
	for i := s.table.next(nil); i >= 0; i = s.table.next(a) {
		m := s.eligible[i]
		if passOver(&no, i, m, info.Tried) {
			a = b.note(a, len(s.eligible), i)
			continue
		}
		if m.Guard == nil {
			b.forget(a)
			return newLease(m, &core.Permit{}), nil
		}
		p, err := m.Guard.Acquire(ctx, info.Call)
		if err == nil {
			b.forget(a)
			return newLease(m, &p), nil
		}
		if ctx.Err() != nil {
			b.forget(a)
			return Lease[T]{}, err
		}
		no.refused(i, err)
		a = b.note(a, len(s.eligible), i)
	}
	b.forget(a)
	return Lease[T]{}, b.refuse(ctx, s, &no, info.Call)
}

// Do picks a backend, runs fn with it, and finishes the lease however fn ends:
// with what DoneErr makes of its error, or as a failure with core.ErrNoReturn
// if it panics or calls runtime.Goexit. The error is fn's, or Pick's if fn was
// not run.
func (b *Balancer[T]) Do(ctx context.Context, fn func(context.Context, T) error) error {
	l, err := b.Pick(ctx, PickInfo{})
	if err != nil {
		return err
	}
	defer l.Finish(ctx, core.Result{Outcome: core.Failure, Err: core.ErrNoReturn})
	left := core.TimeLeft(ctx)
	err = fn(ctx, l.Value())
	l.DoneErrLeft(ctx, err, left)
	return err
}

// note adds i to what the pick has asked.
func (b *Balancer[T]) note(a *asked, n, i int) *asked {
	if a == nil {
		if a, _ = b.asked.Get().(*asked); a == nil {
			a = &asked{}
		}
		a.reset(n, i)
	}
	a.add(i)
	return a
}

func (b *Balancer[T]) forget(a *asked) {
	if a != nil {
		b.asked.Put(a)
	}
}

// verdict is why a pick has found nothing so far.
type verdict struct {
	tried    bool            // a backend is excluded by Tried alone
	timeless bool            // a backend said no without an instant to return at
	cause    *core.Rejection // the refusal that ends first; of several, the first backend's
	causeOf  int             // the index of the backend that cause is of
}

// passOver reports whether a backend is not to be asked, and notes why in v. One
// that was tried and would refuse besides does not count as tried.
func passOver[T any](v *verdict, i int, m *member[T], tried *Tried) bool {
	if m.ready != nil && !m.ready.Ready() {
		var would *core.Rejection
		if m.refuser != nil {
			would = m.refuser.Refusal()
		}
		if would != nil {
			v.refused(i, would)
		} else {
			v.timeless = true
		}
		return true
	}
	if tried.has(m.node) {
		v.tried = true
		return true
	}
	return false
}

// refused notes the refusal of the guard of backend i.
func (v *verdict) refused(i int, err error) {
	r, ok := err.(*core.Rejection) // not one that err wraps: it is compared below
	if !ok {
		v.timeless = true
		return
	}
	if r.RetryAt.IsZero() {
		v.timeless = true
	}
	if v.cause == nil || sooner(r, v.cause) || i < v.causeOf && !sooner(v.cause, r) {
		v.cause, v.causeOf = r, i
	}
}

// sooner reports whether a is known to end before b.
func sooner(a, b *core.Rejection) bool {
	return !a.RetryAt.IsZero() && (b.RetryAt.IsZero() || a.RetryAt.Before(b.RetryAt))
}

// refusal is one of the ways in which a pick finds nothing.
type refusal uint8

const (
	noBackend refusal = iota
	noneHealthy
	allTried
	refusalCount
)

func (r refusal) sentinel() error {
	return [...]error{ErrNoBackend, ErrNoneHealthy, ErrAllTried}[r]
}

func (r refusal) String() string {
	return [...]string{"no_backend", "none_healthy", "all_tried"}[r]
}

// refuse counts and tells a pick that found nothing. The error is the same one
// while neither the snapshot nor the cause changes.
func (b *Balancer[T]) refuse(ctx context.Context, s *snapshot[T], no *verdict, call core.Call) error {
	why := noneHealthy
	switch {
	case len(s.members) == 0:
		why = noBackend
	case no.tried:
		why = allTried
	}
	b.refused[why].Add(1)
	core.Emit(ctx, b.observer, core.Event{
		Kind: core.KindRejected, Component: b.name, Reason: core.NoBackend, N: int64(call.Weight()),
	})
	r := s.refusals[why]
	if why != noneHealthy || no.cause == nil {
		return r
	}
	var at time.Time // known only if each backend that could come back said when
	if !no.timeless && len(s.eligible) == len(s.members) {
		at = no.cause.RetryAt
	}
	last := s.guarded.Load()
	if last == nil || last.Cause != no.cause || !last.RetryAt.Equal(at) {
		with := *r
		with.Cause, with.RetryAt = no.cause, at
		last = &with
		s.guarded.Store(last)
	}
	return last
}
