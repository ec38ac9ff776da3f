package pgtest

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// helperEnv names what the test binary does instead of running tests.
const helperEnv = "PGTEST_HELPER"

// runHelper does it. Only Linux has tests that need it.
var runHelper func(mode string)

var _ TB = testing.TB(nil)

func TestMain(m *testing.M) {
	if mode := os.Getenv(helperEnv); mode != "" {
		runHelper(mode)
		return
	}
	goleak.VerifyTestMain(Main(m))
}

// testContext bounds a test's calls: well under the test binary's own limit,
// well over what they take on a busy machine.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// query returns the first column of the first row.
func query(ctx context.Context, dsn, sql string) (string, error) {
	conn, err := pgconn.Connect(ctx, dsn)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return "", err
	}
	last := results[len(results)-1]
	if len(last.Rows) == 0 {
		return "", nil
	}
	return string(last.Rows[0][0]), nil
}

func mustQuery(t *testing.T, dsn, sql string) string {
	t.Helper()
	got, err := query(testContext(t), dsn, sql)
	require.NoError(t, err)
	return got
}

// needBinaries skips or fails a test like DSN and Cluster do, without starting
// a server.
func needBinaries(t *testing.T) string {
	t.Helper()
	dir, err := FindBinaries()
	if err != nil {
		giveUp(t, err)
	}
	return dir
}

// startCopy is Start on a copy of the prototype, which is faster. The caller
// closes the server.
func startCopy(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := start(testContext(t), o, startParts{pickPort: freePort, prototype: prototype(t)})
	require.NoError(t, err)
	return s
}

// prototype makes sure that there is one.
func prototype(t *testing.T) *Server {
	t.Helper()
	needBinaries(t)
	<-servers.turn
	defer func() { servers.turn <- struct{}{} }()
	servers.starts = max(servers.starts, 1)
	s, err := servers.next(testContext(t))
	require.NoError(t, err)
	return s
}
