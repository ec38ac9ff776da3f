package pgtest

import (
	"context"
	"net"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

func TestServerDSN(t *testing.T) {
	s := Cluster(t)
	require.Equal(t, "off", mustQuery(t, s.DSN(), "SHOW fsync"))
	require.Equal(t, "UTF8", mustQuery(t, s.DSN(), "SHOW server_encoding"))
	require.Equal(t, s.Addr(), mustQuery(t, s.DSN(), "SELECT host(inet_server_addr()) || ':' || inet_server_port()"))
	require.Contains(t, s.Log(), "ready to accept connections")
	if haveSockets {
		require.Equal(t, "socket", mustQuery(t, s.SocketDSN(), "SELECT coalesce(host(inet_server_addr()), 'socket')"))
	} else {
		require.Empty(t, s.SocketDSN())
	}

	// Without the password, TCP is closed.
	u, err := url.Parse(s.DSN())
	require.NoError(t, err)
	u.User = url.UserPassword("postgres", "wrong")
	_, err = query(testContext(t), u.String(), "SELECT 1")
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr)
	require.Equal(t, "28P01", pgErr.Code) // invalid_password
}

func TestServerRestart(t *testing.T) {
	ctx := testContext(t)
	s := Cluster(t)
	dsn, pid := s.DSN(), s.PID()
	require.NotZero(t, pid)
	mustQuery(t, dsn, "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)")

	for _, stop := range []func(context.Context) error{s.Stop, s.Kill} {
		require.NoError(t, stop(ctx))
		require.NoError(t, stop(ctx), "stopping twice is fine")
		require.Zero(t, s.PID())
		_, err := net.Dial("tcp", s.Addr())
		require.Error(t, err, "nobody listens")
		require.NoError(t, s.Restart(ctx))
		require.Equal(t, "1", mustQuery(t, dsn, "SELECT count(*) FROM kept"))
	}
	require.NotEqual(t, pid, s.PID())

	pid = s.PID()
	require.NoError(t, s.Restart(ctx), "of a running server")
	require.NotEqual(t, pid, s.PID())
	require.Equal(t, "1", mustQuery(t, dsn, "SELECT count(*) FROM kept"))
}

// The postmaster crashes alone, and a child of it lives on for a while.
func TestServerRestartAfterCrash(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no SIGSTOP")
	}
	ctx := testContext(t)
	s := Cluster(t)
	mustQuery(t, s.DSN(), "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)")
	conn, err := pgconn.Connect(ctx, s.DSN())
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	require.NoError(t, s.Pause(int(conn.PID())))
	p := s.running()
	require.NoError(t, p.cmd.Process.Kill())
	<-p.done
	require.Zero(t, s.PID())

	require.ErrorIs(t, s.tryBoot(ctx), errInUse)
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond) // real time: a real process lives on
	defer cancel()
	require.ErrorIs(t, s.boot(short), context.DeadlineExceeded, "it waits no longer than it may")
	require.NoError(t, s.Restart(ctx), "which lets the child go on, and end")
	require.Equal(t, "1", mustQuery(t, s.DSN(), "SELECT count(*) FROM kept"))
}

func TestServerRestartPortTaken(t *testing.T) {
	ctx := testContext(t)
	s := Cluster(t)
	require.NoError(t, s.Stop(ctx))
	thief, err := net.Listen("tcp", s.Addr())
	require.NoError(t, err)
	require.ErrorIs(t, s.Restart(ctx), errPortTaken)
	require.Zero(t, s.PID())
	require.NoError(t, thief.Close())
	require.NoError(t, s.Restart(ctx))
	mustQuery(t, s.DSN(), "SELECT 1")
}

func TestServerStopPastDeadline(t *testing.T) {
	ctx := testContext(t)
	s := Cluster(t)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, s.Stop(ended), context.Canceled)
	require.Zero(t, s.PID(), "stopped all the same")
	require.ErrorIs(t, s.Restart(ended), context.Canceled)
	require.Zero(t, s.PID())
	require.NoError(t, s.Restart(ctx))
}

