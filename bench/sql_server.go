package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// table is what point reads read. It is made anew on the server, and dropped.
const table = "surgewall_bench"

// withDatabase finds a server for the plan: TEST_DATABASE_URL, DATABASE_URL, or a
// throwaway one, which is stopped in the end. Without binaries of PostgreSQL the
// error wraps pgtest.ErrNotInstalled.
func (p plan) withDatabase(ctx context.Context) (plan, func() error, error) {
	stop := func() error { return nil }
	for _, name := range []string{"TEST_DATABASE_URL", "DATABASE_URL"} {
		if p.database == "" {
			p.database = os.Getenv(name)
		}
	}
	if p.database == "" {
		server, err := pgtest.Start(ctx, pgtest.Options{})
		if err != nil {
			return p, nil, err
		}
		p.database, stop = server.DSN(), server.Close
	}
	drop, err := fill(ctx, p.database)
	if err != nil {
		return p, nil, errors.Join(err, stop())
	}
	return p, func() error { return errors.Join(drop(), stop()) }, nil
}

// fill makes the table.
func fill(ctx context.Context, dsn string) (drop func() error, err error) {
	run := func(ctx context.Context, statement string) error {
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, statement, pgx.QueryExecModeSimpleProtocol)
		return errors.Join(err, conn.Close(ctx))
	}
	err = run(ctx, fmt.Sprintf(`
		drop table if exists %[1]s;
		create unlogged table %[1]s (id bigint primary key, answer bigint not null);
		insert into %[1]s select id, 3 * id from generate_series(0, %[2]d) id;
		analyze %[1]s`, table, keys-1))
	if err != nil {
		return nil, fmt.Errorf("make table %s: %w", table, err)
	}
	return func() error { return run(context.Background(), "drop table "+table) }, nil
}

// mayLack reports whether err is that there is no server, and that is all right.
func mayLack(err error) bool {
	switch os.Getenv("REQUIRE_POSTGRES") {
	case "", "0", "false":
		return errors.Is(err, pgtest.ErrNotInstalled)
	default:
		return false
	}
}
