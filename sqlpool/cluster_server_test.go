//go:build unix

package sqlpool

import (
	"context"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core/pool"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// multiHost is a DSN of all the servers, which have one password.
func multiHost(t *testing.T, all ...*pgtest.Server) string {
	t.Helper()
	u, err := url.Parse(all[0].DSN())
	require.NoError(t, err)
	var hosts []string
	for _, s := range all {
		hosts = append(hosts, s.Addr())
	}
	u.Host = strings.Join(hosts, ",")
	return u.String()
}

// openCluster is a cluster that knows all its nodes.
func openCluster(t *testing.T, cfg ClusterConfig) *Cluster {
	t.Helper()
	c, err := OpenCluster(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // real time: a real server
		defer cancel()
		require.NoError(t, c.Close(ctx))
	})
	return c
}

func exec(t *testing.T, s *pgtest.Server, sql string) {
	t.Helper()
	p := open(t, Config{DSN: s.DSN(), MinIdle: Off, Max: 1})
	_, err := p.Exec(t.Context(), sql)
	require.NoError(t, err)
}

// port is which server answers.
func port(t *testing.T, r Route) string {
	t.Helper()
	var p string
	require.NoError(t, r.QueryRow(t.Context(), "select current_setting('port')").Scan(&p))
	return p
}

func portOf(s *pgtest.Server) string { return s.Addr()[strings.LastIndexByte(s.Addr(), ':')+1:] }

func TestClusterSendsWritesToThePrimaryAndReadsToReplicas(t *testing.T) {
	primary, replicas := pgtest.Replicas(t, 2)
	c := openCluster(t, ClusterConfig{DSN: multiHost(t, replicas[0], primary, replicas[1]), Pool: Config{MinIdle: 1, Max: 3}})
	require.Equal(t, portOf(primary), port(t, c.Write()))
	eventually(t, func() bool { return c.Inspect().State == "healthy" })
	seen := map[string]int{}
	for range 10 {
		seen[port(t, c.Read(Any()))]++
	}
	require.Len(t, seen, 2)
	require.Zero(t, seen[portOf(primary)])

	_, err := c.Write().Exec(t.Context(), "create table item (n int)")
	require.NoError(t, err)
	for n := range 50 {
		_, err := c.Write().Exec(t.Context(), "insert into item values ($1)", n)
		require.NoError(t, err)
		token, err := c.Token(t.Context())
		require.NoError(t, err)
		var count int
		require.NoError(t, c.Read(After(token)).QueryRow(t.Context(), "select count(*) from item").Scan(&count))
		require.Equal(t, n+1, count)
	}
	require.NoError(t, c.Read(WithinLag(5*time.Second)).Ping(t.Context()))
	var on string
	require.NoError(t, c.DB().QueryRowContext(t.Context(), "select current_setting('port')").Scan(&on))
	require.Equal(t, portOf(primary), on)
	require.NoError(t, c.Write().InTx(t.Context(), pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "insert into item values (-1)")
		return err
	}))
	s := c.Stats()
	require.Equal(t, primary.Addr(), s.Primary)
}

// quick is a configuration that notices things soon.
func quick(t *testing.T, all ...*pgtest.Server) ClusterConfig {
	return ClusterConfig{
		DSN:           multiHost(t, all...),
		Pool:          Config{MinIdle: 2, Max: 8},
		ProbeInterval: 200 * time.Millisecond,
		MaxLag:        time.Second,
	}
}

// synchronous makes commits on primary wait for replica.
func synchronous(t *testing.T, primary, replica *pgtest.Server) {
	t.Helper()
	exec(t, primary, "alter system set synchronous_standby_names = '"+replica.Name()+"'")
	exec(t, primary, "select pg_reload_conf()")
	p := open(t, Config{DSN: primary.DSN(), MinIdle: Off, Max: 1})
	eventually(t, func() bool {
		var state string
		err := p.QueryRow(t.Context(), "select sync_state from pg_stat_replication where application_name = $1", replica.Name()).Scan(&state)
		return err == nil && state == "sync"
	})
}

