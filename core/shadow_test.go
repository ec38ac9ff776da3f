package core_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func TestShadowTellsAndAdmits(t *testing.T) {
	var heard recorder
	g := newFake("limit", 1)
	s, err := core.Shadow(g, core.ShadowConfig{Name: "trial", Observer: &heard})
	require.NoError(t, err)

	first, err := s.Acquire(t.Context(), core.Call{})
	require.NoError(t, err)
	require.Empty(t, heard.events)

	second, err := s.Acquire(t.Context(), core.Call{Cost: 7})
	require.NoError(t, err, "refused in the shadow only")
	require.Equal(t, []core.Event{{Kind: core.KindShadowed, Component: "trial", Reason: core.ConcurrencyLimited, N: 7}}, heard.events)

	second.Done(t.Context(), core.Failure)
	first.Done(t.Context(), core.Success)
	require.Equal(t, []core.Result{{Outcome: core.Success}}, g.results, "the shadowed call uses nothing of the guard")
	require.True(t, s.Ready())
	require.EqualValues(t, 1, s.Inspect().Values[0].Number)
}

func TestShadowEnforcesItsShare(t *testing.T) {
	const calls = 20000
	for _, percent := range []int{0, 30, 100} {
		s, err := core.Shadow(newFake("limit", 0), core.ShadowConfig{EnforcePercent: percent})
		require.NoError(t, err)
		refused := 0
		for range calls {
			if _, err := s.Acquire(t.Context(), core.Call{}); err != nil {
				require.ErrorIs(t, err, errFull)
				refused++
			}
		}
		want := calls * percent / 100
		// Six standard deviations of a binomial: a false alarm in 500 million.
		require.InDelta(t, want, refused, 6*66, "%d %%", percent)
		if percent == 0 || percent == 100 {
			require.Equal(t, want, refused)
		}
		report := s.Inspect()
		require.EqualValues(t, calls-refused, report.Values[0].Number)
		require.EqualValues(t, refused, report.Values[1].Number)
		require.Equal(t, percent < 100, s.Ready())
	}
}

func TestShadowExempts(t *testing.T) {
	g := newFake("limit", 0)
	s, err := core.Shadow(g, core.ShadowConfig{
		EnforcePercent: 100,
		Exempt:         func(_ context.Context, c core.Call) bool { return c.Priority == core.PriorityCritical },
	})
	require.NoError(t, err)
	_, err = s.Acquire(t.Context(), core.Call{Priority: core.PriorityCritical})
	require.NoError(t, err)
	_, err = s.Acquire(t.Context(), core.Call{})
	require.ErrorIs(t, err, errFull)
}

// byKey is a KeyedGuard over one fake for each key.
type byKey map[string]*fakeGuard

func (b byKey) AcquireKey(ctx context.Context, key string, call core.Call) (core.Permit, error) {
	return b[key].Acquire(ctx, call)
}

func TestShadowKeyed(t *testing.T) {
	var heard recorder
	guards := byKey{"free": newFake("free", 1), "full": newFake("full", 0)}
	s, err := core.ShadowKeyed(core.KeyedGuard[string](guards), core.ShadowKeyedConfig[string]{
		ShadowConfig: core.ShadowConfig{Observer: &heard},
	})
	require.NoError(t, err)
	p, err := s.AcquireKey(t.Context(), "free", core.Call{})
	require.NoError(t, err)
	p.Done(t.Context(), core.Success)
	require.Len(t, guards["free"].results, 1)
	_, err = s.AcquireKey(t.Context(), "full", core.Call{})
	require.NoError(t, err)
	require.Len(t, heard.events, 1)
	require.Equal(t, "shadow", heard.events[0].Component)
}

func TestShadowExemptsKeys(t *testing.T) {
	guards := byKey{"ours": newFake("ours", 0), "theirs": newFake("theirs", 0)}
	s, err := core.ShadowKeyed[string](guards, core.ShadowKeyedConfig[string]{
		ShadowConfig: core.ShadowConfig{EnforcePercent: 100},
		ExemptKey:    func(key string) bool { return key == "ours" },
	})
	require.NoError(t, err)
	_, err = s.AcquireKey(t.Context(), "ours", core.Call{})
	require.NoError(t, err)
	_, err = s.AcquireKey(t.Context(), "theirs", core.Call{})
	require.ErrorIs(t, err, errFull)
}

func TestForKeyIsTheGuardOfItsKey(t *testing.T) {
	guards := byKey{"a": newFake("a", 1), "b": newFake("b", 0)}
	require.NoError(t, core.Do(t.Context(), core.ForKey(guards, "a"), func(context.Context) error { return nil }))
	require.Len(t, guards["a"].results, 1)
	err := core.Do(t.Context(), core.ForKey(guards, "b"), func(context.Context) error { return nil })
	require.ErrorIs(t, err, errFull)
	require.Nil(t, core.ForKey[string](nil, "a"))
}

func TestShadowReportsAllProblems(t *testing.T) {
	s, err := core.Shadow(nil, core.ShadowConfig{EnforcePercent: 101})
	require.Nil(t, s)
	require.ErrorIs(t, err, core.ErrConfig)
	require.EqualError(t, err, "core.ShadowConfig.guard: must not be nil\ncore.ShadowConfig.EnforcePercent: 101: must be 0 to 100")
	k, err := core.ShadowKeyed[string](nil, core.ShadowKeyedConfig[string]{ShadowConfig: core.ShadowConfig{EnforcePercent: -1}})
	require.Nil(t, k)
	require.ErrorIs(t, err, core.ErrConfig)
}
