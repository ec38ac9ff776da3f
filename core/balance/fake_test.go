package balance_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
)

var errRefused = errors.New("fake: refused")

// fakeGuard is a backend's guard that counts all it is asked and told.
type fakeGuard struct {
	notReady atomic.Bool
	refusal  atomic.Pointer[core.Rejection] // what Acquire answers, unless nil
	onAsk    func()

	asked, readied      atomic.Int64
	finished, cancelled atomic.Int64
	outcomes            [4]atomic.Int64
}

func (g *fakeGuard) Ready() bool {
	g.readied.Add(1)
	return !g.notReady.Load()
}

func (g *fakeGuard) Acquire(context.Context, core.Call) (core.Permit, error) {
	g.asked.Add(1)
	if g.onAsk != nil {
		g.onAsk()
	}
	if r := g.refusal.Load(); r != nil {
		return core.Permit{}, r
	}
	return core.NewPermit(g, core.Token{}, core.WantsResult), nil
}

func (g *fakeGuard) FinishPermit(_ context.Context, _ core.Token, r core.Result) {
	g.finished.Add(1)
	if int(r.Outcome) < len(g.outcomes) {
		g.outcomes[r.Outcome].Add(1)
	}
}

func (g *fakeGuard) CancelPermit(core.Token) { g.cancelled.Add(1) }

func refusal(name string, at time.Time) *core.Rejection {
	return &core.Rejection{Guard: name, Reason: core.CircuitOpen, Err: errRefused, RetryAt: at}
}

// backends makes n of them, "b0" and so on, whose values are their indices.
func backends(n int) []balance.Backend[int] {
	list := make([]balance.Backend[int], n)
	for i := range list {
		list[i] = balance.Backend[int]{ID: id(i), Value: i}
	}
	return list
}

// guarded gives each backend a fakeGuard.
func guarded(n int) ([]balance.Backend[int], []*fakeGuard) {
	list, guards := backends(n), make([]*fakeGuard, n)
	for i := range list {
		guards[i] = &fakeGuard{}
		list[i].Guard = guards[i]
	}
	return list, guards
}

func id(i int) string { return "b" + strconv.Itoa(i) }

// policies are all there are, for the tests of what holds with any.
var policies = []balance.Policy{balance.RoundRobin(), balance.LeastInFlight()}

func withEach(t *testing.T, f func(*testing.T, balance.Policy)) {
	for _, policy := range policies {
		t.Run(policy.String(), func(t *testing.T) { f(t, policy) })
	}
}

func newBalancer(t testing.TB, list []balance.Backend[int]) *balance.Balancer[int] {
	t.Helper()
	return newBalancerOf(t, balance.RoundRobin(), list)
}

func newBalancerOf(t testing.TB, policy balance.Policy, list []balance.Backend[int]) *balance.Balancer[int] {
	t.Helper()
	b, err := balance.New(balance.Config[int]{Backends: list, AllowEmpty: true, Policy: policy})
	require.NoError(t, err)
	return b
}

// pick picks a backend, finishes the lease with Success, and returns its value.
func pick(t testing.TB, b *balance.Balancer[int]) int {
	t.Helper()
	l, err := b.Pick(t.Context(), balance.PickInfo{})
	require.NoError(t, err)
	l.Done(t.Context(), core.Success)
	return l.Value()
}

func requireRefused(t testing.TB, err, sentinel error) *core.Rejection {
	t.Helper()
	require.ErrorIs(t, err, sentinel)
	for _, other := range []error{balance.ErrNoBackend, balance.ErrNoneHealthy, balance.ErrAllTried} {
		if other != sentinel {
			require.NotErrorIs(t, err, other)
		}
	}
	r, ok := errors.AsType[*core.Rejection](err)
	require.True(t, ok)
	require.Equal(t, core.NoBackend, r.Reason)
	require.Equal(t, "balancer", r.Guard)
	return r
}

// recorder is an Observer that keeps what it hears.
type recorder struct {
	mu     sync.Mutex
	events []core.Event
	hook   func(core.Event)
}

func (r *recorder) Enabled(core.Kind) bool { return true }

func (r *recorder) Observe(_ context.Context, e core.Event) {
	r.mu.Lock()
	r.events = append(r.events, e)
	r.mu.Unlock()
	if r.hook != nil {
		r.hook(e)
	}
}

func (r *recorder) all() []core.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]core.Event(nil), r.events...)
}
