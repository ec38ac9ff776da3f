package sqlpool

import (
	"strings"
	"testing"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// pooler is a PgBouncer in transaction mode in front of a database of the
// test's own, with two connections to the server.
type pooler struct {
	dsn    string // through the pooler, as a URL with a query
	direct string // past it
}

// pgbouncer starts a PgBouncer, or skips the test where none is installed that
// can keep so many prepared statements.
func pgbouncer(t *testing.T, maxPrepared int) pooler {
	t.Helper()
	direct := pgtest.DSN(t)
	b := pgtest.PgBouncer(t, direct, pgtest.BouncerOptions{
		MaxPreparedStatements: maxPrepared,
		Settings:              map[string]string{"default_pool_size": "2"},
	})
	return pooler{dsn: withQuery(b.DSN()), direct: withQuery(direct)}
}

// withQuery is a URL that more parameters can be added to.
func withQuery(dsn string) string {
	if strings.Contains(dsn, "?") {
		return dsn
	}
	return dsn + "?connect_timeout=10"
}
