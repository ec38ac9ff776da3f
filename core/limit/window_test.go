package limit

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
)

// windowed is what both kinds of windows can do.
type windowed interface {
	Limiter
	core.Ready
	core.Refuser
	Allow() bool
	AllowN(n int) bool
	Take(n int) Decision
	Reserve(n int, maxWait time.Duration) (Reservation, error)
	Wait(ctx context.Context, n int) error
	Charge(n int)
	Refund(n int)
	Pause(until time.Time)
	Stats() Stats
}

// windowConfig is the settings of either.
type windowConfig struct {
	name            string
	limit           int
	window, maxWait time.Duration
	observer        core.Observer
}

type windowKind struct {
	kind, config string
	make         func(windowConfig) (windowed, error)
	reconfigure  func(windowed, windowConfig) error
	none         windowed
}

var windowKinds = map[string]windowKind{
	"counter": {
		kind: "sliding_window", config: "limit.SlidingWindowConfig",
		make: func(c windowConfig) (windowed, error) {
			w, err := NewSlidingWindow(SlidingWindowConfig{c.name, c.limit, c.window, c.maxWait, c.observer})
			if err != nil {
				return nil, err
			}
			return w, nil
		},
		reconfigure: func(w windowed, c windowConfig) error {
			return w.(*SlidingWindow).Reconfigure(SlidingWindowConfig{c.name, c.limit, c.window, c.maxWait, c.observer})
		},
		none: (*SlidingWindow)(nil),
	},
	"log": {
		kind: "sliding_log", config: "limit.SlidingLogConfig",
		make: func(c windowConfig) (windowed, error) {
			l, err := NewSlidingLog(SlidingLogConfig{c.name, c.limit, c.window, c.maxWait, c.observer})
			if err != nil {
				return nil, err
			}
			return l, nil
		},
		reconfigure: func(w windowed, c windowConfig) error {
			return w.(*SlidingLog).Reconfigure(SlidingLogConfig{c.name, c.limit, c.window, c.maxWait, c.observer})
		},
		none: (*SlidingLog)(nil),
	},
}

// bothWindows runs a test, in virtual time, of either kind.
func bothWindows(t *testing.T, f func(t *testing.T, k windowKind)) {
	for name, k := range windowKinds {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, k) })
		})
	}
}

func (k windowKind) must(t *testing.T, c windowConfig) windowed {
	t.Helper()
	w, err := k.make(c)
	require.NoError(t, err)
	return w
}

func TestWindowsBadConfig(t *testing.T) {
	for _, k := range windowKinds {
		t.Run(k.kind, func(t *testing.T) {
			most := "must be 1 to 1048575"
			tooMany := maxWindowLimit + 1
			if k.kind == "sliding_log" {
				most, tooMany = "must be 1 to 65536", maxLogLimit+1
			}
			for name, tc := range map[string]struct {
				cfg  windowConfig
				want string
			}{
				"zero":            {windowConfig{}, ".Limit: 0: " + most + "\n" + k.config + ".Window: 0s: must be above 0 and at most 10000h"},
				"negative":        {windowConfig{limit: -1, window: -1}, ".Limit: -1: " + most + "\n" + k.config + ".Window: -1ns: must be above 0 and at most 10000h"},
				"too many":        {windowConfig{limit: tooMany, window: time.Hour}, ": " + most},
				"far too many":    {windowConfig{limit: int(^uint(0) >> 1), window: time.Hour}, ": " + most},
				"too long":        {windowConfig{limit: 1, window: 10_000*time.Hour + 1}, ".Window: 10000h0m0.000000001s: must be above 0 and at most 10000h"},
				"too fast":        {windowConfig{limit: 1001, window: time.Microsecond}, ".Limit: 1001: must be at most 10^9 per second"},
				"negative wait":   {windowConfig{limit: 1, window: 1, maxWait: -1}, ".MaxWait: -1ns: must not be negative"},
				"all but a limit": {windowConfig{window: -1, maxWait: -1}, ".MaxWait: -1ns"},
			} {
				w, err := k.make(tc.cfg)
				require.True(t, w == nil, name)
				require.ErrorIs(t, err, core.ErrConfig, name)
				require.ErrorContains(t, err, k.config, name)
				require.ErrorContains(t, err, tc.want, name)
				require.ErrorContains(t, k.reconfigure(k.none, tc.cfg), tc.want, "of nil too")
			}
			for _, cfg := range []windowConfig{{limit: 1, window: 1}, {limit: 1000, window: time.Microsecond}, {limit: tooMany - 1, window: 10_000 * time.Hour}} {
				w := k.must(t, cfg)
				require.Equal(t, k.kind, w.Name())
				require.Equal(t, cfg.limit, w.Stats().Limit)
				require.True(t, w.AllowN(cfg.limit))
				require.True(t, cfg.window < time.Hour || !w.Allow())
			}
		})
	}
}

