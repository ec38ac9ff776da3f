package limit

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
)

func TestReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, TokenBucketConfig{Rate: PerSecond(10), Burst: 2})
		reserve := func(n int, maxWait, delay time.Duration) Reservation {
			t.Helper()
			r, err := b.Reserve(n, maxWait)
			require.NoError(t, err)
			require.Equal(t, delay, r.Delay())
			return r
		}
		reserve(2, 0, 0)
		last := reserve(2, time.Hour, 2*d)
		_, err := b.Reserve(1, 3*d-1)
		require.ErrorIs(t, err, ErrLimited)
		require.Equal(t, 3*d, retryAfter(t, err))
		_, err = b.Reserve(3, time.Hour)
		require.ErrorIs(t, err, ErrNeverFits)
		_, err = b.Reserve(-1, time.Hour)
		require.ErrorIs(t, err, ErrInvalidCost)
		nothing, err := b.Reserve(0, 0)
		require.NoError(t, err)
		nothing.Cancel()

		time.Sleep(d)
		require.Equal(t, d, last.Delay())
		last.Cancel()
		last.Cancel()
		require.EqualValues(t, 1, b.Stats().Cancelled)
		last = reserve(2, d, d)

		// Once its turn has come, a reservation may have been used.
		time.Sleep(2 * d)
		require.Zero(t, last.Delay())
		last.Cancel()
		require.Equal(t, 1, b.Stats().Available)
	})
}

func TestTakeSaysWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, TokenBucketConfig{Name: "api", Rate: PerSecond(10), Burst: 5})
		want := Decision{OK: true, Limit: 5, Remaining: 5, Window: 5 * d, Policy: "api"}
		require.Equal(t, want, b.Peek(0))
		want.Remaining, want.ResetAfter = 2, 3*d
		require.Equal(t, want, b.Take(3))
		want.OK, want.RetryAfter = false, d
		require.Equal(t, want, b.Peek(3))
		require.Equal(t, want, b.Take(3))
		want.RetryAfter = Never
		require.Equal(t, want, b.Take(6))
		require.Equal(t, want, b.Take(-1))
		want.OK, want.RetryAfter = true, 0
		require.Equal(t, want, b.Take(0))
		require.EqualValues(t, 3, b.Stats().Refused)
		require.Nil(t, b.Refusal())
		require.True(t, b.Take(2).OK)
		r := b.Refusal()
		require.Equal(t, core.RateLimited, r.Reason)
		require.Equal(t, d, retryAfter(t, r))
		require.False(t, b.Ready())
	})
}

