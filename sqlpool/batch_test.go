package sqlpool

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/internal/pgtest"
)

func queue(sql ...string) *pgx.Batch {
	b := &pgx.Batch{}
	for _, s := range sql {
		b.Queue(s)
	}
	return b
}

// Every way out of a batch gives the one connection back, and tells the guard.
func TestBatchEveryWayOut(t *testing.T) {
	ctx, dsn := t.Context(), pgtest.DSN(t)
	for name, c := range map[string]struct {
		use              func(t *testing.T, p *Pool)
		ignored, failure bool // what the guard learns; else Success
		gone             int  // connections lost
	}{
		"closed unread": {use: func(t *testing.T, p *Pool) {
			require.NoError(t, p.SendBatch(ctx, queue("select 1", "select generate_series(1, 100000)", "select 2")).Close())
		}},
		"read": {use: func(t *testing.T, p *Pool) {
			r := p.SendBatch(ctx, queue("select 1", "select 2", "select 3"))
			_, err := r.Exec()
			require.NoError(t, err)
			var n int
			require.NoError(t, r.QueryRow().Scan(&n))
			require.Equal(t, 2, n)
			rows, err := r.Query()
			require.NoError(t, err)
			got, err := pgx.CollectRows(rows, pgx.RowTo[int])
			require.NoError(t, err)
			require.Equal(t, []int{3}, got)
			_, err = r.Exec()
			require.Error(t, err, "there are no more")
			require.NoError(t, r.Close())
			require.NoError(t, r.Close())
			_, err = r.Exec()
			require.Error(t, err)
			_, err = r.Query()
			require.Error(t, err)
			require.Error(t, r.QueryRow().Scan(&n))
			require.Nil(t, r.Tx())
		}},
		"closed in the middle of rows": {use: func(t *testing.T, p *Pool) {
			r := p.SendBatch(ctx, queue("select generate_series(1, 100000)", "select 2"))
			rows, err := r.Query()
			require.NoError(t, err)
			require.True(t, rows.Next())
			require.NoError(t, r.Close())
			require.False(t, rows.Next())
		}},
		"empty": {ignored: true, use: func(t *testing.T, p *Pool) {
			r := p.SendBatch(ctx, &pgx.Batch{})
			_, err := r.Exec()
			require.Error(t, err)
			require.NoError(t, r.Close())
		}},
		"fails to be prepared": {use: func(t *testing.T, p *Pool) {
			r := p.SendBatch(ctx, queue("select 1", "selec 2"))
			_, err := r.Exec()
			require.Error(t, err)
			require.Error(t, r.Close())
		}},
		"fails to run": {use: func(t *testing.T, p *Pool) {
			r := p.SendBatch(ctx, queue("select 1", "select 1/0", "select 3"))
			_, err := r.Exec()
			require.NoError(t, err)
			require.True(t, isState(r.QueryRow().Scan(nil), "22012"))
			err = r.Close()
			require.True(t, isState(err, "22012"))
			require.Equal(t, err, r.Close())
		}},
		"cannot be encoded": {ignored: true, use: func(t *testing.T, p *Pool) {
			b := &pgx.Batch{}
			b.Queue("select $1::int", struct{}{})
			require.Error(t, p.SendBatch(ctx, b).Close())
		}},
		"panics while it is encoded": {gone: 1, ignored: true, use: func(t *testing.T, p *Pool) {
			b := &pgx.Batch{}
			b.Queue("select $1::int", bomb{})
			mustPanic(t, func() { _ = p.SendBatch(ctx, b).Close() })
		}},
		"the callback fails": {use: func(t *testing.T, p *Pool) {
			b, boom := queue("select 1"), errors.New("boom")
			b.Queue("select 2").QueryRow(func(r pgx.Row) error { _ = r.Scan(nil); return boom })
			require.ErrorIs(t, p.SendBatch(ctx, b).Close(), boom)
		}, ignored: true},
		"the callback panics": {gone: 1, ignored: true, use: func(t *testing.T, p *Pool) {
			b := queue("select 1")
			b.Queue("select 2").QueryRow(func(pgx.Row) error { panic("callback") })
			b.Queue("select 3")
			r := p.SendBatch(ctx, b)
			mustPanic(t, func() { _ = r.Close() })
			_ = r.Close()
		}},
		"the callback panics in a transaction": {gone: 1, ignored: true, use: func(t *testing.T, p *Pool) {
			b := &pgx.Batch{}
			b.BeginTx(pgx.TxOptions{})
			b.Queue("select 2").QueryRow(func(pgx.Row) error { panic("callback") })
			r := p.SendBatch(ctx, b)
			mustPanic(t, func() { _ = r.Close() })
			require.ErrorIs(t, r.Tx().Rollback(ctx), pgx.ErrTxClosed)
		}},
		"the callback exits": {gone: 1, ignored: true, use: func(t *testing.T, p *Pool) {
			var wg sync.WaitGroup
			wg.Go(func() {
				b := queue("select 1")
				b.Queue("select 2").Exec(func(pgconn.CommandTag) error { runtime.Goexit(); return nil })
				_ = p.SendBatch(ctx, b).Close()
			})
			wg.Wait()
		}},
		"the server dies": {gone: 1, failure: true, use: func(t *testing.T, p *Pool) {
			r := p.SendBatch(ctx, queue("select 1", terminate, "select 3"))
			_, err := r.Exec()
			require.NoError(t, err)
			_, err = r.Query()
			if err == nil {
				err = r.Close()
			}
			require.Error(t, err)
			require.Error(t, r.Close())
		}},
		"the context ends": {gone: 1, ignored: true, use: func(t *testing.T, p *Pool) {
			ctx, cancel := context.WithCancel(ctx)
			r := p.SendBatch(ctx, queue("select 1", "select pg_sleep(60)"))
			cancel()
			require.ErrorIs(t, r.Close(), context.Canceled)
		}},
		"begins a transaction, committed": {use: func(t *testing.T, p *Pool) {
			b := &pgx.Batch{}
			b.BeginTx(pgx.TxOptions{})
			b.Queue("select 1")
			r := p.SendBatch(ctx, b)
			require.NoError(t, r.Close())
			require.Equal(t, 1, p.Stats().Used)
			_, err := r.Tx().Exec(ctx, "select 2")
			require.NoError(t, err)
			require.NoError(t, r.Tx().Commit(ctx))
			require.ErrorIs(t, r.Tx().Rollback(ctx), pgx.ErrTxClosed)
		}},
		"begins a transaction that fails": {use: func(t *testing.T, p *Pool) {
			b := &pgx.Batch{}
			b.BeginTx(pgx.TxOptions{})
			b.Queue("select 1/0")
			r := p.SendBatch(ctx, b)
			defer func() { require.NoError(t, r.Tx().Rollback(ctx)) }()
			require.Error(t, r.Close())
		}},
		"begins a transaction in vain, which nobody rolls back": {use: func(t *testing.T, p *Pool) {
			b := &pgx.Batch{}
			b.BeginTx(pgx.TxOptions{})
			b.Queue("selec 1")
			r := p.SendBatch(ctx, b)
			require.Error(t, r.Close())
			require.ErrorIs(t, r.Tx().Rollback(ctx), pgx.ErrTxClosed)
		}},
		"leaves a transaction": {gone: 1, use: func(t *testing.T, p *Pool) {
			require.NoError(t, p.SendBatch(ctx, queue("begin")).Close())
		}},
		"its Conn is released before": {gone: 1, ignored: true, use: func(t *testing.T, p *Pool) {
			c, err := p.Acquire(ctx)
			require.NoError(t, err)
			r := c.SendBatch(ctx, queue("select 1", "select 2"))
			c.Release()
			_, err = r.Exec()
			require.ErrorIs(t, err, ErrReleased)
			_, err = r.Query()
			require.ErrorIs(t, err, ErrReleased)
			require.ErrorIs(t, r.QueryRow().Scan(), ErrReleased)
			require.ErrorIs(t, r.Close(), ErrReleased)
			require.ErrorIs(t, r.Close(), ErrReleased)
			require.ErrorIs(t, c.SendBatch(ctx, queue("select 1")).Close(), ErrReleased)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g := &spy{}
			p := open(t, Config{DSN: dsn, Max: 1, Guard: g, RequireServer: true})
			c.use(t, p)
			s := p.Stats()
			require.Zero(t, s.Used)
			require.EqualValues(t, c.gone, s.DestroyedBroken)
			require.Zero(t, g.held())
			_, outcomes := g.take()
			want := core.Success
			switch {
			case c.ignored:
				want = core.Ignored
			case c.failure:
				want = core.Failure
			}
			require.Equal(t, []core.Outcome{want}, outcomes)
			require.NoError(t, p.Ping(ctx))
		})
	}
}

func TestRefusedBatchSaysSo(t *testing.T) {
	no := &core.Rejection{Guard: "breaker", Reason: core.CircuitOpen}
	p := open(t, Config{Max: 1, Guard: &spy{refuse: no}})
	r := p.SendBatch(t.Context(), queue("select 1"))
	_, err := r.Exec()
	require.ErrorIs(t, err, no)
	require.ErrorIs(t, r.Close(), no)
	_, err = p.CopyFrom(t.Context(), pgx.Identifier{"item"}, nil, pgx.CopyFromRows(nil))
	require.ErrorIs(t, err, no)
	require.ErrorIs(t, p.With(t.Context(), nil), no)
}