func TestNilWindowsAreNoLimit(t *testing.T) {
	for _, k := range windowKinds {
		t.Run(k.kind, func(t *testing.T) {
			w := k.none
			require.True(t, w.Allow() && w.AllowN(1e9) && w.Ready() && w.Take(5).OK && w.Peek(5).OK)
			require.False(t, w.AllowN(-1) || w.Take(-1).OK)
			require.NoError(t, w.Wait(t.Context(), 1e9))
			require.ErrorIs(t, w.Wait(t.Context(), -1), ErrInvalidCost)
			p, err := w.Acquire(t.Context(), core.Call{})
			require.NoError(t, err)
			p.Cancel()
			_, err = w.Acquire(t.Context(), core.Call{Cost: -1})
			require.ErrorIs(t, err, ErrInvalidCost)
			r, err := w.Reserve(1, 0)
			require.NoError(t, err)
			require.Zero(t, r.Delay())
			r.Cancel()
			_, err = w.Reserve(-1, 0)
			require.ErrorIs(t, err, ErrInvalidCost)
			w.Charge(1)
			w.Refund(1)
			w.Pause(time.Now())
			require.NoError(t, k.reconfigure(w, windowConfig{limit: 1, window: 1}))
			require.Nil(t, w.Refusal())
			require.Zero(t, w.Stats())
			require.Empty(t, w.Name())
			require.Equal(t, k.kind, w.Inspect().Kind)
			require.True(t, All(w).Allow())
		})
	}
}

// With units taken one by one, both kinds say the same.
func TestWindowsDecide(t *testing.T) {
	bothWindows(t, func(t *testing.T, k windowKind) {
		w := k.must(t, windowConfig{name: "api", limit: 5, window: time.Second})
		yes := func(remaining int, reset time.Duration) Decision {
			return Decision{OK: true, Limit: 5, Remaining: remaining, ResetAfter: reset, Window: time.Second, Policy: "api"}
		}
		no := func(remaining int, retry, reset time.Duration) Decision {
			return Decision{Limit: 5, Remaining: remaining, RetryAfter: retry, ResetAfter: reset, Window: time.Second, Policy: "api"}
		}
		reset := 2 * time.Second // the counter takes it that all may be late in the window
		if k.kind == "sliding_log" {
			reset = time.Second
		}
		require.Equal(t, yes(5, 0), w.Peek(0))
		require.Equal(t, yes(0, 0), w.Peek(5))
		require.Equal(t, no(5, Never, 0), w.Peek(6))
		require.Equal(t, no(5, Never, 0), w.Take(-1))
		require.Equal(t, yes(3, reset), w.Take(2))
		require.Equal(t, yes(3, reset), w.Take(0))
		require.True(t, w.AllowN(0))
		require.Equal(t, no(3, Never, reset), w.Take(6))
		require.False(t, w.AllowN(6) || w.AllowN(-1))
		require.Equal(t, yes(0, reset), w.Take(3))
		require.False(t, w.Allow())
		require.False(t, w.Ready())
		require.Equal(t, "api", w.Refusal().Guard)

		retry := w.Peek(1).RetryAfter
		if k.kind == "sliding_log" {
			require.Equal(t, time.Second, retry)
		} else {
			require.Equal(t, time.Second+time.Second/5, retry) // four of five are left then
		}
		require.Equal(t, no(0, retry, reset), w.Take(1))
		time.Sleep(retry - 1)
		require.Equal(t, no(0, 1, reset-retry+1), w.Take(1))
		time.Sleep(time.Nanosecond)
		require.True(t, w.Ready())
		require.Nil(t, w.Refusal())
		require.True(t, w.Allow())

		time.Sleep(3 * time.Second)
		require.Equal(t, yes(5, 0), w.Peek(0))
		require.Equal(t, Stats{Admitted: 3, Refused: 7, Available: 5, Limit: 5}, w.Stats())
	})
}

