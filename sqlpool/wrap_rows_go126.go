//go:build !go1.27

package sqlpool

import "database/sql/driver"

// shown is r as database/sql is to see it.
func shown(r *wrapRows) driver.Rows { return r }
