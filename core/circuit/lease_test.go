package circuit

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// gobreaker and failsafe-go stay half-open for ever after a probe whose
// permit was never finished.
func TestRegressionWedgedByUnreportedPermit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tripped(t, Config{Probes: 2, SuccessThreshold: 2, ProbeLease: 20 * time.Second})
		time.Sleep(30 * time.Second)
		admitted(t, b) // lost
		time.Sleep(5 * time.Second)
		admitted(t, b) // lost
		refused(t, b, ErrProbesTaken)
		time.Sleep(15*time.Second - 1)
		require.False(t, b.Ready())
		refused(t, b, ErrProbesTaken)

		time.Sleep(time.Nanosecond)
		require.True(t, b.Ready())
		require.Equal(t, 1, b.Stats().ProbesOut)
		p := admitted(t, b)
		refused(t, b, ErrProbesTaken)
		time.Sleep(5 * time.Second)
		q := admitted(t, b)
		refused(t, b, ErrProbesTaken)
		p.Done(t.Context(), core.Success)
		q.Done(t.Context(), core.Success)
		require.Equal(t, Closed, b.State())
	})
}

func TestRegressionWedgedByGoexit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tripped(t, Config{Probes: 1, SuccessThreshold: 1})
		time.Sleep(30 * time.Second)
		var wg sync.WaitGroup
		wg.Go(func() {
			p, err := b.Acquire(t.Context(), core.Call{})
			if err == nil {
				runtime.Goexit() // with the permit in hand, and no defer
			}
			p.Cancel()
		})
		wg.Wait()
		refused(t, b, ErrProbesTaken)
		time.Sleep(30 * time.Second)
		calls(t, b, "S")
		require.Equal(t, Closed, b.State())
	})
}

// A probe that outlives its lease only gives up its place: its result is as
// good as any, and a service that answers after the lease can close or reopen
// the breaker.
func TestOverdueProbeStillCounts(t *testing.T) {
	for _, c := range []struct {
		outcome core.Outcome
		want    State
	}{
		{core.Success, Closed},
		{core.Failure, Open},
		{core.Ignored, HalfOpen},
	} {
		t.Run(c.outcome.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := tripped(t, Config{Probes: 1, SuccessThreshold: 1})
				time.Sleep(30 * time.Second)
				slow := admitted(t, b)
				time.Sleep(31 * time.Second)
				other := admitted(t, b)
				slow.Done(t.Context(), c.outcome)
				require.Equal(t, c.want, b.State())
				if c.want == HalfOpen {
					refused(t, b, ErrProbesTaken) // the place was not given back twice
				}
				other.Cancel()
			})
		})
	}
}

// The places of one half-open time do not count in the next.
func TestReopeningFreesAllPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tripped(t, Config{Probes: 1, ProbeLease: time.Hour})
		time.Sleep(30 * time.Second)
		slow := admitted(t, b)
		time.Sleep(time.Hour)
		admitted(t, b) // holds the place for an hour
		slow.Done(t.Context(), core.Failure)
		require.Equal(t, Open, b.State())
		time.Sleep(30 * time.Second)
		require.True(t, b.Ready())
		calls(t, b, "SSS")
		require.Equal(t, Closed, b.State())
	})
}

func TestOverdueProbesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tripped(t, Config{Probes: 2, SuccessThreshold: 1})
		time.Sleep(30 * time.Second)
		first := admitted(t, b)
		for range 100 {
			time.Sleep(30 * time.Second)
			admitted(t, b)
			require.LessOrEqual(t, len(b.probes.out), 2*2+1)
		}
		first.Done(t.Context(), core.Failure)
		require.Equal(t, HalfOpen, b.State(), "forgotten, so without effect")
	})
}
