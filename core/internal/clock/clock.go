// Package clock is the time that the core packages reckon in: nanoseconds on
// the monotonic clock since an epoch of the component's own.
package clock

import "time"

// Clock counts from an epoch. It is a field, set by New when its component is
// made: an epoch kept by the package would lie outside every synctest bubble.
// It is immutable and safe for concurrent use.
type Clock struct{ epoch time.Time }

// New is a Clock that reads 0 now.
func New() Clock { return Clock{time.Now()} }

// Now is the nanoseconds since the epoch. It never runs backwards, whatever is
// done to the wall clock, and costs about half of time.Now.
func (c Clock) Now() int64 { return int64(time.Since(c.epoch)) }

// Time is the instant n nanoseconds after the epoch.
func (c Clock) Time(n int64) time.Time { return c.epoch.Add(time.Duration(n)) }

// At is t in nanoseconds since the epoch: the inverse of Time.
func (c Clock) At(t time.Time) int64 { return int64(t.Sub(c.epoch)) }
