package balance

import (
	"time"

	"github.com/surgewall/surgewall/core"
)

// Stats is a Balancer's numbers at one moment. Read while calls begin and end,
// they may be off by those.
type Stats struct {
	// The picks that found nothing, by sentinel.
	NoBackend, NoneHealthy, AllTried uint64

	// Backends are those in the list now, in its order.
	Backends []BackendStats
}

// BackendStats is one backend's numbers since it came into the list.
type BackendStats struct {
	ID       string
	Healthy  bool      // as marked; its guard may refuse all the same
	Ready    bool      // whether its guard would admit a call; true without one
	Since    time.Time // when it came or was marked as it is now
	InFlight int64     // leases that are not finished
	Picks    uint64    // leases made

	// The leases finished, by how.
	Successes, Failures, Throttled, Ignored, Cancelled uint64
}

// Stats reads all numbers. It takes no lock, and calls Ready of the backends'
// guards.
func (b *Balancer[T]) Stats() Stats { return b.stats(b.snap.Load()) }

func (b *Balancer[T]) stats(s *snapshot[T]) Stats {
	stats := Stats{
		NoBackend:   b.refused[noBackend].Load(),
		NoneHealthy: b.refused[noneHealthy].Load(),
		AllTried:    b.refused[allTried].Load(),
		Backends:    make([]BackendStats, len(s.members)),
	}
	for i, m := range s.members {
		stats.Backends[i] = BackendStats{
			ID:        m.ID,
			Healthy:   m.state == healthy,
			Ready:     m.ready == nil || m.ready.Ready(),
			Since:     b.clock.Time(m.since),
			InFlight:  m.inFlight(),
			Picks:     m.picks.Load(),
			Successes: m.ends[core.Success].Load(),
			Failures:  m.ends[core.Failure].Load(),
			Throttled: m.ends[core.Throttled].Load(),
			Ignored:   m.ends[core.Ignored].Load(),
			Cancelled: m.ends[cancelled].Load(),
		}
	}
	return stats
}

// Inspect reports the backends as children, each with the report of its guard
// if that is a core.Component. The state is "healthy" when every backend is
// marked healthy and its guard is ready, "degraded" when some are, "down" when
// none is, "empty" when there is no backend; since when is not known.
func (b *Balancer[T]) Inspect() core.Report {
	snap := b.snap.Load()
	stats := b.stats(snap)
	r := core.Report{
		Kind: "balancer", Name: b.name,
		Values: []core.Value{
			core.Count(refusals, "{call}", stats.NoBackend).With("reason", noBackend.String()),
			core.Count(refusals, "{call}", stats.NoneHealthy).With("reason", noneHealthy.String()),
			core.Count(refusals, "{call}", stats.AllTried).With("reason", allTried.String()),
		},
		Settings: []core.Setting{
			{Name: "Policy", Value: b.policy.String()},
			{Name: "AllowEmpty", Value: b.allowEmpty},
		},
	}
	up := 0
	for i, m := range snap.members {
		s := stats.Backends[i]
		if s.Healthy && s.Ready {
			up++
		}
		r.Children = append(r.Children, m.report(s))
	}
	r.Values = append(r.Values,
		core.Amount(backends, "{backend}", int64(up)).With("state", "available"),
		core.Amount(backends, "{backend}", int64(len(snap.members)-up)).With("state", "unavailable"))
	switch {
	case len(snap.members) == 0:
		r.State = "empty"
	case up == 0:
		r.State = "down"
	case up < len(snap.members):
		r.State = "degraded"
	default:
		r.State = "healthy"
	}
	return r
}

// The names of the metrics in reports.
const (
	refusals = "surgewall.balancer.refusals"
	backends = "surgewall.balancer.backends"
	picks    = "surgewall.balancer.backend.picks"
	calls    = "surgewall.balancer.backend.calls"
	inFlight = "surgewall.balancer.backend.in_flight"
)

func (m *member[T]) report(s BackendStats) core.Report {
	r := core.Report{
		Kind: "backend", Name: m.ID, State: m.state.String(), Since: s.Since,
		Values: []core.Value{
			core.Count(picks, "{call}", s.Picks),
			core.Amount(inFlight, "{call}", s.InFlight),
			core.Count(calls, "{call}", s.Successes).With("outcome", core.Success.String()),
			core.Count(calls, "{call}", s.Failures).With("outcome", core.Failure.String()),
			core.Count(calls, "{call}", s.Throttled).With("outcome", core.Throttled.String()),
			core.Count(calls, "{call}", s.Ignored).With("outcome", core.Ignored.String()),
			core.Count(calls, "{call}", s.Cancelled).With("outcome", "cancelled"),
		},
		Settings: []core.Setting{{Name: "Weight", Value: m.weight()}},
	}
	if c, ok := m.Guard.(core.Component); ok {
		r.Children = []core.Report{c.Inspect()}
	}
	return r
}
