package sqlpool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
	"github.com/surgewall/surgewall/core/retry"
)

// ClusterConfig configures a Cluster. It needs a DSN, Nodes, or Pool.ConnConfig.
// It prints without passwords, as Config does.
type ClusterConfig struct {
	// Name names the cluster in errors, events and reports.
	// Default: "cluster".
	Name string

	// DSN names all the nodes: several hosts, with a port for all or one each, as
	// in "postgres://app@db1,db2,db3/shop". Its target_session_attrs is of no
	// consequence: which node is what is found out. Instead of a DSN,
	// Pool.ConnConfig may have several hosts.
	DSN string

	// Nodes are used instead of a DSN, for nodes that differ in more than host
	// and port.
	Nodes []Node

	// Pool is how the pool of each node is made, with its own defaults. Its DSN,
	// Name, Guard and RequireServer are not used, and must not be set. A
	// DialGuard is shared by all pools. AcquireTimeout and MaxWaiters bound those
	// who wait for a primary as well. Max is for each node.
	Pool Config

	// Guard makes the guard of a node, such as a breaker. It is asked as
	// Config.Guard is, before a connection of the node's is; while it is not ready
	// or refuses, another node is picked for a read. Who waits for a node that
	// cannot be dialled counts as one failure of it, however long he waits: later
	// attempts, each of which asks the guard, are cancelled. A guard of the primary
	// refuses a write only while the primary can be asked: else writes wait for
	// one. It is called once for each node, by OpenCluster. Default nil: no guards.
	Guard func(node string) core.Guard

	// Policy spreads reads over the nodes that can serve them.
	// Default: balance.LeastInFlight.
	Policy balance.Policy

	// ProbeInterval is how often each node is asked for its role and position, on
	// a connection of its own. It is asked at once when something seems to have
	// changed, and more often while something is amiss. Default 1 s.
	ProbeInterval time.Duration

	// ProbeTimeout is how long a probe may take, and so may its connection. A
	// node that does not answer in time gets no more reads until it does; nor does
	// one of which a BeforeConnect or DialFunc has not returned a little later.
	// Default 1 s.
	ProbeTimeout time.Duration

	// MaxLag is how far behind the primary a replica may be; above it, it serves
	// no reads until it is at most half as far. While no primary can be asked,
	// that is as of the last time: who served goes on, however long it takes, who
	// was too far behind stays out, and so does who came since. Where no primary
	// was ever seen, as in a process that starts in a failover, all replicas serve.
	// Default 10 s, or four times ProbeInterval if that is more; Off: however far.
	MaxLag time.Duration

	// CatchUpWait is how long a Read that no replica satisfies yet waits for one
	// to catch up, before it goes to the primary. Default 50 ms; Off: not at all.
	CatchUpWait time.Duration

	// PrimaryReads makes the primary serve reads as the replicas do. Default: it
	// serves those that no replica can, as far as Fallback allows.
	PrimaryReads bool

	// Fallback bounds the reads that the primary takes over from replicas, so that
	// it does not go down with them. Replicas fund it by the reads that they
	// serve. It is not asked when there is only one node, or with PrimaryReads.
	// Default: one for each 5 reads of replicas, and 100 for each second, of
	// which 1000 are saved up.
	Fallback *retry.Budget

	// NoFallback refuses the reads that no replica can serve.
	NoFallback bool

	// RefuseWithoutPrimary refuses writes at once while no primary is known.
	// Default: they wait for one, at most for Pool.AcquireTimeout: a failover
	// takes seconds.
	RefuseWithoutPrimary bool

	// RequirePrimary makes OpenCluster wait for a primary, and fail without one.
	// Default: it waits for nothing.
	RequirePrimary bool

	// Observer hears core.KindBackendChanged when a node begins or ceases to be
	// used, core.KindStateChanged when its Role has changed, in order, and
	// core.KindRejected. It is the Observer of the pools too, if Pool has none.
	// Default nil: nobody.
	Observer core.Observer
}

