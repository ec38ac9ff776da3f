package limit

import (
	"context"
	"time"

	"github.com/surgewall/surgewall/core"
)

// LeakyBucketConfig configures NewLeakyBucket.
type LeakyBucketConfig struct {
	// Name is the name in rejections, events and reports.
	// Default: "leaky_bucket".
	Name string

	// Rate is how fast the bucket drains: PerSecond(100). From 1 in 292 years
	// to 10^9 a second. Required.
	Rate Rate

	// Capacity is how much fits into the bucket; at most 2^30-1.
	// Default: as much as drains in a second, at least 1.
	Capacity int

	// MaxWait is how long Acquire may hold a call back so that calls leave the
	// bucket evenly, as Wait does. Default: 0, Acquire holds no call back and
	// refuses what does not fit, as Allow does.
	MaxWait time.Duration

	// Observer hears core.KindRejected for each refusal, core.KindPaused and
	// core.KindReconfigured. Default: none.
	Observer core.Observer
}

// LeakyBucket is a bucket with a hole: each call pours in its cost, it drains at
// Rate, and what would make it overflow is refused. It can be used in two ways,
// even at once:
//
//   - as a meter (Turner, 1986): Allow and Take let a call through at once if
//     there is room for it. That is a token bucket seen from below, with as much
//     burst as Capacity;
//   - as a shaper, or queue: Wait, Reserve, and Acquire with a MaxWait, keep a
//     call in the bucket until all that came before has drained. Calls leave it
//     evenly, one each 1/Rate and none in a burst, and at most Capacity of them
//     are in it: those that have drained not yet, the one that has just left
//     included.
//
// It is safe for concurrent use, a core.Guard, core.Ready, core.Refuser and
// core.Component, and needs no Close. A nil *LeakyBucket is no limit.
type LeakyBucket struct{ bucket bucket }

// NewLeakyBucket makes an empty bucket. The error lists every bad field of cfg;
// errors.Is(err, core.ErrConfig).
func NewLeakyBucket(cfg LeakyBucketConfig) (*LeakyBucket, error) {
	p := core.Check("limit.LeakyBucketConfig")
	cfg.check(p, "")
	if err := p.Err(); err != nil {
		return nil, err
	}
	b := &LeakyBucket{bucket{shaped: true}}
	b.bucket.init(cfg.tokenBucket())
	return b, nil
}

func (cfg LeakyBucketConfig) check(p *core.Problems, in string) {
	problem := cfg.Rate.problem()
	p.If(problem != "", in+"Rate", cfg.Rate, problem)
	p.If(cfg.Capacity < 0 || int64(cfg.Capacity) > maxBurst, in+"Capacity", cfg.Capacity, "must be 0 to 1073741823")
	p.If(cfg.MaxWait < 0, in+"MaxWait", cfg.MaxWait, "must not be negative")
}

// tokenBucket is the token bucket that does the same as a meter, with defaults.
func (cfg LeakyBucketConfig) tokenBucket() TokenBucketConfig {
	if cfg.Name == "" {
		cfg.Name = "leaky_bucket"
	}
	return TokenBucketConfig{
		Name: cfg.Name, Rate: cfg.Rate, Burst: cfg.Capacity, MaxWait: cfg.MaxWait, Observer: cfg.Observer,
	}.withDefaults()
}

// Allow pours in a cost of 1 if it fits, and reports whether it did.
func (b *LeakyBucket) Allow() bool { return b == nil || b.bucket.allow(1) }

// AllowN pours in n if that fits, and reports whether it did; it never pours in a
// part. It is false for a negative n and for one above the capacity, and true
// for 0.
func (b *LeakyBucket) AllowN(n int) bool {
	if b == nil {
		return n >= 0
	}
	return b.bucket.allow(n)
}

// Take is AllowN that also says how much room is left.
func (b *LeakyBucket) Take(n int) Decision {
	if b == nil {
		return unlimited(n)
	}
	return b.bucket.takeDecision(n)
}

// Peek is what Take would say, without pouring in anything: Peek(0) is how
// things stand.
func (b *LeakyBucket) Peek(n int) Decision {
	if b == nil {
		return unlimited(n)
	}
	return b.bucket.peek(n)
}

