package main

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/failsafe-go/failsafe-go/failsafehttp"
	"github.com/failsafe-go/failsafe-go/ratelimiter"
	"github.com/go-chi/httprate"
	"github.com/sethvargo/go-limiter/httplimit"
	"github.com/throttled/throttled/v2"
	"github.com/ulule/limiter/v3/drivers/middleware/stdlib"
	"golang.org/x/time/rate"

	"github.com/surgewall/surgewall/core/limit"
	"github.com/surgewall/surgewall/httpmw"
)

// middlewareRows: what a handler that answers 204 and no more takes behind a
// limit that admits all, without a server. By address: a thousand peers take
// turns. The floor is the handler alone. throttled, go-limiter and ulule always
// set their headers, so they are in the row without headers too.
var middlewareRows = []row{
	{
		name: "middleware, one limit",
		ours: contender{name: "httpmw.Guard", start: served(func() (middleware, func()) {
			return httpmw.Guard(bucket(limit.PerSecond(plenty), plenty)), nothing
		})},
		peers: []contender{
			{"x/time/rate by hand", xtime, served(func() (middleware, func()) {
				l := rate.NewLimiter(plenty, plenty)
				return guarding(func(*http.Request) (bool, error) { return l.Allow(), nil }), nothing
			})},
			{"httprate", chi, served(func() (middleware, func()) {
				return newHTTPRate(plenty, time.Second).Handler, nothing
			})},
			{"failsafehttp", failsafe, served(func() (middleware, func()) {
				return func(next http.Handler) http.Handler {
					return failsafehttp.NewHandler(next, ratelimiter.NewBurstyBuilder[*http.Response](plenty, time.Second).Build())
				}, nothing
			})},
		},
		floor: bare,
	},
	{
		name: "middleware by address, no headers",
		ours: contender{name: "httpmw.RateLimit", start: served(rateLimited(httpmw.HeadersNone))},
		peers: append([]contender{
			{"x/time/rate by hand, sync.Map", xtime, served(func() (middleware, func()) {
				m := &xtimeSyncMap{rate: keyedRate, burst: keyedBurst}
				return guarding(func(r *http.Request) (bool, error) {
					host, _, err := net.SplitHostPort(r.RemoteAddr)
					return err == nil && m.of(host).Allow(), err
				}), nothing
			})},
			{"x/time/rate by hand, mutex map", xtime, served(func() (middleware, func()) {
				m := &xtimeMutexMap{rate: keyedRate, burst: keyedBurst, limiters: map[string]*rate.Limiter{}}
				return guarding(func(r *http.Request) (bool, error) {
					host, _, err := net.SplitHostPort(r.RemoteAddr)
					return err == nil && m.of(host).Allow(), err
				}), nothing
			})},
			{"httprate", chi, served(func() (middleware, func()) {
				return httprate.LimitBy(keyedBurst, day, remoteHost,
					httprate.WithResponseHeaders(httprate.ResponseHeaders{})), nothing
			})},
		}, withHeaders...),
		floor: bare,
	},
	{
		name: "middleware by address, headers",
		ours: contender{name: "httpmw.RateLimit", start: served(rateLimited(httpmw.HeadersLegacy))},
		peers: append([]contender{
			{"httprate", chi, served(func() (middleware, func()) {
				return httprate.LimitBy(keyedBurst, day, remoteHost), nothing
			})},
		}, withHeaders...),
		aside: []contender{
			{"httpmw.RateLimit, draft 11", "", served(rateLimited(httpmw.HeadersDraft11))},
		},
		floor: bare,
	},
}

var withHeaders = []contender{
	{"throttled", throttling, served(func() (middleware, func()) {
		l := throttled.HTTPRateLimiterCtx{
			RateLimiter: newThrottled(throttled.PerSec(keyedRate), keyedBurst),
			VaryBy:      &throttled.VaryBy{RemoteAddr: true},
		}
		return l.RateLimit, nothing
	})},
	{"go-limiter", sethvargoes, served(func() (middleware, func()) {
		s := newSethvargo(keyedBurst, day, 0)
		return must(httplimit.NewMiddleware(s, httplimit.IPKeyFunc())).Handle, closing(s)
	})},
	{"ulule/limiter", ulules, served(func() (middleware, func()) {
		return stdlib.NewMiddleware(newUlule(keyedBurst, day, 0)).Handler, nothing
	})},
}

type middleware = func(http.Handler) http.Handler

func nothing() {}

var bare = contender{name: "handler alone", start: served(func() (middleware, func()) {
	return func(next http.Handler) http.Handler { return next }, nothing
})}

// served counts the requests that the handler behind the middleware answered.
// Each goroutine has a request and a writer of its own.
func served(make func() (m middleware, stop func())) start {
	addrs := addresses(1000)
	return calls(0, func() (func(int) int, func()) {
		m, stop := make()
		h := m(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNoContent)
		}))
		return func(n int) (good int) {
			r := must(http.NewRequest(http.MethodGet, "http://example.com/path", nil))
			w := &sink{header: http.Header{}}
			for i := range n {
				r.RemoteAddr = addrs[i%len(addrs)]
				w.status = 0
				clear(w.header)
				h.ServeHTTP(w, r)
				if w.status == http.StatusNoContent {
					good++
				}
			}
			return good
		}, stop
	})
}

// sink is the least http.ResponseWriter.
type sink struct {
	header http.Header
	status int
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) Write(b []byte) (int, error) { return len(b), nil }
func (s *sink) WriteHeader(status int)      { s.status = status }

func addresses(n int) []string {
	addrs := make([]string, n)
	for i := range addrs {
		addrs[i] = fmt.Sprintf("192.0.%d.%d:%d", 2+i/250, 1+i%250, 40000+i)
	}
	return addrs
}

// guarding is what one writes around a limiter by hand.
func guarding(allow func(*http.Request) (bool, error)) middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ok, err := allow(r)
			switch {
			case err != nil:
				http.Error(w, "internal error", http.StatusInternalServerError)
			case !ok:
				http.Error(w, "too many requests", http.StatusTooManyRequests)
			default:
				next.ServeHTTP(w, r)
			}
		})
	}
}

func remoteHost(r *http.Request) (string, error) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	return httprate.CanonicalizeIP(host), err
}

// rateLimited is ours by the address of the peer.
func rateLimited(h httpmw.Headers) func() (middleware, func()) {
	return func() (middleware, func()) {
		k := must(limit.NewKeyed(limit.KeyedConfig[netip.Addr]{Limit: keyedLimit}))
		return must(httpmw.RateLimit(httpmw.RateLimitConfig[netip.Addr]{Guard: k, Key: httpmw.PeerIP, Headers: h})), nothing
	}
}
