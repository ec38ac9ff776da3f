package sqlpool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// pooledSetting is what the report says.
func pooledSetting(p *Pool) any {
	for _, s := range p.Inspect().Settings {
		if s.Name == "Pooled" {
			return s.Value
		}
	}
	return nil
}

// countDials is a Config for dsn that counts what is dialled, cancel requests
// included.
func countDials(t *testing.T, dsn string) (Config, *atomic.Int64) {
	t.Helper()
	conn, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	dial, n := conn.DialFunc, &atomic.Int64{}
	conn.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		n.Add(1)
		return dial(ctx, network, addr)
	}
	return Config{ConnConfig: conn}, n
}

func TestPoolerIsDetected(t *testing.T) {
	b := pgbouncer(t, 0)
	for _, c := range []struct {
		dsn   string
		found string
		dials int64 // for three connections
	}{
		{b.direct, "no", 3},
		{b.dsn, "yes", 4},
		{b.dsn + "&pool_pooled=yes", "yes", 3},
		{b.dsn + "&pgbouncer=true", "yes", 3},
		{b.dsn + "&pool_pooled=no", "no", 3},
		{b.direct + "&pool_pooled=yes", "yes", 3},
	} {
		cfg, dials := countDials(t, c.dsn)
		cfg.MinIdle = Off
		p := open(t, cfg)
		for range 3 {
			l, err := p.Acquire(t.Context())
			require.NoError(t, err)
			defer l.Release()
			require.NoError(t, l.Ping(t.Context()))
		}
		require.Equal(t, c.found, pooledSetting(p), c.dsn)
		require.Equal(t, c.dials, dials.Load(), c.dsn)
	}
}

// A server that does not tell is taken for one.
func TestServerThatCannotBeAskedForAPooler(t *testing.T) {
	dsn := roleWithPassword(t, secret)
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	role := u.User.Username()
	u.User = url.UserPassword(role, secret)
	admin, err := url.Parse(pgtest.DSN(t))
	require.NoError(t, err)
	admin.Path = u.Path
	super := open(t, Config{DSN: admin.String(), Max: 1})
	_, err = super.Exec(t.Context(), "revoke execute on function pg_backend_pid() from public")
	require.NoError(t, err)
	p := open(t, Config{DSN: u.String(), Max: 1})
	_, err = p.Exec(t.Context(), "select pg_backend_pid()")
	require.ErrorContains(t, err, "permission denied")
	require.Equal(t, "no", pooledSetting(p))
}

// Ten callers with connections of their own share two of the server's, and get
// different ones for each transaction. All that the package offers works, with
// nothing declared.
func TestAllWorksThroughAPooler(t *testing.T) {
	for _, c := range []struct {
		maxPrepared int
		params      string
	}{
		{0, ""},
		{0, "&pgbouncer=true"},
		{0, "&pool_pooled=yes&description_cache_capacity=0"},
		{0, "&default_query_exec_mode=exec"},
		{0, "&default_query_exec_mode=simple_protocol"},
		{100, ""},
		{100, "&default_query_exec_mode=cache_statement"},
	} {
		t.Run(fmt.Sprint(c.maxPrepared, c.params), func(t *testing.T) {
			allWorks(t, pgbouncer(t, c.maxPrepared).dsn+c.params)
		})
	}
}

