package limit

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/internal/clock"
)

// What errors.Is finds in the *core.Rejection of a limiter.
var (
	// ErrLimited: the limit is used up. RetryAfter says for how long.
	ErrLimited = errors.New("limit: rate limit exceeded")

	// ErrNeverFits: the cost is above the limit, so that no wait is long
	// enough.
	ErrNeverFits = errors.New("limit: cost above the limit")

	// ErrInvalidCost: the cost is negative.
	ErrInvalidCost = errors.New("limit: negative cost")
)

// refusals makes the rejections of one limiter, and keeps the newest: while the
// instant to try again stays the same, so does the rejection. A flood of calls
// that are refused allocates nothing. Calls of different costs, or with different
// keys, have different instants, so several are kept, and more of them for many
// keys; where calls of more keys than that are refused in turn, each makes its
// rejection anew.
type refusals struct {
	name     string
	clock    clock.Clock
	observer core.Observer

	// round is what that instant is rounded up to, in ns. With a rate above
	// 1000 a second it moves with every token, so there it is a millisecond.
	round atomic.Int64

	invalidCost core.Rejection
	neverFits   atomic.Pointer[refusal]       // at is the limit it speaks of
	kept        [8][2]atomic.Pointer[refusal] // by instant; of each two, the newer first
	more        [][2]atomic.Pointer[refusal]  // instead of kept, where there are many keys
}

type refusal struct {
	core.Rejection
	at int64
}

func (f *refusals) init(name string, o core.Observer, c clock.Clock) {
	f.name, f.observer, f.clock = name, o, c
	f.round.Store(1)
	f.invalidCost = core.Rejection{Guard: name, Reason: core.InvalidCost, Err: ErrInvalidCost}
}

// keep is for a limiter of so many keys: so many refusals are kept, up to 2,000.
func (f *refusals) keep(keys int) {
	if keys > len(f.kept) {
		f.more = make([][2]atomic.Pointer[refusal], min(keys, 1024))
	}
}

// setRound is for a limiter that admits n in every per.
func (f *refusals) setRound(n int, per time.Duration) {
	round := int64(1)
	if per/time.Duration(n) < time.Millisecond {
		round = int64(time.Millisecond)
	}
	f.round.Store(round)
}

// misfit is the refusal of a cost that no limit of at most that ever admits, or
// nil.
func (f *refusals) misfit(n, most int) *core.Rejection {
	switch {
	case n < 0:
		return &f.invalidCost
	case n <= most:
		return nil
	}
	r := f.neverFits.Load()
	if r == nil || r.at != int64(most) {
		r = &refusal{core.Rejection{
			Guard: f.name, Reason: core.NeverFits, Err: ErrNeverFits, Detail: "at most " + strconv.Itoa(most),
		}, int64(most)}
		f.neverFits.Store(r)
	}
	return &r.Rejection
}

// limited is the refusal of a call that may be tried again at the clock
// reading at.
func (f *refusals) limited(at int64) *core.Rejection {
	round := f.round.Load()
	if up := at % round; up != 0 {
		at = satAdd(at, round-up)
	}
	sets := f.more
	if sets == nil {
		sets = f.kept[:]
	}
	set := &sets[uint64(at)*0x9e3779b97f4a7c15>>32%uint64(len(sets))]
	for i := range set {
		if r := set[i].Load(); r != nil && r.at == at {
			return &r.Rejection
		}
	}
	r := &refusal{core.Rejection{
		Guard: f.name, Reason: core.RateLimited, Err: ErrLimited, RetryAt: f.clock.Time(at),
	}, at}
	set[1].Store(set[0].Load())
	set[0].Store(r)
	return &r.Rejection
}

// ended is the refusal of a call whose context ended before its turn.
func (f *refusals) ended(cause error) *core.Rejection {
	return &core.Rejection{Guard: f.name, Reason: core.RateLimited, Err: ErrLimited, Cause: cause}
}

// tell lets the observer hear of a refusal.
func (f *refusals) tell(ctx context.Context, why core.Reason, n int) {
	if f.observer != nil {
		core.Emit(ctx, f.observer, core.Event{
			Kind: core.KindRejected, Reason: why, Component: f.name, N: int64(n),
		})
	}
}
