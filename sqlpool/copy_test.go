package sqlpool

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/retry"
	"github.com/surgewall/surgewall/internal/pgtest"
)

// copySource is a source of which each method may misbehave.
type copySource struct {
	n                 int
	next, values, err func() error
}

func (s *copySource) Next() bool {
	s.n++
	return s.n <= 3 && (s.next == nil || s.next() == nil)
}

func (s *copySource) Values() ([]any, error) {
	if s.values != nil {
		return nil, s.values()
	}
	return []any{s.n}, nil
}

func (s *copySource) Err() error {
	if s.err != nil {
		return s.err()
	}
	return nil
}

// The source is read on a goroutine of pgx's: a panic there ended the program,
// and an exit left the caller waiting for ever.
func TestCopyFromEveryWayOut(t *testing.T) {
	ctx, dsn := t.Context(), pgtest.DSN(t)
	boom := errors.New("boom")
	fail := func() error { return boom }
	scream := func() error { panic(boom) }
	exit := func() error { runtime.Goexit(); return nil }
	for name, c := range map[string]struct {
		src          *copySource
		fails, exits bool
		panics       bool
		rows, gone   int
		columns      []string
	}{
		"well":           {src: &copySource{}, rows: 3},
		"no such column": {src: &copySource{}, fails: true, columns: []string{"nonsense"}},
		"values fail":    {src: &copySource{values: fail}, fails: true},
		"err fails":      {src: &copySource{err: fail}, fails: true},
		"next panics":    {src: &copySource{next: scream}, panics: true},
		"values panic":   {src: &copySource{values: scream}, panics: true},
		"err panics":     {src: &copySource{err: scream}, panics: true},
		"next exits":     {src: &copySource{next: exit}, exits: true, gone: 1},
		"values exit":    {src: &copySource{values: exit}, exits: true, gone: 1},
		"err exits":      {src: &copySource{err: exit}, exits: true, gone: 1},
	} {
		t.Run(name, func(t *testing.T) {
			g := &spy{}
			p := open(t, Config{DSN: dsn, Max: 1, Guard: g, RequireServer: true})
			_, err := p.Exec(ctx, "drop table if exists item; create table item (id int)")
			require.NoError(t, err)
			columns := c.columns
			if columns == nil {
				columns = []string{"id"}
			}
			g.take()
			var n int64
			var panicked any
			returned := false
			var wg sync.WaitGroup
			wg.Go(func() {
				defer func() { panicked = recover() }()
				n, err = p.CopyFrom(ctx, pgx.Identifier{"item"}, columns, c.src)
				returned = true
			})
			wg.Wait()
			require.Equal(t, c.panics || c.exits, !returned)
			require.Equal(t, c.panics, panicked != nil)
			if returned {
				require.Equal(t, c.fails, err != nil, "%v", err)
			}
			if c.panics {
				require.Equal(t, boom, panicked)
			}
			require.EqualValues(t, c.rows, n)
			s := p.Stats()
			require.Zero(t, s.Used)
			// An exit before pgx has sent COPY leaves the connection as it was.
			require.LessOrEqual(t, s.DestroyedBroken, uint64(c.gone))
			require.Zero(t, g.held())
			_, outcomes := g.take()
			require.NotContains(t, outcomes, core.Failure, "it was not the server")
			var rows int
			require.NoError(t, p.QueryRow(ctx, "select count(*) from item").Scan(&rows))
			require.Equal(t, c.rows, rows)
		})
	}
}

// A COPY that the server ended has the code of one whose source failed, and was
// a success to the guard and the retry budget.
func TestCopyFromThatTheServerCancelsIsAFailure(t *testing.T) {
	ctx, dsn := t.Context(), pgtest.DSN(t)
	for name, trouble := range map[string]string{
		"statement_timeout": "set statement_timeout = '50ms'; create function pg_temp.f() returns trigger language plpgsql as $$ begin perform pg_sleep(60); return null; end $$",
		"pg_cancel_backend": "create function pg_temp.f() returns trigger language plpgsql as $$ begin perform pg_cancel_backend(pg_backend_pid()); perform pg_sleep(60); return null; end $$",
	} {
		t.Run(name, func(t *testing.T) {
			g := &spy{}
			budget, err := retry.NewBudget(retry.BudgetConfig{Name: "shop", MinPerSecond: retry.Off, Percent: 100})
			require.NoError(t, err)
			p := open(t, Config{DSN: dsn, Max: 1, Guard: g, RetryBudget: budget})
			c, err := p.Acquire(ctx)
			require.NoError(t, err)
			defer c.Release()
			_, err = c.Exec(ctx, trouble+`; create temporary table item (id int);
				create trigger t after insert on item for each statement execute function pg_temp.f()`)
			require.NoError(t, err)
			g.take()
			_, err = c.CopyFrom(ctx, pgx.Identifier{"item"}, []string{"id"}, &copySource{})
			require.True(t, isState(err, "57014"), "%v", err)
			require.NoError(t, budget.Take())
			left := budget.Stats().Available
			c.Release()
			_, outcomes := g.take()
			require.Equal(t, []core.Outcome{core.Failure}, outcomes)
			require.Equal(t, left, budget.Stats().Available, "nothing has funded it")
		})
	}
}

// A Conn copies on its connection, and not once it is released.
func TestConnCopyFrom(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 1})
	c, err := p.Acquire(ctx)
	require.NoError(t, err)
	_, err = c.Exec(ctx, "create temporary table item (id int)")
	require.NoError(t, err)
	n, err := c.CopyFrom(ctx, pgx.Identifier{"item"}, []string{"id"}, pgx.CopyFromRows([][]any{{1}, {2}}))
	require.NoError(t, err)
	require.EqualValues(t, 2, n)
	c.Release()
	_, err = c.CopyFrom(ctx, pgx.Identifier{"item"}, []string{"id"}, pgx.CopyFromRows(nil))
	require.ErrorIs(t, err, ErrReleased)
}

// With gives the connection back however its function ends.
func TestWithEveryWayOut(t *testing.T) {
	ctx := t.Context()
	p := open(t, Config{Max: 1, RequireServer: true})
	boom := errors.New("boom")
	var kept *Conn
	require.ErrorIs(t, p.With(ctx, func(c *Conn) error { kept = c; return boom }), boom)
	require.ErrorIs(t, kept.Ping(ctx), ErrReleased)
	require.PanicsWithValue(t, boom, func() { _ = p.With(ctx, func(*Conn) error { panic(boom) }) })
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.With(ctx, func(*Conn) error { runtime.Goexit(); return nil }) })
	wg.Wait()
	require.Zero(t, p.Stats().Used)
	require.Zero(t, p.Stats().DestroyedBroken)
	require.NoError(t, p.With(ctx, func(c *Conn) error { c.Release(); return nil }))
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, p.With(cancelled, nil), context.Canceled)
}
