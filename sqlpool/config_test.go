package sqlpool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/pool"
)

const secret = "s3cr3t"

func TestBadDSNIsReportedWithoutThePassword(t *testing.T) {
	for _, dsn := range []string{
		"postgres://app:s3cr3t@localhost:port/shop",
		"postgres://app:x@s3cr3t@localhost/shop",
		"postgres://app:12/s3cr3t@localhost/shop",
		"postgres://app:12/s3cr3t%40x@localhost/shop", // another @ of the password is escaped
		"postgres://app:/s3cr3t%40x@localhost/shop",
		"postgres://app:%zzs3cr3t@localhost/shop",
		"postgres://app:s3cr3t/@localhost:5432/shop",
		"postgres://app:s3cr3t@local host/shop",
		"postgres://app:s3cr3t@localhost/shop?sslmode=s3cr3t",
		"postgres://app@localhost/shop?password=s3cr3t&sslmode=nonsense",
		"postgres://app:s3cr3t@localhost:99999999/shop",
		"postgres://app:s3cr3t@localhost/shop?connect_timeout=s3cr3t",
		"postgres://app:s3cr3t@localhost/shop?target_session_attrs=s3cr3t",
		"postgres://app:s3cr3t@localhost/shop?default_query_exec_mode=s3cr3t",
		"postgres://app:s3cr3t@localhost/shop?sslrootcert=/s3cr3t&sslmode=verify-full",
		"postgres://app:s3cr3t@[::1/shop",
		"postgres://app:s3 cr3t\x7f@localhost/shop",
		"host=localhost user=app password='s3cr3t",
		"host=localhost user=app password = s3cr3t port=x",
		"host=localhost user=app password=s3cr3t sslmode=nonsense",
		"s3cr3t",
		"app:s3cr3t@localhost/shop",
		"mysql://app:s3cr3t@localhost/shop",
		"postgres://app@localhost/shop?pool_max_conn_lifetime=s3cr3t",
		"postgres://app@localhost/shop?pgbouncer=s3cr3t",
		"host=localhost user=app password=two pool_words=s3cr3t",
	} {
		_, err := Open(t.Context(), Config{DSN: dsn, Max: -1})
		require.ErrorIs(t, err, core.ErrConfig, dsn)
		require.ErrorContains(t, err, "sqlpool.Config.DSN: ", dsn)
		require.ErrorContains(t, err, "sqlpool.Config.Max: -1: ", dsn)
		for _, text := range []string{
			err.Error(), fmt.Sprintf("%+v %#v %q", err, err, err), string(mustJSON(t, err)), deep(err),
		} {
			require.NotContains(t, text, secret, dsn)
			require.NotContains(t, text, "cr3t", dsn)
		}
	}
}

// deep is the text of every error in the chain.
func deep(err error) string {
	if err == nil {
		return ""
	}
	text := fmt.Sprintf("%#v", err)
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			text += deep(e)
		}
	}
	return text + deep(errors.Unwrap(err))
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return b
}

func TestConfigAndPoolPrintNoPassword(t *testing.T) {
	cfg := Config{
		DSN: "postgres://app:s3cr3t@127.0.0.1:1/shop?pool_max_waiters=20", Max: 3, MinIdle: Off, Pooled: PooledYes,
		BeforeConnect: func(_ context.Context, cfg *pgx.ConnConfig) error {
			cfg.Password = secret + "too"
			return nil
		},
		AfterConnect: func(context.Context, *pgx.Conn) error { return nil },
	}
	p := open(t, cfg)
	var log strings.Builder
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	logger.Info("x", "config", cfg, "pool", p, "pointer", &cfg)
	conn, err := pgx.ParseConfig(cfg.DSN)
	require.NoError(t, err)
	other := Config{ConnConfig: conn}
	texts := []string{log.String(), string(mustJSON(t, cfg)), string(mustJSON(t, &cfg)), string(mustJSON(t, p)), p.Name()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{cfg, &cfg, p, other, []Config{cfg}, map[string]any{"a": cfg, "b": p}, struct{ C Config }{cfg}} {
			texts = append(texts, fmt.Sprintf(verb, v))
		}
	}
	_, err = p.Exec(t.Context(), "select 1") // refused: nothing listens on port 1
	require.ErrorIs(t, err, pool.ErrUnavailable)
	failed, ok := errors.AsType[*pgconn.ConnectError](err)
	require.True(t, ok)
	require.Empty(t, failed.Config.Password)
	require.Equal(t, "app", failed.Config.User)
	texts = append(texts, err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%+v", p.Inspect()))
	for _, text := range texts {
		require.NotContains(t, text, secret)
		require.NotContains(t, text, "733363723374") // in hexadecimal
	}
	require.Equal(t, "127.0.0.1:1/shop", p.Name())
}

func TestConfigReportsAllProblems(t *testing.T) {
	_, err := Open(t.Context(), Config{
		MinIdle: -2, Max: -2, MaxAge: -2, MaxAgeJitter: -2, MaxIdleTime: -2, AcquireTimeout: -2, MaxWaiters: -2,
		UnavailableAfter: -2, MaxDials: -2, DialTimeout: -2,
	})
	require.ErrorIs(t, err, core.ErrConfig)
	for _, field := range []string{
		"DSN", "MinIdle", "Max", "MaxAge", "MaxAgeJitter", "MaxIdleTime", "AcquireTimeout", "MaxWaiters", "UnavailableAfter", "MaxDials", "DialTimeout",
	} {
		require.ErrorContains(t, err, "sqlpool.Config."+field+": ")
	}
	require.NotContains(t, err.Error(), "pool.Config.Dial:")
	require.NotContains(t, err.Error(), "\npool.Config")

	_, err = Open(t.Context(), Config{ConnConfig: &pgx.ConnConfig{}})
	require.ErrorContains(t, err, "sqlpool.Config.ConnConfig: must come from pgx.ParseConfig")
	conn, err := pgx.ParseConfig("postgres://localhost/shop")
	require.NoError(t, err)
	_, err = Open(t.Context(), Config{ConnConfig: conn, DSN: "postgres://localhost/shop"})
	require.ErrorContains(t, err, "must not be set beside ConnConfig")
}

func TestOpenNeedsNoServer(t *testing.T) {
	start := time.Now()
	p := open(t, Config{DSN: "postgres://app@127.0.0.1:1/shop"})
	require.Less(t, time.Since(start), 5*time.Second) // real time: it does not wait for dials to fail
	require.NotNil(t, p.DB())
}

func TestRequiredServerIsMissed(t *testing.T) {
	p, err := Open(t.Context(), Config{DSN: "postgres://app@127.0.0.1:1/shop", RequireServer: true})
	require.Nil(t, p)
	require.ErrorIs(t, err, pool.ErrUnavailable)
	require.ErrorContains(t, err, "connection refused")
}
