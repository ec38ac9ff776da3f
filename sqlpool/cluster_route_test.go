package sqlpool

import (
	"context"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/core/pool"
	"github.com/surgewall/surgewall/core/retry"
)

var _ DBTX = Route{}

func TestRoutesOfAFakeCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(3)
		c := fakeCluster(t, ClusterConfig{}, all...)
		defer closeFake(t, c)
		require.Equal(t, "a", mustAsk(t, c.Write()))
		seen := map[string]int{}
		for range 40 {
			seen[mustAsk(t, c.Read(Any()))]++
		}
		require.Len(t, seen, 2)
		require.Zero(t, seen["a"])
		require.Equal(t, "a", mustAsk(t, c.Read(WithinLag(0))), "no replica is that fresh")
		token, err := c.Token(context.Background())
		require.NoError(t, err)
		require.Equal(t, fakeToken(1, 1000), token)
		require.NotEqual(t, "a", mustAsk(t, c.Read(After(token))))
		s := c.Stats()
		require.Equal(t, "a:5432", s.Primary)
		for _, n := range s.Nodes {
			require.Zero(t, n.InFlight, n.Name)
			require.Zero(t, n.Pool.Used, n.Name)
		}
		require.Equal(t, "healthy", c.Inspect().State)
	})
}

// The first primary is chosen when all nodes were asked: an old one that answers
// at once must not get what is the new one's.
func TestFirstWriteWaitsForAllNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(3)
		all[1].replica, all[1].timeline, all[1].delay = false, 2, 300*time.Millisecond
		all[2].timeline, all[2].silent = 2, true
		c := fakeCluster(t, ClusterConfig{}, all...)
		defer closeFake(t, c)
		began := time.Now()
		require.Equal(t, "b", mustAsk(t, c.Write()))
		require.Equal(t, time.Second, time.Since(began), "until the probe of c has timed out")
		require.Equal(t, RoleUnreachable, c.Stats().Nodes[2].Role)
	})
}

// A replica that answers before the primary serves nothing yet: it may be behind.
func TestLaggingReplicaServesNoReadsAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(2)
		all[0].lsn, all[1].lsn = 1_000_000, 1
		all[0].delay = 300 * time.Millisecond
		defer time.Sleep(all[0].delay) // until it sees that the cluster has ended
		c := fakeCluster(t, ClusterConfig{}, all...)
		defer closeFake(t, c)
		require.Equal(t, "a", mustAsk(t, c.Read(Any())))
	})
}

// In flight counts from before the wait for a connection to its release.
func TestInFlightCountsWaitersAndHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		all := fakeServers(3)
		c := fakeCluster(t, ClusterConfig{Pool: Config{MinIdle: Off, Max: 1}}, all...)
		defer closeFake(t, c)
		require.NoError(t, c.Read(Any()).Ping(ctx))
		held := make([]*Conn, 2)
		var on []string
		for i := range held {
			var err error
			held[i], err = c.Read(Any()).Acquire(ctx)
			require.NoError(t, err)
			on = append(on, held[i].Conn().Config().Host)
		}
		require.ElementsMatch(t, []string{"b", "c"}, on, "the second goes where nothing is in flight")
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { _, _ = ask(ctx, c.Read(Any())) })
		}
		synctest.Wait()
		s := c.Stats()
		require.EqualValues(t, 5, s.Nodes[1].InFlight+s.Nodes[2].InFlight)
		require.InDelta(t, s.Nodes[1].InFlight, s.Nodes[2].InFlight, 1)
		for _, h := range held {
			h.Release()
		}
		wg.Wait()
		require.Zero(t, c.Stats().Nodes[1].InFlight)
	})
}

// Writes that come in a failover wait for the new primary, and those that were
// waiting in the old one's pool move.
func TestWritesFollowAPromotion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		all := fakeServers(3)
		c := fakeCluster(t, ClusterConfig{}, all...)
		defer closeFake(t, c)
		require.Equal(t, "a", mustAsk(t, c.Write()))
		time.Sleep(10 * time.Second)
		all[0].crash()
		began := time.Now()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				name, err := ask(ctx, c.Write())
				require.NoError(t, err)
				require.Equal(t, "b", name)
			})
		}
		time.Sleep(2 * time.Second)
		all[1].set(func(s *fakeServer) { s.replica, s.timeline = false, 2 })
		all[2].set(func(s *fakeServer) { s.timeline = 2 })
		wg.Wait()
		require.LessOrEqual(t, time.Since(began), 2*time.Second+amissEvery, "the wait is for the next probe")
		require.Equal(t, "b:5432", c.Stats().Primary)

		// The old one comes back as it was.
		all[0].set(func(s *fakeServer) { s.down = false })
		time.Sleep(5 * time.Second)
		require.Equal(t, RoleOldPrimary, c.Stats().Nodes[0].Role)
		for range 10 {
			require.Equal(t, "b", mustAsk(t, c.Write()))
			require.Equal(t, "c", mustAsk(t, c.Read(Any())))
		}
	})
}

