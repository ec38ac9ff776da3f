// Package retry holds what every retry needs, whatever it is that is tried
// again: how long to pause before it, and whether there may be one at all.
//
// [Backoff] spreads the retries of many callers over time, so that they do not
// come back together.
//
// [Budget] bounds them all together. A retry helps against a failure that is
// rare. When everything fails, three attempts a call are three times the load,
// on what could not bear it before; the retries then keep it down after the
// cause is gone (Bronson et al., "Metastable Failures in Distributed Systems",
// HotOS 2021). A share of the successes is a bound that a caller with few
// failures never meets.
//
// In a loop, the budget is asked before the pause: a retry that may not be is
// known at once, and the caller gets the error that it has.
//
//	for n := 1; ; n++ {
//		err := call(ctx)
//		if err == nil {
//			budget.Fund()
//			return nil
//		}
//		if n == attempts || !worthRetrying(err) || budget.Take() != nil {
//			return err
//		}
//		select {
//		case <-time.After(backoff.Pause(n)):
//		case <-ctx.Done():
//			return err
//		}
//	}
package retry
