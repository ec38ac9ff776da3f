// Package transport is the client side over HTTP: an http.RoundTripper that
// puts any guard, or one for each server, in front of another, that keeps to a
// rate and pauses when the server asks for it, and that spreads requests over
// several backends.
//
//	client := &http.Client{Transport: transport.Guard(breaker, nil)}
//
// A [Transport] keeps the contract of http.RoundTripper to the letter. The
// request is not modified and its body is closed on every path; a status is
// never turned into an error; informational responses, httptrace hooks,
// trailers, upgraded connections and HTTP/2 streams are those of the base.
//
// A call lasts until its response body is at EOF or closed, so the body must be
// closed, as with any http.RoundTripper.
package transport

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
)

// Config configures a Transport. The zero Config is its Base, bare.
type Config struct {
	// Base sends the requests. Default: http.DefaultTransport.
	Base http.RoundTripper

	// Guard, if set, is asked before each request, and before a backend is
	// picked: a limit of the whole client, or a breaker where there is one
	// server only. For a limit that heeds Retry-After, see RateLimit.
	// Default: none.
	Guard core.Guard

	// Backends, if set, are what the requests are spread over; see
	// ParseBackends. Each request goes to the scheme and host of the backend's
	// URL, with the path of that URL in front of its own; what scheme and host
	// the request itself has is of no account. The Host header, and the name
	// that TLS asks for, is the backend's, except that a Request.Host which
	// differs from the host of Request.URL was set on purpose and is sent.
	// A redirect that http.Client follows is a request like any other: it is
	// spread anew. Give each backend a guard of its own in the Balancer.
	// Default: none, the requests go where they say.
	Backends *balance.Balancer[*url.URL]

	// Outcome, if set, says what a response means for the guards, when its
	// headers have arrived. It must not read the body. It is called
	// concurrently, outside all locks. Default: Outcome.
	Outcome func(*http.Response) core.Outcome
}

// Transport is an http.RoundTripper with a guard in front, or several backends
// behind, or both. Make one with New, Guard, GuardBy, GuardByWith, RateLimit or
// RateLimitBy. It is safe for concurrent use, owns no goroutine and no connection,
// and needs no Close.
type Transport struct {
	base     http.RoundTripper
	keyed    keyedGuards // nil unless GuardBy, GuardByWith, RateLimit or RateLimitBy made it
	guard    core.Guard
	backends *balance.Balancer[*url.URL]
	outcome  func(*http.Response) core.Outcome
}

// New makes a Transport. The error lists every backend whose URL cannot be sent
// to; errors.Is(err, core.ErrConfig).
func New(cfg Config) (*Transport, error) {
	bad := core.Check("transport.Config")
	if cfg.Backends != nil {
		for _, b := range cfg.Backends.Backends() {
			problem := checkBackend(b.Value)
			bad.If(problem != "", "Backends", b.ID, problem)
		}
	}
	if err := bad.Err(); err != nil {
		return nil, err
	}
	t := &Transport{base: cfg.Base, guard: cfg.Guard, backends: cfg.Backends, outcome: cfg.Outcome}
	if t.base == nil {
		t.base = http.DefaultTransport
	}
	if t.outcome == nil {
		t.outcome = Outcome
	}
	return t, nil
}

// Guard puts g in front of base. A nil base is http.DefaultTransport; a nil g
// admits every request.
func Guard(g core.Guard, base http.RoundTripper) *Transport {
	if base == nil {
		base = http.DefaultTransport
	}
	return &Transport{base: base, guard: g, outcome: Outcome}
}

// The errors of a base that breaks the contract of http.RoundTripper.
var (
	errNoResponse = errors.New("transport: the base returned neither a response nor an error")
	errNoBody     = errors.New("transport: the base returned a response with a length and no body")
)

