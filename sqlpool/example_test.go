package sqlpool_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/pool"
	"github.com/surgewall/surgewall/core/retry"
	"github.com/surgewall/surgewall/sqlpool"
)

// It needs a server, so it is compiled and not run.
func Example() {
	ctx := context.Background()
	db, err := sqlpool.Open(ctx, sqlpool.Config{DSN: os.Getenv("DATABASE_URL"), MinIdle: 2, Max: 5})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close(ctx)
	tag, err := db.Exec(ctx, "update item set stock = stock - 1 where id = $1 and stock > 0", 7)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("sold:", tag.RowsAffected() == 1)
}

func ExampleOpen() {
	ctx := context.Background()
	// Nothing listens there. Open does not mind; who asks is told.
	db, err := sqlpool.Open(ctx, sqlpool.Config{
		Name:             "orders",
		DSN:              "postgres://app:secret@127.0.0.1:1/shop",
		UnavailableAfter: time.Millisecond,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close(ctx)
	_, err = db.Exec(ctx, "select 1")
	var refused *core.Rejection
	fmt.Println(errors.As(err, &refused), errors.Is(err, pool.ErrUnavailable))
	fmt.Println(refused.Guard, refused.Reason)

	// A bad Config is reported whole, and without the password.
	_, err = sqlpool.Open(ctx, sqlpool.Config{DSN: "postgres://app:secret@localhost:port/shop", Max: -3})
	fmt.Println(err)
	// Output:
	// true true
	// orders unavailable
	// sqlpool.Config.DSN: is not a connection string that pgx accepts (invalid port); it is withheld as it may hold a password
	// sqlpool.Config.Max: -3: must not be negative
}

// The connection string may say how large the pool is, with the names that
// pgx's pool has, too. What the Config sets wins.
func ExampleConfig() {
	ctx := context.Background()
	db, err := sqlpool.Open(ctx, sqlpool.Config{
		DSN: "postgres://app:secret@127.0.0.1:1/shop?pool_max_conns=8&pool_min_conns=2&pool_acquire_timeout=500ms",
		Max: 4,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close(ctx)
	for _, s := range db.Inspect().Settings {
		switch s.Name {
		case "Max", "MinIdle", "AcquireTimeout":
			fmt.Println(s.Name, s.Value)
		}
	}

	_, err = sqlpool.Open(ctx, sqlpool.Config{DSN: "host=localhost password=secret pool_max_conns=0 pool_max_conn_lifetime=week"})
	fmt.Println(err)
	// Output:
	// MinIdle 2
	// Max 4
	// AcquireTimeout 500ms
	// sqlpool.Config.DSN: pool_max_conns: 0: must be at least 1
	// sqlpool.Config.DSN: pool_max_conn_lifetime: is not a duration such as 30s or 1h30m, or off
}

// cloudToken stands for what a cloud gives out in place of a password.
func cloudToken(_ context.Context, host, user string) (string, error) {
	return "token of " + user + " for " + host, nil
}

// Each dial logs in with a token of its own. It needs a server, so it is
// compiled and not run.
func ExampleConfig_token() {
	ctx := context.Background()
	db, err := sqlpool.Open(ctx, sqlpool.Config{
		DSN: os.Getenv("DATABASE_URL"),
		BeforeConnect: func(ctx context.Context, cfg *pgx.ConnConfig) (err error) {
			cfg.Password, err = cloudToken(ctx, cfg.Host, cfg.User)
			return err
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close(ctx)
}

// A pooler in transaction mode is found by itself, or declared. It needs one, so
// it is compiled and not run.
func ExamplePooled() {
	ctx := context.Background()
	db, err := sqlpool.Open(ctx, sqlpool.Config{DSN: os.Getenv("DATABASE_URL"), Pooled: sqlpool.PooledYes})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close(ctx)
	tx, err := db.Begin(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer tx.Rollback(ctx)
	_, err = tx.Exec(ctx, "set local statement_timeout = '2s'") // ends with the transaction
	fmt.Println(err)
	_, err = tx.Prepare(ctx, "stock", "select stock from item where id = $1")
	fmt.Println(errors.Is(err, sqlpool.ErrPooled))
}

// closedForRepair is a guard that refuses. A breaker or a limiter is used in
// the same way.
type closedForRepair struct{}

func (closedForRepair) Acquire(context.Context, core.Call) (core.Permit, error) {
	return core.Permit{}, &core.Rejection{Guard: "orders", Reason: core.CircuitOpen}
}

// connector is any driver's; here it is a mock's.
type connector struct {
	driver driver.Driver
	name   string
}

func (c connector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.name) }
func (c connector) Driver() driver.Driver                        { return c.driver }

func ExampleWrap() {
	under, mock, err := sqlmock.NewWithDSN("example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer under.Close()
	mock.MatchExpectationsInOrder(false)
	db := sql.OpenDB(sqlpool.Wrap(connector{under.Driver(), "example"}, sqlpool.WrapConfig{Guard: closedForRepair{}}))
	defer db.Close()
	_, err = db.ExecContext(context.Background(), "update item set stock = 0")
	var refused *core.Rejection
	fmt.Println(errors.As(err, &refused), refused.Reason)
	// Output: true circuit_open
}

// late is the connector of a server that is not up as yet.
type late struct {
	connector
	refuses int
}

func (c *late) Connect(ctx context.Context) (driver.Conn, error) {
	if core.Attempt(ctx) <= c.refuses {
		return nil, errors.New("connection refused")
	}
	return c.connector.Connect(ctx)
}

// A dial that failed is made again; the program notices nothing.
func ExampleWrap_retry() {
	budget, err := retry.NewBudget(retry.BudgetConfig{Name: "orders"})
	if err != nil {
		fmt.Println(err)
		return
	}
	under, mock, err := sqlmock.NewWithDSN("late")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer under.Close()
	mock.ExpectExec("update").WillReturnResult(sqlmock.NewResult(0, 1))
	db := sql.OpenDB(sqlpool.Wrap(&late{connector{under.Driver(), "late"}, 2}, sqlpool.WrapConfig{
		Retry: sqlpool.WrapRetry{
			Tries:   3,
			Backoff: retry.Backoff{Base: time.Millisecond, Cap: 10 * time.Millisecond},
			Budget:  budget,
		},
	}))
	defer db.Close()
	_, err = db.ExecContext(context.Background(), "update item set stock = 0")
	fmt.Println(err, budget.Stats().Taken)
	// Output: <nil> 2
}

// A *sql.DB on the pool has the pool's guard, queue and refusals.
func ExamplePool_DB() {
	ctx := context.Background()
	p, err := sqlpool.Open(ctx, sqlpool.Config{DSN: "postgres://app@127.0.0.1:1/shop", Guard: closedForRepair{}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close(ctx)
	var stock int
	err = p.DB().QueryRowContext(ctx, "select stock from item where id = $1", 7).Scan(&stock)
	var refused *core.Rejection
	fmt.Println(errors.As(err, &refused), refused.Reason)
	// Output: true circuit_open
}

func ExampleOutcome() {
	ctx := context.Background()
	for _, err := range []error{
		&pgconn.PgError{Code: "23505"}, // unique_violation: an answer
		&pgconn.PgError{Code: "53300"}, // too_many_connections
		errors.New("connection reset"),
	} {
		fmt.Println(sqlpool.Outcome(ctx, err))
	}
	// Output:
	// success
	// failure
	// failure
}
