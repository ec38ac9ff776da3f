package sqlpool

import (
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/pool"
)

// ClusterStats is a Cluster at one moment.
type ClusterStats struct {
	// Primary is the name of the node that writes go to, "" if there is none.
	Primary string

	Nodes []NodeStats // in the order of the configuration

	NoPrimary uint64 // refused with ErrNoPrimary
	NoReplica uint64 // refused with ErrNoReplica
	Fallbacks uint64 // reads that the primary was to serve in the place of replicas
	Waiting   int    // callers that wait for a primary or for a first probe
}

// NodeStats is one node of a Cluster, as of its last probe.
type NodeStats struct {
	Name  string
	Role  Role
	Since time.Time // when it came into its Role

	// Reads says whether it serves reads that say Any.
	Reads bool

	// Lag is how far a replica is behind the primary, to about ProbeInterval; if
	// LagKnown is false it is at least that far. While the primary cannot be
	// asked, it is as of the last time.
	Lag      time.Duration
	LagKnown bool

	// FreshAt is when everything that the primary had committed then was on the
	// replica: what WithinLag goes by. It is zero when it is not known.
	FreshAt time.Time

	Position Token  // how far its log has got
	Err      error  // of the last probe; nil if it saw the node
	InFlight int64  // calls that wait for a connection or have one
	Calls    uint64 // made so far

	Pool pool.Stats
}

// clusterCounts only grow.
type clusterCounts struct {
	noPrimary, noReplica, fallbacks atomic.Uint64
}

// Stats reads the cluster.
func (c *Cluster) Stats() ClusterStats {
	v := c.view.Load()
	s := ClusterStats{
		NoPrimary: c.n.noPrimary.Load(),
		NoReplica: c.n.noReplica.Load(),
		Fallbacks: c.n.fallbacks.Load(),
		Waiting:   int(c.waiting.Load()),
	}
	if v.primary >= 0 {
		s.Primary = c.nodes[v.primary].name
	}
	backends := c.balancer.Stats().Backends
	for i, n := range c.nodes {
		is := &v.nodes[i]
		s.Nodes = append(s.Nodes, NodeStats{
			Name: n.name, Role: is.role, Since: is.since, Reads: is.reads,
			Lag: is.lag, LagKnown: is.role == RoleReplica && !is.freshAt.IsZero(), FreshAt: is.freshAt,
			Position: is.position(), Err: is.err,
			InFlight: backends[i].InFlight, Calls: backends[i].Picks,
			Pool: n.pool.Stats(),
		})
	}
	return s
}

// Inspect reports the cluster, and as children its nodes, each with its pool, and
// the budgets of InTx and of Fallback. The state is "healthy" when there is a
// primary and each other node serves reads, "degraded" when there is a primary,
// "no_primary" when there is none that can be asked, "starting" before all nodes
// were asked, or "closed".
func (c *Cluster) Inspect() core.Report {
	v, s := c.view.Load(), c.Stats()
	const (
		refused = "surgewall.cluster.refusals"
		nodes   = "surgewall.cluster.nodes"
	)
	r := core.Report{
		Kind: "sqlpool_cluster", Name: c.cfg.Name, State: c.state(v),
		Values: []core.Value{
			core.Count(refused, "{call}", s.NoPrimary).With("error.type", "no_primary"),
			core.Count(refused, "{call}", s.NoReplica).With("error.type", "no_replica"),
			core.Count("surgewall.cluster.fallbacks", "{call}", s.Fallbacks),
			core.Amount("surgewall.cluster.waiters", "{call}", int64(s.Waiting)),
		},
		Settings: []core.Setting{
			{Name: "Policy", Value: c.cfg.Policy.String()},
			{Name: "ProbeInterval", Value: c.cfg.ProbeInterval.String()},
			{Name: "ProbeTimeout", Value: c.cfg.ProbeTimeout.String()},
			{Name: "MaxLag", Value: orOff(c.cfg.MaxLag)},
			{Name: "CatchUpWait", Value: orOff(c.cfg.CatchUpWait)},
			{Name: "PrimaryReads", Value: c.cfg.PrimaryReads},
			{Name: "NoFallback", Value: c.cfg.NoFallback},
			{Name: "RefuseWithoutPrimary", Value: c.cfg.RefuseWithoutPrimary},
		},
	}
	count := make(map[Role]int64)
	for _, n := range s.Nodes {
		count[n.Role]++
	}
	for role, name := range roleNames {
		r.Values = append(r.Values, core.Amount(nodes, "{node}", count[Role(role)]).With("role", name))
	}
	for i, n := range c.nodes {
		r.Children = append(r.Children, n.report(s.Nodes[i]))
	}
	r.Children = append(r.Children, c.retries.budget.Inspect())
	if c.fallback != nil {
		r.Children = append(r.Children, c.fallback.Inspect())
	}
	return r
}

func (c *Cluster) state(v *view) string {
	switch {
	case c.closed.Load():
		return "closed"
	case !v.complete():
		return "starting"
	case v.primary < 0 || v.nodes[v.primary].role != RolePrimary:
		return "no_primary"
	}
	for i := range v.nodes {
		if i != v.primary && !v.nodes[i].reads {
			return "degraded"
		}
	}
	return "healthy"
}

func (n *node) report(s NodeStats) core.Report {
	r := core.Report{
		Kind: "sqlpool_node", Name: n.name, State: s.Role.String(), Since: s.Since,
		Values: []core.Value{
			core.Amount("surgewall.cluster.node.in_flight", "{call}", s.InFlight),
			core.Count("surgewall.cluster.node.calls", "{call}", s.Calls),
		},
		Children: []core.Report{n.pool.Inspect()},
	}
	if s.Role == RoleReplica {
		r.Values = append(r.Values, core.Reading("surgewall.cluster.node.lag", "s", s.Lag.Seconds()))
	}
	if g, ok := n.guard.(core.Component); ok {
		r.Children = append(r.Children, g.Inspect())
	}
	return r
}

// orOff is d as a reader wants it.
func orOff(d time.Duration) string {
	if d < 0 {
		return "off"
	}
	return d.String()
}
