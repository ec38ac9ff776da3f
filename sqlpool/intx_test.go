package sqlpool

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/retry"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// raise makes the server say what another transaction's being in the way does.
func raise(ctx context.Context, tx pgx.Tx, state string) error {
	_, err := tx.Exec(ctx, "do $$ begin raise exception 'in the way' using errcode = '"+state+"'; end $$")
	return err
}

var serializable = pgx.TxOptions{IsoLevel: pgx.Serializable}

// Two doctors on call who go home at once, each since the other is there: one of
// the two must see that the other has gone.
func TestInTxWriteSkew(t *testing.T) {
	ctx := t.Context()
	g := &spy{}
	p := open(t, Config{Max: 2, Guard: g, RequireServer: true})
	_, err := p.Exec(ctx, "create table doctor (name text primary key, on_call bool); insert into doctor values ('a', true), ('b', true)")
	require.NoError(t, err)
	g.take()
	var both, wg sync.WaitGroup
	both.Add(2)
	runs, there := map[string]int{}, map[string]int{}
	var mu sync.Mutex
	for _, name := range []string{"a", "b"} {
		wg.Go(func() {
			err := p.InTx(ctx, serializable, func(ctx context.Context, tx pgx.Tx) error {
				var n int
				if err := tx.QueryRow(ctx, "select count(*) from doctor where on_call").Scan(&n); err != nil {
					return err
				}
				mu.Lock()
				runs[name]++
				there[name] = n
				first := runs[name] == 1
				if core.Attempt(ctx) != runs[name] {
					t.Errorf("attempt %d says that it is %d", runs[name], core.Attempt(ctx))
				}
				mu.Unlock()
				if first {
					both.Done()
					both.Wait() // both have read what the other will write
				}
				if n < 2 {
					return nil
				}
				if _, err := tx.Exec(ctx, "update doctor set on_call = false where name = $1", name); err != nil {
					return fmt.Errorf("going home: %w", err)
				}
				return nil
			})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	wg.Wait()
	var left int
	require.NoError(t, p.QueryRow(ctx, "select count(*) from doctor where on_call").Scan(&left))
	require.Equal(t, 1, left)
	require.Equal(t, 3, runs["a"]+runs["b"], "one was run again, whole")
	require.Equal(t, 3, there["a"]+there["b"], "and saw that the other had gone")
	require.Zero(t, p.Stats().Used)
	asked, outcomes := g.take()
	require.Equal(t, 3+1, asked, "the guard is asked for each try")
	for _, o := range outcomes {
		require.Equal(t, core.Success, o, "the server is well")
	}
}

func TestInTxDeadlock(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 2, RequireServer: true})
	_, err := p.Exec(ctx, "create table item (id int primary key, n int); insert into item values (1, 0), (2, 0)")
	require.NoError(t, err)
	var both, wg sync.WaitGroup
	both.Add(2)
	var mu sync.Mutex
	runs := 0
	for i := range 2 {
		wg.Go(func() {
			err := p.InTx(ctx, pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error {
				mu.Lock()
				runs++
				mu.Unlock()
				if _, err := tx.Exec(ctx, "set local deadlock_timeout = '20ms'"); err != nil {
					return err
				}
				for j := range 2 {
					if _, err := tx.Exec(ctx, "update item set n = n + 1 where id = $1", 1+(i+j)%2); err != nil {
						return err
					}
					if j == 0 && core.Attempt(ctx) == 1 {
						both.Done()
						both.Wait() // each has what the other wants
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.GreaterOrEqual(t, runs, 3)
	var sum int
	require.NoError(t, p.QueryRow(ctx, "select sum(n) from item").Scan(&sum))
	require.Equal(t, 4, sum, "each was applied once")
	require.Zero(t, p.Stats().Used)
}

// What is tried again, and what is not. Each function is run once more if its
// first try is to be repeated, and then succeeds.
func TestInTxTriesAgainWhatWasRolledBackForAnother(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 1, RequireServer: true})
	_, err := p.Exec(ctx, "create table item (id int)")
	require.NoError(t, err)
	business := errors.New("out of stock")
	for name, c := range map[string]struct {
		first func(ctx context.Context, tx pgx.Tx) error
		again bool
		is    error
		rows  int
	}{
		"serialization failure": {again: true, rows: 1, first: func(ctx context.Context, tx pgx.Tx) error { return raise(ctx, tx, "40001") }},
		"deadlock": {again: true, rows: 1, first: func(ctx context.Context, tx pgx.Tx) error {
			return fmt.Errorf("a: %w", fmt.Errorf("b: %w", raise(ctx, tx, "40P01")))
		}},
		"joined": {again: true, rows: 1, first: func(ctx context.Context, tx pgx.Tx) error { return errors.Join(business, raise(ctx, tx, "40001")) }},
		"swallowed": {again: true, rows: 1, first: func(ctx context.Context, tx pgx.Tx) error {
			_ = raise(ctx, tx, "40001")
			return nil
		}},
		"swallowed, and found by the next statement": {again: true, rows: 1, first: func(ctx context.Context, tx pgx.Tx) error {
			_ = raise(ctx, tx, "40001")
			_, err := tx.Exec(ctx, "select 1")
			return err // 25P02
		}},
		"in a savepoint": {again: true, rows: 1, first: func(ctx context.Context, tx pgx.Tx) error {
			return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return raise(ctx, tx, "40001") })
		}},
		"rolled back by the function": {again: true, rows: 1, first: func(ctx context.Context, tx pgx.Tx) error {
			defer func() { _ = tx.Rollback(ctx) }()
			return raise(ctx, tx, "40001")
		}},
		"overcome in a savepoint": {rows: 1, first: func(ctx context.Context, tx pgx.Tx) error {
			_ = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return raise(ctx, tx, "40001") })
			_, err := tx.Exec(ctx, "insert into item values (1)")
			return err
		}},
		"overcome in a savepoint before another error, which the pool does not see": {is: pgx.ErrTxCommitRollback, first: func(ctx context.Context, tx pgx.Tx) error {
			_ = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return raise(ctx, tx, "40001") })
			_, _ = tx.Conn().Exec(ctx, "select 1/0")
			return nil
		}},
		"after what was overcome in a savepoint": {again: true, rows: 1, first: func(ctx context.Context, tx pgx.Tx) error {
			_ = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return raise(ctx, tx, "23505") })
			_ = raise(ctx, tx, "40001")
			return nil
		}},
		"another answer": {first: func(ctx context.Context, tx pgx.Tx) error { return raise(ctx, tx, "23505") }},
		"swallowed another answer": {is: pgx.ErrTxCommitRollback, first: func(ctx context.Context, tx pgx.Tx) error {
			_ = raise(ctx, tx, "23505")
			return nil
		}},
		"error of its own": {is: business, first: func(ctx context.Context, tx pgx.Tx) error { return business }},
		"hidden by one": {is: business, first: func(ctx context.Context, tx pgx.Tx) error {
			_ = raise(ctx, tx, "40001")
			return business
		}},
		"unknown commit of another transaction": {is: ErrCommitUnknown, first: func(ctx context.Context, tx pgx.Tx) error {
			return errors.Join(&commitUnknown{"x", context.Canceled}, raise(ctx, tx, "40001"))
		}},
		"committed by the function": {rows: 1, first: func(ctx context.Context, tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "insert into item values (1)"); err != nil {
				return err
			}
			return errors.Join(tx.Commit(ctx), &pgconn.PgError{Code: "40001"}) // of something else
		}},
		"committed by the function, and well": {rows: 1, first: func(ctx context.Context, tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "insert into item values (1)"); err != nil {
				return err
			}
			return tx.Commit(ctx)
		}},
		"rolled back by the function without a word": {is: pgx.ErrTxClosed, first: func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) }},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.Exec(ctx, "truncate item")
			require.NoError(t, err)
			runs := 0
			err = p.InTx(ctx, pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error {
				runs++
				if runs == 1 {
					return c.first(ctx, tx)
				}
				_, err := tx.Exec(ctx, "insert into item values (1)")
				return err
			})
			if c.again {
				require.NoError(t, err)
				require.Equal(t, 2, runs)
			} else {
				require.Equal(t, 1, runs)
			}
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
			}
			require.Equal(t, c.rows == 0 || name == "committed by the function", err != nil, "%v", err)
			require.Zero(t, p.Stats().Used)
			var rows int
			require.NoError(t, p.QueryRow(ctx, "select count(*) from item").Scan(&rows))
			require.Equal(t, c.rows, rows)
		})
	}
	require.Zero(t, p.Stats().DestroyedBroken)
}

