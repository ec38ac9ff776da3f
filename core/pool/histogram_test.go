package pool

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestHistogramBuckets(t *testing.T) {
	for _, c := range []struct {
		d time.Duration
		i int
	}{
		{-1, 0},
		{0, 0},
		{1023, 0},
		{1024, 1},
		{2047, 1},
		{2048, 2},
		{time.Millisecond, 10},
		{1<<34 - 1, 24},
		{1 << 34, 25},
		{math.MaxInt64, 25},
	} {
		var h Histogram
		h.add(c.d)
		require.EqualValues(t, 1, h.Counts[c.i], c.d)
		require.EqualValues(t, 1, h.Count())
	}
}

// The quantile is above the true one, and at most twice it or 1,024 ns.
func TestHistogramQuantile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h Histogram
		require.Zero(t, h.Quantile(0.5))
		require.Zero(t, h.Mean())
		times := rapid.SliceOfN(rapid.Int64Range(0, 1<<33), 1, 50).Draw(t, "times")
		var sum, most int64
		for _, d := range times {
			h.add(time.Duration(d))
			sum, most = sum+d, max(most, d)
		}
		require.EqualValues(t, sum, h.Sum)
		require.EqualValues(t, sum/int64(len(times)), h.Mean())
		top := int64(h.Quantile(1))
		require.Greater(t, top, most)
		require.LessOrEqual(t, top, max(2*most, 1024))
		below := func(q float64) (n int) {
			for _, d := range times {
				if time.Duration(d) < h.Quantile(q) {
					n++
				}
			}
			return n
		}
		q := rapid.Float64Range(0, 1).Draw(t, "q")
		require.GreaterOrEqual(t, float64(below(q)), q*float64(len(times)))
	})
}

func TestHistogramReport(t *testing.T) {
	var h Histogram
	h.add(time.Second)
	v := h.report("x").Histogram
	require.Len(t, v.Counts, len(v.Bounds)+1)
	require.InDelta(t, 1.024e-6, v.Bounds[0], 1e-12)
	require.InDelta(t, 1, v.Sum, 1e-12)
}
