// Package core is the vocabulary that every part of surgewall speaks.
//
// Whatever says yes or no to a call is a [Guard]: a rate limiter, a circuit
// breaker, a bulkhead, a chain of them. Asking is Acquire; a yes is a [Permit],
// which is finished once with a [Result]; a no is a [*Rejection], which says
// who refused, why, and when to try again. An adapter, such as an HTTP
// middleware or a SQL driver, knows no more than that, so any guard stands in
// front of any work:
//
//	err := core.Do(ctx, guard, func(ctx context.Context) error {
//		return charge(ctx, order)
//	})
//
// [Chain] makes one guard of several, [Wrap] makes a guarded function of a
// function, [Shadow] lets a guard decide without refusing. Rare happenings are
// pushed to an [Observer] as an [Event]; counts are pulled from a [Component]
// as a [Report].
//
// The package needs the standard library alone.
package core
