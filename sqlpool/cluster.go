package sqlpool

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
	"github.com/surgewall/surgewall/core/retry"
)

// Cluster is a primary and its replicas, each with a Pool of its own. Make one
// with OpenCluster and end it with Close. It is safe for concurrent use.
//
// What goes where is said by the caller, with Write and Read; no statement is
// looked at. Each statement or transaction goes to one node:
//
//	_, err := c.Write().Exec(ctx, "insert into item values ($1)", id)
//	token, err := c.Token(ctx)
//	err = c.Read(sqlpool.After(token)).QueryRow(ctx, "select …").Scan(&n)
//	rows, err := c.Read(sqlpool.WithinLag(5*time.Second)).Query(ctx, "select …")
//
// Each node is asked every ProbeInterval what it is and how far its log has got,
// on a connection of its own. A promotion is followed: writes go to the node that
// says that it is a primary and is on the latest timeline that any node was seen
// on, so an old primary that comes back gets none from a process that has seen the
// new one, or one that follows it. Nothing that was sent is sent again: what was
// under way in a failover fails, and whoever has not been lent a connection yet
// gets one to the new primary.
//
// Nodes that are not copies of one another, as their system identifiers tell, are
// no cluster: of those that can be asked, the most count, and the others serve
// nothing. So what pg_upgrade made is followed once it is up and the old is not.
//
// A Cluster finds the primary. It fences none, and what accepts writes and should
// not can get some: for about ProbeInterval and ProbeTimeout after a promotion;
// from a process that starts when nothing of the new timeline can be asked; and
// from two processes that saw two promotions in a different order. Of two
// primaries of one timeline, writes stay with the one that they went to until one
// probe of it fails, and then go to the other. So whoever promotes must see to it
// that the old primary is stopped, or accepts no writes: with synchronous
// replication, one that is cut off from its replicas acknowledges none.
//
// A role that may log in can ask all of this, but of pg_stat_wal_receiver, where
// a replica's timeline is seen at once, only with pg_read_all_stats or pg_monitor.
// Without, a replica shows that it follows a new primary at its next restartpoint,
// and until then does not count as up to date.
//
// That nothing older than what was asked for is read, and no write sent to a
// standby, rests on connections that end when their server does, and on what
// PostgreSQL tells of itself since version 14. A pooler in between, which hides a
// restart, weakens it to what the last probe saw.
//
// An address is to lead to one server. If it leads to another than before, that is
// noticed by the reads that say more than Any, each of whose connections is asked
// once which server it is to; those to a server that the probe does not see are
// closed, so that an address of several servers at once serves such reads slowly.
// Writes, and reads that say Any, go wherever it leads.
type Cluster struct {
	cfg      ClusterConfig // complete; immutable
	nodes    []*node
	balancer *balance.Balancer[*node]
	fallback *retry.Budget // nil: no bound
	retries  txRetry       // of InTx
	write    Route
	anyRead  Route
	herald   *herald

	ctx    context.Context // the cluster's own life
	cancel context.CancelFunc
	ended  chan struct{} // closed when its goroutines have ended
	closed atomic.Bool

	// view is what the topology was told last. Written with mu held.
	view atomic.Pointer[view]

	mu       sync.Mutex
	topology *topology // guarded by mu
	seq      uint64    // guarded by mu: the changes of roles so far

	waiting atomic.Int64 // callers that wait for a primary, or for a first probe
	hurried atomic.Int64 // reads that wait for a replica to catch up
	n       clusterCounts
}

// view is the topology at one moment. It is immutable, but for said.
type view struct {
	nodes   []nodeView
	primary int // an index of nodes; -1: none
	system  uint64
	// stints of the nodes; each ends when its node serves less than it did.
	stints []*stint
	next   chan struct{} // closed when there is a newer view

	said atomic.Pointer[core.Rejection] // the last that was refused
}

// stint is a context that ends when a node has to be left.
type stint struct {
	context.Context
	end context.CancelFunc
}

func newStint() *stint {
	ctx, cancel := context.WithCancel(context.Background())
	return &stint{ctx, cancel}
}

