package sqlpool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/pool"
)

func TestSQLStates(t *testing.T) {
	for _, c := range []struct {
		state string
		want  core.Outcome
		gone  bool
	}{
		{"23505", core.Success, false}, // unique_violation
		{"42601", core.Success, false}, // syntax_error
		{"40001", core.Success, false}, // serialization_failure
		{"40P01", core.Success, false}, // deadlock_detected
		{"40003", core.Failure, false}, // statement_completion_unknown
		{"55P03", core.Success, false}, // lock_not_available
		{"22P02", core.Success, false}, // invalid_text_representation
		{"P0001", core.Success, false}, // raise_exception
		{"08000", core.Failure, true},
		{"08006", core.Failure, true},
		{"08P01", core.Failure, true},  // protocol_violation, of unknown severity
		{"53100", core.Failure, false}, // disk_full
		{"53300", core.Failure, false}, // too_many_connections
		{"53400", core.Success, false}, // configuration_limit_exceeded: temp_file_limit
		{"54001", core.Success, false}, // statement_too_complex
		{"57P01", core.Failure, true},
		{"57P02", core.Failure, true},
		{"57P03", core.Failure, true},
		{"57P04", core.Failure, true},
		{"57P05", core.Success, true},
		{"57014", core.Failure, false},
		{"57000", core.Success, false}, // operator_intervention, the class alone
		{"25P03", core.Success, true},
		{"25P04", core.Success, true},
		{"25001", core.Success, false},
		{"25006", core.Success, false}, // read_only_sql_transaction
		{"28P01", core.Success, false}, // invalid_password
		{"3D000", core.Success, false}, // invalid_catalog_name
		{"58030", core.Failure, false}, // io_error
		{"XX000", core.Failure, false},
		{"F0000", core.Failure, false},
		{"SHOP1", core.Success, false}, // raised by a program
		{"X", core.Success, false},
	} {
		err := fmt.Errorf("while buying: %w", &pgconn.PgError{Code: c.state})
		require.Equal(t, c.want, Outcome(t.Context(), err), c.state)
		class, ok := judge(err)
		require.True(t, ok)
		require.Equal(t, c.gone, class.gone, c.state)
	}
}

// pqError is of lib/pq's shape.
type pqError struct {
	state string
	fatal bool
}

func (e pqError) Error() string    { return e.state }
func (e pqError) SQLState() string { return e.state }
func (e pqError) Fatal() bool      { return e.fatal }

func TestSeverityTellsASessionThatEnds(t *testing.T) {
	for _, c := range []struct {
		err  error
		want core.Outcome
		gone bool
	}{
		{&pgconn.PgError{Code: "08P01", Severity: "ERROR"}, core.Success, false},
		{&pgconn.PgError{Code: "08003", Severity: "ERROR"}, core.Success, false},
		{&pgconn.PgError{Code: "08P01", Severity: "FATAL"}, core.Failure, true}, // a pooler's
		{&pgconn.PgError{Code: "08P01", Severity: "FEHLER", SeverityUnlocalized: "ERROR"}, core.Success, false},
		{&pgconn.PgError{Code: "08006", Severity: "ERROR"}, core.Failure, true},
		{&pgconn.PgError{Code: "40001", Severity: "FATAL"}, core.Success, true}, // a standby's conflict
		{&pgconn.PgError{Code: "XX000", Severity: "PANIC"}, core.Failure, true},
		{pqError{"08P01", false}, core.Success, false},
		{pqError{"08P01", true}, core.Failure, true},
		{pqError{"23505", false}, core.Success, false},
		{pqError{"57P03", true}, core.Failure, true},
	} {
		require.Equal(t, c.want, Outcome(t.Context(), c.err), "%#v", c.err)
		class, ok := judge(c.err)
		require.True(t, ok)
		require.Equal(t, c.gone, class.gone, "%#v", c.err)
	}
}

