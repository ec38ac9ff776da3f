package sqlpool

import (
	"context"
	"errors"
	"time"

	"github.com/surgewall/surgewall/core"
)

// stateClass is what a SQLSTATE says about the server and the connection.
type stateClass struct {
	// failed: the server could not do its work. Otherwise the error is an
	// answer, as a constraint's or the parser's, and the server is well.
	failed bool
	// gone: the connection is not to be used again.
	gone bool
}

// stateClasses are the SQLSTATEs that are no mere answers, whole or by class,
// after appendix A of the PostgreSQL manual. A whole code comes before its class.
var stateClasses = map[string]stateClass{
	"08":    {failed: true, gone: true}, // connection exception
	"53":    {failed: true},             // insufficient resources: disk, memory, connections
	"57P01": {failed: true, gone: true}, // admin_shutdown, pg_terminate_backend
	"57P02": {failed: true, gone: true}, // crash_shutdown
	"57P03": {failed: true, gone: true}, // cannot_connect_now
	"57P04": {failed: true, gone: true}, // database_dropped
	"57P05": {gone: true},               // idle_session_timeout
	"57014": {failed: true},             // query_canceled: statement_timeout, or its caller: see outcome
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

// Outcome is what err, of a statement under ctx, says about a Postgres server:
//
//   - nil, and an error that the server answered with, such as a constraint's,
//     the parser's or a serialisation failure, is core.Success;
//   - a SQLSTATE of the server's own trouble is core.Failure: 08 (connection),
//     53 (resources), 57P01 to 57P04 (shutdown), 57014 (statement timeout), 58,
//     F0 and XX (internal);
//   - what the caller cancelled is core.Ignored;
//   - anything else is what core.Classify says: a broken connection and a
//     deadline are core.Failure.
func Outcome(ctx context.Context, err error) core.Outcome {
	return outcome(ctx, err, core.TimeLeft(context.Background()))
}

// outcome is Outcome, given the time left when the call began.
func outcome(ctx context.Context, err error, left time.Duration) core.Outcome {
	if state, ok := sqlState(err); ok {
		if !classOf(state).failed {
			return core.Success
		}
	}
	return core.ClassifyLeft(ctx, err, left)
}
