// Package httpmw puts guards in front of HTTP handlers. Each middleware is a
// func(http.Handler) http.Handler, so that it mixes with those of any router:
//
//	perClient, err := httpmw.RateLimit(httpmw.RateLimitConfig[netip.Addr]{
//		Guard:     perAddress, // a *limit.Keyed
//		Key:       httpmw.PeerIP,
//		Headers:   httpmw.HeadersDraft11,
//		SkipPaths: []string{"/healthz"},
//	})
//	deadline, err := httpmw.Deadline(httpmw.DeadlineConfig{Timeout: 10 * time.Second})
//	protect := httpmw.Chain(
//		httpmw.Recover(httpmw.RecoverConfig{}), // panics: 500
//		perClient,                              // quota: 429
//		httpmw.Guard(bulkhead),                 // capacity: 503
//		deadline,                               // time: 503
//	)
//	http.ListenAndServe(addr, protect(shop))
//
// That is the order for most services: what is cheap to refuse comes first, the
// time that a request waits for a place is not its own, and a breaker learns from
// deadlines that are missed. Breakers are best by route, so they stand around the
// handlers, inside of the mux: [GuardBy] with a *circuit.Group and [KeyPattern].
//
//	perRoute := httpmw.GuardBy(breakers, httpmw.KeyPattern)
//	shop.Handle("POST /buy", perRoute(buy))
//
// # What a guard is told
//
// A guard whose permit wants the result learns how the request ended:
//
//   - Success for a status below 500, for 501, and for a hijacked connection;
//     200 is implied when the handler wrote nothing, and an informational
//     status other than 101 is not an answer;
//   - Failure for any other status of 5xx, with a [StatusError], unless the
//     client had gone when it was written, or so little time was left when the
//     request came that nothing could have been done (see core.ClassifyLeft);
//   - Failure with core.ErrNoReturn for a panic, also for one that [Recover] has
//     answered for, and for runtime.Goexit;
//   - Failure with context.DeadlineExceeded, under the same conditions as a 5xx,
//     where nothing was written until the deadline of the request's context had
//     passed: whoever has set it answers, as [Deadline] does;
//   - Throttled for 429. The answer's own Retry-After is not passed on: it was
//     meant for that client, not for the handler;
//   - Ignored for a panic with http.ErrAbortHandler, for 408, which tells of a
//     slow client, and for a client that went away before the handler returned.
//
// Latency is the time from admission to the header, so that a stream is not
// slow because it is long. A permit is held until the handler has returned,
// after a hijack too.
//
// # Guards inside guards
//
// A request that a guard further in refused has not started, as far as the
// guards around it are concerned: their permits are cancelled, and the 503 of
// an open breaker is no failure of what stands in front of it. This holds for
// guards nested directly, as [Chain] nests them with [Recover] and [Deadline] among
// them. Across other middleware and a mux it holds for guards that want the
// result, limits with a CostAfter, and whatever stands right in front of one of
// those, of Recover or of Deadline, if the writers in between have the Unwrap
// method that http.ResponseController asks for. Behind a writer without it, and
// behind http.TimeoutHandler, a refusal is the plain 429 or 503 that it is on the
// wire.
//
// # Whose request it is
//
// A limit for each client is as good as the key that tells clients apart, and a
// header is what whoever connects has sent. Which headers to believe depends on
// what is in front of the server, so there is a key function for each case, and
// none that guesses:
//
//   - nothing, or a balancer that keeps the address of the client: [PeerIP];
//   - proxies whose addresses are known, of which each appends to
//     X-Forwarded-For or to Forwarded: [ForwardedForIP], [ForwardedIP];
//   - a fixed number of such proxies, of which only the last has a known
//     address: [HopCountIP];
//   - a proxy that sets a header of its own, and removes what clients send
//     under that name: [HeaderIP].
//
// All but the first read the header only if the peer is a trusted proxy, take
// who comes around the proxies for who he is, and fail where the header is
// missing or makes no sense: the answer is 400, and nobody is counted as the
// proxy. Health checks that a balancer makes itself have no such header; put
// them on the list of [RateLimitConfig].SkipPaths. A client that has signed in
// is better told by who it is, by a key function of the program's own around
// [KeyHeader] or a session.
//
// A middleware that writes a header's value into RemoteAddr, as the RealIP of
// some routers does, undoes all of that: whoever connects becomes whom he says he
// is. Do without it, or put the limit around it.
//
// An IPv6 client is its /64. Where addresses are shared, by carriers or by an
// office, one address is many people: let limits by address be wide, and those by
// account tight.
//
// Before it goes live, look at what the key function says. Log it for a while
// beside the RemoteAddr, and put the limit in a shadow (core.ShadowKeyed). Then,
// from outside, where your address is known:
//
//   - curl https://shop.example/ has to be you, not a proxy and not an error;
//   - curl -H 'X-Forwarded-For: 192.0.2.1' https://shop.example/ has to be you
//     again, and so for Forwarded, X-Real-IP and each header that is configured;
//   - the same straight to the server's own address, around the proxies, should
//     not connect at all, and else has to be you again;
//   - two phones in two networks have to be two keys. If all are one, the proxies
//     are not configured, or append nothing.
package httpmw
