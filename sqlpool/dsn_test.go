package sqlpool

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// bothForms are the connection strings that have the parameters, which are
// written as in a URL.
func bothForms(query string) []string {
	words := "host=127.0.0.1 port=1 dbname=shop user=app password=" + secret
	for pair := range strings.SplitSeq(query, "&") {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			continue
		}
		value, _ = url.PathUnescape(value)
		value = strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value)
		words += fmt.Sprintf(" %s='%s'", name, value)
	}
	return []string{"postgres://app:" + secret + "@127.0.0.1:1/shop?" + query, words}
}

// limitSet is the limits of a Config, which are what parameters can set.
type limitSet struct {
	MinIdle, Max, MaxWaiters, MaxDials                                               int
	MaxAge, MaxAgeJitter, MaxIdleTime, AcquireTimeout, UnavailableAfter, DialTimeout time.Duration
	Pooled                                                                           Pooled
}

func limitsOf(c Config) limitSet {
	return limitSet{
		c.MinIdle, c.Max, c.MaxWaiters, c.MaxDials,
		c.MaxAge, c.MaxAgeJitter, c.MaxIdleTime, c.AcquireTimeout, c.UnavailableAfter, c.DialTimeout,
		c.Pooled,
	}
}

func TestParametersInTheDSN(t *testing.T) {
	for query, want := range map[string]limitSet{
		"": {},
		"pool_max_conns=7&pool_min_idle_conns=3&pool_max_waiters=50&pool_max_dials=4": {Max: 7, MinIdle: 3, MaxWaiters: 50, MaxDials: 4},
		"pool_min_conns=2":                                                            {MinIdle: 2},
		"pool_min_conns=2&pool_min_idle_conns=4":                                      {MinIdle: 4},
		"pool_min_conns=4&pool_min_idle_conns=2":                                      {MinIdle: 4},
		"pool_min_conns=0":                                                            {MinIdle: Off},
		"pool_min_conns=0&pool_min_idle_conns=4":                                      {MinIdle: 4},
		"pool_min_conns=4&pool_min_idle_conns=0":                                      {MinIdle: 4},
		"pool_min_conns=0&pool_min_idle_conns=off":                                    {MinIdle: Off},
		"pool_max_waiters=off":                                                        {MaxWaiters: Off},
		"pool_max_conn_lifetime=1h30m":                                                {MaxAge: 90 * time.Minute},
		"pool_max_conn_lifetime=0":                                                    {MaxAge: Off},
		"pool_max_conn_lifetime=off":                                                  {MaxAge: Off},
		"pool_max_conn_lifetime=1h&pool_max_conn_lifetime_jitter=6m":                  {MaxAge: 66 * time.Minute, MaxAgeJitter: 6 * time.Minute},
		"pool_max_conn_lifetime=1m&pool_max_conn_lifetime_jitter=1h":                  {MaxAge: 61 * time.Minute, MaxAgeJitter: time.Hour},
		"pool_max_conn_lifetime=1h&pool_max_conn_lifetime_jitter=0":                   {MaxAge: time.Hour, MaxAgeJitter: Off},
		"pool_max_conn_lifetime=0&pool_max_conn_lifetime_jitter=1m":                   {MaxAge: Off},
		"pool_max_conn_lifetime_jitter=60s":                                           {MaxAge: 6 * time.Minute, MaxAgeJitter: time.Minute},
		"pool_max_conn_lifetime=2540400h&pool_max_conn_lifetime_jitter=2540400h":      {MaxAge: 1<<63 - 1, MaxAgeJitter: 2540400 * time.Hour},
		"pool_max_conn_idle_time=90s&pool_health_check_period=1m&pool_ping_timeout=0": {MaxIdleTime: 90 * time.Second},
		"pool_acquire_timeout=250ms&pool_dial_timeout=2s&pool_unavailable_after=3s":   {AcquireTimeout: 250 * time.Millisecond, DialTimeout: 2 * time.Second, UnavailableAfter: 3 * time.Second},
		"pool_acquire_timeout=off&pool_dial_timeout=off&pool_unavailable_after=off&pool_max_conn_idle_time=off": {AcquireTimeout: Off, DialTimeout: Off, UnavailableAfter: Off, MaxIdleTime: Off},
		"pool_pooled=yes":                  {Pooled: PooledYes},
		"pool_pooled=no":                   {Pooled: PooledNo},
		"pool_pooled=detect":               {},
		"pgbouncer=true":                   {Pooled: PooledYes},
		"pgbouncer=false":                  {},
		"pool_pooled=no&pgbouncer=true":    {Pooled: PooledNo},
		"pool_pooled=yes&pgbouncer=false":  {Pooled: PooledYes},
		"pool_max_conns=3&search_path=own": {Max: 3},
	} {
		for _, dsn := range bothForms(query) {
			given, err := pgx.ParseConfig(dsn)
			require.NoError(t, err)
			for _, cfg := range []Config{{DSN: dsn}, {ConnConfig: given}} {
				conn, err := cfg.parse()
				require.NoError(t, err, dsn)
				require.Equal(t, want, limitsOf(cfg), dsn)
				for name := range conn.RuntimeParams {
					require.NotContains(t, name, "pool", dsn)
					require.NotContains(t, name, "pgbouncer", dsn)
				}
				if strings.Contains(dsn, "search_path") {
					require.Equal(t, "own", conn.RuntimeParams["search_path"])
				}
			}
			if strings.Contains(query, "pool_max_conns") {
				require.Contains(t, given.RuntimeParams, "pool_max_conns", "the user's own is left alone")
			}
		}
	}
}