func TestWindowsWait(t *testing.T) {
	bothWindows(t, func(t *testing.T, k windowKind) {
		w := k.must(t, windowConfig{limit: 3, window: 3 * d})
		ctx := t.Context()
		start := time.Now()

		done, cancel := context.WithCancel(ctx)
		cancel()
		err := w.Wait(done, 1)
		require.ErrorIs(t, err, ErrLimited)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, 3, w.Stats().Available, "a wait that never began takes nothing")
		require.ErrorIs(t, w.Wait(ctx, 4), ErrNeverFits)
		require.ErrorIs(t, w.Wait(ctx, -1), ErrInvalidCost)
		require.NoError(t, w.Wait(ctx, 0))

		require.NoError(t, w.Wait(ctx, 2))
		require.Zero(t, time.Since(start))

		// Too short a deadline fails now and not at the deadline; one that is just
		// long enough does.
		turn := w.Peek(3).RetryAfter
		short, cancel := context.WithTimeout(ctx, turn-1)
		defer cancel()
		err = w.Wait(short, 3)
		require.ErrorIs(t, err, ErrLimited)
		require.Equal(t, turn, retryAfter(t, err))
		require.Zero(t, time.Since(start))
		enough, cancel := context.WithTimeout(ctx, turn)
		defer cancel()
		require.NoError(t, w.Wait(enough, 3))
		require.Equal(t, turn, time.Since(start))

		// A wait that ends gives all back.
		before := w.Peek(1)
		stopped, stop := context.WithCancel(ctx)
		errs := make(chan error)
		go func() { errs <- w.Wait(stopped, 1) }()
		synctest.Wait()
		require.Greater(t, w.Peek(1).ResetAfter, before.ResetAfter)
		stop()
		err = <-errs
		require.ErrorIs(t, err, ErrLimited)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, before, w.Peek(1))

		s := w.Stats()
		require.EqualValues(t, 2, s.Admitted)
		require.EqualValues(t, 5, s.Refused)
	})
}

// Waiters go in order, each at its own time, and what others do changes nobody's.
func TestWindowsWaitersGoInOrderAndEachAtItsTime(t *testing.T) {
	bothWindows(t, func(t *testing.T, k windowKind) {
		w := k.must(t, windowConfig{limit: 1, window: d})
		require.True(t, w.Allow())
		start := time.Now()
		type turn struct {
			who int
			at  time.Duration
		}
		var mu sync.Mutex
		var got []turn
		wait := func(ctx context.Context, who int) {
			if w.Wait(ctx, 1) == nil {
				mu.Lock()
				got = append(got, turn{who, time.Since(start)})
				mu.Unlock()
			}
		}
		each := d // the log's
		if k.kind == "sliding_window" {
			each = 2 * d // one is counted until the next window has passed
		}
		ctxs := make([]context.CancelFunc, 6)
		for i := range ctxs {
			var ctx context.Context
			ctx, ctxs[i] = context.WithCancel(t.Context())
			go wait(ctx, i)
			synctest.Wait()
		}
		ctxs[2]() // those after it keep their turns
		ctxs[5]() // nobody is after it: its turn is free again
		synctest.Wait()
		go wait(t.Context(), 6)
		synctest.Wait()
		require.False(t, w.Allow(), "nobody overtakes")
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, []turn{{0, each}, {1, 2 * each}, {3, 4 * each}, {4, 5 * each}, {6, 6 * each}}, got)
		for _, cancel := range ctxs {
			cancel()
		}
	})
}

func TestWindowsReserve(t *testing.T) {
	bothWindows(t, func(t *testing.T, k windowKind) {
		w := k.must(t, windowConfig{limit: 2, window: 2 * d})
		r, err := w.Reserve(2, 0)
		require.NoError(t, err)
		require.Zero(t, r.Delay())
		turn := w.Peek(1).RetryAfter
		_, err = w.Reserve(1, turn-1)
		require.ErrorIs(t, err, ErrLimited)
		require.Equal(t, turn, retryAfter(t, err))
		_, err = w.Reserve(3, time.Hour)
		require.ErrorIs(t, err, ErrNeverFits)
		_, err = w.Reserve(1, -1)
		require.ErrorIs(t, err, ErrLimited)
		r, err = w.Reserve(0, 0)
		require.NoError(t, err)
		require.Zero(t, r.Delay())

		r, err = w.Reserve(1, turn)
		require.NoError(t, err)
		require.Equal(t, turn, r.Delay())
		time.Sleep(d)
		require.Equal(t, turn-d, r.Delay())
		r.Cancel()
		require.Zero(t, r.Delay())
		r.Cancel() // does nothing
		require.Equal(t, turn-d, w.Peek(1).RetryAfter)
		require.EqualValues(t, 1, w.Stats().Cancelled)

		r, err = w.Reserve(1, time.Hour)
		require.NoError(t, err)
		time.Sleep(turn - d)
		require.Zero(t, r.Delay())
		time.Sleep(time.Nanosecond)
		before := w.Peek(0)
		r.Cancel() // too late
		require.Equal(t, before, w.Peek(0))
	})
}

