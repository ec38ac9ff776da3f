package circuit

import (
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
)

// ramp is the time after a breaker has closed in which it admits only a part of
// the calls, so that all who waited for the recovery do not end it.
type ramp struct {
	begin, end int64
	rejection  *core.Rejection
	calls      atomic.Uint64
}

// rampPercent is the part of the calls that is admitted, by thirds of the time.
var rampPercent = [...]uint64{10, 25, 50}

func newRamp(b *Breaker, now int64, length time.Duration) *ramp {
	end := after(now, length)
	return &ramp{begin: now, end: end, rejection: &core.Rejection{
		Guard: b.name, Reason: core.CircuitRamping, Err: ErrRamping, RetryAt: b.clock.Time(end),
	}}
}

// admit is for a call before the end. Of each hundred calls so many are admitted as
// the percentage is, as evenly as can be.
func (r *ramp) admit(now int64) bool {
	third := max(1, (r.end-r.begin)/int64(len(rampPercent)))
	step := min(max(0, now-r.begin)/third, int64(len(rampPercent))-1)
	percent := rampPercent[step]
	n := r.calls.Add(1)
	return (n*percent+99)/100 > ((n-1)*percent+99)/100
}

// endRamp lets all calls in, if the breaker is still as w says.
func (b *Breaker) endRamp(w word) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.load() == w {
		b.word.Store(uint64(makeWord(w.generation(), w.state(), w&timed)))
	}
}
