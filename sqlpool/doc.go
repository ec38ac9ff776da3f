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
// Exec, Query, QueryRow, Begin, BeginTx and Ping of Pool have the signatures of
// pgx's own pool, so that code written for these, by hand or by sqlc, works
// unchanged; SendBatch and CopyFrom are those of a transaction, or of Conn.Conn.
// pgx speaks the protocol; its pool is not used. Pool.DB is a *sql.DB on the same
// connections.
//
// Cluster is a primary and its replicas: statements go to the one or to the others
// as the caller says, reads as fresh as the caller wants them, and a promotion is
// followed.
//
// Wrap puts a guard around any other database/sql driver, whose pool then stays
// that of database/sql.
package sqlpool
