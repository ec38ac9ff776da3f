package pgtest

import (
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// fakeTB records what happens to a test.
type fakeTB struct {
	skipped, failed, logged string
	cleanups                []func()
}

func (*fakeTB) Helper()                     {}
func (*fakeTB) Name() string                { return "TestFake" }
func (f *fakeTB) Cleanup(fn func())         { f.cleanups = append(f.cleanups, fn) }
func (f *fakeTB) Failed() bool              { return f.failed != "" }
func (f *fakeTB) Logf(s string, a ...any)   { f.logged += fmt.Sprintf(s, a...) }
func (f *fakeTB) Errorf(s string, a ...any) { f.failed += fmt.Sprintf(s, a...) }
func (f *fakeTB) Fatalf(s string, a ...any) {
	f.Errorf(s, a...)
	runtime.Goexit()
}

func (f *fakeTB) Skipf(s string, a ...any) {
	f.skipped += fmt.Sprintf(s, a...)
	runtime.Goexit()
}

// run runs a test on the fake until it returns, skips or fails, and then its
// cleanups.
func (f *fakeTB) run(test func(TB)) *fakeTB {
	done := make(chan struct{})
	go func() {
		defer close(done)
		test(f)
	}()
	<-done
	for _, fn := range slices.Backward(f.cleanups) {
		fn()
	}
	return f
}

func TestDSN(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a server")
	}
	var name, other string
	count := "SELECT count(*) FROM pg_database WHERE datname = '"
	t.Run("own database", func(t *testing.T) {
		dsn, second := DSN(t), DSN(t)
		mustQuery(t, dsn, "CREATE TABLE t (n int)")
		mustQuery(t, second, "CREATE TABLE t (n int)")
		name = mustQuery(t, dsn, "SELECT current_database()")
		other = mustQuery(t, second, "SELECT current_database()")
		require.NotEqual(t, name, other)
		require.Contains(t, name, "testdsn_own_database")

		// Left open: it must not keep the database.
		_, err := pgconn.Connect(testContext(t), dsn)
		require.NoError(t, err)
	})
	if name == "" {
		t.Skip("no server")
	}
	dsn := DSN(t)
	require.Equal(t, "0", mustQuery(t, dsn, count+name+"'"))
	require.Equal(t, "0", mustQuery(t, dsn, count+other+"'"))
}

func TestDSNShares(t *testing.T) {
	needBinaries(t)
	t.Setenv("TEST_DATABASE_URL", "")
	const start = "SELECT pg_postmaster_start_time() || ' ' || inet_server_port()"
	first, second := mustQuery(t, DSN(t), start), mustQuery(t, DSN(t), start)
	require.Equal(t, first, second)
	require.NotEqual(t, first, mustQuery(t, Cluster(t).DSN(), start))
}

func TestExistingServer(t *testing.T) {
	s := startCopy(t, Options{})
	defer func() { require.NoError(t, s.Close()) }()
	t.Setenv("TEST_DATABASE_URL", s.DSN())

	var port string
	tb := new(fakeTB).run(func(tb TB) {
		port = mustQuery(t, DSN(tb), "SELECT inet_server_port()")
	})
	require.Empty(t, tb.failed)
	require.True(t, strings.HasSuffix(s.Addr(), ":"+port))
	require.Equal(t, "0", mustQuery(t, s.DSN(), "SELECT count(*) FROM pg_database WHERE datname LIKE 'pgtest%'"))

	t.Setenv("REQUIRE_POSTGRES", "1")
	tb = new(fakeTB).run(func(tb TB) { Cluster(tb) })
	require.Contains(t, tb.skipped, "TEST_DATABASE_URL")

	// An existing server that does not answer is a failure, and not a skip.
	require.NoError(t, s.Stop(testContext(t)))
	tb = new(fakeTB).run(func(tb TB) { DSN(tb) })
	require.Empty(t, tb.skipped)
	require.NotEmpty(t, tb.failed)
	require.NotContains(t, tb.failed, s.password)
}