func TestWritesWithoutAPrimary(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			all := fakeServers(2)
			all[0].down = true
			c := fakeCluster(t, ClusterConfig{
				Name: "shop", RefuseWithoutPrimary: refuse, Pool: Config{AcquireTimeout: 3 * time.Second},
			}, all...)
			defer closeFake(t, c)
			began := time.Now()
			_, err := ask(ctx, c.Write())
			require.ErrorIs(t, err, ErrNoPrimary)
			var refused *core.Rejection
			require.ErrorAs(t, err, &refused)
			require.Equal(t, "shop", refused.Guard)
			require.Contains(t, err.Error(), "replicas 1")
			require.NotContains(t, err.Error(), "app")
			if refuse {
				require.Equal(t, core.NoBackend, refused.Reason)
				require.Zero(t, time.Since(began), "each node was asked, and that takes no time here")
			} else {
				require.Equal(t, core.WaitTimeout, refused.Reason)
				require.Equal(t, 3*time.Second, time.Since(began))
				short, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				_, err = ask(short, c.Write())
				require.ErrorIs(t, err, ErrNoPrimary)
				require.ErrorIs(t, err, context.DeadlineExceeded)
			}
			require.Equal(t, "b", mustAsk(t, c.Read(Any())), "reads go on")
			require.Equal(t, "no_primary", c.Inspect().State)
			require.NotZero(t, c.Stats().NoPrimary)
		})
	}
}

// Those who wait for a primary are bounded as those who wait for a connection.
func TestWaitersForAPrimaryAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(2)
		all[0].down = true
		c := fakeCluster(t, ClusterConfig{Pool: Config{MaxWaiters: 3}}, all...)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				_, err := ask(ctx, c.Write())
				require.ErrorIs(t, err, ErrNoPrimary)
				require.ErrorIs(t, err, context.Canceled)
			})
		}
		synctest.Wait()
		require.Equal(t, 3, c.Stats().Waiting)
		_, err := ask(ctx, c.Write())
		require.ErrorIs(t, err, pool.ErrOverloaded)
		cancel()
		wg.Wait()
		require.Zero(t, c.Stats().Waiting)

		wg.Go(func() {
			_, err := ask(context.Background(), c.Write())
			require.ErrorIs(t, err, pool.ErrClosed)
		})
		synctest.Wait()
		closeFake(t, c)
		wg.Wait()
	})
}

// A replica that has not reached the token is asked again, for a while.
func TestTokenWaitsForAReplicaToCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		all := fakeServers(2)
		c := fakeCluster(t, ClusterConfig{}, all...)
		defer closeFake(t, c)
		require.Equal(t, "b", mustAsk(t, c.Read(Any())))
		time.Sleep(3 * time.Second)
		all[0].set(func(s *fakeServer) { s.lsn = 2000 })
		token, err := c.Token(ctx)
		require.NoError(t, err)
		began := time.Now()
		time.AfterFunc(17*time.Millisecond, func() { all[1].set(func(s *fakeServer) { s.lsn = 2000 }) })
		require.Equal(t, "b", mustAsk(t, c.Read(After(token))))
		// One probe sees it, and one makes sure of the connection, which is new.
		require.LessOrEqual(t, time.Since(began), 17*time.Millisecond+2*hurriedEvery)
		require.Zero(t, c.Stats().Fallbacks)

		all[0].set(func(s *fakeServer) { s.lsn = 3000 })
		token, err = c.Token(ctx)
		require.NoError(t, err)
		began = time.Now()
		require.Equal(t, "a", mustAsk(t, c.Read(After(token))))
		require.GreaterOrEqual(t, time.Since(began), 50*time.Millisecond)
		require.LessOrEqual(t, time.Since(began), 50*time.Millisecond+hurriedEvery) // to make sure of a new connection
		require.EqualValues(t, 1, c.Stats().Fallbacks)
		require.Zero(t, c.hurried.Load())

		// When nobody waits any more, the probes are rare again.
		time.Sleep(time.Second)
		probes := all[1].count(func(s *fakeServer) int { return s.probes })
		time.Sleep(5 * time.Second)
		require.InDelta(t, probes+5, all[1].count(func(s *fakeServer) int { return s.probes }), 1)
	})
}

// A token of a later timeline is not reached by a replica of the one before,
// however far that got.
func TestTokenOfALaterTimeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(2)
		all[1].lsn = 9000
		c := fakeCluster(t, ClusterConfig{}, all...)
		defer closeFake(t, c)
		require.Equal(t, "b", mustAsk(t, c.Read(After(fakeToken(1, 5000)))))

		// Another process has seen the promotion first.
		all[1].set(func(s *fakeServer) { s.replica, s.timeline = false, 2 })
		require.Equal(t, "b", mustAsk(t, c.Read(After(fakeToken(2, 500)))))

		// The node that was promoted may be the one that cannot be asked.
		idle()
		all[0].crash()
		all[0].set(func(s *fakeServer) { s.timeline = 3 })
		time.Sleep(3 * time.Second)
		time.AfterFunc(300*time.Millisecond, func() { all[0].set(func(s *fakeServer) { s.down = false }) })
		require.Equal(t, "a", mustAsk(t, c.Read(After(fakeToken(3, 500)))))
	})
}

