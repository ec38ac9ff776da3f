package sqlpool

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
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
		{"55P03", core.Success, false}, // lock_not_available
		{"22P02", core.Success, false}, // invalid_text_representation
		{"P0001", core.Success, false}, // raise_exception
		{"08000", core.Failure, true},
		{"08006", core.Failure, true},
		{"53100", core.Failure, false}, // disk_full
		{"53300", core.Failure, false}, // too_many_connections
		{"57P01", core.Failure, true},
		{"57P02", core.Failure, true},
		{"57P03", core.Failure, true},
		{"57P05", core.Success, true},
		{"57014", core.Failure, false},
		{"57000", core.Success, false}, // operator_intervention, the class alone
		{"25P03", core.Success, true},
		{"25001", core.Success, false},
		{"58030", core.Failure, false}, // io_error
		{"XX000", core.Failure, false},
		{"F0000", core.Failure, false},
		{"X", core.Success, false},
	} {
		err := fmt.Errorf("while buying: %w", &pgconn.PgError{Code: c.state})
		require.Equal(t, c.want, Outcome(t.Context(), err), c.state)
		require.Equal(t, c.gone, classOf(c.state).gone, c.state)
	}
}

func TestOutcomeOfWhatIsNoSQLState(t *testing.T) {
	require.Equal(t, core.Success, Outcome(t.Context(), nil))
	require.Equal(t, core.Failure, Outcome(t.Context(), io.ErrUnexpectedEOF))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.Equal(t, core.Ignored, Outcome(ctx, io.ErrUnexpectedEOF))
	require.Equal(t, core.Ignored, Outcome(ctx, &pgconn.PgError{Code: "57014"}), "its caller cancelled it")
}
