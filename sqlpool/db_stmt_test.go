package sqlpool

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// countTrips makes cfg count what is sent at once, which is followed by a wait
// for the answer.
func countTrips(cfg *pgx.ConnConfig) *atomic.Int64 {
	trips := &atomic.Int64{}
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return tripConn{c, trips}, nil
	}
	return trips
}

type tripConn struct {
	net.Conn
	trips *atomic.Int64
}

func (c tripConn) NetConn() net.Conn { return c.Conn }

func (c tripConn) Write(b []byte) (int, error) {
	c.trips.Add(1)
	return c.Conn.Write(b)
}

// openCounted is a pool that counts round trips, and how many those of a use are.
func openCounted(t *testing.T, c Config, change func(*pgx.ConnConfig)) (p *Pool, trips func(use func() error) int) {
	cfg, err := pgx.ParseConfig(pgtest.DSN(t))
	require.NoError(t, err)
	if change != nil {
		change(cfg)
	}
	n := countTrips(cfg)
	c.ConnConfig = cfg
	p = open(t, c)
	warm(t, p, c.MinIdle)
	return p, func(use func() error) int {
		t.Helper()
		before := n.Load()
		require.NoError(t, use())
		return int(n.Load() - before)
	}
}

func TestStatementCostsOneRoundTripAfterItsFirstUseOnAConnection(t *testing.T) {
	ctx := t.Context()
	p, trips := openCounted(t, Config{MinIdle: 2, Max: 2}, nil)
	db := p.DB()
	var st *sql.Stmt
	prepare := func() (err error) {
		st, err = db.PrepareContext(ctx, "select $1::int")
		return err
	}
	row := func() error { return st.QueryRowContext(ctx, 1).Scan(new(int)) }
	exec := func() error { _, err := st.ExecContext(ctx, 1); return err }
	require.Equal(t, 1, trips(prepare))
	for range 3 {
		require.Equal(t, 1, trips(row))
		require.Equal(t, 1, trips(exec))
	}
	for range 3 { // an end is not one on the server
		require.Equal(t, 0, trips(func() error { return st.Close() }))
		require.Equal(t, 0, trips(prepare))
		require.Equal(t, 1, trips(row))
	}

	// While the first connection is taken, it is the other, where it is new.
	c, err := p.Acquire(ctx)
	require.NoError(t, err)
	require.Equal(t, 2, trips(row))
	require.Equal(t, 1, trips(row))
	c.Release()
	require.Equal(t, 1, trips(row))

	// New proxies find what the connections know.
	atOnce(t, db, 2)
	db.SetMaxIdleConns(-1)
	require.Equal(t, 1, trips(row))
	require.Equal(t, 1, trips(exec))

	// In a transaction, and on a connection of one's own.
	require.Equal(t, 4, trips(func() error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if err := tx.StmtContext(ctx, st).QueryRowContext(ctx, 1).Scan(new(int)); err != nil {
			return err
		}
		own, err := tx.PrepareContext(ctx, "select $1::int")
		if err != nil {
			return err
		}
		defer own.Close()
		if err := own.QueryRowContext(ctx, 1).Scan(new(int)); err != nil {
			return err
		}
		return tx.Commit()
	}))
}

// prepared are the statements that the server keeps for a connection, except for
// those that pgx keeps by itself.
func prepared(t *testing.T, q interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
},
) (n int) {
	t.Helper()
	require.NoError(t, q.QueryRowContext(t.Context(),
		"select count(*) from pg_prepared_statements where name not like 'stmtcache%'").Scan(&n))
	return n
}

func TestStatementsOfAConnectionAreBounded(t *testing.T) {
	ctx := t.Context()
	p, trips := openCounted(t, Config{MinIdle: 1, Max: 1}, func(cfg *pgx.ConnConfig) { cfg.StatementCacheCapacity = 3 })
	db := p.DB()
	var all []*sql.Stmt
	for i := range 10 {
		st, err := db.PrepareContext(ctx, fmt.Sprintf("select %d + $1::int", i))
		require.NoError(t, err)
		all = append(all, st)
		require.Equal(t, min(i+1, 3), prepared(t, db))
	}
	for range 2 {
		for i, st := range all { // each was forgotten, and is found again
			var got int
			require.NoError(t, st.QueryRowContext(ctx, 1).Scan(&got))
			require.Equal(t, i+1, got)
			require.Equal(t, 3, prepared(t, db))
		}
	}
	use := func(i int) int {
		return trips(func() error { return all[i].QueryRowContext(ctx, 1).Scan(new(int)) })
	}
	require.Equal(t, []int{1, 1, 1}, []int{use(9), use(8), use(7)})
	require.Equal(t, 1, use(9))
	require.Equal(t, 3, use(0), "deallocate, prepare, run")
	require.Equal(t, 1, use(9), "used later than the one that went")
	require.Equal(t, 1, use(7))
	require.Equal(t, 3, use(8))
	for _, st := range all {
		require.NoError(t, st.Close())
	}
	require.Equal(t, 3, prepared(t, db))
}