// The error at COMMIT of a transaction that could not be serialized.
func TestInTxConflictAtCommit(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 1, RequireServer: true})
	_, err := p.Exec(ctx, `create table item (id int);
		create sequence tries;
		create function conflict() returns trigger language plpgsql as $$ begin
			if nextval('tries') = 1 then raise exception 'in the way' using errcode = '40001'; end if;
			return null;
		end $$;
		create constraint trigger t after insert on item deferrable initially deferred for each row execute function conflict()`)
	require.NoError(t, err)
	runs := 0
	require.NoError(t, p.InTx(ctx, pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error {
		runs++
		_, err := tx.Exec(ctx, "insert into item values (1)")
		return err
	}))
	require.Equal(t, 2, runs)
}

// What fn makes of its own COMMIT, whose answer was lost, was tried again if it
// was a conflict, and hid from the caller that the commit is unknown.
func TestInTxUnknownCommitOfTheFunctionIsToldAndNotTriedAgain(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 1})
	_, err := p.Exec(ctx, `create table item (id int);
		create function shutdown() returns trigger language plpgsql as $$ begin
			perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(60);
			return null;
		end $$;
		create constraint trigger t after insert on item deferrable initially deferred for each row execute function shutdown()`)
	require.NoError(t, err)
	hidden := errors.New("it did not work")
	elsewhere := &pgconn.PgError{Severity: "ERROR", Code: "40001"}
	for name, c := range map[string]struct {
		returns func(commit error) error
		is      error
	}{
		"told":                   {returns: func(commit error) error { return commit }},
		"swallowed":              {returns: func(error) error { return nil }},
		"hidden":                 {is: hidden, returns: func(error) error { return hidden }},
		"a conflict elsewhere":   {is: elsewhere, returns: func(error) error { return elsewhere }},
		"said to be rolled back": {is: pgx.ErrTxCommitRollback, returns: func(error) error { return pgx.ErrTxCommitRollback }},
	} {
		t.Run(name, func(t *testing.T) {
			runs := 0
			var commit error
			err := p.InTx(ctx, pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error {
				runs++
				if _, err := tx.Exec(ctx, "insert into item values (1)"); err != nil {
					return err
				}
				commit = tx.Commit(ctx)
				return c.returns(commit)
			})
			require.Equal(t, 1, runs)
			require.ErrorIs(t, commit, ErrCommitUnknown)
			require.ErrorIs(t, err, ErrCommitUnknown)
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
			} else {
				require.Equal(t, commit, err, "told once")
			}
			require.Zero(t, p.Stats().Used)
		})
	}
}