func TestWindowsAcquire(t *testing.T) {
	bothWindows(t, func(t *testing.T, k windowKind) {
		w := k.must(t, windowConfig{name: "api", limit: 10, window: time.Second, maxWait: time.Second / 2})
		ctx := t.Context()
		start := time.Now()
		p, err := w.Acquire(ctx, core.Call{Cost: 4})
		require.NoError(t, err)
		require.False(t, p.WantsEnd())
		p.Cancel()
		require.Equal(t, 10, w.Peek(0).Remaining)
		p.Cancel() // empty
		require.Equal(t, 10, w.Peek(0).Remaining)
		for _, tc := range []struct{ cost, result, left int }{
			{4, 0, 6}, {4, 1, 9}, {4, core.CostNothing, 10}, {4, 4, 6}, {1, 5, 5},
		} {
			p, err := w.Acquire(ctx, core.Call{Cost: tc.cost})
			require.NoError(t, err)
			p.Finish(ctx, core.Result{Cost: tc.result})
			require.Equal(t, tc.left, w.Peek(0).Remaining, "%+v", tc)
			w.Refund(1000)
			require.Equal(t, 10, w.Peek(0).Remaining, "never more than the limit")
		}

		// A charge may leave it in debt.
		p, err = w.Acquire(ctx, core.Call{Cost: 10})
		require.NoError(t, err)
		p.Finish(ctx, core.Result{Cost: 25})
		debt := w.Peek(1)
		require.GreaterOrEqual(t, debt.RetryAfter, 2*time.Second)
		w.Refund(15)
		require.Less(t, w.Peek(1).RetryAfter, 2*time.Second)
		w.Charge(15)
		require.Equal(t, debt, w.Peek(1))
		_, err = w.Acquire(ctx, core.Call{})
		require.ErrorIs(t, err, ErrLimited)
		require.Equal(t, debt.RetryAfter, retryAfter(t, err))
		require.Zero(t, time.Since(start), "it would have had to wait for longer than MaxWait")

		time.Sleep(debt.RetryAfter - time.Second/4)
		_, err = w.Acquire(ctx, core.Call{})
		require.NoError(t, err)
		require.Equal(t, debt.RetryAfter, time.Since(start))

		_, err = w.Acquire(ctx, core.Call{Cost: 11})
		require.ErrorIs(t, err, ErrNeverFits)
		require.ErrorContains(t, err, `"api"`)
		require.ErrorContains(t, err, "at most 10")
		_, err = w.Acquire(ctx, core.Call{Cost: -1})
		require.ErrorIs(t, err, ErrInvalidCost)
	})
}

func TestWindowsPause(t *testing.T) {
	bothWindows(t, func(t *testing.T, k windowKind) {
		h := &hearing{}
		w := k.must(t, windowConfig{name: "api", limit: 2, window: time.Second, observer: h})
		time.Sleep(300 * time.Millisecond)
		p, err := w.Acquire(t.Context(), core.Call{Cost: 2})
		require.NoError(t, err)
		time.Sleep(200 * time.Millisecond)
		turn := w.Peek(1).RetryAfter
		r, err := w.Reserve(1, time.Hour)
		require.NoError(t, err)
		require.Equal(t, turn, r.Delay())
		next := w.Peek(1).RetryAfter
		went := make(chan time.Duration)
		start := time.Now()
		go func() {
			_ = w.Wait(t.Context(), 1)
			went <- time.Since(start)
		}()
		synctest.Wait()

		w.Pause(time.Now().Add(10 * time.Second))
		require.Equal(t, []core.Event{{Kind: core.KindPaused, Component: "api", Duration: 10 * time.Second}}, h.events)
		require.Equal(t, 10*time.Second+turn, r.Delay())
		require.False(t, w.Allow() || w.Ready() || w.Take(1).OK)
		require.Zero(t, w.Peek(0).Remaining)
		require.Greater(t, w.Refusal().RetryAt, start.Add(10*time.Second))
		time.Sleep(4 * time.Second)
		w.Pause(time.Now().Add(time.Second)) // sooner after all
		require.Equal(t, time.Second+turn, r.Delay())
		w.Pause(time.Time{}) // now
		require.Equal(t, turn, r.Delay())
		require.Equal(t, 4*time.Second+next, <-went)
		require.Equal(t, core.Event{Kind: core.KindPaused, Component: "api"}, h.events[len(h.events)-1])

		// What was taken before can be given back after.
		time.Sleep(time.Hour)
		p, err = w.Acquire(t.Context(), core.Call{Cost: 2})
		require.NoError(t, err)
		w.Pause(time.Now().Add(time.Second))
		require.Equal(t, Decision{OK: true, Limit: 2, Window: time.Second, Policy: "api", ResetAfter: w.Peek(0).ResetAfter}, w.Peek(0))
		time.Sleep(time.Second)
		require.Zero(t, w.Peek(0).Remaining, "time stood still")
		p.Cancel()
		require.Equal(t, 2, w.Peek(0).Remaining)

		// A limiter that is paused and not used is free when the pause ends.
		w.Pause(time.Now().Add(time.Minute))
		require.Equal(t, time.Minute, w.Peek(1).RetryAfter)
		require.Equal(t, time.Minute, w.Peek(1).ResetAfter)
		require.NoError(t, w.Wait(t.Context(), 2))
		require.False(t, w.Allow())
		w.Pause(time.Now().AddDate(10_000, 0, 0)) // not in 50 years
		require.False(t, w.Allow())
		require.Greater(t, w.Peek(1).RetryAfter, 49*365*day)
		_, err = w.Acquire(t.Context(), core.Call{})
		require.ErrorIs(t, err, ErrLimited)
		w.Charge(1)
		w.Refund(1)
		w.Pause(time.Now())
		time.Sleep(time.Hour)
		require.True(t, w.AllowN(2))
	})
}

