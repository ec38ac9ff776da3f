package balance_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
)

func TestRoundRobinIsExactInEveryWindow(t *testing.T) {
	for n := 1; n <= 7; n++ {
		b := newBalancer(t, backends(n))
		var got []int
		for range 5 * n {
			got = append(got, pick(t, b))
		}
		for start := range len(got) - n {
			window := map[int]bool{}
			for _, v := range got[start : start+n] {
				window[v] = true
			}
			require.Len(t, window, n, "picks %d to %d of %v", start, start+n, got)
		}
	}
}

func TestRoundRobinIsExactAmongGoroutines(t *testing.T) {
	const n, workers, each = 5, 8, 1000
	b := newBalancer(t, backends(n))
	var got [n]atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				l, err := b.Pick(t.Context(), balance.PickInfo{})
				if err != nil {
					t.Error(err)
					return
				}
				got[l.Value()].Add(1)
				l.Done(t.Context(), core.Success)
			}
		})
	}
	wg.Wait()
	for i := range got {
		require.EqualValues(t, workers*each/n, got[i].Load(), "backend %d", i)
	}
}

// The share of a backend that is down, in each of the ways of being down, must
// not fall to its neighbour.
func TestShareOfABackendThatIsDownIsSpreadEvenly(t *testing.T) {
	const n, picks = 4, 1000
	ways := map[string]func(*balance.Balancer[int], *fakeGuard, int){
		"marked":    func(b *balance.Balancer[int], _ *fakeGuard, i int) { require.True(t, b.SetHealthy(id(i), false)) },
		"not ready": func(_ *balance.Balancer[int], g *fakeGuard, _ int) { g.notReady.Store(true) },
		"refusing":  func(_ *balance.Balancer[int], g *fakeGuard, _ int) { g.refusal.Store(refusal("g", time.Time{})) },
	}
	for name, down := range ways {
		for victim := range n {
			list, guards := guarded(n)
			b := newBalancer(t, list)
			down(b, guards[victim], victim)
			var got [n]int
			for range picks {
				got[pick(t, b)]++
			}
			for i := range got {
				if i == victim {
					require.Zero(t, got[i], "%s: the one that is down", name)
				} else {
					require.InDelta(t, picks/float64(n-1), got[i], 1, "%s: backend %d while %d is down", name, i, victim)
				}
			}
		}
	}
}

func TestRefusalsAreThreeAndDistinct(t *testing.T) { withEach(t, refusalsAreThreeAndDistinct) }

func refusalsAreThreeAndDistinct(t *testing.T, policy balance.Policy) {
	ctx := t.Context()
	b := newBalancerOf(t, policy, nil)
	_, err := b.Pick(ctx, balance.PickInfo{})
	requireRefused(t, err, balance.ErrNoBackend)

	list, guards := guarded(2)
	require.NoError(t, b.Update(list))
	b.SetHealthy("b0", false)
	guards[1].notReady.Store(true)
	_, err = b.Pick(ctx, balance.PickInfo{})
	r := requireRefused(t, err, balance.ErrNoneHealthy)
	require.Equal(t, "2 backends, 1 marked unhealthy, 1 refused by their guards or tried", r.Detail)
	require.NoError(t, r.Cause)

	guards[1].notReady.Store(false)
	var tried balance.Tried
	l, err := b.Pick(ctx, balance.PickInfo{Tried: &tried})
	require.NoError(t, err)
	l.MarkTried(&tried)
	l.Done(ctx, core.Failure)
	_, err = b.Pick(ctx, balance.PickInfo{Tried: &tried})
	requireRefused(t, err, balance.ErrAllTried)

	// A backend that was tried and is down besides is not a way out.
	guards[1].notReady.Store(true)
	_, err = b.Pick(ctx, balance.PickInfo{Tried: &tried})
	requireRefused(t, err, balance.ErrNoneHealthy)

	s := b.Stats()
	require.Equal(t, [3]uint64{1, 2, 1}, [3]uint64{s.NoBackend, s.NoneHealthy, s.AllTried})
}

func TestBackendThatIsNotReadyIsNotAsked(t *testing.T) {
	list, guards := guarded(3)
	b := newBalancer(t, list)
	guards[1].notReady.Store(true)
	for range 30 {
		require.NotEqual(t, 1, pick(t, b))
	}
	require.Zero(t, guards[1].asked.Load(), "a probe was spent")
	require.EqualValues(t, 15, guards[0].asked.Load())
	require.EqualValues(t, 15, guards[2].finished.Load())
}

func TestEachBackendIsAskedOnceWhenAllRefuse(t *testing.T) {
	withEach(t, eachBackendIsAskedOnceWhenAllRefuse)
}