// OpenCluster makes a Cluster. It fails for a bad ClusterConfig, and reports all
// its problems at once, without the connection strings.
//
// It does not wait for the servers, unless RequirePrimary is set; then it waits
// for a primary and a connection to it, at most for ctx or Pool.AcquireTimeout.
// The first statements wait until each node has been asked once, or could not be.
func OpenCluster(ctx context.Context, cfg ClusterConfig) (_ *Cluster, err error) {
	places, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		cfg:      cfg,
		herald:   newHerald(cfg.Observer),
		topology: newTopology(len(places), cfg.MaxLag, cfg.PrimaryReads),
		ended:    make(chan struct{}),
	}
	if len(places) > 1 && !cfg.PrimaryReads {
		c.fallback = cfg.Fallback
	}
	if c.retries, err = cfg.Pool.txRetry(cfg.Name); err != nil {
		return nil, err
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	started := false
	defer func() {
		if !started { // Guard or Policy has panicked, perhaps
			c.cancel()
			err = errors.Join(err, c.closePools(ctx))
		}
	}()
	if err := c.open(ctx, places); err != nil {
		return nil, err
	}
	c.publish()
	c.write = c.route(true, Any())
	c.anyRead = c.route(false, Any())
	c.start()
	started = true
	if !cfg.RequirePrimary {
		return c, nil
	}
	var s session
	if err := s.open(ctx, c.write.p); err != nil {
		return nil, errors.Join(err, c.Close(context.WithoutCancel(ctx)))
	}
	s.end()
	return c, nil
}

// open makes the nodes and their balancer.
func (c *Cluster) open(ctx context.Context, places []place) error {
	backends := make([]balance.Backend[*node], len(places))
	for i, at := range places {
		at.cfg.RetryBudget = c.retries.budget // what succeeds on any node funds it
		n, err := c.newNode(ctx, i, at)
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, n)
		backends[i] = balance.Backend[*node]{ID: n.name, Value: n, Guard: n, Weight: at.weight}
	}
	var err error
	c.balancer, err = balance.New(balance.Config[*node]{
		Name: c.cfg.Name, Backends: backends, Policy: c.cfg.Policy, Observer: c.herald.backends(),
	})
	return err
}

// start starts the goroutines, which Close ends.
func (c *Cluster) start() {
	var running sync.WaitGroup
	again(&running, c.herald.run)
	for _, n := range c.nodes {
		again(&running, func() { n.probe(c.ctx) })
	}
	go func() {
		running.Wait()
		close(c.ended)
	}()
}

// again runs fn in a goroutine until it returns: when code of the user's exits
// the goroutine, in another.
func again(running *sync.WaitGroup, fn func()) {
	running.Go(func() {
		returned := false
		defer func() {
			if !returned {
				again(running, fn)
			}
		}()
		fn()
		returned = true
	})
}

// Write is the primary. A statement that finds none waits for one, as for a
// connection: at most for Pool.AcquireTimeout, as one of at most Pool.MaxWaiters;
// then, and at once with RefuseWithoutPrimary, it is refused with ErrNoPrimary.
func (c *Cluster) Write() Route { return c.write }

// Read is a replica that satisfies by, picked anew for each statement or
// transaction. If none does, it waits for one that catches up for CatchUpWait;
// then the primary serves it, as far as Fallback allows, else it is refused with
// ErrNoReplica. Nothing older than by is ever read; a transaction reads what its
// isolation level says since its snapshot.
//
// A Read that writes is refused by a replica, with 25006, and not by the primary.
func (c *Cluster) Read(by Consistency) Route {
	if by == Any() {
		return c.anyRead
	}
	return c.route(false, by)
}

// Token is what the primary has written so far: a Read with After of it sees
// everything that was committed before the call. It costs a round trip to the
// primary and no more. Take it after the commit, not in the transaction.
func (c *Cluster) Token(ctx context.Context) (Token, error) {
	var timeline, at, system, started string
	if err := c.write.QueryRow(ctx, tokenSQL).Scan(&timeline, &at, &system, &started); err != nil {
		return Token{}, err
	}
	t, _, err := tokenOf(timeline, at, system, started)
	return t, err
}

