package limit

import (
	"math"
	"time"
)

// Decision is what a limiter says to one call.
type Decision struct {
	// OK: the call was admitted, or, of Peek, would be.
	OK bool

	// Limit is the most that fits at once: a bucket's burst or capacity, the
	// limit of a window, the slots of a bulkhead.
	Limit int

	// Remaining is how much more could be taken at once, after this call.
	Remaining int

	// RetryAfter is the time until the same call could be admitted: 0 if OK,
	// Never if it cannot ever fit. A bulkhead does not know, and says 0.
	RetryAfter time.Duration

	// ResetAfter is the time until the limiter is as if it had never been used,
	// if nobody calls. A bulkhead does not know, and says 0.
	ResetAfter time.Duration

	// Window is the time in which Limit comes anew. 0 for a bulkhead.
	Window time.Duration

	// Policy is the name of the limit that decided.
	Policy string
}

// Never is the RetryAfter of a call that no wait can help.
const Never time.Duration = math.MaxInt64
