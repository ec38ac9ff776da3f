package circuit

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/internal/clock"
	"github.com/surgewall/surgewall/core/internal/notify"
	"github.com/surgewall/surgewall/core/internal/stripe"
)

var (
	// ErrOpen is found by errors.Is in the rejection of an open breaker. Its
	// RetryAfter is the time until the breaker admits a probe.
	ErrOpen = errors.New("circuit: open")

	// ErrProbesTaken is found by errors.Is in the rejection of a half-open
	// breaker whose probes are all out. It has no RetryAfter: a place becomes
	// free when a probe ends.
	ErrProbesTaken = errors.New("circuit: half-open with all probes taken")
)

// Breaker is a circuit breaker: a core.Guard that learns from the results of
// its permits. It is safe for concurrent use. It has no goroutine and no timer,
// and need not be closed. It takes about 1.5 KiB, most of it counters.
//
// While it is closed, Acquire loads one word and writes nothing, and a result
// writes only a counter of its own, unless it is a failure or ends a run of
// failures. Only a change of state and the calls that a half-open breaker lets
// through take a lock.
//
// A call's result counts in the state in which the call was admitted: what was
// admitted before a change of state is counted in Stats, and changes nothing.
//
// A nil *Breaker admits every call and learns nothing.
type Breaker struct {
	// What every call reads comes first, and what calls write last: counts
	// keeps the two on different cache lines.
	word atomic.Uint64              // a word; written under mu
	open atomic.Pointer[openPeriod] // the newest; set before word says Open; written under mu

	// full is, while the breaker is half-open, the instant at which a lease
	// ends and so makes room, or 0 while there is room. Written under mu.
	full atomic.Int64

	cfg         Config
	clock       clock.Clock
	probesTaken *core.Rejection
	tell        func(notice) // b.deliver, bound once

	counts stripe.Group

	run       atomic.Uint64 // a run; takes the new generation before word does
	mu        sync.Mutex
	probes    probes // guarded by mu
	succeeded int    // guarded by mu: probes of this generation that succeeded
	since     int64  // guarded by mu: when this generation began
	trips     uint64 // guarded by mu: changes from closed to open
	reopens   uint64 // guarded by mu: changes from half-open to open
	notices   notify.Queue[notice]
	panics    atomic.Uint64
}

// openPeriod is one time of being open, and the answer to all calls in it.
type openPeriod struct {
	until     int64
	rejection *core.Rejection
}

// New makes a closed Breaker. The error lists every bad field of cfg;
// errors.Is(err, core.ErrConfig).
func New(cfg Config) (*Breaker, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	b := &Breaker{
		cfg:   cfg,
		clock: clock.New(),
		probesTaken: &core.Rejection{
			Guard: cfg.Name, Reason: core.ProbesTaken, Err: ErrProbesTaken,
		},
	}
	b.tell = b.deliver
	b.notices.Merge = mergeNotices
	return b, nil
}

// Acquire admits the call or refuses it at once, with ErrOpen or
// ErrProbesTaken. The first call after the open time is a probe. The cost of a
// call does not matter. Acquire allocates nothing, unless it changes the state.
//
// A permit that was copied and finished twice counts twice, but a probe's once.
func (b *Breaker) Acquire(ctx context.Context, call core.Call) (core.Permit, error) {
	if b == nil {
		return core.Permit{}, nil
	}
	if w := b.load(); w.state() == Closed {
		return b.permit(w, 0), nil
	}
	return b.acquireGuarded(ctx, call)
}

// acquireGuarded is Acquire while the breaker is not closed.
func (b *Breaker) acquireGuarded(ctx context.Context, call core.Call) (core.Permit, error) {
	for {
		w := b.load()
		if w.state() == Closed {
			return b.permit(w, 0), nil
		}
		now := b.clock.Now()
		if w.state() == Open {
			if open := b.open.Load(); now < open.until {
				return b.refuse(ctx, call, countOpen, open.rejection)
			}
			// What listens is told before a place is taken, so that no probe
			// waits for a listener. This call then asks again.
			b.halfOpen(ctx, w, now)
			b.notices.Drain(b.tell)
			continue
		}
		if now < b.full.Load() {
			return b.refuse(ctx, call, countProbes, b.probesTaken)
		}
		switch id, current := b.probe(w, now); {
		case id != 0:
			return b.permit(w, id), nil
		case current:
			return b.refuse(ctx, call, countProbes, b.probesTaken)
		}
	}
}

func (b *Breaker) permit(w word, probe uint64) core.Permit {
	return core.NewPermit(b, core.Token{A: uint64(w), B: probe}, core.WantsResult)
}

func (b *Breaker) refuse(ctx context.Context, call core.Call, counter int, r *core.Rejection) (core.Permit, error) {
	b.counts.Add(counter, 1)
	if b.cfg.Observer != nil {
		b.emit(ctx, core.Event{
			Kind: core.KindRejected, Component: b.cfg.Name, Reason: r.Reason, N: int64(call.Weight()),
		})
	}
	return core.Permit{}, r
}

