package retry

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// longest is the longest of many pauses, of which most are within a tenth of
// the bound: that none of 400 is has a chance of 10^-18.
func longest(b Backoff, n int) (most time.Duration) {
	for range 400 {
		most = max(most, b.Pause(n))
	}
	return most
}

func TestPauseDoublesUpToCap(t *testing.T) {
	for _, tc := range []struct {
		b    Backoff
		n    int
		want time.Duration
	}{
		{Backoff{}, 1, 50 * time.Millisecond},
		{Backoff{}, 2, 100 * time.Millisecond},
		{Backoff{}, 6, 1600 * time.Millisecond},
		{Backoff{}, 7, 2 * time.Second},
		{Backoff{}, math.MaxInt, 2 * time.Second},
		{Backoff{Base: time.Second}, 1, time.Second},
		{Backoff{Base: time.Minute}, 1, 2 * time.Second},
		{Backoff{Cap: 10 * time.Millisecond}, 1, 10 * time.Millisecond},
		{Backoff{Base: time.Millisecond, Cap: math.MaxInt64}, 11, 1024 * time.Millisecond},
		{Backoff{Base: 3, Cap: math.MaxInt64}, 63, math.MaxInt64}, // 3·2^62 does not fit
		{Backoff{Base: math.MaxInt64, Cap: math.MaxInt64}, 1, math.MaxInt64},
	} {
		got := longest(tc.b, tc.n)
		require.LessOrEqual(t, got, tc.want, "%+v, retry %d", tc.b, tc.n)
		require.Greater(t, got, tc.want/10*9, "%+v, retry %d", tc.b, tc.n)
	}
}

func TestNoPause(t *testing.T) {
	require.Zero(t, longest(Backoff{}, 0))
	require.Zero(t, longest(Backoff{}, math.MinInt))
	require.Zero(t, longest(Backoff{Base: -1}, 3))
	require.Zero(t, longest(Backoff{Cap: math.MinInt64}, 3))
}