func TestChargeAndRefund(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, TokenBucketConfig{Rate: PerSecond(10), Burst: 5})
		require.True(t, b.AllowN(5))
		b.Charge(3)
		require.Equal(t, 4*d, b.Peek(1).RetryAfter)
		b.Charge(0)
		b.Charge(-7)
		b.Refund(0)
		b.Refund(-7)
		require.Equal(t, 4*d, b.Peek(1).RetryAfter)
		b.Refund(2)
		require.Equal(t, 2*d, b.Peek(1).RetryAfter)
		b.Refund(math.MaxInt)
		require.Equal(t, 5, b.Peek(0).Remaining, "full, and no more")
		b.Refund(1)
		require.True(t, b.AllowN(5))
		require.False(t, b.Allow())
		b.Charge(math.MaxInt)
		b.Charge(math.MaxInt)
		require.Equal(t, 156*time.Hour, b.Peek(1).RetryAfter.Truncate(time.Hour), "the debt has a bound: 2^49 ns")
	})
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hearing{}
		b := newBucket(t, TokenBucketConfig{Name: "up", Rate: PerSecond(10), Burst: 2, Observer: h})
		require.True(t, b.Allow())
		start := time.Now()
		b.Pause(start.Add(10 * time.Second))
		require.Equal(t, []core.Event{{Kind: core.KindPaused, Component: "up", Duration: 10 * time.Second}}, h.events)
		require.False(t, b.Allow())
		require.True(t, b.AllowN(0))
		require.Equal(t, Decision{
			Limit: 2, RetryAfter: 10 * time.Second, ResetAfter: 10*time.Second + d, Window: 2 * d, Policy: "up",
		}, b.Peek(1))
		require.Equal(t, 10*time.Second+d, b.Peek(2).RetryAfter)
		_, err := b.Acquire(t.Context(), core.Call{})
		require.Equal(t, 10*time.Second, retryAfter(t, err))
		require.False(t, b.Ready())
		require.Zero(t, b.Stats().Available)

		// Time stands still for the bucket.
		time.Sleep(10*time.Second - 1)
		require.False(t, b.Allow())
		time.Sleep(time.Nanosecond)
		require.True(t, b.Allow())
		require.False(t, b.Allow())
		time.Sleep(d)
		require.True(t, b.Allow())

		// A pause can be ended.
		b.Pause(time.Now().Add(time.Hour))
		time.Sleep(time.Second)
		b.Pause(time.Time{})
		require.False(t, b.Allow())
		time.Sleep(d)
		require.True(t, b.Allow())
		b.Pause(time.Unix(1<<60, 0))
		require.False(t, b.Allow())
		time.Sleep(49 * 365 * 24 * time.Hour)
		require.False(t, b.Allow())
		b.Pause(time.Now())
		time.Sleep(d)
		require.True(t, b.Allow())
	})
}

// Those who wait are given new turns by a pause and by new settings.
func TestWaitersAreRetimed(t *testing.T) {
	const n = 4
	for name, tc := range map[string]struct {
		change func(t *testing.T, b *TokenBucket)
		want   [n]time.Duration
	}{
		"paused": {
			func(t *testing.T, b *TokenBucket) { b.Pause(time.Now().Add(time.Second)) },
			[n]time.Duration{d, time.Second + 2*d, time.Second + 3*d, time.Second + 4*d},
		},
		"paused and resumed": {
			func(t *testing.T, b *TokenBucket) {
				b.Pause(time.Now().Add(time.Hour))
				time.Sleep(time.Second)
				b.Pause(time.Now())
			},
			[n]time.Duration{d, time.Second + 2*d, time.Second + 3*d, time.Second + 4*d},
		},
		"faster": {
			func(t *testing.T, b *TokenBucket) {
				require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: PerSecond(20), Burst: 1}))
			},
			[n]time.Duration{d, d + d*3/4, 2*d + d/4, 2*d + d*3/4},
		},
		"slower": {
			func(t *testing.T, b *TokenBucket) {
				require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: PerSecond(5), Burst: 1}))
			},
			[n]time.Duration{d, 2*d + d/2, 4*d + d/2, 6*d + d/2},
		},
		"a greater burst": {
			func(t *testing.T, b *TokenBucket) {
				require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: PerSecond(10), Burst: 3}))
			},
			[n]time.Duration{d, d + d/2, d + d/2, 2 * d},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBucket(t, TokenBucketConfig{Rate: PerSecond(10), Burst: 1})
				require.True(t, b.Allow())
				start := time.Now()
				var went [n]time.Duration
				var wg sync.WaitGroup
				for i := range n {
					wg.Go(func() {
						require.NoError(t, b.Wait(t.Context(), 1))
						went[i] = time.Since(start)
					})
					synctest.Wait()
				}
				time.Sleep(d + d/2)
				tc.change(t, b)
				wg.Wait()
				require.Equal(t, tc.want, went)
			})
		})
	}
}

// A wait that began before a change gives back what it took before.
func TestWaitEndsAfterAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, TokenBucketConfig{Rate: PerSecond(10), Burst: 5})
		require.True(t, b.AllowN(5))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Wait(ctx, 5) }()
		synctest.Wait()
		require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: PerSecond(100), Burst: 5}))
		require.Equal(t, 60*time.Millisecond, b.Peek(1).RetryAfter, "ten tokens of debt")
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		require.Equal(t, 10*time.Millisecond, b.Peek(1).RetryAfter, "five")
		require.EqualValues(t, 1, b.Stats().Admitted)
	})
}

func TestReconfigureKeepsDebtInTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hearing{}
		b := newBucket(t, TokenBucketConfig{Name: "api", Rate: PerSecond(10), Burst: 5, Observer: h})
		require.True(t, b.AllowN(4))
		require.NoError(t, b.Reconfigure(TokenBucketConfig{Name: "other", Rate: PerMinute(60), Burst: 10}))
		require.Equal(t, []core.Event{{Kind: core.KindReconfigured, Component: "api"}}, h.events)
		require.Equal(t, Decision{
			OK: true, Limit: 10, Remaining: 6, ResetAfter: 4 * time.Second, Window: 10 * time.Second, Policy: "api",
		}, b.Peek(0))
		require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: PerSecond(1000), Burst: 2}))
		require.Equal(t, 0, b.Peek(0).Remaining)
		require.Equal(t, 3*time.Millisecond, b.Peek(1).RetryAfter)
		require.Equal(t, core.Setting{Name: "Burst", Value: 2}, b.Inspect().Settings[1])
		before := b.Inspect()
		require.ErrorIs(t, b.Reconfigure(TokenBucketConfig{Rate: PerSecond(-1), Burst: -1}), core.ErrConfig)
		require.Equal(t, before, b.Inspect())
		_, err := b.Acquire(t.Context(), core.Call{Cost: 3})
		require.ErrorIs(t, err, ErrNeverFits)
		require.ErrorContains(t, err, "at most 2")

		// A pause outlasts new settings, and counters too.
		b.Pause(time.Now().Add(time.Second))
		require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: PerSecond(10), Burst: 5}))
		require.False(t, b.Allow())
		time.Sleep(time.Second)
		require.True(t, b.Allow())
		require.EqualValues(t, 2, b.Stats().Admitted)
	})
}

// A permit from before a change is settled by the new settings, and gives back
// no more than was left of it.
func TestPermitOutlivesAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, TokenBucketConfig{Rate: PerSecond(10), Burst: 5})
		p, err := b.Acquire(t.Context(), core.Call{Cost: 4})
		require.NoError(t, err)
		time.Sleep(d)
		require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: PerSecond(1), Burst: 5}))
		require.Equal(t, 2, b.Peek(0).Remaining)
		p.Cancel()
		require.Equal(t, 5, b.Peek(0).Remaining)

		p, err = b.Acquire(t.Context(), core.Call{Cost: 2})
		require.NoError(t, err)
		require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: PerSecond(10), Burst: 5}))
		p.Finish(t.Context(), core.Result{Cost: 7})
		require.Equal(t, 3*d, b.Peek(1).RetryAfter)
	})
}

// Whatever is changed, and when: in exact time, what is admitted is within
// r1·t1 + r2·t2 + … + max(b), but for a tick or two at each change.
func TestBoundAcrossChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		boundAcrossChanges(t)
	})
}

func boundAcrossChanges(t *rapid.T) {
	rate := func() Rate {
		return Per(rapid.IntRange(1, 1000).Draw(t, "tokens"), time.Duration(rapid.IntRange(1_000, 10_000_000).Draw(t, "per")))
	}
	burst := func() int { return rapid.IntRange(1, 50).Draw(t, "burst") }
	r, most := rate(), burst()
	b := newAt(t, r, most)
	var now int64
	var allowed, taken float64
	for range rapid.IntRange(1, 60).Draw(t, "ops") {
		step := int64(rapid.IntRange(0, 2_000_000).Draw(t, "step"))
		now += step
		allowed += float64(step) * float64(r.Tokens) / float64(r.Per)
		switch rapid.IntRange(0, 5).Draw(t, "op") {
		case 0:
			r = rate()
			b = b.changeAt(now, r, burst(), b.paused)
			most = max(most, b.burst)
			allowed++ // rounding
		case 1:
			b = b.changeAt(now, r, b.burst, now+int64(rapid.IntRange(-1000, 3_000_000).Draw(t, "pause")))
			allowed++
		default:
			n := rapid.IntRange(1, b.burst).Draw(t, "n")
			for b.allow(time.Duration(now), n) {
				if now < b.paused {
					t.Fatal("admitted in a pause")
				}
				taken += float64(n)
			}
		}
		if taken > allowed+float64(most) {
			t.Fatalf("%v taken, %v allowed", taken, allowed+float64(most))
		}
	}
}