// kill ends the server as a crash of its machine would: nobody is told.
func sigkill(t *testing.T, s *pgtest.Server) {
	t.Helper()
	require.NoError(t, syscall.Kill(s.PID(), syscall.SIGKILL))
	require.NoError(t, s.Kill(t.Context()))
}

// The failover of the issue: a primary with a synchronous replica is killed under
// load and the replica promoted. Writers go on with the new primary; each row that
// was acknowledged is there, and none is there twice. A row whose fate is unknown
// is written again only after the writer has looked for it.
func TestPromotionUnderLoadLosesNothingAndAppliesNothingTwice(t *testing.T) {
	primary, replicas := pgtest.Replicas(t, 1)
	exec(t, primary, "create table item (writer int, n int)") // with no key: what is written twice is there twice
	synchronous(t, primary, replicas[0])
	c := openCluster(t, quick(t, primary, replicas[0]))
	require.Equal(t, portOf(primary), port(t, c.Write()))

	const writers = 8
	var (
		wg       sync.WaitGroup
		stop     atomic.Bool
		acked    [writers]int // rows 0 to acked-1 are
		after    atomic.Int64 // acknowledged since the promotion
		promoted atomic.Bool
		failed   atomic.Int64
	)
	for w := range writers {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // real time: a real server
			defer cancel()
			for n := 0; !stop.Load() && ctx.Err() == nil; {
				_, err := c.Write().Exec(ctx, "insert into item values ($1, $2)", w, n)
				if err != nil {
					failed.Add(1)
					there, looked := false, false
					for !looked && ctx.Err() == nil { // only who has looked may write it again
						err := c.Write().QueryRow(ctx, "select exists (select from item where writer = $1 and n = $2)", w, n).Scan(&there)
						if looked = err == nil; !looked {
							failed.Add(1)
						}
					}
					if !there {
						continue
					}
				}
				n++
				acked[w] = n
				if promoted.Load() {
					after.Add(1)
				}
			}
		})
	}
	time.Sleep(300 * time.Millisecond) // real time: load before the failover
	sigkill(t, primary)
	killed := time.Now()
	require.NoError(t, replicas[0].Promote(t.Context()))
	promoted.Store(true)
	up := time.Now()
	eventually(t, func() bool { return after.Load() >= 200 })
	t.Logf("promotion took %v; 200 rows were acknowledged %v after it; %d statements failed", up.Sub(killed), time.Since(up), failed.Load())
	stop.Store(true)
	wg.Wait()
	require.Equal(t, replicas[0].Addr(), c.Stats().Primary)

	p := open(t, Config{DSN: replicas[0].DSN(), Max: 1})
	for w := range writers {
		var rows, distinct, there int
		require.NoError(t, p.QueryRow(t.Context(),
			"select count(*), count(distinct n), count(distinct n) filter (where n < $2) from item where writer = $1",
			w, acked[w]).Scan(&rows, &distinct, &there))
		require.Equal(t, acked[w], there, "lost")
		require.Equal(t, distinct, rows, "applied twice") // also the one after the last that was acknowledged
	}
	// Only those that were under way fail: one for each writer, and the look for
	// its row if that was too.
	require.LessOrEqual(t, failed.Load(), int64(3*writers))
}

// Replay paused: what was written is read from the primary, and not from the
// replica, until it goes on.
func TestReadAfterATokenIsNeverStale(t *testing.T) {
	ctx := t.Context()
	primary, replicas := pgtest.Replicas(t, 1)
	cfg := quick(t, primary, replicas[0])
	cfg.MaxLag = Off // it is the token that counts
	c := openCluster(t, cfg)
	_, err := c.Write().Exec(ctx, "create table item (n int)")
	require.NoError(t, err)
	eventually(t, func() bool { return port(t, c.Read(Any())) == portOf(replicas[0]) })

	exec(t, replicas[0], "select pg_wal_replay_pause()")
	var token Token
	for n := range 20 {
		_, err := c.Write().Exec(ctx, "insert into item values ($1)", n)
		require.NoError(t, err)
		token, err = c.Token(ctx)
		require.NoError(t, err)
		var count int
		require.NoError(t, c.Read(After(token)).QueryRow(ctx, "select count(*) from item").Scan(&count))
		require.Equal(t, n+1, count)
		require.Equal(t, portOf(primary), port(t, c.Read(After(token))))
	}
	require.Equal(t, portOf(replicas[0]), port(t, c.Read(Any())))

	exec(t, replicas[0], "select pg_wal_replay_resume()")
	eventually(t, func() bool { return port(t, c.Read(After(token))) == portOf(replicas[0]) })
}