func TestInTxGivesUp(t *testing.T) {
	ctx, dsn := t.Context(), pgtest.DSN(t)
	always := func(runs *int) func(context.Context, pgx.Tx) error {
		return func(ctx context.Context, tx pgx.Tx) error {
			*runs++
			return raise(ctx, tx, "40001")
		}
	}
	quick := retry.Backoff{Base: -1}
	t.Run("after the last try", func(t *testing.T) {
		runs := 0
		p := open(t, Config{DSN: dsn, Max: 1, Name: "shop", TxBackoff: quick})
		err := p.InTx(ctx, serializable, always(&runs))
		require.Equal(t, 8, runs)
		require.True(t, isState(err, "40001"))
		require.ErrorContains(t, err, `"shop": the transaction failed 8 times: ERROR: in the way`)
		require.Zero(t, p.Stats().Used)
	})
	t.Run("after one", func(t *testing.T) {
		runs := 0
		p := open(t, Config{DSN: dsn, Max: 1, TxTries: Off})
		require.True(t, isState(p.InTx(ctx, serializable, always(&runs)), "40001"))
		require.Equal(t, 1, runs)
	})
	t.Run("at the end of the budget", func(t *testing.T) {
		runs := 0
		budget, err := retry.NewBudget(retry.BudgetConfig{Name: "shop", Max: 2, MinPerSecond: retry.Off, Percent: 1})
		require.NoError(t, err)
		p := open(t, Config{DSN: dsn, Max: 1, RetryBudget: budget, TxBackoff: quick})
		err = p.InTx(ctx, serializable, always(&runs))
		require.Equal(t, 3, runs)
		require.ErrorIs(t, err, retry.ErrBudget)
		require.True(t, isState(err, "40001"))
		rejection, ok := errors.AsType[*core.Rejection](err)
		require.True(t, ok)
		require.Equal(t, "shop", rejection.Guard)
		// To a guard further out, it is a call that was made.
		g := &spy{}
		permit, _ := g.Acquire(ctx, core.Call{})
		permit.DoneErr(ctx, err)
		require.Zero(t, g.canceled)
		require.Zero(t, p.Stats().Used)
		report := p.Inspect()
		require.Equal(t, "shop", report.Children[0].Name)
		require.Contains(t, report.Settings, core.Setting{Name: "TxTries", Value: 8})
	})
	t.Run("at the end of a budget that conflicts in savepoints do not fund", func(t *testing.T) {
		runs := 0
		budget, err := retry.NewBudget(retry.BudgetConfig{Name: "shop", Max: 2, MinPerSecond: retry.Off, Percent: 100})
		require.NoError(t, err)
		p := open(t, Config{DSN: dsn, Max: 1, RetryBudget: budget, TxBackoff: quick})
		err = p.InTx(ctx, serializable, func(ctx context.Context, tx pgx.Tx) error {
			return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return always(&runs)(ctx, tx) })
		})
		require.ErrorIs(t, err, retry.ErrBudget)
		require.Equal(t, 3, runs)
	})
	t.Run("when the context ends in the pause, without a connection", func(t *testing.T) {
		runs := 0
		p := open(t, Config{DSN: dsn, Max: 1, RequireServer: true, TxBackoff: retry.Backoff{Base: time.Hour, Cap: time.Hour}})
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- p.InTx(ctx, serializable, always(&runs)) }()
		eventually(t, func() bool { s := p.Stats(); return s.Acquired >= 2 && s.Used == 0 })
		require.NoError(t, p.Ping(t.Context()), "the one connection is free")
		cancel()
		err := <-done
		require.ErrorIs(t, err, context.Canceled)
		require.True(t, isState(err, "40001"))
		require.Equal(t, 1, runs)
	})
	t.Run("when the guard refuses another try", func(t *testing.T) {
		g := &spy{}
		p := open(t, Config{DSN: dsn, Max: 1, Guard: g, TxBackoff: quick})
		no := &core.Rejection{Guard: "breaker", Reason: core.CircuitOpen}
		err := p.InTx(ctx, serializable, func(ctx context.Context, tx pgx.Tx) error {
			g.mu.Lock()
			g.refuse = no
			g.mu.Unlock()
			return raise(ctx, tx, "40001")
		})
		require.ErrorIs(t, err, no)
		require.True(t, isState(err, "40001"))
		require.ErrorIs(t, p.InTx(ctx, serializable, nil), no)
		require.Zero(t, g.held())
	})
}