// changeAt is change at a clock reading that the test makes up.
func (b at) changeAt(now int64, r Rate, burst int, paused int64) at {
	of := b.of
	next := of.regime(TokenBucketConfig{Rate: r, Burst: burst}, paused)
	b.word.Or(moved)
	b.regime.at, b.next = now, next
	next.word.Store(b.moveTo(b.word.Load() &^ low))
	of.in.Store(next)
	close(b.changed)
	return at{next}
}

// Rate and state swap together: callers that race with changes stay within the
// sum of what each setting allows.
func TestReconfigureUnderLoad(t *testing.T) {
	start := time.Now() // real time: contention needs it; the bound is exact all the same
	const slow, fast, small, big = 1_000, 1_000_000, 10, 1_000
	b := newBucket(t, TokenBucketConfig{Rate: PerSecond(slow), Burst: small})
	stop := make(chan struct{})
	var taken, admittedBig, waited atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if b.Allow() {
					taken.Add(1)
				}
			}
		})
	}
	wg.Go(func() { // a cost that fits at times, and must be answered all the same
		for {
			select {
			case <-stop:
				return
			default:
			}
			if b.AllowN(big) {
				taken.Add(big)
				admittedBig.Add(1)
			}
			_ = b.Wait(context.Background(), small)
			taken.Add(small)
			waited.Add(1)
		}
	})
	var fastFor time.Duration
	changes := 0
	for time.Since(start) < 300*time.Millisecond {
		began := time.Now()
		require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: PerSecond(fast), Burst: big}))
		time.Sleep(50 * time.Microsecond) // real time
		require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: PerSecond(slow), Burst: small}))
		fastFor += time.Since(began)
		time.Sleep(200 * time.Microsecond) // real time
		changes += 2
	}
	close(stop)
	wg.Wait()
	all := time.Since(start)
	bound := fastFor.Seconds()*fast + (all-fastFor).Seconds()*slow + big + float64(changes)
	require.LessOrEqual(t, float64(taken.Load()), bound, fmt.Sprint(changes, " changes"))
	require.Greater(t, taken.Load(), int64(fastFor.Seconds()*fast/10))
	s := b.Stats()
	require.EqualValues(t, taken.Load()-(big-1)*admittedBig.Load()-(small-1)*waited.Load(), s.Admitted)
}

// A pause, or slower settings, can put off a turn beyond what a call would wait
// for: then it fails at once.
func TestWaitersFailWhenTheirTurnIsPutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, change := range map[string]func(b *TokenBucket){
			"paused": func(b *TokenBucket) { b.Pause(time.Now().Add(10 * time.Second)) },
			"slower": func(b *TokenBucket) { _ = b.Reconfigure(TokenBucketConfig{Rate: Per(1, 10*time.Second), Burst: 1}) },
		} {
			b := newBucket(t, TokenBucketConfig{Rate: PerSecond(1), Burst: 1, MaxWait: 2 * time.Second})
			require.True(t, b.Allow())
			start := time.Now()
			failed := make(chan error, 2)
			go func() {
				_, err := b.Acquire(t.Context(), core.Call{})
				failed <- err
			}()
			synctest.Wait()
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				failed <- b.Wait(ctx, 1)
			}()
			synctest.Wait()
			change(b)
			for range 2 {
				err := <-failed
				require.ErrorIs(t, err, ErrLimited, name)
				require.NotErrorIs(t, err, context.DeadlineExceeded)
				require.GreaterOrEqual(t, retryAfter(t, err), 10*time.Second, name)
			}
			require.Equal(t, start, time.Now(), "at once")
			require.EqualValues(t, 1, b.Stats().Admitted)
		}
	})
}