// Reserve pours in n, if it fits and all before it will have drained within
// maxWait, and does not wait: the Reservation says for how long to. The errors
// are those of Wait.
func (b *LeakyBucket) Reserve(n int, maxWait time.Duration) (Reservation, error) {
	if b == nil {
		return Reservation{}, malformed(n)
	}
	return reserve(&b.bucket.limiter, &b.bucket, n, max(1, maxWait))
}

// Wait pours in n and returns when all that came before has drained. It fails at
// once, and pours in nothing, if that does not fit, if ctx is done already, or
// if its deadline comes first. If ctx ends during the wait, the place is given
// up where that does not break the limit, and nobody else's turn changes.
//
// The error is a *core.Rejection: ErrLimited, with the context's error in it if
// that ended the wait; ErrNeverFits if n is above the capacity; ErrInvalidCost
// if it is negative.
func (b *LeakyBucket) Wait(ctx context.Context, n int) error {
	if b == nil {
		return waitForNothing(ctx, n)
	}
	if ctx.Err() == nil {
		if ok, _ := b.bucket.quick(n, true); ok {
			return nil
		}
	}
	_, err := acquire(ctx, &b.bucket.limiter, &b.bucket, n, forever)
	return err
}

// Acquire pours in the cost of one call, call.Weight(). Without MaxWait it lets
// the call through at once or refuses it, as Allow does; with MaxWait it holds it
// back as Wait does, and refuses at once what it would have to hold back longer.
// The errors are those of Wait, and permits are as those of a TokenBucket.
func (b *LeakyBucket) Acquire(ctx context.Context, call core.Call) (core.Permit, error) {
	if b == nil {
		return core.Permit{}, malformed(call.Weight())
	}
	return permit(ctx, &b.bucket.limiter, &b.bucket, call.Weight(), b.bucket.in.Load().maxWait)
}

// Charge pours in n whether it fits or not: for a cost that is known only
// afterwards. There is a bound to that: see TokenBucket's.
func (b *LeakyBucket) Charge(n int) {
	if b != nil {
		b.bucket.debit(n)
	}
}

// Refund takes n out of the bucket, which then count as never poured in. It is
// never more than empty.
func (b *LeakyBucket) Refund(n int) {
	if b != nil {
		b.bucket.credit(n)
	}
}

// Pause stops the bucket: until then nobody is admitted, and nothing drains. A
// later call replaces an earlier one: a time that is past ends the pause.
func (b *LeakyBucket) Pause(until time.Time) {
	if b != nil {
		b.bucket.pause(until)
	}
}

// Reconfigure changes Rate, Capacity and MaxWait, while calls go on; what is in
// the bucket stays in it. See TokenBucket's.
func (b *LeakyBucket) Reconfigure(cfg LeakyBucketConfig) error {
	p := core.Check("limit.LeakyBucketConfig")
	cfg.check(p, "")
	if err := p.Err(); err != nil || b == nil {
		return err
	}
	b.bucket.reconfigure(cfg.tokenBucket())
	return nil
}

// Ready reports whether a cost of 1 fits now.
func (b *LeakyBucket) Ready() bool { return b.Peek(1).OK }

// Refusal is the *core.Rejection that a call of cost 1 would get now, or nil.
func (b *LeakyBucket) Refusal() *core.Rejection {
	if b == nil {
		return nil
	}
	return b.bucket.refusal()
}

// Stats reads the counters. Those of a nil *LeakyBucket are zero.
func (b *LeakyBucket) Stats() Stats {
	if b == nil {
		return Stats{}
	}
	return b.bucket.stats()
}

// Name is the configured name.
func (b *LeakyBucket) Name() string {
	if b == nil {
		return ""
	}
	return b.bucket.name
}

// Inspect reports the bucket as it is now.
func (b *LeakyBucket) Inspect() core.Report {
	if b == nil {
		return core.Report{Kind: "leaky_bucket"}
	}
	r := b.bucket.in.Load()
	return b.bucket.report("leaky_bucket", b.Stats(), []core.Setting{
		{Name: "Rate", Value: r.rate},
		{Name: "Capacity", Value: r.burst},
		{Name: "MaxWait", Value: r.maxWait},
	})
}

func (b *LeakyBucket) parts() []part {
	if b == nil {
		return nil
	}
	return []part{bucketPart{&b.bucket, b}}
}
