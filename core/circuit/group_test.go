package circuit

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

var errDown = errors.New("down")

func newGroup[K comparable](t testing.TB, cfg GroupConfig[K]) *Group[K] {
	t.Helper()
	g, err := NewGroup(cfg)
	require.NoError(t, err)
	return g
}

func fail[K comparable](t testing.TB, g *Group[K], key K) error {
	t.Helper()
	return core.Do(t.Context(), core.ForKey(g, key), func(context.Context) error { return errDown })
}

func checkGroup[K comparable](t testing.TB, g *Group[K]) {
	t.Helper()
	n := 0
	for range g.All() {
		n++
	}
	require.EqualValues(t, n, g.keys.Load())
	require.Equal(t, n, g.Stats().Keys)
	require.LessOrEqual(t, n, g.Stats().MaxKeys)
}

func TestGroupKeepsKeysApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type change struct {
			key      string
			from, to State
		}
		var told []change
		each := 0
		g := newGroup(t, GroupConfig[string]{
			Config:        Config{Name: "hosts", FailureThreshold: 2, OnStateChange: func(State, State) { each++ }},
			OnStateChange: func(key string, from, to State) { told = append(told, change{key, from, to}) },
		})
		require.NoError(t, core.Do(t.Context(), core.ForKey(g, "b"), func(context.Context) error { return nil }))
		fail(t, g, "a")
		fail(t, g, "b")
		fail(t, g, "a")
		err := fail(t, g, "a")
		require.ErrorIs(t, err, ErrOpen)
		require.ErrorIs(t, fail(t, g, "b"), errDown)
		require.Equal(t, []change{{"a", Closed, Open}, {"b", Closed, Open}}, told)
		require.Equal(t, 2, each)
		require.Same(t, g.Get("a"), g.Get("a"))
		require.Equal(t, GroupStats{Keys: 2, MaxKeys: 10_000, Open: 2}, g.Stats())
		r := g.Inspect()
		require.Equal(t, "hosts", r.Name)
		require.Contains(t, r.Values, core.Amount("surgewall.circuit_breaker.count", "{circuit}", 2).With("state", "open"))
		require.Contains(t, r.Settings, core.Setting{Name: "FailureThreshold", Value: 2})
		checkGroup(t, g)
	})
}

// Beyond MaxKeys a breaker makes room that is closed, knows of no failure and was not
// asked for lately; any other stays. A key without a breaker is admitted.
func TestGroupIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, GroupConfig[string]{Config: Config{FailureThreshold: 2, OpenFor: time.Hour}, MaxKeys: 4, IdleFor: time.Minute})
		fail(t, g, "open")
		fail(t, g, "open")
		fail(t, g, "failing")
		g.Get("forced").ForceClosed()
		g.Get("idle")
		require.Nil(t, g.Get("fifth"))
		p, err := g.AcquireKey(t.Context(), "fifth", core.Call{})
		require.NoError(t, err, "no breaker is no reason to refuse")
		p.Done(t.Context(), core.Failure)
		require.EqualValues(t, 2, g.Stats().Overflowed)
		time.Sleep(time.Minute - 1)
		g.Get("idle")
		time.Sleep(time.Minute)
		require.Nil(t, g.Get("fifth"), "it was asked for")
		time.Sleep(time.Minute)
		require.NotNil(t, g.Get("fifth"))
		s := g.Stats()
		require.Equal(t, 4, s.Keys)
		require.EqualValues(t, 1, s.Evicted)
		checkGroup(t, g)
		require.ErrorIs(t, fail(t, g, "open"), ErrOpen)
		require.Equal(t, 1, g.Get("failing").Stats().FailuresInARow)
		require.Equal(t, ForcedClosed, g.Get("forced").State())

		// An evicted key behaves as new, once there is room.
		core.Do(t.Context(), core.ForKey(g, "failing"), func(context.Context) error { return nil })
		for range 3 {
			time.Sleep(time.Minute)
			g.Get("idle")
		}
		require.NotNil(t, g.Get("idle"))
		require.Zero(t, g.Get("idle").Stats().FailuresInARow)
		require.Nil(t, newGroup(t, GroupConfig[float64]{}).Get(math.NaN()), "nobody could find it again")
	})
}

