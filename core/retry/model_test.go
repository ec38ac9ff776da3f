package retry

import (
	"math/big"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// A naive budget: it is told of every step, mints and caps at each, and reckons
// without a bound to its numbers.
type naive struct {
	percent, perSecond, most int64
	there                    int64 // hundredths
	now, minted              *big.Int
}

func (m *naive) pass(d time.Duration) {
	m.now.Add(m.now, big.NewInt(int64(d)))
	minted := new(big.Int).Mul(m.now, big.NewInt(m.perSecond*100))
	minted.Div(minted, big.NewInt(int64(time.Second)))
	m.add(new(big.Int).Sub(minted, m.minted))
	m.minted = minted
}

func (m *naive) add(n *big.Int) {
	sum := n.Add(n, big.NewInt(m.there))
	if sum.Cmp(big.NewInt(m.most)) > 0 {
		sum.SetInt64(m.most)
	}
	m.there = sum.Int64()
}

func (m *naive) take() bool {
	if m.there < 100 {
		return false
	}
	m.there -= 100
	return true
}

// Whatever is done, in whatever order and with whatever pauses, a Budget says
// what the naive one says.
func TestIsTheNaiveBudget(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg := BudgetConfig{
			Percent:      rapid.OneOf(rapid.Just(Off), rapid.IntRange(1, 100)).Draw(rt, "Percent"),
			MinPerSecond: rapid.OneOf(rapid.IntRange(1, 5), rapid.IntRange(1, 1e6)).Draw(rt, "MinPerSecond"),
			Max:          rapid.OneOf(rapid.IntRange(1, 5), rapid.IntRange(1, 1e9)).Draw(rt, "Max"),
		}
		if cfg.Percent != Off && rapid.Bool().Draw(rt, "no floor") {
			cfg.MinPerSecond = Off
		}
		steps := rapid.SliceOfN(rapid.Custom(drawStep), 1, 60).Draw(rt, "steps")
		synctest.Test(t, func(*testing.T) {
			b, err := NewBudget(cfg)
			require.NoError(rt, err)
			m := &naive{
				percent: int64(max(0, cfg.Percent)), perSecond: int64(max(0, cfg.MinPerSecond)),
				most: int64(cfg.Max) * 100, there: int64(cfg.Max) * 100,
				now: new(big.Int), minted: new(big.Int),
			}
			for _, s := range steps {
				time.Sleep(s.pause)
				m.pass(s.pause)
				for range s.successes {
					b.Fund()
					m.add(big.NewInt(m.percent))
				}
				for range s.retries {
					require.Equal(rt, m.take(), b.Take() == nil)
				}
				require.EqualValues(rt, m.there/100, b.Stats().Available)
			}
		})
	})
}

type step struct {
	pause              time.Duration
	successes, retries int
}

func drawStep(t *rapid.T) step {
	return step{
		pause: time.Duration(rapid.OneOf(
			rapid.Just(int64(0)),
			rapid.Int64Range(1, int64(time.Second)),
			rapid.Int64Range(1, int64(30*24*time.Hour)),
		).Draw(t, "pause")),
		successes: rapid.IntRange(0, 30).Draw(t, "successes"),
		retries:   rapid.IntRange(0, 8).Draw(t, "retries"),
	}
}
