package sqlpool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/pool"
	"github.com/surgewall/surgewall/core/retry"
)

// Off, as the value of a field of Config that allows it, switches off what the
// field limits. A field left at 0 has its default.
const Off = pool.Off

// Config configures a Pool. It needs a DSN or a ConnConfig. It prints, logs and
// marshals without the password, but not from within an unexported field of
// another struct, where package fmt asks no methods.
type Config struct {
	// DSN is the connection string, a URL or keywords and values, with all that
	// pgx.ParseConfig accepts. It is parsed once and never printed.
	DSN string

	// ConnConfig is used instead of a DSN, for what a DSN cannot say: a tracer,
	// TLS, types. It must come from pgx.ParseConfig, and is copied.
	ConnConfig *pgx.ConnConfig

	// Name names the pool in errors, events and reports. Default: what
	// OpenTelemetry prescribes, "host:port/database".
	Name string

	// MinIdle is how many idle connections are kept ready above those in use.
	// Default 5, or Max if that is less; Off: none.
	MinIdle int

	// Max is how many connections there may be. Default 20.
	Max int

	// MaxAge is how long a connection lives, less a random part of up to a
	// tenth. Default 300 s; Off: for ever.
	MaxAge time.Duration

	// MaxIdleTime is how long a connection beyond MinIdle may stay idle.
	// Default 60 s; Off: for ever.
	MaxIdleTime time.Duration

	// AcquireTimeout is how long a caller waits for a connection at most. It is
	// no part of the query's context. Default 10 s; Off: as long as ctx allows.
	AcquireTimeout time.Duration

	// MaxWaiters is how many callers may wait at once; the next is refused with
	// pool.ErrOverloaded. Default 100 for each of Max;
	// Off: no bound but AcquireTimeout.
	MaxWaiters int

	// UnavailableAfter is how long dials must have been failing, with no
	// connection alive, before callers are told pool.ErrUnavailable rather than
	// left waiting. Default 1 s; Off: never.
	UnavailableAfter time.Duration

	// MaxDials is how many connections are dialled at once. Default 2.
	MaxDials int

	// DialTimeout is how long one dial may take, login included; a
	// connect_timeout in the DSN applies to each host as well. Default 5 s;
	// Off: no limit.
	DialTimeout time.Duration

	// Guard is asked once for each acquisition of a connection, before it: for
	// a statement or a transaction, and never inside a transaction. It learns
	// how the server fared: see Outcome; and that the pool is unavailable, since
	// no connection can be dialled, is a core.Failure. Default nil: no guard.
	Guard core.Guard

	// DialGuard is asked before each dial, such as a breaker or a limit for all
	// pools of a server. It learns how the server fared: see Outcome. So a login
	// that the server refuses, as for a wrong password, does not keep other
	// pools from dialling. Default nil: no guard.
	DialGuard core.Guard

	// Observer hears the pool's events: see pool.Config. Default nil: nobody.
	Observer core.Observer

	// StatementTimeout is how long a statement may take, from when it is sent
	// until its rows, row or results are closed: the wait for a connection is no
	// part of it. It is for all of Pool's own methods, Conn's, and those of
	// transactions, BEGIN and COMMIT too, but not for CopyFrom. A batch counts as
	// one. What is late is cut off as by the end of its context, and its error
	// is ErrStatementTimeout; a COMMIT's is ErrCommitUnknown, too. The
	// server has a limit of its own, which a DSN sets by
	// "options=-cstatement_timeout=2s": set both, the server's a little lower,
	// and the connection survives. Default, and Off: no limit.
	StatementTimeout time.Duration

	// TxTries is how many times InTx runs a transaction at most, the first
	// included. Default 8; Off: once.
	TxTries int

	// TxBackoff is the pause of InTx before each retry. Default: a Base of 5 ms
	// and a Cap of 250 ms.
	TxBackoff retry.Backoff

	// RetryBudget bounds the retries of InTx, and of statements that found
	// their connection dead. What succeeds on the pool funds it. Share one
	// among all who use the same server. Default: one of this Pool's own, of
	// retry's defaults, named after the Pool.
	RetryBudget *retry.Budget

	// RequireServer makes Open wait for a connection, and fail without one.
	// Default: Open waits for nothing.
	RequireServer bool
}

