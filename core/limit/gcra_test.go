package limit

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
)

// at is a bucket driven by clock readings that the test makes up.
type at struct{ *regime }

func newAt(t require.TestingT, r Rate, burst int) at {
	b, err := NewTokenBucket(TokenBucketConfig{Rate: r, Burst: burst})
	require.NoError(t, err)
	return at{b.bucket.in.Load()}
}

// tat is the theoretical arrival time.
func (b at) tat() uint64 { return b.word.Load() &^ low }

// allow is AllowN(n) at now.
func (b at) allow(now time.Duration, n int) bool {
	_, ok, _ := b.takeAt(b.word.Load(), int64(now), n, 0)
	return ok
}

// reserve takes n tokens at now if their turn comes within most. It returns the
// turn, or a negative duration.
func (b at) reserve(now time.Duration, n int, most time.Duration) (turn time.Duration, t core.Token) {
	c, ok, _ := b.takeAt(b.word.Load(), int64(now), n, most)
	if !ok {
		return -1, t
	}
	return time.Duration(c.turn), c.token
}

// giveBack gives back n of the tokens of t at now.
func (b at) giveBack(now time.Duration, t core.Token, n int) bool {
	return b.giveBackAt(b.word.Load(), int64(now), t, n)
}

const d = 100 * time.Millisecond // what 10 a second bring one token in

// The sequences of golang.org/x/time/rate's TestLimiterBurst1 and Burst3, less
// those where its clock runs backwards and its limit is exceeded.
func TestAllowPublished(t *testing.T) {
	type step struct {
		at   time.Duration
		n    int
		want bool
	}
	for _, tc := range []struct {
		name  string
		rate  Rate
		burst int
		steps []step
	}{
		{"burst 1", PerSecond(10), 1, []step{
			{0, 1, true},
			{0, 1, false},
			{0, 1, false},
			{d, 1, true},
			{d, 1, false},
			{d, 1, false},
			{2 * d, 2, false},
			{2 * d, 1, true},
			{2 * d, 1, false},
		}},
		{"burst 3", PerSecond(10), 3, []step{
			{0, 2, true},
			{0, 2, false},
			{0, 1, true},
			{0, 1, false},
			{d, 4, false},
			{2 * d, 1, true},
			{3 * d, 1, true},
			{4 * d, 1, true},
			{4 * d, 1, true},
			{4 * d, 1, false},
			{4 * d, 1, false},
			{9 * d, 3, true},
			{9 * d, 0, true},
		}},
		{"an odd rate", Per(10, 13*time.Second), 1, []step{{0, 1, true}}},
		{"hardly any rate", Per(1, forever), 1, []step{{0, 1, true}, {0, 1, false}, {time.Hour, 1, false}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newAt(t, tc.rate, tc.burst)
			for i, s := range tc.steps {
				require.Equal(t, s.want, b.allow(s.at, s.n), "step %d: %+v", i, s)
			}
		})
	}
}

// The sequences of its TestReserve, Cancel0, Cancel1, CancelLast, CancelMulti
// and MaxWait; 10 a second. ReserveJumpBackCancel exceeds its limit.
func TestReservePublished(t *testing.T) {
	type step struct {
		at   time.Duration
		n    int
		turn time.Duration // -1: refused
		most time.Duration
		undo int // instead of taking: the step whose tokens are given back
	}
	const ok = time.Hour
	take := func(at time.Duration, n int, turn time.Duration) step { return step{at * d, n, turn * d, ok, -1} }
	undo := func(at time.Duration, i int) step { return step{at * d, 0, 0, 0, i} }
	for _, tc := range []struct {
		name  string
		burst int
		steps []step
	}{
		{"reserve", 2, []step{take(0, 2, 0), take(0, 2, 2), take(3, 2, 4)}},
		{"too many", 2, []step{take(0, 2, 0), {0, 3, -1, ok, -1}, take(0, 2, 2)}},
		{"cancel the last", 2, []step{take(0, 2, 0), take(0, 2, 2), undo(1, 1), take(1, 2, 2)}},
		{"cancel at once", 2, []step{take(0, 2, 0), take(0, 1, 1), take(0, 1, 2), undo(0, 1), take(0, 1, 3)}},
		{"cancel one", 2, []step{take(0, 2, 0), take(0, 2, 2), take(0, 1, 3), undo(0, 1), take(0, 2, 4)}},
		{"cancel several", 4, []step{
			take(0, 4, 0), take(0, 3, 3), take(0, 1, 4), take(0, 1, 5), undo(1, 3), undo(1, 1), take(1, 3, 5),
		}},
		// Here x/time/rate gives nothing back, since its reservation may have been
		// used. A permit says that it was not.
		{"cancel when it was due", 2, []step{take(0, 2, 0), take(0, 2, 2), undo(3, 1), take(3, 2, 3)}},
		{"cancel when it has drained", 2, []step{take(0, 2, 0), take(0, 2, 2), undo(4, 1), take(4, 2, 4), take(4, 1, 5)}},
		{"longest wait", 2, []step{take(0, 2, 0), {0, 1, d, d, -1}, {0, 1, -1, d, -1}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newAt(t, PerSecond(10), tc.burst)
			tokens := make([]core.Token, len(tc.steps))
			for i, s := range tc.steps {
				if s.undo >= 0 {
					require.True(t, b.giveBack(s.at, tokens[s.undo], tokensOf(tokens[s.undo])))
					continue
				}
				var turn time.Duration
				turn, tokens[i] = b.reserve(s.at, s.n, s.most)
				require.Equal(t, s.turn, turn, "step %d: %+v", i, s)
			}
		})
	}
}

