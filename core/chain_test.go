package core_test

import (
	"context"
	"math/rand/v2"
	"reflect"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func threeInALog() (log *[]string, guards []*fakeGuard, chain core.Guard) {
	log = new([]string)
	all := make([]core.Guard, 3)
	for i, name := range []string{"a", "b", "c"} {
		g := newFake(name, -1)
		g.log = log
		guards, all[i] = append(guards, g), g
	}
	return log, guards, core.Chain(all...)
}

func TestChainAcquiresInOrderAndFinishesInReverse(t *testing.T) {
	log, guards, chain := threeInALog()
	p, err := chain.Acquire(t.Context(), core.Call{})
	require.NoError(t, err)
	p.Done(t.Context(), core.Success)
	require.Equal(t, []string{"a acquire", "b acquire", "c acquire", "c finish", "b finish", "a finish"}, *log)
	for _, g := range guards {
		require.Equal(t, []core.Result{{Outcome: core.Success}}, g.results)
	}
}

func TestChainCancelsWhatItHadWhenOneRefuses(t *testing.T) {
	log, guards, chain := threeInALog()
	guards[2].room = 0
	_, err := chain.Acquire(t.Context(), core.Call{})
	require.ErrorIs(t, err, errFull)
	require.Equal(t, []string{"a acquire", "b acquire", "b cancel", "a cancel"}, *log)
}

func TestChainCancel(t *testing.T) {
	log, _, chain := threeInALog()
	p, err := chain.Acquire(t.Context(), core.Call{})
	require.NoError(t, err)
	p.Cancel()
	require.Equal(t, []string{"a acquire", "b acquire", "c acquire", "c cancel", "b cancel", "a cancel"}, *log)
}

func TestChainOfNoneOneAndChains(t *testing.T) {
	p, err := core.Chain(nil, nil).Acquire(t.Context(), core.Call{})
	require.NoError(t, err)
	p.Done(t.Context(), core.Success)

	g := newFake("g", 1)
	require.Same(t, g, core.Chain(nil, g))

	log, _, inner := threeInALog()
	d := newFake("d", -1)
	d.log = log
	p, err = core.Chain(d, inner).Acquire(t.Context(), core.Call{})
	require.NoError(t, err)
	p.Cancel()
	require.Equal(t, []string{"d acquire", "a acquire", "b acquire", "c acquire", "c cancel", "b cancel", "a cancel", "d cancel"}, *log)
}

func TestChainReady(t *testing.T) {
	a, b := newFake("a", 1), newFake("b", 1)
	chain := core.Chain(a, &open{}, b)
	require.True(t, core.IsReady(chain))
	b.room = 0
	require.False(t, core.IsReady(chain))
	require.True(t, core.IsReady(nil))
}

// foretelling is a guard that says what it would answer.
type foretelling struct{ shut }

func (f foretelling) Ready() bool              { return f.no == nil }
func (f foretelling) Refusal() *core.Rejection { return f.no }

func TestChainForetellsTheFirstRefusal(t *testing.T) {
	first := &core.Rejection{Guard: "first", Err: errFull}
	second := &core.Rejection{Guard: "second", Err: errFull}
	ready := foretelling{}
	require.Nil(t, core.RefusalOf(core.Chain(ready, &open{})))
	require.Same(t, first, core.RefusalOf(core.Chain(&open{}, ready, foretelling{shut{first}}, foretelling{shut{second}})))
	require.Nil(t, core.RefusalOf(nil))
	require.Nil(t, core.RefusalOf(newFake("cannot tell", 0)))
}

func TestChainWantsWhatItsGuardsWant(t *testing.T) {
	for _, c := range []struct{ a, b, want core.Wants }{
		{core.WantsNothing, core.WantsNothing, core.WantsNothing},
		{core.WantsEnd, core.WantsNothing, core.WantsEnd},
		{core.WantsNothing, core.WantsResult, core.WantsResult},
	} {
		p, err := core.Chain(&open{c.a}, &open{c.b}).Acquire(t.Context(), core.Call{})
		require.NoError(t, err)
		require.Equal(t, c.want >= core.WantsEnd, p.WantsEnd())
		require.Equal(t, c.want >= core.WantsResult, p.WantsResult())
		p.Cancel()
	}
}

// A finisher below is a component's code, which calls its user's callbacks.
func TestChainFinishesTheRestWhenACallbackDies(t *testing.T) {
	for name, die := range map[string]func(core.Result){
		"panic":  func(core.Result) { panic("callback") },
		"goexit": func(core.Result) { runtime.Goexit() },
	} {
		t.Run(name, func(t *testing.T) {
			_, guards, chain := threeInALog()
			guards[2].onFinish, guards[1].onFinish = die, die
			over := make(chan struct{})
			go func() {
				defer close(over)
				defer func() { _ = recover() }()
				p, _ := chain.Acquire(context.Background(), core.Call{})
				p.Done(context.Background(), core.Failure)
			}()
			<-over
			for _, g := range guards {
				require.Equal(t, []core.Result{{Outcome: core.Failure}}, g.results, g.name)
				require.Empty(t, g.live)
			}
		})
	}
}

// dying panics when it is asked.
type dying struct{}

func (dying) Acquire(context.Context, core.Call) (core.Permit, error) { panic("guard") }

func TestChainCancelsWhatItHadWhenAGuardPanics(t *testing.T) {
	g := newFake("g", -1)
	require.PanicsWithValue(t, "guard", func() {
		_, _ = core.Chain(g, dying{}).Acquire(t.Context(), core.Call{})
	})
	require.Equal(t, 1, g.cancelled)
}

func TestCopiedChainPermitCannotFinishALaterCall(t *testing.T) {
	a, b := newFake("a", -1), newFake("b", -1)
	chain := core.Chain(a, b)
	finish := func() core.Permit {
		p, err := chain.Acquire(t.Context(), core.Call{})
		require.NoError(t, err)
		stale := copyOf(&p)
		p.Done(t.Context(), core.Success)
		return stale.Take()
	}
	// A copy is misuse; the node behind it has been reused by the second call.
	stale := finish()
	second, err := chain.Acquire(t.Context(), core.Call{})
	require.NoError(t, err)
	stale.Done(t.Context(), core.Failure)
	require.Len(t, a.live, 1, "the second call is still out")
	second.Done(t.Context(), core.Success)
	require.Equal(t, []core.Result{{Outcome: core.Success}, {Outcome: core.Success}}, a.results)
	require.Zero(t, a.twice+b.twice)
}

// copyOf copies a permit where go vet does not look.
func copyOf(p *core.Permit) *core.Permit {
	c := new(core.Permit)
	reflect.ValueOf(c).Elem().Set(reflect.ValueOf(p).Elem())
	return c
}

func TestChainUnderContention(t *testing.T) {
	a, b := newFake("a", 3), newFake("b", 2)
	chain := core.Chain(a, b)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			for range 2000 {
				p, err := chain.Acquire(context.Background(), core.Call{})
				if err != nil {
					continue
				}
				if r.IntN(2) == 0 {
					runtime.Gosched()
				}
				if r.IntN(3) == 0 {
					p.Cancel()
				} else {
					p.Done(context.Background(), core.Success)
				}
			}
		})
	}
	wg.Wait()
	for _, g := range []*fakeGuard{a, b} {
		require.Empty(t, g.live)
		require.Zero(t, g.twice)
	}
	require.Equal(t, 3, a.room)
	require.Equal(t, 2, b.room)
}