func TestStatementsInEveryMode(t *testing.T) {
	ctx := t.Context()
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement,
		pgx.QueryExecModeCacheDescribe,
		pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec,
		pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			p, trips := openCounted(t, Config{MinIdle: 1, Max: 1}, func(cfg *pgx.ConnConfig) { cfg.DefaultQueryExecMode = mode })
			db := p.DB()
			_, err := db.ExecContext(ctx, "create table item (id int, name text)")
			require.NoError(t, err)

			insert, err := db.PrepareContext(ctx, "insert into item values ($1, $2)")
			require.NoError(t, err)
			for i := range 3 {
				r, err := insert.ExecContext(ctx, i, "x")
				require.NoError(t, err)
				n, err := r.RowsAffected()
				require.NoError(t, err)
				require.EqualValues(t, 1, n)
			}
			_, err = insert.ExecContext(ctx, 1)
			require.Error(t, err, "too few arguments")
			count, err := db.PrepareContext(ctx, "select count(*) from item")
			require.NoError(t, err)
			var n int
			require.NoError(t, count.QueryRowContext(ctx).Scan(&n))
			require.Equal(t, 3, n)
			_, err = count.ExecContext(ctx)
			require.NoError(t, err)
			each := 1
			if mode == pgx.QueryExecModeDescribeExec {
				each = 2
			}
			require.Equal(t, each, trips(func() error { _, err := insert.ExecContext(ctx, 1, "x"); return err }))
			require.Equal(t, each, trips(func() error { return count.QueryRowContext(ctx).Scan(&n) }))
			require.Equal(t, 1, trips(func() error { _, err := count.ExecContext(ctx); return err }))

			empty, err := db.PrepareContext(ctx, "")
			require.NoError(t, err)
			_, err = empty.ExecContext(ctx)
			require.NoError(t, err)

			// A wrong statement shows when it is prepared, where anything is sent then.
			wrong, err := db.PrepareContext(ctx, "selec 1")
			if mode == pgx.QueryExecModeSimpleProtocol {
				require.NoError(t, err)
				_, err = wrong.ExecContext(ctx)
			}
			require.ErrorContains(t, err, "42601")

			kept := 0
			if mode == pgx.QueryExecModeCacheStatement {
				kept = 2
			}
			require.Equal(t, kept, prepared(t, db))
			require.Zero(t, p.Stats().DestroyedBroken)
		})
	}
}

