package sqlpool_test

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5"

	"github.com/surgewall/surgewall/core/retry"
	"github.com/surgewall/surgewall/sqlpool"
)

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
