package transport_test

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/transport"
)

// emptyBody is at its end at once, and takes no memory.
type emptyBody struct{}

func (emptyBody) Read([]byte) (int, error) { return 0, io.EOF }
func (emptyBody) Close() error             { return nil }

// bare answers every request with the same response, made anew: 1 allocation.
type bare struct{}

func (bare) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Body: emptyBody{}, Request: req}, nil
}

type freeGuard struct{ wants core.Wants }

func (g freeGuard) Acquire(context.Context, core.Call) (core.Permit, error) {
	return core.NewPermit(nothing{}, core.Token{}, g.wants), nil
}

type nothing struct{}

func (nothing) FinishPermit(context.Context, core.Token, core.Result) {}
func (nothing) CancelPermit(core.Token)                               {}

func transports(t testing.TB) map[string]http.RoundTripper {
	breaker, err := circuit.New(circuit.Config{})
	require.NoError(t, err)
	list, err := transport.ParseBackends([]string{"http://a", "http://b", "http://c"}, func(id string) (core.Guard, error) {
		return circuit.New(circuit.Config{Name: id})
	})
	require.NoError(t, err)
	b, err := balance.New(balance.Config[*url.URL]{Backends: list})
	require.NoError(t, err)
	return map[string]http.RoundTripper{
		"bare":             bare{},
		"no guard":         transport.Guard(nil, bare{}),
		"limiter":          transport.Guard(freeGuard{core.WantsNothing}, bare{}),
		"breaker":          transport.Guard(breaker, bare{}),
		"balancer+breaker": newTransport(t, transport.Config{Base: bare{}, Backends: b}),
		"limiter+balancer+breaker": newTransport(t, transport.Config{
			Base: bare{}, Guard: freeGuard{core.WantsNothing}, Backends: b,
		}),
	}
}

func TestAllocationsOfARoundTrip(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	rts := transports(t)
	req := request(t, "GET", "http://logical/x", nil)
	for name, more := range map[string]float64{
		"bare": 0, "no guard": 0, "limiter": 0, "breaker": 1, "balancer+breaker": 2, "limiter+balancer+breaker": 2,
	} {
		rt := rts[name]
		allocs := testing.AllocsPerRun(100, func() { once(rt, req) })
		require.Equal(t, 1+more, allocs, "%s: one of them the base's", name)
	}
}

func once(rt http.RoundTripper, req *http.Request) {
	resp, err := rt.RoundTrip(req)
	if err != nil {
		panic(err)
	}
	_, _ = resp.Body.Read(nil)
	_ = resp.Body.Close()
}

func BenchmarkRoundTrip(b *testing.B) {
	rts := transports(b)
	for _, name := range []string{"bare", "no guard", "limiter", "breaker", "balancer+breaker", "limiter+balancer+breaker"} {
		b.Run(name, func(b *testing.B) {
			req := request(b, "GET", "http://logical/x", nil)
			b.ReportAllocs()
			for b.Loop() {
				once(rts[name], req)
			}
		})
	}
}
