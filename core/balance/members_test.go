package balance_test

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
)

func exit() { runtime.Goexit() }

func TestNewReportsAllProblemsAtOnce(t *testing.T) {
	_, err := balance.New(balance.Config[int]{Backends: []balance.Backend[int]{{ID: "a"}, {}, {ID: "a"}, {ID: " "}}})
	require.ErrorIs(t, err, core.ErrConfig)
	require.NotErrorIs(t, err, balance.ErrNoBackend)
	require.EqualError(t, err, "balance.Config.Backends.ID: 1: the backend at this index must have an ID\n"+
		"balance.Config.Backends.ID: a: must be given once\n"+
		"balance.Config.Backends.ID: 3: the backend at this index must have an ID")
}

func TestEmptyListHasASentinelOfItsOwn(t *testing.T) {
	b, err := balance.New(balance.Config[int]{})
	require.Nil(t, b)
	require.ErrorIs(t, err, balance.ErrNoBackend)
	require.ErrorIs(t, err, core.ErrConfig)

	b, err = balance.New(balance.Config[int]{Backends: backends(2)})
	require.NoError(t, err)
	require.ErrorIs(t, b.Update(nil), balance.ErrNoBackend)
	require.Len(t, b.Stats().Backends, 2, "a refused Update changes nothing")

	b, err = balance.New(balance.Config[int]{AllowEmpty: true})
	require.NoError(t, err)
	_, err = b.Pick(t.Context(), balance.PickInfo{})
	requireRefused(t, err, balance.ErrNoBackend)
	require.NoError(t, b.Update(backends(1)))
	require.Zero(t, pick(t, b))
	require.NoError(t, b.Update(nil))
	_, err = b.Pick(t.Context(), balance.PickInfo{})
	requireRefused(t, err, balance.ErrNoBackend)
}

func TestUpdateThatIsRefusedChangesNothing(t *testing.T) {
	b := newBalancer(t, backends(2))
	err := b.Update([]balance.Backend[int]{{ID: "x"}, {ID: "x"}})
	require.ErrorIs(t, err, core.ErrConfig)
	require.Equal(t, "b0", b.Stats().Backends[0].ID)
}

func TestUpdateKeepsWhatBelongsToTheSameID(t *testing.T) {
	ctx := t.Context()
	b := newBalancer(t, backends(2))
	b.SetHealthy("b1", false)
	l, err := b.Pick(ctx, balance.PickInfo{})
	require.NoError(t, err)
	require.Equal(t, "b0", l.ID())

	require.NoError(t, b.Update([]balance.Backend[int]{{ID: "b1", Value: 11}, {ID: "b0", Value: 10}, {ID: "new", Value: 12}}))
	s := b.Stats().Backends
	require.Equal(t, []string{"b1", "b0", "new"}, []string{s[0].ID, s[1].ID, s[2].ID})
	require.False(t, s[0].Healthy)
	require.Equal(t, 11, b.Backends()[0].Value)
	require.Len(t, b.Backends(), 3)
	require.EqualValues(t, 1, s[1].InFlight)
	require.True(t, s[2].Healthy)

	require.Zero(t, l.Value(), "the lease keeps the value it was given")
	l.Done(ctx, core.Success)
	require.EqualValues(t, 1, b.Stats().Backends[1].Successes)
	got := map[int]bool{pick(t, b): true, pick(t, b): true}
	require.Equal(t, map[int]bool{10: true, 12: true}, got)
}

func TestLateDoneDoesNotReachTheNextIncarnation(t *testing.T) {
	ctx := t.Context()
	list, guards := guarded(1)
	b := newBalancer(t, list)
	l, err := b.Pick(ctx, balance.PickInfo{})
	require.NoError(t, err)
	late, err := b.Pick(ctx, balance.PickInfo{})
	require.NoError(t, err)

	require.NoError(t, b.Update(nil))
	l.Done(ctx, core.Failure) // after removal
	again := &fakeGuard{}
	require.NoError(t, b.Update([]balance.Backend[int]{{ID: "b0", Value: 5, Guard: again}}))
	late.Done(ctx, core.Failure) // after the return

	s := b.Stats().Backends[0]
	require.Equal(t, balance.BackendStats{ID: "b0", Healthy: true, Ready: true, Since: s.Since}, s)
	require.Zero(t, again.finished.Load())
	require.EqualValues(t, 2, guards[0].finished.Load(), "its own guard is told")

	var tried balance.Tried
	late.MarkTried(&tried)
	fresh, err := b.Pick(ctx, balance.PickInfo{Tried: &tried})
	require.NoError(t, err, "the new incarnation was not tried")
	fresh.Cancel()
}

