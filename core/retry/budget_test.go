package retry

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/surgewall/surgewall/core"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ core.Component = (*Budget)(nil)

func newBudget(t testing.TB, cfg BudgetConfig) *Budget {
	t.Helper()
	b, err := NewBudget(cfg)
	require.NoError(t, err)
	return b
}

// drain takes what there is, and returns how much that was.
func drain(b *Budget) (n int) {
	for n <= b.cfg.Max && b.Take() == nil {
		n++
	}
	return n
}

func fund(b *Budget, n int) {
	for range n {
		b.Fund()
	}
}

func TestBadConfig(t *testing.T) {
	b, err := NewBudget(BudgetConfig{Percent: 101, MinPerSecond: -2, Max: -1})
	require.Nil(t, b)
	require.ErrorIs(t, err, core.ErrConfig)
	for _, want := range []string{
		"retry.BudgetConfig.Percent: 101: must be 1 to 100, or Off",
		"retry.BudgetConfig.MinPerSecond: -2: must be 1 to 1000000, or Off",
		"retry.BudgetConfig.Max: -1: must be 1 to 1000000000",
	} {
		require.ErrorContains(t, err, want)
	}
	_, err = NewBudget(BudgetConfig{Percent: -2, MinPerSecond: 1e6 + 1, Max: 1e9 + 1})
	for _, field := range []string{"Percent", "MinPerSecond", "Max"} {
		require.ErrorContains(t, err, "retry.BudgetConfig."+field+":")
	}
	_, err = NewBudget(BudgetConfig{Percent: Off, MinPerSecond: Off})
	require.ErrorContains(t, err, "must not be Off together with MinPerSecond")
}

func TestDefaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(t, BudgetConfig{})
		require.Equal(t, "retry_budget", b.Name())
		require.Equal(t, BudgetStats{Available: 100, Max: 100}, b.Stats())
		require.Equal(t, 100, drain(b))
		time.Sleep(time.Second)
		require.Equal(t, 1, drain(b))
		fund(b, 10)
		require.Equal(t, 1, drain(b))
		require.Equal(t, BudgetStats{Taken: 102, Refused: 3, Max: 100}, b.Stats())
	})
}

// Ten successes at 10 % are a retry, nine are none, and the rest of a retry is
// kept however often it is added to: there is no drift.
func TestSuccessesPayExactly(t *testing.T) {
	for _, percent := range []int{1, 3, 7, 10, 33, 99, 100} {
		b := newBudget(t, BudgetConfig{Percent: percent, MinPerSecond: Off, Max: 1000})
		drain(b)
		retries := 0
		for i := range 1000 {
			b.Fund()
			retries += drain(b)
			require.Equal(t, (i+1)*percent/100, retries, "%d %%, %d successes", percent, i+1)
		}
	}
}

// The floor pays at exact instants, those of a rate that does not divide a
// second too, for as long as the program runs.
func TestTimePaysExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, perSecond := range []int{1, 3, 7, 1000} {
			b := newBudget(t, BudgetConfig{Percent: Off, MinPerSecond: perSecond, Max: 5})
			start := time.Now()
			drain(b)
			for i := 1; i <= 2000; i++ {
				due := (time.Duration(i)*time.Second + time.Duration(perSecond) - 1) / time.Duration(perSecond)
				time.Sleep(due - 1 - time.Since(start))
				require.ErrorIs(t, b.Take(), ErrBudget, "%d a second: the %dth came early", perSecond, i)
				time.Sleep(time.Nanosecond)
				require.NoError(t, b.Take(), "%d a second: the %dth came late", perSecond, i)
			}
		}
	})
}

func TestNeverMoreThanMax(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(t, BudgetConfig{MinPerSecond: 2, Max: 3})
		time.Sleep(200 * 365 * 24 * time.Hour)
		fund(b, 1000)
		require.Equal(t, 3, b.Stats().Available)
		require.Equal(t, 3, drain(b))
		fund(b, 1000)
		time.Sleep(time.Hour)
		fund(b, 1000)
		require.Equal(t, 3, drain(b))
		time.Sleep(500 * time.Millisecond)
		require.Equal(t, 1, drain(b))
	})
}