func allWorks(t *testing.T, dsn string) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p := open(t, Config{DSN: dsn, Max: 10, MaxDials: 5})
	_, err := p.Exec(ctx, "create table item (id bigint, name text)")
	require.NoError(t, err)
	require.Equal(t, "yes", pooledSetting(p))
	db := p.DB()
	shared, err := db.PrepareContext(ctx, "select $1::int + 1")
	require.NoError(t, err)
	defer shared.Close()
	expect := func(want int, scan func(...any) error) error {
		var got int
		if err := scan(&got); err != nil || got != want {
			return fmt.Errorf("got %d instead of %d: %w", got, want, err)
		}
		return nil
	}
	uses := map[string]func(id int) error{
		"Exec": func(id int) error {
			_, err := p.Exec(ctx, "insert into item values ($1, $2)", id, "exec")
			return err
		},
		"Query": func(id int) error {
			r, err := p.Query(ctx, "select $1::int + n from generate_series(1, 100) n", id)
			if err != nil {
				return err
			}
			got, err := pgx.CollectRows(r, pgx.RowTo[int])
			if err == nil && (len(got) != 100 || got[99] != id+100) {
				return fmt.Errorf("got %v", got)
			}
			return err
		},
		"QueryRow": func(id int) error { return expect(id, p.QueryRow(ctx, "select $1::int", id).Scan) },
		"Begin": func(id int) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
				if _, err := tx.Exec(ctx, "insert into item values ($1, $2)", id, "tx"); err != nil {
					return err
				}
				return expect(id, tx.QueryRow(ctx, "select id from item where id = $1 and name = 'tx' limit 1", id).Scan)
			})
		},
		"SendBatch": func(id int) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
				b := &pgx.Batch{}
				b.Queue("insert into item values ($1, $2)", id, "batch")
				b.Queue("select $1::int", id).QueryRow(func(r pgx.Row) error { return expect(id, r.Scan) })
				return tx.SendBatch(ctx, b).Close()
			})
		},
		"SendBatch outside": func(id int) error {
			b := &pgx.Batch{}
			b.Queue("insert into item values ($1, $2)", id, "batch")
			b.Queue("select $1::int", id).QueryRow(func(r pgx.Row) error { return expect(id, r.Scan) })
			return p.SendBatch(ctx, b).Close()
		},
		"CopyFrom": func(id int) error {
			n, err := p.CopyFrom(ctx, pgx.Identifier{"item"}, []string{"id", "name"}, pgx.CopyFromRows([][]any{{int64(id), "copy"}, {int64(id), "copy"}}))
			if err == nil && n != 2 {
				return fmt.Errorf("copied %d", n)
			}
			return err
		},
		"InTx": func(id int) error {
			return p.InTx(ctx, pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error {
				return expect(id, tx.QueryRow(ctx, "select $1::int", id).Scan)
			})
		},
		"DB exec": func(id int) error {
			_, err := db.ExecContext(ctx, "insert into item values ($1, $2)", id, "db")
			return err
		},
		"DB query": func(id int) error { return expect(id, db.QueryRowContext(ctx, "select $1::int", id).Scan) },
		"DB prepared": func(id int) error {
			for range 3 {
				if err := expect(id+1, shared.QueryRowContext(ctx, id).Scan); err != nil {
					return err
				}
			}
			return nil
		},
		"DB prepared anew": func(id int) error {
			st, err := db.PrepareContext(ctx, "insert into item values ($1, $2)")
			if err != nil {
				return err
			}
			defer st.Close()
			for range 2 {
				if _, err := st.ExecContext(ctx, id, "db prepared"); err != nil {
					return err
				}
			}
			return nil
		},
		"DB tx": func(id int) error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer func() { _ = tx.Rollback() }()
			st, err := tx.PrepareContext(ctx, "select $1::int + $2::int")
			if err != nil {
				return err
			}
			defer st.Close()
			if err := expect(id+5, st.QueryRowContext(ctx, id, 5).Scan); err != nil {
				return err
			}
			if err := expect(id+1, tx.StmtContext(ctx, shared).QueryRowContext(ctx, id).Scan); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "insert into item values ($1, $2)", id, "db tx"); err != nil {
				return err
			}
			return tx.Commit()
		},
	}
	const workers, rounds = 10, 15
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			for i := range rounds {
				for name, use := range uses { // in random order
					if err := use(worker*1000 + i); err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	const inserts = 1 + 1 + 1 + 1 + 2 + 1 + 2 + 1 // of each round
	require.NoError(t, expect(workers*rounds*inserts, p.QueryRow(ctx, "select count(*)::int from item").Scan))
	eventually(t, func() bool { return p.Stats().Used == 0 })
	s := p.Stats()
	require.Zero(t, s.DestroyedBroken)
	require.Greater(t, s.Total, 2, "more than the pooler has of the server")
	require.NoError(t, p.Ping(ctx))
}

// Without Pooled, names are sought where they are not: the error says what to do.
func TestHintOfAnUndeclaredPooler(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{DSN: pgbouncer(t, 0).dsn + "&pool_pooled=no", Max: 4, MinIdle: Off})
	const query = "select $1::int"
	var c [4]*Conn
	for i := range c {
		var err error
		c[i], err = p.Acquire(ctx)
		require.NoError(t, err)
		defer c[i].Release()
	}
	first, err := c[0].Begin(ctx) // has one of the server's two connections
	require.NoError(t, err)
	_, err = c[1].Exec(ctx, query, 1) // is prepared on the other
	require.NoError(t, err)
	_, err = c[2].Exec(ctx, query, 1)
	requireHint(t, err, "42P05")
	second, err := c[3].Begin(ctx)
	require.NoError(t, err)
	require.NoError(t, first.Rollback(ctx))
	_, err = c[1].Exec(ctx, query, 1)
	requireHint(t, err, "26000")
	require.NoError(t, second.Rollback(ctx))
}

func requireHint(t *testing.T, err error, state string) {
	t.Helper()
	pg, ok := errors.AsType[*pgconn.PgError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, state, pg.Code)
	require.ErrorContains(t, err, "see Pooled of sqlpool.Config")
	require.Contains(t, pg.Hint, "Pooled")
}

// A program's own statements are its own business.
func TestNoHintForNamesOfTheProgram(t *testing.T) {
	p := open(t, Config{Max: 1})
	for _, query := range []string{"execute nothing", "prepare twice as select 1; prepare twice as select 1"} {
		_, err := p.Exec(t.Context(), query)
		require.Error(t, err)
		require.NotContains(t, err.Error(), "Pooled")
	}
}

