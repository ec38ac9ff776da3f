package main

import (
	"context"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/failsafe-go/failsafe-go/ratelimiter"
	"github.com/go-chi/httprate"
	sethvargo "github.com/sethvargo/go-limiter"
	"github.com/sethvargo/go-limiter/memorystore"
	"github.com/throttled/throttled/v2"
	"github.com/throttled/throttled/v2/store/memstore"
	ulule "github.com/ulule/limiter/v3"
	"github.com/ulule/limiter/v3/drivers/store/memory"
	"go.uber.org/ratelimit"
	"golang.org/x/time/rate"
)

const (
	xtime       = "golang.org/x/time"
	xsync       = "golang.org/x/sync"
	uber        = "go.uber.org/ratelimit"
	failsafe    = "github.com/failsafe-go/failsafe-go"
	throttling  = "github.com/throttled/throttled/v2"
	ulules      = "github.com/ulule/limiter/v3"
	chi         = "github.com/go-chi/httprate"
	sethvargoes = "github.com/sethvargo/go-limiter"
)

// admitting are the peers' limiters that admit everything, each call taking k.
func admitting(k int) []contender {
	return []contender{
		{"x/time/rate", xtime, lone(func() func(int) int {
			return xtimeLoop(rate.NewLimiter(plenty, plenty), k)
		})},
		{"failsafe-go smooth", failsafe, lone(func() func(int) int {
			return failsafeLoop(ratelimiter.NewSmoothBuilder[any](plenty, time.Second).Build(), k)
		})},
		{"failsafe-go bursty", failsafe, lone(func() func(int) int {
			return failsafeLoop(ratelimiter.NewBurstyBuilder[any](plenty, time.Second).Build(), k)
		})},
		{"throttled", throttling, lone(func() func(int) int {
			return throttledLoop(newThrottled(throttled.PerSec(plenty), plenty), k)
		})},
		{"go-limiter", sethvargoes, calls(0, func() (func(int) int, func()) {
			s := newSethvargo(plenty, day, 0)
			return sethvargoLoop(s), closing(s)
		})},
		{"ulule/limiter", ulules, lone(func() func(int) int {
			return ululeLoop(newUlule(plenty, time.Second, 0), k)
		})},
		{"httprate", chi, lone(func() func(int) int {
			return httprateLoop(newHTTPRate(plenty, time.Second), k)
		})},
	}
}

// refusing are the peers' limiters that refuse everything.
var refusing = []contender{
	{"x/time/rate", xtime, lone(func() func(int) int {
		return spent(xtimeLoop(rate.NewLimiter(rate.Every(day), 1), 1))
	})},
	{"failsafe-go smooth", failsafe, lone(func() func(int) int {
		return spent(failsafeLoop(ratelimiter.NewSmoothBuilder[any](1, day).Build(), 1))
	})},
	{"failsafe-go bursty", failsafe, lone(func() func(int) int {
		return spent(failsafeLoop(ratelimiter.NewBurstyBuilder[any](1, day).Build(), 1))
	})},
	{"throttled", throttling, lone(func() func(int) int {
		return spent(throttledLoop(newThrottled(throttled.PerDay(1), 1), 1))
	})},
	{"go-limiter", sethvargoes, calls(0, func() (func(int) int, func()) {
		s := newSethvargo(1, day, 0)
		return spent(sethvargoLoop(s)), closing(s)
	})},
	{"ulule/limiter", ulules, lone(func() func(int) int {
		return spent(ululeLoop(newUlule(1, day, 0), 1))
	})},
	{"httprate", chi, lone(func() func(int) int {
		return spent(httprateLoop(newHTTPRate(1, day), 1))
	})},
}

// waiting are the peers' blocking calls, with nothing to wait for.
var waiting = []contender{
	{"x/time/rate", xtime, lone(func() func(int) int {
		l, ctx := rate.NewLimiter(plenty, plenty), context.Background()
		return func(n int) (admitted int) {
			for range n {
				if l.Wait(ctx) == nil {
					admitted++
				}
			}
			return admitted
		}
	})},
	{"uber-go/ratelimit", uber, lone(func() func(int) int {
		l := ratelimit.New(plenty)
		return func(n int) (admitted int) {
			for range n {
				if !l.Take().IsZero() {
					admitted++
				}
			}
			return admitted
		}
	})},
	{"failsafe-go smooth", failsafe, lone(func() func(int) int {
		return waited(ratelimiter.NewSmoothBuilder[any](plenty, time.Second).Build())
	})},
	{"failsafe-go bursty", failsafe, lone(func() func(int) int {
		return waited(ratelimiter.NewBurstyBuilder[any](plenty, time.Second).Build())
	})},
}