func eachBackendIsAskedOnceWhenAllRefuse(t *testing.T, policy balance.Policy) {
	for _, n := range []int{1, 2, 5, 64, 65, 130} {
		list, guards := guarded(n)
		for i, g := range guards {
			g.refusal.Store(refusal(id(i), time.Time{}))
		}
		b := newBalancerOf(t, policy, list)
		_, err := b.Pick(t.Context(), balance.PickInfo{})
		requireRefused(t, err, balance.ErrNoneHealthy)
		require.ErrorIs(t, err, errRefused, "the cause")
		for i, g := range guards {
			require.EqualValues(t, 1, g.asked.Load(), "backend %d of %d", i, n)
		}
	}
}

func TestRefusalSaysWhenTheFirstGuardReopens(t *testing.T) {
	soon := time.Now().Add(time.Minute)
	late := soon.Add(time.Hour)
	list, guards := guarded(3)
	guards[0].refusal.Store(refusal("late", late))
	guards[1].refusal.Store(refusal("soon", soon))
	guards[2].refusal.Store(refusal("late", late))
	b := newBalancer(t, list)

	_, err := b.Pick(t.Context(), balance.PickInfo{})
	r := requireRefused(t, err, balance.ErrNoneHealthy)
	require.Equal(t, soon, r.RetryAt)
	require.Equal(t, guards[1].refusal.Load(), r.Cause)

	_, again := b.Pick(t.Context(), balance.PickInfo{})
	require.Same(t, r, again, "the same refusal while nothing changed")

	// A backend that may come back at any time leaves the instant unknown.
	guards[2].notReady.Store(true)
	_, err = b.Pick(t.Context(), balance.PickInfo{})
	require.True(t, requireRefused(t, err, balance.ErrNoneHealthy).RetryAt.IsZero())
}

func TestPickEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	list, guards := guarded(3)
	waited := &core.Rejection{Guard: "g", Reason: core.WaitTimeout, Err: errRefused, Cause: context.Canceled}
	for _, g := range guards {
		g.refusal.Store(waited)
		g.onAsk = cancel
	}
	b := newBalancer(t, list)
	_, err := b.Pick(ctx, balance.PickInfo{})
	require.Same(t, waited, err)
	require.ErrorIs(t, err, context.Canceled)
	require.EqualValues(t, 1, guards[0].asked.Load()+guards[1].asked.Load()+guards[2].asked.Load())
}

func TestGuardThatReturnsAnotherErrorIsPassedOver(t *testing.T) {
	list := backends(2)
	list[0].Guard = errorGuard{}
	b := newBalancer(t, list)
	for range 4 {
		require.Equal(t, 1, pick(t, b))
	}
	b.SetHealthy("b1", false)
	_, err := b.Pick(t.Context(), balance.PickInfo{})
	requireRefused(t, err, balance.ErrNoneHealthy)
}

type errorGuard struct{}

// uncomparable would panic if two of it were compared.
type uncomparable []string

func (uncomparable) Error() string { return "uncomparable" }

func (errorGuard) Acquire(context.Context, core.Call) (core.Permit, error) {
	return core.Permit{}, uncomparable{"x"}
}

func TestRetryGoesToABackendNotYetTried(t *testing.T) { withEach(t, retryGoesToABackendNotYetTried) }

func retryGoesToABackendNotYetTried(t *testing.T, policy balance.Policy) {
	ctx := t.Context()
	b := newBalancerOf(t, policy, backends(3))
	for range 10 {
		var tried balance.Tried
		seen := map[int]bool{}
		for range 3 {
			l, err := b.Pick(ctx, balance.PickInfo{Tried: &tried})
			require.NoError(t, err)
			require.False(t, seen[l.Value()])
			seen[l.Value()] = true
			l.MarkTried(&tried)
			l.Done(ctx, core.Failure)
		}
		_, err := b.Pick(ctx, balance.PickInfo{Tried: &tried})
		requireRefused(t, err, balance.ErrAllTried)
	}
}

func TestTriedRemembersTheLastEight(t *testing.T) { withEach(t, triedRemembersTheLastEight) }

func triedRemembersTheLastEight(t *testing.T, policy balance.Policy) {
	ctx := t.Context()
	b := newBalancerOf(t, policy, backends(9))
	var tried balance.Tried
	var first string
	for i := range 9 {
		l, err := b.Pick(ctx, balance.PickInfo{Tried: &tried})
		require.NoError(t, err)
		if i == 0 {
			first = l.ID()
		}
		l.MarkTried(&tried)
		l.Done(ctx, core.Failure)
	}
	l, err := b.Pick(ctx, balance.PickInfo{Tried: &tried})
	require.NoError(t, err)
	require.Equal(t, first, l.ID(), "the one that was forgotten")
	l.Cancel()
}

