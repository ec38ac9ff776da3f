package sqlpool

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Route is where statements go: the primary, or a replica that satisfies a
// Consistency. It is what Cluster.Write and Cluster.Read return, with the methods
// of a Pool, which are those of pgx's own. It is a small value: copy it freely.
// It is safe for concurrent use, and each of its statements and transactions
// finds its node anew. The zero Route leads nowhere, and says so.
//
// Besides the errors of a Pool there are refusals of the Cluster, in which
// errors.Is finds ErrNoPrimary or ErrNoReplica.
type Route struct{ p *Pool }

// route makes a Route. What is behind it is a Pool without connections of its
// own, which borrows those of the nodes.
func (c *Cluster) route(write bool, by Consistency) Route {
	p := &Pool{router: &router{c: c, write: write, by: by}, retries: c.retries, budget: c.retries.budget}
	if write {
		p.db = openDB(p)
	}
	return Route{p}
}

// errNowhere is what a Route says that is not a Cluster's.
var errNowhere = errors.New("sqlpool: the zero Route leads nowhere: Cluster.Write and Cluster.Read make one")

// pool is what is behind r.
func (r Route) pool() *Pool {
	if r.p == nil {
		return &Pool{router: &router{}}
	}
	return r.p
}

// Exec runs a statement and returns when it is done.
func (r Route) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return r.pool().Exec(ctx, sql, args...)
}

// Query runs a statement that returns rows: see Pool.Query.
func (r Route) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return r.pool().Query(ctx, sql, args...)
}

// QueryRow runs a statement that returns at most one row: see Pool.QueryRow.
func (r Route) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return r.pool().QueryRow(ctx, sql, args...)
}

// Begin starts a transaction, on one node: see Pool.Begin.
func (r Route) Begin(ctx context.Context) (pgx.Tx, error) { return r.pool().Begin(ctx) }

// BeginTx is Begin with options.
func (r Route) BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error) {
	return r.pool().BeginTx(ctx, opts)
}

// InTx runs fn in a transaction on one node, and tries again what only another
// transaction was in the way of, on whichever node it is then: see Pool.InTx.
func (r Route) InTx(ctx context.Context, opts pgx.TxOptions, fn func(ctx context.Context, tx pgx.Tx) error) error {
	return r.pool().InTx(ctx, opts, fn)
}

// SendBatch sends all statements of b at once, to one node: see Pool.SendBatch.
func (r Route) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return r.pool().SendBatch(ctx, b)
}

// CopyFrom copies rows into a table: see Pool.CopyFrom.
func (r Route) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, from pgx.CopyFromSource) (int64, error) {
	return r.pool().CopyFrom(ctx, table, columns, from)
}

// With runs fn with a connection to one node: see Pool.With.
func (r Route) With(ctx context.Context, fn func(*Conn) error) error { return r.pool().With(ctx, fn) }

// Acquire borrows a connection to one node: see Pool.Acquire.
func (r Route) Acquire(ctx context.Context) (*Conn, error) { return r.pool().Acquire(ctx) }

// Ping asks a node whether it is there.
func (r Route) Ping(ctx context.Context) error { return r.pool().Ping(ctx) }