// A token that somebody made up costs no more than its own read: few probes, none
// of what the primary takes over from replicas, and no long wait.
func TestTokenThatNobodyHasIsRefusedSoon(t *testing.T) {
	for _, token := range []Token{fakeToken(2, 1), fakeToken(1, 9000)} {
		synctest.Test(t, func(t *testing.T) {
			all := fakeServers(3)
			c := fakeCluster(t, ClusterConfig{}, all...)
			defer closeFake(t, c)
			mustAsk(t, c.Write())
			mustAsk(t, c.Read(Any()))
			before := all[0].count(func(s *fakeServer) int { return s.probes })
			began := time.Now()
			_, err := ask(context.Background(), c.Read(After(token)))
			require.ErrorIs(t, err, ErrNoReplica)
			require.ErrorIs(t, err, errUnheardOf)
			require.LessOrEqual(t, time.Since(began), 50*time.Millisecond+hurriedEvery)
			require.LessOrEqual(t, all[0].count(func(s *fakeServer) int { return s.probes })-before, int(50*time.Millisecond/hurriedEvery)+1)
			require.Zero(t, c.Stats().Fallbacks)
			require.Zero(t, c.hurried.Load())

			// A node that cannot be asked might know of it, for a while.
			idle()
			all[1].crash()
			time.Sleep(3 * time.Second)
			before = all[0].count(func(s *fakeServer) int { return s.probes })
			began = time.Now()
			_, err = ask(context.Background(), c.Read(After(token)))
			require.ErrorIs(t, err, errUnheardOf)
			require.LessOrEqual(t, time.Since(began), 3*time.Second)
			require.LessOrEqual(t, all[0].count(func(s *fakeServer) int { return s.probes })-before, int(50*time.Millisecond/hurriedEvery)+5, "no hurry once catching up is over")
			require.Zero(t, c.Stats().Fallbacks)
		})
	}
}

// Timelines begin at 1 again after pg_upgrade, or a restore into a new cluster. A
// process that runs goes on, and a token from before says that it is.
func TestTimelineBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		all := fakeServers(2)
		all[0].timeline, all[1].timeline = 3, 3
		c := fakeCluster(t, ClusterConfig{}, all...)
		defer closeFake(t, c)
		require.Equal(t, "a", mustAsk(t, c.Write()))
		token, err := c.Token(ctx)
		require.NoError(t, err)
		idle()
		for _, s := range all {
			s.crash()
		}
		time.Sleep(time.Minute)
		for _, s := range all {
			s.restart(func(s *fakeServer) { s.timeline, s.lsn, s.system = 1, 5000, fakeSystem+1 })
		}
		time.Sleep(2 * time.Second)
		require.Equal(t, "a", mustAsk(t, c.Write()))
		require.Equal(t, "b", mustAsk(t, c.Read(Any())))
		later := fakeCluster(t, ClusterConfig{}, all...)
		defer closeFake(t, later)
		for _, c := range []*Cluster{c, later} {
			began := time.Now()
			_, err = ask(ctx, c.Read(After(token)))
			require.ErrorIs(t, err, ErrNoReplica)
			require.ErrorIs(t, err, ErrForeignToken)
			require.LessOrEqual(t, time.Since(began), 50*time.Millisecond+hurriedEvery)
			require.Zero(t, c.Stats().Fallbacks)
			token, err := c.Token(ctx)
			require.NoError(t, err)
			require.Equal(t, "b", mustAsk(t, c.Read(After(token))))
		}
	})
}

// Two promotions can lead to the same timeline: a primary that has not got as far
// as a token is another one. One that was only seen before has, by now.
func TestTokenOfTheOtherPrimaryOfItsTimeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(1)
		all[0].timeline, all[0].lsn = 2, 500
		c := fakeCluster(t, ClusterConfig{}, all...)
		defer closeFake(t, c)
		time.Sleep(1500 * time.Millisecond)
		_, err := ask(context.Background(), c.Read(After(fakeToken(2, 9000))))
		require.ErrorIs(t, err, errUnheardOf)
		time.Sleep(1500 * time.Millisecond)
		all[0].set(func(s *fakeServer) { s.lsn = 9000 })
		began := time.Now()
		require.Equal(t, "a", mustAsk(t, c.Read(After(fakeToken(2, 9000)))))
		require.LessOrEqual(t, time.Since(began), kickedEvery)
		require.Equal(t, "a", mustAsk(t, c.Read(After(fakeToken(1, 99000)))), "what a failover has lost")
	})
}

// The primary has all that there is, however long its probes take.
func TestWithinLagOfLessThanAProbeIsServedByThePrimary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(1)
		all[0].delay = 10 * time.Millisecond
		defer time.Sleep(all[0].delay) // until it sees that the cluster has ended
		c := fakeCluster(t, ClusterConfig{Pool: Config{AcquireTimeout: time.Second}}, all...)
		defer closeFake(t, c)
		for _, lag := range []time.Duration{0, 1, 8 * time.Millisecond} {
			require.Equal(t, "a", mustAsk(t, c.Read(WithinLag(lag))))
		}
		idle()
		all[0].crash()
		time.Sleep(2 * time.Second)
		for _, lag := range []time.Duration{0, time.Second} {
			_, err := ask(context.Background(), c.Read(WithinLag(lag)))
			require.ErrorIs(t, err, ErrNoReplica, "another may have been promoted")
		}
	})
}

// The server behind a new connection may have been restarted, with less, since
// the last probe saw it.
func TestReadOnANewConnectionIsVerified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(2)
		c := fakeCluster(t, ClusterConfig{}, all...)
		defer closeFake(t, c)
		require.Equal(t, "b", mustAsk(t, c.Read(After(fakeToken(1, 1000)))))
		time.Sleep(10500 * time.Millisecond) // between two probes
		all[1].restart(func(s *fakeServer) { s.lsn = 900 })
		require.Equal(t, "a", mustAsk(t, c.Read(After(fakeToken(1, 1000)))))
		require.Zero(t, c.Stats().Nodes[1].FreshAt, "what it had does not count any more")
		all[1].set(func(s *fakeServer) { s.lsn = 1000 })
		time.Sleep(time.Second)
		require.Equal(t, "b", mustAsk(t, c.Read(After(fakeToken(1, 1000)))))
	})
}

