package sqlpool

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func placesOf(t *testing.T, cfg ClusterConfig) []place {
	t.Helper()
	places, err := cfg.complete()
	require.NoError(t, err)
	return places
}

// Each host is a node of its own, with all the ways to connect to it.
func TestNodesOfADSN(t *testing.T) {
	for _, c := range []struct {
		dsn  string
		want []string
		ways int
	}{
		{"postgres://app@db1,db2:5433,db3/shop?sslmode=disable", []string{"db1:5432", "db2:5433", "db3:5432"}, 1},
		{"host=db1,db2 port=6000 dbname=shop sslmode=disable", []string{"db1:6000", "db2:6000"}, 1},
		{"host=db1,db2 port=6000,6001 dbname=shop", []string{"db1:6000", "db2:6001"}, 2}, // sslmode=prefer
		{"host=db1,db1 port=6000,6001 dbname=shop sslmode=allow", []string{"db1:6000", "db1:6001"}, 2},
		{"host=db1,db1 port=6000 dbname=shop sslmode=disable", []string{"db1:6000"}, 2}, // one twice is one
		{"host=/run/a,db2 dbname=shop sslmode=prefer target_session_attrs=primary", []string{"/run/a:5432", "db2:5432"}, 1},
	} {
		places := placesOf(t, ClusterConfig{DSN: c.dsn})
		var names []string
		for _, at := range places {
			names = append(names, at.name)
			conn := at.cfg.ConnConfig
			require.Equal(t, fmt.Sprintf("%s:%d", conn.Host, conn.Port), at.name)
			for _, way := range conn.Fallbacks {
				require.Equal(t, conn.Host, way.Host)
				require.Equal(t, conn.Port, way.Port)
			}
			require.Nil(t, conn.ValidateConnect)
			require.Equal(t, at.name+"/shop", at.cfg.Name)
		}
		require.Equal(t, c.want, names, c.dsn)
		require.Len(t, places[0].cfg.ConnConfig.Fallbacks, c.ways-1, c.dsn)
	}
}

func TestNodesOfAList(t *testing.T) {
	conn, err := pgx.ParseConfig("postgres://app@db2/shop")
	require.NoError(t, err)
	places := placesOf(t, ClusterConfig{Nodes: []Node{
		{Name: "one", DSN: "postgres://app:secret@db1/shop", Weight: 3}, {ConnConfig: conn},
	}})
	require.Equal(t, "one", places[0].name)
	require.Equal(t, 3, places[0].weight)
	require.Equal(t, "secret", places[0].cfg.ConnConfig.Password)
	require.Equal(t, "db2:5432", places[1].name)

	conn, err = pgx.ParseConfig("postgres://app@db1,db2/shop")
	require.NoError(t, err)
	require.Len(t, placesOf(t, ClusterConfig{Pool: Config{ConnConfig: conn}}), 2)
}

func TestClusterConfigReportsAllProblemsAndNoSecret(t *testing.T) {
	_, err := OpenCluster(context.Background(), ClusterConfig{
		Nodes: []Node{
			{Name: "one", DSN: "postgres://app:secret@db1:port/shop"},
			{Name: "two", DSN: "postgres://app:secret@db1,db2/shop", Weight: -1},
			{Name: "two", DSN: "postgres://app:secret@db3/shop"},
		},
		DSN:           "postgres://app:secret@db4/shop",
		Pool:          Config{DSN: "postgres://app:secret@db4/shop", Name: "pool", Guard: &spy{}, RequireServer: true, Max: -1},
		ProbeInterval: -1, ProbeTimeout: -1, MaxLag: -2, CatchUpWait: -2, NoFallback: true, PrimaryReads: true,
	})
	require.ErrorIs(t, err, core.ErrConfig)
	for _, want := range []string{
		"DSN: must not be set beside Nodes", "Nodes: 0", "invalid port", "has several hosts", "Nodes.Weight", "two: must be named once",
		"Pool.DSN", "Pool.Name", "Pool.Guard", "Pool.RequireServer", "ProbeInterval", "ProbeTimeout", "MaxLag", "CatchUpWait", "NoFallback", "Max: -1",
	} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, err.Error(), "secret")

	_, err = OpenCluster(context.Background(), ClusterConfig{})
	require.ErrorContains(t, err, "must be set, or Nodes, or Pool.ConnConfig")
	_, err = OpenCluster(context.Background(), ClusterConfig{DSN: "postgres://app@db1/shop", MaxLag: time.Second})
	require.ErrorContains(t, err, "twice ProbeInterval")
}

func TestClusterPrintsNoSecret(t *testing.T) {
	const dsn = "postgres://app:secret@127.0.0.1:1,127.0.0.1:2/shop"
	cfg := ClusterConfig{DSN: dsn, Name: "shop", Nodes: []Node{{Name: "n", DSN: dsn}}}
	c, err := OpenCluster(context.Background(), ClusterConfig{DSN: dsn, Name: "shop"})
	require.NoError(t, err)
	defer c.Close(context.Background())
	for _, v := range []any{cfg, &cfg, cfg.Nodes, cfg.Nodes[0], c, c.Inspect(), c.Stats(), c.Write()} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
			require.NotContains(t, fmt.Sprintf(verb, v), "secret")
		}
		b, _ := json.Marshal(v) // the errors of Stats are pgx's, and do not always marshal
		require.NotContains(t, string(b), "secret")
		if l, ok := v.(slog.LogValuer); ok {
			require.NotContains(t, l.LogValue().String(), "secret")
		}
	}
	require.Contains(t, fmt.Sprint(c), "shop")
}