// Its TestLongRunningQPS, in exact time.
func TestLongRun(t *testing.T) {
	b := newAt(t, PerSecond(100), 100)
	admitted := 0
	for now := time.Duration(0); now < 5*time.Second; now += 2 * time.Millisecond {
		if b.allow(now, 1) {
			admitted++
		}
	}
	require.Equal(t, 100+499, admitted) // the burst, and a token each 10 ms up to 4.99 s
}

// golang/go#65508 and #71360: with clock readings a little stale, as contention
// makes them, x/time/rate admits all of these.
func TestStaleReadingsMintNothing(t *testing.T) {
	for _, tc := range []struct {
		rate, burst int
		stale       time.Duration
	}{
		{1_000, 100, 10 * time.Millisecond},
		{10_000, 1_000, time.Millisecond},
	} {
		b := newAt(t, PerSecond(tc.rate), tc.burst)
		r := rand.New(rand.NewPCG(1, 2))
		const calls = 200_000
		admitted := 0
		for i := range calls {
			now := time.Second * time.Duration(i) / calls
			if b.allow(max(0, now-time.Duration(r.Int64N(int64(tc.stale)+1))), 1) {
				admitted++
			}
		}
		require.LessOrEqual(t, admitted, tc.rate+tc.burst)
		require.GreaterOrEqual(t, admitted, (tc.rate+tc.burst)*99/100)
	}
}

// A refusal by a clock that is older than another's admission is not final: x/time/rate
// under-admits there.
func TestRefusalByStaleReadingIsNotFinal(t *testing.T) {
	b := newAt(t, PerSecond(10), 1)
	before := b.word.Load()
	require.True(t, b.allow(d, 1))
	_, ok, again := b.takeAt(before, int64(d/2), 1, 0) // saw the TAT before that
	require.False(t, ok)
	require.True(t, again)
	_, ok, again = b.takeAt(b.word.Load(), int64(d/2), 1, 0)
	require.False(t, ok)
	require.False(t, again)
}

// within reports whether n tokens are at most what r and burst allow in span.
func within(n int64, r Rate, burst int, span time.Duration) bool {
	left := new(big.Int).Mul(big.NewInt(n-int64(burst)), big.NewInt(int64(r.Per)))
	right := new(big.Int).Mul(big.NewInt(int64(r.Tokens)), big.NewInt(int64(span)))
	return left.Cmp(right) <= 0
}

func anyRate(t *rapid.T) Rate {
	r := Rate{
		rapid.IntRange(1, 1_000_000_000).Draw(t, "tokens"),
		time.Duration(rapid.Int64Range(1, int64(48*time.Hour)).Draw(t, "per")),
	}
	if r.problem() != "" {
		t.Skip()
	}
	return r
}

