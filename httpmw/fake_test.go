package httpmw

import (
	"bytes"
	"context"
	"log"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/surgewall/surgewall/core"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeGuard admits until it is told to refuse, and remembers how each permit
// ended.
type fakeGuard struct {
	wants core.Wants

	mu        sync.Mutex
	refusal   error         // guarded by mu
	acquired  uint64        // guarded by mu
	results   []core.Result // guarded by mu
	cancelled int           // guarded by mu
	held      int           // guarded by mu
}

func (g *fakeGuard) Acquire(context.Context, core.Call) (core.Permit, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refusal != nil {
		return core.Permit{}, g.refusal
	}
	g.acquired++
	g.held++
	return core.NewPermit(g, core.Token{A: g.acquired}, g.wants), nil
}

func (g *fakeGuard) FinishPermit(_ context.Context, _ core.Token, r core.Result) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held--
	g.results = append(g.results, r)
}

func (g *fakeGuard) CancelPermit(core.Token) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held--
	g.cancelled++
}

func (g *fakeGuard) refuse(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refusal = err
}

// ended is how the permits so far ended; none may be held any more.
func (g *fakeGuard) ended(t *testing.T) (results []core.Result, cancelled int) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	require.Zero(t, g.held, "permits still held")
	return g.results, g.cancelled
}

// only is the result of the one permit that there was.
func (g *fakeGuard) only(t *testing.T) core.Result {
	t.Helper()
	results, cancelled := g.ended(t)
	require.Zero(t, cancelled, "cancelled permits")
	require.Len(t, results, 1)
	return results[0]
}

func (g *fakeGuard) holding() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held
}

// fakeKeyed is a KeyedGuard of fakeGuards, which must exist.
type fakeKeyed map[string]*fakeGuard

func (k fakeKeyed) AcquireKey(ctx context.Context, key string, call core.Call) (core.Permit, error) {
	return k[key].Acquire(ctx, call)
}

// freeGuard admits everything and keeps nothing, for what counts allocations.
type freeGuard struct{ wants core.Wants }

func (g *freeGuard) Acquire(context.Context, core.Call) (core.Permit, error) {
	return core.NewPermit(g, core.Token{}, g.wants), nil
}
func (g *freeGuard) FinishPermit(context.Context, core.Token, core.Result) {}
func (g *freeGuard) CancelPermit(core.Token)                               {}

func (g *freeGuard) AcquireKey(ctx context.Context, _ string, call core.Call) (core.Permit, error) {
	return g.Acquire(ctx, call)
}

var allWants = map[string]core.Wants{
	"nothing": core.WantsNothing, "end": core.WantsEnd, "result": core.WantsResult,
}

// bothProtocols runs test against a server of h over HTTP/1.1 and over HTTP/2.
func bothProtocols(t *testing.T, h http.Handler, test func(t *testing.T, srv *httptest.Server)) {
	t.Helper()
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			test(t, serve(t, h, http2))
		})
	}
}

// serve is a running server of h, closed with the test. No handler may be
// answered for a second time.
func serve(t *testing.T, h http.Handler, http2 bool) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = http2
	var said bytes.Buffer // written under the log's lock, read after Close
	srv.Config.ErrorLog = log.New(&said, "", 0)
	if http2 {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(func() {
		srv.Client().CloseIdleConnections()
		srv.Close()
		require.NotContains(t, said.String(), "superfluous")
	})
	return srv
}