// pgx's driver fails with a statement of changed types for as long as the
// connection lives.
func TestStatementsOutliveAChangeOfTheSchema(t *testing.T) {
	ctx := t.Context()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe} {
		t.Run(mode.String(), func(t *testing.T) {
			p, _ := openCounted(t, Config{MinIdle: 1, Max: 1}, func(cfg *pgx.ConnConfig) { cfg.DefaultQueryExecMode = mode })
			db := p.DB()
			must := func(q string) {
				t.Helper()
				_, err := db.ExecContext(ctx, q)
				require.NoError(t, err)
			}
			must("create table item (id int); insert into item values (1)")
			st, err := db.PrepareContext(ctx, "select * from item where id::text = $1")
			require.NoError(t, err)
			columns := func(r *sql.Rows, err error) int {
				t.Helper()
				require.NoError(t, err)
				defer r.Close()
				require.True(t, r.Next())
				c, err := r.Columns()
				require.NoError(t, err)
				return len(c)
			}
			for i := range 3 {
				require.Equal(t, 1+i, columns(st.QueryContext(ctx, "1")))
				require.Equal(t, 1+i, columns(db.QueryContext(ctx, "select * from item where id = $1", 1)))
				require.Equal(t, 1+i, columns(db.QueryContext(ctx, "select * from item")))
				must(fmt.Sprintf("alter table item add column c%d int", i))
			}
			_, err = st.ExecContext(ctx, "1")
			require.NoError(t, err)

			// In a transaction the first is an error, and no more than that one.
			if mode == pgx.QueryExecModeCacheStatement {
				must("alter table item add column d int")
				tx, err := db.BeginTx(ctx, nil)
				require.NoError(t, err)
				_, err = tx.StmtContext(ctx, st).ExecContext(ctx, "1")
				require.ErrorContains(t, err, "0A000")
				require.NoError(t, tx.Rollback())
				require.Equal(t, 5, columns(st.QueryContext(ctx, "1")))
			}

			// Another type of an argument: its old encoding is wrong once at most.
			insert, err := db.PrepareContext(ctx, "insert into item (id) values ($1)")
			require.NoError(t, err)
			_, err = insert.ExecContext(ctx, 2)
			require.NoError(t, err)
			must("alter table item alter column id type text")
			_, _ = insert.ExecContext(ctx, "three")
			_, err = insert.ExecContext(ctx, "three")
			require.NoError(t, err)

			// Statements that are gone.
			for _, all := range []string{"deallocate all", "discard all"} {
				must(all)
				_, err = st.ExecContext(ctx, "1")
				require.NoError(t, err)
				var n int
				require.NoError(t, db.QueryRowContext(ctx, "select count(*) from item where id <> $1", "").Scan(&n))
			}
			require.Zero(t, p.Stats().DestroyedBroken)
		})
	}
}

// The statement of a sql.Stmt was found by its text by whoever ran the same, and
// failed for them on and on when the server had given up its plan.
func TestStatementOfDatabaseSQLFailsNobodyElseAfterAChangeOfTheSchema(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 1, MinIdle: 1})
	_, err := p.Exec(ctx, "create table item (id int); insert into item values (1)")
	require.NoError(t, err)
	const query = "select * from item where id > $1"
	st, err := p.DB().PrepareContext(ctx, query)
	require.NoError(t, err)
	columns := 1
	dest := func() []any { return make([]any, columns) }
	native := func(query string, arg any) func() error {
		return func() error { return p.QueryRow(ctx, query, arg).Scan(dest()...) }
	}
	exec := func() error { _, err := p.Exec(ctx, query, 0); return err }
	sqlRow := func(of interface {
		QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	},
	) error {
		var got [4]sql.NullInt64
		dest := []any{&got[0], &got[1], &got[2], &got[3]}
		return of.QueryRowContext(ctx, query, 0).Scan(dest[:columns]...)
	}
	prepared := func() error {
		rows, err := st.QueryContext(ctx, 0)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
		}
		return rows.Err()
	}
	for i, use := range []func() error{native(query, 0), native("select * from item where id > @id", pgx.NamedArgs{"id": 0}), exec} {
		require.NoError(t, prepared())
		require.NoError(t, use())
		_, err = p.Exec(ctx, fmt.Sprintf("alter table item add column c%d int", i))
		require.NoError(t, err)
		columns++
		require.ErrorContains(t, use(), "0A000", "what pgx has cached fails once")
		require.NoError(t, use())
		require.NoError(t, sqlRow(p.DB()))
		require.NoError(t, prepared())
	}
	require.Zero(t, p.Stats().DestroyedBroken)
}

// After pgx's DeallocateAll, the name of a statement would be a text to pgx.
func TestStatementOutlivesDeallocateAll(t *testing.T) {
	ctx := t.Context()
	deallocate := true
	p := open(t, Config{Max: 1, OnRelease: func(ctx context.Context, c *pgx.Conn) bool {
		return !deallocate || c.DeallocateAll(ctx) == nil
	}})
	st, err := p.DB().PrepareContext(ctx, "select $1::int")
	require.NoError(t, err)
	inTx := func(n int) error {
		tx, err := p.DB().BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		var got int
		if _, err := tx.StmtContext(ctx, st).ExecContext(ctx, n); err != nil {
			return err
		}
		return tx.StmtContext(ctx, st).QueryRowContext(ctx, n).Scan(&got)
	}
	require.NoError(t, inTx(1))
	require.NoError(t, inTx(2))

	deallocate = false
	c, err := p.DB().Conn(ctx)
	require.NoError(t, err)
	own, err := c.PrepareContext(ctx, "select $1::int")
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, c.Raw(func(dc any) error {
			return dc.(interface{ Conn() *pgx.Conn }).Conn().DeallocateAll(ctx)
		}))
		_, err = own.ExecContext(ctx, 1)
		require.NoError(t, err)
	}
	require.NoError(t, c.Close())
	require.NoError(t, inTx(3))

	for name, use := range map[string]func() error{
		"conn": func() error { return p.With(ctx, func(c *Conn) error { return c.Conn().DeallocateAll(ctx) }) },
		"tx": func() error {
			return p.InTx(ctx, pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error { return tx.Conn().DeallocateAll(ctx) })
		},
	} {
		require.NoError(t, use(), name)
		require.NoError(t, inTx(4), name)
	}
	require.Zero(t, p.Stats().DestroyedBroken)
}

