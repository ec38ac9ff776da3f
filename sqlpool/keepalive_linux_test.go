package sqlpool

import (
	"net"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// keepAliveOf are the idle time, interval and count of a connection of p.
func keepAliveOf(t *testing.T, p *Pool) (got [3]int) {
	t.Helper()
	c, err := p.Acquire(t.Context())
	require.NoError(t, err)
	defer c.Release()
	tcp, ok := c.Conn().PgConn().Conn().(*net.TCPConn)
	if !ok {
		t.Skip("the server is not reached over plain TCP")
	}
	raw, err := tcp.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		on, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_KEEPALIVE)
		require.NoError(t, err)
		require.Equal(t, 1, on)
		for i, option := range []int{syscall.TCP_KEEPIDLE, syscall.TCP_KEEPINTVL, syscall.TCP_KEEPCNT} {
			got[i], err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, option)
			require.NoError(t, err)
		}
	}))
	return got
}

func TestSilentPeersAreGivenUp(t *testing.T) {
	dsn := withQuery(pgtest.DSN(t))
	want := [3]int{15, 5, 3}
	require.Equal(t, want, keepAliveOf(t, open(t, Config{DSN: dsn, Max: 1})))
	require.Equal(t, want, keepAliveOf(t, open(t, Config{DSN: dsn + "&connect_timeout=3", Max: 1})))

	// Somebody's own dialer is left as it is.
	own, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	own.DialFunc = (&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 7e9, Interval: 8e9, Count: 9}}).DialContext
	require.Equal(t, [3]int{7, 8, 9}, keepAliveOf(t, open(t, Config{ConnConfig: own, Max: 1})))
}