// Whatever the clock does, forwards or up to 12 hours backwards, the tokens taken are within
// the limit for the time between the first reading and the latest, to the 512
// units that rounding a burst up may add to it.
func TestBoundUnderAnyClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := anyRate(t)
		burst := rapid.IntRange(1, 1_000_000).Draw(t, "burst")
		b := newAt(t, rate, burst)
		var now, latest time.Duration
		var taken int64
		for range rapid.IntRange(1, 200).Draw(t, "calls") {
			reach := int64(rapid.SampledFrom([]time.Duration{10, time.Microsecond, time.Second, time.Hour}).Draw(t, "reach"))
			now = max(0, latest-12*time.Hour, now+time.Duration(rapid.Int64Range(-reach, reach).Draw(t, "step")))
			latest = max(latest, now)
			n := rapid.IntRange(1, burst).Draw(t, "n")
			if b.allow(now, n) {
				taken += int64(n)
			}
			if !within(taken, rate, burst, latest+time.Duration(2*tick<<b.down>>b.up+1)) {
				t.Fatalf("%d tokens in %v", taken, latest)
			}
		}
	})
}

// In every window of time, what acts in it is within the limit, also when calls
// wait, and when calls that never started, or cost less than they took, give
// tokens back.
func TestBoundInEveryWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const tick = time.Millisecond
		rate := Per(1, tick*time.Duration(rapid.IntRange(1, 5).Draw(t, "interval")))
		burst := rapid.IntRange(1, 6).Draw(t, "burst")
		b := newAt(t, rate, burst)
		type act struct {
			turn  time.Duration
			n     int
			token core.Token
			gone  bool
		}
		var acts []act
		var now time.Duration
		for range rapid.IntRange(1, 40).Draw(t, "ops") {
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0:
				now += tick * time.Duration(rapid.IntRange(0, 8).Draw(t, "sleep"))
			case 1, 2:
				n := rapid.IntRange(1, burst).Draw(t, "n")
				most := tick * time.Duration(rapid.SampledFrom([]int{0, 0, 20}).Draw(t, "most"))
				if turn, token := b.reserve(now, n, most); turn >= 0 {
					acts = append(acts, act{turn, n, token, false})
				}
			case 3:
				if len(acts) == 0 {
					continue
				}
				i := rapid.IntRange(0, len(acts)-1).Draw(t, "which")
				if a := &acts[i]; !a.gone {
					// A call that waits gives back all of it; later it may turn out
					// to have cost less.
					n := a.n
					if a.turn <= now {
						n = rapid.IntRange(1, a.n).Draw(t, "back")
					}
					b.giveBack(now, a.token, n)
					a.n, a.gone = a.n-n, true
				}
			}
		}
		for _, first := range acts {
			for _, last := range acts {
				var n int64
				for _, a := range acts {
					if a.turn >= first.turn && a.turn <= last.turn {
						n += int64(a.n)
					}
				}
				if last.turn >= first.turn && !within(n, rate, burst, last.turn-first.turn) {
					t.Fatalf("%d tokens from %v to %v", n, first.turn, last.turn)
				}
			}
		}
	})
}

// At fast rates a token is few ticks, and what rounding gives away with each
// refund would add up: 3 % here.
func TestRefundsAreRoundedForTheLimit(t *testing.T) {
	rate := PerSecond(970_000_000)
	for name, each := range map[string]struct{ taken, back int }{"one of two": {2, 1}, "three of four": {4, 1}} {
		t.Run(name, func(t *testing.T) {
			b := newAt(t, rate, 5)
			var used int64
			now := time.Duration(0)
			for ; now < 100_000; now++ {
				for {
					turn, token := b.reserve(now, each.taken, 0)
					if turn < 0 {
						break
					}
					b.giveBack(now, token, each.back)
					used += int64(each.taken - each.back)
				}
			}
			require.True(t, within(used, rate, 5, now), "%d in %v", used, now)
		})
	}
}

// A charge behind many that are given back drains as much earlier as they cost,
// each rounded up; less would fill the bucket beyond its burst.
func TestManyRefundsAreRoundedForTheLimit(t *testing.T) {
	const others, last = 1000, 500
	b := newAt(t, PerSecond(970_000_000), 2*others)
	var tokens [others]core.Token
	for i := range tokens {
		_, tokens[i] = b.reserve(0, 1, 0)
	}
	turn, token := b.reserve(0, last, 0)
	require.Zero(t, turn)
	for _, other := range tokens {
		require.True(t, b.giveBack(0, other, 1))
	}
	const now = 300 * time.Nanosecond // more than half of the last charge has drained
	require.Positive(t, b.debt(b.tat(), b.units(int64(now))))
	require.True(t, b.giveBack(now, token, last))
	require.Equal(t, b.units(int64(now)), b.tat(), "full at this moment, and not since before")
}

