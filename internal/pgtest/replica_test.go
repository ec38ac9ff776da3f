package pgtest

import (
	"context"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const countKept = "SELECT count(*) FROM kept"

// syncTo makes commits on s wait for its replicas.
func syncTo(t *testing.T, s *Server, names string) {
	t.Helper()
	mustQuery(t, s.DSN(), "ALTER SYSTEM SET synchronous_standby_names = '"+names+"'")
	mustQuery(t, s.DSN(), "SELECT pg_reload_conf()")
	// real time: the server reads its settings in its own time
	require.Eventually(t, func() bool {
		return mustQuery(t, s.DSN(), "SHOW synchronous_standby_names") == names &&
			mustQuery(t, s.DSN(), "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')") != "0"
	}, 10*time.Second, 5*time.Millisecond)
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	require.NoError(t, err)
	return n
}

func TestReplicas(t *testing.T) {
	ctx := testContext(t)
	primary, replicas := Replicas(t, 2)
	names := map[string]bool{primary.Name(): true}
	for _, r := range replicas {
		require.Equal(t, "t", mustQuery(t, r.DSN(), "SELECT pg_is_in_recovery()"))
		require.Equal(t, "off", mustQuery(t, r.DSN(), "SHOW fsync"))
		names[r.Name()] = true
		_, err := query(ctx, r.DSN(), "CREATE TABLE t ()")
		require.ErrorContains(t, err, "read-only")
	}
	require.Len(t, names, 3, "every server has a name of its own")
	require.Equal(t, "f", mustQuery(t, primary.DSN(), "SELECT pg_is_in_recovery()"))
	require.Equal(t, "2", mustQuery(t, primary.DSN(), "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"))
	require.Equal(t, "2", mustQuery(t, primary.DSN(), "SELECT count(*) FROM pg_replication_slots WHERE active"))
}

// An acknowledged commit is on the synchronous replica, in its log at least, and
// so what is promoted has it.
func TestPromoteSynchronousReplica(t *testing.T) {
	ctx := testContext(t)
	primary, replicas := Replicas(t, 1)
	replica := replicas[0]
	mustQuery(t, primary.DSN(), "CREATE TABLE kept (n int)")
	syncTo(t, primary, replica.Name())
	mustQuery(t, replica.DSN(), "SELECT pg_wal_replay_pause()")
	for range 20 {
		mustQuery(t, primary.DSN(), "INSERT INTO kept VALUES (1)")
	}
	require.NoError(t, primary.Kill(ctx))
	require.NoError(t, replica.Promote(ctx))
	require.Equal(t, "f", mustQuery(t, replica.DSN(), "SELECT pg_is_in_recovery()"))
	require.Equal(t, "20", mustQuery(t, replica.DSN(), countKept))
	mustQuery(t, replica.DSN(), "INSERT INTO kept VALUES (2)")
	require.ErrorContains(t, replica.Promote(ctx), "recovery is not in progress")

	// It is a primary for good, and waits for no replica.
	require.NoError(t, replica.Restart(ctx))
	mustQuery(t, replica.DSN(), "INSERT INTO kept VALUES (3)")

	// The old primary comes back as it was.
	require.NoError(t, primary.Restart(ctx))
	require.Equal(t, "20", mustQuery(t, primary.DSN(), countKept))
	require.Equal(t, "f", mustQuery(t, primary.DSN(), "SELECT pg_is_in_recovery()"))
}

// While its replica is away, a synchronous commit waits.
func TestSynchronousCommitWaitsForTheReplica(t *testing.T) {
	ctx := testContext(t)
	primary, replicas := Replicas(t, 1)
	mustQuery(t, primary.DSN(), "CREATE TABLE kept (n int)")
	syncTo(t, primary, replicas[0].Name())
	require.NoError(t, replicas[0].Stop(ctx))
	done := make(chan error, 1)
	go func() { done <- execute(ctx, primary.DSN(), "INSERT INTO kept VALUES (1)") }()
	select {
	case err := <-done:
		t.Fatal("acknowledged without the replica: ", err)
	case <-time.After(200 * time.Millisecond): // real time: nothing happens
	}
	require.NoError(t, replicas[0].Restart(ctx))
	require.NoError(t, <-done)

	// A replica made now knows nothing of the setting, and one that is stopped
	// does not hold up the primary's end.
	second, err := primary.Replica(ctx, Options{Settings: map[string]string{"hot_standby_feedback": "on"}})
	require.NoError(t, err)
	defer func() { require.NoError(t, second.Close()) }()
	require.Empty(t, mustQuery(t, second.DSN(), "SHOW synchronous_standby_names"))
	require.Equal(t, "on", mustQuery(t, second.DSN(), "SHOW hot_standby_feedback"))
	require.NoError(t, replicas[0].Kill(ctx))
}

func TestReplicaCatchesUp(t *testing.T) {
	ctx := testContext(t)
	primary, replicas := Replicas(t, 1)
	replica := replicas[0]
	mustQuery(t, primary.DSN(), "CREATE TABLE kept (n int)")
	for i, stop := range []func(context.Context) error{replica.Stop, replica.Kill} {
		require.NoError(t, stop(ctx))
		mustQuery(t, primary.DSN(), "INSERT INTO kept VALUES (1); SELECT pg_switch_wal(); CHECKPOINT; CHECKPOINT")
		require.NoError(t, replica.Restart(ctx))
		want := strconv.Itoa(i + 1)
		// real time: replication is asynchronous
		require.Eventually(t, func() bool {
			got, err := query(ctx, replica.DSN(), countKept) // no such table at first
			return err == nil && got == want
		}, 10*time.Second, 5*time.Millisecond)
	}

	// A replica starts without its primary, too.
	require.NoError(t, replica.Stop(ctx))
	require.NoError(t, primary.Stop(ctx))
	require.NoError(t, replica.Restart(ctx))
	require.Equal(t, "2", mustQuery(t, replica.DSN(), countKept))
	require.NoError(t, primary.Restart(ctx))
	require.NoError(t, replica.awaitStreaming(ctx))
}

func TestFollow(t *testing.T) {
	ctx := testContext(t)
	primary, replicas := Replicas(t, 2)
	mustQuery(t, primary.DSN(), "CREATE TABLE kept (n int)")
	syncTo(t, primary, replicas[0].Name())
	mustQuery(t, primary.DSN(), "INSERT INTO kept VALUES (1)")
	require.NoError(t, primary.Stop(ctx))
	require.NoError(t, replicas[0].Promote(ctx))
	require.NoError(t, primary.Restart(ctx))
	mustQuery(t, primary.DSN(), "SET synchronous_commit = local; INSERT INTO kept VALUES (2)") // and is lost

	dsn := primary.DSN()
	for _, s := range []*Server{primary, replicas[1]} {
		require.NoError(t, s.Follow(ctx, replicas[0]))
		require.Equal(t, "t", mustQuery(t, s.DSN(), "SELECT pg_is_in_recovery()"))
		require.Equal(t, "1", mustQuery(t, s.DSN(), "SELECT sum(n) FROM kept"))
	}
	require.Equal(t, dsn, primary.DSN())
	syncTo(t, replicas[0], "ANY 1 ("+primary.Name()+", "+replicas[1].Name()+")")
	mustQuery(t, replicas[0].DSN(), "SET synchronous_commit = remote_apply; INSERT INTO kept VALUES (3)")

	// And back.
	require.NoError(t, replicas[0].Stop(ctx))
	require.NoError(t, primary.Promote(ctx))
	mustQuery(t, primary.DSN(), "INSERT INTO kept VALUES (4)")
	require.NoError(t, replicas[0].Follow(ctx, primary))

	require.Error(t, primary.Follow(ctx, primary))
	require.ErrorContains(t, primary.Follow(ctx, &Server{password: "another"}), "same family")
}

// Follow fails when there is no primary, and may be called again.
func TestFollowAgain(t *testing.T) {
	ctx := testContext(t)
	primary, replicas := Replicas(t, 1)
	require.NoError(t, primary.Stop(ctx))
	require.Error(t, replicas[0].Follow(ctx, primary))
	require.Zero(t, replicas[0].PID())
	require.NoError(t, primary.Restart(ctx))
	require.NoError(t, replicas[0].Follow(ctx, primary))
}

// Whichever goes first, and even if the replica is suspended.
func TestCloseOrderIsFree(t *testing.T) {
	ctx := testContext(t)
	for _, pause := range []bool{false, true} {
		if pause && runtime.GOOS == "windows" {
			continue
		}
		primary := startCopy(t, Options{Settings: map[string]string{"wal_sender_timeout": "1s"}})
		replica, err := primary.Replica(ctx, Options{})
		require.NoError(t, err)
		if pause {
			pid := mustQuery(t, replica.DSN(), "SELECT pid FROM pg_stat_wal_receiver")
			require.NoError(t, replica.Pause(atoi(t, pid)))
			mustQuery(t, primary.DSN(), "CREATE TABLE t ()")
		}
		require.NoError(t, primary.Close())
		require.NoError(t, replica.Close())
		require.NoDirExists(t, primary.dir)
		require.NoDirExists(t, replica.dir)
	}
}

func TestReplicaThatCannotBeMade(t *testing.T) {
	ctx := testContext(t)
	primary := Cluster(t)
	require.NoError(t, primary.Stop(ctx))
	_, err := primary.Replica(ctx, Options{})
	require.ErrorContains(t, err, "replication slot")
	require.NotContains(t, err.Error(), primary.password)
	_, err = primary.Replica(ctx, Options{BinDir: t.TempDir()})
	require.Error(t, err)
	require.NoError(t, primary.Restart(ctx))
	_, err = primary.Replica(ctx, Options{Settings: map[string]string{"max_connections": "5"}})
	require.ErrorContains(t, err, "max_connections", "below the primary's")
}
