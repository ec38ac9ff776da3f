package transport

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
	"github.com/surgewall/surgewall/core/circuit"
)

// failing is a base that cannot reach anything.
type failing struct{}

func (failing) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
	return nil, errors.New("connection refused")
}

// A breaker that is open is not Ready, so it is passed over without being asked.
func TestAllBreakersOpenSaysWhyAndWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var list []balance.Backend[*url.URL]
		for i, id := range []string{"a", "b"} {
			breaker, err := circuit.New(circuit.Config{
				Name: id, FailureThreshold: 1, OpenFor: time.Duration(2-i) * time.Minute,
			})
			require.NoError(t, err)
			list = append(list, balance.Backend[*url.URL]{ID: id, Value: &url.URL{Scheme: "http", Host: id}, Guard: breaker})
		}
		backends, err := balance.New(balance.Config[*url.URL]{Backends: list})
		require.NoError(t, err)
		rt, err := New(Config{Base: failing{}, Backends: backends})
		require.NoError(t, err)
		get := func() error {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://service/", nil)
			require.NoError(t, err)
			_, err = rt.RoundTrip(req)
			return err
		}
		for range 2 {
			require.EqualError(t, get(), "connection refused")
		}
		err = get()
		require.ErrorIs(t, err, balance.ErrNoneHealthy)
		require.ErrorIs(t, err, circuit.ErrOpen)
		r, ok := errors.AsType[*core.Rejection](err)
		require.True(t, ok)
		after, known := r.RetryAfter()
		require.True(t, known)
		require.Equal(t, time.Minute, after, "the breaker that is first to admit again")
		require.Same(t, err, get(), "a flood of refusals allocates nothing")
	})
}

// net/http refuses these before anything is sent. A user's input in a header
// must not open the breaker of a server that never heard of it.
func TestMalformedRequestSaysNothingOfTheServer(t *testing.T) {
	for name, spoil := range map[string]func(*http.Request){
		"field value": func(r *http.Request) { r.Header.Set("X-Name", "a\nb") },
		"field name":  func(r *http.Request) { r.Header["X Name"] = []string{"a"} },
		"method":      func(r *http.Request) { r.Method = "GET\n" },
		"trailer":     func(r *http.Request) { r.Trailer = http.Header{"X-Sum": {"\x00"}} },
		"no host":     func(r *http.Request) { r.URL.Host = "" },
		"no header":   func(r *http.Request) { r.Header = nil },
	} {
		t.Run(name, func(t *testing.T) {
			breaker, err := circuit.New(circuit.Config{FailureThreshold: 1})
			require.NoError(t, err)
			base := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
				return nil, errors.New("dialled")
			}}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://server/", strings.NewReader(""))
			require.NoError(t, err)
			spoil(req)
			_, err = Guard(breaker, base).RoundTrip(req)
			require.Error(t, err)
			require.NotContains(t, err.Error(), "dialled", "refused before it was sent")
			require.Equal(t, circuit.Closed, breaker.State())
			require.Zero(t, breaker.Stats().Failures)
		})
	}
	// The same server, a request that is well: it cannot be reached.
	breaker, err := circuit.New(circuit.Config{FailureThreshold: 1})
	require.NoError(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://server/", nil)
	require.NoError(t, err)
	req.Header.Set("X-Name", "Ünïcode\tand tab")
	_, err = Guard(breaker, failing{}).RoundTrip(req)
	require.Error(t, err)
	require.Equal(t, circuit.Open, breaker.State())
}