// probe takes a place among the probes of w. current is false if the state has
// changed since w was loaded.
func (b *Breaker) probe(w word, now int64) (id uint64, current bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.load() != w {
		return 0, false
	}
	id, _ = b.probes.take(now, after(now, b.cfg.ProbeLease), b.cfg.Probes)
	b.full.Store(b.probes.fullUntil(b.cfg.Probes))
	return id, true
}

// FinishPermit is core.Finisher's, and called by permits only.
func (b *Breaker) FinishPermit(ctx context.Context, t core.Token, r core.Result) {
	b.counts.Add(counted(r.Outcome), 1)
	changed := b.book(ctx, word(t.A), t.B, r)
	hears := b.cfg.OnFailure
	switch r.Outcome {
	case core.Success:
		hears = b.cfg.OnSuccess
	case core.Failure, core.Throttled:
	default:
		hears = nil
	}
	if changed || hears != nil {
		b.report(changed, hears, r)
	}
}

// CancelPermit is core.Finisher's, and called by permits only. A probe's place
// goes back; nothing is counted.
func (b *Breaker) CancelPermit(t core.Token) {
	if w := word(t.A); w.state() == HalfOpen {
		b.bookProbe(context.Background(), w, t.B, core.Result{})
	}
}

// book lets a result change the state, and reports whether it did.
func (b *Breaker) book(ctx context.Context, w word, probe uint64, r core.Result) (changed bool) {
	switch {
	case w.state() == HalfOpen:
		return b.bookProbe(ctx, w, probe, r)
	case r.Outcome == core.Success:
		b.endRun(w)
	case r.Outcome == core.Failure:
		if n := b.extendRun(w); n >= b.cfg.FailureThreshold {
			return b.trip(ctx, w, n, r)
		}
	}
	return false
}

// endRun forgets the failures in a row.
func (b *Breaker) endRun(w word) {
	for {
		old := run(b.run.Load())
		if old.failures() == 0 || !old.of(w) {
			return
		}
		if b.run.CompareAndSwap(uint64(old), uint64(makeRun(w.generation(), 0))) {
			return
		}
	}
}

// extendRun counts a failure, and returns how many there are in a row: 0 if the
// generation is over.
func (b *Breaker) extendRun(w word) int {
	for {
		old := run(b.run.Load())
		if !old.of(w) {
			return 0
		}
		n := old.failures() + 1
		if b.run.CompareAndSwap(uint64(old), uint64(makeRun(w.generation(), n))) {
			return n
		}
	}
}

// bookProbe books the result of a probe. One that was finished before, by a
// copy of its permit, or is of another generation changes nothing.
func (b *Breaker) bookProbe(ctx context.Context, w word, id uint64, r core.Result) (changed bool) {
	now := b.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.load() != w || !b.probes.end(id) {
		return false
	}
	b.full.Store(b.probes.fullUntil(b.cfg.Probes))
	switch r.Outcome {
	case core.Success:
		if b.succeeded++; b.succeeded < b.cfg.SuccessThreshold {
			return false
		}
		b.changeLocked(ctx, now, Closed, 0, nil)
	case core.Failure, core.Throttled:
		b.reopens++
		b.changeLocked(ctx, now, Open, 1, r.Err)
	default:
		return false
	}
	return true
}

// trip opens the breaker that w says is closed.
func (b *Breaker) trip(ctx context.Context, w word, failures int, r core.Result) (changed bool) {
	now := b.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.load() != w {
		return false
	}
	b.trips++
	b.changeLocked(ctx, now, Open, failures, r.Err)
	return true
}

// halfOpen lets probes begin, if the breaker is still open as w says.
func (b *Breaker) halfOpen(ctx context.Context, w word, now int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.load() == w && now >= b.open.Load().until {
		b.changeLocked(ctx, now, HalfOpen, 0, nil)
	}
}

// changeLocked begins a new generation, in another state. The word is written
// last: whoever reads it finds the rest in place.
func (b *Breaker) changeLocked(ctx context.Context, now int64, to State, failures int, cause error) {
	from := b.load()
	now = max(now, b.since) // it was read before the lock was taken
	next := makeWord(from.generation()+1, to)
	b.notices.Push(notice{
		ctx: ctx, from: from.state(), to: to, seq: next.generation(),
		at: now, lasted: now - b.since, failures: failures, cause: cause,
	})
	b.since, b.succeeded = now, 0
	b.probes.clear()
	b.full.Store(0)
	if to == Open {
		until := after(now, b.cfg.OpenFor)
		b.open.Store(&openPeriod{until, &core.Rejection{
			Guard: b.cfg.Name, Reason: core.CircuitOpen, Err: ErrOpen, RetryAt: b.clock.Time(until),
		}})
	}
	b.run.Store(uint64(makeRun(next.generation(), 0)))
	b.word.Store(uint64(next))
}

func (b *Breaker) load() word { return word(b.word.Load()) }

// after is d after now, or the end of time.
func after(now int64, d time.Duration) int64 {
	if int64(d) > math.MaxInt64-now {
		return math.MaxInt64
	}
	return now + int64(d)
}
