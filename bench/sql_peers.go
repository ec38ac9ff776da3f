package main

import (
	"context"
	"database/sql"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/surgewall/surgewall/sqlpool"
)

const pgx5 = "github.com/jackc/pgx/v5"

// opener makes a pool of connections to the plan's database.
type opener[P any] func(ctx context.Context, p plan) (pool P, stop func(), err error)

func openOurs(ctx context.Context, p plan) (*sqlpool.Pool, func(), error) {
	pool, err := sqlpool.Open(ctx, sqlpool.Config{DSN: p.database, Max: connections})
	if err != nil {
		return nil, nil, err
	}
	return pool, func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = pool.Close(ctx)
	}, nil
}

func openOursDB(ctx context.Context, p plan) (*sql.DB, func(), error) {
	pool, stop, err := openOurs(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	return pool.DB(), stop, nil
}

func openPgxPool(ctx context.Context, p plan) (*pgxpool.Pool, func(), error) {
	cfg, err := pgxpool.ParseConfig(p.database)
	if err != nil {
		return nil, nil, err
	}
	cfg.MaxConns = connections
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	return pool, pool.Close, nil
}

// openStdlib is database/sql's pool on pgx's driver.
func openStdlib(_ context.Context, p plan) (*sql.DB, func(), error) {
	cfg, err := pgx.ParseConfig(p.database)
	if err != nil {
		return nil, nil, err
	}
	db := stdlib.OpenDB(*cfg)
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, func() { _ = db.Close() }, nil
}

// querier is ours, pgxpool's Pool, or a connection of pgx's.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

func native[P querier](l load, q question, open opener[P]) start {
	return func(ctx context.Context, p plan) (measure, func(), error) {
		db, stop, err := open(ctx, p)
		if err != nil {
			return nil, nil, err
		}
		return l.by(q, []ask{q.of(db)}), stop, nil
	}
}

// floor is a connection of its own for each goroutine, and no more goroutines
// than connections.
func (l load) floor(q question) contender {
	l.goroutines = min(l.goroutines, connections)
	return contender{"connection each", pgx5, func(ctx context.Context, p plan) (measure, func(), error) {
		var conns []*pgx.Conn
		stop := func() {
			for _, c := range conns {
				_ = c.Close(context.Background())
			}
		}
		var asks []ask
		for range l.goroutines {
			c, err := pgx.Connect(ctx, p.database)
			if err != nil {
				stop()
				return nil, nil, err
			}
			conns = append(conns, c)
			asks = append(asks, q.of(c))
		}
		return l.by(q, asks), stop, nil
	}}
}

// of asks of ours or pgx.
func (q question) of(db querier) ask {
	switch {
	case q.exec:
		return func(ctx context.Context, _ int) (int, error) {
			tag, err := db.Exec(ctx, q.sql)
			return int(tag.RowsAffected()), err
		}
	case q.keyed:
		return func(ctx context.Context, id int) (n int, err error) {
			err = db.QueryRow(ctx, q.sql, id).Scan(&n)
			return n, err
		}
	default:
		return func(ctx context.Context, _ int) (n int, err error) {
			err = db.QueryRow(ctx, q.sql).Scan(&n)
			return n, err
		}
	}
}

func (l load) database(q question, open opener[*sql.DB]) start {
	return func(ctx context.Context, p plan) (measure, func(), error) {
		db, stop, err := open(ctx, p)
		if err != nil {
			return nil, nil, err
		}
		if !q.prepares {
			return l.by(q, []ask{q.ofDB(db)}), stop, nil
		}
		st, err := db.PrepareContext(ctx, q.sql)
		if err != nil {
			stop()
			return nil, nil, err
		}
		read := func(ctx context.Context, id int) (n int, err error) {
			err = st.QueryRowContext(ctx, id).Scan(&n)
			return n, err
		}
		return l.by(q, []ask{read}), func() {
			_ = st.Close()
			stop()
		}, nil
	}
}

// ofDB asks of database/sql.
func (q question) ofDB(db *sql.DB) ask {
	switch {
	case q.exec:
		return func(ctx context.Context, _ int) (int, error) {
			r, err := db.ExecContext(ctx, q.sql)
			if err != nil {
				return 0, err
			}
			n, err := r.RowsAffected()
			return int(n), err
		}
	case q.keyed:
		return func(ctx context.Context, id int) (n int, err error) {
			err = db.QueryRowContext(ctx, q.sql, id).Scan(&n)
			return n, err
		}
	default:
		return func(ctx context.Context, _ int) (n int, err error) {
			err = db.QueryRowContext(ctx, q.sql).Scan(&n)
			return n, err
		}
	}
}