func TestWorkIsBoundedWith999Of1000Down(t *testing.T) { withEach(t, workIsBoundedWith999Of1000Down) }

func workIsBoundedWith999Of1000Down(t *testing.T, policy balance.Policy) {
	const n, up = 1000, 617
	list, guards := guarded(n)
	b := newBalancerOf(t, policy, list)
	for i, g := range guards {
		g.notReady.Store(i != up)
	}
	const picks = 20
	for range picks {
		require.Equal(t, up, pick(t, b))
	}
	looks := int64(0)
	for _, g := range guards {
		looks += g.readied.Load()
		require.LessOrEqual(t, g.readied.Load(), int64(picks), "looked at twice in one pick")
	}
	require.LessOrEqual(t, looks, int64(picks*n))

	// Backends that are marked are not even looked at.
	for i := range n {
		b.SetHealthy(id(i), i == up)
	}
	before := guards[up].readied.Load()
	for range picks {
		require.Equal(t, up, pick(t, b))
	}
	require.EqualValues(t, picks, guards[up].readied.Load()-before)
	after := int64(0)
	for _, g := range guards {
		after += g.readied.Load()
	}
	require.EqualValues(t, picks, after-looks)
}

// Picks at the same time use up each other's turns, and still none may miss the
// one backend that is up.
func TestNoPickMissesTheOnlyBackendThatIsUp(t *testing.T) {
	withEach(t, noPickMissesTheOnlyBackendThatIsUp)
}

func noPickMissesTheOnlyBackendThatIsUp(t *testing.T, policy balance.Policy) {
	const n, up = 16, 7
	list, guards := guarded(n)
	b := newBalancerOf(t, policy, list)
	for i, g := range guards {
		g.notReady.Store(i != up)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				l, err := b.Pick(t.Context(), balance.PickInfo{})
				if err != nil || l.Value() != up {
					t.Errorf("%v, %v", l.ID(), err)
					return
				}
				l.Cancel()
			}
		})
	}
	wg.Wait()
}

func TestDoFinishesHoweverTheCallEnds(t *testing.T) {
	ctx := t.Context()
	failed := errors.New("failed")
	run := func(t *testing.T, fn func(context.Context, int) error) (g *fakeGuard, s balance.BackendStats, err error) {
		list, guards := guarded(1)
		b := newBalancer(t, list)
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer func() { _ = recover() }()
			err = b.Do(ctx, fn)
		}()
		<-done
		s = b.Stats().Backends[0]
		require.Zero(t, s.InFlight)
		require.EqualValues(t, 1, s.Picks)
		return guards[0], s, err
	}
	t.Run("nil", func(t *testing.T) {
		g, s, err := run(t, func(_ context.Context, v int) error { require.Zero(t, v); return nil })
		require.NoError(t, err)
		require.EqualValues(t, 1, g.outcomes[core.Success].Load())
		require.EqualValues(t, 1, s.Successes)
	})
	t.Run("error", func(t *testing.T) {
		g, s, err := run(t, func(context.Context, int) error { return failed })
		require.Same(t, failed, err)
		require.EqualValues(t, 1, g.outcomes[core.Failure].Load())
		require.EqualValues(t, 1, s.Failures)
	})
	t.Run("throttled", func(t *testing.T) {
		_, s, _ := run(t, func(context.Context, int) error { return core.Mark(failed, core.Throttled) })
		require.EqualValues(t, 1, s.Throttled)
	})
	t.Run("refused further in", func(t *testing.T) {
		g, s, _ := run(t, func(context.Context, int) error { return refusal("inner", time.Time{}) })
		require.EqualValues(t, 1, g.cancelled.Load())
		require.EqualValues(t, 1, s.Cancelled)
	})
	t.Run("refused further in after work that counts", func(t *testing.T) {
		g, s, _ := run(t, func(context.Context, int) error {
			return core.Mark(refusal("inner", time.Time{}), core.Failure)
		})
		require.EqualValues(t, 1, g.outcomes[core.Failure].Load(), "a mark outranks a refusal")
		require.EqualValues(t, 1, s.Failures)
	})
	t.Run("panic", func(t *testing.T) {
		g, s, _ := run(t, func(context.Context, int) error { panic("call") })
		require.EqualValues(t, 1, g.outcomes[core.Failure].Load())
		require.EqualValues(t, 1, s.Failures)
	})
	t.Run("goexit", func(t *testing.T) {
		_, s, _ := run(t, func(context.Context, int) error { exit(); return nil })
		require.EqualValues(t, 1, s.Failures)
	})
	t.Run("refused", func(t *testing.T) {
		err := newBalancer(t, nil).Do(ctx, func(context.Context, int) error { t.Error("called"); return nil })
		requireRefused(t, err, balance.ErrNoBackend)
	})
}
