package limit

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/internal/clock"
	"github.com/surgewall/surgewall/core/internal/stripe"
)

// TokenBucketConfig configures NewTokenBucket.
type TokenBucketConfig struct {
	// Name is the name in rejections, events and reports.
	// Default: "token_bucket".
	Name string

	// Rate is how fast tokens come: PerSecond(100). From 1 in 292 years to
	// 10^9 a second. Required.
	Rate Rate

	// Burst is how many tokens the bucket holds, so how many calls a caller
	// that was quiet may make at once; at most 2^30-1.
	// Default: as many as Rate brings in a second, at least 1.
	Burst int

	// MaxWait is how long Acquire may wait for tokens. A call that would have
	// to wait longer is refused at once. It has no say in Wait.
	// Default: 0, Acquire never waits.
	MaxWait time.Duration

	// Observer hears an event of core.KindRejected for each refusal.
	// Default: none.
	Observer core.Observer
}

// TokenBucket is a limit on a rate. The bucket holds Burst tokens and starts
// full; a call takes one or more; they come back at Rate. In any time t at most
// Rate·t + Burst are taken, however many goroutines call, and whatever the
// clock does. Internally it is the generic cell rate algorithm on one atomic
// word: an admission is a clock read and a compare-and-swap, and a refusal
// leaves the word unwritten.
//
// It is safe for concurrent use, a core.Guard, core.Ready and core.Component,
// and needs no Close. A nil *TokenBucket is no limit: it admits every call that
// is not malformed.
type TokenBucket struct {
	gcra
	refusals
	rate    Rate
	maxWait time.Duration
	since   time.Time

	_        [128]byte // what is written stays off the lines of what is read
	tat      atomic.Uint64
	returned atomic.Uint32 // tokens given back so far; it wraps
	_        [112]byte
	refundMu sync.Mutex // orders refunds, so that each knows of those before it

	counts stripe.Group
}

// The counters of a limiter. What was admitted cannot be read off the TAT, which
// forgets how long the bucket was full, so it is counted: about 10 ns of an
// Allow's 50, on stripes as well as by an atomic add beside the TAT. On stripes,
// callers do not contend for a second word, and refusals for none at all.
const (
	countAdmitted = iota
	countRefused
	countCancelled
)