func TestChangesDoNotRestartTheTurn(t *testing.T) {
	b := newBalancer(t, backends(4))
	b.SetHealthy("b3", false)
	var got [4]int
	for range 300 {
		got[pick(t, b)]++
		b.SetHealthy("b3", true)
		b.SetHealthy("b3", false)
	}
	require.Equal(t, [4]int{100, 100, 100, 0}, got)
}

func TestLeaseIsFinishedOnce(t *testing.T) {
	ctx := t.Context()
	list, guards := guarded(1)
	b := newBalancer(t, list)
	l, err := b.Pick(ctx, balance.PickInfo{})
	require.NoError(t, err)
	require.EqualValues(t, 1, b.Stats().Backends[0].InFlight)
	l.Done(ctx, core.Throttled)
	l.Done(ctx, core.Failure)
	l.DoneErr(ctx, context.Canceled)
	l.Cancel()
	s := b.Stats().Backends[0]
	require.Equal(t, balance.BackendStats{
		ID: "b0", Healthy: true, Ready: true, Since: s.Since, Picks: 1, Throttled: 1,
	}, s)
	require.EqualValues(t, 1, guards[0].finished.Load())
	require.Zero(t, guards[0].cancelled.Load())
	require.Equal(t, "b0", l.ID())

	l, err = b.Pick(ctx, balance.PickInfo{})
	require.NoError(t, err)
	moved := l.Take()
	l.Done(ctx, core.Failure)
	require.EqualValues(t, 1, b.Stats().Backends[0].InFlight, "the lease was moved")
	moved.Finish(ctx, core.Result{Outcome: core.Outcome(200)})
	require.EqualValues(t, 1, b.Stats().Backends[0].Ignored, "an unknown outcome teaches nothing")

	var zero balance.Lease[int]
	zero.Done(ctx, core.Success)
	zero.Cancel()
	zero.MarkTried(&balance.Tried{})
	require.Empty(t, zero.ID())
	require.Zero(t, zero.Value())
}

func TestSetHealthyOfAnUnknownBackend(t *testing.T) {
	require.False(t, newBalancer(t, backends(1)).SetHealthy("b1", false))
}

func TestChangesAreToldInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{}
		b, err := balance.New(balance.Config[int]{Name: "pay", Backends: backends(2), Observer: rec})
		require.NoError(t, err)
		require.Empty(t, rec.all(), "the backends to begin with are no change")

		time.Sleep(3 * time.Second)
		b.SetHealthy("b0", false)
		b.SetHealthy("b0", false) // no change
		time.Sleep(2 * time.Second)
		b.SetHealthy("b0", true)
		require.NoError(t, b.Update(append(backends(1), balance.Backend[int]{ID: "new"})))

		event := func(seq uint64, id, from, to string, after time.Duration, lasted time.Duration) core.Event {
			return core.Event{
				Kind: core.KindBackendChanged, Component: "pay", Backend: id, From: from, To: to, Seq: seq,
				At: time.Now().Add(after - 5*time.Second), Duration: lasted,
			}
		}
		require.Equal(t, []core.Event{
			event(1, "b0", "healthy", "unhealthy", 3*time.Second, 3*time.Second),
			event(2, "b0", "unhealthy", "healthy", 5*time.Second, 2*time.Second),
			event(3, "b1", "healthy", "removed", 5*time.Second, 5*time.Second),
			event(4, "new", "", "healthy", 5*time.Second, 0),
		}, rec.all())
	})
}

func TestRefusalIsTold(t *testing.T) {
	rec := &recorder{}
	b, err := balance.New(balance.Config[int]{AllowEmpty: true, Observer: rec})
	require.NoError(t, err)
	_, err = b.Pick(t.Context(), balance.PickInfo{Call: core.Call{Cost: 3}})
	require.Error(t, err)
	require.Equal(t, []core.Event{{Kind: core.KindRejected, Component: "balancer", Reason: core.NoBackend, N: 3}}, rec.all())
}

func TestChangesAlternateAndEndOnTheTruth(t *testing.T) {
	rec := &recorder{}
	b, err := balance.New(balance.Config[int]{Backends: backends(1), Observer: rec})
	require.NoError(t, err)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 100 {
				b.SetHealthy("b0", (w+i)%2 == 0)
			}
		})
	}
	wg.Wait()
	b.SetHealthy("b0", false)
	state, seq := "healthy", uint64(0)
	for _, e := range rec.all() {
		require.Equal(t, state, e.From)
		require.NotEqual(t, e.From, e.To)
		require.Greater(t, e.Seq, seq)
		state, seq = e.To, e.Seq
	}
	require.Equal(t, "unhealthy", state)
}

