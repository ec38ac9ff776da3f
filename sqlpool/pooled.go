package sqlpool

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Pooled says whether there is a pooler between a Pool and the server, such as
// PgBouncer, Supavisor, pgcat, Odyssey or a cloud's own, which may give each
// transaction another connection to the server.
//
// Nothing that this package does by itself depends on a session. Behind a pooler
// it also leaves off what a pooler cannot carry:
//
//   - Statements are sent without a name, and pgx caches their descriptions
//     (pgx.QueryExecModeCacheDescribe), unless the connection string or the
//     ConnConfig chooses another mode. The price is that the server parses each
//     anew, and that the first use of a statement after a change of its columns'
//     types may fail. For a pooler that keeps prepared statements, as PgBouncer
//     does since version 1.21 if its max_prepared_statements is above 0, write
//     default_query_exec_mode=cache_statement.
//   - A sql.Stmt of DB is its text, which the server checks once and does not
//     keep. Prepare of a native transaction returns ErrPooled.
//   - The end of a statement's context closes the connection, as always, but no
//     cancel request is sent: a pooler needs another connection to the server for
//     that, and under load it has none (pgx issue 679). The server goes on with
//     the statement: bound it with statement_timeout, of the role or by SET LOCAL.
//
// What a program does with a session itself does not work, and is not noticed
// here: SET, settings in the connection string (PgBouncer refuses most), LISTEN,
// temporary tables, advisory locks that outlive the transaction, PREPARE, and
// the Prepare of Conn.Conn. SET LOCAL does.
//
// To find a pooler, the pool's first dial asks for pg_backend_pid and compares
// it with the process that the login named for cancel requests: a pooler names
// one of its own making. If they differ, it connects anew, as to a pooler. So
// found are all poolers that answer cancel requests themselves, PgBouncer in
// session mode and proxies that only relay included: for these, PooledNo saves
// the price. A pooler that passes on the server's own number is not found, nor
// is one that a later dial gets to: declare it.
type Pooled int

const (
	PooledDetect Pooled = iota // the first dial finds out; in a DSN, pool_pooled=detect
	PooledYes                  // there is one: pool_pooled=yes, or pgbouncer=true as for Prisma
	PooledNo                   // there is none: pool_pooled=no
)

// String is the value as a DSN has it.
func (p Pooled) String() string {
	switch p {
	case PooledDetect:
		return "detect"
	case PooledYes:
		return "yes"
	case PooledNo:
		return "no"
	}
	return fmt.Sprintf("Pooled(%d)", int(p))
}

// ErrPooled is returned for what needs a session of its own, where there is a
// pooler: see Pooled.
var ErrPooled = errors.New("sqlpool: the connection is to a pooler, which keeps no session")

// modeChosen reports whether the mode of statements is the user's choice.
// pgx's default is one that can be chosen too.
func modeChosen(cfg *pgx.ConnConfig) bool {
	return cfg.DefaultQueryExecMode != pgx.QueryExecModeCacheStatement ||
		strings.Contains(cfg.ConnString(), "default_query_exec_mode")
}

// forPooler makes cfg one for a pooler: with statements that have no name.
func forPooler(cfg *pgx.ConnConfig) {
	if !modeChosen(cfg) {
		cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
		if cfg.DescriptionCacheCapacity <= 0 {
			cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
		}
	}
}

// behindPooler asks whose connection this is. A server that cannot tell is
// taken for what it says it is.
func behindPooler(ctx context.Context, pg *pgconn.PgConn) (bool, error) {
	results, err := pg.Exec(ctx, "select pg_backend_pid()").ReadAll()
	if _, answered := sqlState(err); answered && !pg.IsClosed() {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("sqlpool: asking for a pooler: %w", err)
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 1 {
		return false, nil
	}
	pid, err := strconv.ParseUint(string(results[0].Rows[0][0]), 10, 32)
	return err == nil && pid != 0 && uint32(pid) != pg.PID(), nil
}

// hintPooled adds to err what it may come from, if the server does not know a
// name that pgx gave to a statement, or knows it already: then another session
// has answered, or a program has deallocated what is not its own.
func hintPooled(err error) {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || pg.Code != "26000" && pg.Code != "42P05" || pg.Hint != "" {
		return
	}
	if namedByPgx(pg) {
		pg.Hint = "if there is a pooler such as PgBouncer, see Pooled of sqlpool.Config"
		pg.Message += " (" + pg.Hint + ")"
	}
}

// namedByPgx reports whether an error is of a statement that was given its name
// by pgx, or for database/sql.
func namedByPgx(err *pgconn.PgError) bool {
	return strings.Contains(err.Message, `"stmtcache_`) || strings.Contains(err.Message, `"stmt_`)
}

// sessionLost reports whether the server does not know a statement that pgx does:
// they were deallocated, as by DISCARD ALL, or the session is another one. Then
// all that was prepared, by the user's hooks too, is to be prepared anew, for
// which there is a new connection.
func sessionLost(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "26000" && namedByPgx(pg)
}