func TestWindowsReconfigure(t *testing.T) {
	bothWindows(t, func(t *testing.T, k windowKind) {
		h := &hearing{}
		w := k.must(t, windowConfig{name: "api", limit: 5, window: time.Second, observer: h})
		time.Sleep(d)
		require.True(t, w.AllowN(4))
		require.NoError(t, k.reconfigure(w, windowConfig{name: "other", limit: 10, window: time.Second}))
		require.Equal(t, []core.Event{{Kind: core.KindReconfigured, Component: "api"}}, h.events)
		require.Equal(t, "api", w.Name())
		require.Equal(t, 6, w.Peek(0).Remaining, "what was taken stays taken")
		require.NoError(t, k.reconfigure(w, windowConfig{limit: 6, window: 2 * time.Second, maxWait: time.Second}))
		require.Equal(t, 2, w.Peek(0).Remaining)
		require.NoError(t, k.reconfigure(w, windowConfig{limit: 6, window: time.Minute}))
		require.Equal(t, 2, w.Peek(0).Remaining)
		require.NoError(t, k.reconfigure(w, windowConfig{limit: 6, window: time.Second}))
		require.Equal(t, 2, w.Peek(0).Remaining)
		require.NoError(t, k.reconfigure(w, windowConfig{limit: 2, window: time.Second}))
		require.Zero(t, w.Peek(0).Remaining)
		require.Greater(t, w.Peek(1).RetryAfter, time.Second/2)
		_, err := w.Acquire(t.Context(), core.Call{Cost: 3})
		require.ErrorContains(t, err, "at most 2")
		require.Equal(t, []core.Setting{
			{Name: "Limit", Value: 2}, {Name: "Window", Value: time.Second}, {Name: "MaxWait", Value: time.Duration(0)},
		}, w.Inspect().Settings)

		before := w.Inspect()
		require.ErrorIs(t, k.reconfigure(w, windowConfig{limit: -1, window: -1}), core.ErrConfig)
		require.Equal(t, before, w.Inspect())

		// A pause outlasts new settings, and counters too.
		w.Pause(time.Now().Add(time.Hour))
		require.NoError(t, k.reconfigure(w, windowConfig{limit: 3, window: time.Second}))
		require.False(t, w.Allow())
		time.Sleep(2 * time.Hour)
		require.True(t, w.AllowN(3))
		require.EqualValues(t, 2, w.Stats().Admitted)
	})
}

// Those who wait are given new turns, sooner or later ones.
func TestWindowsWaitersAreReconfigured(t *testing.T) {
	for name, tc := range map[string]struct {
		limit  int
		window time.Duration
		want   map[string][]time.Duration
	}{
		// Half a window, and three halves, are a tenth of it.
		"faster": {1, d / 10, map[string][]time.Duration{
			"sliding_log": {55 * d / 100, 65 * d / 100}, "sliding_window": {65 * d / 100, 85 * d / 100},
		}},
		"slower": {1, 10 * d, map[string][]time.Duration{
			"sliding_log": {d/2 + 5*d, d/2 + 15*d}, "sliding_window": {d/2 + 15*d, d/2 + 35*d},
		}},
		// In the log, three may go within the window that began half of one ago.
		"a greater limit": {3, d, map[string][]time.Duration{
			"sliding_log": {d / 2, d / 2}, "sliding_window": {d / 2, d},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			bothWindows(t, func(t *testing.T, k windowKind) {
				w := k.must(t, windowConfig{limit: 1, window: d})
				require.True(t, w.Allow())
				start := time.Now()
				var went [2]time.Duration
				var wg sync.WaitGroup
				for i := range went {
					wg.Go(func() {
						require.NoError(t, w.Wait(t.Context(), 1))
						went[i] = time.Since(start)
					})
					synctest.Wait()
				}
				time.Sleep(d / 2)
				require.NoError(t, k.reconfigure(w, windowConfig{limit: tc.limit, window: tc.window}))
				wg.Wait()
				for i, want := range tc.want[k.kind] {
					require.InDelta(t, want, went[i], 1) // rounded up, by 1 ns at most
				}
			})
		})
	}
}

