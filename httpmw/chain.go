package httpmw

import "net/http"

// Chain makes one middleware of several. The first is the outermost: it sees a
// request first and its answer last. Nil middlewares are left out, and the
// Chain of none returns the handler as it is.
//
// Put what may wait and what is cheap to refuse first. What a middleware is
// given is the handler of the next one, so Chain(a, b)(h) is a(b(h)).
func Chain(middlewares ...func(http.Handler) http.Handler) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		for i := len(middlewares) - 1; i >= 0; i-- {
			if mw := middlewares[i]; mw != nil {
				h = mw(h)
			}
		}
		return h
	}
}
