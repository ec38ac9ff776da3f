// Package jitter spreads retries over time.
package jitter

import (
	"math/rand/v2"
	"time"
)

// Full is how long to pause before the n-th retry, counted from 1: any time
// from 0 to base·2^(n-1), but to most at most, all alike probable. It is "full
// jitter" of M. Brooker, "Exponential Backoff And Jitter", AWS Architecture
// Blog, 2015. It is 0 if n, base or most is not above 0, and overflows for no
// values.
func Full(n int, base, most time.Duration) time.Duration {
	if n < 1 || base <= 0 || most <= 0 {
		return 0
	}
	ceiling := most
	if doublings := n - 1; base <= most>>doublings { // else base << doublings is above most
		ceiling = base << doublings
	}
	return time.Duration(rand.Uint64N(uint64(ceiling) + 1))
}
