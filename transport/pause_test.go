package transport_test

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
	"github.com/surgewall/surgewall/transport"
)

func TestPauseRefusesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, asking := range []answer{
			{429, []string{"Retry-After", "2"}},
			{503, []string{"Retry-After", "a date"}},
			{200, []string{"RateLimit", `"default";r=0;t=2`}},
		} {
			start := time.Now()
			if asking.status == 503 {
				asking.fields[1] = start.Add(2 * time.Second).UTC().Format(http.TimeFormat)
			}
			base := &answers{list: []answer{{status: 200}, asking}}
			rt := newRateLimit(t, newBucket(t, limit.TokenBucketConfig{}), transport.RateLimitConfig{Base: base})
			require.NoError(t, get(t, rt, "http://a"))
			require.NoError(t, get(t, rt, "http://a"))
			body := text("x")
			_, err := rt.RoundTrip(request(t, "POST", "http://a", body)) //nolint:bodyclose // refused
			require.ErrorIs(t, err, limit.ErrLimited, "%v", asking)
			require.Equal(t, start.Add(2*time.Second), retryAt(t, err))
			require.Equal(t, 1, body.closed)
			require.Len(t, base.sent, 2)
			time.Sleep(2*time.Second - 1)
			require.Error(t, get(t, rt, "http://a"))
			time.Sleep(time.Nanosecond)
			require.NoError(t, get(t, rt, "http://a"))
			require.Len(t, base.sent, 3)
		}
	})
}

func TestPauseIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := &answers{list: []answer{{429, []string{"Retry-After", "2"}}}}
		bucket := newBucket(t, limit.TokenBucketConfig{Rate: limit.PerSecond(10), Burst: 1, MaxWait: time.Minute})
		client := &http.Client{Transport: newRateLimit(t, bucket, transport.RateLimitConfig{Base: base})}
		start := time.Now()
		for range 3 {
			resp, err := client.Get("http://a")
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
		}
		require.Equal(t, []time.Time{start, start.Add(2100 * time.Millisecond), start.Add(2200 * time.Millisecond)}, base.sent)

		// A wait that the deadline does not allow is not begun.
		base.list = append(base.list, answer{}, answer{}, answer{429, []string{"Retry-After", "20"}})
		base.list[1], base.list[2] = answer{status: 200}, answer{status: 200}
		resp, err := client.Get("http://a")
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		began := time.Now()
		client.Timeout = 19 * time.Second
		_, err = client.Get("http://a") //nolint:bodyclose // refused
		require.ErrorIs(t, err, limit.ErrLimited)
		require.Zero(t, time.Since(began))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = client.Transport.RoundTrip(request(t, "GET", "http://a", nil).WithContext(ctx)) //nolint:bodyclose // refused
		require.ErrorIs(t, err, limit.ErrLimited)
		require.Zero(t, time.Since(began))

		// A wait that its caller gives up sends nothing.
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(3*time.Second, cancel)
		body := text("x")
		_, err = client.Transport.RoundTrip(request(t, "POST", "http://a", body).WithContext(ctx)) //nolint:bodyclose // gave up
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, 3*time.Second, time.Since(began))
		require.Equal(t, 1, body.closed)
		require.Len(t, base.sent, 4)
	})
}

