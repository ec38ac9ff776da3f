package limit

import (
	"context"
	"time"

	"github.com/surgewall/surgewall/core"
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

	// Observer hears core.KindRejected for each refusal, core.KindPaused and
	// core.KindReconfigured. Default: none.
	Observer core.Observer
}

// TokenBucket is a limit on a rate. The bucket holds Burst tokens and starts
// full; a call takes one or more; they come back at Rate. In any time t at most
// Rate·t + Burst are taken, however many goroutines call, and whatever the
// clock does. Internally it is the generic cell rate algorithm on one atomic
// word: an admission is a clock read and a compare-and-swap, and a refusal
// leaves the word unwritten.
//
// It is safe for concurrent use, a core.Guard, core.Ready, core.Refuser and
// core.Component, and needs no Close. A nil *TokenBucket is no limit: it admits
// every call that is not malformed.
type TokenBucket struct{ bucket bucket }

// NewTokenBucket makes a full bucket. The error lists every bad field of cfg;
// errors.Is(err, core.ErrConfig).
func NewTokenBucket(cfg TokenBucketConfig) (*TokenBucket, error) {
	p := core.Check("limit.TokenBucketConfig")
	cfg.check(p, "")
	if err := p.Err(); err != nil {
		return nil, err
	}
	b := new(TokenBucket)
	b.bucket.init(cfg.withDefaults())
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
func (b *TokenBucket) Allow() bool { return b == nil || b.bucket.allow(1) }

// AllowN takes n tokens if there are as many, and reports whether it did; it
// never takes a part. It is false for a negative n and for one above the burst,
// and true for 0.
func (b *TokenBucket) AllowN(n int) bool {
	if b == nil {
		return n >= 0
	}
	return b.bucket.allow(n)
}

// Take is AllowN that also says what is left.
func (b *TokenBucket) Take(n int) Decision {
	if b == nil {
		return unlimited(n)
	}
	return b.bucket.takeDecision(n)
}

// Peek is what Take would say, without taking anything: Peek(0) is how things
// stand.
func (b *TokenBucket) Peek(n int) Decision {
	if b == nil {
		return unlimited(n)
	}
	return b.bucket.peek(n)
}

// Reserve takes n tokens that are there within maxWait, after those who asked
// before, and does not wait: the Reservation says for how long to. The errors
// are those of Wait.
func (b *TokenBucket) Reserve(n int, maxWait time.Duration) (Reservation, error) {
	if b == nil {
		return Reservation{}, malformed(n)
	}
	return reserve(&b.bucket.limiter, &b.bucket, n, maxWait)
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
	if ctx.Err() == nil {
		if ok, _ := b.bucket.quick(n, false); ok {
			return nil // nobody waits, or there would be nothing left
		}
	}
	_, err := acquire(ctx, &b.bucket.limiter, &b.bucket, n, forever)
	return err
}

// Acquire takes the tokens of one call: call.Weight() of them. It refuses at
// once if they are not there, or if they will not be within MaxWait and the
// deadline of ctx; the errors are those of Wait. Without a MaxWait, ctx has no say.
//
// Cancelling the permit gives tokens back, as far as that does not break the
// limit: all of them if it is done soon, none once they would have come back by
// themselves. Where others give back what they took later, or while calls wait
// that came later, it can be less. Finishing it with a Result.Cost other than
// the call's gives back or charges the difference; a charge can leave the
// bucket in debt. A permit that was copied and ended twice counts twice.
func (b *TokenBucket) Acquire(ctx context.Context, call core.Call) (core.Permit, error) {
	if b == nil {
		return core.Permit{}, malformed(call.Weight())
	}
	return permit(ctx, &b.bucket.limiter, &b.bucket, call.Weight(), b.bucket.in.Load().maxWait)
}

// Charge takes n tokens whether they are there or not: for a cost that is known
// only afterwards. It can leave the bucket in debt, by at least eight bursts and
// 131,072 tokens; what is beyond some days, at ten million tokens a second 9
// hours, is forgiven.
func (b *TokenBucket) Charge(n int) {
	if b != nil {
		b.bucket.debit(n)
	}
}

// Refund gives n tokens back, which then count as not taken. The bucket is never
// more than full. Where there is a permit, its Result.Cost says more precisely
// what is due.
func (b *TokenBucket) Refund(n int) {
	if b != nil {
		b.bucket.credit(n)
	}
}

// Pause stops the bucket: until then nobody is admitted, and those who wait, wait
// so much longer. Time stands still for it, so what was in the bucket is in it
// at the end. It lasts for 50 years at most. A later call replaces an earlier one:
// a time that is past ends the pause.
func (b *TokenBucket) Pause(until time.Time) {
	if b != nil {
		b.bucket.pause(until)
	}
}

// Reconfigure changes Rate, Burst and MaxWait, while calls go on. What the bucket
// owes it still owes, in tokens: a change of rate r1 to r2 and burst b1 to b2
// after a time t1 lets at most r1·t1 + r2·t2 + max(b1, b2) through until t2
// later. Those who wait are given their new turns. Name and Observer stay as
// they are, whatever cfg says. If cfg is bad, nothing changes.
func (b *TokenBucket) Reconfigure(cfg TokenBucketConfig) error {
	p := core.Check("limit.TokenBucketConfig")
	cfg.check(p, "")
	if err := p.Err(); err != nil || b == nil {
		return err
	}
	b.bucket.reconfigure(cfg.withDefaults())
	return nil
}

// Ready reports whether a call of cost 1 would be admitted at once.
func (b *TokenBucket) Ready() bool { return b.Peek(1).OK }

// Refusal is the *core.Rejection that a call of cost 1 would get now, or nil.
func (b *TokenBucket) Refusal() *core.Rejection {
	if b == nil {
		return nil
	}
	return b.bucket.refusal()
}

// Stats reads the counters. Those of a nil *TokenBucket are zero.
func (b *TokenBucket) Stats() Stats {
	if b == nil {
		return Stats{}
	}
	return b.bucket.stats()
}

// Name is the configured name.
func (b *TokenBucket) Name() string {
	if b == nil {
		return ""
	}
	return b.bucket.name
}

// Inspect reports the bucket as it is now.
func (b *TokenBucket) Inspect() core.Report {
	if b == nil {
		return core.Report{Kind: "token_bucket"}
	}
	r := b.bucket.in.Load()
	return b.bucket.report("token_bucket", b.Stats(), []core.Setting{
		{Name: "Rate", Value: r.rate},
		{Name: "Burst", Value: r.burst},
		{Name: "MaxWait", Value: r.maxWait},
	})
}

func (b *TokenBucket) parts() []part {
	if b == nil {
		return nil
	}
	return []part{bucketPart{&b.bucket, b}}
}