// The name of a replica leads to another server, with less: the prober, whose
// connection to the old one stands, must not vouch for the new.
func TestReadAfterATokenWhenTheNameOfAReplicaMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(2)
		other := &fakeServer{name: "other", replica: true, timeline: 1, lsn: 500, system: fakeSystem}
		var moved atomic.Bool
		cfg := fakeConfig(t, ClusterConfig{}, all...)
		dial := cfg.Pool.ConnConfig.DialFunc
		cfg.Pool.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if moved.Load() && addr == "b:5432" {
				return other.dial()
			}
			return dial(ctx, network, addr)
		}
		c, err := OpenCluster(context.Background(), cfg)
		require.NoError(t, err)
		defer closeFake(t, c)
		require.Equal(t, "b", mustAsk(t, c.Read(After(fakeToken(1, 1000)))))
		idle()
		old, err := c.Read(Any()).Acquire(context.Background())
		require.NoError(t, err)
		moved.Store(true)
		young, err := c.Read(Any()).Acquire(context.Background())
		require.NoError(t, err)
		time.Sleep(time.Minute)
		young.Release() // it is older than many probes, of the old server
		require.Equal(t, "a", mustAsk(t, c.Read(After(fakeToken(1, 1000)))))
		require.EqualValues(t, 500, c.Stats().Nodes[1].Position.lsn, "it is the new one that is probed")

		other.set(func(s *fakeServer) { s.lsn = 1000 })
		time.Sleep(2 * time.Second)
		old.Release()
		for range 10 {
			require.NotEqual(t, "b", mustAsk(t, c.Read(After(fakeToken(1, 1000)))))
		}
		require.Equal(t, "other", mustAsk(t, c.Read(After(fakeToken(1, 1000)))))
	})
}

// A write is not sent to a server that was restarted as a standby.
func TestWriteIsNotSentToAStandby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		all := fakeServers(2)
		c := fakeCluster(t, ClusterConfig{}, all...)
		defer closeFake(t, c)
		require.Equal(t, "a", mustAsk(t, c.Write()))
		time.Sleep(10500 * time.Millisecond)
		all[1].set(func(s *fakeServer) { s.replica, s.timeline = false, 2 })
		all[0].restart(func(s *fakeServer) { s.replica, s.timeline = true, 2 })
		began := time.Now()
		_, err := c.Write().Exec(ctx, "insert")
		require.NoError(t, err)
		require.Less(t, time.Since(began), 100*time.Millisecond, "nodes are asked at once")
		require.Equal(t, "b:5432", c.Stats().Primary)
		// b's old connections were made when it was a standby. They are good.
		require.Equal(t, "b", mustAsk(t, c.Write()))
	})
}

// A server that is silent when a write asks whether it is a standby is left after
// ProbeTimeout, whatever the caller's own deadline.
func TestWriteAsksASilentServerForProbeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(2)
		c := fakeCluster(t, ClusterConfig{
			ProbeInterval: time.Hour, MaxLag: Off, ProbeTimeout: 200 * time.Millisecond,
			Pool: Config{MinIdle: 1, Max: 1, AcquireTimeout: time.Second},
		}, all...)
		mustAsk(t, c.Write())
		promoteUnderAConnection(t, c, all...)
		all[1].set(func(s *fakeServer) { s.silent = true })
		time.AfterFunc(100*time.Millisecond, func() { // what was asked by then is never answered
			all[1].set(func(s *fakeServer) { s.silent = false })
		})
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		began := time.Now()
		name, err := ask(ctx, c.Write())
		took := time.Since(began)
		closeFake(t, c)
		require.NoError(t, err)
		require.Equal(t, "b", name)
		require.Less(t, took, time.Second)
	})
}

// A context that OnAcquire derives of its own, and keeps, ends with the trip.
func TestContextThatOnAcquireDerivesEndsWithACause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept []context.Context
		c := fakeCluster(t, ClusterConfig{Pool: Config{OnAcquire: func(ctx context.Context, _ *pgx.Conn) error {
			child, cancel := context.WithCancel(ctx)
			kept = append(kept, child)
			context.AfterFunc(child, cancel)
			return nil
		}}}, fakeServers(2)...)
		defer closeFake(t, c)
		for range 20 {
			mustAsk(t, c.Write())
		}
		synctest.Wait()
		require.Len(t, kept, 20)
		for _, ctx := range kept {
			require.ErrorIs(t, ctx.Err(), context.Canceled)
		}
	})
}

// The primary is replaced, and that is seen, while OnAcquire takes its time.
func TestWriteLooksAgainAfterASlowOnAcquire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(2)
		var slow atomic.Bool
		c := fakeCluster(t, ClusterConfig{Pool: Config{OnAcquire: func(context.Context, *pgx.Conn) error {
			if slow.Swap(false) {
				time.Sleep(3 * time.Second) // in the bubble's time
			}
			return nil
		}}}, all...)
		defer closeFake(t, c)
		require.Equal(t, "a", mustAsk(t, c.Write()))
		slow.Store(true)
		time.AfterFunc(time.Second, func() { all[1].set(func(s *fakeServer) { s.replica, s.timeline = false, 2 }) })
		require.Equal(t, "b", mustAsk(t, c.Write()), "b has been the primary for two seconds")
	})
}

