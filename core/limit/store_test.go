package limit

import (
	"fmt"
	"hash/maphash"
	"math/bits"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

type (
	testTable = table[string, uint64, int]
	testCell  = cell[string, uint64, int]
)

// check fails if t is not in order, and returns all that it holds.
func checkTable[K comparable, S, H any](t require.TestingT, seed maphash.Seed, tab *table[K, S, H]) map[K]*cell[K, S, H] {
	all := map[K]*cell[K, S, H]{}
	for i := range tab.buckets {
		for c := *tab.bucket(i); c != nil; c = c.next {
			if i != tab.place(maphash.Comparable(seed, c.key)) || all[c.key] != nil {
				require.Fail(t, "a key in the wrong bucket, or twice")
			}
			all[c.key] = c
		}
	}
	require.EqualValues(t, len(all), tab.keys)
	require.LessOrEqual(t, tab.keys, tab.buckets)
	room := 0
	for _, segment := range tab.dir {
		room += len(segment)
	}
	require.GreaterOrEqual(t, room, int(tab.buckets))
	require.LessOrEqual(t, room, max(int(tab.buckets)+segmentSize, 4))
	return all
}

// A table is a map, whatever comes and goes.
func TestTableIsAMap(t *testing.T) {
	seed := maphash.MakeSeed()
	rapid.Check(t, func(t *rapid.T) {
		var tab testTable
		model := map[string]uint64{}
		homes := map[string]*testCell{}
		name := rapid.Custom(func(t *rapid.T) string {
			return fmt.Sprint(rapid.IntRange(0, rapid.SampledFrom([]int{3, 50, 2000}).Draw(t, "of")).Draw(t, "key"))
		})
		count := uint64(0)
		add := func(key string) {
			h := maphash.Comparable(seed, key)
			if c := tab.find(h, key); c != nil {
				require.Equal(t, model[key], c.state)
				return
			}
			count++
			c := tab.add(seed, h, key, new(int))
			c.state, model[key], homes[key] = count, count, c
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) { add(name.Draw(t, "name")) },
			"add many": func(t *rapid.T) {
				for i := range rapid.IntRange(1, 600).Draw(t, "many") {
					add(fmt.Sprint("many", i))
				}
			},
			"replace": func(t *rapid.T) {
				key := name.Draw(t, "name")
				h := maphash.Comparable(seed, key)
				if c := tab.find(h, key); c != nil {
					d := tab.replace(h, c, new(int))
					require.Same(t, d, c.next)
					require.Same(t, d, tab.find(h, key))
					require.Equal(t, c.state, d.state)
					homes[key] = d
				}
			},
			"sweep": func(t *rapid.T) {
				odds := rapid.SampledFrom([]uint64{1, 2, 10, 1 << 40}).Draw(t, "one in")
				looked := 0
				removed := tab.sweep(func(c *testCell) bool {
					looked++
					require.Same(t, homes[c.key], c)
					if c.state%odds != 0 {
						return false
					}
					delete(model, c.key)
					return true
				})
				require.LessOrEqual(t, removed, looked)
				require.Less(t, looked, 2*sweepMost, "no call has much to do")
			},
			"": func(t *rapid.T) {
				all := checkTable(t, seed, &tab)
				require.Len(t, all, len(model))
				for key, state := range model {
					if c := all[key]; c != homes[key] || c.state != state {
						require.Fail(t, "not what was added")
					}
				}
			},
		})
	})
}

// A sweep comes by every cell, and what it forgets takes no memory: not even
// that of the buckets.
func TestTableShrinks(t *testing.T) {
	var tab testTable
	seed := maphash.MakeSeed()
	const keys = 10_000
	fill := func() {
		for i := range keys {
			key := fmt.Sprint(i)
			c := tab.add(seed, maphash.Comparable(seed, key), key, nil)
			c.state = uint64(i)
		}
	}
	fill()
	require.EqualValues(t, keys, tab.buckets, "a bucket for each key")

	looked := map[uint64]int{}
	for range keys {
		tab.sweep(func(c *testCell) bool { looked[c.state]++; return false })
	}
	require.Len(t, looked, keys, "every cell was looked at")

	sweeps := 0
	for ; tab.keys > 0; sweeps++ {
		tab.sweep(func(*testCell) bool { return true })
		require.LessOrEqual(t, tab.buckets, tab.keys+tab.keys/4+4, "buckets follow the keys")
	}
	require.Less(t, sweeps, keys/10, "where all are idle, it looks at more")
	require.Empty(t, checkTable(t, seed, &tab))
	require.Len(t, tab.dir, 1)
	fill()
	require.Len(t, checkTable(t, seed, &tab), keys)
}

// While a table is walked, bucket by bucket, nothing moves to where the walk has
// been.
func TestFixedTableMergesNothing(t *testing.T) {
	var tab testTable
	seed := maphash.MakeSeed()
	for i := range 1000 {
		key := fmt.Sprint(i)
		tab.add(seed, maphash.Comparable(seed, key), key, nil)
	}
	tab.fixed = true
	for tab.keys > 0 {
		tab.sweep(func(*testCell) bool { return true })
	}
	require.EqualValues(t, 1000, tab.buckets)
}

func TestBelow(t *testing.T) {
	for i := uint32(1); i < 1000; i++ {
		was, is := testTable{buckets: i}, testTable{buckets: i + 1}
		for h := range uint64(2048) {
			before, after := was.place(h<<shardBits), is.place(h<<shardBits)
			if after == i {
				after = below(i)
			}
			if before != after {
				require.Fail(t, "what is in a new bucket was in that below, and all else stays")
			}
		}
		require.Equal(t, bits.OnesCount32(i)-1, bits.OnesCount32(below(i)))
	}
}

func TestShardsFor(t *testing.T) {
	for maxKeys, want := range map[int]int{
		1: 1, 63: 1, 64: 2, 127: 2, 128: 4, 8191: 128, 8192: 256, 1 << 30: 256,
	} {
		require.Equal(t, want, shardsFor(maxKeys), "%d", maxKeys)
	}
}
