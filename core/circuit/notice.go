package circuit

import (
	"context"
	"time"

	"github.com/surgewall/surgewall/core"
)

// notice is a change of state on its way to those who listen. It is pushed
// under the breaker's mutex, which orders it, and delivered under none.
type notice struct {
	ctx        context.Context // of the call that caused it; held until it is told
	from, to   State
	seq        uint64
	why        string
	at, lasted int64
	failures   uint64
	cause      error
}

// mergeNotices folds next into last when too many wait: the intermediate state
// is left out, and both are when they undo each other.
func mergeNotices(last *notice, next notice) (stands bool) {
	next.from, next.lasted = last.from, last.lasted
	*last = next
	return last.from != last.to
}

// deliver tells one change of state. A panic of OnStateChange is contained and
// counted by the queue, and keeps nothing from the observer.
func (b *Breaker) deliver(n notice) {
	defer b.emitChange(n)
	if f := b.settings.Load().OnStateChange; f != nil {
		f(n.from, n.to)
	}
}

func (b *Breaker) emitChange(n notice) {
	o := b.settings.Load().Observer
	if o == nil {
		return
	}
	e := core.Event{
		Kind:      core.KindStateChanged,
		Component: b.name,
		Why:       n.why,
		From:      n.from.String(),
		To:        n.to.String(),
		Seq:       n.seq,
		N:         int64(n.failures),
		At:        b.clock.Time(n.at),
		Duration:  time.Duration(n.lasted),
		ErrorType: errorType(n.cause),
	}
	if n.to == Open || n.to == ForcedOpen {
		e.Reason = core.CircuitOpen
	}
	b.emit(n.ctx, o, e)
}

// report tells of a result: first the result, then the change of state that it
// caused, which a panic or runtime.Goexit in the first does not hold up.
func (b *Breaker) report(changed bool, hears func(core.Result), r core.Result) {
	if changed {
		defer b.notices.Drain(b.tell)
	}
	if hears != nil {
		b.contain(hears, r)
	}
}

func (b *Breaker) contain(hears func(core.Result), r core.Result) {
	returned := false
	defer func() {
		if !returned {
			_ = recover() // nil after runtime.Goexit, which nothing stops
			b.panics.Add(1)
		}
	}()
	hears(r)
	returned = true
}

func (b *Breaker) emit(ctx context.Context, o core.Observer, e core.Event) {
	if !core.Emit(ctx, o, e) {
		b.panics.Add(1)
	}
}

// errorType is core.ErrorType, which calls methods of err, and so may panic.
func errorType(err error) (name string) {
	defer func() {
		if recover() != nil {
			name = "other"
		}
	}()
	return core.ErrorType(err)
}