// NewTokenBucket makes a full bucket. The error lists every bad field of cfg;
// errors.Is(err, core.ErrConfig).
func NewTokenBucket(cfg TokenBucketConfig) (*TokenBucket, error) {
	p := core.Check("limit.TokenBucketConfig")
	cfg.check(p, "")
	if err := p.Err(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	c := clock.New()
	b := &TokenBucket{
		gcra:    newGCRA(cfg.Rate, cfg.Burst, cfg.MaxWait),
		rate:    cfg.Rate,
		maxWait: cfg.MaxWait,
		since:   c.Time(0),
	}
	b.refusals.init(cfg.Name, cfg.Observer, c, cfg.Rate, cfg.Burst)
	return b, nil
}

func (cfg TokenBucketConfig) check(p *core.Problems, in string) {
	problem := cfg.Rate.problem()
	p.If(problem != "", in+"Rate", cfg.Rate, problem)
	p.If(cfg.Burst < 0 || int64(cfg.Burst) > maxBurst, in+"Burst", cfg.Burst, "must be 0 to 1073741823")
	p.If(cfg.MaxWait < 0, in+"MaxWait", cfg.MaxWait, "must not be negative")
}

func (cfg TokenBucketConfig) withDefaults() TokenBucketConfig {
	if cfg.Name == "" {
		cfg.Name = "token_bucket"
	}
	if cfg.Burst == 0 {
		cfg.Burst = cfg.Rate.inOneSecond()
	}
	return cfg
}

// Allow takes one token if there is one, and reports whether it did.
func (b *TokenBucket) Allow() bool { return b.AllowN(1) }

// AllowN takes n tokens if there are as many, and reports whether it did; it
// never takes a part. It is false for a negative n and for one above the burst,
// and true for 0.
func (b *TokenBucket) AllowN(n int) bool {
	if b == nil {
		return n >= 0
	}
	if n == 0 {
		return true
	}
	if uint(n) > uint(b.burst) {
		b.refused(context.Background(), b.misfit(n, b.burst).Reason, n)
		return false
	}
	if _, _, _, ok := b.take(n, 0); !ok {
		b.refused(context.Background(), core.RateLimited, n)
		return false
	}
	b.counts.Add(countAdmitted, 1)
	return true
}

// Wait takes n tokens as soon as there are as many, after those who asked
// before. It fails at once, and takes nothing, if ctx is done already, or if
// its deadline comes before the tokens do. If ctx ends during the wait, what
// can be given back without breaking the limit is given back, and nobody else's
// turn changes.
//
// The error is a *core.Rejection: ErrLimited, with the context's error in it if
// that ended the wait; ErrNeverFits if n is above the burst; ErrInvalidCost if
// it is negative.
func (b *TokenBucket) Wait(ctx context.Context, n int) error {
	if b == nil {
		return waitForNothing(ctx, n)
	}
	_, err := b.acquire(ctx, n, forever)
	return err
}

// Acquire takes the tokens of one call: call.Weight() of them. It refuses at
// once if they are not there, or if they will not be within MaxWait and the
// deadline of ctx; the errors are those of Wait.
//
// Cancelling the permit gives tokens back, as far as that does not break the
// limit: all of them if it is done soon, none once they would have come back by
// themselves. Where others give back what they took later, or while calls wait
// that came later, it can be less. Finishing it with a Result.Cost other than
// the call's gives back or charges the difference; a charge can leave the
// bucket in debt. A permit that was copied and ended twice counts twice.
func (b *TokenBucket) Acquire(ctx context.Context, call core.Call) (core.Permit, error) {
	n := call.Weight()
	if b == nil {
		if n < 0 {
			return core.Permit{}, &core.Rejection{Guard: "none", Reason: core.InvalidCost, Err: ErrInvalidCost}
		}
		return core.Permit{}, nil
	}
	t, err := b.acquire(ctx, n, b.maxWait)
	if err != nil {
		return core.Permit{}, err
	}
	return core.NewPermit(b, t, core.WantsNothing), nil
}

// Ready reports whether a call of cost 1 would be admitted at once.
func (b *TokenBucket) Ready() bool {
	if b == nil {
		return true
	}
	_, wait := b.add(b.tat.Load(), b.ticks(b.clock.Now()), b.one)
	return wait == 0
}

// FinishPermit is for core.Permit: it settles the difference between what a
// call was charged and what it cost.
func (b *TokenBucket) FinishPermit(_ context.Context, t core.Token, r core.Result) {
	switch n := tokensOf(t); {
	case r.Cost == 0:
	case r.Cost < n:
		b.giveBack(t, n-max(r.Cost, 0))
	case r.Cost > n:
		b.charge(r.Cost - n)
	}
}

// CancelPermit is for core.Permit: it gives back what a call took that never
// started.
func (b *TokenBucket) CancelPermit(t core.Token) {
	b.counts.Add(countCancelled, 1)
	b.giveBack(t, tokensOf(t))
}

// acquire takes n tokens and waits for them as long as patience and ctx allow.
func (b *TokenBucket) acquire(ctx context.Context, n int, patience time.Duration) (core.Token, error) {
	if r := b.misfit(n, b.burst); r != nil {
		return core.Token{}, b.refuse(ctx, r, n)
	}
	limit := uint64(0)
	if patience > 0 {
		if err := ctx.Err(); err != nil {
			return core.Token{}, b.refuse(ctx, b.ended(err), n)
		}
		limit = b.patience(min(patience, core.TimeLeft(ctx)))
	}
	if n == 0 {
		return core.Token{}, nil
	}
	// Read before the TAT is moved: a refund that comes between is then held
	// against this call, which errs on the side of the limit.
	returned := b.returned.Load()
	after, wait, now, ok := b.take(n, limit)
	if !ok {
		return core.Token{}, b.refuse(ctx, b.limited(b.instant(now, wait)), n)
	}
	t := charged(after, n, returned)
	if wait > 0 {
		turn := b.instant(now, wait)
		if err := await(ctx, time.Duration(turn-b.clock.Now())); err != nil && b.clock.Now() < turn {
			b.giveBack(t, n)
			return core.Token{}, b.refuse(ctx, b.ended(err), n)
		}
	}
	b.counts.Add(countAdmitted, 1)
	return t, nil
}

// take takes n tokens if their turn comes within patience, in ticks. It returns
// the TAT that it left, the ticks to wait, and the clock reading that these
// count from.
//
// The clock is read before the TAT, so that next to nothing passes between
// reading the TAT and swapping it. A stale clock sees more debt than there is,
// never less: an admission by it was due already, and before a refusal it is
// read again if others have moved the TAT meanwhile.
func (b *TokenBucket) take(n int, patience uint64) (after, wait uint64, now int64, ok bool) {
	cost := b.one
	if n != 1 {
		cost = b.cost(n)
	}
	for {
		now = b.clock.Now()
		var stale bool
		if after, wait, ok, stale = b.takeAt(b.tat.Load(), now, cost, patience); ok || !stale {
			return after, wait, now, ok
		}
	}
}

// takeAt is take at a given clock reading, tat being the TAT before that. stale
// says that the TAT has changed since.
func (b *TokenBucket) takeAt(tat uint64, now int64, cost, patience uint64) (after, wait uint64, ok, stale bool) {
	ticks := b.ticks(now)
	for {
		after, wait = b.add(tat, ticks, cost)
		if wait > patience {
			return after, wait, false, stale
		}
		if b.tat.CompareAndSwap(tat, after) {
			return after, wait, true, stale
		}
		tat, stale = b.tat.Load(), true
	}
}

// giveBack gives back n of the tokens that a call took. Here a stale clock would
// see more left of the charge than there is, so it is read after the TAT.
func (b *TokenBucket) giveBack(t core.Token, n int) {
	b.refundMu.Lock()
	defer b.refundMu.Unlock()
	for {
		tat := b.tat.Load()
		if b.giveBackAt(tat, b.clock.Now(), t, n) {
			return
		}
	}
}

// giveBackAt is giveBack at a given clock reading, under refundMu. It fails if
// the TAT is not tat any more.
func (b *TokenBucket) giveBackAt(tat uint64, now int64, t core.Token, n int) bool {
	back := b.refund(tat, b.ticks(now), t, n, b.returned.Load())
	if back == 0 {
		return true
	}
	if !b.tat.CompareAndSwap(tat, tat-back) {
		return false
	}
	b.returned.Add(uint32(n)) // after the swap, see acquire
	return true
}

// charge takes n tokens whether they are there or not.
func (b *TokenBucket) charge(n int) {
	cost := b.cost(n)
	for {
		tat := b.tat.Load()
		now := b.ticks(b.clock.Now())
		after, _ := b.add(tat, now, cost)
		if b.tat.CompareAndSwap(tat, now+min(after-now, maxDebt)) {
			return
		}
	}
}

func (b *TokenBucket) refuse(ctx context.Context, r *core.Rejection, n int) error {
	b.refused(ctx, r.Reason, n)
	return r
}

func (b *TokenBucket) refused(ctx context.Context, why core.Reason, n int) {
	b.counts.Add(countRefused, 1)
	b.tell(ctx, why, n)
}

func waitForNothing(ctx context.Context, n int) error {
	if n < 0 {
		return &core.Rejection{Guard: "none", Reason: core.InvalidCost, Err: ErrInvalidCost}
	}
	if err := ctx.Err(); err != nil {
		return &core.Rejection{Guard: "none", Reason: core.RateLimited, Err: ErrLimited, Cause: err}
	}
	return nil
}