// A breaker whose window has seen a failure is not idle until that has left it.
func TestGroupKeepsWhatTheWindowKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, GroupConfig[int]{
			Config:  Config{FailureThreshold: Off, FailurePercent: 100, MinCalls: 100, Window: time.Hour},
			MaxKeys: 1, IdleFor: time.Second,
		})
		fail(t, g, 1)
		for range 3 {
			time.Sleep(10 * time.Minute)
			require.Nil(t, g.Get(2))
		}
		time.Sleep(time.Hour)
		require.NotNil(t, g.Get(2))
	})
}

func TestGroupReconfigure(t *testing.T) {
	g := newGroup(t, GroupConfig[int]{Config: Config{Name: "g", FailureThreshold: 5}})
	fail(t, g, 1)
	require.ErrorIs(t, g.Reconfigure(Config{Probes: -1}), core.ErrConfig)
	require.NoError(t, g.Reconfigure(Config{Name: "other", FailureThreshold: 2}))
	fail(t, g, 1)
	fail(t, g, 2)
	fail(t, g, 2)
	require.Equal(t, 2, g.Stats().Open)
	require.Equal(t, "g", g.Get(3).Name())
}

func TestGroupBadConfig(t *testing.T) {
	_, err := NewGroup(GroupConfig[int]{MaxKeys: -1, IdleFor: -1, Config: Config{OpenFor: -1}})
	require.ErrorIs(t, err, core.ErrConfig)
	require.EqualError(t, err, `circuit.GroupConfig.MaxKeys: -1: must be 1 to 1000000, or 0 for the default
circuit.GroupConfig.IdleFor: -1ns: must be above 0, or 0 for the default
circuit.Config.OpenFor: -1ns: must be above 0, or 0 for the default`)
}

func TestNilGroup(t *testing.T) {
	var g *Group[int]
	p, err := g.AcquireKey(t.Context(), 1, core.Call{})
	require.NoError(t, err)
	p.Done(t.Context(), core.Failure)
	require.Zero(t, g.Stats())
	require.Empty(t, g.Name())
	require.Equal(t, "circuit_breakers", g.Inspect().Kind)
	require.NoError(t, g.Reconfigure(Config{}))
	for range g.All() {
		t.Error("no key")
	}
}

// Many keys come at once, more than there is room for, while some are known, open
// and close. The bound holds, and an open breaker never goes.
func TestGroupUnderLoad(t *testing.T) {
	g := newGroup(t, GroupConfig[int]{Config: Config{FailureThreshold: 2, OpenFor: time.Hour}, MaxKeys: 200, IdleFor: time.Nanosecond})
	fail(t, g, -1)
	fail(t, g, -1)
	open := g.Get(-1)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 2000 {
				key := rand.IntN(1000)
				p, err := g.AcquireKey(t.Context(), key, core.Call{})
				if err == nil {
					p.Done(t.Context(), core.Outcome(rand.IntN(2)))
				}
				if rand.IntN(200) == 0 {
					g.Stats()
					if err := g.Reconfigure(Config{FailureThreshold: 2, OpenFor: time.Hour}); err != nil {
						t.Error(err)
					}
				}
				if g.keys.Load() > 200+16 { // each goroutine may be asking for a place
					t.Error("too many keys")
				}
			}
		})
	}
	wg.Wait()
	require.Same(t, open, g.Get(-1))
	require.Positive(t, g.Stats().Evicted)
	checkGroup(t, g)
}

func TestGroupAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ctx := t.Context()
	g := newGroup(t, GroupConfig[string]{MaxKeys: 2})
	for _, key := range []string{"a", "b", "c"} {
		require.Zero(t, testing.AllocsPerRun(1000, func() {
			p, _ := g.AcquireKey(ctx, key, core.Call{})
			p.Done(ctx, core.Success)
		}))
	}
}
