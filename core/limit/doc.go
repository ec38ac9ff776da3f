// Package limit holds rates: it says how often something may happen, and
// refuses or delays what comes more often than that.
//
// [TokenBucket] is one limit, [Keyed] a limit for each of many keys. Both admit
// at most rate·t + burst in any time t, whatever the number of goroutines and
// whatever the clock does, and both are guards, so that an adapter can put them
// in front of any work. For a question and a boolean there are Allow and
// AllowN; Wait is for work that should go ahead later rather than be refused.
//
// Limiters own no goroutine and no timer beyond that of a call that waits, so
// there is nothing to close.
package limit
