package notify

import (
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func TestDeliversInOrderOfPush(t *testing.T) {
	var q Queue[int]
	var got []int
	for i := range 10 {
		q.Push(i)
	}
	q.Drain(func(i int) { got = append(got, i) })
	require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, got)
}

func TestListenerMayPushAndDrain(t *testing.T) {
	var q Queue[int]
	var got []int
	var deliver func(int)
	deliver = func(i int) {
		got = append(got, i)
		if i < 3 {
			q.Push(i + 1)
			q.Drain(deliver)
		}
	}
	q.Push(0)
	q.Drain(deliver)
	require.Equal(t, []int{0, 1, 2, 3}, got)
}

func TestPanicLosesOneNotice(t *testing.T) {
	var q Queue[int]
	var got []int
	for i := range 4 {
		q.Push(i)
	}
	q.Drain(func(i int) {
		if i%2 == 0 {
			panic("listener")
		}
		got = append(got, i)
	})
	require.Equal(t, []int{1, 3}, got)
	require.EqualValues(t, 2, q.Panics())
}

// However often a listener panics before the queue is empty, the stack of the
// goroutine that delivers stays as it is.
func TestPanicsDoNotPileUpOnTheStack(t *testing.T) {
	var q Queue[int]
	var depths []int
	q.Push(0)
	q.Drain(func(i int) {
		if i < 100 {
			q.Push(i + 1)
		}
		depths = append(depths, runtime.Callers(0, make([]uintptr, 10_000)))
		panic("listener")
	})
	require.Len(t, depths, 101)
	require.Equal(t, depths[0], slices.Max(depths))
	require.EqualValues(t, 101, q.Panics())
}

func TestGoexitStrandsNothing(t *testing.T) {
	var q Queue[int]
	var got []int
	for i := range 4 {
		q.Push(i)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		q.Drain(func(i int) {
			if i < 2 {
				runtime.Goexit()
			}
			got = append(got, i)
		})
	}()
	<-done
	require.Equal(t, []int{2, 3}, got)
	q.Push(9)
	q.Drain(func(i int) { got = append(got, i) })
	require.Equal(t, []int{2, 3, 9}, got)
}

func TestBlockedListenerHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q Queue[int]
		var got []int
		release := make(chan struct{})
		deliver := func(i int) {
			if i == 0 {
				<-release
			}
			got = append(got, i)
		}
		q.Push(0)
		go q.Drain(deliver)
		synctest.Wait()
		for i := 1; i < 4; i++ {
			q.Push(i)
			q.Drain(deliver) // returns although the first listener blocks
		}
		require.Empty(t, got)
		close(release)
		synctest.Wait()
		require.Equal(t, []int{0, 1, 2, 3}, got)
	})
}

func TestFullQueueMerges(t *testing.T) {
	type step struct{ from, to int }
	q := Queue[step]{Merge: func(last *step, next step) bool {
		last.to = next.to
		return last.from != last.to
	}}
	const steps = maxPending * 3
	for i := range steps {
		q.Push(step{i % 2, (i + 1) % 2})
	}
	require.LessOrEqual(t, len(q.pending), maxPending)
	at := 0
	q.Drain(func(s step) {
		require.Equal(t, at, s.from)
		at = s.to
	})
	require.Equal(t, steps%2, at)
}

func TestNothingIsLostAmongManyDrainers(t *testing.T) {
	var q Queue[int]
	var mu sync.Mutex
	var got []int
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 1000 {
				for {
					q.mu.Lock()
					room := len(q.pending) < maxPending-8
					q.mu.Unlock()
					if room {
						break
					}
					runtime.Gosched()
				}
				q.Push(w*1000 + i)
				q.Drain(func(i int) {
					mu.Lock()
					got = append(got, i)
					mu.Unlock()
				})
			}
		})
	}
	wg.Wait()
	require.Len(t, got, 8000)
	slices.Sort(got)
	for i, v := range got {
		require.Equal(t, i, v)
	}
}
