package transport

import (
	"math"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPausesThatAreOverAreForgotten(t *testing.T) {
	var p pauses[int]
	// Each of 100,000 hosts asks for a second, a thousand hosts a second: about
	// a thousand pauses are in effect at any time.
	most := 0
	for i := range 100_000 {
		now := time.Duration(i) * time.Millisecond
		end, longer := p.extend(i, now, now+time.Second, 0)
		require.True(t, longer)
		require.Equal(t, now+time.Second, end)
		most = max(most, len(p.until))
	}
	require.Less(t, most, 3000)
	require.Equal(t, 100_000*time.Millisecond, p.of(99_000))
}

func TestPausesAreBounded(t *testing.T) {
	var p pauses[int]
	for i := range maxPauses + 5000 {
		_, longer := p.extend(i, 0, time.Hour, 0)
		require.True(t, longer, "made, if not remembered")
	}
	require.Len(t, p.until, maxPauses)
	require.Equal(t, time.Hour, p.of(7))
	require.Zero(t, p.of(maxPauses+1))
	end, longer := p.extend(maxPauses+1, 0, time.Minute, 0)
	require.True(t, longer)
	require.Equal(t, time.Minute, end)
	_, longer = p.extend(7, 0, time.Minute, 0)
	require.False(t, longer)
	_, longer = p.extend(7, 0, 2*time.Hour, 0)
	require.True(t, longer)

	// Room comes back when they are over.
	for i := range 1000 {
		p.extend(-1-i, 2*time.Hour+1, 3*time.Hour, 0)
		require.Equal(t, 3*time.Hour, p.of(-1-i))
	}
	require.Less(t, len(p.until), maxPauses)
}

func TestPauseOfNoKeyHasNoEnd(t *testing.T) {
	var p pauses[float64]
	require.Zero(t, p.of(1))
	end, longer := p.extend(1, 5, 5, 0)
	require.Equal(t, time.Duration(5), end)
	require.True(t, longer)
	_, longer = p.extend(1, 5, 5, time.Hour)
	require.False(t, longer, "the same again")
	end, longer = p.extend(1, 5, math.MaxInt64/2, time.Duration(century))
	require.True(t, longer)
	require.Greater(t, end, time.Duration(math.MaxInt64/2-1))
}

func TestPausesInRace(t *testing.T) {
	var p pauses[int]
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 1000 {
				now := time.Duration(i)
				p.extend(i%100, now, now+time.Duration(g), 3)
				p.of(i % 100)
			}
		})
	}
	wg.Wait()
	require.GreaterOrEqual(t, p.of(99), time.Duration(999+7))
}
