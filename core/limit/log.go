package limit

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
)

// SlidingLogConfig configures NewSlidingLog.
type SlidingLogConfig struct {
	// Name is the name in rejections, events and reports.
	// Default: "sliding_log".
	Name string

	// Limit is how much may be taken in a Window; 1 to 65,536, and at most 10^9 a
	// second. Required.
	Limit int

	// Window is the time that Limit is for: a second, an hour; at most 10,000
	// hours. Required.
	Window time.Duration

	// MaxWait is how long Acquire may wait for room. A call that would have to
	// wait longer is refused at once. It has no say in Wait.
	// Default: 0, Acquire never waits.
	MaxWait time.Duration

	// Observer hears core.KindRejected for each refusal, core.KindPaused and
	// core.KindReconfigured. Default: none.
	Observer core.Observer
}

// SlidingLog is a limit on how much is taken in any time of one Window, exactly:
// wherever the window begins, at most Limit are taken in it. It remembers when
// each was taken, and is for small limits: it takes 8 bytes for each of the most
// that were taken in a window, or waited to be, and no more than twice as many as
// Limit; a call takes time in proportion to its cost. SlidingWindow takes one
// word, and estimates.
//
// A mutex guards it, and is held for some nanoseconds.
//
// It is safe for concurrent use, a core.Guard, core.Ready, core.Refuser and
// core.Component, and needs no Close. A nil *SlidingLog is no limit: it admits
// every call that is not malformed.
type SlidingLog struct {
	limiter
	in atomic.Pointer[logEra]

	_       [128]byte // what is written stays off the lines of what is read
	mu      sync.Mutex
	state   logState // guarded by mu, as is what follows, and changes of in
	charges uint64
}

// logEra is the settings of a SlidingLog.
type logEra struct {
	era[logState]
	log logLaw // which era.law is
	of  *SlidingLog
}

