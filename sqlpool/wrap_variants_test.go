package sqlpool

import "database/sql/driver"

// connVariants are c with some of the optional interfaces of a connection: any
// three of them in each of the eight combinations of having and lacking.
func connVariants(c *fullConn) []driver.Conn {
	return []driver.Conn{
		struct {
			driver.Conn
		}{c},
		struct {
			driver.Conn
			driver.ExecerContext
			execer
			driver.QueryerContext
			queryer
			driver.ConnPrepareContext
			driver.ConnBeginTx
			driver.Pinger
			driver.SessionResetter
			driver.Validator
			driver.NamedValueChecker
		}{c, c, c, c, c, c, c, c, c, c, c},
		struct {
			driver.Conn
			driver.ExecerContext
			execer
			queryer
			driver.Validator
			driver.NamedValueChecker
		}{c, c, c, c, c, c},
		struct {
			driver.Conn
			queryer
			driver.ConnPrepareContext
			driver.ConnBeginTx
			driver.Pinger
			driver.SessionResetter
		}{c, c, c, c, c, c},
		struct {
			driver.Conn
			driver.ExecerContext
			execer
			driver.QueryerContext
			driver.ConnPrepareContext
			driver.SessionResetter
		}{c, c, c, c, c, c},
		struct {
			driver.Conn
			driver.QueryerContext
			driver.ConnBeginTx
			driver.SessionResetter
			driver.Validator
			driver.NamedValueChecker
		}{c, c, c, c, c, c},
		struct {
			driver.Conn
			driver.ExecerContext
			driver.QueryerContext
			driver.ConnBeginTx
			driver.Pinger
			driver.Validator
		}{c, c, c, c, c, c},
		struct {
			driver.Conn
			execer
			driver.QueryerContext
			queryer
			driver.Pinger
			driver.NamedValueChecker
		}{c, c, c, c, c, c},
		struct {
			driver.Conn
			execer
			driver.ConnPrepareContext
			driver.Pinger
			driver.Validator
			driver.NamedValueChecker
		}{c, c, c, c, c, c},
		struct {
			driver.Conn
			driver.ExecerContext
			execer
			queryer
			driver.ConnPrepareContext
			driver.ConnBeginTx
		}{c, c, c, c, c, c},
		struct {
			driver.Conn
			driver.ExecerContext
			driver.Pinger
			driver.SessionResetter
			driver.NamedValueChecker
		}{c, c, c, c, c},
		struct {
			driver.Conn
			driver.QueryerContext
			queryer
			driver.ConnPrepareContext
			driver.Validator
		}{c, c, c, c, c},
		struct {
			driver.Conn
			execer
			driver.ConnBeginTx
			driver.SessionResetter
			driver.Validator
		}{c, c, c, c, c},
		struct {
			driver.Conn
			driver.ExecerContext
			driver.QueryerContext
			queryer
			driver.ConnPrepareContext
			driver.ConnBeginTx
			driver.NamedValueChecker
		}{c, c, c, c, c, c, c},
		struct {
			driver.Conn
			driver.ExecerContext
			queryer
			driver.SessionResetter
			driver.Validator
		}{c, c, c, c, c},
		struct {
			driver.Conn
			execer
			driver.ConnBeginTx
			driver.Pinger
		}{c, c, c, c},
		struct {
			driver.Conn
			driver.ConnPrepareContext
			driver.ConnBeginTx
			driver.Pinger
			driver.SessionResetter
			driver.Validator
			driver.NamedValueChecker
		}{c, c, c, c, c, c, c},
		struct {
			driver.Conn
			execer
			driver.QueryerContext
			driver.Pinger
			driver.SessionResetter
		}{c, c, c, c, c},
		struct {
			driver.Conn
			driver.ExecerContext
			execer
			queryer
			driver.ConnBeginTx
			driver.Pinger
			driver.SessionResetter
			driver.NamedValueChecker
		}{c, c, c, c, c, c, c, c},
	}
}

// stmtVariants are s with each combination of the optional interfaces of a
// statement.
func stmtVariants(s *fullStmt) []driver.Stmt {
	return []driver.Stmt{
		struct {
			driver.Stmt
		}{s},
		struct {
			driver.Stmt
			columnConverter
		}{s, s},
		struct {
			driver.Stmt
			driver.NamedValueChecker
		}{s, s},
		struct {
			driver.Stmt
			driver.NamedValueChecker
			columnConverter
		}{s, s, s},
		struct {
			driver.Stmt
			driver.StmtQueryContext
		}{s, s},
		struct {
			driver.Stmt
			driver.StmtQueryContext
			columnConverter
		}{s, s, s},
		struct {
			driver.Stmt
			driver.StmtQueryContext
			driver.NamedValueChecker
		}{s, s, s},
		struct {
			driver.Stmt
			driver.StmtQueryContext
			driver.NamedValueChecker
			columnConverter
		}{s, s, s, s},
		struct {
			driver.Stmt
			driver.StmtExecContext
		}{s, s},
		struct {
			driver.Stmt
			driver.StmtExecContext
			columnConverter
		}{s, s, s},
		struct {
			driver.Stmt
			driver.StmtExecContext
			driver.NamedValueChecker
		}{s, s, s},
		struct {
			driver.Stmt
			driver.StmtExecContext
			driver.NamedValueChecker
			columnConverter
		}{s, s, s, s},
		struct {
			driver.Stmt
			driver.StmtExecContext
			driver.StmtQueryContext
		}{s, s, s},
		struct {
			driver.Stmt
			driver.StmtExecContext
			driver.StmtQueryContext
			columnConverter
		}{s, s, s, s},
		struct {
			driver.Stmt
			driver.StmtExecContext
			driver.StmtQueryContext
			driver.NamedValueChecker
		}{s, s, s, s},
		struct {
			driver.Stmt
			driver.StmtExecContext
			driver.StmtQueryContext
			driver.NamedValueChecker
			columnConverter
		}{s, s, s, s, s},
	}
}

// rowsVariants are r with none, all, or one of the optional interfaces of rows.
func rowsVariants(r *fullRows) []driver.Rows {
	return append([]driver.Rows{
		struct {
			driver.Rows
		}{r},
		struct {
			driver.Rows
			rowsNextResultSet
			rowsScanType
			rowsDatabaseTypeName
			rowsLength
			rowsNullable
			rowsPrecisionScale
		}{r, r, r, r, r, r, r},
		struct {
			driver.Rows
			rowsNextResultSet
		}{r, r},
		struct {
			driver.Rows
			rowsScanType
		}{r, r},
		struct {
			driver.Rows
			rowsDatabaseTypeName
		}{r, r},
		struct {
			driver.Rows
			rowsLength
		}{r, r},
		struct {
			driver.Rows
			rowsNullable
		}{r, r},
		struct {
			driver.Rows
			rowsPrecisionScale
		}{r, r},
	}, scanningVariants(r)...)
}
