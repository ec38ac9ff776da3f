package sqlpool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/core/pool"
)

// A server that cannot be dialled is refused by the pool, not by the server;
// the breaker in front opens all the same.
func TestBreakerInFrontOpensWhenTheServerIsDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	dead := l.Addr().String()
	require.NoError(t, l.Close())
	breaker, err := circuit.New(circuit.Config{FailureThreshold: 2})
	require.NoError(t, err)
	p := open(t, Config{
		DSN: "postgres://app@" + dead + "/shop", Guard: breaker, MinIdle: Off, UnavailableAfter: time.Millisecond,
	})
	for range 2 {
		_, err := p.Exec(t.Context(), "select 1")
		require.ErrorIs(t, err, pool.ErrUnavailable)
	}
	require.Equal(t, circuit.Open, breaker.State())
	_, err = p.Exec(t.Context(), "select 1")
	require.ErrorIs(t, err, circuit.ErrOpen)
	_, err = p.DB().ExecContext(t.Context(), "select 1")
	require.ErrorIs(t, err, circuit.ErrOpen)
}

// deadConnector is a driver whose server is gone.
type deadConnector struct{ dials int }

var errRefusedByPeer = errors.New("connection refused")

func (c *deadConnector) Connect(context.Context) (driver.Conn, error) {
	c.dials++
	return nil, errRefusedByPeer
}
func (c *deadConnector) Driver() driver.Driver { return nil }

// database/sql connects before it sends a statement, so a breaker that heard of
// statements only would hear nothing of a server that is down, and an open one
// would be asked after the dial.
func TestWrapBreakerOpensWhenTheServerIsDown(t *testing.T) {
	breaker, err := circuit.New(circuit.Config{FailureThreshold: 2})
	require.NoError(t, err)
	dead := &deadConnector{}
	db := sql.OpenDB(Wrap(dead, WrapConfig{Guard: breaker}))
	defer db.Close()
	for range 2 {
		_, err := db.ExecContext(t.Context(), "select 1")
		require.ErrorIs(t, err, errRefusedByPeer)
	}
	require.Equal(t, circuit.Open, breaker.State())
	for range 3 {
		_, err = db.ExecContext(t.Context(), "select 1")
		require.ErrorIs(t, err, circuit.ErrOpen)
	}
	require.Equal(t, 2, dead.dials, "an open breaker spares the dial")
}

// A caller that leaves while its connection is dialled says nothing.
func TestWrapCancelledConnectIsIgnored(t *testing.T) {
	g := &spy{}
	ctx, cancel := context.WithCancel(t.Context())
	c := Wrap(connectFunc(func(context.Context) (driver.Conn, error) {
		cancel()
		return nil, ctx.Err()
	}), WrapConfig{Guard: g})
	_, err := c.Connect(ctx)
	require.ErrorIs(t, err, context.Canceled)
	_, results := g.take()
	require.Equal(t, []core.Outcome{core.Ignored}, results)
}

// A login that the server refuses is an answer, unless it says that it cannot.
func TestWrapTellsARefusedLoginFromAServerInTrouble(t *testing.T) {
	for code, want := range map[string]core.Outcome{"28P01": core.Success, "57P03": core.Failure} {
		g := &spy{}
		_, err := Wrap(connectFunc(func(context.Context) (driver.Conn, error) {
			return nil, &pgconn.PgError{Code: code}
		}), WrapConfig{Guard: g}).Connect(t.Context())
		require.Error(t, err)
		_, results := g.take()
		require.Equal(t, []core.Outcome{want}, results, code)
	}
}

type connectFunc func(context.Context) (driver.Conn, error)

func (f connectFunc) Connect(ctx context.Context) (driver.Conn, error) { return f(ctx) }
func (f connectFunc) Driver() driver.Driver                            { return nil }