func TestNoCancelRequestIsSentToAPooler(t *testing.T) {
	b := pgbouncer(t, 0)
	for dsn, requests := range map[string]int64{
		b.dsn:                         0,
		b.direct + "&pool_pooled=yes": 0,
		b.direct:                      1, // what pgx does
	} {
		cfg, dials := countDials(t, dsn)
		cfg.MinIdle = Off
		p := open(t, cfg)
		c, err := p.Acquire(t.Context())
		require.NoError(t, err)
		pg := c.Conn().PgConn()
		before := dials.Load()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err = c.Exec(ctx, "select pg_sleep(2)")
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		<-pg.CleanupDone()
		require.Equal(t, requests, dials.Load()-before, dsn)
		c.Release()
		require.NoError(t, p.Ping(t.Context()))
	}
}

func TestWhatAPoolerDoesNotKeepIsRefused(t *testing.T) {
	ctx := t.Context()
	dsn := withQuery(pgtest.DSN(t))
	p := open(t, Config{DSN: dsn, Max: 1, Pooled: PooledYes})
	err := pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
		_, err := tx.Prepare(ctx, "ask", "select 1")
		return err
	})
	require.ErrorIs(t, err, ErrPooled)
	_, err = p.DB().PrepareContext(ctx, "selekt 1")
	require.ErrorContains(t, err, "syntax error")
	st, err := p.DB().PrepareContext(ctx, "select 1")
	require.NoError(t, err)
	defer st.Close()
	var got int
	require.NoError(t, st.QueryRowContext(ctx).Scan(&got))
	require.NoError(t, p.QueryRow(ctx, "select count(*) from pg_prepared_statements").Scan(&got))
	require.Zero(t, got)

	// Who says that the pooler keeps statements has them.
	p = open(t, Config{DSN: dsn + "&default_query_exec_mode=cache_statement", Max: 1, Pooled: PooledYes})
	require.NoError(t, pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
		_, err := tx.Prepare(ctx, "ask", "select 1")
		return err
	}))
	_, err = p.Exec(ctx, "select $1::int", 1)
	require.NoError(t, err)
	require.NoError(t, p.QueryRow(ctx, "select count(*) from pg_prepared_statements").Scan(&got))
	require.GreaterOrEqual(t, got, 2)
}

func TestModeOfStatements(t *testing.T) {
	for params, want := range map[string]pgx.QueryExecMode{
		"":                             pgx.QueryExecModeCacheDescribe,
		"description_cache_capacity=0": pgx.QueryExecModeExec,
		"default_query_exec_mode=cache_statement": pgx.QueryExecModeCacheStatement,
		"default_query_exec_mode=describe_exec":   pgx.QueryExecModeDescribeExec,
		"default_query_exec_mode=exec":            pgx.QueryExecModeExec,
		"default_query_exec_mode=simple_protocol": pgx.QueryExecModeSimpleProtocol,
	} {
		for _, dsn := range bothForms(params) {
			cfg, err := pgx.ParseConfig(dsn)
			require.NoError(t, err)
			forPooler(cfg)
			require.Equal(t, want, cfg.DefaultQueryExecMode, params)
		}
	}
	cfg, err := pgx.ParseConfig("")
	require.NoError(t, err)
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	forPooler(cfg)
	require.Equal(t, pgx.QueryExecModeExec, cfg.DefaultQueryExecMode)
	require.Equal(t, "detect yes no Pooled(3)", fmt.Sprint(PooledDetect, PooledYes, PooledNo, Pooled(3)))
	_, err = Open(t.Context(), Config{DSN: "host=x", Pooled: 3})
	require.EqualError(t, err, "sqlpool.Config.Pooled: 3: must be PooledDetect, PooledYes or PooledNo")
}

// A change of the types that a statement has makes one use of it fail at most.
func TestCachedDescriptionOutlivesAChangeOfTypes(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 1, Pooled: PooledYes, DSN: pgtest.DSN(t)})
	_, err := p.Exec(ctx, "create table thing (a int)")
	require.NoError(t, err)
	insert := func() error {
		_, err := p.Exec(ctx, "insert into thing (a) values ($1)", sql.NullString{String: "7", Valid: true})
		return err
	}
	read := func() (err error) {
		r, err := p.Query(ctx, "select * from thing")
		if err != nil {
			return err
		}
		_, err = pgx.CollectRows(r, pgx.RowToMap)
		return err
	}
	require.NoError(t, insert())
	require.NoError(t, read())
	for _, change := range []string{"alter table thing alter a type text", "alter table thing add b int default 1", "alter table thing drop b"} {
		_, err = p.Exec(ctx, change)
		require.NoError(t, err)
		_ = insert()
		require.NoError(t, insert(), change)
		_ = read()
		require.NoError(t, read(), change)
	}
}
