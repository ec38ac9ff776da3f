// Package otelhook tells OpenTelemetry when surgewall steps in.
//
// A [Hook] is a core.Observer: give it to components as their Observer. It
// makes of their events
//
//   - a span "circuit_breaker trip" when a breaker opens, and a span
//     "circuit_breaker open", as long as the outage, when it has closed again;
//   - a span "rate_limiting reject" or "load_shedding reject" for each
//     component and interval in which calls were refused, with their number:
//     never one for each call;
//   - "rate_limiting shadow" or "load_shedding shadow" likewise for refusals
//     that core.Shadow did not enforce;
//   - the metrics surgewall.circuit_breaker.state_changes,
//     surgewall.rate_limiting.requests, surgewall.load_shedding.requests,
//     surgewall.shadow.refusals and surgewall.retry.retries;
//   - with [WithConnectionTimes], the histograms
//     db.client.connection.{wait,use,create}_time.
//
// [Hook.Register] exports what components count themselves: every number in
// their reports becomes an observable instrument of the report's own name.
//
// Spans are roots of their own traces, linked to the request that caused them:
// under a sampler that follows the parent, a child of a request that is not
// sampled would be lost, and a trip is never about one request. Attributes hold
// names from the program's configuration and constants, nothing that a user
// sent.
//
// The package uses the OpenTelemetry API only. The names follow the semantic
// conventions where these have one (db.client.connection.*, error.type).
package otelhook
