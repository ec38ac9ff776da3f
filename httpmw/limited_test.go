package httpmw

import (
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/core/limit"
)

func newBucket(t testing.TB, rate limit.Rate, burst int) *limit.TokenBucket {
	t.Helper()
	b, err := limit.NewTokenBucket(limit.TokenBucketConfig{Rate: rate, Burst: burst})
	require.NoError(t, err)
	return b
}

// A token spent on a request that a breaker further in refused comes back.
func TestInnerRefusalReturnsTheToken(t *testing.T) {
	bucket := newBucket(t, limit.PerHour(1), 2)
	inner := newBreaker(t, circuit.Config{FailureThreshold: 1, OpenFor: time.Hour})
	h := Chain(Guard(bucket), Guard(inner))(answer(500))
	require.Equal(t, 500, get(h).Code)
	for range 10 {
		require.Equal(t, 503, get(h).Code, "not 429")
	}
	require.Equal(t, 200, get(Guard(bucket)(answer(200))).Code)
	require.Equal(t, 429, get(Guard(bucket)(answer(200))).Code)
}

func TestChainOfGuardsIsOneGuard(t *testing.T) {
	b := newBreaker(t, circuit.Config{FailureThreshold: 2, OpenFor: time.Hour})
	h := Guard(core.Chain(newBucket(t, limit.PerSecond(1000), 1000), b))(answer(502))
	for _, want := range []int{502, 502, 503} {
		require.Equal(t, want, get(h).Code)
	}
}

func TestLimitPerClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		perClient, err := limit.NewKeyed(limit.KeyedConfig[string]{
			Limit: limit.TokenBucketConfig{Rate: limit.PerMinute(2), Burst: 1},
		})
		require.NoError(t, err)
		h := GuardBy(perClient, byHeader)(answer(200))
		request := func(client string) *httptest.ResponseRecorder {
			w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Client", client)
			h.ServeHTTP(w, r)
			return w
		}
		require.Equal(t, 200, request("a").Code)
		require.Equal(t, 200, request("b").Code)
		got := request("a")
		require.Equal(t, 429, got.Code)
		require.Equal(t, "30", got.Header().Get("Retry-After"))
		time.Sleep(30 * time.Second)
		require.Equal(t, 200, request("a").Code)
		require.Equal(t, 400, request("").Code)
	})
}