// NewSlidingLog makes a limit of which nothing is taken. The error lists every bad
// field of cfg; errors.Is(err, core.ErrConfig).
func NewSlidingLog(cfg SlidingLogConfig) (*SlidingLog, error) {
	p := core.Check("limit.SlidingLogConfig")
	cfg.check(p, "")
	if err := p.Err(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	l := new(SlidingLog)
	l.limiter.init(cfg.Name, cfg.Observer)
	l.setRound(cfg.Limit, cfg.Window)
	l.in.Store(l.era(*newLogLaw(cfg.Limit, cfg.Window), cfg.MaxWait, 0))
	return l, nil
}

func (cfg SlidingLogConfig) check(p *core.Problems, in string) {
	checkWindow(p, in, cfg.Limit, maxLogLimit, "must be 1 to 65536", cfg.Window, cfg.MaxWait)
}

func (cfg SlidingLogConfig) withDefaults() SlidingLogConfig {
	if cfg.Name == "" {
		cfg.Name = "sliding_log"
	}
	return cfg
}

func (cfg SlidingLogConfig) perKey(p *core.Problems, field string) Algorithm {
	unnamed(p, field, cfg.Name, cfg.Observer)
	cfg.check(p, field+".")
	return cfg
}

func (cfg SlidingLogConfig) pace() (n int, per time.Duration) { return cfg.Limit, cfg.Window }
func (cfg SlidingLogConfig) maxWait() time.Duration           { return cfg.MaxWait }

func (cfg SlidingLogConfig) settings(prefix string) []core.Setting {
	return SlidingWindowConfig{Limit: cfg.Limit, Window: cfg.Window, MaxWait: cfg.MaxWait}.settings(prefix)
}

func logLawOf(a Algorithm) law[logState] {
	cfg := a.(SlidingLogConfig)
	return newLogLaw(cfg.Limit, cfg.Window)
}

func (l *SlidingLog) era(law logLaw, maxWait time.Duration, paused int64) *logEra {
	e := &logEra{
		era: era[logState]{maxWait: maxWait, paused: paused, changed: make(chan struct{})}, log: law, of: l,
	}
	e.law, e.by = &e.log, e
	return e
}

// Allow takes one if there is room for it, and reports whether it did.
func (l *SlidingLog) Allow() bool { return l == nil || l.AllowN(1) }

// AllowN takes n if there is room for as many, and reports whether it did; it
// never takes a part. It is false for a negative n and for one above the limit,
// and true for 0.
func (l *SlidingLog) AllowN(n int) bool {
	if l == nil {
		return n >= 0
	}
	_, ok := takeAtOnce(&l.limiter, l, n)
	return ok
}

// Take is AllowN that also says what is left.
func (l *SlidingLog) Take(n int) Decision {
	if l == nil {
		return unlimited(n)
	}
	if r := l.misfit(n, l.most()); r != nil {
		l.refused(context.Background(), r.Reason, n)
		return l.peek(n)
	}
	l.mu.Lock()
	e, now := l.in.Load(), l.clock.Now()
	d := e.decide(now, n)
	if d.OK && n > 0 {
		_, _, d.OK = e.log.take(&l.state, now, n, 0)
		d = e.decide(now, 0)
		l.charges++
	}
	l.mu.Unlock()
	if !d.OK {
		l.refused(context.Background(), core.RateLimited, n)
	}
	return d
}

// Peek is what Take would say, without taking anything: Peek(0) is how things
// stand.
func (l *SlidingLog) Peek(n int) Decision {
	if l == nil {
		return unlimited(n)
	}
	return l.peek(n)
}

// Reserve takes n if there will be room for them within maxWait, after those who
// asked before, and does not wait: the Reservation says for how long to. The
// errors are those of Wait.
func (l *SlidingLog) Reserve(n int, maxWait time.Duration) (Reservation, error) {
	if l == nil {
		return Reservation{}, malformed(n)
	}
	return reserve(&l.limiter, l, n, maxWait)
}

// Wait takes n as soon as there is room for as many, after those who asked
// before. It fails at once, and takes nothing, if ctx is done already, or if its
// deadline comes before there is room. If ctx ends during the wait, what it took
// is given back; nobody else's turn changes.
//
// The error is a *core.Rejection: ErrLimited, with the context's error in it if
// that ended the wait; ErrNeverFits if n is above the limit; ErrInvalidCost if
// it is negative.
func (l *SlidingLog) Wait(ctx context.Context, n int) error {
	if l == nil {
		return waitForNothing(ctx, n)
	}
	_, err := acquire(ctx, &l.limiter, l, n, forever)
	return err
}

// Acquire takes the cost of one call, call.Weight(). It refuses at once if there
// is no room, or if there will be none within MaxWait and the deadline of ctx;
// the errors are those of Wait.
//
// Cancelling the permit removes the call from the log, as if it had never been.
// Finishing it with a Result.Cost other than the call's gives back or charges the
// difference; a charge can leave the limiter in debt. A permit that was copied
// and ended twice counts twice.
func (l *SlidingLog) Acquire(ctx context.Context, call core.Call) (core.Permit, error) {
	if l == nil {
		return core.Permit{}, malformed(call.Weight())
	}
	return permit(ctx, &l.limiter, l, call.Weight(), l.in.Load().maxWait)
}

// Charge takes n whether there is room or not: for a cost that is known only
// afterwards. What there is no room for is booked for the time when there will
// be, before any call that comes later.
func (l *SlidingLog) Charge(n int) {
	if l != nil {
		l.update(n, (*logLaw).charge)
	}
}

// Refund gives n back, which then count as not taken: the newest are forgotten.
// Where there is a permit, its Result.Cost says more precisely what is due.
func (l *SlidingLog) Refund(n int) {
	if l != nil {
		l.update(n, (*logLaw).refund)
	}
}

// Pause stops the limiter: until then nobody is admitted, and those who wait, wait
// so much longer. Time stands still for it: what was taken a second ago at the
// beginning is a second ago at the end. A later call replaces an earlier one: a
// time that is past ends the pause.
func (l *SlidingLog) Pause(until time.Time) {
	if l == nil {
		return
	}
	l.change(func(old *logEra) *logEra {
		return l.era(old.log, old.maxWait, l.reading(until))
	})
	l.tellChange(core.KindPaused, max(0, time.Until(until)))
}

// Reconfigure changes Limit, Window and MaxWait, while calls go on. What was taken
// lately stays taken: if the window gets longer, everything counts for as long; if
// it gets shorter, what was half a window ago is half a window ago. A change of
// limit l1 to l2 and of window w1 to w2 after a time t1 lets at most l1/w1·t1 +
// l2/w2·t2 + max(l1, l2) through until t2 later. Those who wait are given their
// new turns. Name and Observer stay as they are, whatever cfg says. If cfg is bad,
// nothing changes.
func (l *SlidingLog) Reconfigure(cfg SlidingLogConfig) error {
	p := core.Check("limit.SlidingLogConfig")
	cfg.check(p, "")
	if err := p.Err(); err != nil || l == nil {
		return err
	}
	l.change(func(old *logEra) *logEra {
		l.setRound(cfg.Limit, cfg.Window)
		return l.era(*newLogLaw(cfg.Limit, cfg.Window), cfg.MaxWait, old.paused)
	})
	l.tellChange(core.KindReconfigured, 0)
	return nil
}

// Ready reports whether a call of cost 1 would be admitted at once.
func (l *SlidingLog) Ready() bool { return l.Peek(1).OK }

// Refusal is the *core.Rejection that a call of cost 1 would get now, or nil.
func (l *SlidingLog) Refusal() *core.Rejection {
	if l == nil {
		return nil
	}
	if turn, now := l.when(1); turn > now {
		return l.limited(turn)
	}
	return nil
}

// Stats reads the counters. Those of a nil *SlidingLog are zero.
func (l *SlidingLog) Stats() (s Stats) {
	if l == nil {
		return s
	}
	l.mu.Lock()
	d := l.in.Load().decide(l.clock.Now(), 0)
	charges := l.charges
	l.mu.Unlock()
	s.Admitted = l.limiter.admitted(charges)
	s.Refused = l.counts.Sum(countRefused)
	s.Cancelled = l.counts.Sum(countCancelled)
	s.Available, s.Limit = d.Remaining, d.Limit
	return s
}

// Name is the configured name.
func (l *SlidingLog) Name() string {
	if l == nil {
		return ""
	}
	return l.name
}

// Inspect reports the limiter as it is now.
func (l *SlidingLog) Inspect() core.Report {
	if l == nil {
		return core.Report{Kind: "sliding_log"}
	}
	e := l.in.Load()
	cfg := SlidingLogConfig{Limit: e.log.limit, Window: time.Duration(e.log.window), MaxWait: e.maxWait}
	return l.report("sliding_log", l.Stats(), cfg.settings(""))
}

func (l *SlidingLog) parts() []part {
	if l == nil {
		return nil
	}
	return []part{l}
}

func (l *SlidingLog) base() *limiter { return &l.limiter }

func (l *SlidingLog) most() int { return l.in.Load().log.limit }

// take is for meter.
func (l *SlidingLog) take(n int, patience time.Duration) (c charge, ok bool) {
	now := l.clock.Now()
	l.mu.Lock()
	e := l.in.Load()
	start := e.start(now)
	c = charge{by: e, now: now, turn: now, changed: e.changed}
	if n <= e.log.limit { // it fitted a moment ago
		c.token, c.turn, ok = e.log.take(&l.state, start, n, patience-time.Duration(start-now))
	}
	if ok {
		l.charges++
	}
	l.mu.Unlock()
	return c, ok
}

func (l *SlidingLog) peek(n int) Decision {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.in.Load().decide(l.clock.Now(), n)
}

// decide is for a caller that holds mu.
func (e *logEra) decide(now int64, n int) Decision {
	d := e.log.peek(&e.of.state, now, e.start(now), n)
	d.Policy = e.of.name
	return d
}

// when is for part.
func (l *SlidingLog) when(n int) (turn, now int64) {
	now = l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.in.Load().decide(now, n)
	if d.RetryAfter == Never {
		return now, now
	}
	return now + int64(d.RetryAfter), now
}

// update changes the state by n, if that is above 0.
func (l *SlidingLog) update(n int, f func(law *logLaw, s *logState, now int64, n int)) {
	if n > 0 {
		l.mu.Lock()
		e := l.in.Load()
		f(&e.log, &l.state, e.start(l.clock.Now()), n)
		l.mu.Unlock()
	}
}

// FinishPermit is for core.Permit: it settles the difference between what a call
// was charged and what it cost.
func (e *logEra) FinishPermit(_ context.Context, t core.Token, r core.Result) {
	if r.Cost != 0 {
		settle(r, tokensOf(t), func(n int) { e.giveBack(t, n) }, e.of.Charge)
	}
}

// CancelPermit is for core.Permit: it gives back what a call took that never
// started.
func (e *logEra) CancelPermit(t core.Token) {
	e.of.counts.Add(countCancelled, 1)
	e.giveBack(t, tokensOf(t))
}

func (e *logEra) abandon(t core.Token) { e.giveBack(t, tokensOf(t)) }

// giveBack gives back n of what a call took.
func (e *logEra) giveBack(t core.Token, n int) {
	l := e.of
	l.mu.Lock()
	c := e.retime(charge{by: e, token: t})
	e = c.by.(*logEra)
	e.log.giveBack(&l.state, e.start(l.clock.Now()), c.token, n)
	l.mu.Unlock()
}

// change begins a new era: the one that next makes of the old one.
func (l *SlidingLog) change(next func(*logEra) *logEra) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.in.Load()
	old.at = l.clock.Now()
	e := next(old)
	old.next = &e.era
	e.log.convert(&l.state, old.change())
	l.in.Store(e)
	old.end()
}
