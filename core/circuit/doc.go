// Package circuit stops calling what does not answer.
//
// A [Breaker] watches how the calls that it admits end. While they succeed it
// is closed and admits everything. After a number of failures in a row, or when
// too many of the calls of some time fail or are slow, it opens, and refuses at
// once, which spares the caller the wait and the callee the load. When the open
// time is over it is half-open: it admits a few calls as probes, closes after
// enough successes, and opens again at the first failure.
//
// A [Group] is a breaker for each host, route or shard. A [Throttle] is for what a
// breaker is too coarse for: it refuses a part of the calls, as many as the other
// side would refuse anyway.
//
// It is the pattern of M. Nygard, "Release It!", 2nd ed. (2018), chapter 5.
//
//	breaker, err := circuit.New(circuit.Config{Name: "payments"})
//	…
//	err = core.Do(ctx, breaker, func(ctx context.Context) error {
//		return charge(ctx, order)
//	})
//	if errors.Is(err, circuit.ErrOpen) {
//		// not called
//	}
package circuit
