package retry

import (
	"time"

	"github.com/surgewall/surgewall/core/internal/jitter"
)

// The defaults of a Backoff.
const (
	DefaultBase = 50 * time.Millisecond
	DefaultCap  = 2 * time.Second
)

// Backoff says how long to pause before a retry: a random time, whose bound
// doubles with each retry in a row. That is "full jitter" of M. Brooker,
// "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: callers that
// failed together come back spread over the whole time, which costs the fewest
// attempts.
//
// The zero Backoff is ready to use. It is a value and safe for concurrent use.
type Backoff struct {
	// Base is the most that the first pause lasts. Default: DefaultBase. If it
	// is negative there are no pauses.
	Base time.Duration

	// Cap is the most that any pause lasts. Default: DefaultCap. If it is
	// negative there are no pauses.
	Cap time.Duration
}

// Pause is how long to pause before the n-th retry, counted from 1: a random
// time from 0 to the lesser of Cap and Base·2^(n-1), all alike probable. It is 0
// if n is below 1.
func (b Backoff) Pause(n int) time.Duration {
	if b.Base == 0 {
		b.Base = DefaultBase
	}
	if b.Cap == 0 {
		b.Cap = DefaultCap
	}
	return jitter.Full(n, b.Base, b.Cap)
}
