package sqlpool

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/surgewall/surgewall/core"
)

// takeParams takes the parameters of the pool out of conn, where pgx has left
// them as settings for the server, and puts them into the fields of c that are
// not set. It returns which parameter a field is from, for fields whose problems
// show only beside others.
func (c *Config) takeParams(source string, conn *pgx.ConnConfig, p *core.Problems) (from map[string]string) {
	r := params{source: source, values: conn.RuntimeParams, problems: p}
	from = map[string]string{}

	most := r.number("pool_max_conns", 1, false)
	if c.Max == 0 {
		c.Max, from["Max"] = most, r.field("pool_max_conns")
	}
	all, idle := r.number("pool_min_conns", 0, true), r.number("pool_min_idle_conns", 0, true)
	switch {
	case c.MinIdle != 0:
	case all > idle && all > 0 || idle == 0:
		c.MinIdle, from["MinIdle"] = all, r.field("pool_min_conns")
	default:
		c.MinIdle, from["MinIdle"] = idle, r.field("pool_min_idle_conns")
	}

	age, jitter := r.duration("pool_max_conn_lifetime", true), r.duration("pool_max_conn_lifetime_jitter", true)
	if c.MaxAge == 0 {
		c.MaxAge = age
		if jitter != 0 && c.MaxAgeJitter == 0 && age != Off {
			// pgxpool's jitter comes on top of the lifetime, and ours is part of it.
			c.MaxAge, c.MaxAgeJitter = cmp.Or(age, defaultMaxAge), jitter
			if jitter > 0 {
				c.MaxAge += min(jitter, math.MaxInt64-c.MaxAge)
			}
		}
	}
	c.MaxIdleTime = cmp.Or(c.MaxIdleTime, r.duration("pool_max_conn_idle_time", false))

	c.AcquireTimeout = cmp.Or(c.AcquireTimeout, r.duration("pool_acquire_timeout", false))
	c.MaxWaiters = cmp.Or(c.MaxWaiters, r.number("pool_max_waiters", 1, true))
	c.UnavailableAfter = cmp.Or(c.UnavailableAfter, r.duration("pool_unavailable_after", false))
	c.MaxDials = cmp.Or(c.MaxDials, r.number("pool_max_dials", 1, false))
	c.DialTimeout = cmp.Or(c.DialTimeout, r.duration("pool_dial_timeout", false))
	pooled, bouncer := r.pooled("pool_pooled"), r.bouncer("pgbouncer")
	c.Pooled = cmp.Or(c.Pooled, pooled, bouncer)

	// What pgxpool has a setting for, and this pool does not need to be told.
	_ = r.duration("pool_health_check_period", false)
	_ = r.duration("pool_ping_timeout", true)

	unknown := false
	for name := range r.values {
		unknown = unknown || strings.HasPrefix(name, "pool_")
	}
	// The name is not quoted: in a string that was cut in the wrong place, it is
	// what the password goes on with.
	p.If(unknown, source, nil, "has a parameter that begins with pool_ and is none of those that Config names")
	return from
}

// defaultMaxAge is core/pool's default, which a jitter is added to.
const defaultMaxAge = 300 * time.Second

// params reads parameters of the pool, and takes what it has read out of values.
// A parameter that is not there, or is reported, reads as 0. What a value holds
// is repeated only if it is a number: it may be part of a password.
type params struct {
	source   string // the field of Config that they came in
	values   map[string]string
	problems *core.Problems
}

// field is how a problem of the parameter is reported.
func (r *params) field(name string) string { return r.source + ": " + name }

func (r *params) take(name string) (value string, ok bool) {
	value, ok = r.values[name]
	delete(r.values, name)
	return value, ok
}

// number reads a whole number of at least least. A 0, if that is allowed, and
// "off", if that is, read as Off.
func (r *params) number(name string, least int, off bool) int {
	s, ok := r.take(name)
	if !ok || s == "off" && off {
		return r.offIf(ok)
	}
	n, err := strconv.ParseInt(s, 10, 32)
	or := ""
	if off {
		or = ", or off"
	}
	switch {
	case err != nil:
		r.problems.If(true, r.field(name), nil, "is not a whole number that a pool can have"+or)
		return 0
	case int(n) < least:
		r.problems.If(true, r.field(name), n, fmt.Sprintf("must be at least %d%s", least, or))
		return 0
	case n == 0:
		return Off
	}
	return int(n)
}

func (*params) offIf(off bool) int {
	if off {
		return Off
	}
	return 0
}

// duration reads what time.ParseDuration does, as pgxpool. "off" reads as Off,
// and so does 0 where that is what it means to pgxpool.
func (r *params) duration(name string, zero bool) time.Duration {
	s, ok := r.take(name)
	if !ok || s == "off" {
		return time.Duration(r.offIf(ok))
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		r.problems.If(true, r.field(name), nil, "is not a duration such as 30s or 1h30m, or off")
		return 0
	case d == 0 && zero:
		return Off
	case d <= 0:
		r.problems.If(true, r.field(name), d, "must be above 0, or off")
		return 0
	}
	return d
}

func (r *params) pooled(name string) Pooled {
	s, ok := r.take(name)
	switch {
	case !ok || s == "detect":
		return PooledDetect
	case s == "yes":
		return PooledYes
	case s == "no":
		return PooledNo
	}
	r.problems.If(true, r.field(name), nil, "must be detect, yes or no")
	return PooledDetect
}

// bouncer reads the parameter with which Prisma's users declare a pooler that
// keeps no prepared statements. That it is false does not say that there is none.
func (r *params) bouncer(name string) Pooled {
	s, ok := r.take(name)
	is, err := strconv.ParseBool(s)
	r.problems.If(ok && err != nil, r.field(name), nil, "must be true or false")
	if is {
		return PooledYes
	}
	return PooledDetect
}