// A net.Conn of the user's that panics or exits the goroutine when a write asks
// whether its connection is to a standby leaves nothing in use.
func TestConnThatDoesNotReturnWhenAWriteAsksLeaksNothing(t *testing.T) {
	for name, react := range map[string]func(){"panics": func() { panic("conn") }, "exits": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := fakeServers(2)
				g := &spy{}
				var sick atomic.Bool
				cfg := fakeConfig(t, ClusterConfig{
					ProbeInterval: time.Hour, MaxLag: Off, Pool: Config{MinIdle: 1},
					Guard: func(string) core.Guard { return g },
				}, all...)
				dial := cfg.Pool.ConnConfig.DialFunc
				cfg.Pool.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
					n, err := dial(ctx, network, addr)
					return sickConn{n, func() {
						if sick.Swap(false) {
							react()
						}
					}}, err
				}
				c, err := OpenCluster(context.Background(), cfg)
				require.NoError(t, err)
				defer closeFake(t, c)
				mustAsk(t, c.Write())
				promoteUnderAConnection(t, c, all...)
				sick.Store(true)
				done := make(chan struct{})
				go func() {
					defer close(done)
					defer func() { _ = recover() }()
					_, _ = ask(context.Background(), c.Write())
				}()
				<-done
				require.False(t, sick.Load(), "it was asked")
				time.Sleep(time.Second)
				s := c.Stats().Nodes[1]
				require.Zero(t, s.Pool.Used)
				require.Zero(t, s.InFlight)
				require.Zero(t, g.held())
			})
		})
	}
}

type sickConn struct {
	net.Conn
	react func()
}

func (c sickConn) Write(b []byte) (int, error) { c.react(); return c.Conn.Write(b) }

// 25006 of a server that turned into a standby under the connection.
func TestReadOnlyErrorHasAllNodesProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		all := fakeServers(2)
		c := fakeCluster(t, ClusterConfig{}, all...)
		defer closeFake(t, c)
		require.Equal(t, "a", mustAsk(t, c.Write()))
		time.Sleep(10500 * time.Millisecond)
		held, err := c.Write().Acquire(ctx)
		require.NoError(t, err)
		defer held.Release()
		all[0].set(func(s *fakeServer) { s.replica = true })
		before := all[1].count(func(s *fakeServer) int { return s.probes })
		_, err = held.Exec(ctx, "insert")
		require.True(t, isState(err, "25006"))
		time.Sleep(kickedEvery)
		synctest.Wait()
		require.Equal(t, before+1, all[1].count(func(s *fakeServer) int { return s.probes }))
	})
}

// A read that writes by mistake is no sign of a failover: its connection is kept,
// those of others are, and no node is asked.
func TestReadThatWritesKeepsItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		all := fakeServers(2)
		c := fakeCluster(t, ClusterConfig{
			ProbeInterval: time.Hour, MaxLag: Off, Pool: Config{MinIdle: 1, Max: 1, MaxIdleTime: time.Hour},
		}, all...)
		defer closeFake(t, c)
		mustAsk(t, c.Read(Any()))
		idle()
		c.nodes[1].pool.dialer.sawPrimary.Store(true) // it was the primary once
		seen := func(s *fakeServer) int { return s.dials + s.probes }
		primary, replica := all[0].count(seen), all[1].count(seen)
		for range 10 {
			_, err := c.Read(Any()).Exec(ctx, "insert")
			require.True(t, isState(err, "25006"))
			_, err = c.Read(Any()).Query(ctx, "insert")
			require.True(t, isState(err, "25006"))
			require.Error(t, c.Read(Any()).QueryRow(ctx, "insert").Scan())
			require.Error(t, c.Read(Any()).With(ctx, func(conn *Conn) error {
				_, err := conn.Exec(ctx, "insert")
				return err
			}))
		}
		time.Sleep(time.Minute)
		require.Equal(t, primary, all[0].count(seen))
		require.Equal(t, replica, all[1].count(seen))
	})
}

// Reads that fall back to the primary are bounded, when there are replicas that
// should have served them.
func TestFallbackIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget, err := retry.NewBudget(retry.BudgetConfig{Percent: 50, MinPerSecond: Off, Max: 3})
		require.NoError(t, err)
		all := fakeServers(2)
		c := fakeCluster(t, ClusterConfig{Fallback: budget}, all...)
		defer closeFake(t, c)
		require.Equal(t, "b", mustAsk(t, c.Read(Any())))
		idle()
		all[1].crash()
		time.Sleep(2 * time.Second)
		for range 3 {
			require.Equal(t, "a", mustAsk(t, c.Read(Any())))
		}
		_, err = ask(context.Background(), c.Read(Any()))
		require.ErrorIs(t, err, ErrNoReplica)
		require.ErrorIs(t, err, retry.ErrBudget)
		var refused *core.Rejection
		require.ErrorAs(t, err, &refused)
		require.Equal(t, core.RetryBudget, refused.Reason)
		require.Equal(t, "a", mustAsk(t, c.Write()), "writes are none of its business")

		all[1].set(func(s *fakeServer) { s.down = false })
		time.Sleep(2 * time.Second)
		for range 2 {
			require.Equal(t, "b", mustAsk(t, c.Read(Any())), "which funds one")
		}
		idle()
		all[1].crash()
		time.Sleep(2 * time.Second)
		require.Equal(t, "a", mustAsk(t, c.Read(Any())))
		_, err = ask(context.Background(), c.Read(Any()))
		require.ErrorIs(t, err, retry.ErrBudget)
	})
}

func TestNoFallbackAndPrimaryReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(2)
		all[1].down = true
		c := fakeCluster(t, ClusterConfig{NoFallback: true}, all...)
		_, err := ask(context.Background(), c.Read(Any()))
		require.ErrorIs(t, err, ErrNoReplica)
		closeFake(t, c)

		c = fakeCluster(t, ClusterConfig{PrimaryReads: true}, all...)
		for range 2000 {
			require.Equal(t, "a", mustAsk(t, c.Read(Any())))
		}
		require.Zero(t, c.Stats().Fallbacks)
		all[1].set(func(s *fakeServer) { s.down = false })
		time.Sleep(2 * time.Second)
		seen := map[string]bool{}
		for range 10 {
			seen[mustAsk(t, c.Read(Any()))] = true
		}
		require.Len(t, seen, 2)
		closeFake(t, c)

		// With one node there is nothing to protect it from.
		c = fakeCluster(t, ClusterConfig{}, fakeServers(1)...)
		for range 2000 {
			require.Equal(t, "a", mustAsk(t, c.Read(Any())))
		}
		closeFake(t, c)
	})
}

// Reads that wait for a connection of a replica that dies go to another.
func TestWaitersOfADeadReplicaMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		all := fakeServers(3)
		all[2].lsn = 1 // too far behind for the token
		c := fakeCluster(t, ClusterConfig{Pool: Config{MinIdle: Off, Max: 1}}, all...)
		defer closeFake(t, c)
		held, err := c.Read(After(fakeToken(1, 1000))).Acquire(ctx)
		require.NoError(t, err)
		require.Equal(t, "b", held.Conn().Config().Host)
		var wg sync.WaitGroup
		wg.Go(func() {
			name, err := ask(ctx, c.Read(After(fakeToken(1, 1000))))
			require.NoError(t, err)
			require.Equal(t, "c", name)
		})
		time.Sleep(100 * time.Millisecond)
		all[2].set(func(s *fakeServer) { s.lsn = 1000 })
		time.Sleep(time.Second)
		began := time.Now()
		all[1].crash()
		wg.Wait()
		require.LessOrEqual(t, time.Since(began), time.Second, "the next probe notices")
		held.Release()
	})
}

// Writes that wait for a connection of a primary that is one no more go to the
// new one, however well the old one is.
func TestWaitersOfAnOldPrimaryMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		all := fakeServers(2)
		c := fakeCluster(t, ClusterConfig{Pool: Config{Max: 1}}, all...)
		defer closeFake(t, c)
		held, err := c.Write().Acquire(ctx)
		require.NoError(t, err)
		defer held.Release()
		var wg sync.WaitGroup
		wg.Go(func() { require.Equal(t, "b", mustAsk(t, c.Write())) })
		time.Sleep(500 * time.Millisecond)
		all[1].set(func(s *fakeServer) { s.replica, s.timeline = false, 2 })
		began := time.Now()
		wg.Wait()
		require.LessOrEqual(t, time.Since(began), time.Second, "the next probe notices")
		require.Equal(t, RoleOldPrimary, c.Stats().Nodes[0].Role)
	})
}

// What succeeds through a Route funds the budget that its InTx takes from.
func TestSuccessesOnAllNodesFundTheBudgetOfInTx(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fakeCluster(t, ClusterConfig{}, fakeServers(2)...)
		defer closeFake(t, c)
		for c.retries.budget.Take() == nil { // until it is empty
		}
		for range 2000 {
			mustAsk(t, c.Write())
		}
		require.NoError(t, c.retries.budget.Take())
		var children []string
		for _, r := range c.Inspect().Children {
			children = append(children, r.Kind+" "+r.Name)
		}
		require.Equal(t, []string{
			"sqlpool_node a:5432", "sqlpool_node b:5432", "retry_budget cluster", "retry_budget cluster.fallback",
		}, children)
	})
}

// A breaker of a node takes it out of the picks.
func TestNodeGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		guards := map[string]*spy{}
		cfg := ClusterConfig{Guard: func(node string) core.Guard {
			guards[node] = &spy{}
			return guards[node]
		}}
		c := fakeCluster(t, cfg, fakeServers(3)...)
		defer closeFake(t, c)
		open := &core.Rejection{Guard: "breaker", Reason: core.CircuitOpen}
		require.Equal(t, "a", mustAsk(t, c.Write()))
		guards["b:5432"].refuse = open
		for range 10 {
			require.Equal(t, "c", mustAsk(t, c.Read(Any())))
		}
		guards["c:5432"].refuse = open
		require.Equal(t, "a", mustAsk(t, c.Read(Any())))
		guards["a:5432"].refuse = open
		_, err := ask(ctx, c.Read(Any()))
		require.ErrorIs(t, err, error(open))
		_, err = ask(ctx, c.Write())
		require.ErrorIs(t, err, error(open))
		for _, g := range guards {
			require.Zero(t, g.held())
		}
		asked, outcomes := guards["c:5432"].take()
		require.Positive(t, asked)
		require.Len(t, outcomes, 10)
	})
}

