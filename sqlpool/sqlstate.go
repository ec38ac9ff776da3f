package sqlpool

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/surgewall/surgewall/core"
)

// stateClass is what a SQLSTATE says about the server and the connection.
type stateClass struct {
	// failed: the server could not do its work. Otherwise the error is an
	// answer, as a constraint's or the parser's, and the server is well.
	failed bool
	// gone: the connection is not to be used again, whatever the severity.
	gone bool
}

// stateClasses are the SQLSTATEs that are no mere answers, whole or by class. The
// source is the manual of PostgreSQL 15, appendix A, "PostgreSQL Error Codes", and
// for 25P04 that of 17. A whole code comes before its class.
//
// A class that is not here is an answer, one that the manual does not know
// included: the server read a statement, ran it and said what came of it. Codes of
// unknown classes are those that programs raise themselves, and a breaker that
// opened for them would take the database away from everybody for what it was
// written to do.
//
// What is an answer although it might not look like one:
//
//   - 25006, read-only: the transaction was begun so, or the server is a standby,
//     which is well, and serves those who read. See wentReadOnly;
//   - 25P03 and 25P04: the time was the session's, also while it asked nothing;
//   - 28, 3D, 42501: a login that is refused. The sessions that there are go on;
//   - 40001, 40P01 and 55P03: callers that are in each other's way;
//   - 53400: a limit that was set for each statement or session, as temp_file_limit;
//   - 54: a statement that is too large or too deep;
//   - 57P05: the session was idle, so nobody was kept waiting.
//
// XX has errors of extensions too, which they were given no code for. It stays a
// failure, as HTTP's 500 does.
var stateClasses = map[string]stateClass{
	"08":    {failed: true, gone: true}, // connection exception; but see judge
	"40003": {failed: true},             // statement_completion_unknown: the server lost track
	"53":    {failed: true},             // insufficient resources: disk, memory, connections
	"53400": {},                         // configuration_limit_exceeded
	"57P01": {failed: true, gone: true}, // admin_shutdown, pg_terminate_backend
	"57P02": {failed: true, gone: true}, // crash_shutdown
	"57P03": {failed: true, gone: true}, // cannot_connect_now: starts, stops or recovers
	"57P04": {failed: true, gone: true}, // database_dropped
	"57P05": {gone: true},               // idle_session_timeout
	"57014": {failed: true},             // query_canceled: see Outcome
	"25P03": {gone: true},               // idle_in_transaction_session_timeout
	"25P04": {gone: true},               // transaction_timeout
	"58":    {failed: true},             // system error: input and output
	"F0":    {failed: true},             // configuration file
	"XX":    {failed: true},             // internal error, corruption
}

func classOf(state string) stateClass {
	if class, ok := stateClasses[state]; ok {
		return class
	}
	return stateClasses[state[:min(2, len(state))]]
}

// judge is what err says if it has a SQLSTATE. By the protocol, FATAL and PANIC
// end the session, and ERROR leaves it.
//
// Two codes of class 08 that come as an ERROR are answers of a session that goes
// on: 08P01 to a statement with too many or too few arguments, and 08003 from
// dblink, to a name that the caller did not connect. A pooler that lost its server
// sends 08P01 too, as FATAL.
func judge(err error) (class stateClass, ok bool) {
	state, ok := sqlState(err)
	if !ok {
		return stateClass{}, false
	}
	class = classOf(state)
	switch severity(err) {
	case "FATAL", "PANIC":
		class.gone = true
	case "ERROR":
		if state == "08P01" || state == "08003" {
			class = stateClass{}
		}
	}
	return class, true
}

// sqlState is the SQLSTATE of err, if the server sent one. The errors of pgx
// and of lib/pq have the method.
func sqlState(err error) (state string, ok bool) {
	s, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err)
	if !ok {
		return "", false
	}
	state = s.SQLState()
	return state, state != ""
}

// severity is how grave the server says err is, or "" if that is not known.
func severity(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return cmp.Or(pg.SeverityUnlocalized, pg.Severity)
	}
	if pq, ok := errors.AsType[interface {
		error
		SQLState() string
		Fatal() bool
	}](err); ok { // lib/pq
		if pq.Fatal() {
			return "FATAL"
		}
		return "ERROR"
	}
	return ""
}

// wentReadOnly reports whether err is the refusal of a standby to write. A
// connection that was made in a failover may be to the server that was the
// primary, and would stay there: the next is dialled anew. PostgreSQL tells since
// version 14 that it is a standby.
func wentReadOnly(err error, on *pgconn.PgConn) bool {
	state, _ := sqlState(err)
	return state == "25006" && on.ParameterStatus("in_hot_standby") == "on"
}

// Outcome is what err, of a statement or a login under ctx, says about a Postgres
// server. It is what the guard of a Pool learns, and that of Wrap:
//
//	error                                            outcome
//	nil, no rows, too many rows                      success
//	any SQLSTATE that is not below                   success: it is an answer
//	08     connection                                failure, except for arguments
//	       (08P01) and names (08003) in a session
//	       that goes on
//	53     resources, except 53400                   failure
//	57P01, 57P02, 57P03  shutdown, crash, start      failure
//	57P04  database dropped                          failure
//	57014  statement_timeout, pg_cancel_backend      failure
//	58     system: input and output                  failure
//	F0, XX configuration, internal, corruption       failure
//	40003  statement completion unknown              failure
//	a deadline, ours or the caller's                 failure
//	network, EOF, no connection, driver.ErrBadConn   failure
//	a deadline with too little time to meet it       ignored
//	the caller has cancelled ctx                     ignored
//	nothing was sent, a guard or the pool refused    ignored
//
// So an answer is all that says nothing against the server: violated constraints,
// syntax, rights, lock_timeout (55P03), deadlocks (40P01), serialization failures
// (40001), a transaction or a standby that is read-only (25006), a login that is
// refused (28, 3D). What core.Mark said of err comes first. The codes are those of
// the PostgreSQL manual, appendix A.
//
// Where the caller's cancellation or deadline ends a statement, the server says
// 57014 too: ctx tells these from a statement_timeout.
func Outcome(ctx context.Context, err error) core.Outcome {
	return outcome(ctx, err, core.TimeLeft(context.Background()))
}

// outcome is Outcome, given the time left when the call began.
func outcome(ctx context.Context, err error, left time.Duration) core.Outcome {
	if _, marked := core.Marked(err); marked || err == nil {
		return core.ClassifyLeft(ctx, err, left)
	}
	if _, refused := errors.AsType[*core.Rejection](err); refused {
		return core.Ignored // though what it wraps, as a refused login, may have a SQLSTATE
	}
	if class, ok := judge(err); ok && !class.failed || answered(err) {
		return core.Success
	}
	if unsent(err) {
		return core.Ignored
	}
	return core.ClassifyLeft(ctx, err, left)
}

// answered reports whether err is what a driver or database/sql makes of an
// answer that it had not expected.
func answered(err error) bool {
	return errors.Is(err, sql.ErrNoRows) || errors.Is(err, pgx.ErrNoRows) ||
		errors.Is(err, pgx.ErrTooManyRows) || errors.Is(err, pgx.ErrTxCommitRollback)
}

// unsent reports whether the server was not asked: the program used what had
// ended, or its context had. A connection that could not be made is another matter.
func unsent(err error) bool {
	if errors.Is(err, pgx.ErrTxClosed) || errors.Is(err, sql.ErrTxDone) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, ErrReleased) {
		return true
	}
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	return !connecting && pgconn.SafeToRetry(err)
}
