package sqlpool

import (
	"context"
	"database/sql/driver"
)

// wrapStmt is a driver's prepared statement behind a guard.
type wrapStmt struct {
	driver.Stmt
	c *wrapConn
}

// wrapDriverStmt is st behind the guard of c. A checker or converter of its own
// is there exactly if st has one: a checker that had nothing to say would keep
// database/sql from asking the connection's.
func wrapDriverStmt(st driver.Stmt, c *wrapConn) driver.Stmt {
	s := &wrapStmt{st, c}
	checker, checks := st.(driver.NamedValueChecker)
	converter, converts := st.(columnConverter)
	switch {
	case checks && converts:
		return struct {
			*wrapStmt
			driver.NamedValueChecker
			columnConverter
		}{s, checker, converter}
	case checks:
		return struct {
			*wrapStmt
			driver.NamedValueChecker
		}{s, checker}
	case converts:
		return struct {
			*wrapStmt
			columnConverter
		}{s, converter}
	}
	return s
}

func (s *wrapStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (r driver.Result, err error) {
	err = s.c.exec(ctx, func() (err error) {
		if x, ok := s.Stmt.(driver.StmtExecContext); ok {
			r, err = x.ExecContext(ctx, args)
			return err
		}
		values, err := plain(ctx, args)
		if err == nil {
			r, err = stmt(s.Stmt).Exec(values)
		}
		return err
	})
	return r, err
}

func (s *wrapStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.c.query(ctx, func() (driver.Rows, error) {
		if x, ok := s.Stmt.(driver.StmtQueryContext); ok {
			return x.QueryContext(ctx, args)
		}
		values, err := plain(ctx, args)
		if err != nil {
			return nil, err
		}
		return stmt(s.Stmt).Query(values)
	})
}
