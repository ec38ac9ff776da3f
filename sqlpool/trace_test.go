package sqlpool

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// tracer is a tracer of everything that pgx's connections tell.
type tracer struct {
	mu   sync.Mutex
	told []string
}

type tracedKey struct{}

// start returns a context that end must be given: or a span would be lost.
func (r *tracer) start(ctx context.Context, what string) context.Context {
	return context.WithValue(ctx, tracedKey{}, what)
}

func (r *tracer) end(ctx context.Context, what string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Value(tracedKey{}) != what {
		what += " (another context)"
	}
	if err != nil {
		what += " (failed)"
	}
	r.told = append(r.told, what)
}

func (r *tracer) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	told := r.told
	r.told = nil
	return told
}

func (r *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return r.start(ctx, "query")
}

func (r *tracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryEndData) {
	r.end(ctx, "query", d.Err)
}

func (r *tracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return r.start(ctx, "batch")
}

func (r *tracer) TraceBatchQuery(ctx context.Context, _ *pgx.Conn, d pgx.TraceBatchQueryData) {
	r.end(ctx, "batch", d.Err)
}

func (r *tracer) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, d pgx.TraceBatchEndData) {
	r.end(ctx, "batch", d.Err)
}

func (r *tracer) TraceCopyFromStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceCopyFromStartData) context.Context {
	return r.start(ctx, "copy")
}

func (r *tracer) TraceCopyFromEnd(ctx context.Context, _ *pgx.Conn, d pgx.TraceCopyFromEndData) {
	r.end(ctx, "copy", d.Err)
}

func (r *tracer) TracePrepareStart(ctx context.Context, _ *pgx.Conn, _ pgx.TracePrepareStartData) context.Context {
	return r.start(ctx, "prepare")
}

func (r *tracer) TracePrepareEnd(ctx context.Context, _ *pgx.Conn, d pgx.TracePrepareEndData) {
	r.end(ctx, "prepare", d.Err)
}

func (r *tracer) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return r.start(ctx, "connect")
}

func (r *tracer) TraceConnectEnd(ctx context.Context, d pgx.TraceConnectEndData) {
	r.end(ctx, "connect", d.Err)
}

// The tracer of ConnConfig hears of the pool's statements what it hears of a
// connection's, and of each connection that is dialled.
func TestPgxTracerIsKept(t *testing.T) {
	ctx := t.Context()
	r := &tracer{}
	cfg, err := pgx.ParseConfig(pgtest.DSN(t))
	require.NoError(t, err)
	cfg.Tracer = r
	alone, err := pgx.ConnectConfig(ctx, cfg)
	require.NoError(t, err)
	defer alone.Close(ctx)
	_, err = alone.Exec(ctx, "create table item (id int)")
	require.NoError(t, err)
	require.Equal(t, []string{"connect", "query"}, r.take())
	p := open(t, Config{ConnConfig: cfg, Max: 1, RequireServer: true})
	require.Equal(t, []string{"connect"}, r.take())

	type db interface {
		fullDBTX
		Begin(context.Context) (pgx.Tx, error)
	}
	for name, use := range map[string]func(db){
		"exec":      func(d db) { _, _ = d.Exec(ctx, "select 1") },
		"exec args": func(d db) { _, _ = d.Exec(ctx, "select $1::int", 1) },
		"row":       func(d db) { _ = d.QueryRow(ctx, "select 2").Scan(nil) },
		"row fails": func(d db) { _ = d.QueryRow(ctx, "selec 2").Scan(nil) },
		"rows": func(d db) {
			rows, _ := d.Query(ctx, "select generate_series(1, 3)")
			rows.Close()
		},
		"batch":       func(d db) { _ = d.SendBatch(ctx, queue("select 4", "select 5")).Close() },
		"batch fails": func(d db) { _ = d.SendBatch(ctx, queue("select 6", "select 1/0")).Close() },
		"batch, early": func(d db) {
			b := d.SendBatch(ctx, queue("select 7", "select 8"))
			_ = b.QueryRow().Scan(nil)
			_ = b.Close()
			_ = b.Close()
		},
		"copy": func(d db) {
			_, _ = d.CopyFrom(ctx, pgx.Identifier{"item"}, []string{"id"}, pgx.CopyFromRows([][]any{{1}}))
		},
		"transaction": func(d db) {
			tx, _ := d.Begin(ctx)
			_, _ = tx.Exec(ctx, "select 1")
			_, _ = tx.Prepare(ctx, "x", "select 1")
			_ = tx.Commit(ctx)
		},
	} {
		use(alone)
		want := r.take()
		require.NotEmpty(t, want)
		use(p)
		require.Equal(t, want, r.take(), name)
		require.False(t, slices.Contains(want, "query (another context)"))
	}
}

// texts is a tracer that remembers what was run.
type texts struct{ seen []string }

func (r *texts) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	r.seen = append(r.seen, d.SQL)
	return ctx
}

func (*texts) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A prepared statement is run by a name that tells nobody anything.
func TestPgxTracerSeesTheTextOfAPreparedStatement(t *testing.T) {
	ctx := t.Context()
	r := &texts{}
	cfg, err := pgx.ParseConfig(pgtest.DSN(t))
	require.NoError(t, err)
	cfg.Tracer = r
	p := open(t, Config{ConnConfig: cfg, Max: 1, Pooled: PooledNo})
	st, err := p.DB().PrepareContext(ctx, "select $1::int")
	require.NoError(t, err)
	_, err = st.ExecContext(ctx, 1)
	require.NoError(t, err)
	require.NoError(t, st.QueryRowContext(ctx, 1).Scan(new(int)))
	require.Equal(t, []string{"select $1::int", "select $1::int"}, r.seen)
}