// Who still waits is not admitted yet, and no report takes back what another
// has shown.
func TestAdmittedNeverFalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, TokenBucketConfig{Rate: PerSecond(10), Burst: 1})
		for range 300 {
			require.NoError(t, b.Wait(t.Context(), 1))
		}
		ctx, cancel := context.WithCancel(t.Context())
		for range 5 {
			go func() { _ = b.Wait(ctx, 1) }()
		}
		synctest.Wait()
		require.EqualValues(t, 300, b.Stats().Admitted)
		time.Sleep(2 * d)
		synctest.Wait()
		require.EqualValues(t, 302, b.Stats().Admitted)
		cancel()
		synctest.Wait()
		require.EqualValues(t, 302, b.Stats().Admitted)
	})
}

// A refusal is one, though a token may have come since.
func TestTakeThatIsRefusedSaysNo(t *testing.T) {
	h := &hearing{}
	synctest.Test(t, func(t *testing.T) {
		for _, take := range []func(int) Decision{
			newBucket(t, TokenBucketConfig{Rate: PerSecond(10), Burst: 1, Observer: h}).Take,
			newLeaky(t, LeakyBucketConfig{Rate: PerSecond(10), Capacity: 1, Observer: h}).Take,
		} {
			h.then = nil
			require.True(t, take(1).OK)
			h.then = func() { time.Sleep(d) } // a token comes
			got := take(1)
			require.False(t, got.OK)
			require.Positive(t, got.RetryAfter)
			require.Zero(t, got.Remaining)
			require.True(t, take(1).OK)
		}
	})
}

// A long wait is as long as it says.
func TestPatienceIsNotCutShort(t *testing.T) {
	b := newBucket(t, TokenBucketConfig{Rate: PerSecond(1), Burst: 1, MaxWait: 2 * time.Hour})
	b.Charge(60)
	for _, most := range []time.Duration{59 * time.Minute, time.Hour, 2 * time.Hour, 150 * time.Hour, forever} {
		r, err := b.Reserve(1, most)
		require.NoError(t, err, most)
		r.Cancel()
	}
	rapid.Check(t, func(t *rapid.T) {
		g := newGCRA(anyRate(t), rapid.IntRange(1, 1000).Draw(t, "burst"))
		short := time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "short"))
		long := time.Duration(rapid.Int64Range(int64(short), math.MaxInt64).Draw(t, "long"))
		if g.patience(short) > g.patience(long) {
			t.Fatalf("%v is %d, %v is %d", short, g.patience(short), long, g.patience(long))
		}
	})
}

// New settings can be much slower: who waits is not let through together, and who
// took much at the old rate has not paid for it when it comes back.
func TestMuchSlowerSettingsForgetNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, TokenBucketConfig{Rate: PerSecond(1), Burst: 1})
		const waiters = 3000
		var due []time.Duration
		start := time.Now()
		var rs []Reservation
		for range waiters {
			r, err := b.Reserve(1, forever)
			require.NoError(t, err)
			rs = append(rs, r)
		}
		require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: Per(1, 10*time.Second), Burst: 1}))
		for i := range rs {
			due = append(due, rs[i].Delay())
			require.Equal(t, time.Duration(i)*10*time.Second, due[i])
		}
		require.Equal(t, start, time.Now())

		b = newBucket(t, TokenBucketConfig{Rate: PerSecond(1000), Burst: 100_000})
		require.True(t, b.AllowN(100_000))
		require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: PerSecond(1), Burst: 10}))
		require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: PerSecond(1000), Burst: 100_000}))
		require.False(t, b.Allow())

		// The same rate, and less patience.
		b = newBucket(t, TokenBucketConfig{Rate: PerSecond(1), Burst: 1, MaxWait: 150 * time.Hour})
		b.Charge(55 * 3600)
		require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: PerSecond(1), Burst: 1}))
		require.Equal(t, 55*time.Hour, b.Peek(1).RetryAfter)

		// Beyond what can be owed, a turn never comes, and the wait is over.
		b = newBucket(t, TokenBucketConfig{Rate: PerSecond(1), Burst: 1})
		b.Charge(100_000)
		failed := make(chan error)
		go func() { failed <- b.Wait(t.Context(), 1) }()
		synctest.Wait()
		require.NoError(t, b.Reconfigure(TokenBucketConfig{Rate: Per(1, 30*day), Burst: 1}))
		require.ErrorIs(t, <-failed, ErrLimited)
	})
}

// However much is refunded, a permit from before gives back nothing more.
func TestGreatRefundVoidsPermits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, n := range []int{10, math.MaxInt32, math.MaxInt} {
			b := newBucket(t, TokenBucketConfig{Rate: PerSecond(1), Burst: 10})
			p, err := b.Acquire(t.Context(), core.Call{Cost: 10})
			require.NoError(t, err)
			b.Refund(n)
			require.True(t, b.AllowN(10))
			p.Cancel()
			require.False(t, b.Allow(), n)
		}
	})
}

// A pause for ever, and its end, forget nothing.
func TestPauseForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		window, err := NewSlidingWindow(SlidingWindowConfig{Limit: 5, Window: time.Hour})
		require.NoError(t, err)
		log, err := NewSlidingLog(SlidingLogConfig{Limit: 5, Window: time.Hour})
		require.NoError(t, err)
		for _, l := range []interface {
			AllowN(n int) bool
			Pause(until time.Time)
		}{
			newBucket(t, TokenBucketConfig{Rate: PerHour(5), Burst: 5}),
			newLeaky(t, LeakyBucketConfig{Rate: PerHour(5), Capacity: 5}),
			window, log,
		} {
			require.True(t, l.AllowN(5))
			l.Pause(time.Now().Add(forever))
			require.False(t, l.AllowN(1))
			l.Pause(time.Time{})
			require.False(t, l.AllowN(1))
		}
		k := newKeyed(t, KeyedConfig[string]{Limit: SlidingLogConfig{Limit: 5, Window: time.Hour}})
		require.True(t, k.AllowN("a", 5))
		k.Pause("a", time.Now().Add(forever))
		k.Pause("a", time.Time{})
		require.False(t, k.Allow("a"))
	})
}

// A refund of any size ends soon, also of what was charged before a change.
func TestGreatRefundAfterAChangeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := NewSlidingLog(SlidingLogConfig{Limit: 1, Window: time.Millisecond})
		require.NoError(t, err)
		l.Charge(math.MaxInt)
		require.NoError(t, l.Reconfigure(SlidingLogConfig{Limit: 2, Window: time.Millisecond}))
		l.Refund(math.MaxInt) // the test's own time limit is what would tell
		require.LessOrEqual(t, l.Peek(0).Remaining, 2)
	})
}

func TestWindowTakeThatIsRefusedSaysNo(t *testing.T) {
	h := &hearing{}
	synctest.Test(t, func(t *testing.T) {
		w, err := NewSlidingWindow(SlidingWindowConfig{Limit: 1, Window: time.Second, Observer: h})
		require.NoError(t, err)
		require.True(t, w.Take(1).OK)
		h.then = func() { time.Sleep(time.Minute) }
		got := w.Take(1)
		require.False(t, got.OK)
		require.Positive(t, got.RetryAfter)
	})
}
