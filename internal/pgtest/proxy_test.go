package pgtest

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/faultproxy"
)

func TestProxy(t *testing.T) {
	direct := DSN(t)
	p, dsn := Proxy(t, direct)
	require.Equal(t, mustQuery(t, direct, "SELECT current_database()"), mustQuery(t, dsn, "SELECT current_database()"))
	eventuallyClosed := func() bool { return p.Stats().Open == 0 }
	require.Eventually(t, eventuallyClosed, testTimeout, pollInterval) // real time: a real server
	require.Equal(t, 1, p.Stats().Accepted)
}

// The commit happens, and the client cannot know.
func TestProxyLosesCommit(t *testing.T) {
	direct := DSN(t)
	p, dsn := Proxy(t, direct)
	mustQuery(t, direct, "CREATE TABLE kept (n int)")
	ctx := testContext(t)
	conn, err := pgconn.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.Exec(ctx, "BEGIN; INSERT INTO kept VALUES (1)").ReadAll()
	require.NoError(t, err)
	hook, lost := faultproxy.LoseReply("commit", faultproxy.Cut)
	p.Intercept(hook)
	_, err = conn.Exec(ctx, "COMMIT").ReadAll()
	require.Error(t, err)
	<-lost
	require.Equal(t, "1", mustQuery(t, direct, "SELECT count(*) FROM kept"))
}

func TestProxyOfASocket(t *testing.T) {
	s := Cluster(t)
	if s.SocketDSN() == "" {
		t.Skip("no sockets")
	}
	_, dsn := Proxy(t, s.SocketDSN())
	require.Equal(t, "socket", mustQuery(t, dsn, "SELECT coalesce(host(inet_server_addr()), 'socket')"))
}

func TestDSNAddr(t *testing.T) {
	for dsn, want := range map[string]string{
		"postgres://u:p@h:1/a":                     "h:1",
		"postgres://u@/a?host=%2Fs&port=1":         "/s/.s.PGSQL.1",
		"host=h port=7 dbname=a password='p w'":    "h:7",
		"postgres://u:p@h:1,i:2/a?sslmode=disable": "h:1",
	} {
		got, err := dsnAddr(dsn)
		require.NoError(t, err)
		require.Equal(t, want, got)
		moved, err := withAddr(dsn, "127.0.0.1:9")
		require.NoError(t, err)
		got, err = dsnAddr(moved)
		require.NoError(t, err)
		require.Equal(t, "127.0.0.1:9", got, "as the driver reads it")
		c, err := pgconn.ParseConfig(moved)
		require.NoError(t, err)
		require.Equal(t, "a", c.Database)
	}
	_, err := dsnAddr("postgres://u:secret@h:port/a")
	require.Error(t, err)
	require.NotContains(t, err.Error(), "secret")
	_, err = withAddr("postgres://u:secret@h:port/a", "h:1")
	require.Error(t, err)
	require.NotContains(t, err.Error(), "secret")
	_, err = withAddr("postgres://h", "h")
	require.Error(t, err)
}
