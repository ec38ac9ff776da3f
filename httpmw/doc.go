// Package httpmw puts guards in front of HTTP handlers. Each middleware is a
// func(http.Handler) http.Handler, so that it mixes with those of any router:
//
//	protect := httpmw.Chain(
//		httpmw.GuardBy(perClient, clientKey), // quota: 429
//		httpmw.Guard(bulkhead),               // capacity: 503
//		httpmw.Guard(breaker),
//	)
//	http.ListenAndServe(addr, protect(shop))
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
//   - Failure with core.ErrNoReturn for a panic and for runtime.Goexit;
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
// guards nested directly, as [Chain] nests them, and across other middleware
// for guards that want the result, if the writers in between have the Unwrap
// method that http.ResponseController asks for. Behind a writer without it,
// and behind http.TimeoutHandler, a refusal is the plain 429 or 503 that it is
// on the wire.
package httpmw
