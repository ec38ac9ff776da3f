package sqlpool

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/retry"
)

// primaryTimeline and primaryLSN are a primary's timeline, from the name of the
// file that it writes, as the control file tells of a promotion only after the
// next checkpoint; and the end of what it has inserted into its log. That is
// where the next record will begin: when the last one filled its page, beyond the
// header of the next page, where a replica that has all there is will not have
// got to. So that header is not counted.
const (
	primaryTimeline = `substr(pg_walfile_name(l.lsn), 1, 8)`
	primaryLSN      = `(l.lsn - case
	when pg_wal_lsn_diff(l.lsn, '0/0') % pg_size_bytes(current_setting('wal_segment_size')) = 40 then 40
	when pg_wal_lsn_diff(l.lsn, '0/0') % current_setting('wal_block_size')::int = 24 then 24
	else 0 end)`
)

// tokenSQL is a primary's timeline and position, and which server it is. On a
// replica it is an error.
const tokenSQL = `select ` + primaryTimeline + `, ` + primaryLSN + `::text, ` + serverSQL + `
from (select pg_current_wal_insert_lsn() as lsn) as l`

// probeSQL is a node's role, timeline and position. A replica's timeline is the
// latest that it is certain to follow. The role is asked once: it changes.
const probeSQL = `with r as materialized (select pg_is_in_recovery() as replica),
l as materialized (select replica, case when replica
	then coalesce(pg_last_wal_replay_lsn(), '0/0') else pg_current_wal_insert_lsn() end as lsn from r)
select l.replica,
	case when l.replica then to_hex(greatest(
		(select timeline_id from pg_control_checkpoint()),
		(select min_recovery_end_timeline from pg_control_recovery()),
		(select received_tli from pg_stat_wal_receiver)))
	else ` + primaryTimeline + ` end,
	(case when l.replica then l.lsn else ` + primaryLSN + ` end)::text, ` + serverSQL + `
from l`

// serverSQL says which server it is: whose data it has, and since when it runs. It
// looks the same whatever the settings of the connection.
const serverSQL = `(select system_identifier::text from pg_catalog.pg_control_system()),
	(pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint::text`

// identity is one run of one server.
type identity struct {
	system  uint64 // the identifier that its data was given when it was made
	started int64  // in microseconds
}

// family is short for system, the same on a primary and its replicas.
func (id identity) family() uint32 {
	const golden = 0x9E3779B97F4A7C15 // its product has all bits of system in the upper half
	return uint32(id.system * golden >> 32)
}

// serverOf reads what serverSQL selects.
func serverOf(system, started string) (identity, error) {
	id, errID := strconv.ParseUint(system, 10, 64)
	at, errAt := strconv.ParseInt(started, 10, 64)
	if errID != nil || errAt != nil {
		return identity{}, fmt.Errorf("sqlpool: the server does not tell which one it is: %q, %q", system, started)
	}
	return identity{id, at}, nil
}

// identify asks which server the connection is to, unless that is known. It takes
// no longer than timeout, and then has closed the connection.
func (c *conn) identify(ctx context.Context, timeout time.Duration) error {
	if c.server != (identity{}) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	row, err := c.row(ctx, "select "+serverSQL, 2)
	if err != nil {
		return err
	}
	c.server, err = serverOf(row[0], row[1])
	return err
}

// row is the one row that sql selects, of n columns.
func (c *conn) row(ctx context.Context, sql string, n int) ([]string, error) {
	results, err := c.pgx.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != n {
		return nil, errors.New("sqlpool: probe: not one row")
	}
	row := make([]string, n)
	for i, value := range results[0].Rows[0] {
		row[i] = string(value)
	}
	return row, nil
}

// tokenOf reads what the SQL above selects.
func tokenOf(timeline, at, system, started string) (Token, identity, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(timeline), 16, 32)
	l, errAt := parseLSN(at)
	if err != nil || errAt != nil || n == 0 {
		return Token{}, identity{}, fmt.Errorf("sqlpool: the server tells no position: %q, %q", timeline, at)
	}
	is, err := serverOf(system, started)
	if err != nil {
		return Token{}, identity{}, err
	}
	return Token{is.family(), uint32(n), l}, is, nil
}

const (
	// hurriedEvery is the time between probes while reads wait for a node to catch
	// up, or to be seen on a new connection.
	hurriedEvery = 5 * time.Millisecond

	// kickedEvery is the least time between two probes of a node that answers,
	// however much it is asked for.
	kickedEvery = 20 * time.Millisecond

	// amissEvery is the time between probes while there is no primary, or of a
	// node that ought to serve and does not.
	amissEvery = 100 * time.Millisecond

	// deadEvery is the least time between two probes of a node that cannot be
	// reached, however much it is asked for.
	deadEvery = 50 * time.Millisecond
)

// prober asks one node what it is.
type prober interface {
	// ask is one probe. It returns soon after ctx ends.
	ask(ctx context.Context) (sighting, error)
	// close ends the connection: the next probe makes another.
	close()
}

// kick has n probed at once, by a probe that begins after the call.
func (n *node) kick() {
	select {
	case n.kicked <- struct{}{}:
	default:
	}
}

