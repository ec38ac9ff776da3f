package limit

import (
	"context"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// lockedSlots is a bulkhead as its users make one of slots: it is what a keyed
// limiter does in each shard.
type lockedSlots struct {
	mu    sync.Mutex
	slots slots
	limit int
	nodes waiters
}

func (l *lockedSlots) acquire(ctx context.Context, n int, patience time.Duration) verdict {
	w := l.nodes.get(n, ctx.Done())
	defer l.nodes.put(w)
	l.mu.Lock()
	if l.slots.take(n, l.limit) {
		l.mu.Unlock()
		return granted
	}
	l.slots.queue.push(w)
	l.mu.Unlock()
	v, final := w.await(patience)
	if !final {
		l.mu.Lock()
		abandoned := l.slots.abandon(w, l.limit)
		l.mu.Unlock()
		if !abandoned {
			return w.decided()
		}
	}
	return v
}

func (l *lockedSlots) release(n int) (excess int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.slots.release(n, l.limit)
}

// A key's bulkhead takes two words.
func TestSlotsAreSmall(t *testing.T) {
	require.EqualValues(t, 16, unsafe.Sizeof(slots{}))
}

func TestSlotsTakeAndRelease(t *testing.T) {
	var s slots
	require.True(t, s.idle())
	require.True(t, s.take(3, 5))
	require.False(t, s.idle())
	require.False(t, s.take(3, 5))
	require.False(t, s.take(math.MaxInt, 5))
	require.True(t, s.take(2, 5))
	require.False(t, s.take(1, 5))
	require.False(t, s.take(1, 1), "more are taken than a lowered limit has")
	require.Zero(t, s.release(4, 5))
	require.Equal(t, 2, s.release(3, 5), "one was taken")
	require.Equal(t, math.MaxInt, s.release(math.MaxInt, 5))
	require.True(t, s.idle())
	require.True(t, s.take(maxSlots, maxSlots))
	require.False(t, s.take(1, maxSlots))
	require.Zero(t, s.release(maxSlots, maxSlots))
}

// modelWaiter is one that waits in the model.
type modelWaiter struct {
	w    *waiter
	n    int
	done chan struct{}
	gone bool
}

// The slots do what a list and a count do.
func TestSlotsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s slots
		taken, limit := 0, rapid.IntRange(1, 6).Draw(t, "limit")
		var queue, ended []*modelWaiter
		want := map[*waiter]verdict{}
		end := func(i int, v verdict) {
			m := queue[i]
			queue = slices.Delete(queue, i, i+1)
			ended = append(ended, m)
			want[m.w] = v
		}
		serve := func() {
			for len(queue) > 0 {
				switch m := queue[0]; {
				case m.n > limit:
					end(0, misfit)
				case m.gone:
					end(0, gone)
				case taken+m.n <= limit:
					taken += m.n
					end(0, granted)
				default:
					return
				}
			}
		}
		size := rapid.IntRange(1, 7)
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				n := size.Draw(t, "n")
				ok := len(queue) == 0 && taken+n <= limit
				if ok {
					taken += n
				}
				require.Equal(t, ok, s.take(n, limit))
			},
			"wait": func(t *rapid.T) {
				m := &modelWaiter{n: size.Draw(t, "n"), done: make(chan struct{})}
				if s.take(m.n, limit) {
					taken += m.n
					return
				}
				m.w = &waiter{n: m.n, done: m.done, ready: make(chan struct{}, 1)}
				s.queue.push(m.w)
				queue = append(queue, m)
			},
			"release": func(t *rapid.T) {
				n := size.Draw(t, "n")
				back := min(n, taken)
				taken -= back
				serve()
				require.Equal(t, n-back, s.release(n, limit))
			},
			"go": func(t *rapid.T) {
				if len(queue) > 0 {
					m := queue[rapid.IntRange(0, len(queue)-1).Draw(t, "who")]
					if !m.gone {
						m.gone = true
						close(m.done)
					}
				}
			},
			"abandon": func(t *rapid.T) {
				if len(queue) > 0 {
					i := rapid.IntRange(0, len(queue)-1).Draw(t, "who")
					w := queue[i].w
					queue = slices.Delete(queue, i, i+1)
					serve()
					require.True(t, s.abandon(w, limit))
					require.False(t, s.abandon(w, limit))
				}
			},
			"limit": func(t *rapid.T) {
				limit = rapid.IntRange(1, 6).Draw(t, "limit")
				if rapid.Bool().Draw(t, "refit") {
					s.queue.refit(limit)
					for i := len(queue) - 1; i >= 0; i-- {
						if queue[i].n > limit {
							end(i, misfit)
						}
					}
				}
				serve()
				s.serve(limit)
			},
			"": func(t *rapid.T) {
				require.EqualValues(t, taken, s.taken)
				require.Equal(t, len(queue), s.queue.len())
				require.Equal(t, taken == 0 && len(queue) == 0, s.idle())
				for _, m := range ended {
					v, final := m.w.await(forever)
					require.True(t, final || m.gone)
					if !final {
						v = m.w.decided()
					}
					require.Equal(t, want[m.w], v)
				}
				ended = nil
				if len(queue) > 0 {
					w := s.queue.last
					for _, m := range queue {
						w = w.next
						require.Same(t, m.w, w)
						require.Empty(t, w.ready)
					}
					require.Same(t, s.queue.last, w)
				}
			},
		})
	})
}

// Each waits as long as it may, and a lost place is taken by the next.
func TestSlotsAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lockedSlots{limit: 2}
		require.Equal(t, granted, l.acquire(t.Context(), 2, forever))
		start := time.Now()
		type end struct {
			v     verdict
			after time.Duration
		}
		ends := make([]end, 4)
		var wg sync.WaitGroup
		wait := func(i, n int, ctx context.Context, patience time.Duration) {
			wg.Go(func() {
				v := l.acquire(ctx, n, patience)
				ends[i] = end{v, time.Since(start)}
			})
			synctest.Wait()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		wait(0, 1, t.Context(), 10*time.Millisecond)
		wait(1, 2, ctx, time.Second) // holds up the next, though one slot comes free
		wait(2, 1, t.Context(), time.Second)
		wait(3, 1, t.Context(), forever)
		time.Sleep(15 * time.Millisecond)
		require.Zero(t, l.release(1))
		time.Sleep(15 * time.Millisecond)
		require.Zero(t, l.release(1))
		wg.Wait()
		const ms = time.Millisecond
		require.Equal(t, []end{{late, 10 * ms}, {gone, 20 * ms}, {granted, 20 * ms}, {granted, 30 * ms}}, ends)
		require.Zero(t, l.release(2))
		require.True(t, l.slots.idle())
	})
}

// Whoever is granted slots has them, and whoever is not has none, however the
// two race.
func TestSlotsLoseNothing(t *testing.T) {
	l := &lockedSlots{limit: 3}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 2000 {
				n := 1 + (i+j)%3
				ctx, cancel := context.WithCancel(context.Background())
				go cancel()
				patience := time.Duration((i*j)%50) * time.Microsecond
				if l.acquire(ctx, n, patience) == granted && l.release(n) != 0 {
					t.Error("more was given back than was taken")
				}
				cancel()
			}
		})
	}
	wg.Wait()
	require.True(t, l.slots.idle())
}
