package limit

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What was taken under a great limit is still owed when the limit was small for a
// moment.
func TestSlidingWindowForgetsNothingWhileItIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, limit := range []int{7, 5000, 1 << 14, 300_000, maxWindowLimit} {
			fast := SlidingWindowConfig{Limit: limit, Window: time.Minute}
			for _, slow := range []SlidingWindowConfig{
				{Limit: 1, Window: time.Minute}, {Limit: 1, Window: time.Hour}, {Limit: 3, Window: time.Second}, {Limit: limit, Window: time.Hour},
			} {
				w := must(NewSlidingWindow(fast))
				k := newKeyed(t, KeyedConfig[string]{Limit: fast})
				require.True(t, w.AllowN(limit))
				require.True(t, k.AllowN("a", limit))
				for range 3 {
					for _, cfg := range []SlidingWindowConfig{slow, fast} {
						require.NoError(t, w.Reconfigure(cfg))
						require.NoError(t, k.Reconfigure(KeyedConfig[string]{Limit: cfg}))
						require.Zero(t, w.Peek(0).Remaining, "%+v %+v", fast, slow)
						require.Zero(t, k.Peek("a", 0).Remaining, "%+v %+v", fast, slow)
						require.False(t, w.Allow())
						require.False(t, k.Allow("a"))
					}
				}
			}
		}
	})
}

// The same where a key's plan changes and changes back.
func TestKeyedWindowPlansForgetNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plan := "fast"
		k := newKeyed(t, KeyedConfig[string]{
			Limit: SlidingWindowConfig{Limit: 1, Window: time.Minute},
			Plans: map[string]Algorithm{"fast": SlidingWindowConfig{Limit: maxWindowLimit, Window: time.Minute}},
			Plan:  func(string) string { return plan },
		})
		require.True(t, k.AllowN("a", maxWindowLimit))
		for range 3 {
			plan = ""
			require.False(t, k.Allow("a"))
			plan = "fast"
			require.False(t, k.Allow("a"))
		}
	})
}

// Turns that are put off farther than can be owed never come, so nobody new is
// given them too: at any time what was let in keeps to the new limit.
func TestSlidingWindowTurnsBeyondReachNeverCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, part = 1 << 14, 1 << 8
		w := must(NewSlidingWindow(SlidingWindowConfig{Limit: limit, Window: time.Second}))
		var waiting []Reservation
		reserve := func() bool {
			r, err := w.Reserve(part, forever)
			if err == nil {
				waiting = append(waiting, r)
			}
			return err == nil
		}
		for reserve() {
		}
		require.Greater(t, len(waiting)*part, 4_000_000)
		start := time.Now()
		slow := SlidingWindowConfig{Limit: limit / 2, Window: time.Minute}
		require.NoError(t, w.Reconfigure(slow))
		require.False(t, reserve(), "as many wait as can")
		turns, never := 0, 0
		for i := range waiting {
			switch at := waiting[i].Delay(); {
			case at > 100_000*time.Hour:
				never++
			default:
				turns++
				require.LessOrEqual(t, float64(turns*part), float64(limit/2)*at.Minutes()+limit)
			}
		}
		require.Positive(t, never)
		require.Equal(t, len(waiting), turns+never)

		// Whoever comes now is after all that have a turn.
		last := waiting[turns-1].Delay()
		for !reserve() {
			time.Sleep(time.Minute)
		}
		at := time.Since(start) + waiting[len(waiting)-1].Delay()
		require.Greater(t, at, last)

		// What was never to come does not come when the limit is as before.
		require.NoError(t, w.Reconfigure(SlidingWindowConfig{Limit: limit, Window: time.Second}))
		require.Greater(t, waiting[turns].Delay(), 100_000*time.Hour)
	})
}

// Short windows: a key that owes is not forgotten, however many windows are in
// the time that idle keys are kept for.
func TestKeyedShortWindowsAreNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, cfg := range []SlidingWindowConfig{
			{Limit: 10, Window: 50 * time.Microsecond}, {Limit: 5000, Window: 3 * time.Millisecond}, {Limit: 600_000, Window: 10 * time.Millisecond},
		} {
			k := newKeyed(t, KeyedConfig[int]{MaxKeys: 10_000, Limit: cfg})
			time.Sleep(time.Hour)
			k.Charge(-1, 4*cfg.Limit)
			for i := range 50_000 {
				k.AllowN(i%100, cfg.Limit)
			}
			require.False(t, k.Allow(-1), fmt.Sprint(cfg))
		}
	})
}

// A clock reading that is many short windows older than the word does not make the
// word look past.
func TestSlidingWindowStaleClockOfShortWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := must(NewSlidingWindow(SlidingWindowConfig{Limit: 10, Window: time.Microsecond}))
		time.Sleep(time.Second)
		e := w.in.Load()
		require.True(t, w.AllowN(10))
		now, word := e.tight()
		require.EqualValues(t, time.Second, now)
		stale := now - int64(500*time.Millisecond)
		_, ok, _ := e.takeAt(word, e.notStale(stale, word), 1, 0)
		require.False(t, ok)
		require.Equal(t, now-1, e.notStale(now-1, word), "the state is ahead of it")
		require.False(t, w.Allow())
	})
}