// The widest of everything neither overflows nor mints.
func TestWidestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(t, BudgetConfig{Percent: 100, MinPerSecond: 1e6, Max: 1e9})
		time.Sleep(200 * 365 * 24 * time.Hour)
		fund(b, 1000)
		require.Equal(t, 1e9, float64(b.Stats().Available))
		require.NoError(t, b.Take())
		require.Equal(t, 1e9-1, float64(b.Stats().Available))
		time.Sleep(time.Microsecond)
		require.Equal(t, 1e9, float64(b.Stats().Available))
	})
}

// A full budget is not written by successes: that is all but the whole life of
// most.
func TestFullBudgetIsNotWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(t, BudgetConfig{})
		time.Sleep(time.Hour)
		require.NoError(t, b.Take())
		fund(b, 10) // a whole retry
		full := b.saved.Load()
		fund(b, 1000)
		require.Equal(t, full, b.saved.Load())
	})
}

// Whoever comes with a time before that of the last one to take a token, gets
// none that is not there, and leaves none behind.
func TestOldTimeMintsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(t, BudgetConfig{MinPerSecond: 10, Max: 10})
		time.Sleep(time.Second)
		// Somebody took a token half a second from now, and then many successes
		// at the same time have filled it to above the brim.
		b.mintedBefore.Store(b.minted() + 5*token)
		b.saved.Store(b.most() - b.mintedBefore.Load() + 9*token)
		require.NoError(t, b.Take())
		time.Sleep(500 * time.Millisecond)
		require.Equal(t, 9, b.Stats().Available)
	})
}

// When everything fails, what fails is called at most Max times more often than
// it would be without retries, and with 10 % successes a tenth of them more:
// 10,000 calls, each of which would be tried three times.
func TestStormIsBounded(t *testing.T) {
	for _, tc := range []struct{ successEvery, want int }{
		{0, 10_000 + 100},
		// What the last success paid for is not asked for any more.
		{10, 10_000 + 100 + 99},
	} {
		b := newBudget(t, BudgetConfig{MinPerSecond: Off})
		attempts := 0
		for call := range 10_000 {
			attempts++
			if tc.successEvery > 0 && call%tc.successEvery == tc.successEvery-1 {
				b.Fund()
				continue
			}
			for range 2 {
				if b.Take() != nil {
					break
				}
				attempts++
			}
		}
		require.Equal(t, tc.want, attempts)
	}
}

func TestRefusalSaysWhat(t *testing.T) {
	var heard []core.Event
	b := newBudget(t, BudgetConfig{Name: "payments", MinPerSecond: Off, Max: 1, Observer: observerFunc(func(e core.Event) {
		heard = append(heard, e)
	})})
	require.NoError(t, b.Take())
	require.Empty(t, heard)
	err := b.Take()
	require.ErrorIs(t, err, ErrBudget)
	r, ok := errors.AsType[*core.Rejection](err)
	require.True(t, ok)
	require.Equal(t, core.Rejection{Guard: "payments", Reason: core.RetryBudget, Err: ErrBudget}, *r)
	require.Equal(t, `retry: budget used up: refused by "payments"`, err.Error())
	require.Equal(t, "retry_budget", r.ErrorType())
	require.Same(t, err, b.Take())
	want := core.Event{Kind: core.KindRejected, Reason: core.RetryBudget, Component: "payments", N: 1}
	require.Equal(t, []core.Event{want, want}, heard)
}

type observerFunc func(core.Event)

func (observerFunc) Enabled(core.Kind) bool                    { return true }
func (f observerFunc) Observe(_ context.Context, e core.Event) { f(e) }

