package circuit

import (
	"context"
	"errors"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"runtime"
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

// Keys that the program has chosen may be names.
func TestGroupNamesBreakers(t *testing.T) {
	var heard recorder
	g := newGroup(t, GroupConfig[int]{
		Config: Config{Name: "ports", FailureThreshold: 1, Observer: &heard},
		NameOf: func(port int) string {
			switch port {
			case 80:
				return "http"
			case 7:
				panic("no name")
			}
			return ""
		},
	})
	require.Panics(t, func() { g.Get(7) })
	checkGroup(t, g)
	fail(t, g, 80)
	fail(t, g, 81)
	require.Equal(t, "http", g.Get(80).Name())
	require.Equal(t, "http", heard.events[0].Component)
	require.Equal(t, "ports", heard.events[1].Component)
	require.NoError(t, g.Reconfigure(Config{Name: "other"}))
	children := g.Inspect().Children
	require.Len(t, children, 2)
	require.Equal(t, "http", children[0].Name)
	require.Equal(t, "open", children[0].State)
	require.Equal(t, "ports", children[1].Name)
	_, err := g.AcquireKey(t.Context(), 80, core.Call{})
	require.Equal(t, "http", err.(*core.Rejection).Guard)
	checkGroup(t, g)
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

// A flood of new keys for which there is no room looks through the others once in a
// while, and not for each: else whoever chooses keys would choose what a call costs.
func TestGroupSearchesSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys = 500
		g := newGroup(t, GroupConfig[int]{MaxKeys: keys, IdleFor: 64 * time.Second})
		ask := func() {
			for key := range keys {
				require.NotNil(t, g.Get(key))
			}
		}
		flood := func() {
			for key := range keys {
				require.Nil(t, g.Get(keys+key))
			}
		}
		seen := func() (n int) { // by a search since they were asked for
			for i := range g.shards {
				for _, m := range *g.shards[i].known.Load() {
					if !m.asked.Load() {
						n++
					}
				}
			}
			return n
		}
		for range 3 {
			ask()
			require.Zero(t, seen())
			flood()
			require.Equal(t, keys, seen())
			ask()
			time.Sleep(time.Second - 1)
			flood()
			require.Zero(t, seen())
			time.Sleep(time.Nanosecond)
		}
		flood()
		time.Sleep(64 * time.Second)
		require.NotNil(t, g.Get(keys), "by then they are idle")
		checkGroup(t, g)
	})
}

// What the last shard that is looked at gives up is for the call that looked.
func TestGroupGivesWhatItFinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys = 16 * keysPerGroup
		g := newGroup(t, GroupConfig[int]{MaxKeys: keys, IdleFor: time.Second})
		shardOf := func(key int) uint64 { return maphash.Comparable(g.seed, key) & g.mask }
		for key := range keys {
			if g.Get(key); shardOf(key) != shardsPerSearch {
				fail(t, g, key) // it stays
			}
		}
		key := keys
		for shardOf(key) <= shardsPerSearch {
			key++
		}
		g.hand.Store(0) // the other shards are 1 to shardsPerSearch
		require.True(t, g.Get(key) == nil)
		time.Sleep(2 * time.Second)
		g.hand.Store(0)
		require.True(t, g.Get(key) != nil)
	})
}

// Two calls with the same new key, and one place: both get its breaker.
func TestGroupLastPlaceForTwo(t *testing.T) {
	g := newGroup(t, GroupConfig[string]{MaxKeys: 1})
	b := g.Get("key")
	m := g.add(&g.shards[0], "key") // as by a call that did not see it
	require.NotNil(t, m)
	require.Same(t, b, m.breaker)
	require.Zero(t, g.Stats().Overflowed)
	checkGroup(t, g)
}

// A key that cannot be compared panics as in a map, and spoils nothing.
func TestGroupKeyThatCannotBeCompared(t *testing.T) {
	g := newGroup(t, GroupConfig[any]{Config: Config{FailureThreshold: 1}, MaxKeys: 3})
	for range 3 {
		require.Panics(t, func() { g.Get([]int{1}) })
		require.Panics(t, func() { _, _ = g.AcquireKey(t.Context(), func() {}, core.Call{}) })
	}
	for _, key := range []any{"a", 1, int8(1)} {
		fail(t, g, key)
		require.ErrorIs(t, fail(t, g, key), ErrOpen)
	}
	require.Panics(t, func() { g.Get([]int{1}) })
	require.Nil(t, g.Get(2))
	checkGroup(t, g)
}

