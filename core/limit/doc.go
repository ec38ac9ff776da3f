// Package limit holds rates: it says how often something may happen, and
// refuses or delays what comes more often than that.
//
// Which limit is the right one:
//
//   - [TokenBucket], if in doubt: a rate, and a burst for callers that were
//     quiet. In any time t at most rate·t + burst.
//   - [LeakyBucket], where what comes in bursts must go out evenly: as a queue
//     it spaces calls; as a meter it is a token bucket seen from below.
//   - [SlidingWindow], for "so many in any minute" over great numbers: a counter
//     in one word, which assumes that the calls of the minute before came evenly.
//   - [SlidingLog], for the same exactly, over small numbers: it remembers when
//     each call was.
//   - [Concurrency], a bulkhead: so many at the same time, however often.
//   - [All], several rate limits at once, from all or from none.
//   - [Keyed], any of these but All for each of many keys: per client, per tenant.
//
// Each keeps its limit as it is defined, whatever the number of goroutines and
// whatever the clock does, and a refusal costs less than an admission. All are
// guards, so that an adapter can put them in front of any work. For a question
// and a boolean there are Allow and AllowN; Take and Peek also say what is left;
// Wait and Reserve are for work that should go ahead later rather than be
// refused; Charge and Refund are for costs that are known only afterwards.
//
// Limits can be paused and reconfigured while calls go on: what was taken stays
// taken. To try one out before it refuses anybody, put it behind core.Shadow.
//
// Limiters own no goroutine and no timer beyond that of a call that waits, so
// there is nothing to close.
package limit
