package pgtest

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

// needBouncer skips or fails a test like PgBouncer does.
func needBouncer(t *testing.T) string {
	t.Helper()
	path, err := FindBouncer()
	if err != nil {
		giveUp(t, err)
	}
	return path
}

// In transaction mode, one server connection serves two clients, and what one of
// them set for its session is gone, or the other's.
func TestPgBouncer(t *testing.T) {
	ctx := testContext(t)
	direct := DSN(t)
	b := PgBouncer(t, direct, BouncerOptions{Settings: map[string]string{"default_pool_size": "1"}})
	require.NotEqual(t, mustQuery(t, direct, "SELECT inet_server_port()"), b.Addr())
	require.Equal(t, mustQuery(t, direct, "SELECT current_database()"), mustQuery(t, b.DSN(), "SELECT current_database()"))
	require.Contains(t, b.Log(), "login attempt")

	var pids [2]string
	for i := range pids {
		conn, err := pgconn.Connect(ctx, b.DSN())
		require.NoError(t, err)
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		for range 3 {
			results, err := conn.Exec(ctx, "SELECT pg_backend_pid()").ReadAll()
			require.NoError(t, err)
			pids[i] = string(results[0].Rows[0][0])
		}
	}
	require.Equal(t, pids[0], pids[1])

	wrong, err := pgconn.ParseConfig(b.DSN())
	require.NoError(t, err)
	wrong.Password = "wrong"
	_, err = pgconn.ConnectConfig(ctx, wrong)
	require.Error(t, err)
}

// Prepared statements of the protocol are lost between transactions without
// MaxPreparedStatements, and kept with it.
func TestPgBouncerPreparedStatements(t *testing.T) {
	for _, c := range []struct {
		most int
		kept bool
	}{{0, false}, {10, true}} {
		t.Run("", func(t *testing.T) {
			ctx := testContext(t)
			b := PgBouncer(t, DSN(t), BouncerOptions{
				MaxPreparedStatements: c.most,
				Settings:              map[string]string{"default_pool_size": "2"},
			})
			conn, err := pgx.Connect(ctx, b.DSN())
			require.NoError(t, err)
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
			_, err = conn.Prepare(ctx, "s", "SELECT $1::int")
			require.NoError(t, err)

			// Another client holds the connection that it was prepared on.
			other, err := pgconn.Connect(ctx, b.DSN())
			require.NoError(t, err)
			defer func() { _ = other.Close(context.WithoutCancel(ctx)) }()
			_, err = other.Exec(ctx, "BEGIN").ReadAll()
			require.NoError(t, err)
			var n int
			err = conn.QueryRow(ctx, "s", 7).Scan(&n)
			if c.kept {
				require.NoError(t, err)
				require.Equal(t, 7, n)
			} else {
				require.ErrorContains(t, err, "does not exist")
			}
		})
	}
}

func TestPgBouncerLeavesNothing(t *testing.T) {
	needBouncer(t)
	b, err := StartBouncer(testContext(t), DSN(t), BouncerOptions{})
	require.NoError(t, err)
	mustQuery(t, b.DSN(), "SELECT 1")
	require.NoError(t, b.Close())
	require.NoError(t, b.Close())
	require.NoDirExists(t, b.dir)
	require.False(t, b.proc.alive())
	require.Empty(t, b.Log())
	_, err = net.Dial("tcp", b.Addr())
	require.Error(t, err)
}

func TestPgBouncerThatCannotStart(t *testing.T) {
	needBouncer(t)
	ctx := testContext(t)
	const dsn = "postgres://u:secret@127.0.0.1:1/a"
	_, err := StartBouncer(ctx, dsn, BouncerOptions{Settings: map[string]string{"listen_port": "1", "auth_type": "any"}})
	require.ErrorContains(t, err, "listen_port")
	require.ErrorContains(t, err, "auth_type")
	_, err = StartBouncer(ctx, dsn, BouncerOptions{Settings: map[string]string{"no_such_setting": "1"}})
	require.ErrorContains(t, err, "no_such_setting", "the program's own words are in the error")
	require.NotContains(t, err.Error(), "secret")
	_, err = StartBouncer(ctx, "postgres://u:secret@h:port", BouncerOptions{})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "secret")

	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = StartBouncer(ended, dsn, BouncerOptions{})
	require.ErrorIs(t, err, context.Canceled)

	// It needs no server to start, and a port that is taken is no reason to fail.
	b, err := StartBouncer(ctx, dsn, BouncerOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	tries := 0
	second, err := startBouncer(ctx, dsn, BouncerOptions{}, func() (int, error) {
		if tries++; tries == 1 {
			_, port, err := net.SplitHostPort(b.Addr())
			require.NoError(t, err)
			return strconv.Atoi(port)
		}
		return freePort()
	})
	require.NoError(t, err)
	require.Equal(t, 2, tries)
	require.NoError(t, second.Close())
}

func TestFindBouncer(t *testing.T) {
	t.Setenv("PGBOUNCER", t.TempDir()+"/absent")
	_, err := FindBouncer()
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NotErrorIs(t, err, ErrBouncerNotInstalled, "a wrong PGBOUNCER must not skip tests")

	tb := new(fakeTB).run(func(tb TB) { PgBouncer(tb, "postgres://h", BouncerOptions{}) })
	require.NotEmpty(t, tb.failed)

	for text, want := range map[string][]int{
		"PgBouncer 1.18.0\nlibevent 2.1.12-stable": {1, 18},
		"PgBouncer 1.24.1":                         {1, 24},
		"PgBouncer version 1.9.0":                  {1, 9},
		"something else 1.2":                       nil,
	} {
		got, err := readBouncerVersion(text)
		require.Equal(t, want, got, text)
		require.Equal(t, want == nil, err != nil)
	}
}

func TestBouncerSkipOrFail(t *testing.T) {
	missing := errors.Join(ErrBouncerNotInstalled)
	t.Setenv("REQUIRE_POSTGRES", "")
	require.NotEmpty(t, new(fakeTB).run(func(tb TB) { giveUp(tb, missing) }).skipped)
	t.Setenv("REQUIRE_POSTGRES", "1")
	require.NotEmpty(t, new(fakeTB).run(func(tb TB) { giveUp(tb, missing) }).failed)
}