// An old primary that comes back as a primary gets no writes, be it before or
// after the cluster was opened.
func TestOldPrimaryGetsNoWrites(t *testing.T) {
	ctx := t.Context()
	primary, replicas := pgtest.Replicas(t, 1)
	c := openCluster(t, quick(t, primary, replicas[0]))
	_, err := c.Write().Exec(ctx, "create table item (n int)")
	require.NoError(t, err)
	token, err := c.Token(ctx)
	require.NoError(t, err)
	// It is asynchronous: what has not arrived is lost.
	eventually(t, func() bool { return port(t, c.Read(After(token))) == portOf(replicas[0]) })
	require.NoError(t, primary.Kill(ctx))
	require.NoError(t, replicas[0].Promote(ctx))
	_, err = c.Write().Exec(ctx, "insert into item values (1)")
	require.NoError(t, err)

	require.NoError(t, primary.Restart(ctx))
	eventually(t, func() bool { return c.Stats().Nodes[0].Role == RoleOldPrimary })
	later := openCluster(t, quick(t, primary, replicas[0]))
	newer, err := c.Token(ctx)
	require.NoError(t, err)
	require.Greater(t, newer.timeline, token.timeline)
	for range 20 {
		require.Equal(t, portOf(replicas[0]), port(t, c.Write()))
		require.Equal(t, portOf(replicas[0]), port(t, later.Write()))
		require.Equal(t, portOf(replicas[0]), port(t, c.Read(Any())), "nor reads")
		require.Equal(t, portOf(replicas[0]), port(t, c.Read(After(newer))))
	}
	// Also when the new one is gone: to write to the old one would be to lose it.
	require.NoError(t, replicas[0].Stop(ctx))
	soon, cancel := context.WithTimeout(ctx, 300*time.Millisecond) // real time: a real server
	defer cancel()
	_, err = c.Write().Exec(soon, "insert into item values (2)")
	require.Error(t, err)
	require.NoError(t, replicas[0].Restart(ctx))
	require.NoError(t, c.Write().Ping(ctx))
	require.Equal(t, portOf(replicas[0]), port(t, c.Write()))
	// It comes back as a replica.
	require.NoError(t, primary.Follow(ctx, replicas[0]))
	eventually(t, func() bool { return port(t, c.Read(Any())) == portOf(primary) })
}

// A replica whose replay is paused leaves when it is further behind than MaxLag,
// and comes back.
func TestLaggingReplicaLeavesAndReturns(t *testing.T) {
	ctx := t.Context()
	primary, replicas := pgtest.Replicas(t, 1)
	cfg := quick(t, primary, replicas[0])
	cfg.MaxLag = 500 * time.Millisecond
	c := openCluster(t, cfg)
	_, err := c.Write().Exec(ctx, "create table item (at timestamptz)")
	require.NoError(t, err)
	eventually(t, func() bool { return port(t, c.Read(Any())) == portOf(replicas[0]) })
	exec(t, replicas[0], "select pg_wal_replay_pause()")
	paused := time.Now()
	_, err = c.Write().Exec(ctx, "insert into item values (now())")
	require.NoError(t, err)
	const bound = 300 * time.Millisecond
	for time.Since(paused) < bound {
		require.NoError(t, c.Read(Any()).Ping(ctx))
	}
	for range 50 { // never older than it may be, whoever answers
		asked := time.Now()
		var count int
		require.NoError(t, c.Read(WithinLag(bound)).QueryRow(ctx, "select count(*) from item").Scan(&count))
		if asked.Sub(paused) > bound+100*time.Millisecond { // written at most that long after the pause
			require.Equal(t, 1, count)
		}
	}
	eventually(t, func() bool { return !c.Stats().Nodes[1].Reads })
	require.GreaterOrEqual(t, time.Since(paused), cfg.MaxLag-2*cfg.ProbeInterval)
	require.Equal(t, portOf(primary), port(t, c.Read(Any())))
	require.Equal(t, "degraded", c.Inspect().State)
	exec(t, replicas[0], "select pg_wal_replay_resume()")
	eventually(t, func() bool { return port(t, c.Read(Any())) == portOf(replicas[0]) })
}

