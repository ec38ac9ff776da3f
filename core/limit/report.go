package limit

import (
	"context"

	"github.com/surgewall/surgewall/core"
)

// Stats is a rate limiter at one moment.
type Stats struct {
	Admitted  uint64 // calls admitted, and reservations
	Refused   uint64 // calls refused, for whatever reason
	Cancelled uint64 // calls admitted whose permit or reservation was cancelled
	Available int    // what could be taken now, at once
	Limit     int    // the most that could: burst, capacity, the limit of a window
}

func (l *limiter) report(kind string, s Stats, settings []core.Setting) core.Report {
	return core.Report{
		Kind: kind, Name: l.name, Since: l.since,
		Values: append(callValues(s.Admitted, s.Refused),
			core.Amount("surgewall.rate_limiting.tokens.available", "{token}", int64(s.Available))),
		Settings: settings,
	}
}

// refusedDecision is what a limiter says to a call of n that it has refused, d
// being how things stood a moment later.
func refusedDecision(d Decision, n int) Decision {
	if d.OK && n > 0 {
		d.OK, d.RetryAfter = false, 1
	}
	if n > 0 {
		d.Remaining = min(d.Remaining, n-1)
	}
	return d
}

func callValues(admitted, refused uint64) []core.Value {
	return []core.Value{
		core.Count("surgewall.rate_limiting.requests", "{request}", admitted).With("result", "acquired"),
		core.Count("surgewall.rate_limiting.requests", "{request}", refused).With("result", "rejected"),
	}
}

// What a nil limiter says, which is no limit.

func unlimited(n int) Decision {
	d := Decision{OK: n >= 0, Limit: maxBurst, Remaining: maxBurst}
	if !d.OK {
		d.RetryAfter = Never
	}
	return d
}

func malformed(n int) error {
	if n < 0 {
		return &core.Rejection{Guard: "none", Reason: core.InvalidCost, Err: ErrInvalidCost}
	}
	return nil
}

func waitForNothing(ctx context.Context, n int) error {
	if err := malformed(n); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return &core.Rejection{Guard: "none", Reason: core.RateLimited, Err: ErrLimited, Cause: err}
	}
	return nil
}
