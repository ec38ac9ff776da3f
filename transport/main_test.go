package transport_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
	"github.com/surgewall/surgewall/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errRefused = errors.New("fake: refused")

// fakeGuard books what it is told, and notices a permit that is ended twice.
type fakeGuard struct {
	wants core.Wants // of its permits

	mu        sync.Mutex
	next      uint64
	held      map[uint64]bool
	results   []core.Result
	cancelled int
	twice     int
	refusal   error
}

func newGuard() *fakeGuard { return &fakeGuard{wants: core.WantsResult, held: map[uint64]bool{}} }

func (g *fakeGuard) Acquire(context.Context, core.Call) (core.Permit, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refusal != nil {
		return core.Permit{}, g.refusal
	}
	g.next++
	g.held[g.next] = true
	return core.NewPermit(g, core.Token{A: g.next}, g.wants), nil
}

func (g *fakeGuard) FinishPermit(_ context.Context, t core.Token, r core.Result) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.end(t)
	g.results = append(g.results, r)
}

func (g *fakeGuard) CancelPermit(t core.Token) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.end(t)
	g.cancelled++
}

func (g *fakeGuard) end(t core.Token) {
	if !g.held[t.A] {
		g.twice++
	}
	delete(g.held, t.A)
}

func (g *fakeGuard) out() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.held)
}

// only requires that one call has ended, once, and returns its Result.
func (g *fakeGuard) only(t testing.TB) core.Result {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	require.Empty(t, g.held, "permits held")
	require.Zero(t, g.twice, "permits ended twice")
	require.Zero(t, g.cancelled, "permits cancelled")
	require.Len(t, g.results, 1)
	return g.results[0]
}

func (g *fakeGuard) onlyCancelled(t testing.TB) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	require.Empty(t, g.held, "permits held")
	require.Empty(t, g.results)
	require.Equal(t, 1, g.cancelled)
}

func rejection() *core.Rejection {
	return &core.Rejection{Guard: "g", Reason: core.CircuitOpen, Err: errRefused}
}

// stub is a base that is a function.
type stub func(*http.Request) (*http.Response, error)

func (f stub) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
	return f(req)
}

// respond is a stub that answers with a status and a body.
func respond(status int, body io.ReadCloser) stub {
	return func(req *http.Request) (*http.Response, error) {
		return &http.Response{
			StatusCode: status, Header: http.Header{}, Body: body, ContentLength: -1,
			Request: req, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		}, nil
	}
}

// closable counts how often it is closed. It has no WriteTo.
type closable struct {
	io.Reader
	closed int
}

func (c *closable) Close() error { c.closed++; return nil }

func reading(r io.Reader) *closable { return &closable{Reader: struct{ io.Reader }{r}} }

func text(s string) *closable { return reading(bytes.NewReader([]byte(s))) }

func request(t testing.TB, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	require.NoError(t, err)
	return req
}

// serve starts a server, and a base transport of its own for it.
func serve(t testing.TB, h http.HandlerFunc) (base *http.Transport, address string) {
	t.Helper()
	s := httptest.NewServer(h)
	base = &http.Transport{}
	t.Cleanup(func() {
		base.CloseIdleConnections()
		s.Close()
	})
	return base, s.URL
}

func newTransport(t testing.TB, cfg transport.Config) *transport.Transport {
	t.Helper()
	rt, err := transport.New(cfg)
	require.NoError(t, err)
	return rt
}

// balancer is one over URLs, with a guard each if there are guards.
func balancer(t testing.TB, urls []string, guards ...core.Guard) *balance.Balancer[*url.URL] {
	t.Helper()
	list, err := transport.ParseBackends(urls, nil)
	require.NoError(t, err)
	for i := range guards {
		list[i].Guard = guards[i]
	}
	b, err := balance.New(balance.Config[*url.URL]{Backends: list})
	require.NoError(t, err)
	return b
}
