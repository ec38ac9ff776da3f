package balance_test

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
)

// Up to so many backends are all compared; of more, two are drawn.
const compared = 8

func newLeast(t testing.TB, list []balance.Backend[int]) *balance.Balancer[int] {
	t.Helper()
	return newBalancerOf(t, balance.LeastInFlight(), list)
}

// hold picks a backend and leaves the lease out.
func hold(t testing.TB, b *balance.Balancer[int]) balance.Lease[int] {
	t.Helper()
	l, err := b.Pick(t.Context(), balance.PickInfo{})
	require.NoError(t, err)
	return l.Take()
}

// holdOn leaves n leases out on backend i.
func holdOn(t testing.TB, b *balance.Balancer[int], n, i int) {
	t.Helper()
	for _, backend := range b.Backends() {
		b.SetHealthy(backend.ID, backend.Value == i)
	}
	for range n {
		hold(t, b)
	}
	for _, backend := range b.Backends() {
		b.SetHealthy(backend.ID, true)
	}
}

func inFlight(b *balance.Balancer[int]) (out []int64) {
	for _, s := range b.Stats().Backends {
		out = append(out, s.InFlight)
	}
	return out
}

// requireEven checks counts of draws that are all alike probable against seven
// standard deviations.
func requireEven(t testing.TB, counts []int, msg string) {
	t.Helper()
	total := 0
	for _, c := range counts {
		total += c
	}
	p := 1 / float64(len(counts))
	mean := float64(total) * p
	for i, c := range counts {
		require.InDelta(t, mean, c, 7*math.Sqrt(mean*(1-p)), "%s: backend %d of %v", msg, i, counts)
	}
}

func TestLeastInFlightFillsAllAlike(t *testing.T) {
	for n := 1; n <= compared; n++ {
		b := newLeast(t, backends(n))
		for held := 1; held <= 5*n; held++ {
			hold(t, b)
			out := inFlight(b)
			require.LessOrEqual(t, slices.Max(out)-slices.Min(out), int64(1), "%v", out)
			require.EqualValues(t, (held+n-1)/n, slices.Max(out))
		}
	}
}

// Backends that are equal get equally many calls, whatever their place in the
// list and however many there are.
func TestLeastInFlightPrefersNoneOfEquals(t *testing.T) {
	for _, n := range []int{2, 3, compared, compared + 1, 50} {
		b := newLeast(t, backends(n))
		counts := make([]int, n)
		for range 400 * n {
			counts[pick(t, b)]++
		}
		requireEven(t, counts, fmt.Sprint(n, " idle"))
	}
}

// What a backend does not get must not fall to its neighbour.
func TestLeastInFlightSpreadsEvenlyWhatOneDoesNotGet(t *testing.T) {
	for _, n := range []int{3, compared, compared + 1, 20} {
		for _, victim := range []int{0, n / 2, n - 1} {
			b := newLeast(t, backends(n))
			holdOn(t, b, 3, victim)
			counts := make([]int, n)
			for range 2000 * (n - 1) {
				counts[pick(t, b)]++
			}
			// Never: two that are drawn are two.
			require.Zero(t, counts[victim], "backend %d of %d is the fullest", victim, n)
			requireEven(t, slices.Delete(counts, victim, victim+1), fmt.Sprint(n, " without ", victim))
		}
	}
}

// A backend that does not answer gets one call and no more while the others
// answer at once.
func TestLeastInFlightLeavesAHungBackendAlone(t *testing.T) {
	b := newLeast(t, backends(3))
	hung := 0
	for range 1000 {
		l := hold(t, b)
		if l.Value() == 1 {
			hung++
			continue // for ever
		}
		l.Done(t.Context(), core.Success)
	}
	require.Equal(t, 1, hung)
}

// When as many calls are in flight as the weights add up to, or any multiple,
// each backend has its weight's worth, exactly.
func TestLeastInFlightFillsByWeight(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		weights := rapid.SliceOfN(rapid.IntRange(1, 9), 1, compared).Draw(rt, "weights")
		list, total := backends(len(weights)), 0
		for i, w := range weights {
			list[i].Weight = w
			total += w
		}
		b := newLeast(t, list)
		for times := 1; times <= 3; times++ {
			for range total {
				hold(t, b)
			}
			for i, out := range inFlight(b) {
				require.EqualValues(rt, times*weights[i], out, "backend %d", i)
			}
		}
	})
}

// Where two are drawn, a heavy backend gets its share, and no backend is far
// from its own: ten calls for each unit of weight.
func TestLeastOfTwoFillsByWeight(t *testing.T) {
	for name, weight := range map[string]func(i int) int{
		"equal":     func(int) int { return 1 },
		"different": func(i int) int { return 1 + i%5 },
		"one heavy": func(i int) int {
			if i == 7 {
				return 1000
			}
			return 1
		},
	} {
		list, total := backends(20), 0
		for i := range list {
			list[i].Weight = weight(i)
			total += list[i].Weight
		}
		b := newLeast(t, list)
		for range 10 * total {
			hold(t, b)
		}
		for i, out := range inFlight(b) {
			// Drawn at random without a choice they would have up to 20 and more.
			require.InDelta(t, 10, float64(out)/float64(list[i].Weight), 5, "%s: %v", name, inFlight(b))
		}
	}
}

