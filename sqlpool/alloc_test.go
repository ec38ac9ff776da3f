package sqlpool

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// allocations is the mean of fn, which a goroutine of the pool's or of pgx's may
// disturb: so the least of a few.
func allocations(fn func()) float64 {
	least := testing.AllocsPerRun(100, fn)
	for range 4 {
		least = min(least, testing.AllocsPerRun(100, fn))
	}
	return least
}

// What the pool adds to pgx alone: nothing to Exec, and the one thing that holds
// the session to what the caller is given.
func TestAllocationsOverPgxAlone(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ctx, dsn := t.Context(), pgtest.DSN(t)
	c, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer c.Close(ctx)
	plain := open(t, Config{DSN: dsn, Max: 1, MinIdle: 1, RequireServer: true})
	guarded := open(t, Config{DSN: dsn, Max: 1, MinIdle: 1, RequireServer: true, Guard: admits{}})
	type db interface {
		DBTX
		Begin(context.Context) (pgx.Tx, error)
		SendBatch(context.Context, *pgx.Batch) pgx.BatchResults
	}
	var n int
	for name, test := range map[string]struct {
		use  func(db)
		more float64
	}{
		"exec":          {func(d db) { _, _ = d.Exec(ctx, "select 1") }, 0},
		"exec prepared": {func(d db) { _, _ = d.Exec(ctx, "select $1::int", 7) }, 0},
		"row":           {func(d db) { _ = d.QueryRow(ctx, "select $1::int", 7).Scan(&n) }, 1},
		"rows": {func(d db) {
			r, _ := d.Query(ctx, "select generate_series(1, $1::int)", 10)
			for r.Next() {
				_ = r.Scan(&n)
			}
		}, 1},
		"transaction": {func(d db) {
			tx, _ := d.Begin(ctx)
			_, _ = tx.Exec(ctx, "select 1")
			_ = tx.Commit(ctx)
		}, 1},
		"batch": {func(d db) {
			b := &pgx.Batch{}
			b.Queue("select $1::int", 7)
			_ = d.SendBatch(ctx, b).Close()
		}, 1},
	} {
		alone := allocations(func() { test.use(c) })
		for which, p := range map[string]*Pool{"plain": plain, "guarded": guarded} {
			got := allocations(func() { test.use(p) })
			t.Logf("%s, %s: pgx alone %v, pool %v", name, which, alone, got)
			require.LessOrEqual(t, got, alone+test.more, "%s, %s", name, which)
		}
	}
}
