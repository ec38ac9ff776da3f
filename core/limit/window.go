package limit

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
)

// SlidingWindowConfig configures NewSlidingWindow.
type SlidingWindowConfig struct {
	// Name is the name in rejections, events and reports.
	// Default: "sliding_window".
	Name string

	// Limit is how much may be taken in a Window; 1 to 1,048,575, and at most
	// 10^9 a second. Required.
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

// SlidingWindow is a limit on how much is taken in any time of one Window, by an
// estimate that needs no more than two counts: time is cut into windows, and at a
// fraction f of the running one,
//
//	previous·(1-f) + current
//
// is at most Limit after each call. It was described by J. Desgats ("How we built
// rate limiting capable of scaling to millions of domains", Cloudflare, 2017),
// who found that on their traffic it differed little from an exact count. Unlike
// with a fixed window, nothing jumps where a window ends.
//
// The assumption is that what was taken in the window before was taken evenly.
// If it was all taken at its end, as much again can be taken in the next, so that
// in the time of one window, wherever it begins, it can be as much as 2·Limit - 1.
// It never is more: in any time t at most Limit·t/Window + Limit are taken, as
// with a token bucket of that rate and burst, however many goroutines call, and
// whatever the clock does. Where that is too much, see SlidingLog.
//
// Counts and the number of the window share one atomic word: an admission is a
// clock read and a compare-and-swap, and a refusal leaves the word unwritten. A
// call that waits is counted in the window in which its turn comes. That can be 64
// windows ahead, and 256 or more if the limit is below 2^18 and the window not above
// 2,500 hours; what would have to wait for longer is refused. Windows are numbered
// modulo 2^22, or, if the limit is below 2^18, 2^24 or more. A limiter that is used
// again after so many idle windows takes what it counted before for new, if its
// luck is worse than one in 60,000, and refuses what it should not: for as long as
// a call may wait, not more.
//
// It is safe for concurrent use, a core.Guard, core.Ready, core.Refuser and
// core.Component, and needs no Close. A nil *SlidingWindow is no limit: it admits
// every call that is not malformed.
type SlidingWindow struct {
	limiter
	in atomic.Pointer[windowEra]
	mu sync.Mutex // orders changes of in
}

// windowEra is the settings of a SlidingWindow, and the word that was reckoned by
// them, so that both change as one. The word of an era that has ended is marked,
// so that whoever was about to swap it fails, and asks the next.
type windowEra struct {
	era[windowState]
	window windowLaw // which era.law is
	of     *SlidingWindow

	calls   uint64 // where the word counts the calls admitted, modulo some power of two
	oneCall uint64

	_    [128]byte // what is written stays off the lines of what is read
	word atomic.Uint64
	_    [120]byte
}

const windowMoved = 1 << 63

// NewSlidingWindow makes a limit of which nothing is taken. The error lists every
// bad field of cfg; errors.Is(err, core.ErrConfig).
func NewSlidingWindow(cfg SlidingWindowConfig) (*SlidingWindow, error) {
	p := core.Check("limit.SlidingWindowConfig")
	cfg.check(p, "")
	if err := p.Err(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	w := new(SlidingWindow)
	w.limiter.init(cfg.Name, cfg.Observer)
	w.setRound(cfg.Limit, cfg.Window)
	w.in.Store(w.era(*newWindowLaw(cfg.Limit, cfg.Window), cfg.MaxWait, 0))
	return w, nil
}

func (cfg SlidingWindowConfig) check(p *core.Problems, in string) {
	checkWindow(p, in, cfg.Limit, maxWindowLimit, "must be 1 to 1048575", cfg.Window, cfg.MaxWait)
}

// checkWindow is what the two kinds of windows have in common.
func checkWindow(p *core.Problems, in string, limit, most int, problem string, window, maxWait time.Duration) {
	p.If(limit < 1 || limit > most, in+"Limit", limit, problem)
	p.If(window <= 0 || window > maxWindow, in+"Window", window, "must be above 0 and at most 10000h")
	p.If(limit >= 1 && limit <= most && window > 0 && int64(limit) > int64(window), in+"Limit", limit,
		"must be at most 10^9 per second")
	p.If(maxWait < 0, in+"MaxWait", maxWait, "must not be negative")
}

func (cfg SlidingWindowConfig) withDefaults() SlidingWindowConfig {
	if cfg.Name == "" {
		cfg.Name = "sliding_window"
	}
	return cfg
}

func (cfg SlidingWindowConfig) perKey(p *core.Problems, field string) Algorithm {
	unnamed(p, field, cfg.Name, cfg.Observer)
	cfg.check(p, field+".")
	return cfg
}

func (cfg SlidingWindowConfig) pace() (n int, per time.Duration) { return cfg.Limit, cfg.Window }
func (cfg SlidingWindowConfig) maxWait() time.Duration           { return cfg.MaxWait }

func (cfg SlidingWindowConfig) settings(prefix string) []core.Setting {
	return []core.Setting{
		{Name: prefix + "Limit", Value: cfg.Limit},
		{Name: prefix + "Window", Value: cfg.Window},
		{Name: prefix + "MaxWait", Value: cfg.MaxWait},
	}
}

func windowLawOf(a Algorithm) law[windowState] {
	cfg := a.(SlidingWindowConfig)
	return newWindowLaw(cfg.Limit, cfg.Window)
}

func (w *SlidingWindow) era(law windowLaw, maxWait time.Duration, paused int64) *windowEra {
	e := &windowEra{
		era: era[windowState]{maxWait: maxWait, paused: paused, changed: make(chan struct{})}, window: law, of: w,
	}
	e.law, e.by = &e.window, e
	e.oneCall = 1 << law.size
	e.calls = windowMoved - e.oneCall
	return e
}

// Allow takes one if there is room for it, and reports whether it did.
func (w *SlidingWindow) Allow() bool { return w == nil || w.allow(1) }

// AllowN takes n if there is room for as many, and reports whether it did; it
// never takes a part. It is false for a negative n and for one above the limit,
// and true for 0.
func (w *SlidingWindow) AllowN(n int) bool {
	if w == nil {
		return n >= 0
	}
	return w.allow(n)
}

// Take is AllowN that also says what is left.
func (w *SlidingWindow) Take(n int) Decision {
	if w == nil {
		return unlimited(n)
	}
	c, ok := takeAtOnce(&w.limiter, w, n)
	if !ok {
		return refusedDecision(w.peek(n), n)
	}
	if n == 0 {
		return w.peek(n)
	}
	e := c.by.(*windowEra)
	return e.decide(e.window.after(c.token), c.now, 0)
}

// Peek is what Take would say, without taking anything: Peek(0) is how things
// stand.
func (w *SlidingWindow) Peek(n int) Decision {
	if w == nil {
		return unlimited(n)
	}
	return w.peek(n)
}

// Reserve takes n if there will be room for them within maxWait, after those who
// asked before, and does not wait: the Reservation says for how long to. The
// errors are those of Wait.
func (w *SlidingWindow) Reserve(n int, maxWait time.Duration) (Reservation, error) {
	if w == nil {
		return Reservation{}, malformed(n)
	}
	return reserve(&w.limiter, w, n, maxWait)
}

// Wait takes n as soon as there is room for as many, after those who asked
// before. It fails at once, and takes nothing, if ctx is done already, or if its
// deadline comes before there is room. If ctx ends during the wait and nobody
// came later, what it took is given back; nobody else's turn changes.
//
// The error is a *core.Rejection: ErrLimited, with the context's error in it if
// that ended the wait; ErrNeverFits if n is above the limit; ErrInvalidCost if
// it is negative.
func (w *SlidingWindow) Wait(ctx context.Context, n int) error {
	if w == nil {
		return waitForNothing(ctx, n)
	}
	_, err := acquire(ctx, &w.limiter, w, n, forever)
	return err
}

// Acquire takes the cost of one call, call.Weight(). It refuses at once if there
// is no room, or if there will be none within MaxWait and the deadline of ctx;
// the errors are those of Wait.
//
// Cancelling the permit takes the call out of the window that it was counted in,
// as if it had never been; nothing is given back once that is two windows ago,
// while calls wait that came later, nor after Limit or Window were changed.
// Finishing it with a Result.Cost other than the call's gives back or charges the
// difference; a charge can leave the limiter in debt. A permit that was copied
// and ended twice counts twice.
func (w *SlidingWindow) Acquire(ctx context.Context, call core.Call) (core.Permit, error) {
	if w == nil {
		return core.Permit{}, malformed(call.Weight())
	}
	return permit(ctx, &w.limiter, w, call.Weight(), w.in.Load().maxWait)
}

// Charge takes n whether there is room or not: for a cost that is known only
// afterwards. What is above the limit is counted in the next windows: as far ahead
// as a call may wait, and up to 2,097,151 more. What is beyond that is forgiven.
func (w *SlidingWindow) Charge(n int) {
	if w != nil {
		w.update(n, (*windowLaw).charged)
	}
}

// Refund gives n back, which then count as not taken: the newest are forgotten,
// in the window and in the one before, but none that waiting calls have pushed
// out of it. Where there is a permit, its Result.Cost says more precisely what is
// due.
func (w *SlidingWindow) Refund(n int) {
	if w != nil {
		w.update(n, (*windowLaw).refunded)
	}
}

// Pause stops the limiter: until then nobody is admitted, and those who wait, wait
// so much longer. Time stands still for it: the window goes on at the end where
// it was. A later call replaces an earlier one: a time that is past ends the
// pause.
func (w *SlidingWindow) Pause(until time.Time) {
	if w == nil {
		return
	}
	w.change(func(old *windowEra) *windowEra {
		next := w.era(old.window, old.maxWait, w.reading(until))
		next.window.origin += next.start(old.at) - old.start(old.at)
		return next
	})
	w.tellChange(core.KindPaused, max(0, time.Until(until)))
}

// Reconfigure changes Limit, Window and MaxWait, while calls go on. What was taken
// lately stays taken: if only the limit changes and nobody waits, the counts stay
// as they are; otherwise the new windows begin with the estimate of the old ones,
// rounded up. A change of limit l1 to l2 and of window w1 to w2 after a time t1
// lets at most l1/w1·t1 + l2/w2·t2 + max(l1, l2) through until t2 later. If the
// limit alone goes up and down within a window, what was taken under the greater
// one goes out with its window, so that as much can be taken in each. Those who
// wait are given their new turns. Name and Observer stay as they are, whatever
// cfg says. If cfg is bad, nothing changes.
func (w *SlidingWindow) Reconfigure(cfg SlidingWindowConfig) error {
	p := core.Check("limit.SlidingWindowConfig")
	cfg.check(p, "")
	if err := p.Err(); err != nil || w == nil {
		return err
	}
	w.change(func(old *windowEra) *windowEra {
		w.setRound(cfg.Limit, cfg.Window)
		law := newWindowLaw(cfg.Limit, cfg.Window)
		law.origin = old.window.origin
		return w.era(*law, cfg.MaxWait, old.paused)
	})
	w.tellChange(core.KindReconfigured, 0)
	return nil
}

// Ready reports whether a call of cost 1 would be admitted at once.
func (w *SlidingWindow) Ready() bool { return w.Peek(1).OK }

// Refusal is the *core.Rejection that a call of cost 1 would get now, or nil.
func (w *SlidingWindow) Refusal() *core.Rejection {
	if w == nil {
		return nil
	}
	if turn, now := w.when(1); turn > now {
		return w.limited(turn)
	}
	return nil
}

// Stats reads the counters. Those of a nil *SlidingWindow are zero.
func (w *SlidingWindow) Stats() (s Stats) {
	if w == nil {
		return s
	}
	w.mu.Lock()                            // so that no calls are carried over meanwhile
	charges := w.counts.Sum(countAdmitted) // before the word, which may only be ahead
	e, word, now := w.now()
	w.mu.Unlock()
	s.Admitted = w.admitted(charges + word&e.calls/e.oneCall)
	s.Refused = w.counts.Sum(countRefused)
	s.Cancelled = w.counts.Sum(countCancelled)
	s.Available = e.decide(e.state(word), now, 0).Remaining
	s.Limit = e.window.most()
	return s
}

// Name is the configured name.
func (w *SlidingWindow) Name() string {
	if w == nil {
		return ""
	}
	return w.name
}

// Inspect reports the limiter as it is now.
func (w *SlidingWindow) Inspect() core.Report {
	if w == nil {
		return core.Report{Kind: "sliding_window"}
	}
	e := w.in.Load()
	cfg := SlidingWindowConfig{Limit: e.window.most(), Window: time.Duration(e.window.window), MaxWait: e.maxWait}
	return w.report("sliding_window", w.Stats(), cfg.settings(""))
}

func (w *SlidingWindow) parts() []part {
	if w == nil {
		return nil
	}
	return []part{w}
}

func (w *SlidingWindow) base() *limiter { return &w.limiter }

func (w *SlidingWindow) most() int { return w.in.Load().window.most() }

func (e *windowEra) state(word uint64) windowState { return windowState(word & (e.oneCall - 1)) }

// swap replaces the word by one with the state next, and counts so many calls.
func (e *windowEra) swap(word uint64, next windowState, calls uint64) bool {
	calls = (word + calls*e.oneCall) & e.calls
	return e.word.CompareAndSwap(word, uint64(next)|calls)
}

// counted is called after a swap that counted a call: when the word has counted
// all that it can, the others are told.
func (e *windowEra) counted(word uint64) {
	if word&e.calls == e.calls {
		e.of.counts.Add(countAdmitted, e.calls/e.oneCall+1)
	}
}

func (w *SlidingWindow) allow(n int) bool {
	ok, sure := w.quick(n)
	if !sure {
		_, ok = takeAtOnce(&w.limiter, w, n)
	} else if !ok {
		w.refused(context.Background(), core.RateLimited, n)
	}
	return ok
}

// quick is take without patience, and without what nobody needs who does not
// wait. Where it is not sure, take knows.
func (w *SlidingWindow) quick(n int) (ok, sure bool) {
	e := w.in.Load()
	if uint64(n-1) >= e.window.limit {
		return false, false
	}
	word := e.word.Load()
	now := w.clock.Now()
	for tight := false; now >= e.paused && word&windowMoved == 0; tight = true {
		next, ok, late := e.window.admit(e.state(word), now, uint64(n))
		if !ok {
			return false, !late && !tight
		}
		if e.swap(word, next, 1) {
			e.counted(word)
			return true, true
		}
		if !tight {
			keepOff()
		}
		now, word = e.tight()
	}
	return false, false
}

// take is for meter.
//
// At first the clock is read after the word, then before it: see bucket.take. A
// stale clock sees more taken than there is, never less; before a refusal it is
// read again.
func (w *SlidingWindow) take(n int, patience time.Duration) (c charge, ok bool) {
	e := w.in.Load()
	word := e.word.Load()
	now := w.clock.Now()
	for tight := false; ; tight = true {
		c, ok, again := e.takeAt(word, now, n, patience)
		if tight && !ok && !again {
			c, ok, again = e.takeAt(word, w.clock.Now(), n, patience)
		}
		switch {
		case !again:
			return c, ok
		case word&windowMoved != 0:
			runtime.Gosched() // to whoever moves it
		case !tight:
			keepOff()
		}
		e = w.in.Load()
		now, word = e.tight()
	}
}

// tight is the word, and a clock reading from just before it.
func (e *windowEra) tight() (now int64, word uint64) {
	now = e.of.clock.Now()
	word = e.word.Load()
	return e.notStale(now, word), word
}

// notStale is now, a clock reading from before the word, unless the word looks past
// by it. The word may be so many windows ahead of a stale clock that it looks so,
// if they are short; then the clock is read again.
func (e *windowEra) notStale(now int64, word uint64) int64 {
	if id, _ := e.window.index(e.start(now)); e.window.isPast(e.state(word), id) {
		return e.of.clock.Now()
	}
	return now
}

// takeAt is take at a given clock reading, if the word is word. again says that it
// is not.
func (e *windowEra) takeAt(word uint64, now int64, n int, patience time.Duration) (c charge, ok, again bool) {
	if uint64(n) > e.window.limit {
		return charge{now: now, turn: now}, false, false // it fitted a moment ago
	}
	if word&windowMoved != 0 {
		return c, false, true
	}
	next, t, turn, ok := e.window.place(e.state(word), e.start(now), n)
	if !ok || turn-now > int64(patience) {
		return charge{now: now, turn: turn}, false, false
	}
	if !e.swap(word, next, 1) {
		return c, false, true
	}
	e.counted(word)
	return charge{by: e, token: t, now: now, turn: turn, changed: e.changed}, true, false
}

// now is the era in force, with its word and a clock reading not older than it.
func (w *SlidingWindow) now() (e *windowEra, word uint64, now int64) {
	for {
		e = w.in.Load()
		if word = e.word.Load(); word&windowMoved == 0 {
			return e, word, w.clock.Now()
		}
		runtime.Gosched()
	}
}

func (w *SlidingWindow) peek(n int) Decision {
	e, word, now := w.now()
	return e.decide(e.state(word), now, n)
}

func (e *windowEra) decide(s windowState, now int64, n int) Decision {
	d := e.window.peek(&s, now, e.start(now), n)
	d.Policy = e.of.name
	return d
}

// when is for part.
func (w *SlidingWindow) when(n int) (turn, now int64) {
	e, word, now := w.now()
	if uint64(n) > e.window.limit {
		return now, now
	}
	_, _, turn, _ = e.window.place(e.state(word), e.start(now), n)
	return turn, now
}

// update changes the state by n, if that is above 0.
func (w *SlidingWindow) update(n int, f func(law *windowLaw, s windowState, now int64, n int) windowState) {
	for n > 0 {
		e, word, now := w.now()
		if e.swap(word, f(&e.window, e.state(word), e.start(now), n), 0) {
			return
		}
	}
}

// FinishPermit is for core.Permit: it settles the difference between what a call
// was charged and what it cost.
func (e *windowEra) FinishPermit(_ context.Context, t core.Token, r core.Result) {
	if r.Cost != 0 {
		settle(r, tokensOf(t), func(n int) { e.giveBack(t, n) }, e.of.Charge)
	}
}

// CancelPermit is for core.Permit: it gives back what a call took that never
// started.
func (e *windowEra) CancelPermit(t core.Token) {
	e.of.counts.Add(countCancelled, 1)
	e.giveBack(t, tokensOf(t))
}

func (e *windowEra) abandon(t core.Token) { e.giveBack(t, tokensOf(t)) }

// giveBack gives back n of what a call took.
func (e *windowEra) giveBack(t core.Token, n int) {
	c := charge{by: e, token: t}
	for {
		c = c.by.retime(c)
		e = c.by.(*windowEra)
		word := e.word.Load()
		if word&windowMoved != 0 {
			runtime.Gosched()
			continue
		}
		s := e.state(word)
		e.window.giveBack(&s, e.start(e.of.clock.Now()), c.token, n)
		if s == e.state(word) || e.swap(word, s, 0) {
			return
		}
	}
}

// change begins a new era: the one that next makes of the old one, which has
// ended. What was counted is carried over.
func (w *SlidingWindow) change(next func(*windowEra) *windowEra) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.in.Load()
	word := old.word.Or(windowMoved)
	old.at = w.clock.Now()
	e := next(old)
	old.next = &e.era
	w.counts.Add(countAdmitted, word&old.calls/old.oneCall)
	s := old.state(word)
	e.window.convert(&s, old.change())
	e.word.Store(uint64(s))
	w.in.Store(e)
	old.end()
}