func TestFieldsWinOverTheDSN(t *testing.T) {
	for _, dsn := range bothForms("pool_max_conns=7&pool_min_conns=3&pool_max_waiters=50&pool_max_dials=4" +
		"&pool_max_conn_lifetime=1h&pool_max_conn_lifetime_jitter=1m&pool_max_conn_idle_time=1h" +
		"&pool_acquire_timeout=1h&pool_dial_timeout=1h&pool_unavailable_after=1h&pool_pooled=yes") {
		set := Config{
			Max: 9, MinIdle: Off, MaxWaiters: Off, MaxDials: 5, MaxAge: Off, MaxIdleTime: time.Second,
			AcquireTimeout: Off, DialTimeout: time.Minute, UnavailableAfter: Off, Pooled: PooledNo,
		}
		cfg := set
		cfg.DSN = dsn
		_, err := cfg.parse()
		require.NoError(t, err)
		require.Equal(t, limitsOf(set), limitsOf(cfg))
		cfg = Config{DSN: dsn, MaxAgeJitter: time.Second}
		_, err = cfg.parse()
		require.NoError(t, err)
		require.Equal(t, time.Hour, cfg.MaxAge)
		require.Equal(t, time.Second, cfg.MaxAgeJitter)
	}
}

func TestParametersAreInForce(t *testing.T) {
	p := open(t, Config{DSN: bothForms("pool_max_conns=7&pool_min_conns=0&pool_max_conn_lifetime=1h&pool_max_conn_lifetime_jitter=6m&pool_acquire_timeout=off")[0]})
	got := map[string]any{}
	for _, s := range p.Inspect().Settings {
		got[s.Name] = s.Value
	}
	require.Equal(t, 7, got["Max"])
	require.Equal(t, 0, got["MinIdle"])
	require.Equal(t, "1h6m0s", got["MaxAge"])
	require.Equal(t, "6m0s", got["MaxAgeJitter"])
	require.Equal(t, "off", got["AcquireTimeout"])
	require.Equal(t, "detect", got["Pooled"])
}

// All problems are reported at once, by the names of the parameters, and with
// nothing of the connection string but numbers.
func TestBadParametersAreReportedByName(t *testing.T) {
	bad := map[string]string{
		"pool_max_conns":                "0: must be at least 1",
		"pool_min_conns":                "-3: must be at least 0, or off",
		"pool_min_idle_conns":           "-1: must be at least 0, or off",
		"pool_max_waiters":              "0: must be at least 1, or off",
		"pool_max_dials":                "-1: must be at least 1",
		"pool_max_conn_lifetime":        "-1s: must be above 0, or off",
		"pool_max_conn_lifetime_jitter": "-1h0m0s: must be above 0, or off",
		"pool_max_conn_idle_time":       "0s: must be above 0, or off",
		"pool_health_check_period":      "-1s: must be above 0, or off",
		"pool_ping_timeout":             "-1s: must be above 0, or off",
		"pool_acquire_timeout":          "0s: must be above 0, or off",
		"pool_dial_timeout":             "-1ns: must be above 0, or off",
		"pool_unavailable_after":        "0s: must be above 0, or off",
	}
	var query, unread []string
	for name, problem := range bad {
		value, _, _ := strings.Cut(problem, ":")
		query = append(query, name+"="+value)
		unread = append(unread, name+"="+secret)
	}
	unread = append(unread, "pool_pooled="+secret, "pgbouncer="+secret, "pool_"+secret+"=1")
	for i, dsn := range append(bothForms(strings.Join(query, "&")), bothForms(strings.Join(unread, "&"))...) {
		given, err := pgx.ParseConfig(dsn)
		require.NoError(t, err)
		for source, cfg := range map[string]Config{"DSN": {DSN: dsn, AcquireTimeout: -2}, "ConnConfig": {ConnConfig: given, AcquireTimeout: -2}} {
			_, err = Open(t.Context(), cfg)
			require.ErrorIs(t, err, core.ErrConfig)
			require.ErrorContains(t, err, "sqlpool.Config.AcquireTimeout: ")
			for name, problem := range bad {
				if i >= 2 {
					problem = "is not a "
				}
				require.ErrorContains(t, err, "sqlpool.Config."+source+": "+name+": "+problem)
			}
			if i >= 2 {
				require.ErrorContains(t, err, source+": pool_pooled: must be")
				require.ErrorContains(t, err, source+": pgbouncer: must be")
				require.ErrorContains(t, err, source+": has a parameter that begins with pool_")
			}
			require.NotContains(t, err.Error(), secret)
			require.NotContains(t, err.Error(), "app")
			require.NotContains(t, deep(err), secret)
		}
	}
}

