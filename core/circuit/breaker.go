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
	// ErrOpen is found by errors.Is in the rejection of a breaker that is open,
	// by itself or by ForceOpen. Its RetryAfter is the time until the breaker
	// admits a probe; there is none if it is forced open until ClearForce.
	ErrOpen = errors.New("circuit: open")

	// ErrProbesTaken is found by errors.Is in the rejection of a half-open
	// breaker whose probes are all out. It has no RetryAfter: a place becomes
	// free when a probe ends.
	ErrProbesTaken = errors.New("circuit: half-open with all probes taken")

	// ErrRamping is found by errors.Is in the rejection of a breaker that has
	// closed and does not admit all calls yet: see Config.RampFor. Its RetryAfter
	// is the time until it does.
	ErrRamping = errors.New("circuit: closed, and not yet for every call")
)

// Breaker is a circuit breaker: a core.Guard that learns from the results of
// its permits. It is safe for concurrent use. It has no goroutine and no timer,
// and need not be closed. It takes about 1.7 KiB, most of it counters, and with
// rates over a Window or 100 calls about 1.9 KiB.
//
// While it is closed and knows no rates, Acquire loads one word and writes nothing,
// and a result writes only a counter of its own, unless it is a failure or ends a
// run of failures. A Window costs a reading of the clock, and SlowCall another. Only
// a change of state, the calls that a half-open breaker lets through, and a window
// of calls take a lock.
//
// A call's result counts in the state in which the call was admitted: what was
// admitted before a change of state is counted in Stats, and changes nothing. It
// counts when the call ends, so a call that hangs longer than the Window counts
// too.
//
// A nil *Breaker admits every call and learns nothing.
type Breaker struct {
	// What every call reads comes first, and what calls write last: counts
	// keeps the two on different cache lines.
	word     atomic.Uint64            // a word; written under mu
	settings atomic.Pointer[settings] // written under mu
	open     atomic.Pointer[period]   // the newest; set before word says Open or ForcedOpen; written under mu
	ramp     atomic.Pointer[ramp]     // the newest; set before word says ramping; written under mu

	// full is, while the breaker is half-open, the instant at which a lease
	// ends and so makes room, or 0 while there is room. Written under mu.
	full atomic.Int64

	name        string
	clock       clock.Clock
	probesTaken *core.Rejection
	tell        func(notice) // b.deliver, bound once

	counts stripe.Group // calls of the generation that was current when they ended

	run       atomic.Uint64    // a run; takes the new generation before word does
	late      [5]atomic.Uint64 // calls of an older generation, as in counts
	mu        sync.Mutex
	probes    probes // guarded by mu
	succeeded int    // guarded by mu: probes of this generation that succeeded
	failed    int    // guarded by mu: and that failed
	streak    int    // guarded by mu: how often in turn probes have failed
	since     int64  // guarded by mu: when this generation began
	below     below  // guarded by mu: what a force has covered
	trips     uint64 // guarded by mu: changes from closed to open
	reopens   uint64 // guarded by mu: changes from half-open to open
	wouldTrip uint64 // guarded by mu: while MetricsOnly
	notices   notify.Queue[notice]
	panics    atomic.Uint64
}

// period is one time of being open, and the answer to all calls in it.
type period struct {
	until     int64
	rejection *core.Rejection
}

// New makes a closed Breaker. The error lists every bad field of cfg;
// errors.Is(err, core.ErrConfig).
func New(cfg Config) (*Breaker, error) {
	given := cfg
	cfg = cfg.withDefaults()
	if err := cfg.check(given); err != nil {
		return nil, err
	}
	b := &Breaker{
		name:  cfg.Name,
		clock: clock.New(),
		probesTaken: &core.Rejection{
			Guard: cfg.Name, Reason: core.ProbesTaken, Err: ErrProbesTaken,
		},
	}
	b.tell = b.deliver
	b.notices.Merge = mergeNotices
	s := newSettings(b, cfg, nil)
	b.settings.Store(s)
	b.word.Store(uint64(makeWord(0, Closed, s.flags())))
	return b, nil
}

// Acquire admits the call or refuses it at once, with ErrOpen, ErrProbesTaken or
// ErrRamping. The first call after the open time is a probe. The cost of a
// call does not matter. Acquire allocates nothing, unless it changes the state.
//
// A permit that was copied and finished twice counts twice, but a probe's only in
// Stats.
func (b *Breaker) Acquire(ctx context.Context, call core.Call) (core.Permit, error) {
	if b == nil {
		return core.Permit{}, nil
	}
	if w := b.load(); w&careful == 0 {
		return core.NewPermit(b, core.Token{A: uint64(w)}, core.WantsResult), nil
	}
	return b.acquireCarefully(ctx, call)
}

