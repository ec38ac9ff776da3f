package pool

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/surgewall/surgewall/core"
)

// Off, as the value of a field of Config that allows it, switches off what the
// field limits. A field left at 0 has its default.
const Off = -1

// Config configures a Pool. Only Dial is needed.
//
// The functions are called from the pool's own goroutines, except Valid,
// OnAcquire and OnRelease, with no lock held, and may be called concurrently.
// One that panics or exits its goroutine has failed; the pool goes on.
type Config[T any] struct {
	// Name names the pool in errors, events and reports. Default "pool".
	Name string

	// Dial makes a resource. It must return soon after ctx ends, which it does
	// after DialTimeout and when the pool is closed. A value returned with an
	// error is dropped.
	Dial func(ctx context.Context) (T, error)

	// Close ends a resource. It should return when ctx ends, after CloseGrace.
	// Default: the resource's own Close() error, if it is an io.Closer; else
	// nothing is called.
	Close func(ctx context.Context, v T)

	// Check asks an idle resource whether it still works, and may use the
	// network. An error, ctx's included, destroys the resource. A resource that
	// has been idle and unchecked for CheckEvery is not lent before it was
	// checked. That is done in the background, for several at once, so that a
	// caller never waits for one resource that does not answer while another
	// comes free. Default: no check.
	Check func(ctx context.Context, v T) error

	// Valid says whether an idle resource is still fit to be lent. It is called
	// by Acquire, in the caller's goroutine, each time a resource is taken from
	// among the idle, so it must not wait for anything. If it says no, the
	// resource is destroyed and another is taken. Default: all are.
	Valid func(v T) bool

	// OnAcquire prepares a resource for the caller that is about to get it: it
	// sets the tenant that ctx names, say. It is called by Acquire, in the
	// caller's goroutine and with its ctx, for each loan. An error destroys the
	// resource and is what Acquire returns, as it is; one that wraps ErrUnfit
	// makes Acquire take another resource instead. Default: nothing.
	OnAcquire func(ctx context.Context, v T) error

	// OnRelease undoes what a caller has done to a resource. It is called by
	// Lease.Release, which waits for it, before anybody else is lent the
	// resource. ctx has the values of Acquire's ctx and not its end: it ends
	// after CheckTimeout. If OnRelease says false, the resource is destroyed.
	// Default: nothing.
	OnRelease func(ctx context.Context, v T) (fit bool)

	// MinIdle is how many idle resources the pool keeps ready above those in
	// use, as far as Max allows. They are dialled when the pool is made, when
	// resources are destroyed, and every second if use has eaten into them.
	// Default 5, or Max if that is less; Off: none.
	MinIdle int

	// Max is how many resources there may be: idle, in use, being dialled and
	// being closed together. Default 20.
	Max int

	// MaxAge is how long a resource lives. One that is older is not lent again:
	// it is closed when it is given back, or within a second when idle.
	// Default 300 s; Off: for ever.
	MaxAge time.Duration

	// MaxAgeJitter shortens each resource's life by a random part of itself, so
	// that those made together do not end together. Default a tenth of MaxAge;
	// Off: none.
	MaxAgeJitter time.Duration

	// MaxIdleTime is how long a resource may stay idle before it is closed, if
	// there are more idle ones than MinIdle. Default 60 s; Off: for ever.
	MaxIdleTime time.Duration

	// AcquireTimeout is how long Acquire waits at most, apart from its ctx.
	// Default 10 s; Off: as long as ctx allows.
	AcquireTimeout time.Duration

	// MaxWaiters is how many callers may wait at once; the next is refused with
	// ErrOverloaded. Default 100 for each of Max, also after Resize;
	// Off: no bound but AcquireTimeout.
	MaxWaiters int

	// IgnoreDeadlines lets callers wait whose ctx, by all accounts, will end
	// before their turn comes. Default: such a caller is refused at once with
	// ErrOverloaded, when those ahead of it in the queue would keep the whole
	// pool busy until its deadline, by the moving average of how long resources
	// are in use.
	IgnoreDeadlines bool

	// UnavailableAfter is how long dials must have been failing, counted from
	// the start of the first of them, before callers are told ErrUnavailable
	// rather than left waiting: see Acquire. Default 1 s; Off: never.
	UnavailableAfter time.Duration

	// MaxDials is how many dials run at once. While dials fail, it is one, and
	// before each there is a random pause of up to 10 ms, doubled with each
	// failure in a row, up to 5 s; up to an eighth of UnavailableAfter while
	// that is not over. Default 2.
	MaxDials int

	// DialTimeout ends the ctx of a Dial. Default 5 s; Off: no limit.
	DialTimeout time.Duration

	// DialGuard is asked before each dial: a breaker, a limit on new
	// connections for all pools of a host. Its refusal is a failed dial, and
	// the next waits at least until its RetryAfter. Default nil: no guard.
	DialGuard core.Guard

	// CheckEvery is how long a resource stays idle before it is checked, and
	// checked again. It is of use with Check only. Default 15 s.
	CheckEvery time.Duration

	// CheckTimeout ends the ctx of a Check. Default 1 s.
	CheckTimeout time.Duration

	// CloseGrace ends the ctx of a Close, and is how long a resource that is
	// being closed still counts towards Max. Default 250 ms.
	CloseGrace time.Duration

	// LeakAfter is how long a resource may be in use before it is reported as
	// held: by KindHeld, once for each loan, in Stats and by Held. It is looked
	// at every second. Nothing is done to the resource. Default 60 s; Off: never.
	LeakAfter time.Duration

	// LeakSample makes one in so many loans remember the stack of its Acquire,
	// for Held. 1 is each of them; one that does costs about a microsecond and
	// an allocation. Default Off.
	LeakSample int

	// Observer hears KindAcquireFailed, KindCreated, KindDestroyed and KindHeld,
	// and KindAcquired and KindReleased while it wants them. Default nil: nobody.
	Observer core.Observer
}

