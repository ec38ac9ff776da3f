package pgtest

import (
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/surgewall/surgewall/internal/faultproxy"
)

// Proxy starts a proxy in front of the server that dsn connects to, the first
// one if it names several, and returns it with the DSN of the same database
// through it. It is closed when the test ends. So a test has a network that can
// fail in front of a server that others use too:
//
//	proxy, dsn := pgtest.Proxy(t, pgtest.DSN(t))
func Proxy(tb TB, dsn string) (p *faultproxy.Proxy, through string) {
	tb.Helper()
	upstream, err := dsnAddr(dsn)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	if p, err = faultproxy.Start(upstream); err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() { _ = p.Close() })
	if through, err = withAddr(dsn, p.Addr()); err != nil {
		tb.Fatalf("%v", err)
	}
	return p, through
}

// dsnAddr is where a DSN connects to: host:port, or the path of a socket.
func dsnAddr(dsn string) (string, error) {
	c, err := parseDSN(dsn)
	if err != nil {
		return "", err
	}
	port := strconv.Itoa(int(c.Port))
	if strings.HasPrefix(c.Host, "/") {
		return filepath.Join(c.Host, ".s.PGSQL."+port), nil
	}
	return net.JoinHostPort(c.Host, port), nil
}
