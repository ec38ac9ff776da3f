package jitter

import (
	"math"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestNothingToPauseFor(t *testing.T) {
	require.Zero(t, Full(0, time.Second, time.Minute))
	require.Zero(t, Full(-1, time.Second, time.Minute))
	require.Zero(t, Full(math.MinInt, time.Second, time.Minute))
	require.Zero(t, Full(3, 0, time.Minute))
	require.Zero(t, Full(3, -time.Second, time.Minute))
	require.Zero(t, Full(3, time.Second, 0))
	require.Zero(t, Full(3, time.Second, math.MinInt64))
}

// The pause of every n, base and most is within the bound as big integers have
// it.
func TestNeverAboveTheCeiling(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.OneOf(rapid.IntRange(1, 70), rapid.IntMin(1)).Draw(t, "n")
		base := rapid.Int64Min(1).Draw(t, "base")
		most := rapid.Int64Min(1).Draw(t, "most")
		ceiling := new(big.Int).Lsh(big.NewInt(base), uint(min(n-1, 64)))
		if ceiling.Cmp(big.NewInt(most)) > 0 {
			ceiling.SetInt64(most)
		}
		for range 10 {
			d := Full(n, time.Duration(base), time.Duration(most))
			require.GreaterOrEqual(t, d, time.Duration(0))
			require.LessOrEqual(t, int64(d), ceiling.Int64())
		}
	})
}

// Every pause from 0 to the ceiling comes, both ends too, and about as often as
// any other: 8 values drawn 8,000 times each come 1,000 times, with a standard
// deviation of 30. The bound is at seven of them.
func TestUniform(t *testing.T) {
	for _, tc := range []struct {
		n          int
		base, most time.Duration
		ceiling    int
	}{
		{1, 7, 100, 7}, // base
		{4, 1, 7, 7},   // most, where 2^3 is just above it
		{3, 2, 8, 8},   // base·2^2 is most
		{2, 5, 100, 10},
	} {
		counts := make([]int, tc.ceiling+1)
		for range 1000 * len(counts) {
			counts[Full(tc.n, tc.base, tc.most)]++
		}
		for d, c := range counts {
			require.InDelta(t, 1000, c, 210, "%+v: a pause of %d", tc, d)
		}
	}
}

// The widest range there is reaches into both halves, and is never negative.
func TestWidest(t *testing.T) {
	var high int
	for range 200 {
		d := Full(math.MaxInt, math.MaxInt64, math.MaxInt64)
		require.GreaterOrEqual(t, d, time.Duration(0))
		if d > math.MaxInt64/2 {
			high++
		}
	}
	require.Greater(t, high, 0)
	require.Less(t, high, 200)
}
