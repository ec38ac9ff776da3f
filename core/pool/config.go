package pool

import (
	"context"
	"io"
	"time"

	"github.com/surgewall/surgewall/core"
)

// Off, as the value of a field of Config that allows it, switches off what the
// field limits. A field left at 0 has its default.
const Off = -1

// Config configures a Pool. Only Dial is needed.
//
// The functions are called from the pool's own goroutines, except Valid, with
// no lock held, and may be called concurrently. One that panics or exits its
// goroutine has failed; the pool goes on.
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
	// network. An error, ctx's included, destroys the resource. It runs in the
	// background for each resource that has been idle and unchecked for
	// CheckEvery; the resource is not lent meanwhile. Default: no check.
	Check func(ctx context.Context, v T) error

	// Valid says whether an idle resource is still fit to be lent. It is called
	// by Acquire, in the caller's goroutine, each time a resource is taken from
	// among the idle, so it must not wait for anything. If it says no, the
	// resource is destroyed and another is taken. Default: all are.
	Valid func(v T) bool

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
	// ErrOverloaded. Default 100 for each of Max;
	// Off: no bound but AcquireTimeout.
	MaxWaiters int

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

	// Observer hears KindAcquireFailed, KindCreated and KindDestroyed, and
	// KindAcquired and KindReleased while it wants them. Default nil: nobody.
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
	c.Max = orDefault(c.Max, 20)
	c.MinIdle = orDefault(c.MinIdle, min(5, max(c.Max, 0)))
	c.MaxAge = orDefault(c.MaxAge, 300*time.Second)
	c.MaxAgeJitter = orDefault(c.MaxAgeJitter, max(c.MaxAge/10, 0))
	c.MaxIdleTime = orDefault(c.MaxIdleTime, 60*time.Second)
	c.AcquireTimeout = orDefault(c.AcquireTimeout, 10*time.Second)
	c.MaxWaiters = orDefault(c.MaxWaiters, 100*max(c.Max, 0))
	c.UnavailableAfter = orDefault(c.UnavailableAfter, time.Second)
	c.MaxDials = orDefault(c.MaxDials, 2)
	c.DialTimeout = orDefault(c.DialTimeout, 5*time.Second)
	c.CheckEvery = orDefault(c.CheckEvery, 15*time.Second)
	c.CheckTimeout = orDefault(c.CheckTimeout, time.Second)
	c.CloseGrace = orDefault(c.CloseGrace, 250*time.Millisecond)

	const notNegative = "must not be negative; pool.Off switches it off"
	p := core.Check("pool.Config")
	p.If(c.Dial == nil, "Dial", nil, "must be set")
	p.If(c.Max < 1, "Max", c.Max, "must not be negative")
	p.If(c.MinIdle < Off, "MinIdle", c.MinIdle, notNegative)
	p.If(c.Max >= 1 && c.MinIdle > c.Max, "MinIdle", c.MinIdle, "must not be above Max")
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
	return p.Err()
}

// idleFloor is MinIdle as a number.
func (c *Config[T]) idleFloor() int { return max(c.MinIdle, 0) }

// settings are the settings in force, for a Report.
func (c *Config[T]) settings() []core.Setting {
	return []core.Setting{
		{Name: "MinIdle", Value: c.idleFloor()},
		{Name: "Max", Value: c.Max},
		{Name: "MaxAge", Value: limit(c.MaxAge)},
		{Name: "MaxAgeJitter", Value: limit(c.MaxAgeJitter)},
		{Name: "MaxIdleTime", Value: limit(c.MaxIdleTime)},
		{Name: "AcquireTimeout", Value: limit(c.AcquireTimeout)},
		{Name: "MaxWaiters", Value: bound(c.MaxWaiters)},
		{Name: "UnavailableAfter", Value: limit(c.UnavailableAfter)},
		{Name: "MaxDials", Value: c.MaxDials},
		{Name: "DialTimeout", Value: limit(c.DialTimeout)},
		{Name: "CheckEvery", Value: limit(c.CheckEvery)},
		{Name: "CheckTimeout", Value: limit(c.CheckTimeout)},
		{Name: "CloseGrace", Value: limit(c.CloseGrace)},
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
