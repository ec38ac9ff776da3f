package core

import (
	"context"
	"time"
)

// Kind is what an Event tells of. The set is closed.
type Kind uint8

const (
	// KindRejected: a guard refused a call. Reason, and N, the call's cost.
	KindRejected Kind = iota + 1

	// KindShadowed: a guard in a shadow would have refused. Reason, and N, the
	// call's cost.
	KindShadowed

	// KindStateChanged: a breaker changed its state. From, To, Seq; Why is the
	// condition, Duration how long From lasted; N is the number of calls that
	// tripped it, Reason is CircuitOpen when To refuses calls, ErrorType the
	// class of the error that tripped it. Or a node of a cluster changed its role:
	// Backend is the node.
	KindStateChanged

	// KindBackendChanged: a backend of a balancer changed its state. Backend,
	// From, To, Seq; Duration is how long From lasted.
	KindBackendChanged

	// KindAcquired: a pool handed out a resource. Duration is the wait. Sent
	// only while Enabled says so.
	KindAcquired

	// KindReleased: a resource came back to its pool. Duration is how long it
	// was out. Sent only while Enabled says so.
	KindReleased

	// KindAcquireFailed: a pool handed out nothing. Reason; Duration is the wait.
	KindAcquireFailed

	// KindCreated: a pool made a resource. Duration is how long that took;
	// ErrorType is set when it failed.
	KindCreated

	// KindDestroyed: a pool closed a resource. To is why: "lifetime", "idle",
	// "broken", "unhealthy", "reset", "resize", "closed". Duration is its age.
	KindDestroyed

	// KindHeld: a resource has been out of its pool for longer than it should,
	// which may be a leak. Duration is how long it has been out.
	KindHeld

	// KindRetried: a call that failed is tried again. N is the number of the
	// attempt that failed, from 1, or 0 where another counts them; ErrorType is
	// the class of its error, Duration the pause before the next.
	KindRetried

	// KindPaused: a limiter was stopped, since somebody asked for it. Duration
	// is for how long, 0 when the pause was ended.
	KindPaused

	// KindReconfigured: a component was given new settings.
	KindReconfigured

	kindCount
)

var kindNames = [kindCount]string{
	KindRejected:       "rejected",
	KindShadowed:       "shadowed",
	KindStateChanged:   "state_changed",
	KindBackendChanged: "backend_changed",
	KindAcquired:       "acquired",
	KindReleased:       "released",
	KindAcquireFailed:  "acquire_failed",
	KindCreated:        "created",
	KindDestroyed:      "destroyed",
	KindHeld:           "held",
	KindRetried:        "retried",
	KindPaused:         "paused",
	KindReconfigured:   "reconfigured",
}

func (k Kind) String() string {
	if k < kindCount && kindNames[k] != "" {
		return kindNames[k]
	}
	return "unknown"
}

// Event is one rare happening. It is passed by value and holds constants of
// this module and names from the program's configuration: never a key, an
// address, an error's text or anything else that a user sent, so all of it is
// safe as an attribute of a metric. Each Kind says which fields it fills.
type Event struct {
	Kind      Kind
	Reason    Reason
	Component string // the component's configured name
	Backend   string // the backend's configured name
	From, To  string // names of states
	Why       string // what led from one to the other, of a few constants
	ErrorType string // see ErrorType
	Seq       uint64 // orders the changes of state of one component, from 1
	N         int64
	At        time.Time // when it happened; zero means when it was observed
	Duration  time.Duration
}

// Observer hears events. Both methods are called concurrently, from the
// goroutines of the calls that caused the events, and never under a lock.
// Changes of state arrive in order, one at a time for each component.
//
// An Observer should not block: the call that caused the event waits for it,
// though no other does. A panic in it is contained.
type Observer interface {
	// Enabled reports whether events of this Kind are wanted. It is cheap and
	// asked often; its answer may change.
	Enabled(Kind) bool

	// Observe hears one event. ctx is that of the call that caused it, which
	// may be done.
	Observe(ctx context.Context, e Event)
}

// Emit sends e to o, if o is not nil and wants it, and contains a panic of o.
// It reports whether o returned. It is for authors of components, who call it
// after their locks are released and their state is published.
func Emit(ctx context.Context, o Observer, e Event) (returned bool) {
	if o == nil {
		return true
	}
	return emit(ctx, o, e)
}

func emit(ctx context.Context, o Observer, e Event) (returned bool) {
	defer func() {
		if !returned {
			// nil when the observer called runtime.Goexit, which nothing stops.
			_ = recover()
		}
	}()
	if o.Enabled(e.Kind) {
		o.Observe(ctx, e)
	}
	return true
}

// Hears reports whether o wants events of kind k. A component asks it before it
// measures what only that event needs.
// A panic of o is contained, and means no.
func Hears(o Observer, k Kind) bool {
	return o != nil && hears(o, k)
}

func hears(o Observer, k Kind) (wanted bool) {
	returned := false
	defer func() {
		if !returned {
			_ = recover() // as in emit
		}
	}()
	wanted = o.Enabled(k)
	returned = true
	return wanted
}

// Observers makes one Observer of several, which hear each event in order; a
// panic in one does not keep it from the others. Nil observers are left out,
// and the result is nil when none is left.
func Observers(observers ...Observer) Observer {
	var all observerList
	for _, o := range observers {
		switch o := o.(type) {
		case nil:
		case observerList:
			all = append(all, o...)
		default:
			all = append(all, o)
		}
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return all
}

type observerList []Observer

func (l observerList) Enabled(k Kind) bool {
	for _, o := range l {
		if hears(o, k) {
			return true
		}
	}
	return false
}

func (l observerList) Observe(ctx context.Context, e Event) {
	for _, o := range l {
		emit(ctx, o, e)
	}
}
