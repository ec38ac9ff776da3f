package sqlpool

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrCommitUnknown is found by errors.Is in the error of a Commit, of InTx too,
// that was sent and not answered: the connection broke, the context ended, the
// server shut down. The transaction was committed as a whole or not at all, and
// which of the two only its data can tell. Doing it again may do it twice. The
// error wraps what went wrong.
var ErrCommitUnknown = errors.New("sqlpool: it is unknown whether the transaction was committed")

type commitUnknown struct {
	pool  string
	cause error
}

func (e *commitUnknown) Error() string {
	return fmt.Sprintf("sqlpool: %q: it is unknown whether the transaction was committed: %v", e.pool, e.cause)
}

func (e *commitUnknown) Is(target error) bool { return target == ErrCommitUnknown }

func (e *commitUnknown) Unwrap() error { return e.cause }

// commitError is err, of a COMMIT on the named pool, as the caller is told.
func commitError(pool string, err error) error {
	if err == nil || notCommitted(err) {
		return err
	}
	return &commitUnknown{pool, err}
}

// notCommitted reports whether err, of a COMMIT, is certain to mean that there
// was none: it was not sent, or the server answered that it has rolled back.
//
// An ERROR is that answer: once Postgres has written the commit record, what
// fails is a PANIC or no more than a WARNING. A FATAL is not, as the server may
// end a session that waits for a replica when it has committed. What a server
// itself says not to know stays unknown: 40003, and class 08, as 08007.
func notCommitted(err error) bool {
	if errors.Is(err, pgx.ErrTxClosed) || errors.Is(err, pgx.ErrTxCommitRollback) || pgconn.SafeToRetry(err) {
		return true
	}
	state, ok := sqlState(err)
	return ok && severity(err) == "ERROR" && state != "40003" && !strings.HasPrefix(state, "08")
}
