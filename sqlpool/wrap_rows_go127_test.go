//go:build go1.27

package sqlpool

import (
	"database/sql"
	"database/sql/driver"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/internal/pgtest"
)

type rowsColumnScanner interface {
	NextRow() error
	ScanColumn(driver.ScanContext, int, any) error
}

// scanningVariants are r that scan by themselves, without and with all else.
func scanningVariants(r *fullRows) []driver.Rows {
	return []driver.Rows{
		struct {
			driver.Rows
			rowsColumnScanner
		}{r, r},
		struct {
			driver.Rows
			rowsColumnScanner
			rowsNextResultSet
			rowsScanType
			rowsDatabaseTypeName
			rowsLength
			rowsNullable
			rowsPrecisionScale
		}{r, r, r, r, r, r, r, r},
	}
}

func (r *fullRows) NextRow() error { return r.next("Rows.NextRow") }

func (r *fullRows) ScanColumn(ctx driver.ScanContext, i int, dest any) error {
	if err := r.w.did("Rows.ScanColumn", i); err != nil {
		return err
	}
	return sql.ConvertAssign(ctx, dest, r.current[i])
}

func TestWrapScansAsTheDriverDoes(t *testing.T) {
	ctx := t.Context()
	cfg, err := pgx.ParseConfig(pgtest.DSN(t))
	require.NoError(t, err)
	g := &spy{}
	db := sql.OpenDB(Wrap(stdlib.GetConnector(*cfg), WrapConfig{Guard: g}))
	defer db.Close()
	var list []int32 // what database/sql itself cannot scan
	require.NoError(t, db.QueryRowContext(ctx, "select array[1,2,3]").Scan(&list))
	require.Equal(t, []int32{1, 2, 3}, list)
	require.Error(t, db.QueryRowContext(ctx, "select 'x'").Scan(new(int)))
	r, err := db.QueryContext(ctx, "select 1/(2-n) from generate_series(1,2) n")
	require.NoError(t, err)
	require.True(t, r.Next())
	require.False(t, r.Next())
	require.ErrorContains(t, r.Err(), "division by zero")
	_, outcomes := g.take()
	require.Equal(t, []core.Outcome{core.Success, core.Success, core.Success}, outcomes)
	require.Zero(t, g.held())
}
