package httpmw

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/surgewall/surgewall/core"
)

// MaxKeyLen is the length in bytes up to which KeyHeader accepts a value, and
// Join each of its parts: what a client sends should not fill a limiter's memory.
const MaxKeyLen = 256

var (
	errEmptyKey = errors.New("httpmw: the key is empty")
	errLongKey  = errors.New("httpmw: the key is too long")
	errManyKeys = errors.New("httpmw: the header of the key was sent more than once")
	errPattern  = fmt.Errorf("httpmw: the request has no pattern: put this middleware around the handler that is registered, not around the mux (%w)", StatusError(http.StatusInternalServerError))
	errNilKey   = fmt.Errorf("httpmw: a key function is nil (%w)", StatusError(http.StatusInternalServerError))
)

// KeyHeader returns a key function for the value of one header, such as an API
// key that was checked before. It fails, and the answer is 400, if the header is
// missing or empty, if it was sent more than once, and if it is longer than
// MaxKeyLen. Whoever can choose the value freely has a new limit with each; so
// name cannot be X-Forwarded-For or Forwarded.
func KeyHeader(name string) (func(*http.Request) (string, error), error) {
	name, problem := headerName(name)
	bad := core.Check("httpmw.KeyHeader")
	bad.If(problem != "", "name", name, problem)
	notAList(bad, name)
	return checked(func(r *http.Request) (string, error) {
		switch values := r.Header[name]; {
		case len(values) > 1:
			return "", errManyKeys
		case len(values) == 0 || values[0] == "":
			return "", errEmptyKey
		case len(values[0]) > MaxKeyLen:
			return "", errLongKey
		default:
			return values[0], nil
		}
	}, bad)
}

// KeyPattern is a key function: the pattern that http.ServeMux has matched,
// "GET /items/{id}", so that a limit is the route's. It fails, and the answer is
// 500, if there is none, as outside of the mux.
func KeyPattern(r *http.Request) (string, error) {
	if r.Pattern == "" {
		return "", errPattern
	}
	return r.Pattern, nil
}

// KeyMethod is a key function: the request's method. All that are not in RFC
// 9110 or 5789 are "_OTHER", so that nobody gets a new limit for each that he
// makes up.
func KeyMethod(r *http.Request) (string, error) {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return r.Method, nil
	case "":
		return http.MethodGet, nil // as in net/http
	default:
		return "_OTHER", nil
	}
}

// JoinedKey is what Join makes of several strings: each after its length and a
// colon, as netstrings have it without their commas: "3:abc4:defg". No two lists
// of strings have the same.
type JoinedKey string

// Join returns a key function for several taken together. It fails if one of
// them does, if one returns the empty string, or one of more than MaxKeyLen
// bytes. A Join of none fails always. It costs one allocation beside theirs; for
// two keys, Both has none.
func Join(keys ...func(*http.Request) (string, error)) func(*http.Request) (JoinedKey, error) {
	return func(r *http.Request) (JoinedKey, error) {
		var space [128]byte
		joined := space[:0]
		for _, key := range keys {
			if key == nil {
				return "", errNilKey
			}
			part, err := key(r)
			switch {
			case err != nil:
				return "", err
			case part == "":
				return "", errEmptyKey
			case len(part) > MaxKeyLen:
				return "", errLongKey
			}
			joined = strconv.AppendInt(joined, int64(len(part)), 10)
			joined = append(joined, ':')
			joined = append(joined, part...)
		}
		if len(joined) == 0 {
			return "", errEmptyKey
		}
		return JoinedKey(joined), nil
	}
}

// KeyText makes the string of another key, for Join: KeyText(httpmw.PeerIP).
// The zero key becomes the empty string, which Join refuses.
func KeyText[K interface {
	comparable
	fmt.Stringer
}](key func(*http.Request) (K, error),
) func(*http.Request) (string, error) {
	return func(r *http.Request) (string, error) {
		if key == nil {
			return "", errNilKey
		}
		k, err := key(r)
		if err != nil || isZero(k) {
			return "", err
		}
		return k.String(), nil
	}
}

// Pair is two keys that are one: a limit for each client on each route.
type Pair[A, B comparable] struct {
	A A
	B B
}

// Both returns a key function for two taken together. It fails if one of them
// does, or returns the zero value of its type.
func Both[A, B comparable](a func(*http.Request) (A, error), b func(*http.Request) (B, error)) func(*http.Request) (Pair[A, B], error) {
	return func(r *http.Request) (p Pair[A, B], err error) {
		if a == nil || b == nil {
			return p, errNilKey
		}
		if p.A, err = a(r); err != nil {
			return Pair[A, B]{}, err
		}
		if p.B, err = b(r); err != nil {
			return Pair[A, B]{}, err
		}
		if isZero(p.A) || isZero(p.B) {
			return Pair[A, B]{}, errEmptyKey
		}
		return p, nil
	}
}

func isZero[K comparable](k K) bool {
	var zero K
	return k == zero
}