// acquireCarefully is Acquire where that is more than to admit.
func (b *Breaker) acquireCarefully(ctx context.Context, call core.Call) (core.Permit, error) {
	for {
		w, now := b.load(), b.clock.Now()
		switch w.state() {
		case Open, ForcedOpen:
			if open := b.open.Load(); now < open.until {
				return b.refuse(ctx, call, countOpen, open.rejection)
			}
			// What listens is told before a place is taken, so that no probe
			// waits for a listener. This call then asks again.
			b.endOpen(ctx, w, now)
			b.notices.Drain(b.tell)
		case HalfOpen:
			if now < b.full.Load() {
				return b.refuse(ctx, call, countProbes, b.probesTaken)
			}
			switch id, current := b.probe(w, now); {
			case id != 0:
				return core.NewPermit(b, core.Token{A: uint64(w), B: id}, core.WantsResult), nil
			case current:
				return b.refuse(ctx, call, countProbes, b.probesTaken)
			}
		default:
			if w&ramping != 0 {
				if r := b.ramp.Load(); now >= r.end {
					b.endRamp(w)
				} else if !r.admit(now) {
					return b.refuse(ctx, call, countRamp, r.rejection)
				}
			}
			return core.NewPermit(b, core.Token{A: uint64(w), B: uint64(now)}, core.WantsResult), nil
		}
	}
}

func (b *Breaker) refuse(ctx context.Context, call core.Call, counter int, r *core.Rejection) (core.Permit, error) {
	b.counts.Add(counter, 1)
	if o := b.settings.Load().Observer; o != nil {
		b.emit(ctx, o, core.Event{
			Kind: core.KindRejected, Component: b.name, Reason: r.Reason, N: int64(call.Weight()),
		})
	}
	return core.Permit{}, r
}

// probe takes a place among the probes of w. current is false if the state has
// changed since w was loaded.
func (b *Breaker) probe(w word, now int64) (id uint64, current bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.current(w) {
		return 0, false
	}
	s := b.settings.Load()
	id, _ = b.probes.take(now, after(now, s.ProbeLease), s.Probes)
	b.full.Store(b.probes.fullUntil(s.Probes))
	return id, true
}

// FinishPermit is core.Finisher's, and called by permits only.
func (b *Breaker) FinishPermit(ctx context.Context, t core.Token, r core.Result) {
	w, s := word(t.A), b.settings.Load()
	if r.Outcome > core.Throttled {
		r.Outcome = core.Ignored // there is no such Outcome
	}
	if s.simple && r.Outcome == core.Success && w.state() == Closed && b.current(w) {
		if !s.Uncounted {
			b.counts.Add(countSuccess, 1)
		}
		b.endRun(w)
		return
	}
	if w.state() == Disabled {
		return
	}
	changed := b.book(ctx, s, w, t.B, r)
	hears := s.OnFailure
	switch r.Outcome {
	case core.Success:
		hears = s.OnSuccess
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
		b.bookProbe(context.Background(), w, t.B, core.Result{}, true)
	}
}

// book counts a result and lets it change the state, and reports whether it did.
// mark is the token's B: a probe's number, or when the call began.
func (b *Breaker) book(ctx context.Context, s *settings, w word, mark uint64, r core.Result) (changed bool) {
	if w.state() == HalfOpen {
		return b.bookProbe(ctx, w, mark, r, false)
	}
	slow := false
	if s.Window > 0 || w&timed != 0 {
		now := b.clock.Now()
		slow = w&timed != 0 && s.isSlow(r, now-int64(mark))
		if s.window != nil {
			s.window.tick(now)
		}
	}
	if !b.count(w, r.Outcome, slow) || !w.state().judges() {
		return false
	}
	return b.judge(ctx, s, w, r, slow)
}

// isSlow is for a call that ended so long after it was admitted.
func (s *settings) isSlow(r core.Result, took int64) bool {
	if r.Latency > 0 {
		took = int64(r.Latency)
	}
	return s.SlowCall > 0 && r.Outcome != core.Ignored && took >= int64(s.SlowCall)
}

// count counts a call, and reports whether it is of this generation.
func (b *Breaker) count(w word, o core.Outcome, slow bool) (current bool) {
	if current = b.current(w); current {
		b.counts.Add(counted(o), 1)
		if slow {
			b.counts.Add(countSlow, 1)
		}
		return true
	}
	b.late[counted(o)].Add(1)
	if slow {
		b.late[countSlow].Add(1)
	}
	return false
}

// judge lets a result of this generation open the breaker, and reports whether it
// did.
func (b *Breaker) judge(ctx context.Context, s *settings, w word, r core.Result, slow bool) (changed bool) {
	switch r.Outcome {
	case core.Success:
		b.endRun(w)
	case core.Failure:
		if n := b.extendRun(w); s.FailureThreshold != Off && n >= s.FailureThreshold {
			return b.trip(ctx, w, whyInARow, uint64(n), r)
		}
	case core.Throttled:
	default:
		return false
	}
	if s.window == nil {
		return false
	}
	// Until there have been enough, any call can be the one that completes them.
	// From then on the rates rise with bad calls alone.
	bad := r.Outcome != core.Success
	s.window.counted(w.generation(), bad, slow)
	if known := s.known.Load() == w.generation()+1; known && !bad && !slow {
		return false
	} else if t := s.window.tally(); t.total >= uint64(s.MinCalls) {
		if !known {
			s.known.Store(w.generation() + 1)
		}
		if why, n := s.exceeded(t); why != "" {
			return b.trip(ctx, w, why, n, r)
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

func (b *Breaker) load() word { return word(b.word.Load()) }

// current reports whether w is of the generation that the breaker is in.
func (b *Breaker) current(w word) bool { return b.load().generation() == w.generation() }

// after is d after now, or the end of time.
func after(now int64, d time.Duration) int64 {
	if int64(d) > math.MaxInt64-now {
		return math.MaxInt64
	}
	return now + int64(d)
}
