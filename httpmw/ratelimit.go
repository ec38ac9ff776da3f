package httpmw

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
)

// RateLimitConfig configures RateLimit. Its functions are called concurrently,
// with nothing held but where that is said, and should not read the body. What
// they panic with is the handler's panic.
type RateLimitConfig[K comparable] struct {
	// Guard is what admits requests: a *limit.Keyed, or a core.ShadowKeyed
	// around one. Required.
	Guard core.KeyedGuard[K]

	// Key says whose limit a request uses: PeerIP, KeyHeader, Both(…), or a
	// function of the program's own. If it returns an error, the request is
	// answered as by GuardBy, 400 if nothing else is chosen; the limiter, which
	// was not asked, does not count it: a Refuse can. Required.
	Key func(*http.Request) (K, error)

	// AllowZeroKey admits the zero key, "" or netip.Addr{}, as a key like any
	// other. By default it is taken for a key that could not be told, and the
	// answer is 400, so that nobody shares a limit by accident.
	AllowZeroKey bool

	// SkipPaths are paths that are not limited, health checks say: "/healthz"
	// is that path alone, "/static/" all below it, but for paths that are not
	// clean, such as "/static/../buy". "/" is the root alone.
	SkipPaths []string

	// Skip, if set, says which other requests are not limited.
	Skip func(*http.Request) bool

	// Cost, if set, is how much of the limit a request uses, in the limit's
	// own unit. One that costs 0 is admitted without asking the guard. A
	// negative cost is a mistake of the program's: the answer is 500, and the
	// guard is not asked. A cost above what the limit can ever admit is 429
	// without Retry-After. Default: 1.
	Cost func(*http.Request) int

	// CostAfter, if set, is what a request really cost, once its handler has
	// ended: what was taken at first is corrected to that, if need be by going
	// into debt, as deep as the limiter's Charge can. 0 is nothing at all; a
	// negative cost is a mistake, and leaves what was taken. It is not called
	// for a request that was not admitted, here or further in, or not asked
	// about. It is called while the permit is held, also after a panic of the
	// handler. It costs one allocation a request.
	CostAfter func(*http.Request, Answer) int

	// Headers are those that answers tell of the limit by. The guard, or
	// Peeker, has to be a Peeker then. They go out on admitted and on refused
	// requests, and are written before the handler runs. Default: HeadersNone.
	Headers Headers

	// Peeker is what Headers and Problem ask how the limit stands, if it is
	// not Guard: the limiter behind a shadow. Default: Guard, if it can tell.
	Peeker Peeker[K]

	// Policy is the limit's name for clients: printable ASCII.
	// Default: limit.Decision's Policy, which is the limiter's name or the
	// plan's, and is percent-encoded where it is not printable ASCII.
	Policy string

	// Unit is the unit of cost, a quota unit of the draft: "content-bytes".
	// Default: requests; concurrent requests for a limiter without a window.
	Unit string

	// PartitionKey, if set, is told to the client as the pk of both fields of
	// the draft, so that it can tell its quotas apart; none if it is nil. It
	// must hold nothing that the client may not know, no address for one. It
	// is called while the permit is held. Default: none.
	PartitionKey func(K) []byte

	// Jitter is how much later at most a client is told to come again than it
	// could, each by a random part of it, so that not all come at once.
	// Default: 0.
	Jitter time.Duration

	// Problem answers refused requests with problem details in JSON (RFC
	// 9457), of the types that draft-ietf-httpapi-ratelimit-headers-11 has:
	// quota-exceeded, 429, and temporary-reduced-capacity, 503. Other requests
	// that are not admitted are answered as by RefuseWithProblem.
	Problem bool

	// Refuse is GuardConfig's. Not with Problem.
	Refuse func(w http.ResponseWriter, r *http.Request, status int, err error)
}

// Peeker tells how the limit of a key stands, without using any of it: what
// Decision the key would get for n. *limit.Keyed is one.
type Peeker[K comparable] interface {
	Peek(key K, n int) limit.Decision
}

// Answer is what a handler answered, as CostAfter hears it.
type Answer struct {
	// Status is the answer's status, 101 for a hijacked connection. It is 200
	// if the handler returned and said nothing, and 0 if it did not return and
	// had not answered yet.
	Status int

	// Bytes is how much of the body the handler wrote; nothing of what goes
	// over a hijacked connection.
	Bytes int64

	// Returned: the handler returned, without a panic or runtime.Goexit.
	Returned bool
}

