//go:build !go1.27

package sqlpool

import "database/sql/driver"

// scanningVariants are none before Go 1.27.
func scanningVariants(*fullRows) []driver.Rows { return nil }
