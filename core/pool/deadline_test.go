package pool

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// slow is a pool of one whose loans last a second, as far as it has seen.
func slow(t *testing.T, change func(*Config[*conn])) *Pool[*conn] {
	var m maker
	cfg := m.config(1)
	cfg.MaxAge, cfg.AcquireTimeout = Off, Off
	if change != nil {
		change(&cfg)
	}
	p := open(t, cfg)
	for range 100 { // the average takes some to get there
		l := acquire(t, p)
		time.Sleep(time.Second)
		l.Release()
	}
	return p
}

func within3(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second-1)
	t.Cleanup(cancel)
	return ctx
}

// Three are ahead, and each will take a second: who has not three seconds is told
// so at once, and who has waits.
func TestCallerWhoseTurnComesTooLateIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := slow(t, nil)
		l := acquire(t, p)
		var waits []<-chan outcome
		for range 3 {
			waits = append(waits, ask(t.Context(), p))
		}
		p.mu.Lock()
		p.meanUse = int64(time.Second) // 100 rounds come within 2 us
		p.mu.Unlock()
		got := <-ask(within3(t), p)
		require.ErrorIs(t, got.err, ErrOverloaded)
		require.Zero(t, got.after)
		require.EqualError(t, got.err, `pool: too many waiters: refused by "pool" (total 1, used 1, idle 0, waiting 3: the deadline comes before the turn)`)
		require.NotErrorIs(t, got.err, context.DeadlineExceeded)
		var r *core.Rejection
		require.ErrorAs(t, got.err, &r)
		require.Equal(t, core.Overloaded, r.Reason)
		require.EqualValues(t, 1, p.Stats().Doomed)
		require.Zero(t, p.Stats().Overloaded)

		patient, cancel := context.WithTimeout(t.Context(), 3*time.Second+1)
		defer cancel()
		fourth := ask(patient, p)
		require.Empty(t, fourth)
		l.Release()
		for _, w := range append(waits, fourth) {
			got := <-w
			require.NoError(t, got.err)
			got.lease.Release()
		}
	})
}

// One loan of an hour among short ones, as a report's, does not refuse those who
// come after it.
func TestOneLongLoanDoomsNobody(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := slow(t, nil)
		l := acquire(t, p)
		time.Sleep(time.Hour)
		l.Release()
		l = acquire(t, p)
		waits := []<-chan outcome{ask(t.Context(), p), ask(t.Context(), p)}
		patient := ask(within3(t), p)
		require.Empty(t, patient, "two loans of one second are ahead")
		l.Release()
		for _, w := range append(waits, patient) {
			(<-w).lease.Release()
		}
	})
}

// Nobody ahead: whoever comes waits, whatever the average says.
func TestFirstInTheQueueIsNeverDoomed(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := slow(t, nil)
		l := acquire(t, p)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		first := ask(ctx, p)
		require.Empty(t, first)
		l.Release()
		(<-first).lease.Release()
	})
}

func TestDeadlinesCanBeIgnored(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := slow(t, func(c *Config[*conn]) { c.IgnoreDeadlines = true })
		l := acquire(t, p)
		var waits []<-chan outcome
		for range 3 {
			waits = append(waits, ask(t.Context(), p))
		}
		got := <-ask(within3(t), p)
		require.ErrorIs(t, got.err, ErrAcquireTimeout)
		require.Equal(t, 3*time.Second-1, got.after)
		l.Release()
		for _, w := range waits {
			(<-w).lease.Release()
		}
	})
}
