package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
)

// serve is the whole program but for its listener.
func serve(t *testing.T, a *app) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(a.server.handler(a.purchases, a.watchers))
	t.Cleanup(func() {
		close(a.closing)
		s.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return s
}

func do(t *testing.T, method, url, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(text)
}

func TestMalformedPurchasesAreProblemsAndTheShopKeepsSelling(t *testing.T) {
	a := startApp(t, 1)
	s := serve(t, a)
	for name, c := range map[string]struct {
		body   string
		status int
	}{
		"empty":           {``, 400},
		"not JSON":        {`product=lamp`, 400},
		"not an object":   {`[1]`, 400},
		"two objects":     {`{"product":"p","buyer":"b"}{"product":"p","buyer":"b"}`, 400},
		"unknown field":   {`{"product":"p","buyer":"b","price":0}`, 400},
		"no buyer":        {`{"product":"p"}`, 400},
		"blank buyer":     {`{"product":"p","buyer":"  "}`, 400},
		"wrong type":      {`{"product":1,"buyer":"b"}`, 400},
		"long buyer":      {`{"product":"p","buyer":"` + strings.Repeat("b", 101) + `"}`, 400},
		"huge":            {`{"product":"` + strings.Repeat("p", 5000) + `"}`, 400},
		"unknown product": {`{"product":"<script>","buyer":"b"}`, 404},
		"invalid text":    {`{"product":"a\u0000b","buyer":"b"}`, 400},
		"invalid buyer":   {fmt.Sprintf(`{"product":%q,"buyer":"a\u0000b"}`, a.server.product.ID), 400},
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := do(t, http.MethodPost, s.URL+"/buy", c.body)
			require.Equal(t, c.status, resp.StatusCode, body)
			require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))
			var problem struct {
				Status int
				Title  string
				Detail string
			}
			require.NoError(t, json.Unmarshal([]byte(body), &problem))
			require.Equal(t, c.status, problem.Status)
			require.NotEmpty(t, problem.Detail)
			require.NotContains(t, body, "script", "nothing of the request is echoed")
		})
	}
	resp, _ := do(t, http.MethodGet, s.URL+"/buy", "")
	require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
	resp, _ = do(t, http.MethodGet, s.URL+"/nothing", "")
	require.Equal(t, http.StatusNotFound, resp.StatusCode)

	buy := fmt.Sprintf(`{"product":%q,"buyer":"b"}`, a.server.product.ID)
	resp, body := do(t, http.MethodPost, s.URL+"/buy", buy)
	require.Equal(t, http.StatusCreated, resp.StatusCode, body)
	require.Contains(t, body, `"state":"paid"`)
	resp, _ = do(t, http.MethodPost, s.URL+"/buy", buy)
	require.Equal(t, http.StatusGone, resp.StatusCode)
	a.requireAudit(t)
}

func TestTooManyPurchasesAreThrottled(t *testing.T) {
	a := startApp(t, 2)
	one, err := limit.NewTokenBucket(limit.TokenBucketConfig{Rate: limit.PerHour(1), Burst: 1})
	require.NoError(t, err)
	a.purchases = one
	s := serve(t, a)
	buy := fmt.Sprintf(`{"product":%q,"buyer":"b"}`, a.server.product.ID)
	resp, _ := do(t, http.MethodPost, s.URL+"/buy", buy)
	require.Equal(t, http.StatusCreated, resp.StatusCode)
	resp, _ = do(t, http.MethodPost, s.URL+"/buy", buy)
	require.Equal(t, http.StatusTooManyRequests, resp.StatusCode)
	require.NotEmpty(t, resp.Header.Get("Retry-After"))
	a.requireStock(t, stock{Free: 1, Sold: 1})
}

func TestRefusedPurchaseSaysWhenToComeBack(t *testing.T) {
	a := startApp(t, 1)
	s := serve(t, a)
	for _, id := range []string{"alpha", "beta", "gamma"} {
		a.shop.pay.backends.SetHealthy(id, false)
	}
	resp, _ := do(t, http.MethodPost, s.URL+"/buy", fmt.Sprintf(`{"product":%q,"buyer":"b"}`, a.server.product.ID))
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Equal(t, "1", resp.Header.Get("Retry-After"))
}

func TestPageAndItsParts(t *testing.T) {
	s := serve(t, startApp(t, 3))
	for path, contentType := range map[string]string{
		"/":               "text/html",
		"/page/live.js":   "javascript",
		"/page/style.css": "text/css",
		"/state":          "application/json",
	} {
		resp, body := do(t, http.MethodGet, s.URL+path, "")
		require.Equal(t, http.StatusOK, resp.StatusCode, path)
		require.Contains(t, resp.Header.Get("Content-Type"), contentType)
		require.Contains(t, resp.Header.Get("Content-Security-Policy"), "default-src 'none'")
		require.NotEmpty(t, body)
	}
}

func TestStateShowsEveryComponent(t *testing.T) {
	a := startApp(t, 3)
	s := serve(t, a)
	_, body := do(t, http.MethodGet, s.URL+"/state", "")
	requireState(t, body)

	// The live page is the same, as a stream that goes through the guard.
	resp, err := http.Get(s.URL + "/live")
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	require.True(t, lines.Scan())
	data, found := strings.CutPrefix(lines.Text(), "data: ")
	require.True(t, found)
	requireState(t, data)
}

func requireState(t *testing.T, data string) {
	t.Helper()
	var got struct {
		Free       int
		Components []core.Report
	}
	require.NoError(t, json.Unmarshal([]byte(data), &got))
	require.Equal(t, 3, got.Free)
	kinds := map[string]int{}
	var count func([]core.Report)
	count = func(reports []core.Report) {
		for _, r := range reports {
			kinds[r.Kind]++
			count(r.Children)
		}
	}
	count(got.Components)
	require.Equal(t, map[string]int{
		"token_bucket": 1, "bulkhead": 1, "balancer": 1, "backend": 3, "circuit_breaker": 4, "sqlpool": 1, "retry_budget": 1,
	}, kinds)
}

func TestWatchersAreBounded(t *testing.T) {
	one, err := limit.NewConcurrency(limit.ConcurrencyConfig{Name: "watchers", Limit: 1})
	require.NoError(t, err)
	a := startApp(t, 1)
	a.watchers = one
	s := serve(t, a)
	first, err := http.Get(s.URL + "/live")
	require.NoError(t, err)
	defer first.Body.Close()
	second, _ := do(t, http.MethodGet, s.URL+"/live", "")
	require.Equal(t, http.StatusServiceUnavailable, second.StatusCode)
}