func TestServerPause(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no SIGSTOP")
	}
	ctx := testContext(t)
	s := Cluster(t)
	conn, err := pgconn.Connect(ctx, s.DSN())
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()

	// real time: a paused server is told from a slow one only by waiting.
	const silence = 300 * time.Millisecond

	require.NoError(t, s.Pause())
	accepted, err := net.Dial("tcp", s.Addr())
	require.NoError(t, err, "the kernel accepts")
	require.NoError(t, accepted.Close())
	short, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	_, err = query(short, s.DSN(), "SELECT 1")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = conn.Exec(ctx, "SELECT 1").ReadAll()
	require.NoError(t, err, "backends go on")
	require.NoError(t, s.Resume())
	mustQuery(t, s.DSN(), "SELECT 1")

	require.NoError(t, s.Pause(int(conn.PID())))
	mustQuery(t, s.DSN(), "SELECT 1")
	short, cancel = context.WithTimeout(ctx, silence)
	defer cancel()
	_, err = conn.Exec(short, "SELECT 1").ReadAll()
	require.ErrorIs(t, err, context.DeadlineExceeded)

	// A suspended child must not hold up a shutdown.
	require.NoError(t, s.Pause())
	require.NoError(t, s.Stop(ctx))
	require.Empty(t, s.paused)
	require.Error(t, s.Pause(), "not running")
	require.NoError(t, s.Resume(), "nothing to do")
	require.Error(t, s.Pause(-1), "would be a process group")
}

func TestServerClose(t *testing.T) {
	ctx := testContext(t)
	s := startCopy(t, Options{Settings: map[string]string{"max_connections": "7", "Autovacuum": "on"}})
	require.Equal(t, "7", mustQuery(t, s.DSN(), "SHOW max_connections"))
	require.Equal(t, "on", mustQuery(t, s.DSN(), "SHOW autovacuum"))
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.NoDirExists(t, s.dir)
	require.Empty(t, s.Log())
	require.ErrorIs(t, s.Stop(ctx), ErrClosed)
	require.ErrorIs(t, s.Kill(ctx), ErrClosed)
	require.ErrorIs(t, s.Restart(ctx), ErrClosed)
	require.Error(t, s.Pause())
}

// Whatever the order, the server is gone after Close, and the race detector has
// nothing to say.
func TestServerConcurrentUse(t *testing.T) {
	ctx := testContext(t)
	s := startCopy(t, Options{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { _ = s.Stop(ctx) })
		wg.Go(func() { _ = s.Kill(ctx) })
		wg.Go(func() { _ = s.Restart(ctx) })
		wg.Go(func() { _ = s.Pause() })
		wg.Go(func() { _ = s.Resume() })
		wg.Go(func() { _, _ = s.PID(), s.Log() })
	}
	wg.Go(func() { _ = s.Close() })
	wg.Wait()
	require.NoError(t, s.Close())
	require.Zero(t, s.PID())
	require.NoDirExists(t, s.dir)
}

func TestStartTriesAnotherPort(t *testing.T) {
	from := prototype(t)
	thief, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = thief.Close() }()
	_, taken, err := net.SplitHostPort(thief.Addr().String())
	require.NoError(t, err)
	tries := 0
	s, err := start(testContext(t), Options{}, startParts{prototype: from, pickPort: func() (int, error) {
		if tries++; tries == 1 {
			return strconv.Atoi(taken)
		}
		return freePort()
	}})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	require.Equal(t, 2, tries)
	mustQuery(t, s.DSN(), "SELECT 1")
}

func TestStartOptions(t *testing.T) {
	ctx := testContext(t)
	_, err := Start(ctx, Options{BinDir: t.TempDir()})
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = Start(ctx, Options{Settings: map[string]string{"Port": "1", "data_directory": "x"}})
	require.ErrorContains(t, err, "Port")
	require.ErrorContains(t, err, "data_directory")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = Start(ended, Options{})
	require.ErrorIs(t, err, context.Canceled)
}

func TestStartBadSetting(t *testing.T) {
	parts := startParts{pickPort: freePort, prototype: prototype(t)}
	_, err := start(testContext(t), Options{Settings: map[string]string{"no_such_setting": "1"}}, parts)
	require.ErrorContains(t, err, "no_such_setting", "the server's own words are in the error")
}

func TestFreePort(t *testing.T) {
	for range 20 {
		port, err := freePort()
		require.NoError(t, err)
		require.GreaterOrEqual(t, port, firstPort)
		require.LessOrEqual(t, port, lastPort)
	}
}

func TestReadTail(t *testing.T) {
	path := t.TempDir() + "/f"
	require.NoError(t, os.WriteFile(path, []byte("0123456789"), 0o600))
	for _, c := range []struct {
		offset, limit int64
		want          string
	}{
		{0, 100, "0123456789"},
		{0, 3, "789"},
		{4, 100, "456789"},
		{10, 100, ""},
		{11, 100, ""},
	} {
		require.Equal(t, c.want, readTail(path, c.offset, c.limit), c)
	}
	require.Empty(t, readTail(path+"absent", 0, 1))
	require.Empty(t, strings.TrimSpace(readTail(t.TempDir(), 0, 1)), "a folder is no log")
}
