package transport

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/surgewall/surgewall/core"
)

// ErrNoKey is found by errors.Is in the error of a request whose key is the zero
// value of its type, or is not equal to itself.
var ErrNoKey = errors.New("empty key")

// GuardByConfig configures GuardByWith.
type GuardByConfig struct {
	// Base sends the requests. Default: http.DefaultTransport.
	Base http.RoundTripper

	// Outcome, if set, says what a response means for the guard of its request,
	// when its headers have arrived. It must not read the body. It is called
	// concurrently, outside all locks. Default: Outcome.
	Outcome func(*http.Response) core.Outcome
}

// GuardBy puts the guard of each request's key in front of base: a breaker for
// each server, of a circuit.Group by OriginOf. A nil base is
// http.DefaultTransport.
//
// key is called once for each request, concurrently, before anything is held; it
// must not read the body or change the request. A request for which it fails, or
// returns the zero value (see ErrNoKey), is not sent; the error says nothing of
// the server to a guard further out. A redirect that http.Client follows is a
// request like any other, with a key of its own.
//
// Put what waits, limits or retries in front: its refusals then take no probe,
// and each attempt counts. Behind the Backends of another Transport, as its Base,
// OriginOf is the backend's; but a Balancer passes over a backend that has an open
// breaker only if that is the backend's own Guard, see ParseBackends.
//
// The error says that keyed or key is missing; errors.Is(err, core.ErrConfig).
func GuardBy[K comparable](keyed core.KeyedGuard[K], key func(*http.Request) (K, error), base http.RoundTripper) (*Transport, error) {
	return GuardByWith(keyed, key, GuardByConfig{Base: base})
}

// GuardByWith is GuardBy with a Config.
func GuardByWith[K comparable](keyed core.KeyedGuard[K], key func(*http.Request) (K, error), cfg GuardByConfig) (*Transport, error) {
	bad := core.Check("transport.GuardBy")
	bad.If(keyed == nil, "keyed", nil, "must not be nil")
	bad.If(key == nil, "key", nil, "must not be nil")
	if err := bad.Err(); err != nil {
		return nil, err
	}
	t := Guard(nil, cfg.Base)
	if cfg.Outcome != nil {
		t.outcome = cfg.Outcome
	}
	t.keyed = &byKey[K]{guards: keyed, key: named(key)}
	return t, nil
}

// named is key with an error where the key is none; nil for a nil key.
func named[K comparable](key func(*http.Request) (K, error)) func(*http.Request) (K, error) {
	if key == nil {
		return nil
	}
	return func(req *http.Request) (K, error) {
		k, err := key(req)
		var none K
		if err == nil && (k == none || k != k) {
			err = ErrNoKey
		}
		return k, err
	}
}

// keyedGuards is a byKey of some type of keys.
type keyedGuards interface {
	roundTrip(t *Transport, req *http.Request) (*http.Response, error)
}

// byKey is what a Transport has whose guard depends on the request.
type byKey[K comparable] struct {
	guards   core.KeyedGuard[K]
	key      func(*http.Request) (K, error)
	answered func(K, *http.Response) // if set, hears of each response
}

func (g *byKey[K]) roundTrip(t *Transport, req *http.Request) (resp *http.Response, err error) {
	sent, told := false, false
	defer func() {
		switch {
		case told:
		case resp != nil:
			_ = resp.Body.Close()
		case !sent && req.Body != nil:
			_ = req.Body.Close()
		}
	}()
	var call exchange
	key, err := g.key(req)
	if err != nil {
		return nil, noKey(err)
	}
	p, err := g.guards.AcquireKey(req.Context(), key, core.Call{})
	if err != nil {
		return nil, err
	}
	call.permit = p.Take()
	sent = true
	if resp, err = t.send(req, &call); err != nil {
		return nil, err
	}
	if g.answered != nil {
		g.answered(key, resp)
	}
	told = true
	return resp, nil
}

// noKey is the error of a request whose key cannot be told. It says nothing of
// the server.
func noKey(err error) error {
	err = fmt.Errorf("transport: no key for this request: %w", err)
	if core.NeverStarted(err) {
		return err
	}
	return core.Mark(err, core.Ignored)
}