// RoundTrip sends one request. If a guard refuses, nothing is sent, and the
// error is its *core.Rejection: http.Client wraps it in a *url.Error, through
// which errors.As finds it. A *core.Rejection of the base leaves the guards of
// this Transport as if the request had not been made, unless it is marked (see
// core.Mark) with an Outcome that counts.
//
// The guards hear how the call ended when the response body is at EOF, fails,
// or is closed; at once if there is no body, if the connection was upgraded
// (status 101), or if nothing waits for the end:
//
//   - the Outcome of the response, if the body was read to the end or closed,
//   - that of core.Classify if there was no response, or if its body failed and
//     the Outcome was Success: the caller's cancellation is Ignored, all else,
//     a missed deadline and a stream that breaks off included, is Failure,
//   - Ignored, if the call failed because the request's body could not be read, or
//     is not as long as the request's ContentLength says.
//
// The Latency is the time to the headers, so that a long stream is no slow call;
// without headers there is none, and a guard takes the time since Acquire. A
// guard that wants no result of its permits (see core.Wants) hears the end only.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.keyed != nil {
		return t.keyed.roundTrip(t, req)
	}
	var call exchange
	return t.send(req, &call)
}

// send is RoundTrip for a call that may hold a permit already.
func (t *Transport) send(req *http.Request, call *exchange) (*http.Response, error) {
	call.ctx = req.Context()
	var resp *http.Response
	sent, answered := false, false
	defer func() {
		if answered {
			return
		}
		if !sent && req.Body != nil {
			_ = req.Body.Close()
		}
		if resp != nil && resp.Body != nil {
			_ = resp.Body.Close()
		}
		call.finish(core.Result{Outcome: core.Failure, Err: core.ErrNoReturn}) // unless it is finished
	}()

	out, err := t.admit(req, call)
	if err != nil {
		call.cancel()
		return nil, err
	}
	var start time.Time
	watch := call.wantsResult()
	if watch {
		call.left, start = core.TimeLeft(call.ctx), time.Now()
	}
	sent = true
	resp, err = t.base.RoundTrip(out)
	if err == nil {
		err = complete(resp, req.Method)
	}
	if err != nil {
		call.finishErr(out, err)
		return nil, err
	}
	if watch {
		latency := max(1, time.Since(start)) // 0 would be the time to the end of the body
		call.result = core.Result{Outcome: t.outcome(resp), Latency: latency}
		if call.result.Outcome != core.Success {
			call.result.RetryAfter, _ = retryAfter(resp.Header)
		}
	}
	if !call.wantsEnd() || resp.Body == http.NoBody || resp.StatusCode == http.StatusSwitchingProtocols {
		call.finish(call.result)
	} else {
		resp.Body = newBody(resp.Body, call)
	}
	answered = true
	return resp, nil
}

// admit asks the guards, and returns the request to send: req itself, or a copy
// where something differs. If it returns an error, what the call holds is to be
// cancelled.
func (t *Transport) admit(req *http.Request, call *exchange) (*http.Request, error) {
	if t.guard != nil {
		p, err := t.guard.Acquire(call.ctx, core.Call{})
		if err != nil {
			return nil, err
		}
		call.permit = p.Take()
	}
	var copied *outgoing
	if t.backends != nil {
		lease, err := t.backends.Pick(call.ctx, balance.PickInfo{})
		if err != nil {
			return nil, err
		}
		call.lease, call.leased = lease.Take(), true
		if copied, err = redirect(req, lease.Value()); err != nil {
			return nil, fmt.Errorf("transport: backend %q: %w", lease.ID(), err)
		}
	}
	if call.wantsResult() && streams(req.Body, req.GetBody != nil) {
		if copied == nil {
			copied = copyOf(req)
		}
		call.sending = copied.watchBody()
	}
	if copied == nil {
		return req, nil
	}
	return &copied.req, nil
}

// CloseIdleConnections calls the base's method of that name, if it has one.
func (t *Transport) CloseIdleConnections() {
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// complete makes of what a base returned without an error what net/http
// promises: a response with a body. An absent body stands for an empty one.
func complete(resp *http.Response, method string) error {
	switch {
	case resp == nil:
		return errNoResponse
	case resp.Body != nil:
		return nil
	case resp.ContentLength > 0 && method != http.MethodHead:
		return errNoBody
	}
	resp.Body = http.NoBody
	return nil
}