// A write that waits for a primary is one failure of the old one, and with a
// breaker for each node it waits all the same.
func TestWaitingWriteIsOneFailureOfItsNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guards := map[string]*spy{}
		all := fakeServers(2)
		c := fakeCluster(t, ClusterConfig{Guard: func(node string) core.Guard {
			guards[node] = &spy{}
			return guards[node]
		}}, all...)
		defer closeFake(t, c)
		mustAsk(t, c.Write())
		idle()
		all[0].crash()
		guards["a:5432"].take()
		_, err := ask(context.Background(), c.Write())
		require.ErrorIs(t, err, ErrNoPrimary)
		asked, outcomes := guards["a:5432"].take()
		require.Equal(t, 1, asked)
		require.Equal(t, []core.Outcome{core.Failure}, outcomes)
		require.Zero(t, guards["a:5432"].held())
	})
}

func TestWritesWaitForAPrimaryWithABreakerForEachNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(2)
		breakers, err := circuit.NewGroup(circuit.GroupConfig[string]{})
		require.NoError(t, err)
		c := fakeCluster(t, ClusterConfig{Guard: func(node string) core.Guard { return breakers.Get(node) }}, all...)
		defer closeFake(t, c)
		mustAsk(t, c.Write())
		idle()
		all[0].crash()
		time.AfterFunc(6*time.Second, func() { all[1].set(func(s *fakeServer) { s.replica, s.timeline = false, 2 }) })
		var wg sync.WaitGroup
		for range 200 { // enough to open it
			time.Sleep(10 * time.Millisecond) // in the bubble's time
			wg.Go(func() { require.Equal(t, "b", mustAsk(t, c.Write())) })
		}
		require.False(t, core.IsReady(breakers.Get("a:5432")))
		wg.Wait()
	})
}

// A caller who did not cancel is not told that he did, when the node is left that
// he was waiting for.
func TestNobodyCancelledWhenANodeIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(2)
		c := fakeCluster(t, ClusterConfig{Pool: Config{Max: 1, AcquireTimeout: 5 * time.Second}}, all...)
		defer closeFake(t, c)
		held, err := c.Write().Acquire(context.Background())
		require.NoError(t, err)
		defer held.Release()
		time.AfterFunc(500*time.Millisecond, func() {
			all[1].set(func(s *fakeServer) { s.timeline = 2 }) // it follows a primary that is none of ours
		})
		_, err = ask(context.Background(), c.Write())
		require.ErrorIs(t, err, ErrNoPrimary)
		require.ErrorIs(t, err, errReplaced)
		require.NotErrorIs(t, err, context.Canceled)
	})
}

// A Guard function that panics or exits the goroutine at the second node leaves
// nothing of the first.
func TestGuardFuncThatDoesNotReturnLeavesNothing(t *testing.T) {
	for name, react := range map[string]func(){"panics": func() { panic("guard") }, "exits": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // which fails for what is left running
				all := fakeServers(2)
				asked := 0
				cfg := fakeConfig(t, ClusterConfig{Guard: func(string) core.Guard {
					if asked++; asked == 2 {
						react()
					}
					return nil
				}}, all...)
				done := make(chan struct{})
				go func() {
					defer close(done)
					defer func() { _ = recover() }()
					_, _ = OpenCluster(context.Background(), cfg)
				}()
				<-done
				require.Equal(t, 2, asked)
			})
		})
	}
}

// An observer that exits its goroutine, panics or blocks holds up nobody.
func TestClusterEventsAndObserversThatDoNotReturn(t *testing.T) {
	for name, react := range map[string]func(release chan struct{}){
		"returns": func(chan struct{}) {},
		"panics":  func(chan struct{}) { panic("observer") },
		"exits":   func(chan struct{}) { runtime.Goexit() },
		"blocks":  func(release chan struct{}) { <-release },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := fakeServers(2)
				o := &clusterEvents{release: make(chan struct{}), react: react}
				c := fakeCluster(t, ClusterConfig{Observer: o, Pool: Config{Observer: deaf{}}}, all...)
				require.Equal(t, "a", mustAsk(t, c.Write()))
				require.Equal(t, "b", mustAsk(t, c.Read(Any())))
				idle()
				all[0].crash()
				all[1].set(func(s *fakeServer) { s.replica, s.timeline = false, 2 })
				require.Equal(t, "b", mustAsk(t, c.Write()))
				close(o.release)
				closeFake(t, c)
				o.mu.Lock()
				defer o.mu.Unlock()
				var roles []string
				for i, e := range o.roles {
					require.EqualValues(t, i+1, e.Seq)
					require.Equal(t, "cluster", e.Component)
					roles = append(roles, e.Backend+" "+e.From+" "+e.To)
				}
				require.Subset(t, roles, []string{"a:5432 unknown primary", "b:5432 unknown replica", "b:5432 replica primary"})
				require.NotEmpty(t, o.backends)
			})
		})
	}
}

// deaf wants no events.
type deaf struct{}

func (deaf) Enabled(core.Kind) bool              { return false }
func (deaf) Observe(context.Context, core.Event) {}

type clusterEvents struct {
	release chan struct{}
	react   func(chan struct{})

	mu       sync.Mutex
	roles    []core.Event
	backends []core.Event
}

func (o *clusterEvents) Enabled(k core.Kind) bool {
	return k == core.KindStateChanged || k == core.KindBackendChanged
}

func (o *clusterEvents) Observe(_ context.Context, e core.Event) {
	o.mu.Lock()
	if e.Kind == core.KindStateChanged {
		o.roles = append(o.roles, e)
	} else {
		o.backends = append(o.backends, e)
	}
	o.mu.Unlock()
	o.react(o.release)
}