// Validate reports all problems of the Config, as New would.
func (c Config[T]) Validate() error { return c.complete() }

// complete fills in the defaults and reports all problems.
func (c *Config[T]) complete() error {
	if c.Name == "" {
		c.Name = "pool"
	}
	if c.Close == nil {
		c.Close = func(_ context.Context, v T) {
			if closer, ok := any(v).(io.Closer); ok {
				_ = closer.Close() // it is being thrown away
			}
		}
	}
	c.completeSize()
	c.MaxAge = orDefault(c.MaxAge, 300*time.Second)
	c.MaxAgeJitter = orDefault(c.MaxAgeJitter, max(c.MaxAge/10, 0))
	c.MaxIdleTime = orDefault(c.MaxIdleTime, 60*time.Second)
	c.AcquireTimeout = orDefault(c.AcquireTimeout, 10*time.Second)
	c.UnavailableAfter = orDefault(c.UnavailableAfter, time.Second)
	c.MaxDials = orDefault(c.MaxDials, 2)
	c.DialTimeout = orDefault(c.DialTimeout, 5*time.Second)
	c.CheckEvery = orDefault(c.CheckEvery, 15*time.Second)
	c.CheckTimeout = orDefault(c.CheckTimeout, time.Second)
	c.CloseGrace = orDefault(c.CloseGrace, 250*time.Millisecond)
	c.LeakAfter = orDefault(c.LeakAfter, 60*time.Second)
	c.LeakSample = orDefault(c.LeakSample, Off)

	p := core.Check("pool.Config")
	p.If(c.Dial == nil, "Dial", nil, "must be set")
	checkSize(p, c.MinIdle, c.Max)
	p.If(c.MaxAge < Off, "MaxAge", c.MaxAge, notNegative)
	p.If(c.MaxAgeJitter < Off, "MaxAgeJitter", c.MaxAgeJitter, notNegative)
	p.If(c.MaxAge > 0 && c.MaxAgeJitter >= c.MaxAge, "MaxAgeJitter", c.MaxAgeJitter, "must be below MaxAge")
	p.If(c.MaxIdleTime < Off, "MaxIdleTime", c.MaxIdleTime, notNegative)
	p.If(c.AcquireTimeout < Off, "AcquireTimeout", c.AcquireTimeout, notNegative)
	p.If(c.MaxWaiters < Off, "MaxWaiters", c.MaxWaiters, notNegative)
	p.If(c.UnavailableAfter < Off, "UnavailableAfter", c.UnavailableAfter, notNegative)
	p.If(c.MaxDials < 1, "MaxDials", c.MaxDials, "must not be negative")
	p.If(c.DialTimeout < Off, "DialTimeout", c.DialTimeout, notNegative)
	p.If(c.CheckEvery < 0, "CheckEvery", c.CheckEvery, "must not be negative")
	p.If(c.CheckTimeout < 0, "CheckTimeout", c.CheckTimeout, "must not be negative")
	p.If(c.CloseGrace < 0, "CloseGrace", c.CloseGrace, "must not be negative")
	p.If(c.LeakAfter < Off, "LeakAfter", c.LeakAfter, notNegative)
	p.If(c.LeakSample < Off, "LeakSample", c.LeakSample, notNegative)
	return p.Err()
}

