package stripe

import (
	"sync"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func TestNothingIsLost(t *testing.T) {
	var g Group
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10000 {
				g.Add(0, 1)
				g.Add(Size-1, 3)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 80000, g.Sum(0))
	require.EqualValues(t, 240000, g.Sum(Size-1))
	require.Zero(t, g.Sum(1))
}

func TestStripesDoNotShareLines(t *testing.T) {
	require.EqualValues(t, 128, unsafe.Sizeof(line{}))
}

func BenchmarkAdd(b *testing.B) {
	var g Group
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			g.Add(0, 1)
		}
	})
}