func TestWindowsObserver(t *testing.T) {
	for _, k := range windowKinds {
		t.Run(k.kind, func(t *testing.T) {
			h := &hearing{}
			w := k.must(t, windowConfig{name: "api", limit: 2, window: time.Hour, observer: h})
			require.True(t, w.AllowN(2))
			require.Empty(t, h.events, "nothing is told of an admission")
			w.Allow()
			w.Take(3)
			_, _ = w.Acquire(t.Context(), core.Call{Cost: -1})
			event := func(why core.Reason, n int64) core.Event {
				return core.Event{Kind: core.KindRejected, Reason: why, Component: "api", N: n}
			}
			require.Equal(t, []core.Event{
				event(core.RateLimited, 1), event(core.NeverFits, 3), event(core.InvalidCost, -1),
			}, h.events)

			h.then = func() { panic("observer") }
			require.False(t, w.Allow())
			h.then = func() {
				h.then = nil // calls back in
				w.Take(1)
				w.Inspect()
			}
			require.False(t, w.Take(1).OK)
			h.then = runtime.Goexit
			gone := make(chan struct{})
			go func() { defer close(gone); w.Allow() }()
			<-gone
			block := make(chan struct{})
			h.then = func() { <-block }
			stuck := make(chan struct{})
			go func() { defer close(stuck); w.Pause(time.Time{}) }()
			require.Zero(t, w.Stats().Available, "nobody else waits")
			close(block)
			<-stuck
			require.EqualValues(t, 7, w.Stats().Refused)
		})
	}
}

func TestWindowsInspect(t *testing.T) {
	for _, k := range windowKinds {
		w := k.must(t, windowConfig{name: "api", limit: 3, window: time.Hour})
		w.Allow()
		w.AllowN(3)
		r := w.Inspect()
		require.Equal(t, k.kind, r.Kind)
		require.Equal(t, "api", r.Name)
		require.False(t, r.Since.IsZero())
		require.Equal(t, []core.Value{
			core.Count("surgewall.rate_limiting.requests", "{request}", 1).With("result", "acquired"),
			core.Count("surgewall.rate_limiting.requests", "{request}", 1).With("result", "rejected"),
			core.Amount("surgewall.rate_limiting.tokens.available", "{token}", 2),
		}, r.Values)
	}
}

func TestWindowsInAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		window := must(NewSlidingWindow(SlidingWindowConfig{Name: "hour", Limit: 1000, Window: time.Hour}))
		log := must(NewSlidingLog(SlidingLogConfig{Name: "second", Limit: 5, Window: time.Second}))
		both := All(window, log)
		require.True(t, both.AllowN(5))
		require.Equal(t, 995, window.Peek(0).Remaining)
		d := both.Take(1)
		require.Equal(t, Decision{Limit: 5, RetryAfter: time.Second, ResetAfter: time.Second, Window: time.Second, Policy: "second"}, d)
		require.Equal(t, 995, window.Peek(0).Remaining)
		require.NoError(t, both.Wait(t.Context(), 5))
		_, err := both.Acquire(t.Context(), core.Call{Cost: 6})
		require.ErrorContains(t, err, `"second"`)
		require.EqualValues(t, 2, both.Stats().Admitted)
	})
}

// Many goroutines, some of whose calls never start: those that did are within
// the limit for the time that passed.
func TestWindowsContention(t *testing.T) {
	for _, k := range windowKinds {
		for name, tc := range map[string]struct {
			limit  int
			window time.Duration
		}{"slow": {50, 50 * time.Millisecond}, "fast": {1_000, time.Millisecond}} {
			t.Run(k.kind+" "+name, func(t *testing.T) {
				start := time.Now() // real time: contention needs it; the bound is exact all the same
				w := k.must(t, windowConfig{limit: tc.limit, window: tc.window, maxWait: 50 * time.Microsecond})
				const calls = 8_000
				used := contend(t, w, calls)
				rate := Per(tc.limit, tc.window)
				require.True(t, within(used, rate, tc.limit, time.Since(start)), "%d in %v", used, time.Since(start))
				require.GreaterOrEqual(t, used, int64(tc.limit)-3)
				s := w.Stats()
				require.EqualValues(t, 8*calls, s.Admitted+s.Refused)
			})
		}
	}
}