// A replica is killed under load: reads that were under way on it may fail, and
// none that began after the cluster has noticed.
func TestKilledReplicaFailsNoReadsOnceNoticed(t *testing.T) {
	primary, replicas := pgtest.Replicas(t, 2)
	c := openCluster(t, quick(t, primary, replicas[0], replicas[1]))
	require.NoError(t, c.Write().Ping(t.Context()))
	eventually(t, func() bool { return c.Inspect().State == "healthy" })
	const readers = 8
	var (
		wg       sync.WaitGroup
		stop     atomic.Bool
		noticed  atomic.Bool
		reads    atomic.Int64
		failures [2]atomic.Int64
	)
	for range readers {
		wg.Go(func() {
			for !stop.Load() {
				began := 0
				if noticed.Load() {
					began = 1
				}
				if _, err := c.Read(Any()).Exec(t.Context(), "select 1"); err != nil {
					failures[began].Add(1)
				}
				reads.Add(1)
			}
		})
	}
	eventually(t, func() bool { return reads.Load() > 200 })
	sigkill(t, replicas[0])
	eventually(t, func() bool { return c.Stats().Nodes[1].Role == RoleUnreachable })
	noticed.Store(true)
	n := reads.Load()
	eventually(t, func() bool { return reads.Load() > n+500 })
	stop.Store(true)
	wg.Wait()
	require.Zero(t, failures[1].Load(), "reads that began after it was noticed failed")
	require.LessOrEqual(t, failures[0].Load(), int64(readers))
	require.NoError(t, replicas[0].Restart(t.Context()))
	eventually(t, func() bool { return c.Inspect().State == "healthy" })
}

// A demoted primary says 25006: the cluster looks for the new one at once, long
// before the next probe is due.
func TestReadOnlyPrimaryIsNoticedAtOnce(t *testing.T) {
	ctx := t.Context()
	primary, replicas := pgtest.Replicas(t, 1)
	cfg := quick(t, primary, replicas[0])
	cfg.ProbeInterval, cfg.MaxLag = time.Minute, 4*time.Minute
	c := openCluster(t, cfg)
	_, err := c.Write().Exec(ctx, "create table item (n int)")
	require.NoError(t, err)
	require.NoError(t, primary.Stop(ctx))
	require.NoError(t, replicas[0].Promote(ctx))
	require.NoError(t, primary.Follow(ctx, replicas[0]))
	began := time.Now()
	for n := range 50 {
		_, err = c.Write().Exec(ctx, "insert into item values ($1)", n)
		require.NoError(t, err, "no statement is sent to a standby")
	}
	require.Less(t, time.Since(began), cfg.ProbeInterval/2) // the bound is our own timer's
	require.Equal(t, replicas[0].Addr(), c.Stats().Primary)
}

// Close ends all connections and, as TestMain sees, all goroutines.
func TestClusterCloseEndsAllConnections(t *testing.T) {
	ctx := t.Context()
	primary, replicas := pgtest.Replicas(t, 1)
	watch := []*Pool{
		open(t, Config{DSN: primary.DSN(), MinIdle: Off, Max: 1}),
		open(t, Config{DSN: replicas[0].DSN(), MinIdle: Off, Max: 1}),
	}
	clients := func(p *Pool) (n int) {
		require.NoError(t, p.QueryRow(ctx, "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()").Scan(&n))
		return n
	}
	c, err := OpenCluster(ctx, ClusterConfig{DSN: multiHost(t, primary, replicas[0]), RequirePrimary: true})
	require.NoError(t, err)
	eventually(t, func() bool { return clients(watch[0]) == 6 && clients(watch[1]) == 6 }) // 5 idle, and the prober's
	require.NoError(t, c.Close(ctx))
	eventually(t, func() bool { return clients(watch[0]) == 0 && clients(watch[1]) == 0 })
	_, err = c.Write().Exec(ctx, "select 1")
	require.ErrorIs(t, err, pool.ErrClosed)
	_, err = c.Read(Any()).Exec(ctx, "select 1")
	require.ErrorIs(t, err, pool.ErrClosed)
	require.Equal(t, "closed", c.Inspect().State)
	require.NoError(t, c.Close(ctx), "again")
}

