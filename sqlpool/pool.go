package sqlpool

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/pool"
	"github.com/surgewall/surgewall/core/retry"
)

// Pool is a pool of connections to a Postgres server. Make one with Open and
// end it with Close. It is safe for concurrent use.
//
// Its methods return a *core.Rejection when the Guard or the pool refuses;
// errors.Is finds pool.ErrAcquireTimeout, pool.ErrOverloaded,
// pool.ErrUnavailable or pool.ErrClosed in the latter. Other errors are pgx's, as
// they are or wrapped: in what says that StatementTimeout is over, that a COMMIT
// may have been applied, or that the connection broke when the statement had been
// sent.
type Pool struct {
	guard   core.Guard
	pool    *pool.Pool[*conn]
	db      *sql.DB
	timeout *statementTimeout // nil: off
	budget  *retry.Budget
	retries txRetry

	node   *node   // whose pool it is, or nil
	router *router // instead of pool: it has none of its own, and is behind a Route
}

// Open makes a Pool. It fails for a bad Config, and reports all its problems at
// once, without the connection string.
//
// It does not wait for the server, which may be down as yet: connections are
// dialled in the background, and until there is one, callers wait. With
// RequireServer it waits until a connection is there, at most for ctx, for
// AcquireTimeout, or until dials have failed for UnavailableAfter, and fails
// without one.
func Open(ctx context.Context, cfg Config) (*Pool, error) {
	connConfig, err := cfg.parse()
	if err != nil {
		return nil, err
	}
	name := cfg.Name
	if name == "" {
		name = address(connConfig)
	}
	retries, err := cfg.txRetry(name)
	if err != nil {
		return nil, err
	}
	inner, err := pool.New(cfg.poolConfig(newDialer(connConfig), name))
	if err != nil {
		return nil, err
	}
	p := &Pool{guard: cfg.Guard, pool: inner, budget: retries.budget, retries: retries}
	if cfg.StatementTimeout > 0 {
		p.timeout = &statementTimeout{pool: name, limit: cfg.StatementTimeout}
	}
	p.db = sql.OpenDB(connector{p})
	// The connections are the pool's to keep: database/sql holds none that is
	// not in use, and puts no queue of its own in front.
	p.db.SetMaxIdleConns(-1)
	if !cfg.RequireServer {
		return p, nil
	}
	lease, err := inner.Acquire(ctx)
	if err != nil {
		// Nobody has a connection, so there is nothing to wait for but dials,
		// whose ctx Close ends.
		return nil, errors.Join(err, p.Close(context.WithoutCancel(ctx)))
	}
	lease.Release()
	return p, nil
}

// Ping asks the server whether it is there, on a connection of the pool. The
// guard is asked as for any statement.
func (p *Pool) Ping(ctx context.Context) error {
	var s session
	if err := s.open(ctx, p); err != nil {
		return err
	}
	defer s.end()
	return s.ping(ctx)
}

// DB is a *sql.DB on the connections of this pool, always the same. Each of its
// statements and transactions acquires a connection here, in this pool's queue
// and after its Guard was asked once, and gives it back at its end. Its own
// limits stay as they are: raising SetMaxIdleConns would keep connections from
// the pool. Its Stats say little; read the Pool's.
//
// The Pool's Close closes it too; its own Close leaves the Pool open, and is for
// good. After either, it returns database/sql's error of a closed database.
//
// A prepared sql.Stmt is prepared anew for each use, as each may get another
// connection: two more round trips. Statements that are not prepared cost no
// more than natively, as pgx caches them for each connection.
//
// The connection that sql.Conn.Raw shows has a method Conn() *pgx.Conn.
func (p *Pool) DB() *sql.DB { return p.db }

// Close ends the pool: it refuses all who wait or ask with pool.ErrClosed,
// closes the idle connections and waits for those in use to be given back. If
// ctx ends first, it returns an error that wraps ctx's, and the rest is closed
// as it comes back.
func (p *Pool) Close(ctx context.Context) error {
	return errors.Join(p.db.Close(), p.pool.Close(ctx))
}

// Name is the configured name.
func (p *Pool) Name() string { return p.pool.Name() }

// Stats reads the pool. It takes constant time.
func (p *Pool) Stats() pool.Stats { return p.pool.Stats() }

// Inspect reports the pool, with OpenTelemetry's names (db.client.connection.*)
// for what those cover, and those of core/pool (surgewall.pool.*) for all. Its
// retry budget is a child.
func (p *Pool) Inspect() core.Report {
	r := p.pool.Inspect()
	s := p.pool.Stats()
	r.Kind = "sqlpool"
	values := []core.Value{
		core.Amount("db.client.connection.count", "{connection}", int64(s.Idle+s.Checking)).
			With("db.client.connection.state", "idle"),
		core.Amount("db.client.connection.count", "{connection}", int64(s.Used)).
			With("db.client.connection.state", "used"),
		core.Amount("db.client.connection.pending_requests", "{request}", int64(s.Waiting)),
		core.Count("db.client.connection.timeouts", "{timeout}", s.TimedOut),
	}
	for _, set := range r.Settings {
		switch n, _ := set.Value.(int); set.Name {
		case "Max":
			values = append(values, core.Amount("db.client.connection.max", "{connection}", int64(n)))
		case "MinIdle":
			values = append(values, core.Amount("db.client.connection.idle.min", "{connection}", int64(n)))
		}
	}
	r.Values = append(values, r.Values...)
	limit := time.Duration(0)
	if p.timeout != nil {
		limit = p.timeout.limit
	}
	r.Settings = append(r.Settings,
		core.Setting{Name: "StatementTimeout", Value: limit},
		core.Setting{Name: "TxTries", Value: p.retries.tries},
		core.Setting{Name: "TxBackoff.Base", Value: p.retries.backoff.Base},
		core.Setting{Name: "TxBackoff.Cap", Value: p.retries.backoff.Cap},
	)
	r.Children = append(r.Children, p.budget.Inspect())
	return r
}

// String is the pool's name. What the pool holds is not printed: it holds a
// password.
func (p *Pool) String() string {
	if p == nil {
		return "sqlpool.Pool(nil)"
	}
	return "sqlpool.Pool(" + p.Name() + ")"
}

// Format prints String for every verb: without it, some would print the fields.
func (p *Pool) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, p.String()) }

// LogValue makes slog log String.
func (p *Pool) LogValue() slog.Value { return slog.StringValue(p.String()) }

// MarshalJSON marshals String.
func (p *Pool) MarshalJSON() ([]byte, error) { return json.Marshal(p.String()) }
