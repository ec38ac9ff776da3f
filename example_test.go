package surgewall_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/core/limit"
	"github.com/surgewall/surgewall/core/pool"
	"github.com/surgewall/surgewall/httpmw"
	"github.com/surgewall/surgewall/sqlpool"
	"github.com/surgewall/surgewall/transport"
)

func Example() {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "in stock") }))
	defer upstream.Close()
	// readme: begin
	breaker, err := circuit.New(circuit.Config{Name: "stock"})
	check(err)
	limiter, err := limit.NewTokenBucket(limit.TokenBucketConfig{Name: "shop", Rate: limit.PerSecond(100), Burst: 20})
	check(err)
	client := &http.Client{Transport: transport.Guard(breaker, nil)}
	shop := httpmw.Guard(limiter)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, upstream.URL, nil)
		check(err)
		resp, err := client.Do(req) // fails at once while the breaker is open
		if err != nil {
			httpmw.Refuse(w, r, err) // 503; with Retry-After if the breaker refused
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}))
	// readme: end
	server := httptest.NewServer(shop)
	defer server.Close()
	for range 2 {
		resp, err := http.Get(server.URL)
		check(err)
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Println(resp.StatusCode, string(body))
	}
	fmt.Println(breaker.State(), limiter.Stats().Admitted)
	// Output:
	// 200 in stock
	// 200 in stock
	// closed 2
}

func Example_perClient() {
	shop := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "welcome") })
	// readme: begin
	perClient, err := limit.NewKeyed(limit.KeyedConfig[netip.Addr]{
		Name:  "client",
		Limit: limit.TokenBucketConfig{Rate: limit.PerMinute(10), Burst: 2},
	})
	check(err)
	limited, err := httpmw.RateLimit(httpmw.RateLimitConfig[netip.Addr]{
		Guard:     perClient,
		Key:       httpmw.PeerIP, // behind proxies: httpmw.ForwardedForIP and others
		Headers:   httpmw.HeadersDraft11,
		SkipPaths: []string{"/healthz"},
	})
	check(err)
	handler := limited(shop)
	// readme: end
	for range 3 {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)
		handler.ServeHTTP(w, r)
		fmt.Println(w.Code, w.Header().Get("RateLimit-Policy"))
	}
	// Output:
	// 200 "client";q=2;w=12
	// 200 "client";q=2;w=12
	// 429 "client";q=2;w=12
}

// It needs a server, so it is compiled and not run.
func Example_database() {
	ctx, id := context.Background(), 7
	// readme: begin
	db, err := sqlpool.Open(ctx, sqlpool.Config{
		DSN:            os.Getenv("DATABASE_URL"), // pgxpool's pool_max_conns and the like may be in it
		MinIdle:        2,
		Max:            20,
		AcquireTimeout: 500 * time.Millisecond, // apart from the query's own context
	})
	check(err)
	defer db.Close(ctx)
	err = db.InTx(ctx, pgx.TxOptions{IsoLevel: pgx.Serializable}, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "update item set stock = stock - 1 where id = $1 and stock > 0", id)
		return err // a conflict with another transaction runs the function again, within a budget
	})
	if errors.Is(err, pool.ErrUnavailable) {
		// the database cannot be reached; the last dial's error is in err, too
	}
	// readme: end
	if errors.Is(err, sqlpool.ErrCommitUnknown) {
		fmt.Println("look before you sell it again")
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// The examples in the README are those above.
func Example_perHost() {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer upstream.Close()
	// readme: begin
	hosts, err := circuit.NewGroup(circuit.GroupConfig[transport.Origin]{
		Config: circuit.Config{
			Name:             "hosts",
			FailureThreshold: 5,  // failures in a row open it, or
			FailurePercent:   50, // half of the calls of 10 s, or
			SlowPercent:      80, // most of them being slow
			SlowCall:         2 * time.Second,
			OpenFor:          5 * time.Second,
			OpenGrowth:       2, // 10 s next time, then 20
			RampFor:          30 * time.Second,
		},
	})
	check(err)
	perHost, err := transport.GuardBy(hosts, transport.OriginOf, nil)
	check(err)
	client := &http.Client{Transport: perHost}
	// readme: end
	for range 6 {
		resp, err := client.Get(upstream.URL)
		if errors.Is(err, circuit.ErrOpen) {
			fmt.Println("not sent")
			continue
		}
		check(err)
		resp.Body.Close()
		fmt.Println(resp.StatusCode)
	}
	// Output:
	// 502
	// 502
	// 502
	// 502
	// 502
	// not sent
}

func TestReadme(t *testing.T) {
	source, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	blocks := strings.Split(string(source), "\t// readme: begin\n")[1:]
	require.Len(t, blocks, 4)
	for _, code := range blocks {
		code, _, found := strings.Cut(code, "\t// readme: end\n")
		require.True(t, found)
		var block strings.Builder
		for line := range strings.Lines(code) {
			block.WriteString(strings.TrimPrefix(line, "\t"))
		}
		require.Contains(t, string(readme), "```go\n"+block.String()+"```\n")
	}
}