// Node is one server of a Cluster.
type Node struct {
	// Name names the node in errors, events and reports. Default: "host:port".
	Name string

	// DSN or ConnConfig is where it is, as in Config: one host.
	DSN        string
	ConnConfig *pgx.ConnConfig

	// Weight is its share of the reads, next to those of the others. 0 means 1.
	Weight int
}

// place is a node's name, and how to connect to it and no other.
type place struct {
	name   string
	weight int
	cfg    Config // whose ConnConfig is set
}

// complete fills in the defaults, and reports all problems.
func (c *ClusterConfig) complete() ([]place, error) {
	if c.Name == "" {
		c.Name = "cluster"
	}
	if c.Policy == nil {
		c.Policy = balance.LeastInFlight()
	}
	c.ProbeInterval = orDefault(c.ProbeInterval, time.Second)
	c.ProbeTimeout = orDefault(c.ProbeTimeout, time.Second)
	c.MaxLag = orDefault(c.MaxLag, max(10*time.Second, 4*c.ProbeInterval))
	c.CatchUpWait = orDefault(c.CatchUpWait, 50*time.Millisecond)
	if c.Fallback == nil {
		// The numbers are good ones: there is no error.
		c.Fallback, _ = retry.NewBudget(retry.BudgetConfig{
			Name: c.Name + ".fallback", Percent: 20, MinPerSecond: 100, Max: 1000,
		})
	}
	if c.Pool.Observer == nil {
		c.Pool.Observer = c.Observer
	}

	const notNegative = "must not be negative; sqlpool.Off switches it off"
	p := core.Check("sqlpool.ClusterConfig")
	p.If(c.ProbeInterval < 0, "ProbeInterval", c.ProbeInterval, "must not be negative")
	p.If(c.ProbeTimeout < 0, "ProbeTimeout", c.ProbeTimeout, "must not be negative")
	p.If(c.MaxLag < Off, "MaxLag", c.MaxLag, notNegative)
	p.If(c.MaxLag > 0 && c.MaxLag < 2*c.ProbeInterval, "MaxLag", c.MaxLag,
		"must be at least twice ProbeInterval: lag is not known better")
	p.If(c.CatchUpWait < Off, "CatchUpWait", c.CatchUpWait, notNegative)
	p.If(c.NoFallback && c.PrimaryReads, "NoFallback", true, "must not be set beside PrimaryReads")
	p.If(c.Pool.DSN != "", "Pool.DSN", nil, "must not be set: use DSN or Nodes")
	p.If(c.Pool.Name != "", "Pool.Name", c.Pool.Name, "must not be set: the pools have the nodes' names")
	p.If(c.Pool.Guard != nil, "Pool.Guard", nil, "must not be set: use Guard, for each node")
	p.If(c.Pool.RequireServer, "Pool.RequireServer", nil, "must not be set: use RequirePrimary")

	places, err := c.places(p)
	seen := make(map[string]bool, len(places))
	for _, at := range places {
		p.If(seen[at.name], "Nodes", at.name, "must be named once")
		p.If(at.weight < 0, "Nodes.Weight", at.weight, "must not be negative")
		seen[at.name] = true
	}
	// The pools' own defaults: who waits for a primary waits as for a connection.
	of := c.Pool
	if len(places) > 0 {
		of = places[0].cfg
	}
	c.Pool.AcquireTimeout = orDefault(of.AcquireTimeout, 10*time.Second)
	c.Pool.MaxWaiters = orDefault(of.MaxWaiters, 100*max(orDefault(of.Max, 20), 0))
	return places, errors.Join(p.Err(), err)
}