// Requests that were sent before a pause are answered in any order.
func TestPauseOnlyGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &pausing{}
		var next answer
		base := stub(func(req *http.Request) (*http.Response, error) {
			return (&answers{list: []answer{next}}).RoundTrip(req)
		})
		rt := newRateLimit(t, l, transport.RateLimitConfig{Base: base, MaxPause: time.Minute})
		send := func(status int, fields ...string) {
			next = answer{status, fields}
			require.NoError(t, get(t, rt, "http://a"))
		}
		start := time.Now()
		in := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
		send(429, "Retry-After", "10")
		require.Equal(t, []time.Time{in(10)}, l.until)
		send(429, "Retry-After", "10") // no longer than it is
		send(429, "Retry-After", "3")
		send(200, "RateLimit", `"a";r=0;t=9`)
		send(200, "RateLimit", `"a";r=50;t=9`)
		send(200)
		send(503, "Retry-After", "0")
		send(429, "Retry-After", "soon")
		send(200, "RateLimit", `a;r=0;t=20`)
		time.Sleep(5 * time.Second)
		send(429, "Retry-After", "5")
		require.Equal(t, []time.Time{in(10)}, l.until)
		send(429, "Retry-After", "6")
		require.Equal(t, []time.Time{in(10), in(11)}, l.until)
		send(503, "Retry-After", "86400")
		require.Equal(t, []time.Time{in(10), in(11), in(65)}, l.until, "MaxPause")
		send(503, "Retry-After", "99999999999999999999")
		require.Len(t, l.until, 3)
		time.Sleep(100 * time.Second)
		send(429, "Retry-After", "1")
		require.Equal(t, in(106), l.until[3], "a pause that is over counts no more")
	})
}

// pausing is a limiter that books its pauses and admits all.
type pausing struct {
	mu    sync.Mutex
	until []time.Time
}

func (l *pausing) Acquire(context.Context, core.Call) (core.Permit, error) { return core.Permit{}, nil }

func (l *pausing) Pause(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = append(l.until, until)
}

func TestMaxPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			most, asked, want time.Duration
		}{
			{0, time.Hour, 5 * time.Minute},
			{0, 5 * time.Minute, 5 * time.Minute},
			{0, math.MaxInt64, 5 * time.Minute},
			{time.Hour, 59 * time.Minute, 59 * time.Minute},
			{time.Nanosecond, time.Second, time.Nanosecond},
			{math.MaxInt64, time.Hour, time.Hour},
			{math.MaxInt64, math.MaxInt64, 100 * 365 * 24 * time.Hour},
			{0, 0, 0},
			{0, -1, 0},
			{0, math.MinInt64, 0},
		} {
			l := &pausing{}
			rt := newRateLimit(t, l, transport.RateLimitConfig{
				Base: &answers{}, MaxPause: c.most,
				Asked: func(*http.Response) time.Duration { return c.asked },
			})
			time.Sleep(time.Hour) // not at the epoch
			require.NoError(t, get(t, rt, "http://a"))
			if c.want == 0 {
				require.Empty(t, l.until)
				continue
			}
			require.Equal(t, []time.Time{time.Now().Add(c.want)}, l.until, "%v", c)
		}
	})
}

func TestJitterLengthensAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var base answers
		for range 200 {
			base.list = append(base.list, answer{429, []string{"Retry-After", "10"}})
		}
		l := &pausing{}
		rt := newRateLimit(t, l, transport.RateLimitConfig{Base: &base, Jitter: time.Second, MaxPause: 2 * time.Second})
		sum := time.Duration(0)
		for i := range 100 {
			require.NoError(t, get(t, rt, "http://a"))
			require.Len(t, l.until, i+1)
			d := time.Until(l.until[i])
			require.True(t, 2*time.Second <= d && d <= 3*time.Second, d)
			sum += d - 2*time.Second
			// A second response that asks for the same does not throw the dice again.
			require.NoError(t, get(t, rt, "http://a"))
			require.Len(t, l.until, i+1)
			time.Sleep(time.Minute)
		}
		require.InDelta(t, 50, sum.Seconds(), 25, "8 standard deviations")

		// What is too long to be added is no trouble.
		rt = newRateLimit(t, l, transport.RateLimitConfig{
			Base: &base, Jitter: math.MaxInt64, MaxPause: math.MaxInt64,
			Asked: func(*http.Response) time.Duration { return math.MaxInt64 },
		})
		require.NoError(t, get(t, rt, "http://a"))
		require.Greater(t, time.Until(l.until[100]), 99*365*24*time.Hour)
	})
}