func TestObserverMayDoAnything(t *testing.T) {
	for name, hook := range map[string]func(b *balance.Balancer[int]){
		"panic":     func(*balance.Balancer[int]) { panic("observer") },
		"goexit":    func(*balance.Balancer[int]) { exit() },
		"call back": func(b *balance.Balancer[int]) { b.SetHealthy("b1", true); b.Stats(); b.Inspect() },
	} {
		t.Run(name, func(t *testing.T) {
			rec := &recorder{}
			b, err := balance.New(balance.Config[int]{Backends: backends(2), Observer: rec})
			require.NoError(t, err)
			rec.hook = func(core.Event) { hook(b) }
			done := make(chan struct{})
			go func() {
				defer close(done)
				b.SetHealthy("b0", false)
			}()
			<-done
			require.Equal(t, 1, pick(t, b))
			rec.hook = nil
			b.SetHealthy("b0", true)
			require.Len(t, rec.all(), 2)
		})
	}
	t.Run("block", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			rec := &recorder{}
			b, err := balance.New(balance.Config[int]{Backends: backends(3), Observer: rec})
			require.NoError(t, err)
			rec.hook = func(e core.Event) {
				if e.Kind == core.KindBackendChanged {
					<-release
				}
			}
			go b.SetHealthy("b2", false)
			synctest.Wait()
			for i := range 1000 { // nobody else waits, and nothing piles up
				b.SetHealthy("b1", i%2 == 1)
			}
			b.SetHealthy("b0", false) // does not fit any more, and is not mixed up with the other's
			b.SetHealthy("b1", false)
			require.Error(t, b.Do(t.Context(), func(context.Context, int) error { return nil }))
			close(release)
			synctest.Wait()
			state, heard := "healthy", 0
			for _, e := range rec.all() {
				if e.Backend == "b1" {
					require.Equal(t, state, e.From)
					state = e.To
					heard++
				}
			}
			require.Equal(t, "unhealthy", state)
			require.Less(t, heard, 300)
		})
	})
}

func TestNothingIsInFlightAfterAStorm(t *testing.T) {
	const workers, each = 8, 2000
	list, guards := guarded(6)
	b := newBalancer(t, list)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			for range each {
				switch rng.IntN(20) {
				case 0:
					b.SetHealthy(id(rng.IntN(6)), rng.IntN(4) > 0)
				case 1:
					guards[rng.IntN(6)].notReady.Store(rng.IntN(4) == 0)
				case 2:
					_ = b.Update(list[rng.IntN(3):]) // b0 to b2 come and go
				}
				ctx, cancel := context.WithCancel(t.Context())
				l, err := b.Pick(ctx, balance.PickInfo{})
				if err != nil {
					cancel()
					continue
				}
				switch rng.IntN(4) {
				case 0:
					l.Cancel()
				case 1:
					cancel()
					l.DoneErr(ctx, ctx.Err())
				case 2:
					l.Done(ctx, core.Failure)
				}
				l.Done(ctx, core.Success)
				cancel()
			}
		})
	}
	wg.Wait()
	for _, s := range b.Stats().Backends {
		require.Zero(t, s.InFlight, s.ID)
		require.Equal(t, s.Picks, s.Successes+s.Failures+s.Throttled+s.Ignored+s.Cancelled, s.ID)
	}
	for i, g := range guards {
		require.Equal(t, g.asked.Load(), g.finished.Load()+g.cancelled.Load(), "permits of backend %d", i)
	}
}

func TestInspect(t *testing.T) {
	list, guards := guarded(2)
	list[0].Guard = component{guards[0]}
	b := newBalancer(t, list)
	require.Equal(t, "balancer", b.Name())
	r := b.Inspect()
	require.Equal(t, "healthy", r.State)
	require.Equal(t, "balancer", r.Kind)
	require.Len(t, r.Children, 2)
	require.Equal(t, "inner", r.Children[0].Children[0].Name)
	require.Empty(t, r.Children[1].Children)

	pick(t, b)
	pick(t, b)
	b.SetHealthy("b0", false)
	r = b.Inspect()
	require.Equal(t, "degraded", r.State)
	require.Equal(t, "unhealthy", r.Children[0].State)
	require.Contains(t, r.Children[1].Values, core.Count("surgewall.balancer.backend.calls", "{call}", 1).With("outcome", "success"))
	require.Contains(t, r.Values, core.Amount("surgewall.balancer.backends", "{backend}", 1).With("state", "available"))

	guards[1].notReady.Store(true)
	require.Equal(t, "down", b.Inspect().State)
	require.NoError(t, b.Update(nil))
	require.Equal(t, "empty", b.Inspect().State)
}

type component struct{ *fakeGuard }

func (component) Name() string         { return "inner" }
func (component) Inspect() core.Report { return core.Report{Name: "inner"} }

var _ core.Component = (*balance.Balancer[string])(nil)