// An observer that panics, exits its goroutine or calls the budget back breaks
// nothing.
func TestObserverMayDoAnything(t *testing.T) {
	var do func()
	b := newBudget(t, BudgetConfig{MinPerSecond: Off, Max: 1, Observer: observerFunc(func(core.Event) { do() })})
	drained := func() { do = func() {}; drain(b) }
	drained()

	do = func() { panic("observer") }
	require.ErrorIs(t, b.Take(), ErrBudget)

	do = runtime.Goexit
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = b.Take()
	}()
	<-ended

	do = func() { do = func() {}; fund(b, 10); drain(b) }
	require.ErrorIs(t, b.Take(), ErrBudget)
	fund(b, 10)
	require.NoError(t, b.Take())
}

func TestNilBudgetIsNoBound(t *testing.T) {
	var b *Budget
	b.Fund()
	for range 1000 {
		require.NoError(t, b.Take())
	}
	require.Zero(t, b.Stats())
	require.Empty(t, b.Name())
	require.Equal(t, core.Report{Kind: "retry_budget"}, b.Inspect())
}

func TestInspect(t *testing.T) {
	b := newBudget(t, BudgetConfig{Name: "payments", MinPerSecond: Off, Max: 3})
	drain(b)
	fund(b, 20)
	require.Equal(t, core.Report{
		Kind: "retry_budget", Name: "payments",
		Values: []core.Value{
			core.Count("surgewall.retry_budget.retries", "{retry}", 3).With("result", "acquired"),
			core.Count("surgewall.retry_budget.retries", "{retry}", 1).With("result", "rejected"),
			core.Amount("surgewall.retry_budget.retries.available", "{retry}", 2),
		},
		Settings: []core.Setting{{Name: "Percent", Value: 10}, {Name: "MinPerSecond", Value: Off}, {Name: "Max", Value: 3}},
	}, b.Inspect())
}

// Among many goroutines exactly as many retries are taken as successes paid
// for, no success is lost and none counted twice.
func TestNothingIsLostAmongGoroutines(t *testing.T) {
	b := newBudget(t, BudgetConfig{Percent: 100, MinPerSecond: Off, Max: 1_000_000})
	b.saved.Store(0)
	const workers, each = 4, 100_000 // below Max, whatever the order
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				b.Fund()
			}
		})
		wg.Go(func() {
			for range each {
				if b.Take() == nil {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	taken.Add(int64(drain(b)))
	require.EqualValues(t, workers*each, taken.Load())
	require.EqualValues(t, workers*each, b.Stats().Taken)
}

// A budget that is full all the time gives at most Max and what was paid since,
// also when it is full, emptied and filled by many at once.
func TestBoundHoldsAmongGoroutines(t *testing.T) {
	const workers, each = 8, 20_000
	b := newBudget(t, BudgetConfig{Percent: 100, MinPerSecond: 1e6, Max: 5})
	start := b.clock.Now()
	var taken, funded atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				switch (i + w) % 4 {
				case 0:
					funded.Add(1)
					b.Fund()
				default:
					if b.Take() == nil {
						taken.Add(1)
					}
				}
			}
		})
	}
	wg.Wait()
	micros := (b.clock.Now()-start)/1000 + 1
	require.LessOrEqual(t, taken.Load(), 5+funded.Load()+micros)
	require.LessOrEqual(t, b.Stats().Available, 5)
}

func TestNothingAllocates(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	full := newBudget(t, BudgetConfig{Max: 1e9})
	empty := newBudget(t, BudgetConfig{MinPerSecond: Off, Max: 1})
	flood := newBudget(t, BudgetConfig{MinPerSecond: Off, Max: 1, Observer: observerFunc(func(core.Event) {})})
	drain(empty)
	drain(flood)
	for name, f := range map[string]func(){
		"fund":             full.Fund,
		"take":             func() { _ = full.Take() },
		"refused":          func() { _ = empty.Take() },
		"refused, heard":   func() { _ = flood.Take() },
		"backoff":          func() { Backoff{}.Pause(3) },
		"refused and fund": func() { _ = empty.Take(); empty.Fund() },
	} {
		require.Zero(t, testing.AllocsPerRun(1000, f), name)
	}
}
