package sqlpool_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/sqlpool"
)

// It needs servers, so it is compiled and not run.
func ExampleOpenCluster() {
	ctx := context.Background()
	// DATABASE_URL is "postgres://app@db1,db2,db3/shop". Which of the hosts is the
	// primary is found out, and followed.
	c, err := sqlpool.OpenCluster(ctx, sqlpool.ClusterConfig{
		DSN:  os.Getenv("DATABASE_URL"),
		Pool: sqlpool.Config{MinIdle: 2, Max: 10}, // for each node
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close(ctx)

	if _, err := c.Write().Exec(ctx, "update item set stock = stock - 1 where id = $1", 7); err != nil {
		fmt.Println(err)
		return
	}
	var stock int
	err = c.Read(sqlpool.WithinLag(5*time.Second)).QueryRow(ctx, "select stock from item where id = $1", 7).Scan(&stock)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("in stock, as of a few seconds ago:", stock)
}

// A user sees what he has written, whichever process serves his next request: the
// token travels with him.
func ExampleCluster_Token() {
	var c *sqlpool.Cluster // from OpenCluster
	const cookie = "seen"
	http.HandleFunc("POST /order", func(w http.ResponseWriter, r *http.Request) {
		if _, err := c.Write().Exec(r.Context(), "insert into purchase (item) values ($1)", 7); err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		// After the commit. If this fails, the order stands all the same.
		if token, err := c.Token(r.Context()); err == nil {
			http.SetCookie(w, &http.Cookie{Name: cookie, Value: token.String(), HttpOnly: true})
		}
	})
	http.HandleFunc("GET /orders", func(_ http.ResponseWriter, r *http.Request) {
		var seen sqlpool.Token // of nothing, if there is no cookie or not ours
		if sent, err := r.Cookie(cookie); err == nil {
			seen, _ = sqlpool.ParseToken(sent.Value)
		}
		rows, err := c.Read(sqlpool.After(seen)).Query(r.Context(), "select item from purchase")
		if err == nil {
			rows.Close()
		}
	})
}

func ExampleParseToken() {
	token, err := sqlpool.ParseToken("5C0FFEE5-1-16B3748")
	fmt.Println(token, err)
	_, err = sqlpool.ParseToken("not ours")
	fmt.Println(errors.Is(err, sqlpool.ErrToken))
	// Output:
	// 5C0FFEE5-1-16B3748 <nil>
	// true
}

func ExampleCluster_Write() {
	ctx := context.Background()
	// Nothing listens there.
	c, err := sqlpool.OpenCluster(ctx, sqlpool.ClusterConfig{
		Name:                 "orders",
		DSN:                  "postgres://app:secret@127.0.0.1:1,127.0.0.1:2/shop",
		RefuseWithoutPrimary: true,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close(ctx)
	_, err = c.Write().Exec(ctx, "update item set stock = 0")
	var refused *core.Rejection
	fmt.Println(errors.As(err, &refused), errors.Is(err, sqlpool.ErrNoPrimary))
	fmt.Println(refused.Guard, refused.Reason)
	fmt.Println(refused.Detail)
	// Output:
	// true true
	// orders no_backend
	// nodes 2, primary 0, replicas 0, lagging 0, old primaries 0, unreachable 2, not asked 0
}

// A breaker for each node: while it is open, reads go to other nodes.
func ExampleClusterConfig_guard() {
	ctx := context.Background()
	breakers, err := circuit.NewGroup(circuit.GroupConfig[string]{})
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := sqlpool.OpenCluster(ctx, sqlpool.ClusterConfig{
		Nodes: []sqlpool.Node{
			{Name: "zurich", DSN: "postgres://app@127.0.0.1:1/shop", Weight: 2},
			{Name: "basel", DSN: "postgres://app@127.0.0.1:2/shop"},
		},
		Guard: func(node string) core.Guard { return breakers.Get(node) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close(ctx)
	for _, node := range c.Stats().Nodes {
		fmt.Println(node.Name)
	}
	// Output:
	// zurich
	// basel
}

// A page that may show what was there a while ago is read wherever there is room.
// It needs servers, so it is compiled and not run.
func ExampleAny() {
	ctx := context.Background()
	c, err := sqlpool.OpenCluster(ctx, sqlpool.ClusterConfig{DSN: os.Getenv("DATABASE_URL")})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close(ctx)
	var items int
	err = c.Read(sqlpool.Any()).QueryRow(ctx, "select count(*) from item").Scan(&items)
	fmt.Println(items, err)
}