// An error of data leaves the statement prepared.
func TestStatementStaysPreparedAfterAnAnswer(t *testing.T) {
	ctx := t.Context()
	p, trips := openCounted(t, Config{MinIdle: 1, Max: 1}, nil)
	db := p.DB()
	_, err := db.ExecContext(ctx, "create table item (id int primary key)")
	require.NoError(t, err)
	st, err := db.PrepareContext(ctx, "insert into item values ($1)")
	require.NoError(t, err)
	insert := func() error { _, err := st.ExecContext(ctx, 1); return err }
	require.NoError(t, insert())
	for range 3 {
		require.Equal(t, 1, trips(func() error {
			require.ErrorContains(t, insert(), "23505")
			return nil
		}))
	}
}

// The simple protocol takes several statements, of which some may have been
// committed when the last has no plan.
func TestStatementsWithoutAPlanAreNotRunTwice(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 1})
	db := p.DB()
	_, err := db.ExecContext(ctx, "create table hit (id int)")
	require.NoError(t, err)
	_, err = db.ExecContext(ctx, "insert into hit values (1); commit; execute gone")
	require.ErrorContains(t, err, "26000")
	_, err = db.ExecContext(ctx, "insert into hit values ($1); commit; execute gone", pgx.QueryExecModeSimpleProtocol, 1)
	require.ErrorContains(t, err, "26000")
	r, err := db.QueryContext(ctx, "insert into hit values ($1); commit; execute gone", pgx.QueryExecModeSimpleProtocol, 1)
	if err == nil {
		for r.Next() {
		}
		require.NoError(t, r.Close())
		err = r.Err()
	}
	require.ErrorContains(t, err, "26000")
	var hits int
	require.NoError(t, db.QueryRowContext(ctx, "select count(*) from hit").Scan(&hits))
	require.Equal(t, 3, hits)
}

// What a statement allocates beside pgx's driver with a pool of database/sql's.
func TestDatabaseSQLAllocatesNoMoreThanOverPgx(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ctx := context.Background()
	cfg, err := pgx.ParseConfig(pgtest.DSN(t))
	require.NoError(t, err)
	alone := stdlib.OpenDB(*cfg)
	defer alone.Close()
	p := open(t, Config{ConnConfig: cfg, MinIdle: 1, Max: 1, RequireServer: true})
	allocs := func(db *sql.DB) map[string]float64 {
		st, err := db.PrepareContext(ctx, "select $1::int + 1")
		require.NoError(t, err)
		defer st.Close()
		var fail error
		got := map[string]float64{}
		for name, use := range map[string]func() error{
			"exec":      func() error { _, err := db.ExecContext(ctx, "select $1::int", 1000); return err },
			"row":       func() error { var n int; return db.QueryRowContext(ctx, "select $1::int", 1000).Scan(&n) },
			"stmt exec": func() error { _, err := st.ExecContext(ctx, 1000); return err },
			"stmt row":  func() error { var n int; return st.QueryRowContext(ctx, 1000).Scan(&n) },
			"tx": func() error {
				tx, err := db.BeginTx(ctx, nil)
				if err != nil {
					return err
				}
				return tx.Commit()
			},
		} {
			got[name] = testing.AllocsPerRun(200, func() {
				if err := use(); err != nil {
					fail = err
				}
			})
		}
		require.NoError(t, fail)
		return got
	}
	theirs, ours := allocs(alone), allocs(p.DB())
	t.Log("pgx", theirs, "pool", ours)
	for name, more := range map[string]float64{
		"exec": 0, "stmt exec": 0,
		"row": 1, "stmt row": 1, "tx": 1, // to learn how rows and transactions end
	} {
		require.LessOrEqual(t, ours[name], theirs[name]+more, name)
	}
}