// probe is the goroutine that probes n until ctx ends.
func (n *node) probe(ctx context.Context) {
	defer n.prober.close()
	began := time.Now()
	if n.failures > 0 { // a hook of the user's exited the goroutine before this one
		n.cluster.see(n, sighting{at: began, err: core.ErrNoReturn, errType: core.ErrorType(core.ErrNoReturn)})
		if !n.rest(ctx, began) {
			return
		}
	}
	for {
		began = time.Now()
		s := n.sight(ctx, began)
		if ctx.Err() != nil {
			return
		}
		n.cluster.see(n, s)
		if !n.rest(ctx, began) {
			return
		}
	}
}

// closeTimeout is how long the end of a connection may take.
const closeTimeout = 250 * time.Millisecond

var errHung = fmt.Errorf("sqlpool: probe: BeforeConnect, or a dial, does not return: %w", context.DeadlineExceeded)

// sight is one probe. One that panics, in a hook of the user's, has failed. So has
// one that is overdue, as a hook does not return: others do not wait for it.
func (n *node) sight(ctx context.Context, began time.Time) (s sighting) {
	told := make(chan struct{})
	overdue := time.AfterFunc(n.cluster.cfg.ProbeTimeout+closeTimeout, func() {
		defer close(told)
		n.cluster.see(n, sighting{at: began, err: errHung, errType: core.ErrorType(errHung)})
	})
	defer func() {
		if !overdue.Stop() {
			<-told // what is seen after all is seen later
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, n.cluster.cfg.ProbeTimeout)
	defer cancel()
	defer func() {
		if panicked := recover(); panicked != nil {
			n.prober.close()
			err := fmt.Errorf("sqlpool: probe: %v: %w", panicked, core.ErrNoReturn)
			s = sighting{at: began, err: err, errType: core.ErrorType(err)}
		}
	}()
	n.failures++ // unless it succeeds
	if n.redial.Swap(false) {
		n.prober.close()
	}
	s, err := n.prober.ask(ctx)
	if err != nil {
		state, _ := sqlState(err)
		return sighting{at: began, err: err, errType: core.ErrorType(err), full: strings.HasPrefix(state, "53")}
	}
	n.failures = 0
	s.at = began
	return s
}

// rest waits until n is to be probed again. It reports false when ctx has ended.
func (n *node) rest(ctx context.Context, began time.Time) bool {
	pause, least := n.pauses()
	timer := time.NewTimer(time.Until(began.Add(pause)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	case <-n.kicked:
	}
	if n.failures == 0 && n.cluster.hurried.Load() > 0 {
		least = min(least, hurriedEvery) // somebody has begun to wait since
	}
	timer.Reset(time.Until(began.Add(least)))
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// pauses are how long it is from the beginning of a probe to that of the next,
// and how long if n is kicked.
func (n *node) pauses() (pause, least time.Duration) {
	c := n.cluster
	every := c.cfg.ProbeInterval
	if n.failures > 0 {
		backoff := retry.Backoff{Base: deadEvery, Cap: every}
		least = min(every, deadEvery)
		return max(least, backoff.Pause(n.failures)), least
	}
	v := c.view.Load()
	amiss := v.primary < 0 || v.nodes[v.primary].role != RolePrimary ||
		v.nodes[n.index].role == RoleReplica && !v.nodes[n.index].reads
	if amiss {
		every = min(every, amissEvery)
	}
	if c.hurried.Load() > 0 {
		every = min(every, hurriedEvery)
	}
	return every, min(every, kickedEvery)
}

// pgProber is the prober of a server. It is used by one goroutine.
type pgProber struct {
	dialer *dialer
	conn   *conn
}

// newProber is a prober with the node's own configuration. What there is for the
// statements of users is left out.
func newProber(cfg Config) *pgProber {
	conn := cfg.ConnConfig.Copy()
	conn.Tracer = nil
	d := newDialer(conn, &Config{BeforeConnect: cfg.BeforeConnect, Pooled: PooledNo}) // not asked for: its answer is of no use here
	d.probes = true
	return &pgProber{dialer: d}
}

// ask asks on the connection that there is. If it is broken, it asks once more
// on a new one: that the server ended one connection does not say that it is gone.
func (p *pgProber) ask(ctx context.Context) (s sighting, err error) {
	if p.conn != nil {
		s, err = p.query(ctx)
		if err == nil || ctx.Err() != nil {
			return s, err
		}
	}
	p.conn, err = p.dialer.dial(ctx)
	if err != nil {
		p.conn = nil
		return sighting{}, err
	}
	return p.query(ctx)
}

// query asks on the connection, and closes it when that fails.
func (p *pgProber) query(ctx context.Context) (s sighting, err error) {
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	row, err := p.conn.row(ctx, probeSQL, 5)
	if err != nil {
		return sighting{}, err
	}
	at, is, err := tokenOf(row[1], row[2], row[3], row[4])
	return sighting{replica: row[0] == "t", timeline: at.timeline, lsn: at.lsn, server: is}, err
}

func (p *pgProber) close() {
	if p.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	closeConn(ctx, p.conn)
	p.conn = nil
}