// places are the nodes, each with the Config of its pool.
func (c *ClusterConfig) places(p *core.Problems) ([]place, error) {
	if len(c.Nodes) == 0 {
		cfg := c.Pool
		cfg.DSN = c.DSN
		if cfg.DSN == "" && cfg.ConnConfig == nil {
			p.If(true, "DSN", nil, "must be set, or Nodes, or Pool.ConnConfig")
			return nil, nil
		}
		conn, err := cfg.parse()
		if conn == nil || err != nil {
			return nil, err
		}
		cfg.DSN = ""
		var places []place
		for _, host := range hosts(conn) {
			places = append(places, newPlace(Node{}, cfg, host))
		}
		return places, nil
	}
	p.If(c.DSN != "", "DSN", nil, "must not be set beside Nodes")
	p.If(c.Pool.ConnConfig != nil, "Pool.ConnConfig", nil, "must not be set beside Nodes")
	var places []place
	var errs []error
	for i, n := range c.Nodes {
		cfg := c.Pool
		cfg.DSN, cfg.ConnConfig = n.DSN, n.ConnConfig
		conn, err := cfg.parse()
		if err != nil {
			errs = append(errs, fmt.Errorf("sqlpool.ClusterConfig.Nodes: %d: %w", i, err))
		}
		if conn == nil {
			continue
		}
		cfg.DSN = ""
		all := hosts(conn)
		p.If(len(all) > 1, "Nodes", i, "the node at this index has several hosts: each is a node")
		places = append(places, newPlace(n, cfg, all[0]))
	}
	return places, errors.Join(errs...)
}

func newPlace(n Node, cfg Config, conn *pgx.ConnConfig) place {
	if n.Name == "" {
		n.Name = net.JoinHostPort(conn.Host, strconv.Itoa(int(conn.Port)))
	}
	cfg.ConnConfig = conn
	cfg.Name = n.Name + "/" + conn.Database
	return place{n.Name, n.Weight, cfg}
}

// hosts are the ConnConfigs of the hosts of conn. What pgx calls its Fallbacks
// are the other hosts, and for each host also the ways to connect with and
// without TLS, as sslmode=prefer has two: these stay with their host.
func hosts(conn *pgx.ConnConfig) []*pgx.ConnConfig {
	type address struct {
		host string
		port uint16
	}
	ways := make(map[address][]*pgconn.FallbackConfig)
	var order []address
	first := &pgconn.FallbackConfig{Host: conn.Host, Port: conn.Port, TLSConfig: conn.TLSConfig}
	for _, way := range append([]*pgconn.FallbackConfig{first}, conn.Fallbacks...) {
		at := address{way.Host, way.Port}
		if ways[at] == nil {
			order = append(order, at)
		}
		ways[at] = append(ways[at], way)
	}
	var all []*pgx.ConnConfig
	for _, at := range order {
		one := conn.Copy()
		one.Host, one.Port, one.TLSConfig = at.host, at.port, ways[at][0].TLSConfig
		one.Fallbacks = ways[at][1:]
		one.ValidateConnect = nil // target_session_attrs: a node is itself in any role
		all = append(all, one)
	}
	return all
}

// String is the ClusterConfig without the connection strings.
func (c ClusterConfig) String() string {
	dsn := "unset"
	if c.DSN != "" || c.Pool.ConnConfig != nil {
		dsn = "withheld"
	}
	return fmt.Sprintf("sqlpool.ClusterConfig{Name: %q, DSN: %s, Nodes: %v}", c.Name, dsn, c.Nodes)
}

// Format prints String for every verb: without it, some would print the fields.
func (c ClusterConfig) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, c.String()) }

// LogValue makes slog log String.
func (c ClusterConfig) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON marshals String.
func (c ClusterConfig) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }

// String is the Node without the connection string.
func (n Node) String() string { return fmt.Sprintf("sqlpool.Node{Name: %q}", n.Name) }

// Format prints String for every verb.
func (n Node) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, n.String()) }

// LogValue makes slog log String.
func (n Node) LogValue() slog.Value { return slog.StringValue(n.String()) }

// MarshalJSON marshals String.
func (n Node) MarshalJSON() ([]byte, error) { return json.Marshal(n.String()) }

func orDefault[N int | time.Duration](n, byDefault N) N {
	if n == 0 {
		return byDefault
	}
	return n
}
