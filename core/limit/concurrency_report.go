package limit

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/surgewall/surgewall/core"
)

// bulkhead is the settings of a Concurrency, and what it says under them to those
// whom it refuses, so that a flood of refusals does not allocate. It is
// immutable.
type bulkhead struct {
	limit      int
	maxWait    time.Duration
	maxWaiters int
	rejections [refusedKinds]core.Rejection
}

// refusedKind is why a call was refused, and the number of its counter.
type refusedKind uint8

const (
	refusedFull refusedKind = iota
	refusedOverloaded
	refusedLate
	refusedCancelled
	refusedDeadline
	refusedNeverFits
	refusedInvalid
	refusedKinds

	notRefused            = refusedKinds
	countCancelledPermits = int(refusedKinds) // the counter after theirs
)

func newBulkhead(name string, cfg ConcurrencyConfig) *bulkhead {
	b := &bulkhead{limit: cfg.Limit, maxWait: cfg.MaxWait, maxWaiters: cfg.MaxWaiters}
	slots := "limit " + strconv.Itoa(cfg.Limit)
	set := func(kind refusedKind, why core.Reason, err, cause error, detail string) {
		b.rejections[kind] = core.Rejection{Guard: name, Reason: why, Err: err, Cause: cause, Detail: detail}
	}
	set(refusedFull, core.ConcurrencyLimited, ErrFull, nil, slots)
	set(refusedOverloaded, core.Overloaded, ErrFull, nil, slots+", waiting "+strconv.Itoa(cfg.MaxWaiters))
	set(refusedLate, core.WaitTimeout, ErrFull, nil, slots)
	set(refusedCancelled, core.WaitTimeout, ErrFull, context.Canceled, "")
	set(refusedDeadline, core.WaitTimeout, ErrFull, context.DeadlineExceeded, "")
	set(refusedNeverFits, core.NeverFits, ErrNeverFits, nil, slots)
	set(refusedInvalid, core.InvalidCost, ErrInvalidCost, nil, "")
	return b
}

// endedBy is the refusal of a call whose context has ended with err.
func endedBy(err error) refusedKind {
	if errors.Is(err, context.DeadlineExceeded) {
		return refusedDeadline
	}
	return refusedCancelled
}

// rejection is what a call is told that was refused, because of its context's
// error ended if there is one.
func (b *bulkhead) rejection(kind refusedKind, ended error) *core.Rejection {
	r := &b.rejections[kind]
	if ended == nil || ended == r.Cause {
		return r
	}
	own := *r // a context with an error of its own
	own.Cause = ended
	return &own
}

// ConcurrencyStats is a Concurrency at one moment.
type ConcurrencyStats struct {
	Limit    int // slots there are
	InFlight int // slots taken
	Waiting  int // calls that wait

	Admitted  uint64        // calls admitted
	Waited    uint64        // calls admitted that had to wait
	WaitTime  time.Duration // how long these waited, in sum
	Cancelled uint64        // calls admitted whose permit was cancelled

	Refused    uint64 // calls refused, for whatever reason
	Overloaded uint64 // of these: MaxWaiters waited already
	TimedOut   uint64 // of these: waited for MaxWait in vain
	Abandoned  uint64 // of these: the caller's ctx was over, before the wait or during it

	// Unmatched is the slots given back that nobody had taken: above 0, a
	// caller has a bug.
	Unmatched uint64

	// FullSince is since when calls are refused or wait, and no slot was free in
	// between: where that is long ago, calls hold slots and do not end. Zero if
	// a call would be admitted, or if none has come since the last slot was
	// taken.
	FullSince time.Time
}

// Stats reads the counters. Those of a nil *Concurrency are zero.
func (c *Concurrency) Stats() ConcurrencyStats {
	if c == nil {
		return ConcurrencyStats{}
	}
	c.mu.Lock() // so that limit and word go together
	limit, word := int(c.limit.Load()), c.word.word.Load()
	waiting, unmatched := c.queue.len(), c.unmatched
	c.mu.Unlock()
	sum := func(kind refusedKind) uint64 { return c.counts.Sum(int(kind)) }
	s := ConcurrencyStats{
		Limit:      limit,
		InFlight:   limit - freeOf(word),
		Waiting:    waiting,
		Admitted:   c.word.admitted(),
		Waited:     c.waited.Load(),
		WaitTime:   time.Duration(c.waitTime.Load()),
		Cancelled:  c.counts.Sum(countCancelledPermits),
		Overloaded: sum(refusedOverloaded),
		TimedOut:   sum(refusedLate),
		Abandoned:  sum(refusedCancelled) + sum(refusedDeadline),
		Unmatched:  unmatched,
	}
	s.Refused = s.Overloaded + s.TimedOut + s.Abandoned + sum(refusedFull) + sum(refusedNeverFits) + sum(refusedInvalid)
	if since := c.fullSince.Load(); since != 0 && roomOf(word) <= 0 {
		s.FullSince = c.clock.Time(since - 1)
	}
	return s
}

// Name is the configured name.
func (c *Concurrency) Name() string {
	if c == nil {
		return ""
	}
	return c.name
}

// Inspect reports the bulkhead as it is now.
func (c *Concurrency) Inspect() core.Report {
	if c == nil {
		return core.Report{Kind: "bulkhead"}
	}
	const (
		slots    = "surgewall.bulkhead.slots"
		requests = "surgewall.bulkhead.requests"
	)
	s, in := c.Stats(), c.in.Load()
	full := 0.0
	if !s.FullSince.IsZero() {
		full = time.Since(s.FullSince).Seconds()
	}
	return core.Report{
		Kind: "bulkhead", Name: c.name, Since: c.since,
		Values: []core.Value{
			core.Amount(slots, "{slot}", int64(s.InFlight)).With("state", "used"),
			core.Amount(slots, "{slot}", int64(max(0, s.Limit-s.InFlight))).With("state", "idle"),
			core.Amount("surgewall.bulkhead.slots.max", "{slot}", int64(s.Limit)),
			core.Amount("surgewall.bulkhead.waiters", "{call}", int64(s.Waiting)),
			core.Reading("surgewall.bulkhead.full_time", "s", full),
			core.Count(requests, "{request}", s.Admitted).With("result", "acquired"),
			core.Count(requests, "{request}", s.Refused).With("result", "rejected"),
			core.Count("surgewall.bulkhead.requests.waited", "{request}", s.Waited),
			{Name: "surgewall.bulkhead.wait_time", Unit: "s", Type: core.Counter, Number: s.WaitTime.Seconds()},
			core.Count("surgewall.bulkhead.slots.unmatched", "{slot}", s.Unmatched),
		},
		Settings: []core.Setting{
			{Name: "Limit", Value: in.limit},
			{Name: "MaxWait", Value: in.maxWait},
			{Name: "MaxWaiters", Value: in.maxWaiters},
		},
	}
}

// boundless is what a bulkhead that is none says to a call that may wait.
func boundless(ctx context.Context, n int) error {
	if err := ctx.Err(); err != nil && n >= 0 {
		return &core.Rejection{Guard: "none", Reason: core.WaitTimeout, Err: ErrFull, Cause: err}
	}
	return malformed(n)
}
