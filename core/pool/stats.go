package pool

import (
	"time"

	"github.com/surgewall/surgewall/core"
)

// Stats is a pool at one moment. All of it was true at the same time.
type Stats struct {
	Max     int // as in the Config, or as Resize has set it
	MinIdle int

	// Total is the resources there are: Idle, Used and Checking.
	Total    int
	Idle     int // ready to be lent
	Used     int // lent
	Checking int // idle, and to be checked before they are lent
	Dialing  int // being dialled
	Closing  int // being closed
	Waiting  int // callers that wait

	Acquired    uint64 // loans
	Waited      uint64 // loans that had to be waited for, those that OnAcquire refused included
	Unfit       uint64 // resources that were to be lent, and Valid or OnAcquire did not approve of
	TimedOut    uint64 // refused: AcquireTimeout was over
	Cancelled   uint64 // refused: the caller's ctx was over
	Overloaded  uint64 // refused with ErrOverloaded: MaxWaiters waited
	Doomed      uint64 // refused with ErrOverloaded: the deadline came before the turn
	Unavailable uint64 // refused with ErrUnavailable
	Closed      uint64 // refused with ErrClosed

	Wait   Histogram // how long each of Waited was waited for; the other loans were not
	Use    Histogram // how long ended loans lasted
	Create Histogram // how long each of Created took

	Held uint64 // loans that lasted longer than LeakAfter, those that ended included

	Created      uint64 // successful dials
	DialFailures uint64

	// Destroyed resources, by why.
	DestroyedLifetime  uint64 // older than MaxAge
	DestroyedIdle      uint64 // idle for MaxIdleTime
	DestroyedBroken    uint64 // Lease.Destroy
	DestroyedUnhealthy uint64 // Check or Valid said no
	DestroyedReset     uint64 // Reset
	DestroyedResize    uint64 // more than Max after Resize
	DestroyedClosed    uint64 // the pool was closed
}

// counters only grow. They are guarded by the pool's mu.
type counters struct {
	lent, unlent      uint64
	waited            uint64
	wait, use, create Histogram
	dialFailures      uint64
	held              uint64
	refused           [refusalKinds]uint64
	destroyed         [destroyReasons]uint64
}

// Stats reads the pool. It takes constant time.
func (p *Pool[T]) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.statsLocked()
}

func (p *Pool[T]) statsLocked() Stats {
	return Stats{
		Max:      p.max,
		MinIdle:  p.minIdle,
		Total:    len(p.live),
		Idle:     len(p.idle),
		Used:     p.used,
		Checking: p.checking + len(p.due),
		Dialing:  p.dialing,
		Closing:  p.closing,
		Waiting:  p.waiters.n,

		Acquired:    p.n.lent - p.n.unlent - uint64(p.pending.Load()),
		Waited:      p.n.waited,
		Unfit:       p.n.unlent,
		TimedOut:    p.n.refused[refusedTimedOut],
		Cancelled:   p.n.refused[refusedCancelled],
		Overloaded:  p.n.refused[refusedOverloaded],
		Doomed:      p.n.refused[refusedDoomed],
		Unavailable: p.n.refused[refusedUnavailable],
		Closed:      p.n.refused[refusedClosed],

		Wait:   p.n.wait,
		Use:    p.n.use,
		Create: p.n.create,

		Held: p.n.held,

		Created:      p.n.create.Count(),
		DialFailures: p.n.dialFailures,

		DestroyedLifetime:  p.n.destroyed[lifetime],
		DestroyedIdle:      p.n.destroyed[unused],
		DestroyedBroken:    p.n.destroyed[broken],
		DestroyedUnhealthy: p.n.destroyed[unhealthy],
		DestroyedReset:     p.n.destroyed[outdated],
		DestroyedResize:    p.n.destroyed[surplus],
		DestroyedClosed:    p.n.destroyed[shutDown],
	}
}

// Inspect reports the pool. Its state is "open", "unavailable" while Acquire
// refuses with ErrUnavailable, or "closed".
func (p *Pool[T]) Inspect() core.Report {
	p.mu.Lock()
	s, maxWaiters := p.statsLocked(), p.maxWaiters
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
		Settings: p.cfg.settings(s.MinIdle, s.Max, maxWaiters),
		Values: []core.Value{
			core.Amount(resources, "{resource}", int64(s.Idle)).With("state", "idle"),
			core.Amount(resources, "{resource}", int64(s.Used)).With("state", "used"),
			core.Amount(resources, "{resource}", int64(s.Checking)).With("state", "checking"),
			core.Amount(resources, "{resource}", int64(s.Dialing)).With("state", "dialing"),
			core.Amount(resources, "{resource}", int64(s.Closing)).With("state", "closing"),
			core.Amount("surgewall.pool.resources.max", "{resource}", int64(s.Max)),
			core.Amount("surgewall.pool.resources.idle.min", "{resource}", int64(s.MinIdle)),
			core.Amount("surgewall.pool.waiters", "{call}", int64(s.Waiting)),
			core.Count("surgewall.pool.acquisitions", "{call}", s.Acquired),
			core.Count("surgewall.pool.acquisitions.waited", "{call}", s.Waited),
			core.Count("surgewall.pool.resources.unfit", "{resource}", s.Unfit),
			core.Count(refused, "{call}", s.TimedOut).With("error.type", "timeout"),
			core.Count(refused, "{call}", s.Cancelled).With("error.type", "canceled"),
			core.Count(refused, "{call}", s.Overloaded).With("error.type", core.Overloaded.String()),
			core.Count(refused, "{call}", s.Doomed).With("error.type", "deadline"),
			core.Count(refused, "{call}", s.Unavailable).With("error.type", core.Unavailable.String()),
			core.Count(refused, "{call}", s.Closed).With("error.type", core.Closed.String()),
			seconds("surgewall.pool.wait_time", s.Wait.Sum),
			seconds("surgewall.pool.use_time", s.Use.Sum),
			s.Wait.report("surgewall.pool.wait.duration"),
			s.Use.report("surgewall.pool.use.duration"),
			s.Create.report("surgewall.pool.create.duration"),
			core.Count("surgewall.pool.resources.held", "{resource}", s.Held),
			core.Count("surgewall.pool.resources.created", "{resource}", s.Created),
			core.Count("surgewall.pool.dials.failed", "{dial}", s.DialFailures),
			core.Count(destroyed, "{resource}", s.DestroyedLifetime).With("reason", destroyNames[lifetime]),
			core.Count(destroyed, "{resource}", s.DestroyedIdle).With("reason", destroyNames[unused]),
			core.Count(destroyed, "{resource}", s.DestroyedBroken).With("reason", destroyNames[broken]),
			core.Count(destroyed, "{resource}", s.DestroyedUnhealthy).With("reason", destroyNames[unhealthy]),
			core.Count(destroyed, "{resource}", s.DestroyedReset).With("reason", destroyNames[outdated]),
			core.Count(destroyed, "{resource}", s.DestroyedResize).With("reason", destroyNames[surplus]),
			core.Count(destroyed, "{resource}", s.DestroyedClosed).With("reason", destroyNames[shutDown]),
		},
	}
}

// seconds is a sum of times that only grows.
func seconds(name string, d time.Duration) core.Value {
	return core.Value{Name: name, Unit: "s", Type: core.Counter, Number: d.Seconds()}
}
