package sqlpool

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// BenchmarkDB compares *sql.DB on a Pool with *sql.DB on pgx's driver, each with
// 10 connections, and with what it would cost if database/sql kept no proxies.
func BenchmarkDB(b *testing.B) {
	dsn := pgtest.DSN(b)
	const conns = 10
	cfg, err := pgx.ParseConfig(dsn)
	require.NoError(b, err)
	alone := stdlib.OpenDB(*cfg)
	defer alone.Close()
	alone.SetMaxOpenConns(conns)
	alone.SetMaxIdleConns(conns)
	ours := open(b, Config{DSN: dsn, MinIdle: conns, Max: conns, MaxWaiters: Off})
	warm(b, ours, conns)
	anew := open(b, Config{DSN: dsn, MinIdle: conns, Max: conns, MaxWaiters: Off})
	anew.DB().SetMaxIdleConns(-1)
	warm(b, anew, conns)

	ctx := context.Background()
	for _, op := range []struct {
		name string
		run  func(db *sql.DB, st *sql.Stmt, i int) error
	}{
		{"exec", func(db *sql.DB, _ *sql.Stmt, i int) error {
			_, err := db.ExecContext(ctx, "select $1::int", i)
			return err
		}},
		{"row", func(db *sql.DB, _ *sql.Stmt, i int) (err error) {
			return db.QueryRowContext(ctx, "select $1::int", i).Scan(&i)
		}},
		{"stmt", func(_ *sql.DB, st *sql.Stmt, i int) (err error) {
			return st.QueryRowContext(ctx, i).Scan(&i)
		}},
		{"stmtexec", func(_ *sql.DB, st *sql.Stmt, i int) (err error) {
			_, err = st.ExecContext(ctx, i)
			return err
		}},
		{"tx", func(db *sql.DB, _ *sql.Stmt, i int) (err error) {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "select $1::int", i); err != nil {
				return err
			}
			return tx.Commit()
		}},
	} {
		for _, callers := range []int{1, 10, 100, 1000} {
			for _, c := range []struct {
				name string
				db   *sql.DB
			}{{"pgx", alone}, {"pool", ours.DB()}, {"pool without proxies", anew.DB()}} {
				b.Run(fmt.Sprintf("%s/%d/%s", op.name, callers, c.name), func(b *testing.B) {
					st, err := c.db.PrepareContext(ctx, "select $1::int + 1")
					require.NoError(b, err)
					defer st.Close()
					spread(callers, callers*2, func(i int) { _ = op.run(c.db, st, i) }) // warm
					b.ReportAllocs()
					b.ResetTimer()
					spread(callers, b.N, func(i int) {
						if err := op.run(c.db, st, i); err != nil {
							b.Error(err)
						}
					})
				})
			}
		}
	}
}

// spread runs n calls, by callers goroutines.
func spread(callers, n int, call func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				call(int(i))
			}
		})
	}
	wg.Wait()
}
