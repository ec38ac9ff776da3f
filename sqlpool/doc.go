// Package sqlpool is a Postgres connection pool that stays standing when the
// database does not: callers wait in a fair queue, for a bounded time,
// connections are dialled in the background, a few at a time, and a guard, such
// as a breaker, can refuse before anybody waits.
//
//	db, err := sqlpool.Open(ctx, sqlpool.Config{DSN: os.Getenv("DATABASE_URL")})
//	if err != nil {
//		return err
//	}
//	defer db.Close(context.Background())
//	_, err = db.Exec(ctx, "update item set stock = stock - 1 where id = $1", id)
//
// The methods of Pool and Conn have the signatures of those of pgx's own pool, so
// that code written for these, by hand or by sqlc, works unchanged. pgx speaks the
// protocol; its pool is not used. A tracer in ConnConfig hears what pgx tells
// tracers: of queries, batches, copies, prepared statements and dials. The two
// interfaces for tracers of pgx's pool take a *pgxpool.Pool, so are not called:
// an Observer and Stats tell of acquisitions. Pool.DB is a *sql.DB on the same
// connections.
//
// The connection string may hold the pool's settings, with the names of pgx's pool
// and more: see Config, which also has hooks around a dial, as for a password that
// is a cloud's token. A pooler such as PgBouncer in between is found, or declared:
// see Pooled.
//
// Cluster is a primary and its replicas: statements go to the one or to the others
// as the caller says, reads as fresh as the caller wants them, and a promotion is
// followed.
//
// A statement is sent once. Only if pgx is certain that nothing of it was sent,
// since the connection was dead, does it go to another; and Pool.InTx runs a
// whole transaction again when Postgres has rolled it back for another's sake.
//
// Wrap puts a guard around any other database/sql driver, tries again what was
// not sent, and tells of it. The pool then stays that of database/sql.
package sqlpool
