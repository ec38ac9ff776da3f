package transport

import (
	"context"
	"net/http"
	"time"

	"github.com/surgewall/surgewall/core"
)

// Limiter is a limiter that can be told to stop: a *limit.TokenBucket, or any
// other of package limit that has Pause.
type Limiter interface {
	core.Guard

	// Pause makes the limiter admit nobody until then; whoever waits, waits so
	// much longer. A later call replaces an earlier one.
	Pause(until time.Time)
}

// KeyedLimiter is a Limiter for each key: a *limit.Keyed.
type KeyedLimiter[K comparable] interface {
	core.KeyedGuard[K]

	// Pause is Limiter's Pause for the limiter of key, and of no other key.
	Pause(key K, until time.Time)
}

// RateLimitConfig configures RateLimit and RateLimitBy.
type RateLimitConfig struct {
	// Base sends the requests. Default: http.DefaultTransport.
	Base http.RoundTripper

	// MaxPause is how long a response can stop the limiter at most, from its
	// arrival; Jitter comes on top. Whatever a server asks for, the next request
	// after a pause of this length is sent. Default: 5 minutes.
	MaxPause time.Duration

	// Jitter lengthens each pause by a random time of up to this, so that the
	// clients that a server has stopped do not come back all at once.
	// Default: 0, none.
	Jitter time.Duration

	// Asked, if set, is how long a response asks for a pause, when its headers
	// have arrived; what is not above 0 is none. It must not read the body. It
	// is called concurrently, outside all locks.
	// Default: PauseAsked. See also PauseAskedSeconds and PauseAskedUnix.
	Asked func(*http.Response) time.Duration
}

const (
	defaultMaxPause = 5 * time.Minute
	century         = 100 * 365 * 24 * time.Hour // two of them are a Duration still
)

// RateLimit puts l in front of cfg.Base, and stops l while the server asks to be
// left alone, by Retry-After or RateLimit: see PauseAsked. Give l a MaxWait, of
// cfg.MaxPause to wait out every pause: without one it waits for nothing. During
// a pause, and when the rate is used up, requests wait as long as l lets them and the
// deadline of their context allows, http.Client's Timeout included. The others
// are refused at once, with l's *core.Rejection, whose RetryAfter says when the
// pause ends; nothing is sent.
//
// A pause is only ever made longer by later responses; neither a shorter request
// for one nor a success ends it, since requests that were sent before it can be
// answered in any order. A request that waits already when a pause begins, waits
// for its end too. Those that are out are not touched. Do not call l.Pause
// elsewhere, or be ready to see one pause replace the other.
//
// Put it in front of what spreads, retries or breaks the circuit, as cfg.Base:
// what it refuses is no failure of theirs. In front of several backends, one of
// them that answers 503 with a Retry-After stops them all. To have each stop for
// itself, put RateLimitBy with OriginOf behind, as Config.Base.
//
// The error lists every bad field of cfg; errors.Is(err, core.ErrConfig).
func RateLimit(l Limiter, cfg RateLimitConfig) (*Transport, error) {
	type all = struct{}
	return rateLimit[all](single{l}, func(*http.Request) (all, error) { return all{}, nil }, cfg, l == nil)
}

// RateLimitBy is RateLimit with a limiter for each key: for each server, by
// OriginOf; for each account, by what the request carries. A response stops the
// limiter of its request's key and no other, as far as l keeps them apart: see
// MaxKeys of limit.KeyedConfig. A redirect that http.Client follows is a request
// like any other, and charged to its own key.
//
// key is called once for each request, concurrently, before anything is held; it
// must not read the body or change the request. A request for which it fails, or
// returns the zero value (see ErrNoKey), is not sent; the error says nothing of
// the server to a guard further out.
func RateLimitBy[K comparable](l KeyedLimiter[K], key func(*http.Request) (K, error), cfg RateLimitConfig) (*Transport, error) {
	return rateLimit(l, named(key), cfg, l == nil)
}

func rateLimit[K comparable](l KeyedLimiter[K], key func(*http.Request) (K, error), cfg RateLimitConfig, none bool) (*Transport, error) {
	bad := core.Check("transport.RateLimit")
	bad.If(none, "limiter", nil, "must not be nil")
	bad.If(key == nil, "key", nil, "must not be nil")
	bad.If(cfg.MaxPause < 0, "cfg.MaxPause", cfg.MaxPause, "must not be negative")
	bad.If(cfg.Jitter < 0, "cfg.Jitter", cfg.Jitter, "must not be negative")
	if err := bad.Err(); err != nil {
		return nil, err
	}
	if cfg.MaxPause == 0 {
		cfg.MaxPause = defaultMaxPause
	}
	cfg.MaxPause, cfg.Jitter = min(cfg.MaxPause, century), min(cfg.Jitter, century)
	if cfg.Asked == nil {
		cfg.Asked = PauseAsked
	}
	limited := &limited[K]{
		limiter: l, asked: cfg.Asked, maxPause: cfg.MaxPause, jitter: cfg.Jitter, epoch: time.Now(),
	}
	t := Guard(nil, cfg.Base)
	t.keyed = &byKey[K]{guards: l, key: key, answered: limited.heed}
	return t, nil
}

// single is a Limiter for all requests, as one for each key.
type single struct{ Limiter }

func (s single) AcquireKey(ctx context.Context, _ struct{}, call core.Call) (core.Permit, error) {
	return s.Acquire(ctx, call)
}

func (s single) Pause(_ struct{}, until time.Time) { s.Limiter.Pause(until) }

// limited is what a Transport has that keeps to a rate, beside its limiters.
type limited[K comparable] struct {
	limiter  KeyedLimiter[K]
	asked    func(*http.Response) time.Duration
	maxPause time.Duration
	jitter   time.Duration
	epoch    time.Time
	pauses   pauses[K]
}

// heed stops the limiter of key for as long as a response asks.
func (l *limited[K]) heed(key K, resp *http.Response) {
	d := min(l.asked(resp), l.maxPause)
	if d <= 0 {
		return
	}
	now := time.Since(l.epoch)
	till, longer := l.pauses.extend(key, now, now+d, l.jitter)
	for longer {
		// Not under the lock of pauses, since an observer may hear of it. So two
		// may get here in turn and call in reverse: the last to call sees that
		// there is a longer pause, and calls again.
		l.limiter.Pause(key, l.epoch.Add(till))
		last := l.pauses.of(key)
		till, longer = last, last > till
	}
}