// completeSize is the part of complete that Resize needs too.
func (c *Config[T]) completeSize() {
	c.Max = orDefault(c.Max, 20)
	c.MinIdle = orDefault(c.MinIdle, min(5, max(c.Max, 0)))
}

const notNegative = "must not be negative; pool.Off switches it off"

// checkSize checks what completeSize completed.
func checkSize(p *core.Problems, minIdle, maximum int) {
	p.If(maximum < 1, "Max", maximum, "must not be negative")
	p.If(minIdle < Off, "MinIdle", minIdle, notNegative)
	p.If(maximum >= 1 && minIdle > maximum, "MinIdle", minIdle, fmt.Sprint("must not be above Max ", maximum))
}

// settings are the settings in force, for a Report, given those that Resize
// changes.
func (c *Config[T]) settings(minIdle, maximum, maxWaiters int) []core.Setting {
	return []core.Setting{
		{Name: "MinIdle", Value: minIdle},
		{Name: "Max", Value: maximum},
		{Name: "MaxAge", Value: limit(c.MaxAge)},
		{Name: "MaxAgeJitter", Value: limit(c.MaxAgeJitter)},
		{Name: "MaxIdleTime", Value: limit(c.MaxIdleTime)},
		{Name: "AcquireTimeout", Value: limit(c.AcquireTimeout)},
		{Name: "MaxWaiters", Value: bound(maxWaiters)},
		{Name: "IgnoreDeadlines", Value: c.IgnoreDeadlines},
		{Name: "UnavailableAfter", Value: limit(c.UnavailableAfter)},
		{Name: "MaxDials", Value: c.MaxDials},
		{Name: "DialTimeout", Value: limit(c.DialTimeout)},
		{Name: "CheckEvery", Value: limit(c.CheckEvery)},
		{Name: "CheckTimeout", Value: limit(c.CheckTimeout)},
		{Name: "CloseGrace", Value: limit(c.CloseGrace)},
		{Name: "LeakAfter", Value: limit(c.LeakAfter)},
		{Name: "LeakSample", Value: bound(c.LeakSample)},
	}
}

// limit is d as a reader wants it.
func limit(d time.Duration) string {
	if d < 0 {
		return "off"
	}
	return d.String()
}

// bound is n as a reader wants it.
func bound(n int) any {
	if n < 0 {
		return "off"
	}
	return n
}

func orDefault[N int | time.Duration](n, byDefault N) N {
	if n == 0 {
		return byDefault
	}
	return n
}
