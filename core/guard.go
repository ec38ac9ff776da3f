package core

import "context"

// Guard admits or refuses calls. Implementations are safe for concurrent use.
type Guard interface {
	// Acquire asks to start one call. A nil error means admitted: finish the
	// Permit exactly once, by Finish, Done, DoneErr or Cancel. Otherwise the
	// error is a *Rejection and the Permit is empty.
	//
	// A guard refuses at once, unless its Config lets it wait; a wait ends
	// with ctx at the latest.
	Acquire(ctx context.Context, call Call) (Permit, error)
}

// KeyedGuard is a guard for each key: a limit per client, a breaker per
// endpoint. Implementations are safe for concurrent use, and bounded however
// many keys they are asked about.
type KeyedGuard[K comparable] interface {
	// AcquireKey is Guard's Acquire for the guard of key.
	AcquireKey(ctx context.Context, key K, call Call) (Permit, error)
}

// ForKey is the guard of key, for what takes a Guard: Do, Chain, Wrap. A nil
// keyed is a nil Guard, which admits every call.
func ForKey[K comparable](keyed KeyedGuard[K], key K) Guard {
	if keyed == nil {
		return nil
	}
	return forKey[K]{keyed, key}
}

type forKey[K comparable] struct {
	keyed KeyedGuard[K]
	key   K
}

func (g forKey[K]) Acquire(ctx context.Context, call Call) (Permit, error) {
	return g.keyed.AcquireKey(ctx, g.key, call)
}

// Call describes the call that asks to start. The zero Call is an ordinary one.
type Call struct {
	// Cost is how much of a limit the call uses, in the limit's own unit.
	// 0 means 1; a negative cost is refused by every guard that counts cost.
	Cost int

	// Priority says whom to refuse first under overload. The zero value is
	// PriorityNormal, unless the context carries another: see PriorityIn. A
	// call that is to be normal under such a context takes one that carries
	// PriorityNormal.
	Priority Priority
}

// Weight is Cost with its default: 1 for a Cost of 0.
func (c Call) Weight() int {
	if c.Cost == 0 {
		return 1
	}
	return c.Cost
}

// PriorityIn is the call's own Priority if it has one, else the one that ctx
// carries (see WithPriority), else PriorityNormal.
func (c Call) PriorityIn(ctx context.Context) Priority {
	if c.Priority != PriorityNormal {
		return c.Priority
	}
	p, _ := ctx.Value(priorityKey{}).(Priority)
	return p
}

// Priority orders calls under overload: the lowest are refused first. It is
// the program's own judgement; nothing here reads it from the network.
type Priority int8

// The priorities, lowest first.
const (
	PriorityBackground Priority = -2 // prefetch, batch: nobody waits for it
	PriorityLow        Priority = -1 // degrades the page, does not break it
	PriorityNormal     Priority = 0
	PriorityHigh       Priority = 1 // a user is waiting to pay
	PriorityCritical   Priority = 2 // health and control: refused last
)

func (p Priority) String() string {
	switch {
	case p <= PriorityBackground:
		return "background"
	case p == PriorityLow:
		return "low"
	case p == PriorityNormal:
		return "normal"
	case p == PriorityHigh:
		return "high"
	default:
		return "critical"
	}
}

type priorityKey struct{}

// WithPriority returns a context that carries p to every guard under it whose
// Call names no priority of its own.
func WithPriority(ctx context.Context, p Priority) context.Context {
	return context.WithValue(ctx, priorityKey{}, p)
}

// Ready is what a Guard may implement beside Acquire, so that a balancer can
// pass over a backend that would refuse without spending a probe on asking.
// The answer is a hint: it is cheap, has no side effect, and can be out of date
// when it is read.
type Ready interface {
	Ready() bool
}

// IsReady reports whether g would admit a call, as far as it can tell: true
// for a nil guard, and for one that does not implement Ready.
func IsReady(g Guard) bool {
	r, ok := g.(Ready)
	return !ok || r.Ready()
}

// Refuser is what a Guard that is Ready may implement beside it, so that who
// passes it over can say why, and when to try again.
type Refuser interface {
	// Refusal is the *Rejection that a call would get now, nil if it would be
	// admitted. Like Ready it is cheap, a hint, and without a side effect.
	Refusal() *Rejection
}

// RefusalOf is the *Rejection that a call would get from g now: nil if it would
// be admitted, and if g cannot tell.
func RefusalOf(g Guard) *Rejection {
	if r, ok := g.(Refuser); ok {
		return r.Refusal()
	}
	return nil
}