// When the last record fills its page, the primary's position is beyond the header
// of the next one, where a replica that has everything has not got to: on an idle
// primary, it would look stale for as long as nothing is written.
func TestTokenAtThePageBoundaryIsReached(t *testing.T) {
	ctx := t.Context()
	primary, replicas := pgtest.Replicas(t, 1)
	p := open(t, Config{DSN: primary.DSN(), MinIdle: Off, Max: 1})
	r := open(t, Config{DSN: replicas[0].DSN(), MinIdle: Off, Max: 1})
	c := openCluster(t, quick(t, primary, replicas[0]))
	offset := func() (at int64) {
		require.NoError(t, p.QueryRow(ctx, "select (pg_current_wal_insert_lsn() - '0/0') % 8192").Scan(&at))
		return at
	}
	emit := func(n int64) {
		_, err := p.Exec(ctx, "select pg_logical_emit_message(false, 'x', repeat('x', $1))", n)
		require.NoError(t, err)
	}
	const payload = 256
	for try := 0; ; try++ {
		require.Less(t, try, 500, "no record ended with its page")
		before := offset()
		emit(payload)
		size := offset() - before // of a record with that payload
		left := 8192 - offset()
		if size < payload || left <= size {
			continue // it went over the end of a page, or the next would
		}
		emit(left - size + payload)
		if offset() == 24 {
			break
		}
	}
	token, err := c.Token(ctx)
	require.NoError(t, err)
	require.Zero(t, token.lsn%8192)
	eventually(t, func() bool {
		var at string
		require.NoError(t, r.QueryRow(ctx, "select pg_last_wal_replay_lsn()::text").Scan(&at))
		l, err := parseLSN(at)
		return err == nil && l >= token.lsn
	})
	eventually(t, func() bool { return port(t, c.Read(After(token))) == portOf(replicas[0]) })
}

// The probe needs no rights, and with few it sees a promotion at once.
func TestProbeAsAnOrdinaryRole(t *testing.T) {
	ctx := t.Context()
	primary, replicas := pgtest.Replicas(t, 1)
	exec(t, primary, "create role low login password 'low'")
	exec(t, primary, "create role high login password 'high' in role pg_read_all_stats")
	for _, role := range []string{"low", "high"} {
		cfg := quick(t, primary, replicas[0])
		u, err := url.Parse(cfg.DSN)
		require.NoError(t, err)
		u.User = url.UserPassword(role, role)
		cfg.DSN = u.String()
		c := openCluster(t, cfg)
		require.NoError(t, c.Write().Ping(ctx))
		eventually(t, func() bool { return c.Inspect().State == "healthy" })
		require.EqualValues(t, 1, c.Stats().Nodes[1].Position.timeline)
	}
}

// A server that falls silent holds up neither reads nor Close, and leaves nothing.
func TestSilentReplicaIsLeft(t *testing.T) {
	ctx := t.Context()
	primary, replicas := pgtest.Replicas(t, 2)
	cfg := quick(t, primary, replicas[0], replicas[1])
	cfg.ProbeTimeout = 200 * time.Millisecond
	c := openCluster(t, cfg)
	require.NoError(t, c.Write().Ping(ctx))
	eventually(t, func() bool { return c.Inspect().State == "healthy" })
	p := open(t, Config{DSN: replicas[0].DSN(), MinIdle: Off, Max: 1})
	rows, err := p.Query(ctx, "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()")
	require.NoError(t, err)
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	require.NoError(t, err)
	require.NoError(t, replicas[0].Pause(append(pids, replicas[0].PID())...))
	eventually(t, func() bool { return c.Stats().Nodes[1].Role == RoleUnreachable })
	for range 20 {
		require.Equal(t, portOf(replicas[1]), port(t, c.Read(Any())))
	}
	require.NoError(t, replicas[0].Resume())
	eventually(t, func() bool { return c.Stats().Nodes[1].Reads })
}
