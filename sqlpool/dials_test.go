package sqlpool

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// pgxCleansUp tells whether a goroutine of pgx's goes on with a connection that
// was given up.
func pgxCleansUp() bool {
	stacks := make([]byte, 1<<20)
	return strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "asyncClose")
}

// pgx's cancel request to a server that says nothing outlived the Pool, by the
// 15 s that pgx waits for it.
func TestCloseLeavesNoCancelRequestToASilentServer(t *testing.T) {
	for name, hang := range map[string]bool{"in its read": false, "in its dial": true} {
		t.Run(name, func(t *testing.T) {
			proxy, dsn := pgtest.Proxy(t, pgtest.DSN(t))
			cfg, err := pgx.ParseConfig(dsn)
			require.NoError(t, err)
			dial := cfg.DialFunc
			var connected atomic.Bool
			cancelling := make(chan struct{})
			cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if connected.Load() {
					close(cancelling)
					if hang {
						<-ctx.Done()
						return nil, ctx.Err()
					}
				}
				return dial(ctx, network, addr)
			}
			c, err := newDialer(cfg, &Config{Pooled: PooledNo}).dial(t.Context())
			require.NoError(t, err)
			connected.Store(true)
			require.NoError(t, proxy.Silence())
			proxy.Freeze()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond) // real time: a real server
			defer cancel()
			_, err = c.pgx.Exec(ctx, "select 1")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			<-cancelling
			require.True(t, pgxCleansUp())
			closing, stop := context.WithTimeout(t.Context(), 20*time.Millisecond) // real time: a real server
			defer stop()
			closeConn(closing, c)
			select {
			case <-c.pgx.PgConn().CleanupDone():
			default:
				t.Error("pgx goes on after the connection was closed")
			}
		})
	}
}

// What a DialFunc that heeds no context returns too late is closed, and what pgx
// is done with is not: a copy of Config may have made it, and the user keeps it.
func TestDialsCloseWhatPgxIsNotDoneWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed := func(far net.Conn) bool {
			_ = far.SetReadDeadline(time.Now().Add(time.Second))
			_, err := far.Read(make([]byte, 1))
			return errors.Is(err, io.EOF)
		}
		var far []net.Conn
		late := make(chan struct{})
		slow := false
		d := newDials(func(context.Context, string, string) (net.Conn, error) {
			if slow {
				<-late
			}
			near, f := net.Pipe()
			far = append(far, f)
			return near, nil
		})
		loggedIn, login := context.WithCancel(t.Context())
		for _, ctx := range []context.Context{t.Context(), loggedIn} {
			_, err := d.dial(ctx, "tcp", "")
			require.NoError(t, err)
		}
		login()
		slow = true
		errs := make(chan error)
		go func() {
			_, err := d.dial(t.Context(), "tcp", "")
			errs <- err
		}()
		synctest.Wait()
		d.end()
		close(late)
		require.ErrorIs(t, <-errs, context.Canceled)
		require.Equal(t, []bool{true, false, true}, []bool{closed(far[0]), closed(far[1]), closed(far[2])})
		d.forbid()
		_, err := d.dial(t.Context(), "tcp", "")
		require.ErrorIs(t, err, errNoCancelRequest)
	})
}
