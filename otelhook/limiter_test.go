package otelhook

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core/limit"
)

// A limiter tells the Hook of its refusals and reports them too.
func TestRefusalsOfARegisteredLimiterCountOnce(t *testing.T) {
	b := newBackend(t)
	bucket, err := limit.NewTokenBucket(limit.TokenBucketConfig{
		Name: "api", Rate: limit.PerDay(1), Burst: 1, Observer: b.Hook,
	})
	require.NoError(t, err)
	unregister, err := b.Register(bucket)
	require.NoError(t, err)
	defer unregister()
	require.True(t, bucket.Allow())
	for range 3 {
		require.False(t, bucket.Allow())
	}
	for range 2 { // a metric that is new becomes an instrument at the next collection
		got := b.metrics(t)
		const requests = "surgewall.rate_limiting.requests{surgewall.rate_limiting.name=api,surgewall.rate_limiting.result="
		require.EqualValues(t, 1, got[requests+"acquired}"])
		require.EqualValues(t, 3, got[requests+"rejected}"])
	}
}