func TestOutcomeOfWhatIsNoSQLState(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancelLate := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancelLate()
	_, dead := pgconn.Connect(t.Context(), "postgres://app@127.0.0.1:1/shop?sslmode=disable")
	_, unsent := pgconn.Connect(canceled, "postgres://app@127.0.0.1:1/shop?sslmode=disable")
	answer, trouble := &pgconn.PgError{Code: "23505"}, &pgconn.PgError{Code: "53100"}
	refusal := &core.Rejection{Err: pool.ErrUnavailable, Cause: &pgconn.PgError{Code: "28P01"}}
	for name, c := range map[string]struct {
		ctx  context.Context
		err  error
		left time.Duration // 0: enough
		want core.Outcome
	}{
		"nil":                    {want: core.Success},
		"unexpected EOF":         {err: io.ErrUnexpectedEOF, want: core.Failure},
		"EOF":                    {err: io.EOF, want: core.Failure},
		"reset":                  {err: &net.OpError{Op: "read", Err: syscall.ECONNRESET}, want: core.Failure},
		"closed socket":          {err: net.ErrClosed, want: core.Failure},
		"no connection":          {err: dead, want: core.Failure},
		"caller left connecting": {ctx: canceled, err: unsent, want: core.Ignored},
		"ErrBadConn":             {err: driver.ErrBadConn, want: core.Failure},
		"a deadline":             {ctx: late, err: context.DeadlineExceeded, want: core.Failure},
		"our own timeout":        {err: context.DeadlineExceeded, want: core.Failure},
		"no time to meet it":     {ctx: late, err: context.DeadlineExceeded, left: core.MinTime - 1, want: core.Ignored},
		"nor to be answered":     {ctx: late, err: &pgconn.PgError{Code: "57014"}, left: core.MinTime - 1, want: core.Ignored},
		"in time for an answer":  {ctx: late, err: answer, left: core.MinTime - 1, want: core.Success},
		"deadline, as told by 57014": {
			ctx: late, err: &pgconn.PgError{Code: "57014"}, left: core.MinTime, want: core.Failure,
		},
		"caller left":              {ctx: canceled, err: io.ErrUnexpectedEOF, want: core.Ignored},
		"caller left, by 57014":    {ctx: canceled, err: &pgconn.PgError{Code: "57014"}, want: core.Ignored},
		"sql.ErrNoRows":            {err: sql.ErrNoRows, want: core.Success},
		"pgx.ErrNoRows":            {err: fmt.Errorf("item: %w", pgx.ErrNoRows), want: core.Success},
		"pgx.ErrTooManyRows":       {err: pgx.ErrTooManyRows, want: core.Success},
		"a commit that rolls back": {err: pgx.ErrTxCommitRollback, want: core.Success},
		"pgx.ErrTxClosed":          {err: pgx.ErrTxClosed, want: core.Ignored},
		"sql.ErrTxDone":            {err: sql.ErrTxDone, want: core.Ignored},
		"sql.ErrConnDone":          {err: sql.ErrConnDone, want: core.Ignored},
		"ErrReleased":              {err: ErrReleased, want: core.Ignored},
		"safe to retry":            {err: safeError{}, want: core.Ignored},
		"a refusal for a login":    {err: refusal, want: core.Ignored},
		"an answer marked":         {err: core.Mark(answer, core.Throttled), want: core.Throttled},
		"trouble marked":           {err: core.Mark(trouble, core.Success), want: core.Success},
	} {
		ctx, left := c.ctx, c.left
		if ctx == nil {
			ctx = t.Context()
		}
		if left == 0 {
			left = time.Hour
			require.Equal(t, c.want, Outcome(ctx, c.err), name)
		}
		require.Equal(t, c.want, outcome(ctx, c.err, left), name)
	}
}

// safeError is of the shape of pgx's errors that nothing was sent.
type safeError struct{}

func (safeError) Error() string     { return "conn busy" }
func (safeError) SafeToRetry() bool { return true }

// What the manual lists is all judged, and what fails is exactly this. The list
// is the server's own: newer ones have codes that 15 has not.
func TestSQLStatesOfTheServersOwnList(t *testing.T) {
	p := open(t, Config{Max: 1})
	var share string
	require.NoError(t, p.QueryRow(t.Context(), "select setting from pg_config where name = 'SHAREDIR'").Scan(&share))
	list, err := os.ReadFile(filepath.Join(share, "errcodes.txt"))
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("the server's files are elsewhere")
	}
	require.NoError(t, err)
	want := map[string]bool{}
	for _, state := range []string{
		"08000", "08001", "08003", "08004", "08006", "08007", "08P01", "40003",
		"53000", "53100", "53200", "53300", "57014", "57P01", "57P02", "57P03", "57P04",
		"58000", "58030", "58P01", "58P02", "58P03", "F0000", "F0001", "XX000", "XX001", "XX002",
	} {
		want[state] = true
	}
	states := regexp.MustCompile(`(?m)^([0-9A-Z]{5})\s+[ESW]\s`).FindAllStringSubmatch(string(list), -1)
	require.Greater(t, len(states), 200)
	for _, s := range states {
		if s[1] == "00000" { // no error
			continue
		}
		failed := Outcome(t.Context(), &pgconn.PgError{Code: s[1]}) == core.Failure
		require.Equal(t, want[s[1]], failed, s[1])
	}
	for state := range stateClasses {
		if state == "25P04" { // of 17
			continue
		}
		require.Regexp(t, `(?m)^`+state+`[0-9A-Z]{`+fmt.Sprint(5-len(state))+`}\s`, string(list))
	}
}

// Every SQLSTATE, known or not, is a success or a failure while the caller waits
// for it; of unknown classes it is an answer.
func TestEverySQLStateIsJudged(t *testing.T) {
	known := regexp.MustCompile(`^(08|40003|53|57|58|F0|XX)`)
	rapid.Check(t, func(r *rapid.T) {
		state := rapid.OneOf(
			rapid.StringMatching(`[0-9A-Z]{5}`),
			rapid.StringMatching(`(08|25|40|53|57|58|F0|XX)[0-9A-Z]{3}`),
			rapid.String(),
		).Draw(r, "state")
		severity := rapid.SampledFrom([]string{"", "ERROR", "FATAL", "PANIC"}).Draw(r, "severity")
		checkState(r, known, state, severity)
	})
}

func FuzzSQLState(f *testing.F) {
	for _, s := range []string{"23505", "57014", "08P01", "", "0", "XX", "ZZZZZ", "\xff\x00"} {
		f.Add(s, "ERROR")
	}
	known := regexp.MustCompile(`^(08|40003|53|57|58|F0|XX)`)
	f.Fuzz(func(t *testing.T, state, severity string) { checkState(t, known, state, severity) })
}

func checkState(t require.TestingT, known *regexp.Regexp, state, severity string) {
	err := &pgconn.PgError{Code: state, Severity: severity}
	got := Outcome(context.Background(), err)
	if state == "" { // no SQLSTATE at all: an error as any other
		require.Equal(t, core.Failure, got)
		return
	}
	class, ok := judge(err)
	require.True(t, ok)
	require.Equal(t, class.failed, got == core.Failure, state)
	require.Equal(t, !class.failed, got == core.Success, state)
	if !known.MatchString(state) {
		require.Equal(t, core.Success, got, state)
	}
	if severity == "FATAL" || severity == "PANIC" {
		require.True(t, class.gone, "%s ends the session", severity)
	}
}
