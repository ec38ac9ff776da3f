package limit

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// manyNames are keys of 17 bytes, side by side in memory.
func manyNames(prefix string, n int) []string {
	var all strings.Builder
	for i := range n {
		fmt.Fprintf(&all, "%s%0*d", prefix, 17-len(prefix), i)
	}
	names := make([]string, n)
	for i := range names {
		names[i] = all.String()[i*17 : (i+1)*17]
	}
	return names
}

// live is what is on the heap and in use.
func live() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// What KeyedConfig promises: a key takes a cell of 48 bytes, its string header
// included, and a slot for it. As keys go, so does the memory.
func TestKeyedMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const keys = 200_000
	synctest.Test(t, func(t *testing.T) {
		names := manyNames("client-", keys)
		before := live()
		k := newKeyed(t, KeyedConfig[string]{MaxKeys: keys, Limit: TokenBucketConfig{Rate: PerSecond(1), Burst: 10}})
		for _, name := range names {
			require.True(t, k.Allow(name))
		}
		full := live()
		perKey := float64(full-before) / keys
		t.Logf("%.1f bytes a key", perKey)
		require.Less(t, perKey, 60.0)
		require.Greater(t, perKey, 56.0, "less than a cell and its slot: it counts wrong")
		require.Equal(t, keys, k.Stats().Keys)

		// None is asked for any more but one: the others go all the same.
		time.Sleep(2 * time.Second)
		calls := 0
		for ; k.Stats().Keys > 1; calls += 1000 {
			for range 1000 {
				k.Allow(names[0])
			}
		}
		require.LessOrEqual(t, calls, 10*keys)
		empty := live()
		t.Logf("%d bytes when empty, after %d calls", empty-before, calls)
		require.Less(t, empty-before, (full-before)/20)
		require.EqualValues(t, keys-1, k.Stats().Forgotten)
		runtime.KeepAlive(k)
		runtime.KeepAlive(names)
	})
}

// A million fresh keys neither push out what a key owes nor take more memory
// than MaxKeys of them.
func TestFloodOfFreshKeys(t *testing.T) {
	const maxKeys = 10_000
	fresh := 1_000_000
	if raceEnabled {
		fresh = 100_000
	}
	synctest.Test(t, func(t *testing.T) {
		before := live()
		k := newKeyed(t, KeyedConfig[int]{MaxKeys: maxKeys, Limit: TokenBucketConfig{Rate: PerSecond(1), Burst: 3}})
		limited := -1
		k.Charge(limited, 3600)
		for key := range fresh {
			k.Allow(key)
			if key%10_000 == 0 {
				require.False(t, k.Allow(limited))
				time.Sleep(time.Second)
			}
		}
		s := k.Stats()
		require.LessOrEqual(t, s.Keys, maxKeys)
		require.Positive(t, s.Overflowed)
		require.Positive(t, s.Forgotten)
		require.EqualValues(t, fresh+1+fresh/10_000, s.Admitted+s.Refused+1)
		require.Equal(t, 3600*time.Second-time.Duration(fresh/10_000)*time.Second-2*time.Second, k.Peek(limited, 1).RetryAfter,
			"to the last token")
		if !raceEnabled {
			require.Less(t, live()-before, 100*maxKeys, "as for MaxKeys, and not for all that came")
		}
		checkKeyed(t, k)
	})
}

// As many keys as are kept can be refused in turn, and nothing is allocated.
func TestFloodOfManyLimitedKeys(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	k := newKeyed(t, KeyedConfig[int]{Limit: TokenBucketConfig{Rate: PerDay(1), Burst: 1}})
	const keys = 500
	for key := range keys {
		require.True(t, k.Allow(key))
		time.Sleep(time.Microsecond) // real time: so that each has an instant of its own
	}
	key := 0
	refuse := func() {
		key = (key + 1) % keys
		if _, err := k.AcquireKey(t.Context(), key, core.Call{}); err == nil {
			t.Error("admitted")
		}
	}
	for range keys {
		refuse()
	}
	// Where instants collide, a few are made anew.
	require.Less(t, testing.AllocsPerRun(10*keys, refuse), 0.1)
}

// Keys of a fast limit owe nothing soon after each call. Those who go on calling are
// not forgotten in between, and who stops is.
func TestKeysInUseAreNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t, KeyedConfig[int]{Limit: TokenBucketConfig{Rate: PerSecond(1_000_000_000), Burst: 10}})
		for i := range 20_000 {
			require.True(t, k.Allow(i%100))
			time.Sleep(time.Microsecond)
		}
		require.Equal(t, 100, k.Stats().Keys)
		require.Zero(t, k.Stats().Forgotten)
		time.Sleep(time.Second)
		for k.Stats().Keys > 1 {
			k.Allow(0)
		}
		require.EqualValues(t, 99, k.Stats().Forgotten)
	})
}
