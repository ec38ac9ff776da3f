package sqlpool

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// Callers that give up at any point, while they wait, run, read or commit, leave
// no connection behind that is in use, in a transaction or holds an answer meant
// for another.
func TestCancelAtEveryPoint(t *testing.T) {
	g := &spy{}
	p := open(t, Config{Max: 4, MaxDials: 4, Guard: g, RequireServer: true})
	_, err := p.Exec(t.Context(), "create table pair (id int)")
	require.NoError(t, err)
	const insert = "insert into pair values ($1)"
	// Each returns what the server answered, which must be id.
	uses := []func(ctx context.Context, id int) (int, error){
		func(ctx context.Context, id int) (got int, err error) {
			err = p.QueryRow(ctx, "select $1::int", id).Scan(&got)
			return got, err
		},
		func(ctx context.Context, id int) (got int, err error) {
			r, err := p.Query(ctx, "select $1::int from generate_series(1, 1000)", id)
			if err != nil {
				return 0, err
			}
			defer r.Close()
			if !r.Next() {
				return 0, r.Err()
			}
			return got, r.Scan(&got)
		},
		func(ctx context.Context, id int) (got int, err error) {
			err = pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
				for range 2 {
					if _, err := tx.Exec(ctx, insert, id); err != nil {
						return err
					}
				}
				return tx.QueryRow(ctx, "select id from pair where id = $1 limit 1", id).Scan(&got)
			})
			return got, err
		},
		func(ctx context.Context, id int) (got int, err error) {
			err = p.DB().QueryRowContext(ctx, "select $1::int from generate_series(1, 1000)", id).Scan(&got)
			return got, err
		},
		func(ctx context.Context, id int) (got int, err error) {
			tx, err := p.DB().BeginTx(ctx, nil)
			if err != nil {
				return 0, err
			}
			defer func() { _ = tx.Rollback() }()
			for range 2 {
				if _, err := tx.ExecContext(ctx, insert, id); err != nil {
					return 0, err
				}
			}
			return id, tx.Commit()
		},
		func(ctx context.Context, id int) (got int, err error) {
			st, err := p.DB().PrepareContext(ctx, "select $1::int")
			if err != nil {
				return 0, err
			}
			defer st.Close()
			err = st.QueryRowContext(ctx, id).Scan(&got)
			return got, err
		},
		func(ctx context.Context, id int) (got int, err error) {
			err = p.InTx(ctx, pgx.TxOptions{IsoLevel: pgx.Serializable}, func(ctx context.Context, tx pgx.Tx) error {
				for range 2 {
					if _, err := tx.Exec(ctx, insert, id); err != nil {
						return err
					}
				}
				return tx.QueryRow(ctx, "select id from pair where id = $1 limit 1", id).Scan(&got)
			})
			return got, err
		},
		func(ctx context.Context, id int) (got int, err error) {
			b := &pgx.Batch{}
			b.Queue(insert, id)
			b.Queue("select generate_series(1, 100)")
			b.Queue(insert, id)
			b.Queue("select $1::int", id).QueryRow(func(r pgx.Row) error { return r.Scan(&got) })
			err = p.SendBatch(ctx, b).Close()
			return got, err
		},
		func(ctx context.Context, id int) (got int, err error) {
			n, err := p.CopyFrom(ctx, pgx.Identifier{"pair"}, []string{"id"}, pgx.CopyFromRows([][]any{{id}, {id}}))
			return id - 2 + int(n), err
		},
		func(ctx context.Context, id int) (got int, err error) {
			c, err := p.Acquire(ctx)
			if err != nil {
				return 0, err
			}
			defer c.Release()
			b := &pgx.Batch{}
			b.Queue("select generate_series(1, 100)")
			b.Queue("select $1::int", id)
			r := c.Conn().SendBatch(ctx, b) // never closed
			if _, err := r.Exec(); err != nil {
				return 0, err
			}
			err = r.QueryRow().Scan(&got)
			return got, err
		},
	}
	var wg sync.WaitGroup
	for worker := range 12 {
		wg.Go(func() {
			for i := range 60 {
				id := worker*1000 + i
				ctx, cancel := context.WithCancel(t.Context())
				stop := func() bool { return false }
				if rand.IntN(4) == 0 {
					after := time.Duration(rand.IntN(4000)) * time.Microsecond
					stop = time.AfterFunc(after, cancel).Stop // real time: a real server
				}
				got, err := uses[rand.IntN(len(uses))](ctx, id)
				if err == nil && got != id {
					t.Errorf("asked for %d, was answered %d", id, got)
				}
				stop()
				cancel()
			}
		})
	}
	wg.Wait()
	eventually(t, func() bool { return p.Stats().Used == 0 && g.held() == 0 })
	asked, outcomes := g.take()
	require.Equal(t, asked, len(outcomes)+g.canceled)
	var halves int
	require.NoError(t, p.QueryRow(t.Context(),
		"select count(*) from (select id from pair group by id having count(*) <> 2) x").Scan(&halves))
	require.Zero(t, halves, "a transaction was done by half")
	s := p.Stats()
	t.Logf("%d loans, %d of them ended by a cancel", s.Acquired, s.DestroyedBroken)
}