// A callback of the Group that panics or exits keeps no call from its result, and the
// other callback hears of the change, too.
func TestGroupCallbacks(t *testing.T) {
	for _, bad := range []func(){func() { panic("listener") }, runtime.Goexit} {
		synctest.Test(t, func(t *testing.T) {
			var told []string
			var g *Group[string]
			g = newGroup(t, GroupConfig[string]{
				Config: Config{FailureThreshold: 1, OpenFor: time.Second, SuccessThreshold: 1, OnStateChange: func(_, to State) {
					told = append(told, to.String())
					bad()
				}},
				OnStateChange: func(key string, _, to State) {
					told = append(told, key+" "+to.String())
					g.Stats()
					require.NotNil(t, g.Get(key+"'")) // a new key, and no lock is held
					bad()
				},
			})
			var wg sync.WaitGroup
			wg.Go(func() { fail(t, g, "a") })
			wg.Wait()
			require.Equal(t, []string{"open", "a open"}, told)
			require.ErrorIs(t, fail(t, g, "a"), ErrOpen)
			require.Equal(t, GroupStats{Keys: 2, MaxKeys: 10_000, Open: 1, Closed: 1}, g.Stats())
			require.NotZero(t, g.Get("a").Stats().CallbackPanics)
		})
	}
}

// What still matters stays, however long it is idle: an open time, a force, probes, a
// ramp. Afterwards a closed one makes room, and its key is as new.
func TestGroupForgetsNothingThatMatters(t *testing.T) {
	for name, prepare := range map[string]func(*testing.T, *Group[string]){
		"failing": func(t *testing.T, g *Group[string]) { fail(t, g, "key") },
		"open":    func(t *testing.T, g *Group[string]) { fail(t, g, "key"); fail(t, g, "key") },
		"forced open": func(_ *testing.T, g *Group[string]) {
			g.Get("key").ForceOpen(0)
		},
		"disabled":     func(_ *testing.T, g *Group[string]) { g.Get("key").Disable() },
		"metrics only": func(_ *testing.T, g *Group[string]) { g.Get("key").MetricsOnly() },
		"half-open": func(t *testing.T, g *Group[string]) {
			fail(t, g, "key")
			fail(t, g, "key")
			time.Sleep(time.Minute)
			admitted(t, g.Get("key"))
		},
		"reopened": func(t *testing.T, g *Group[string]) {
			fail(t, g, "key")
			fail(t, g, "key")
			time.Sleep(time.Minute)
			fail(t, g, "key")
		},
		"ramping": func(t *testing.T, g *Group[string]) {
			fail(t, g, "key")
			fail(t, g, "key")
			time.Sleep(time.Minute)
			calls(t, g.Get("key"), "S")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGroup(t, GroupConfig[string]{
					Config:  Config{FailureThreshold: 2, OpenFor: time.Minute, OpenGrowth: 2, SuccessThreshold: 1, RampFor: time.Hour},
					MaxKeys: 1, IdleFor: time.Second,
				})
				prepare(t, g)
				for range 5 {
					time.Sleep(2 * time.Second)
					require.Nil(t, g.Get("other"))
				}
				if name == "ramping" {
					time.Sleep(time.Hour)
				} else {
					for _, b := range g.All() {
						b.Reset()
					}
					time.Sleep(time.Second)
				}
				require.NotNil(t, g.Get("other"))
				require.EqualValues(t, 1, g.Stats().Evicted)
				checkGroup(t, g)
			})
		})
	}
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

// Whatever key comes while the settings change, its breaker has the last of them.
func TestGroupReconfigureWhileKeysCome(t *testing.T) {
	g := newGroup(t, GroupConfig[int]{Config: Config{FailureThreshold: 1}})
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 200 {
				g.Get(i*8 + worker)
			}
		})
	}
	for n := range 100 {
		require.NoError(t, g.Reconfigure(Config{FailureThreshold: 1 + n}))
	}
	wg.Wait()
	n := 0
	for key, b := range g.All() {
		n++
		require.Equal(t, 100, b.settings.Load().FailureThreshold, key)
	}
	require.Equal(t, 8*200, n)
	checkGroup(t, g)
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
				if g.keys.Load() > 200 {
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
