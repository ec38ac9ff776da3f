package httpmw

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/core/limit"
)

// discard is a writer that costs nothing, with the interfaces of HTTP/1.1's.
type discard struct {
	plainBase
	flushBase
	hijacks
	readsFrom
	header http.Header
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}

func ok(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }

func oneKey(*http.Request) (string, error) { return "key", nil }

func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	free, end, watch := &freeGuard{core.WantsNothing}, &freeGuard{core.WantsEnd}, &freeGuard{core.WantsResult}
	bucket, breaker := newBucket(t, limit.PerSecond(1_000_000), 1_000_000), newBreaker(t, circuit.Config{})
	for name, row := range map[string]struct {
		mw   func(http.Handler) http.Handler
		want float64
	}{
		"nothing wanted":        {Guard(free), 0},
		"end wanted":            {Guard(end), 0},
		"result wanted":         {Guard(watch), 1},
		"key, nothing wanted":   {GuardBy(free, oneKey), 0},
		"key, result wanted":    {GuardBy(watch, oneKey), 1},
		"limit, bulkhead":       {Chain(GuardBy(free, oneKey), Guard(end)), 0},
		"limit, bulkhead, trip": {Chain(GuardBy(free, oneKey), Guard(end), Guard(watch)), 1},
		"token bucket":          {Guard(bucket), 0},
		"breaker":               {Guard(breaker), 1},
		"both in one":           {Guard(core.Chain(bucket, breaker)), 1},
		"recover":               {Recover(RecoverConfig{}), 1},
		"deadline":              {newDeadline(t, DeadlineConfig{Timeout: time.Hour}), 6},
		"route":                 {GuardBy(newRoutes(t, circuit.Config{}), oneKey), 1},
	} {
		h := row.mw(http.HandlerFunc(ok))
		w, r := &discard{header: http.Header{}}, httptest.NewRequest("GET", "/", nil)
		require.Equal(t, row.want, testing.AllocsPerRun(100, func() { h.ServeHTTP(w, r) }), name)
	}
}

func BenchmarkGuard(b *testing.B) {
	free, watch := &freeGuard{core.WantsNothing}, &freeGuard{core.WantsResult}
	bucket, breaker := newBucket(b, limit.PerSecond(1_000_000_000), 1_000_000_000), newBreaker(b, circuit.Config{})
	for _, row := range []struct {
		name string
		mw   func(http.Handler) http.Handler
	}{
		{"bare", Chain()},
		{"nothing-wanted", Guard(free)},
		{"by-key", GuardBy(free, oneKey)},
		{"result-wanted", Guard(watch)},
		{"three", Chain(GuardBy(free, oneKey), Guard(free), Guard(watch))},
		{"token-bucket", Guard(bucket)},
		{"breaker", Guard(breaker)},
		{"bucket-breaker", Guard(core.Chain(bucket, breaker))},
		{"recover", Recover(RecoverConfig{})},
		{"deadline", newDeadline(b, DeadlineConfig{Timeout: time.Hour})},
		{"route", GuardBy(newRoutes(b, circuit.Config{}), oneKey)},
		{"refused", Guard(&fakeGuard{refusal: &core.Rejection{Reason: core.CircuitOpen}})},
	} {
		h := row.mw(http.HandlerFunc(ok))
		b.Run(row.name, func(b *testing.B) {
			w, r := &discard{header: http.Header{}}, httptest.NewRequest("GET", "/", nil)
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(w, r)
			}
		})
	}
}