// spent takes the one token there is, and counts the refusals.
func spent(loop func(int) int) func(int) int {
	loop(1)
	return not(loop)
}

// without drops some by name, only keeps them.
func without(of []contender, names ...string) []contender {
	return slices.DeleteFunc(slices.Clone(of), func(c contender) bool { return slices.Contains(names, c.name) })
}

func only(of []contender, names ...string) []contender {
	return slices.DeleteFunc(slices.Clone(of), func(c contender) bool { return !slices.Contains(names, c.name) })
}

func xtimeLoop(l *rate.Limiter, k int) func(int) int {
	return func(n int) (admitted int) {
		for range n {
			if l.AllowN(time.Now(), k) {
				admitted++
			}
		}
		return admitted
	}
}

func failsafeLoop(l ratelimiter.RateLimiter[any], k int) func(int) int {
	return func(n int) (admitted int) {
		for range n {
			if l.TryAcquirePermits(uint(k)) {
				admitted++
			}
		}
		return admitted
	}
}

func waited(l ratelimiter.RateLimiter[any]) func(int) int {
	ctx := context.Background()
	return func(n int) (admitted int) {
		for range n {
			if l.AcquirePermit(ctx) == nil {
				admitted++
			}
		}
		return admitted
	}
}

// newThrottled retries its compare-and-swap for as long as it takes: by default
// it gives up after ten, with an error.
func newThrottled(r throttled.Rate, burst int) *throttled.GCRARateLimiterCtx {
	l := must(throttled.NewGCRARateLimiterCtx(must(memstore.NewCtx(0)),
		throttled.RateQuota{MaxRate: r, MaxBurst: burst - 1}))
	l.SetMaxCASAttemptsLimit(math.MaxInt)
	return l
}

func throttledLoop(l *throttled.GCRARateLimiterCtx, k int) func(int) int {
	ctx := context.Background()
	return func(n int) (admitted int) {
		for range n {
			if limited, _, err := l.RateLimitCtx(ctx, "", k); err == nil && !limited {
				admitted++
			}
		}
		return admitted
	}
}

// newSethvargo is to be closed. After its first window it admits less than it
// should where there are more than 10,000 tokens a second, so windows are long
// where all calls are to be admitted.
func newSethvargo(tokens uint64, window, sweep time.Duration) sethvargo.Store {
	return must(memorystore.New(&memorystore.Config{
		Tokens: tokens, Interval: window, SweepInterval: sweep, SweepMinTTL: sweep,
	}))
}

func closing(s sethvargo.Store) func() {
	return func() { _ = s.Close(context.Background()) }
}

func sethvargoLoop(s sethvargo.Store) func(int) int {
	ctx := context.Background()
	return func(n int) (admitted int) {
		for range n {
			if _, _, _, ok, err := s.Take(ctx, ""); err == nil && ok {
				admitted++
			}
		}
		return admitted
	}
}

// newUlule sweeps only where sweep is not 0. Its goroutine ends when it is
// collected.
func newUlule(tokens int64, window, sweep time.Duration) *ulule.Limiter {
	store := memory.NewStoreWithOptions(ulule.StoreOptions{Prefix: "limiter", CleanUpInterval: sweep})
	return ulule.New(store, ulule.Rate{Period: window, Limit: tokens})
}

func ululeLoop(l *ulule.Limiter, k int) func(int) int {
	ctx := context.Background()
	return func(n int) (admitted int) {
		for range n {
			if c, err := l.Increment(ctx, "", int64(k)); err == nil && !c.Reached {
				admitted++
			}
		}
		return admitted
	}
}

// newHTTPRate sets no headers, so it needs no http.ResponseWriter.
func newHTTPRate(tokens int, window time.Duration) *httprate.RateLimiter {
	return httprate.NewRateLimiter(tokens, window, httprate.WithResponseHeaders(httprate.ResponseHeaders{}))
}

func httprateLoop(l *httprate.RateLimiter, k int) func(int) int {
	r := new(http.Request)
	if k != 1 {
		r = r.WithContext(httprate.WithIncrement(context.Background(), k))
	}
	return func(n int) (admitted int) {
		for range n {
			if !l.OnLimit(nil, r, "") {
				admitted++
			}
		}
		return admitted
	}
}