// Every way out of the function ends the transaction, once.
func TestInTxEveryWayOut(t *testing.T) {
	dsn := pgtest.DSN(t)
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		fn     func(ctx context.Context, cancel context.CancelFunc, tx pgx.Tx) error
		panics bool
		exits  bool
		gone   int // connections lost
	}{
		"error": {fn: func(context.Context, context.CancelFunc, pgx.Tx) error { return boom }},
		"error of a cancelled caller": {fn: func(_ context.Context, cancel context.CancelFunc, _ pgx.Tx) error {
			cancel()
			return boom
		}},
		"panic": {panics: true, fn: func(context.Context, context.CancelFunc, pgx.Tx) error { panic(boom) }},
		"panic of a cancelled caller": {panics: true, fn: func(_ context.Context, cancel context.CancelFunc, _ pgx.Tx) error {
			cancel()
			panic(boom)
		}},
		"exit": {exits: true, fn: func(context.Context, context.CancelFunc, pgx.Tx) error {
			runtime.Goexit()
			return nil
		}},
		"rows left open": {gone: 1, fn: func(ctx context.Context, _ context.CancelFunc, tx pgx.Tx) error {
			_, err := tx.Query(ctx, "select generate_series(1, 100000)")
			return err
		}},
		"cancelled in a statement": {gone: 1, fn: func(ctx context.Context, cancel context.CancelFunc, tx pgx.Tx) error {
			time.AfterFunc(20*time.Millisecond, cancel) // real time: a real server
			_, err := tx.Exec(ctx, "select pg_sleep(60)")
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			g := &spy{}
			p := open(t, Config{DSN: dsn, Max: 1, Guard: g, RequireServer: true})
			_, err := p.Exec(ctx, "drop table if exists item; create table item (id int)")
			require.NoError(t, err)
			var panicked any
			returned := false
			var wg sync.WaitGroup
			wg.Go(func() {
				defer func() { panicked = recover() }()
				err = p.InTx(ctx, pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error {
					if _, err := tx.Exec(ctx, "insert into item values (1)"); err != nil {
						return err
					}
					return c.fn(ctx, cancel, tx)
				})
				returned = true
			})
			wg.Wait()
			switch {
			case c.panics:
				require.Equal(t, boom, panicked)
			case c.exits:
				require.False(t, returned)
				require.Nil(t, panicked)
			default:
				require.Error(t, err)
			}
			s := p.Stats()
			require.Zero(t, s.Used)
			require.EqualValues(t, c.gone, s.DestroyedBroken)
			require.Zero(t, g.held())
			var rows int
			require.NoError(t, p.QueryRow(t.Context(), "select count(*) from item").Scan(&rows))
			require.Zero(t, rows)
		})
	}
}

func TestPauseEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		require.NoError(t, pause(t.Context(), time.Second))
		require.Equal(t, time.Second, time.Since(start))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, pause(ctx, time.Hour), context.DeadlineExceeded)
		require.Equal(t, time.Second+time.Minute, time.Since(start))
		require.ErrorIs(t, pause(ctx, 0), context.DeadlineExceeded)
	})
}

// The defaults: at most eight tries, with pauses of up to 5 ms, doubled up to 250.
func TestTxRetryDefaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := (&Config{}).txRetry("shop")
		require.NoError(t, err)
		bound := []time.Duration{5, 10, 20, 40, 80, 160, 250}
		for range 10 {
			var last time.Time
			n := 0
			require.Error(t, r.run(t.Context(), func(ctx context.Context) (bool, error) {
				n++
				require.Equal(t, n, core.Attempt(ctx))
				if n > 1 {
					require.LessOrEqual(t, time.Since(last), bound[n-2]*time.Millisecond)
				}
				last = time.Now()
				return true, errors.New("in the way")
			}))
			require.Equal(t, 8, n)
		}
	})
	_, err := (&Config{DSN: "postgres://localhost", TxTries: -2, StatementTimeout: -2}).parse()
	require.ErrorIs(t, err, core.ErrConfig)
	require.ErrorContains(t, err, "TxTries")
	require.ErrorContains(t, err, "StatementTimeout")
}