// DB is a *sql.DB for the primary, as Write is; see Pool.DB. Close closes it too.
func (c *Cluster) DB() *sql.DB { return c.write.p.db }

// Close ends the cluster: its goroutines and their connections, and the pools,
// as Pool.Close does, all at the same time. Those who wait are refused. If ctx
// ends first, it returns an error that wraps ctx's, and the rest ends when it can.
func (c *Cluster) Close(ctx context.Context) error {
	c.closed.Store(true)
	c.cancel()
	c.herald.close()
	err := errors.Join(c.write.p.db.Close(), c.closePools(ctx))
	select {
	case <-c.ended:
	case <-ctx.Done():
		select {
		case <-c.ended:
		default:
			err = errors.Join(err, fmt.Errorf("sqlpool: close %q: %w", c.cfg.Name, ctx.Err()))
		}
	}
	return err
}

func (c *Cluster) closePools(ctx context.Context) error {
	errs := make([]error, len(c.nodes))
	var closing sync.WaitGroup
	for i, n := range c.nodes {
		closing.Go(func() { errs[i] = n.pool.Close(ctx) })
	}
	closing.Wait()
	return errors.Join(errs...)
}

// see takes in what a probe of n saw.
func (c *Cluster) see(n *node, s sighting) {
	c.mu.Lock()
	old := c.view.Load()
	c.topology.see(n.index, s, time.Now())
	v := c.publish()
	c.mu.Unlock()
	close(old.next)
	for i, st := range old.stints {
		if v.stints[i] != st {
			st.end()
		}
	}
	c.herald.wake()
}

// publish makes what the topology knows the view. A node is marked as healthy
// before anybody can see that it serves, and as unhealthy after nobody does. mu
// is held, except in OpenCluster.
func (c *Cluster) publish() *view {
	old := c.view.Load()
	v := &view{
		nodes:   append([]nodeView(nil), c.topology.nodes...),
		primary: c.topology.primary,
		system:  c.topology.system,
		stints:  make([]*stint, len(c.nodes)),
		next:    make(chan struct{}),
	}
	for i := range v.stints {
		switch {
		case old == nil:
			v.stints[i] = newStint()
		case old.nodes[i].reads && !v.nodes[i].reads || old.primary == i && v.primary != i:
			v.stints[i] = newStint()
		default:
			v.stints[i] = old.stints[i]
		}
	}
	c.mark(v, true)
	c.view.Store(v)
	c.mark(v, false)
	if old != nil {
		c.tellRoles(old, v)
	}
	return v
}

// mark tells the balancer which nodes are used, and which are not.
func (c *Cluster) mark(v *view, used bool) {
	for i, n := range c.nodes {
		if v.used(i) == used {
			c.balancer.SetHealthy(n.name, used)
		}
	}
}

// used reports whether anything can go to node i. One that was not asked yet is
// taken for one.
func (v *view) used(i int) bool {
	return v.nodes[i].reads || v.primary == i || v.nodes[i].role == RoleUnknown
}

// complete reports whether each node was asked.
func (v *view) complete() bool {
	for i := range v.nodes {
		if !v.nodes[i].asked {
			return false
		}
	}
	return true
}

// kick has all nodes probed at once.
func (c *Cluster) kick() {
	for _, n := range c.nodes {
		n.kick()
	}
}

// Name is the configured name.
func (c *Cluster) Name() string { return c.cfg.Name }

// String is the cluster's name: what it holds is not printed.
func (c *Cluster) String() string {
	if c == nil {
		return "sqlpool.Cluster(nil)"
	}
	return "sqlpool.Cluster(" + c.Name() + ")"
}

// Format prints String for every verb: without it, some would print the fields.
func (c *Cluster) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, c.String()) }

// LogValue makes slog log String.
func (c *Cluster) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON marshals String.
func (c *Cluster) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }

var _ core.Component = (*Cluster)(nil)