// Whatever the server says in whatever order, the pause ends where the response
// that asks for the latest time wants it, clamped; against a model.
func TestPausesAgainstAModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			const most = 30 * time.Second
			bucket := newBucket(t, limit.TokenBucketConfig{})
			var next answer
			tr := newRateLimit(t, bucket, transport.RateLimitConfig{
				MaxPause: most,
				Base: stub(func(req *http.Request) (*http.Response, error) {
					return (&answers{list: []answer{next}}).RoundTrip(req)
				}),
			})
			end := time.Now()
			for range rapid.IntRange(1, 20).Draw(rt, "n") {
				time.Sleep(time.Duration(rapid.IntRange(0, 20_000).Draw(rt, "ms")) * time.Millisecond)
				s := rapid.IntRange(-1, 50).Draw(rt, "s")
				next = rapid.SampledFrom([]answer{
					{status: 200},
					{429, []string{"Retry-After", fmt.Sprint(s)}},
					{200, []string{"RateLimit", fmt.Sprintf(`"a";r=0;t=%d`, s)}},
				}).Draw(rt, "answer")
				err := get(t, tr, "http://a")
				require.Equal(t, time.Now().Before(end), err != nil)
				if err != nil {
					require.Equal(t, end, retryAt(t, err))
					continue
				}
				if next.fields != nil && s > 0 {
					end = time.Now().Add(min(most, time.Duration(s)*time.Second))
				}
			}
		})
	})
}

// Those who wait already wait until the end of a pause that comes meanwhile.
func TestPauseHoldsThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := &answers{list: []answer{{status: 200}, {429, []string{"Retry-After", "5"}}}}
		bucket := newBucket(t, limit.TokenBucketConfig{Rate: limit.PerSecond(1), Burst: 1, MaxWait: time.Minute})
		rt := newRateLimit(t, bucket, transport.RateLimitConfig{Base: base})
		start := time.Now()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { require.NoError(t, get(t, rt, "http://a")) })
			synctest.Wait()
		}
		wg.Wait()
		for i, s := range []int{0, 1, 7, 8} {
			require.Equal(t, time.Duration(s)*time.Second, base.sent[i].Sub(start), i)
		}
	})
}

// slow is a limiter whose first pause takes until it is let go.
type slow struct {
	pausing
	begun atomic.Bool
	letGo chan struct{}
}

func (l *slow) Pause(until time.Time) {
	if l.begun.CompareAndSwap(false, true) {
		<-l.letGo
	}
	l.pausing.Pause(until)
}

// Two pauses may reach the limiter in reverse order: the longer must win.
func TestPausesThatMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &slow{letGo: make(chan struct{})}
		base := &answers{list: []answer{{429, []string{"Retry-After", "5"}}, {429, []string{"Retry-After", "10"}}}}
		rt := newRateLimit(t, l, transport.RateLimitConfig{Base: base})
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { require.NoError(t, get(t, rt, "http://a")) })
		synctest.Wait()
		require.NoError(t, get(t, rt, "http://a")) // passes the first, which is under way
		close(l.letGo)
		wg.Wait()
		short, long := start.Add(5*time.Second), start.Add(10*time.Second)
		require.Equal(t, []time.Time{long, short, long}, l.until)
	})
}

// Many requests at once, each asked to come back later: nobody is sent while any
// of them is heeded.
func TestPausesInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var end time.Time // no request may begin before it that began after it was known
		base := stub(func(req *http.Request) (*http.Response, error) {
			mu.Lock()
			early := time.Now().Before(end)
			mu.Unlock()
			require.False(t, early, "sent during a pause")
			time.Sleep(50*time.Millisecond + time.Millisecond/2) // between two turns
			mu.Lock()
			defer mu.Unlock()
			if later := time.Now().Add(time.Second); later.After(end) {
				end = later
			}
			return (&answers{list: []answer{{429, []string{"Retry-After", "1"}}}}).RoundTrip(req)
		})
		bucket := newBucket(t, limit.TokenBucketConfig{Rate: limit.PerSecond(1000), Burst: 10, MaxWait: time.Hour})
		rt := newRateLimit(t, bucket, transport.RateLimitConfig{Base: base})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				for range 5 {
					require.NoError(t, get(t, rt, "http://a"))
				}
			})
		}
		wg.Wait()
	})
}