// parse is the ConnConfig that c means, and all problems of c at once.
func (c *Config) parse() (*pgx.ConnConfig, error) {
	p := core.Check("sqlpool.Config")
	var conn *pgx.ConnConfig
	switch {
	case c.DSN != "" && c.ConnConfig != nil:
		p.If(true, "DSN", nil, "must not be set beside ConnConfig")
	case c.ConnConfig != nil:
		// What ParseConfig made has a dialer; pgx panics on anything else.
		made := c.ConnConfig.DialFunc != nil && c.ConnConfig.LookupFunc != nil
		p.If(!made, "ConnConfig", nil, "must come from pgx.ParseConfig")
		if made {
			conn = c.ConnConfig.Copy()
		}
	case c.DSN == "":
		p.If(true, "DSN", nil, "must be set, or ConnConfig")
	default:
		var err error
		conn, err = pgx.ParseConfig(c.DSN)
		switch {
		case err != nil:
			p.If(true, "DSN", nil, dsnProblem(err))
			conn = nil
		case strayAt(c.DSN, conn):
			p.If(true, "DSN", nil, "has an @ in its host or database: in a user, password or database it is written %40, and / as %2F")
		}
		for _, name := range poolParams {
			if conn != nil && conn.RuntimeParams[name] != "" {
				p.If(true, "DSN", nil, "has "+name+", which the server does not know: use the fields of Config")
			}
		}
	}
	p.If(c.StatementTimeout < Off, "StatementTimeout", c.StatementTimeout, "must not be negative")
	p.If(c.TxTries < Off, "TxTries", c.TxTries, "must not be negative")
	return conn, errors.Join(p.Err(), c.limitProblems())
}

// poolParams are what pgxpool takes out of a connection string. To pgx itself
// they are parameters of the server, which then refuses every connection.
var poolParams = []string{
	"pool_max_conns",
	"pool_min_conns",
	"pool_min_idle_conns",
	"pool_max_conn_lifetime",
	"pool_max_conn_lifetime_jitter",
	"pool_max_conn_idle_time",
	"pool_health_check_period",
}

// dsnHints are what pgx may say of a connection string. They are constants: an
// error of pgx's quotes the string, and what it masks as a password is a guess.
var dsnHints = []string{
	"failed to parse as URL",
	"failed to parse as keyword/value",
	"invalid port",
	"could not match",
	"sslmode is invalid",
	"failed to configure TLS",
	"failed to read service",
	"invalid sslcertmode",
	"invalid connect_timeout",
	"unknown target_session_attrs value",
	"invalid min_protocol_version",
	"invalid max_protocol_version",
	"unknown channel_binding value",
	"invalid require_auth",
	"invalid default_query_exec_mode",
	"cannot parse statement_cache_capacity",
	"cannot parse description_cache_capacity",
}

func dsnProblem(err error) string {
	const problem = "is not a connection string that pgx accepts"
	text := err.Error()
	for _, hint := range dsnHints {
		if strings.Contains(text, hint) {
			return problem + " (" + hint + "); it is withheld as it may hold a password"
		}
	}
	return problem + "; it is withheld as it may hold a password"
}

// strayAt finds a connection string that was cut in the wrong place, since the
// password holds an @ or a / that is not escaped: the rest of the password is
// in what every error would print. A host that begins with @ is a socket's name.
func strayAt(dsn string, conn *pgx.ConnConfig) bool {
	return strings.LastIndexByte(conn.Host, '@') > 0 ||
		strings.Contains(dsn, "://") && !strings.Contains(dsn, "%40") && strings.Contains(conn.Database, "@")
}

// limitProblems are the problems of the fields that core/pool checks.
func (c *Config) limitProblems() error {
	cfg := c.poolConfig(nil, "")
	cfg.Dial = (&dialer{}).dial // set later; not a field of ours
	err := cfg.Validate()
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	var all []error
	for _, err := range joined.Unwrap() {
		if problem, ok := errors.AsType[*core.ConfigError](err); ok {
			ours := *problem
			ours.Config = "sqlpool.Config"
			err = &ours
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

func (c *Config) poolConfig(d *dialer, name string) pool.Config[*conn] {
	cfg := pool.Config[*conn]{
		Name:             name,
		Close:            closeConn,
		Check:            pingConn,
		Valid:            (*conn).valid,
		MinIdle:          c.MinIdle,
		Max:              c.Max,
		MaxAge:           c.MaxAge,
		MaxIdleTime:      c.MaxIdleTime,
		AcquireTimeout:   c.AcquireTimeout,
		MaxWaiters:       c.MaxWaiters,
		UnavailableAfter: c.UnavailableAfter,
		MaxDials:         c.MaxDials,
		DialTimeout:      c.DialTimeout,
		DialGuard:        guardDials(c.DialGuard),
		Observer:         c.Observer,
	}
	if d != nil {
		cfg.Dial = d.dial
	}
	return cfg
}

// address is where conn connects to, as OpenTelemetry names a pool.
func address(conn *pgx.ConnConfig) string {
	return net.JoinHostPort(conn.Host, strconv.Itoa(int(conn.Port))) + "/" + conn.Database
}

// String is the Config without the connection string.
func (c Config) String() string {
	dsn := "unset"
	if c.DSN != "" || c.ConnConfig != nil {
		dsn = "withheld"
	}
	return fmt.Sprintf("sqlpool.Config{Name: %q, DSN: %s, MinIdle: %d, Max: %d}", c.Name, dsn, c.MinIdle, c.Max)
}

// Format prints String for every verb: without it, some would print the fields.
func (c Config) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, c.String()) }

// LogValue makes slog log String.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON marshals String.
func (c Config) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }
