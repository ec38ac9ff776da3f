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

// It needs a server, so it is compiled and not run.
func ExamplePool_InTx() {
	ctx := context.Background()
	db, err := sqlpool.Open(ctx, sqlpool.Config{DSN: os.Getenv("DATABASE_URL")})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close(ctx)
	opts := pgx.TxOptions{IsoLevel: pgx.Serializable}
	err = db.InTx(ctx, opts, func(ctx context.Context, tx pgx.Tx) error {
		var stock int
		if err := tx.QueryRow(ctx, "select stock from item where id = $1", 7).Scan(&stock); err != nil {
			return err
		}
		if stock == 0 {
			return errors.New("sold out")
		}
		_, err := tx.Exec(ctx, "update item set stock = $1 where id = $2", stock-1, 7)
		return err
	})
	switch {
	case errors.Is(err, sqlpool.ErrCommitUnknown):
		fmt.Println("sold, or not: look, before it is sold again:", err)
	case errors.Is(err, retry.ErrBudget):
		fmt.Println("too many customers are in each other's way:", err)
	case err != nil:
		fmt.Println(err)
	}
}

// It needs a server, so it is compiled and not run.
func ExamplePool_SendBatch() {
	ctx := context.Background()
	db, err := sqlpool.Open(ctx, sqlpool.Config{DSN: os.Getenv("DATABASE_URL")})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close(ctx)
	b := &pgx.Batch{}
	b.Queue("update item set stock = stock - 1 where id = $1", 7)
	b.Queue("select stock from item where id = $1", 7).QueryRow(func(row pgx.Row) error {
		var stock int
		err := row.Scan(&stock)
		fmt.Println("left:", stock)
		return err
	})
	if err := db.SendBatch(ctx, b).Close(); err != nil {
		fmt.Println(err)
	}
}

// It needs a server, so it is compiled and not run.
func ExamplePool_CopyFrom() {
	ctx := context.Background()
	db, err := sqlpool.Open(ctx, sqlpool.Config{DSN: os.Getenv("DATABASE_URL")})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close(ctx)
	n, err := db.CopyFrom(ctx, pgx.Identifier{"item"}, []string{"id", "stock"},
		pgx.CopyFromRows([][]any{{8, 100}, {9, 100}}))
	fmt.Println(n, err)
}

// It needs a server, so it is compiled and not run.
func ExamplePool_With() {
	ctx := context.Background()
	db, err := sqlpool.Open(ctx, sqlpool.Config{DSN: os.Getenv("DATABASE_URL")})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close(ctx)
	err = db.With(ctx, func(c *sqlpool.Conn) error {
		if _, err := c.Exec(ctx, "select pg_advisory_lock(7)"); err != nil {
			return err
		}
		_, err := c.Exec(ctx, "select pg_advisory_unlock(7)") // of the same connection
		return err
	})
	fmt.Println(err)
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