func TestRoundRobinIgnoresWeights(t *testing.T) {
	list := backends(2)
	list[0].Weight = 100
	b := newBalancer(t, list)
	counts := [2]int{}
	for range 10 {
		counts[pick(t, b)]++
	}
	require.Equal(t, [2]int{5, 5}, counts)
}

func TestUpdateChangesWeightsAndKeepsWhatIsInFlight(t *testing.T) {
	b := newLeast(t, backends(2))
	var held []balance.Lease[int]
	take := func(n int) {
		t.Helper()
		for range n {
			held = append(held, hold(t, b))
		}
	}
	take(4)
	require.Equal(t, []int64{2, 2}, inFlight(b))

	list := backends(2)
	list[1].Weight = 3
	require.NoError(t, b.Update(list))
	take(6) // (7+1)/3 is below (2+1)/1
	require.Equal(t, []int64{2, 8}, inFlight(b))
	take(1) // and 9/3 is equal to it
	require.EqualValues(t, 11, inFlight(b)[0]+inFlight(b)[1])

	// A new one is empty, and one that comes back begins anew.
	list = backends(3)
	require.NoError(t, b.Update(list[1:]))
	take(3)
	require.EqualValues(t, 3, inFlight(b)[1])
	require.NoError(t, b.Update(list))
	require.EqualValues(t, 0, inFlight(b)[0])
	take(2)
	require.EqualValues(t, 2, inFlight(b)[0])

	// Those marked unhealthy get nothing, however empty they are.
	b.SetHealthy("b0", false)
	take(20)
	require.EqualValues(t, 2, inFlight(b)[0])
	for i := range held {
		held[i].Done(t.Context(), core.Success)
	}
	require.Equal(t, []int64{0, 0, 0}, inFlight(b))
}

// A retry goes to the least of those not tried yet.
func TestLeastInFlightAmongThoseNotTried(t *testing.T) {
	b := newLeast(t, backends(4))
	for i := range 4 {
		holdOn(t, b, 3-i, i)
	}
	require.Equal(t, []int64{3, 2, 1, 0}, inFlight(b))
	var tried balance.Tried
	for _, want := range []int{3, 2, 1, 0} {
		l, err := b.Pick(t.Context(), balance.PickInfo{Tried: &tried})
		require.NoError(t, err)
		require.Equal(t, want, l.Value())
		l.MarkTried(&tried)
		l.Cancel()
	}
}

func TestLeastInFlightAmongGoroutines(t *testing.T) {
	for _, n := range []int{4, 20} {
		const workers, each = 8, 2000
		b := newLeast(t, backends(n))
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := range each {
					l, err := b.Pick(t.Context(), balance.PickInfo{})
					if err != nil {
						t.Error(err)
						return
					}
					switch (w + i) % 3 {
					case 0:
						l.Done(t.Context(), core.Success)
					case 1:
						l.Cancel()
					case 2:
						l.Done(t.Context(), core.Failure)
					}
				}
			})
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 200 {
				list := backends(n)
				list[i%n].Weight = 1 + i%3
				if err := b.Update(list); err != nil {
					t.Error(err)
				}
			}
		}()
		wg.Wait()
		picks := uint64(0)
		for _, s := range b.Stats().Backends {
			require.Zero(t, s.InFlight)
			require.Equal(t, s.Picks, s.Successes+s.Cancelled+s.Failures)
			picks += s.Picks
		}
		require.EqualValues(t, workers*each, picks)
	}
}

func TestBadWeights(t *testing.T) {
	list := backends(3)
	list[0].Weight, list[1].Weight, list[2].Weight = -1, 1_000_001, 1_000_000
	_, err := balance.New(balance.Config[int]{Backends: list})
	require.ErrorIs(t, err, core.ErrConfig)
	require.EqualError(t, err, "balance.Config.Backends.Weight: -1: must be 0 to 1000000\n"+
		"balance.Config.Backends.Weight: 1000001: must be 0 to 1000000")

	b := newLeast(t, backends(3))
	require.ErrorIs(t, b.Update(list), core.ErrConfig)
	require.Equal(t, backends(3), b.Backends(), "nothing has changed")
}

func TestReportSaysTheWeightInForce(t *testing.T) {
	list := backends(2)
	list[1].Weight = 3
	r := newLeast(t, list).Inspect()
	require.Contains(t, r.Settings, core.Setting{Name: "Policy", Value: "least_in_flight"})
	require.Equal(t, []core.Setting{{Name: "Weight", Value: 1}}, r.Children[0].Settings)
	require.Equal(t, []core.Setting{{Name: "Weight", Value: 3}}, r.Children[1].Settings)
}
