package pool

import (
	"time"

	"github.com/surgewall/surgewall/core"
)

// Stats is a pool at one moment. All of it was true at the same time.
type Stats struct {
	// Total is the resources there are: Idle, Used and Checking.
	Total    int
	Idle     int // ready to be lent
	Used     int // lent
	Checking int // idle, and being checked
	Dialing  int // being dialled
	Closing  int // being closed
	Waiting  int // callers that wait

	Acquired    uint64 // loans
	Waited      uint64 // loans that had to be waited for
	TimedOut    uint64 // refused: AcquireTimeout was over
	Cancelled   uint64 // refused: the caller's ctx was over
	Overloaded  uint64 // refused with ErrOverloaded
	Unavailable uint64 // refused with ErrUnavailable
	Closed      uint64 // refused with ErrClosed

	WaitTime time.Duration // how long loans were waited for, in sum
	UseTime  time.Duration // how long ended loans lasted, in sum

	Created      uint64 // successful dials
	DialFailures uint64

	// Destroyed resources, by why.
	DestroyedLifetime  uint64 // older than MaxAge
	DestroyedIdle      uint64 // idle for MaxIdleTime
	DestroyedBroken    uint64 // Lease.Destroy
	DestroyedUnhealthy uint64 // Check or Valid said no
	DestroyedClosed    uint64 // the pool was closed
}

// counters only grow. They are guarded by the pool's mu.
type counters struct {
	acquired, waited      uint64
	waitTime, useTime     time.Duration
	created, dialFailures uint64
	refused               [refusalKinds]uint64
	destroyed             [destroyReasons]uint64
}

// Stats reads the pool. It takes constant time.
func (p *Pool[T]) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.statsLocked()
}

func (p *Pool[T]) statsLocked() Stats {
	return Stats{
		Total:    p.totalLocked(),
		Idle:     len(p.idle),
		Used:     p.used,
		Checking: p.checking,
		Dialing:  p.dialing,
		Closing:  p.closing,
		Waiting:  p.waiters.n,

		Acquired:    p.n.acquired,
		Waited:      p.n.waited,
		TimedOut:    p.n.refused[refusedTimedOut],
		Cancelled:   p.n.refused[refusedCancelled],
		Overloaded:  p.n.refused[refusedOverloaded],
		Unavailable: p.n.refused[refusedUnavailable],
		Closed:      p.n.refused[refusedClosed],

		WaitTime: p.n.waitTime,
		UseTime:  p.n.useTime,

		Created:      p.n.created,
		DialFailures: p.n.dialFailures,

		DestroyedLifetime:  p.n.destroyed[lifetime],
		DestroyedIdle:      p.n.destroyed[unused],
		DestroyedBroken:    p.n.destroyed[broken],
		DestroyedUnhealthy: p.n.destroyed[unhealthy],
		DestroyedClosed:    p.n.destroyed[shutDown],
	}
}

// totalLocked is how many resources are alive.
func (p *Pool[T]) totalLocked() int { return len(p.idle) + p.used + p.checking }

// Inspect reports the pool. Its state is "open", "unavailable" while Acquire
// refuses with ErrUnavailable, or "closed".
func (p *Pool[T]) Inspect() core.Report {
	p.mu.Lock()
	s := p.statsLocked()
	state, since := "open", p.since
	switch {
	case p.closed:
		state = "closed"
	case p.unavailableLocked(p.clock.Now()):
		state, since = "unavailable", p.failingSince
	}
	p.mu.Unlock()
	const (
		resources = "surgewall.pool.resources"
		refused   = "surgewall.pool.acquisitions.refused"
		destroyed = "surgewall.pool.resources.destroyed"
	)
	return core.Report{
		Kind:     "pool",
		Name:     p.cfg.Name,
		State:    state,
		Since:    p.clock.Time(since),
		Settings: p.cfg.settings(),
		Values: []core.Value{
			core.Amount(resources, "{resource}", int64(s.Idle)).With("state", "idle"),
			core.Amount(resources, "{resource}", int64(s.Used)).With("state", "used"),
			core.Amount(resources, "{resource}", int64(s.Checking)).With("state", "checking"),
			core.Amount(resources, "{resource}", int64(s.Dialing)).With("state", "dialing"),
			core.Amount(resources, "{resource}", int64(s.Closing)).With("state", "closing"),
			core.Amount("surgewall.pool.resources.max", "{resource}", int64(p.cfg.Max)),
			core.Amount("surgewall.pool.resources.idle.min", "{resource}", int64(p.cfg.idleFloor())),
			core.Amount("surgewall.pool.waiters", "{call}", int64(s.Waiting)),
			core.Count("surgewall.pool.acquisitions", "{call}", s.Acquired),
			core.Count("surgewall.pool.acquisitions.waited", "{call}", s.Waited),
			core.Count(refused, "{call}", s.TimedOut).With("error.type", "timeout"),
			core.Count(refused, "{call}", s.Cancelled).With("error.type", "canceled"),
			core.Count(refused, "{call}", s.Overloaded).With("error.type", core.Overloaded.String()),
			core.Count(refused, "{call}", s.Unavailable).With("error.type", core.Unavailable.String()),
			core.Count(refused, "{call}", s.Closed).With("error.type", core.Closed.String()),
			seconds("surgewall.pool.wait_time", s.WaitTime),
			seconds("surgewall.pool.use_time", s.UseTime),
			core.Count("surgewall.pool.resources.created", "{resource}", s.Created),
			core.Count("surgewall.pool.dials.failed", "{dial}", s.DialFailures),
			core.Count(destroyed, "{resource}", s.DestroyedLifetime).With("reason", destroyNames[lifetime]),
			core.Count(destroyed, "{resource}", s.DestroyedIdle).With("reason", destroyNames[unused]),
			core.Count(destroyed, "{resource}", s.DestroyedBroken).With("reason", destroyNames[broken]),
			core.Count(destroyed, "{resource}", s.DestroyedUnhealthy).With("reason", destroyNames[unhealthy]),
			core.Count(destroyed, "{resource}", s.DestroyedClosed).With("reason", destroyNames[shutDown]),
		},
	}
}

// seconds is a sum of times that only grows.
func seconds(name string, d time.Duration) core.Value {
	return core.Value{Name: name, Unit: "s", Type: core.Counter, Number: d.Seconds()}
}
