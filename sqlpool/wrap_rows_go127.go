//go:build go1.27

package sqlpool

import (
	"database/sql/driver"

	"github.com/surgewall/surgewall/core"
)

// scannedRows are rows of a driver that scans into the program's variables by
// itself. With these database/sql asks for no values, so the methods are there
// exactly if the driver's rows have them.
type scannedRows struct{ *wrapRows }

var _ driver.RowsColumnScanner = scannedRows{}

// shown is r as database/sql is to see it.
func shown(r *wrapRows) driver.Rows {
	if _, ok := r.Rows.(driver.RowsColumnScanner); ok {
		return scannedRows{r}
	}
	return r
}

func (r scannedRows) NextRow() error {
	r.err = core.ErrNoReturn // as in Next
	return r.read(r.Rows.(driver.RowsColumnScanner).NextRow())
}

// ScanColumn does not end the rows, whatever its error.
func (r scannedRows) ScanColumn(ctx driver.ScanContext, i int, dest any) error {
	return r.Rows.(driver.RowsColumnScanner).ScanColumn(ctx, i, dest)
}
