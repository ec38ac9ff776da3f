package surgewall_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/core/limit"
	"github.com/surgewall/surgewall/httpmw"
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

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// The example in the README is the one above.
func TestReadme(t *testing.T) {
	source, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(source), "\t// readme: begin\n")
	code, _, found := strings.Cut(rest, "\t// readme: end\n")
	require.True(t, found)
	var block strings.Builder
	for line := range strings.Lines(code) {
		block.WriteString(strings.TrimPrefix(line, "\t"))
	}
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	require.Contains(t, string(readme), "```go\n"+block.String()+"```\n")
}
