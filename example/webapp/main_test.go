package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

func TestLoad(t *testing.T) {
	t.Setenv("DATABASE_URL", pgtest.DSN(t))
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-load", "1000"}, &out, io.Discard), out.String())
	for _, want := range []string{
		"using the PostgreSQL server of DATABASE_URL", "throttled (429)", "p99 of sales", "breaker trips",
		"circuit_breaker trip", "rate_limiting reject", "audit: every unit sold at most once, every order charged exactly once",
	} {
		require.Contains(t, out.String(), want)
	}
	require.NotContains(t, out.String(), "postgres://")
}

// A second load on the same database sells units of its own.
func TestLoadTwiceOnOneDatabase(t *testing.T) {
	t.Setenv("DATABASE_URL", pgtest.DSN(t))
	for range 2 {
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), []string{"-load", "20"}, &out, io.Discard), out.String())
		require.Regexp(t, `sold \(201\) +16\n`, out.String())
	}
}

func TestServesUntilToldToEnd(t *testing.T) {
	t.Setenv("DATABASE_URL", pgtest.DSN(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, lines := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"-addr", "127.0.0.1:0"}, lines, io.Discard)
		lines.Close()
	}()
	text := make(chan string, 1)
	url := make(chan string, 1)
	go func() {
		var all strings.Builder
		buf := make([]byte, 4096)
		for {
			n, err := out.Read(buf)
			all.Write(buf[:n])
			if _, rest, found := strings.Cut(all.String(), "shop: "); found {
				if line, _, whole := strings.Cut(rest, "\n"); whole && len(url) == 0 {
					select {
					case url <- line:
					default:
					}
				}
			}
			if err != nil {
				text <- all.String()
				return
			}
		}
	}()
	base := <-url
	live, err := http.Get(base + "/live") // a page that stays open must not hold up the end
	require.NoError(t, err)
	defer live.Body.Close()
	cancel()
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(20 * time.Second): // real time: a hang is what this looks for
		t.Fatal("did not drain")
	}
	require.Contains(t, <-text, "draining")
	http.DefaultClient.CloseIdleConnections()
}

func TestBadArguments(t *testing.T) {
	for args, want := range map[string]string{
		"-load -1":      "-load -1: must be 0 to 100000",
		"-load 1000000": "-load 1000000: must be 0 to 100000",
		"-stock -5":     "-stock -5: must be 0 to 1000000",
		"now":           `unexpected argument "now"`,
		"-load x":       `invalid value "x" for flag -load: parse error`,
	} {
		require.EqualError(t, run(t.Context(), strings.Fields(args), io.Discard, io.Discard), want)
	}
}

func TestBadDatabaseURLIsReportedWithoutItsPassword(t *testing.T) {
	t.Setenv("DATABASE_URL", "postgres://u:hunter2@host:notaport/db")
	err := run(t.Context(), []string{"-load", "1"}, io.Discard, io.Discard)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "hunter2")
}

func TestQuantile(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	var sorted []time.Duration
	require.Zero(t, quantile(sorted, 0.5))
	for i := range 100 {
		sorted = append(sorted, ms(i+1))
	}
	require.Equal(t, ms(51), quantile(sorted, 0.50))
	require.Equal(t, ms(100), quantile(sorted, 0.99))
	require.Equal(t, ms(7), quantile([]time.Duration{ms(7)}, 0.99))
}
