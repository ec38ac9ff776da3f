package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// TB is the part of [testing.TB] that this package needs. Programs import the
// package too, and must not get the flags of testing with it.
type TB interface {
	Helper()
	Name() string
	Cleanup(func())
	Failed() bool
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// M is what [testing.M] does.
type M interface {
	Run() int
}

// testTimeout bounds what a test waits for here: a start, or one statement.
const testTimeout = time.Minute

// DSN returns the connection string of a new, empty database for the test, as
// a superuser over TCP. It is dropped when the test ends, with any connection
// that is still open to it.
//
// All tests of the binary share one cluster. The first call starts it, and
// [Main] closes it. With TEST_DATABASE_URL, the databases are made on that
// server instead. Without binaries, the test is skipped, or fails if
// REQUIRE_POSTGRES says so.
//
// It may be called more than once in a test, for several databases, and in
// parallel tests.
func DSN(tb TB) string {
	tb.Helper()
	admin := os.Getenv("TEST_DATABASE_URL")
	if admin == "" {
		s, err := servers.sharedServer()
		if err != nil {
			giveUp(tb, err)
		}
		admin = s.DSN()
	}
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	name := databaseName(tb.Name())
	dsn, err := createDatabase(ctx, admin, name)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		if err := dropDatabase(ctx, admin, name); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return dsn
}

// Cluster starts a server for this test alone, which may stop, kill or pause
// it. It is closed when the test ends; if the test failed, the end of the
// server's log goes to the test's.
//
// With TEST_DATABASE_URL the test is skipped, as there is only that server.
// Without binaries, it is skipped, or fails if REQUIRE_POSTGRES says so.
func Cluster(tb TB) *Server {
	tb.Helper()
	if os.Getenv("TEST_DATABASE_URL") != "" {
		tb.Skipf("pgtest: the test needs a server of its own, and TEST_DATABASE_URL is set")
	}
	s, err := servers.start()
	if err != nil {
		giveUp(tb, err)
	}
	closeAtEnd(tb, s, "server")
	return s
}

// Replicas starts a primary and n replicas of it for this test alone: see
// [Cluster] and [Server.Replica]. All have the same user and password. They are
// closed when the test ends.
func Replicas(tb TB, n int) (primary *Server, replicas []*Server) {
	tb.Helper()
	primary = Cluster(tb)
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	for i := range n {
		r, err := primary.Replica(ctx, Options{})
		if err != nil {
			tb.Fatalf("%v", err)
		}
		closeAtEnd(tb, r, fmt.Sprintf("replica %d", i))
		replicas = append(replicas, r)
	}
	return primary, replicas
}

// PgBouncer starts a [Bouncer] in front of the server that dsn connects to,
// which may be the one that other tests use too. It is closed when the test
// ends. Without the program, the test is skipped, or fails if REQUIRE_POSTGRES
// says so; if the program is too old for the options, it is skipped.
func PgBouncer(tb TB, dsn string, o BouncerOptions) *Bouncer {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	b, err := StartBouncer(ctx, dsn, o)
	if errors.Is(err, errors.ErrUnsupported) {
		tb.Skipf("%v", err)
	}
	if err != nil {
		giveUp(tb, err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("PgBouncer's log:\n%s", b.Log())
		}
		if err := b.Close(); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return b
}

// closeAtEnd closes s when the test ends.
func closeAtEnd(tb TB, s *Server, what string) {
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("the %s's log:\n%s", what, s.Log())
		}
		if err := s.Close(); err != nil {
			tb.Errorf("%v", err)
		}
	})
}

// Main returns an M that runs m and then closes what the tests shared. If that fails, its Run returns 1. Use it in TestMain, alone or under
// another wrapper:
//
//	os.Exit(pgtest.Main(m).Run())
//	goleak.VerifyTestMain(pgtest.Main(m))
//
// Without Main, the cluster lives until the process ends, and is then removed
// as if the process had been killed. A leak check inside a test sees the
// goroutines that wait for the cluster's processes:
//
//	goleak.IgnoreAnyFunction("github.com/surgewall/surgewall/internal/pgtest.(*process).run")
func Main(m M) M { return closingM{m} }

type closingM struct{ m M }

func (c closingM) Run() int {
	code := c.m.Run()
	if err := servers.close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	return code
}

// giveUp ends a test that got no server, or none of what it needs beside.
func giveUp(tb TB, err error) {
	tb.Helper()
	missing := errors.Is(err, ErrNotInstalled) || errors.Is(err, ErrBouncerNotInstalled)
	if missing && !required() {
		tb.Skipf("%v", err)
	}
	tb.Fatalf("%v", err)
}

// required reports whether a missing server fails a test.
func required() bool {
	switch os.Getenv("REQUIRE_POSTGRES") {
	case "", "0", "false":
		return false
	default:
		return true
	}
}
