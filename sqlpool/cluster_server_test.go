package sqlpool

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// multiHost is a DSN of all the servers, which have one password.
func multiHost(t *testing.T, all ...*pgtest.Server) string {
	t.Helper()
	u, err := url.Parse(all[0].DSN())
	require.NoError(t, err)
	var hosts []string
	for _, s := range all {
		hosts = append(hosts, s.Addr())
	}
	u.Host = strings.Join(hosts, ",")
	return u.String()
}

// openCluster is a cluster that knows all its nodes.
func openCluster(t *testing.T, cfg ClusterConfig) *Cluster {
	t.Helper()
	c, err := OpenCluster(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // real time: a real server
		defer cancel()
		require.NoError(t, c.Close(ctx))
	})
	return c
}

func exec(t *testing.T, s *pgtest.Server, sql string) {
	t.Helper()
	p := open(t, Config{DSN: s.DSN(), MinIdle: Off, Max: 1})
	_, err := p.Exec(t.Context(), sql)
	require.NoError(t, err)
}

// port is which server answers.
func port(t *testing.T, r Route) string {
	t.Helper()
	var p string
	require.NoError(t, r.QueryRow(t.Context(), "select current_setting('port')").Scan(&p))
	return p
}

func portOf(s *pgtest.Server) string { return s.Addr()[strings.LastIndexByte(s.Addr(), ':')+1:] }

func TestClusterSendsWritesToThePrimaryAndReadsToReplicas(t *testing.T) {
	primary, replicas := pgtest.Replicas(t, 2)
	c := openCluster(t, ClusterConfig{DSN: multiHost(t, replicas[0], primary, replicas[1]), Pool: Config{MinIdle: 1, Max: 3}})
	require.Equal(t, portOf(primary), port(t, c.Write()))
	eventually(t, func() bool { return c.Inspect().State == "healthy" })
	seen := map[string]int{}
	for range 10 {
		seen[port(t, c.Read(Any()))]++
	}
	require.Len(t, seen, 2)
	require.Zero(t, seen[portOf(primary)])

	_, err := c.Write().Exec(t.Context(), "create table item (n int)")
	require.NoError(t, err)
	for n := range 50 {
		_, err := c.Write().Exec(t.Context(), "insert into item values ($1)", n)
		require.NoError(t, err)
		token, err := c.Token(t.Context())
		require.NoError(t, err)
		var count int
		require.NoError(t, c.Read(After(token)).QueryRow(t.Context(), "select count(*) from item").Scan(&count))
		require.Equal(t, n+1, count)
	}
	require.NoError(t, c.Read(WithinLag(5*time.Second)).Ping(t.Context()))
	s := c.Stats()
	require.Equal(t, primary.Addr(), s.Primary)
	t.Logf("%+v", s)
}