func TestSkipOrFail(t *testing.T) {
	missing := fmt.Errorf("pgtest: %w", ErrNotInstalled)
	for _, c := range []struct {
		require string
		err     error
		skips   bool
	}{
		{"", missing, true},
		{"0", missing, true},
		{"false", missing, true},
		{"1", missing, false},
		{"true", missing, false},
		{"", errPortTaken, false}, // there, and broken
	} {
		t.Setenv("REQUIRE_POSTGRES", c.require)
		tb := new(fakeTB).run(func(tb TB) { giveUp(tb, c.err) })
		if c.skips {
			require.Contains(t, tb.skipped, c.err.Error(), c)
			require.Empty(t, tb.failed, c)
		} else {
			require.Contains(t, tb.failed, c.err.Error(), c)
			require.Empty(t, tb.skipped, c)
		}
	}
}

// The same through the front door: a wrong PGBIN fails, in both helpers.
func TestHelpersReportFailedStart(t *testing.T) {
	t.Setenv("TEST_DATABASE_URL", "")
	t.Setenv("PGBIN", t.TempDir())
	tb := new(fakeTB).run(func(tb TB) { Cluster(tb) })
	require.Contains(t, tb.failed, "initdb")

	old := servers
	defer func() { servers = old }()
	servers = newFleet()
	for range 2 {
		tb = new(fakeTB).run(func(tb TB) { DSN(tb) })
		require.Contains(t, tb.failed, "initdb")
	}
	require.NoError(t, servers.close())
}

func TestClusterLogsOnFailure(t *testing.T) {
	needBinaries(t)
	t.Setenv("TEST_DATABASE_URL", "")
	var dir string
	tb := new(fakeTB).run(func(tb TB) {
		dir = Cluster(tb).dir
		tb.Fatalf("the test's own words")
	})
	require.Equal(t, "the test's own words", tb.failed, "Close had nothing to add")
	require.Contains(t, tb.logged, "ready to accept connections")
	require.NoDirExists(t, dir)
}

type fakeM func() int

func (m fakeM) Run() int { return m() }

func TestMainClosesShared(t *testing.T) {
	needBinaries(t)
	t.Setenv("TEST_DATABASE_URL", "")
	old := servers
	defer func() { servers = old }()
	servers = newFleet()
	require.Equal(t, 3, Main(fakeM(func() int { return 3 })).Run())

	var s *Server
	require.Zero(t, Main(fakeM(func() int {
		tb := new(fakeTB).run(func(tb TB) { DSN(tb) })
		require.Empty(t, tb.failed+tb.skipped)
		s = servers.shared
		require.NotZero(t, s.PID())
		return 0
	})).Run())
	require.Zero(t, s.PID())
	require.NoDirExists(t, s.dir)
}

// Programs import this package: it must not bring them the flags of testing.
func TestNoTestingImport(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	require.NoError(t, err)
	deps := strings.Fields(string(out))
	require.Contains(t, deps, "github.com/jackc/pgx/v5/pgconn")
	require.NotContains(t, deps, "testing")
	require.NotContains(t, deps, "flag")
}

func TestWithDatabase(t *testing.T) {
	for _, c := range []struct{ dsn, want string }{
		{"postgres://u:p@h:1/a?sslmode=disable", "postgres://u:p@h:1/x?sslmode=disable"},
		{"postgresql://h", "postgresql://h/x"},
		{"postgres://u@/a?host=%2Fs&port=1", "postgres://u@/x?host=%2Fs&port=1"},
		{"postgres://h/a?dbname=b&database=c", "postgres://h/x"},
		{"host=h dbname=a password='p w'", "host=h dbname=a password='p w' dbname=x"},
	} {
		got, err := withDatabase(c.dsn, "x")
		require.NoError(t, err, c.dsn)
		require.Equal(t, c.want, got)
		config, err := pgconn.ParseConfig(got)
		require.NoError(t, err)
		require.Equal(t, "x", config.Database, "as the driver reads it")
	}
	_, err := withDatabase("postgres://u:secret@h:port/a", "x")
	require.Error(t, err)
	require.NotContains(t, err.Error(), "secret")
}

func TestDatabaseName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		test := rapid.String().Draw(t, "test")
		name := databaseName(test)
		require.Regexp(t, `^pgtest_[a-z0-9_]*$`, name)
		require.LessOrEqual(t, len(name), 63)
		require.NotEqual(t, name, databaseName(test))
	})
}