// The zero Route refuses, and does not panic.
func TestZeroRouteRefuses(t *testing.T) {
	ctx := context.Background()
	var r Route
	_, err := r.Exec(ctx, "select 1")
	require.ErrorIs(t, err, errNowhere)
	_, err = r.Query(ctx, "select 1")
	require.ErrorIs(t, err, errNowhere)
	require.ErrorIs(t, r.QueryRow(ctx, "select 1").Scan(), errNowhere)
	_, err = r.Begin(ctx)
	require.ErrorIs(t, err, errNowhere)
	_, err = r.BeginTx(ctx, pgx.TxOptions{})
	require.ErrorIs(t, err, errNowhere)
	require.ErrorIs(t, r.InTx(ctx, pgx.TxOptions{}, func(context.Context, pgx.Tx) error { return nil }), errNowhere)
	require.ErrorIs(t, r.SendBatch(ctx, &pgx.Batch{}).Close(), errNowhere)
	_, err = r.CopyFrom(ctx, pgx.Identifier{"t"}, nil, pgx.CopyFromRows(nil))
	require.ErrorIs(t, err, errNowhere)
	require.ErrorIs(t, r.With(ctx, func(*Conn) error { return nil }), errNowhere)
	_, err = r.Acquire(ctx)
	require.ErrorIs(t, err, errNowhere)
	require.ErrorIs(t, r.Ping(ctx), errNowhere)
}

// A transaction stays on its node.
func TestTransactionStaysOnItsNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		c := fakeCluster(t, ClusterConfig{}, fakeServers(3)...)
		defer closeFake(t, c)
		require.NoError(t, c.Read(Any()).With(ctx, func(conn *Conn) error {
			first := conn.Conn().Config().Host
			for range 5 {
				var name string
				require.NoError(t, conn.QueryRow(ctx, "select name").Scan(&name))
				require.Equal(t, first, name)
			}
			return nil
		}))
	})
}

// A dial function that panics or exits its goroutine makes a probe fail, and the
// next ones come.
func TestProbeSurvivesADialThatDoesNotReturn(t *testing.T) {
	for name, react := range map[string]func(){"panics": func() { panic("dial") }, "exits": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := fakeServers(2)
				cfg := fakeConfig(t, ClusterConfig{}, all...)
				dial := cfg.Pool.ConnConfig.DialFunc
				var sick atomic.Bool
				sick.Store(true)
				cfg.Pool.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
					if sick.Load() && addr == "b:5432" {
						react()
					}
					return dial(ctx, network, addr)
				}
				c, err := OpenCluster(context.Background(), cfg)
				require.NoError(t, err)
				defer closeFake(t, c)
				require.Equal(t, "a", mustAsk(t, c.Write()))
				require.Equal(t, "a", mustAsk(t, c.Read(Any())))
				require.ErrorIs(t, c.Stats().Nodes[1].Err, core.ErrNoReturn)
				sick.Store(false)
				time.Sleep(2 * time.Second)
				require.Equal(t, "b", mustAsk(t, c.Read(Any())))
			})
		})
	}
}

// A BeforeConnect that hangs for a replica holds up neither writes nor reads, and
// the node is back when it returns.
func TestHungBeforeConnectOfAReplicaHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		c := fakeCluster(t, ClusterConfig{Pool: Config{BeforeConnect: func(_ context.Context, cfg *pgx.ConnConfig) error {
			if cfg.Host == "b" {
				<-release
			}
			return nil
		}}}, fakeServers(3)...)
		began := time.Now()
		require.Equal(t, "a", mustAsk(t, c.Write()))
		require.Equal(t, time.Second+closeTimeout, time.Since(began))
		require.Equal(t, "c", mustAsk(t, c.Read(Any())))
		require.ErrorIs(t, c.Stats().Nodes[1].Err, context.DeadlineExceeded)
		require.Equal(t, RoleUnreachable, c.Stats().Nodes[1].Role)
		close(release)
		time.Sleep(2 * time.Second)
		require.Equal(t, RoleReplica, c.Stats().Nodes[1].Role)
		closeFake(t, c)
	})
}

// A node that cannot be reached is not probed all the time, however many ask.
func TestDeadNodeIsProbedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(2)
		all[0].down = true
		c := fakeCluster(t, ClusterConfig{Pool: Config{MinIdle: Off, UnavailableAfter: Off}}, all...)
		defer closeFake(t, c)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				for ctx.Err() == nil {
					_, err := ask(ctx, c.Write())
					require.ErrorIs(t, err, ErrNoPrimary)
				}
			})
		}
		wg.Wait()
		require.LessOrEqual(t, all[0].count(func(s *fakeServer) int { return s.dials }), int(5*time.Second/deadEvery)+1)
		require.LessOrEqual(t, all[1].count(func(s *fakeServer) int { return s.probes }), int(5*time.Second/kickedEvery)+1)
	})
}

// A flood of refusals makes one error.
func TestRefusalsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := fakeServers(2)
		all[0].down = true
		all[1].down = true
		c := fakeCluster(t, ClusterConfig{NoFallback: true, ProbeInterval: time.Hour, MaxLag: Off}, all...)
		defer closeFake(t, c)
		_, first := ask(context.Background(), c.Read(Any()))
		_, second := ask(context.Background(), c.Read(Any()))
		require.ErrorIs(t, first, ErrNoReplica)
		require.Same(t, first, second)
	})
}
