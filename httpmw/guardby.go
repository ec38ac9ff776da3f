package httpmw

import (
	"net/http"

	"github.com/surgewall/surgewall/core"
)

// GuardBy is Guard for a KeyedGuard: a limit per client, a breaker per route.
// key names the guard that a request is for. It is called once for each
// request, concurrently, before anything is held; it should not read the body.
// For a breaker per route, keyed is a *circuit.Group, key is KeyPattern, and the
// middleware goes around the handlers that a mux has, not around the mux.
//
// A request whose key cannot be told is not admitted, under no key at all: if
// key returns an error, the answer is the status of the StatusError in it, 429
// or 503 if there is a *core.Rejection in it, else 400. So it is for the zero
// key, "" say, unless GuardConfig allows it: nobody shares a guard by accident. A
// panic in key is the handler's.
//
// A nil keyed admits every request. A nil key admits none: each is answered
// with 500. RateLimit is GuardBy for rate limits, with headers and costs.
func GuardBy[K comparable](keyed core.KeyedGuard[K], key func(*http.Request) (K, error)) func(http.Handler) http.Handler {
	return GuardByWith(keyed, key, GuardConfig{})
}

// GuardByWith is GuardBy with a configuration.
func GuardByWith[K comparable](keyed core.KeyedGuard[K], key func(*http.Request) (K, error), cfg GuardConfig) func(http.Handler) http.Handler {
	if keyed == nil {
		return Chain()
	}
	if key == nil {
		key = func(*http.Request) (k K, err error) { return k, StatusError(http.StatusInternalServerError) }
	}
	write := cfg.write()
	return behind(gate{admit: func(w http.ResponseWriter, r *http.Request) (core.Permit, verdict) {
		k, err := key(r)
		if err == nil && !cfg.AllowZeroKey && isZero(k) {
			err = errEmptyKey
		}
		if err != nil {
			return core.Permit{}, refuse(w, r, &keyError{err}, write)
		}
		p, err := keyed.AcquireKey(r.Context(), k, core.Call{})
		if err != nil {
			return core.Permit{}, refuse(w, r, err, write)
		}
		return p.Take(), admitted
	}})
}

// keyError is why the guard could not be asked: the error of a key function.
type keyError struct{ err error }

func (e *keyError) Error() string { return "httpmw: the guard was not asked: " + e.err.Error() }
func (e *keyError) Unwrap() error { return e.err }

// ErrorType is for core.ErrorType.
func (e *keyError) ErrorType() string { return "no_key" }