// RateLimit returns a middleware that limits requests by a key, and tells
// clients about it. It is GuardBy with headers, costs and a list of what is not
// limited; what is said there of refusals, permits and the response writer holds
// here. Limits nest: the headers of one are appended to those of another, and
// what an inner guard refuses is given back to the outer, after it has told the
// client.
//
// Retry-After is in seconds, rounded up and at least 1. On the way of a request
// that is admitted there is no allocation without Headers and CostAfter, beside
// those of the config's functions.
//
// The error lists every bad field of cfg; errors.Is(err, core.ErrConfig).
func RateLimit[K comparable](cfg RateLimitConfig[K]) (func(http.Handler) http.Handler, error) {
	l := &rateLimit[K]{RateLimitConfig: cfg, skips: newPaths(cfg.SkipPaths)}
	l.teller.headers = cfg.Headers
	if l.Peeker == nil {
		l.Peeker, _ = cfg.Guard.(Peeker[K])
	}
	if l.Refuse == nil {
		l.Refuse = refuseWithText
		if cfg.Problem {
			l.Refuse = RefuseWithProblem
		}
	}
	if err := l.check(cfg); err != nil {
		return nil, err
	}
	return behind(gate{admit: l.admit, costAfter: cfg.CostAfter}), nil
}

func (l *rateLimit[K]) check(cfg RateLimitConfig[K]) error {
	bad := core.Check("httpmw.RateLimitConfig")
	bad.If(cfg.Guard == nil, "Guard", nil, "must be set")
	bad.If(cfg.Key == nil, "Key", nil, "must be set")
	for _, p := range cfg.SkipPaths {
		bad.If(!strings.HasPrefix(p, "/") || !isClean(p) || strings.ContainsAny(p, "{}?#"), "SkipPaths", p,
			`must be clean paths: "/healthz", or "/static/" for all below it`)
	}
	h := cfg.Headers
	bad.If(h > headersLegacy|headersDraft, "Headers", h, "must be of the Headers constants")
	bad.If(h&headersLegacy == headersLegacy, "Headers", h, "must have one legacy form at most: they are the same headers")
	bad.If(h&headersDraft == headersDraft, "Headers", h, "must have one draft at most: they are the same headers")
	bad.If(h != HeadersNone && cfg.Guard != nil && l.Peeker == nil, "Headers", h,
		"need a Guard that is a Peeker, as *limit.Keyed is, or a Peeker: around a shadow, set Peeker to what is behind it")
	bad.If(!isString(cfg.Policy), "Policy", nil, "must be printable ASCII")
	bad.If(!isString(cfg.Unit), "Unit", nil, "must be printable ASCII")
	bad.If(cfg.Jitter < 0 || cfg.Jitter > maxJitter, "Jitter", cfg.Jitter, "must be 0 to 24h")
	bad.If(cfg.Problem && cfg.Refuse != nil, "Refuse", nil, "must be nil with Problem")
	return bad.Err()
}

const maxJitter = 24 * time.Hour

var errNegativeCost = fmt.Errorf("the cost of the request is negative (%w)", StatusError(http.StatusInternalServerError))

// rateLimit is a config with its defaults.
type rateLimit[K comparable] struct {
	RateLimitConfig[K]
	skips  paths
	teller teller
}

// admit is gate's.
func (l *rateLimit[K]) admit(w http.ResponseWriter, r *http.Request) (core.Permit, verdict) {
	if l.skips.match(r) || l.Skip != nil && l.Skip(r) {
		return core.Permit{}, passed
	}
	key, err := l.Key(r)
	if err == nil && !l.AllowZeroKey && isZero(key) {
		err = errEmptyKey
	}
	cost := 1
	if err == nil && l.Cost != nil {
		if cost = l.Cost(r); cost < 0 {
			err = errNegativeCost
		}
	}
	if err != nil {
		return core.Permit{}, refuse(w, r, &keyError{err}, l.Refuse)
	}
	if cost == 0 {
		l.tell(w, key)
		return core.Permit{}, passed
	}
	p, err := l.Guard.AcquireKey(r.Context(), key, core.Call{Cost: cost})
	if err != nil {
		return core.Permit{}, l.refuse(w, r, key, err)
	}
	if l.Headers != HeadersNone {
		l.tellHolding(w, key, &p)
	}
	return p.Take(), admitted
}

