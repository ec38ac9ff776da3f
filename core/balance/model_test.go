package balance_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
)

// modelBackend is what a naive balancer would remember of one backend.
type modelBackend struct {
	guard                               *fakeGuard
	healthy                             bool
	weight                              int
	picks, successes, failed, cancelled uint64
	out                                 int64
}

// burden is what LeastInFlight goes by.
func (m *modelBackend) burden() float64 { return float64(m.out+1) / float64(max(1, m.weight)) }

type modelLease struct {
	lease   balance.Lease[int]
	backend *modelBackend
}

// Whatever is done in whatever order, a pick returns a backend that may be
// picked, or the right refusal, and the numbers agree with the model's.
func TestAgreesWithANaiveModel(t *testing.T) {
	withEach(t, agreesWithANaiveModel)
}

func agreesWithANaiveModel(t *testing.T, policy balance.Policy) {
	rapid.Check(t, func(t *rapid.T) {
		const ids = 5
		b, err := balance.New(balance.Config[int]{AllowEmpty: true, Policy: policy})
		require.NoError(t, err)
		model := map[string]*modelBackend{}
		var leases []*modelLease
		var tried balance.Tried
		triedModel := map[*modelBackend]bool{}
		ctx := t.Context()

		can := func(m *modelBackend) bool {
			return m.healthy && !m.guard.notReady.Load() && m.guard.refusal.Load() == nil
		}
		t.Repeat(map[string]func(*rapid.T){
			"update": func(t *rapid.T) {
				var list []balance.Backend[int]
				next := map[string]*modelBackend{}
				for i := range ids {
					if !rapid.Bool().Draw(t, "in") {
						continue
					}
					m := model[id(i)]
					if m == nil {
						m = &modelBackend{guard: &fakeGuard{}, healthy: true}
					}
					next[id(i)] = m
					m.weight = rapid.IntRange(0, 3).Draw(t, "weight")
					list = append(list, balance.Backend[int]{ID: id(i), Value: i, Guard: m.guard, Weight: m.weight})
				}
				require.NoError(t, b.Update(list))
				model = next
			},
			"mark": func(t *rapid.T) {
				name, to := id(rapid.IntRange(0, ids-1).Draw(t, "id")), rapid.Bool().Draw(t, "healthy")
				m := model[name]
				require.Equal(t, m != nil, b.SetHealthy(name, to))
				if m != nil {
					m.healthy = to
				}
			},
			"guard": func(t *rapid.T) {
				m := model[id(rapid.IntRange(0, ids-1).Draw(t, "id"))]
				if m == nil {
					return
				}
				m.guard.notReady.Store(rapid.Bool().Draw(t, "not ready"))
				m.guard.refusal.Store(nil)
				if rapid.Bool().Draw(t, "refuse") {
					m.guard.refusal.Store(refusal("g", time.Time{}))
				}
			},
			"pick": func(t *rapid.T) {
				info := balance.PickInfo{}
				exclude := rapid.Bool().Draw(t, "exclude")
				if exclude {
					info.Tried = &tried
				}
				want, ways := balance.ErrNoneHealthy, 0
				least := math.Inf(1)
				if len(model) == 0 {
					want = balance.ErrNoBackend
				}
				for _, m := range model {
					switch {
					case exclude && triedModel[m] && m.healthy && !m.guard.notReady.Load():
						want = balance.ErrAllTried
					case can(m):
						ways++
						least = min(least, m.burden())
					}
				}
				l, err := b.Pick(ctx, info)
				if ways == 0 {
					require.ErrorIs(t, err, want)
					return
				}
				require.NoError(t, err)
				m := model[l.ID()]
				require.NotNil(t, m)
				require.True(t, can(m))
				require.False(t, exclude && triedModel[m])
				if policy == balance.LeastInFlight() {
					require.InDelta(t, least, m.burden(), 1e-9)
				}
				m.picks++
				m.out++
				if tries := len(triedModel); exclude && tries < 8 {
					l.MarkTried(&tried)
					triedModel[m] = true
				}
				leases = append(leases, &modelLease{l.Take(), m})
			},
			"retry afresh": func(*rapid.T) {
				tried = balance.Tried{}
				clear(triedModel)
			},
			"finish": func(t *rapid.T) {
				if len(leases) == 0 {
					return
				}
				i := rapid.IntRange(0, len(leases)-1).Draw(t, "lease")
				l := leases[i]
				live := l.backend.out
				switch rapid.IntRange(0, 2).Draw(t, "how") {
				case 0:
					l.lease.Done(ctx, core.Success)
					l.backend.successes++
				case 1:
					l.lease.Done(ctx, core.Failure)
					l.backend.failed++
				case 2:
					l.lease.Cancel()
					l.backend.cancelled++
				}
				l.lease.Done(ctx, core.Throttled) // once more does nothing
				l.backend.out = live - 1
				leases = append(leases[:i], leases[i+1:]...)
			},
			"": func(t *rapid.T) {
				stats := b.Stats().Backends
				require.Len(t, stats, len(model))
				for _, s := range stats {
					m := model[s.ID]
					require.NotNil(t, m)
					require.Equal(t, balance.BackendStats{
						ID: s.ID, Healthy: m.healthy, Ready: !m.guard.notReady.Load(), Since: s.Since, InFlight: m.out,
						Picks: m.picks, Successes: m.successes, Failures: m.failed, Cancelled: m.cancelled,
					}, s)
				}
			},
		})
	})
}
