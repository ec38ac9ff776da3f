package sqlpool

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/internal/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Main(m)) }

// open is a pool on a database of the test's own.
func open(t testing.TB, cfg Config) *Pool {
	t.Helper()
	if cfg.DSN == "" && cfg.ConnConfig == nil {
		cfg.DSN = pgtest.DSN(t)
	}
	p, err := Open(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // real time: a real server
		defer cancel()
		require.NoError(t, p.Close(ctx))
	})
	return p
}

// warm waits until n connections are idle.
func warm(t testing.TB, p *Pool, n int) {
	t.Helper()
	eventually(t, func() bool { return p.Stats().Idle >= n })
}

// eventually waits for what a real server does in its own time.
func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 10*time.Second, time.Millisecond) // real time: a real server
}

// spy is a guard that admits, or refuses, and remembers.
type spy struct {
	mu       sync.Mutex
	refuse   error
	asked    int
	canceled int
	results  []core.Result
	open     int // permits that are not finished
}

func (g *spy) Acquire(context.Context, core.Call) (core.Permit, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked++
	if g.refuse != nil {
		return core.Permit{}, g.refuse
	}
	g.open++
	return core.NewPermit(g, core.Token{}, core.WantsResult), nil
}

func (g *spy) FinishPermit(_ context.Context, _ core.Token, r core.Result) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open--
	g.results = append(g.results, r)
}

func (g *spy) CancelPermit(core.Token) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open--
	g.canceled++
}

// take is what was heard since the last take.
func (g *spy) take() (asked int, outcomes []core.Outcome) {
	g.mu.Lock()
	defer g.mu.Unlock()
	asked = g.asked
	for _, r := range g.results {
		outcomes = append(outcomes, r.Outcome)
	}
	g.asked, g.results = 0, nil
	return asked, outcomes
}

func (g *spy) held() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

// admits is a guard that wants the result and keeps nothing.
type admits struct{}

func (g admits) Acquire(context.Context, core.Call) (core.Permit, error) {
	return core.NewPermit(g, core.Token{}, core.WantsResult), nil
}
func (admits) FinishPermit(context.Context, core.Token, core.Result) {}
func (admits) CancelPermit(core.Token)                               {}