// Settings and state swap together: callers that race with changes stay within
// the sum of what each setting allows.
func TestWindowsReconfigureUnderLoad(t *testing.T) {
	for _, k := range windowKinds {
		t.Run(k.kind, func(t *testing.T) {
			start := time.Now() // real time: contention needs it; the bound is exact all the same
			slow := windowConfig{limit: 10, window: 10 * time.Millisecond}
			fast := windowConfig{limit: 1_000, window: time.Millisecond}
			w := k.must(t, slow)
			stop := make(chan struct{})
			var taken, calls atomic.Int64
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						switch {
						case i > 0:
							if w.Allow() {
								taken.Add(1)
								calls.Add(1)
							}
						case w.Wait(context.Background(), slow.limit) == nil:
							taken.Add(int64(slow.limit))
							calls.Add(1)
						}
					}
				})
			}
			var fastFor time.Duration
			changes := 0
			for time.Since(start) < 300*time.Millisecond {
				began := time.Now()
				require.NoError(t, k.reconfigure(w, fast))
				time.Sleep(100 * time.Microsecond) // real time
				if changes%6 == 0 {
					w.Pause(time.Now().Add(50 * time.Microsecond))
				}
				require.NoError(t, k.reconfigure(w, slow))
				fastFor += time.Since(began)
				time.Sleep(200 * time.Microsecond) // real time
				changes += 2
			}
			close(stop)
			wg.Wait()
			all := time.Since(start)
			bound := fastFor.Seconds()*1e6 + (all-fastFor).Seconds()*1e3 + float64(fast.limit+changes)
			require.LessOrEqual(t, float64(taken.Load()), bound, "%d changes", changes)
			require.Greater(t, taken.Load(), int64(fast.limit/2))
			require.EqualValues(t, calls.Load(), w.Stats().Admitted)
		})
	}
}

func TestWindowsAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ctx := t.Context()
	for _, k := range windowKinds {
		free := k.must(t, windowConfig{limit: 1000, window: 1000})
		used := k.must(t, windowConfig{limit: 10, window: time.Hour})
		require.True(t, used.AllowN(10))
		require.True(t, free.AllowN(1000))
		_, err := free.Reserve(1000, time.Hour) // so that the log has grown
		require.NoError(t, err)
		acquire := func(g core.Guard, cost int, admitted bool) {
			p, err := g.Acquire(ctx, core.Call{Cost: cost})
			if (err == nil) != admitted {
				t.Error("wrong answer")
			}
			p.Done(ctx, core.Success)
		}
		for name, f := range map[string]func(){
			"allow":           func() { free.Allow() },
			"allow five":      func() { free.AllowN(5) },
			"take":            func() { free.Take(5) },
			"peek":            func() { free.Peek(5) },
			"cancel":          func() { p, _ := free.Acquire(ctx, core.Call{}); p.Cancel() },
			"finish":          func() { p, _ := free.Acquire(ctx, core.Call{Cost: 3}); p.Finish(ctx, core.Result{Cost: 1}) },
			"charge":          func() { free.Charge(1); free.Refund(1) },
			"refused":         func() { used.Allow() },
			"acquire refused": func() { acquire(used, 1, false) },
			"never fits":      func() { acquire(used, 11, false) },
		} {
			require.Zero(t, testing.AllocsPerRun(1000, f), k.kind+" "+name)
		}
	}
	for name, each := range map[string]Algorithm{
		"window": SlidingWindowConfig{Limit: 1000, Window: 1000},
		"log":    SlidingLogConfig{Limit: 1000, Window: 1000},
		"leaky":  LeakyBucketConfig{Rate: PerSecond(1e9), Capacity: 1000},
	} {
		keyed := must(NewKeyed(KeyedConfig[string]{Limit: each}))
		for range 4 { // so that the log has grown
			keyed.Charge("a", 1000)
		}
		require.Zero(t, testing.AllocsPerRun(1000, func() { keyed.Allow("a") }), "keyed "+name)
		require.Zero(t, testing.AllocsPerRun(1000, func() {
			p, _ := keyed.AcquireKey(ctx, "a", core.Call{})
			p.Cancel()
		}), "keyed "+name)
	}
}

func TestSlidingWindowRefusalLeavesTheWordUnwritten(t *testing.T) {
	w := must(NewSlidingWindow(SlidingWindowConfig{Limit: 1, Window: time.Hour}))
	require.True(t, w.Allow())
	word := w.in.Load().word.Load()
	require.False(t, w.Allow())
	_, err := w.Acquire(t.Context(), core.Call{})
	require.ErrorIs(t, err, ErrLimited)
	require.Equal(t, word, w.in.Load().word.Load())
}

