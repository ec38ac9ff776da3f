package sqlpool

import (
	"container/list"
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// dbStmt is a prepared statement on a proxy: its text, which each connection
// that the proxy gets has prepared, or prepares at its first use there.
type dbStmt struct {
	c      *dbConn
	query  string
	inputs int
}

// NumInput is how many arguments there are, or -1 if that is not known.
func (st *dbStmt) NumInput() int { return st.inputs }

// Close does nothing: the connections keep the statement for the next.
func (st *dbStmt) Close() error { return nil }

func (st *dbStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	s, err := st.c.use()
	if err != nil {
		return nil, err
	}
	return s.driverExec(ctx, st.query, args, true)
}

func (st *dbStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	s, err := st.c.use()
	if err != nil {
		return nil, err
	}
	return s.driverQuery(ctx, st.query, args, true)
}

// Exec is there for the interface: database/sql prefers ExecContext.
func (st *dbStmt) Exec(args []driver.Value) (driver.Result, error) {
	return st.ExecContext(context.Background(), named(args))
}

// Query is there for the interface: database/sql prefers QueryContext.
func (st *dbStmt) Query(args []driver.Value) (driver.Rows, error) {
	return st.QueryContext(context.Background(), named(args))
}

func named(args []driver.Value) []driver.NamedValue {
	n := make([]driver.NamedValue, len(args))
	for i, arg := range args {
		n[i] = driver.NamedValue{Ordinal: i + 1, Value: arg}
	}
	return n
}

// statements are those that a connection has prepared for database/sql, by their
// text: as many as max, and then the one used least recently goes. They are the
// connection's, and used by one goroutine at a time.
//
// Only in pgx.QueryExecModeCacheStatement does the server keep them. In other
// modes there may be a pooler between, which must not be left with anything: there,
// the server is asked once whether the statement is right, and pgx's mode does
// the rest.
type statements struct {
	mode pgx.QueryExecMode
	max  int
	all  map[string]*list.Element
	used list.List // of *statement, the last used first

	shown int                 // how often the user was given the pgx connection
	args  []driver.NamedValue // of the query that is being sent
}

// statement has a name of its own. pgx would find it by its text, too, if that
// were the name, for whoever runs the same text, and of what it finds so it mends
// nothing when the server has given up the plan.
//
// The name is made of the text: behind a pooler that nobody has declared, another
// client's statement of this name is the same.
type statement struct {
	query  string
	name   string
	inputs int
	stale  bool // what the server knows of it may have become wrong
	shown  int  // up to where pgx is certain to know it: see statements
}

// RewriteQuery has pgx run the statement by its name, where tracers have seen its
// text: the statement is the first argument. An argument of the user's that
// rewrites has the last word.
func (st *statement) RewriteQuery(_ context.Context, _ *pgx.Conn, _ string, args []any) (string, []any, error) {
	return st.name, args, nil
}

func (st *statement) String() string { return st.name }

func statementName(query string) string {
	digest := sha256.Sum256([]byte(query))
	return "stmt_db_" + hex.EncodeToString(digest[:24])
}

func newStatements(cfg *pgx.ConnConfig) statements {
	return statements{
		mode: cfg.DefaultQueryExecMode,
		max:  max(cfg.StatementCacheCapacity, 1),
		all:  make(map[string]*list.Element),
	}
}

// kept tells whether the server keeps what is prepared.
func (ss *statements) kept() bool { return ss.mode == pgx.QueryExecModeCacheStatement }

// ready prepares a statement that is about to be run, where that is of use. It
// returns nil where it is not.
func (ss *statements) ready(ctx context.Context, on *pgx.Conn, query string) (*statement, error) {
	if !ss.kept() || query == "" {
		return nil, nil
	}
	if _, err := ss.prepare(ctx, on, query); err != nil {
		return nil, err
	}
	return ss.used.Front().Value.(*statement), nil
}

// prepare returns how many arguments a statement has, or -1. Without a round
// trip, if the connection knows it.
func (ss *statements) prepare(ctx context.Context, on *pgx.Conn, query string) (inputs int, err error) {
	switch {
	case ss.mode == pgx.QueryExecModeSimpleProtocol:
		return -1, nil
	case query == "":
		return 0, nil // pgx would name it where nothing is kept
	}
	if e, ok := ss.all[query]; ok {
		st := e.Value.(*statement)
		if !st.stale {
			ss.used.MoveToFront(e)
			return st.inputs, ss.check(ctx, on, st)
		}
		if err := ss.forget(ctx, on, e); err != nil {
			return 0, err
		}
	}
	for len(ss.all) >= ss.max {
		if err := ss.forget(ctx, on, ss.used.Back()); err != nil {
			return 0, err
		}
	}
	name := "" // is overwritten by the next
	if ss.kept() {
		name = statementName(query)
	}
	d, err := on.Prepare(ctx, name, query)
	if err != nil {
		return 0, err
	}
	st := &statement{query: query, name: name, inputs: len(d.ParamOIDs), shown: ss.shown}
	ss.all[query] = ss.used.PushFront(st)
	return st.inputs, nil
}

// check has pgx know st, which the user may have taken from it since, by
// DeallocateAll: to pgx, the name would then be a text. There is no round trip
// unless that is so.
func (ss *statements) check(ctx context.Context, on *pgx.Conn, st *statement) error {
	if st.shown == ss.shown || !ss.kept() {
		return nil
	}
	if _, err := on.Prepare(ctx, st.name, st.query); err != nil {
		return err
	}
	st.shown = ss.shown
	return nil
}

// forget deallocates a statement.
func (ss *statements) forget(ctx context.Context, on *pgx.Conn, e *list.Element) error {
	st := e.Value.(*statement)
	if ss.kept() {
		if err := on.Deallocate(ctx, st.name); err != nil {
			return err
		}
	}
	delete(ss.all, st.query)
	ss.used.Remove(e)
	return nil
}

// with are the arguments of a query that runs st, if there is one. pgx's driver
// copies them.
func (ss *statements) with(st *statement, args []driver.NamedValue) []driver.NamedValue {
	if st == nil {
		return args
	}
	ss.args = append(append(ss.args[:0], driver.NamedValue{Value: st}), args...)
	return ss.args
}

// doubt notes that a statement failed with err. It is prepared anew before its
// next use if the error may come of a schema that has changed since, or of a
// session whose statements were deallocated: what pgx could not encode, what is
// not supported (0A), not known (26), of another name or type (42), or internal.
func (ss *statements) doubt(query string, err error) {
	e, ok := ss.all[query]
	if !ok {
		return
	}
	if state, ok := sqlState(err); ok {
		switch {
		case state == "22P02", state == "22P03": // an argument that is not of the type that was sent
		case slices.Contains([]string{"0A", "26", "42", "XX"}, state[:min(2, len(state))]):
		default:
			return
		}
	}
	e.Value.(*statement).stale = true
}

// planLost reports whether err says that the server does not run a statement
// since it has no plan for it: the types of its result have changed, of which
// 0A000 tells, as of much else, or it was deallocated, which is 26000. Said of a
// statement within a function, it has a context.
func planLost(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Where == "" && (pg.Code == "26000" || pg.Code == "0A000" && pg.Routine == "RevalidateCachedQuery")
}
