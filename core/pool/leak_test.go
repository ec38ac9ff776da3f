package pool

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func borrowAndForget(t *testing.T, p *Pool[*conn]) Lease[*conn] { return acquire(t, p) }

func TestLongLoanIsReportedOnceWithItsStack(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		o := &recorder{deaf: map[core.Kind]bool{core.KindAcquired: true, core.KindReleased: true, core.KindCreated: true}}
		cfg := m.config(3)
		cfg.Name, cfg.Observer = "orders", o
		cfg.LeakAfter, cfg.LeakSample = 10*time.Second, 1
		p := open(t, cfg)
		forgotten := borrowAndForget(t, p)
		time.Sleep(9 * time.Second)
		require.Empty(t, p.Held())
		require.Zero(t, p.Stats().Held)
		short := acquire(t, p)
		time.Sleep(5 * time.Second)
		short.Release()

		held := p.Held()
		require.Len(t, held, 1)
		require.Equal(t, 14*time.Second, held[0].For)
		require.Contains(t, held[0].Stack, "borrowAndForget")
		require.Contains(t, held[0].Stack, "leak_test.go:")
		require.NotContains(t, held[0].Stack, ").Acquire")
		require.EqualValues(t, 1, p.Stats().Held)
		require.Equal(t, []core.Event{
			{Kind: core.KindHeld, Component: "orders", Duration: 10 * time.Second},
		}, o.heard())

		forgotten.Release()
		require.Empty(t, p.Held())
		time.Sleep(time.Minute)
		synctest.Wait()
		require.EqualValues(t, 1, p.Stats().Held)
	})
}

func TestEachLoanOfAResourceCanLeak(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(1)
		cfg.MaxAge = Off
		p := open(t, cfg)
		for i := range 3 {
			l := acquire(t, p)
			time.Sleep(61*time.Second + 1)
			require.EqualValues(t, i+1, p.Stats().Held)
			require.Equal(t, "", p.Held()[0].Stack, "not sampled")
			l.Release()
		}
	})
}

func TestLeakAfterOffReportsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(1)
		cfg.LeakAfter = Off
		p := open(t, cfg)
		l := acquire(t, p)
		time.Sleep(time.Hour)
		require.Empty(t, p.Held())
		require.Zero(t, p.Stats().Held)
		l.Release()
	})
}

func TestOneLoanInSoManyHasAStack(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var m maker
		cfg := m.config(8)
		cfg.LeakAfter, cfg.LeakSample = time.Second, 4
		p := open(t, cfg)
		var all []Lease[*conn]
		for range 8 {
			all = append(all, acquire(t, p))
		}
		time.Sleep(2 * time.Second)
		stacks := 0
		for _, h := range p.Held() {
			if h.Stack != "" {
				stacks++
			}
		}
		require.Equal(t, 2, stacks)
		for _, l := range all {
			l.Release()
		}
		// The stack of an ended loan is not shown for the next.
		l, err := p.Acquire(context.Background())
		require.NoError(t, err)
		time.Sleep(2 * time.Second)
		require.Empty(t, p.Held()[0].Stack)
		l.Release()
	})
}