// The calls that the word counts, where it has room to, are told in time.
func TestSlidingWindowCountsItsCalls(t *testing.T) {
	for _, limit := range []int{1, 5, 1000, 1<<16 - 1, 1 << 16, maxWindowLimit} {
		w := must(NewSlidingWindow(SlidingWindowConfig{Limit: limit, Window: 10_000 * time.Hour}))
		free := &w.in.Load().window
		require.True(t, free.size <= 63-callBits || limit >= 1<<12)
		for i := range uint64(1000) {
			if limit < 1000 {
				w.Refund(1)
			}
			require.True(t, w.Allow())
			require.Equal(t, i+1, w.Stats().Admitted)
		}
		require.NoError(t, w.Reconfigure(SlidingWindowConfig{Limit: 7, Window: time.Hour}))
		require.EqualValues(t, 1000, w.Stats().Admitted)
	}
}

// A call that was about to be admitted when another was is not refused for it.
func TestSlidingWindowRefusalByStaleReadingIsNotFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := must(NewSlidingWindow(SlidingWindowConfig{Limit: 2, Window: time.Second}))
		time.Sleep(time.Second)
		e, before := w.in.Load(), w.in.Load().word.Load()
		require.True(t, w.Allow())
		_, ok, again := e.takeAt(before, int64(time.Second)-1, 1, 0)
		require.False(t, ok)
		require.True(t, again, "it has changed")
		require.True(t, w.Allow())
		_, ok, again = e.takeAt(e.word.Load(), int64(time.Second), 1, 0)
		require.False(t, ok)
		require.False(t, again)
	})
}

// A key of a Keyed is as if it had a window of its own, also when it was forgotten
// in between, and when settings change.
func TestKeyedWindows(t *testing.T) {
	for name, of := range map[string]func(limit int, window time.Duration) Algorithm{
		"counter": func(limit int, window time.Duration) Algorithm {
			return SlidingWindowConfig{Limit: limit, Window: window}
		},
		"log": func(limit int, window time.Duration) Algorithm { return SlidingLogConfig{Limit: limit, Window: window} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rapid.Check(noDeadline{t}, func(t *rapid.T) { keyedWindowsAgainstLone(t, windowKinds[name], of) })
			})
		})
	}
}

func keyedWindowsAgainstLone(t *rapid.T, kind windowKind, of func(limit int, window time.Duration) Algorithm) {
	const keys = 40
	draw := func() windowConfig {
		return windowConfig{
			limit:  rapid.IntRange(1, 10).Draw(t, "limit"),
			window: time.Duration(rapid.IntRange(1, 10).Draw(t, "window")) * time.Second,
		}
	}
	cfg := draw()
	k := must(NewKeyed(KeyedConfig[int]{Limit: of(cfg.limit, cfg.window), MaxKeys: keys}))
	var model [keys]windowed
	for i := range model {
		model[i] = must(kind.make(cfg))
	}
	same := func(key int, mine, its Decision) {
		its.Policy = mine.Policy
		if mine != its {
			t.Fatalf("%+v, by itself %+v", mine, its)
		}
	}
	type held struct{ mine, its core.Permit }
	var permits []*held
	ctx := context.Background()
	for range rapid.IntRange(1, 100).Draw(t, "ops") {
		key := rapid.IntRange(0, keys-1).Draw(t, "key")
		n := rapid.IntRange(1, 10).Draw(t, "n")
		switch rapid.SampledFrom([]string{"take", "acquire", "end", "charge", "sleep", "sleep", "change"}).Draw(t, "op") {
		case "take":
			same(key, k.Take(key, n), model[key].Take(n))
		case "acquire":
			h := new(held)
			var mine, its error
			h.mine, mine = k.AcquireKey(ctx, key, core.Call{Cost: n})
			h.its, its = model[key].Acquire(ctx, core.Call{Cost: n})
			if (mine == nil) != (its == nil) {
				t.Fatalf("%v, by itself %v", mine, its)
			}
			permits = append(permits, h)
		case "end":
			if len(permits) == 0 {
				continue
			}
			h := permits[len(permits)-1]
			permits = permits[:len(permits)-1]
			h.mine.Finish(ctx, core.Result{Cost: n})
			h.its.Finish(ctx, core.Result{Cost: n})
		case "charge":
			k.Charge(key, n)
			model[key].Charge(n)
		case "sleep":
			time.Sleep(time.Duration(rapid.Int64Range(0, int64(2*cfg.window)).Draw(t, "sleep")))
		case "change":
			cfg = draw()
			must(0, k.Reconfigure(KeyedConfig[int]{Limit: of(cfg.limit, cfg.window), MaxKeys: keys}))
			for _, w := range model {
				must(0, kind.reconfigure(w, cfg))
			}
		}
		key = rapid.IntRange(0, keys-1).Draw(t, "peeked")
		same(key, k.Peek(key, 1), model[key].Peek(1))
	}
	if k.Stats().Overflowed > 0 {
		t.Fatal("a key had no place")
	}
}