// What only two limits together make wrong is reported under the name of the one
// that is at fault, too.
func TestMinimumAboveMaximumIsReportedByName(t *testing.T) {
	for query, cfg := range map[string]Config{
		"pool_min_conns=8&pool_max_conns=3":      {},
		"pool_min_conns=8&pool_min_idle_conns=2": {Max: 3},
	} {
		cfg.DSN = bothForms(query)[0]
		_, err := Open(t.Context(), cfg)
		require.EqualError(t, err, "sqlpool.Config.DSN: pool_min_conns: 8: must not be above Max 3")
	}
	_, err := Open(t.Context(), Config{DSN: bothForms("pool_min_idle_conns=8")[1], Max: 3})
	require.EqualError(t, err, "sqlpool.Config.DSN: pool_min_idle_conns: 8: must not be above Max 3")
	_, err = Open(t.Context(), Config{DSN: bothForms("pool_max_conns=3")[1], MinIdle: 4})
	require.EqualError(t, err, "sqlpool.Config.MinIdle: 4: must not be above Max 3")
}

// FuzzParameters reads any value of any parameter, in both forms of the
// connection string, and compares with pgxpool where that has the parameter.
func FuzzParameters(f *testing.F) {
	names := []string{
		"pool_max_conns", "pool_min_conns", "pool_min_idle_conns", "pool_max_conn_lifetime",
		"pool_max_conn_lifetime_jitter", "pool_max_conn_idle_time", "pool_health_check_period", "pool_ping_timeout",
		"pool_acquire_timeout", "pool_max_waiters", "pool_max_dials", "pool_dial_timeout", "pool_unavailable_after",
		"pool_pooled", "pgbouncer", "pool_unknown",
	}
	for i := range names {
		for _, value := range []string{
			"", "0", "1", "-1", "20", "off", "Off", "yes", "no", "detect", "true", "false", "30s", "1h30m", "0s", "-5m", "1e3", "0x10",
			"2147483647", "2147483648", "99999999999999999999", "9223372036854775807ns", "2562047h47m17s", "1.5s", " 1", "1 ", "'", `\`, "+5", "s3cr3t", "1\x00", "µs",
		} {
			f.Add(uint8(i), value)
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, value string) {
		name := names[int(which)%len(names)]
		forms := bothForms(name + "=" + strings.ReplaceAll(url.QueryEscape(value), "+", "%20"))
		var limits []limitSet
		var texts []string
		for _, dsn := range forms {
			cfg := Config{DSN: dsn}
			conn, err := cfg.parse()
			limits, texts = append(limits, limitsOf(cfg)), append(texts, fmt.Sprint(err))
			if err != nil {
				require.ErrorIs(t, err, core.ErrConfig)
				require.NotContains(t, strings.ReplaceAll(err.Error(), value, ""), secret)
				continue
			}
			for left := range conn.RuntimeParams {
				require.False(t, strings.HasPrefix(left, "pool_") || left == "pgbouncer", left)
			}
			require.NoError(t, cfg.limitProblems(nil))
			theirs, err := pgxpool.ParseConfig(dsn)
			if err != nil {
				continue // what only we know of, as off
			}
			switch name {
			case "pool_max_conns":
				require.EqualValues(t, theirs.MaxConns, cfg.Max)
			case "pool_min_conns":
				require.EqualValues(t, theirs.MinConns, max(cfg.MinIdle, 0))
			case "pool_min_idle_conns":
				require.EqualValues(t, theirs.MinIdleConns, max(cfg.MinIdle, 0))
			case "pool_max_conn_lifetime":
				require.Equal(t, theirs.MaxConnLifetime, max(cfg.MaxAge, 0))
			case "pool_max_conn_lifetime_jitter":
				require.Equal(t, theirs.MaxConnLifetimeJitter, max(cfg.MaxAgeJitter, 0))
			case "pool_max_conn_idle_time":
				require.Equal(t, theirs.MaxConnIdleTime, cfg.MaxIdleTime)
			}
		}
		require.Equal(t, limits[0], limits[1])
		if !slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, "pgx accepts") }) {
			require.Equal(t, texts[0], texts[1])
		}
	})
}