// tell writes the headers of a request that is admitted.
func (l *rateLimit[K]) tell(w http.ResponseWriter, key K) {
	if l.Headers == HeadersNone {
		return
	}
	if s, ok := l.standing(key, 0); ok {
		l.teller.tell(w.Header(), &s, false)
	}
}

// tellHolding is tell with a permit, which is not lost if that panics.
func (l *rateLimit[K]) tellHolding(w http.ResponseWriter, key K, p *core.Permit) {
	told := false
	defer func() {
		if !told {
			p.Cancel()
		}
	}()
	l.tell(w, key)
	told = true
}

// refuse answers a request that the guard refused.
func (l *rateLimit[K]) refuse(w http.ResponseWriter, r *http.Request, key K, err error) verdict {
	n := refusalOf(err)
	if n.retryAfter > 0 && l.Jitter > 0 {
		n.retryAfter = retryAfter(n.rejection, rand.N(l.Jitter+1))
	}
	n.tell(w)
	problem := l.Problem && n.rejection != nil
	var policy string
	if l.Peeker != nil && (problem || l.Headers != HeadersNone) {
		if s, ok := l.standing(key, n.retryAfter); ok {
			l.teller.tell(w.Header(), &s, true)
			policy = s.policy
		}
	}
	if problem {
		if policy == "" {
			policy = printable(cmp.Or(l.Policy, n.rejection.Guard))
		}
		violated(w, n.status, policy)
	} else {
		l.Refuse(w, r, n.status, err)
	}
	return n.verdict
}

// standing is how the limit of key stands. It says no where there is no limit.
func (l *rateLimit[K]) standing(key K, retryAfter int64) (standing, bool) {
	d := l.Peeker.Peek(key, 1)
	if d.Policy == "" {
		return standing{}, false
	}
	s := standingOf(d, retryAfter)
	if l.Policy != "" {
		s.policy = l.Policy
	}
	if l.Unit != "" {
		s.unit = l.Unit
	}
	if l.PartitionKey != nil {
		s.partition = l.PartitionKey(key)
	}
	return s, true
}

// The problem types of draft-ietf-httpapi-ratelimit-headers, section 5, with the
// titles that it registers.
const (
	quotaExceeded   = "https://iana.org/assignments/http-problem-types#quota-exceeded"
	reducedCapacity = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
)

// violated answers a request that a policy does not allow.
func violated(w http.ResponseWriter, status int, policy string) {
	p := problem{Type: quotaExceeded, Title: "Quota Exceeded", Status: status}
	if status != http.StatusTooManyRequests {
		p.Type, p.Title = reducedCapacity, "Temporary Reduced Capacity"
	}
	if policy != "" {
		p.Violated = []string{policy}
	}
	writeProblem(w, status, p)
}

// paths are those that are not limited.
type paths struct {
	exact map[string]struct{}
	below []string // each ends in a slash
}

func newPaths(list []string) paths {
	p := paths{}
	for _, s := range list {
		if strings.HasSuffix(s, "/") && s != "/" {
			p.below = append(p.below, s)
			continue
		}
		if p.exact == nil {
			p.exact = make(map[string]struct{})
		}
		p.exact[s] = struct{}{}
	}
	return p
}

// match says no to a path that was written with needless escapes: a router may
// take "/static%2Fbuy" for something else than "/static/buy".
func (p *paths) match(r *http.Request) bool {
	if p.exact == nil && p.below == nil || r.URL == nil || r.URL.RawPath != "" {
		return false
	}
	if _, ok := p.exact[r.URL.Path]; ok {
		return true
	}
	for _, prefix := range p.below {
		if strings.HasPrefix(r.URL.Path, prefix) {
			return isClean(r.URL.Path)
		}
	}
	return false
}

// isClean reports whether every router takes p for what it says: no segment is
// empty or of dots, and there is nothing that some decode or cut off.
func isClean(p string) bool {
	clean := path.Clean(p)
	if clean != "/" && strings.HasSuffix(p, "/") {
		p = p[:len(p)-1]
	}
	return p == clean && !strings.ContainsAny(p, `%;\`)
}
