package sqlpool

import (
	"cmp"
	"context"
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
	"github.com/jackc/pgx/v5/pgconn"

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
//
// The connection string, be it DSN or the one that ConnConfig was parsed from,
// may hold parameters of the pool, which are taken out before the server sees
// them. A field that is set wins over the parameter, and the parameter over the
// default. The first seven are those of pgx's pool, and mean the same:
//
//	pool_max_conns                 Max
//	pool_min_conns                 MinIdle, see below
//	pool_min_idle_conns            MinIdle
//	pool_max_conn_lifetime         MaxAge; 0 is off
//	pool_max_conn_lifetime_jitter  MaxAge and MaxAgeJitter, see below
//	pool_max_conn_idle_time        MaxIdleTime
//	pool_health_check_period       checked, and not needed: nor is pool_ping_timeout
//	pool_acquire_timeout           AcquireTimeout
//	pool_max_waiters               MaxWaiters
//	pool_unavailable_after         UnavailableAfter
//	pool_max_dials                 MaxDials
//	pool_dial_timeout              DialTimeout
//	pool_pooled                    Pooled: detect, yes or no
//
// Durations are written as time.ParseDuration reads them, 1h30m. Where the field
// allows Off, the parameter may be off; a minimum of 0 is Off, too.
//
// To pgx's pool, pool_min_conns counts all connections, and to this one the idle
// ones, of which there are then at least as many: with pool_min_idle_conns
// beside it, the larger of both is meant. Its jitter comes on top of the
// lifetime: MaxAge becomes the sum, and MaxAgeJitter the jitter; a MaxAge that is
// set wins over both.
type Config struct {
	// DSN is the connection string, a URL or keywords and values, with all that
	// pgx.ParseConfig accepts. It is parsed once and never printed. Its
	// connections have TCP keepalive: a peer that is gone is noticed within 30 s.
	DSN string

	// ConnConfig is used instead of a DSN, for what a DSN cannot say: a tracer,
	// TLS, types. It must come from pgx.ParseConfig, and is copied. Its DialFunc
	// and the keepalive of that are left as they are.
	ConnConfig *pgx.ConnConfig

	// Pooled says whether a pooler such as PgBouncer is between this pool and
	// the server. Default PooledDetect: the first dial finds out.
	Pooled Pooled

	// BeforeConnect is called before each dial with the copy of the ConnConfig
	// that it uses, and may change that: for a password that is a token of
	// short life, it sets Password. It runs in the pool's own goroutine, may be
	// called concurrently, and should return when ctx ends, after DialTimeout.
	// An error fails the dial, and reaches callers as pool.ErrUnavailable, as
	// that of a dial does; it should not hold the password. Default nil.
	BeforeConnect func(ctx context.Context, cfg *pgx.ConnConfig) error

	// AfterConnect is called with each new connection before the pool has it:
	// to register types, prepare statements, or change settings of the session,
	// which a pooler loses. It runs as part of the dial, as BeforeConnect does.
	// After an error, or with a transaction or an answer left open, the
	// connection is closed and the dial has failed. Default nil.
	AfterConnect func(ctx context.Context, conn *pgx.Conn) error

	// Name names the pool in errors, events and reports. Default: what
	// OpenTelemetry prescribes, "host:port/database".
	Name string

	// MinIdle is how many idle connections are kept ready above those in use.
	// Default 5, or Max if that is less; Off: none.
	MinIdle int

	// Max is how many connections there may be. Default 20.
	Max int

	// MaxAge is how long a connection lives at most. Default 300 s; Off: for
	// ever.
	MaxAge time.Duration

	// MaxAgeJitter shortens each connection's life by a random part of itself,
	// so that those made together do not end together. Default a tenth of
	// MaxAge; Off: none.
	MaxAgeJitter time.Duration

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

	// IgnoreDeadlines lets callers wait whose ctx will end before their turn
	// comes, by how long connections were in use of late. Default: they are
	// refused at once with pool.ErrOverloaded.
	IgnoreDeadlines bool

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

	// OnAcquire prepares a connection for the caller that is about to get it,
	// under the caller's ctx: it sets the role that ctx names, say. After an
	// error the connection is closed, and the caller gets that error, as it is;
	// one that wraps pool.ErrUnfit makes it get another connection instead.
	// Default nil.
	OnAcquire func(ctx context.Context, conn *pgx.Conn) error

	// OnRelease undoes what a caller has done to the session, before anybody
	// else gets the connection: it runs RESET ROLE, say, or RESET ALL, which
	// undoes what AfterConnect has SET, too. Not DISCARD ALL or DEALLOCATE alone:
	// pgx does not hear that its statements are gone, and uses of them fail with
	// 26000. conn.DeallocateAll, of pgx, after a DISCARD ALL sets that right, at
	// the price of preparing each statement anew. The caller waits for the hook.
	// ctx has the values of the acquisition's and not its end; it ends after a
	// second. False closes the connection. What is closed, busy or in a
	// transaction anyway, it does not see. Default nil.
	OnRelease func(ctx context.Context, conn *pgx.Conn) (fit bool)

	// LeakAfter is how long a connection may be in use before it is reported as
	// held: see Pool.Held. Default 60 s; Off: never.
	LeakAfter time.Duration

	// LeakSample makes one in so many acquisitions remember its stack, for
	// Pool.Held; 1 is each. Default Off.
	LeakSample int

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

	// RetryBudget bounds the retries of InTx, and of the Pool's own statements
	// that found their connection dead, of which database/sql tries three. What
	// succeeds on the pool funds it. Share one among all who use the same
	// server. Default: one of this Pool's own, of retry's defaults, named after
	// the Pool.
	RetryBudget *retry.Budget

	// RequireServer makes Open wait for a connection, and fail without one.
	// Default: Open waits for nothing.
	RequireServer bool
}

// parse is the ConnConfig that c means, and all problems of c at once. What the
// connection string says of the pool goes into the fields that are not set.
func (c *Config) parse() (*pgx.ConnConfig, error) {
	p := core.Check("sqlpool.Config")
	var conn *pgx.ConnConfig
	var from map[string]string
	switch {
	case c.DSN != "" && c.ConnConfig != nil:
		p.If(true, "DSN", nil, "must not be set beside ConnConfig")
	case c.ConnConfig != nil:
		// What ParseConfig made has a dialer; pgx panics on anything else.
		made := c.ConnConfig.DialFunc != nil && c.ConnConfig.LookupFunc != nil
		p.If(!made, "ConnConfig", nil, "must come from pgx.ParseConfig")
		if made {
			conn = c.ConnConfig.Copy()
			from = c.takeParams("ConnConfig", conn, p)
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
		if conn != nil {
			from = c.takeParams("DSN", conn, p)
			conn.DialFunc = keepAlive(conn.ConnectTimeout)
		}
	}
	p.If(c.StatementTimeout < Off, "StatementTimeout", c.StatementTimeout, "must not be negative")
	p.If(c.TxTries < Off, "TxTries", c.TxTries, "must not be negative")
	p.If(c.Pooled < PooledDetect || c.Pooled > PooledNo, "Pooled", int(c.Pooled), "must be PooledDetect, PooledYes or PooledNo")
	return conn, errors.Join(p.Err(), c.limitProblems(from))
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
	if strings.LastIndexByte(conn.Host, '@') > 0 {
		return true
	}
	if !strings.HasPrefix(dsn, "postgres://") && !strings.HasPrefix(dsn, "postgresql://") {
		return false
	}
	_, rest, _ := strings.Cut(dsn, "://")
	rest, _, _ = strings.Cut(rest, "?")
	_, path, _ := strings.Cut(rest, "/")
	return strings.Contains(path, "@")
}

// limitProblems are the problems of the fields that core/pool checks, under the
// names of the parameters that fields are from.
func (c *Config) limitProblems(from map[string]string) error {
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
			ours.Field = cmp.Or(from[ours.Field], ours.Field)
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
		MaxAgeJitter:     c.MaxAgeJitter,
		MaxIdleTime:      c.MaxIdleTime,
		AcquireTimeout:   c.AcquireTimeout,
		MaxWaiters:       c.MaxWaiters,
		UnavailableAfter: c.UnavailableAfter,
		MaxDials:         c.MaxDials,
		DialTimeout:      c.DialTimeout,
		DialGuard:        guardDials(c.DialGuard),
		IgnoreDeadlines:  c.IgnoreDeadlines,
		CheckEvery:       checkEvery,
		LeakAfter:        c.LeakAfter,
		LeakSample:       c.LeakSample,
		Observer:         c.Observer,
	}
	if d != nil {
		cfg.Dial = d.dial
	}
	if hook := c.OnAcquire; hook != nil {
		cfg.OnAcquire = func(ctx context.Context, c *conn) error {
			if err := hook(ctx, c.show()); err != nil {
				if c.pgx.IsClosed() && pgconn.SafeToRetry(err) {
					err = fmt.Errorf("%w: %w", pool.ErrUnfit, err) // as a statement goes to another
				}
				return err
			}
			if !c.clean() {
				return errUncleanHook
			}
			return nil
		}
	}
	if hook := c.OnRelease; hook != nil {
		cfg.OnRelease = func(ctx context.Context, c *conn) bool { return hook(ctx, c.show()) && c.clean() }
	}
	return cfg
}

// errUncleanHook is what a caller gets whose connection OnAcquire has spoilt.
var errUncleanHook = errors.New("sqlpool: OnAcquire left the connection closed, in a transaction or with an answer unread")

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