// A rate is kept within 0.1 %, from below, by calls of one token each.
func TestPrecision(t *testing.T) {
	for _, rate := range []Rate{
		PerDay(1), PerDay(7), PerHour(11), PerHour(1_000_003), Per(10, 13*time.Second),
		PerSecond(3), PerSecond(999_983), PerSecond(1_000_000), PerSecond(9_999_991), PerSecond(10_000_000),
	} {
		t.Run(rate.String(), func(t *testing.T) {
			const calls = 10_000
			b := newAt(t, rate, 1)
			n := min(calls, int(forever/64/(rate.Per/time.Duration(rate.Tokens))))
			var turn time.Duration
			b.reserve(0, 1, 0)
			for range n {
				turn, _ = b.reserve(turn, 1, forever)
			}
			exact := float64(rate.Per) / float64(rate.Tokens) * float64(n)
			require.GreaterOrEqual(t, float64(turn), exact)
			require.LessOrEqual(t, float64(turn), exact*1.001)
		})
	}
}

func TestSlowRateWithBigBurst(t *testing.T) {
	for _, tc := range []struct {
		rate  Rate
		burst int
	}{
		{PerDay(1), 1_000_000}, {PerDay(100), 1_000_000}, {Per(1, forever), maxBurst}, {PerDay(1), 1},
	} {
		b := newAt(t, tc.rate, tc.burst)
		require.True(t, b.allow(0, tc.burst))
		require.False(t, b.allow(0, 1))
		interval := tc.rate.Per / time.Duration(tc.rate.Tokens)
		require.False(t, b.allow(interval-time.Minute, 1))
		if interval < forever {
			require.True(t, b.allow(interval+time.Minute, 1))
			require.False(t, b.allow(interval+time.Minute, 1))
		}
	}
}

// At the fastest rates the clock, in units, passes the end of 64 bits after 52
// days.
func TestUnitsWrap(t *testing.T) {
	const d = 100 * time.Nanosecond
	b := newAt(t, PerSecond(10_000_000), 2)
	require.EqualValues(t, finest, b.up)
	const wrap = time.Duration(1 << (64 - finest))
	for _, now := range []time.Duration{wrap / 3, wrap / 3 * 2, wrap - d/2} { // used every 17 days
		require.True(t, b.allow(now, 2))
		require.False(t, b.allow(now, 1))
	}
	require.False(t, b.allow(wrap, 1))
	require.True(t, b.allow(wrap+d/2, 1))
	require.False(t, b.allow(wrap+d/2, 1))
	require.True(t, b.allow(wrap+3*d, 2))
	require.True(t, b.allow(wrap/10*17, 2), "idle for 36 days, more than half")
}

func TestAvailable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newAt(t, anyRate(t), rapid.IntRange(1, 1_000_000).Draw(t, "burst"))
		b.allow(0, rapid.IntRange(0, b.burst).Draw(t, "first"))
		now := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "now"))
		n := b.available(b.tat(), b.units(int64(now)))
		if n < b.burst && b.allow(now, n+1) {
			t.Fatalf("%d available, %d taken", n, n+1)
		}
		if n > 0 && !b.allow(now, n) {
			t.Fatalf("%d available, not taken", n)
		}
	})
}

func TestDebtSaturates(t *testing.T) {
	b := newBucket(t, TokenBucketConfig{Rate: PerDay(1), Burst: 5})
	for range 3 {
		b.Charge(int(^uint(0) >> 1))
	}
	require.False(t, b.Allow())
	require.Zero(t, b.Stats().Available)
	r := b.bucket.limited(b.bucket.in.Load().instant(b.bucket.clock.Now(), most))
	wait, ok := r.RetryAfter()
	require.True(t, ok)
	require.Greater(t, wait, 200*365*day)
}

func TestRateString(t *testing.T) {
	require.Equal(t, "100 per 1s", fmt.Sprint(PerSecond(100)))
	for _, r := range []Rate{PerMinute(60), PerHour(3600), PerDay(86400)} {
		require.Equal(t, PerSecond(1).inOneSecond(), r.inOneSecond())
	}
}
