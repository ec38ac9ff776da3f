package circuit

import (
	"cmp"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/internal/clock"
	"github.com/surgewall/surgewall/core/internal/stripe"
)

// ErrThrottled is found by errors.Is in the rejection of a Throttle. It has no
// RetryAfter: another try can be admitted at once.
var ErrThrottled = errors.New("circuit: throttled, since the other side accepts too few calls")

// ThrottleConfig configures a Throttle.
type ThrottleConfig struct {
	// Name is the name in rejections, events and reports. Default: "throttle".
	Name string

	// K is how many calls are let through for each that is accepted, 1 to 100,
	// rounded to thousandths. With 2, half of what reaches the other side may be
	// refused by it before anything is refused here; with less, less goes to
	// waste, and it takes longer to notice a recovery. After an outage in which
	// nothing was accepted, with some thousands of calls in a Window, all are
	// admitted again some 6 Windows after its end with 2, some 4 with 4, and
	// some 40 with 1.1; with 1, it takes as many Windows as there are calls in
	// one. Default: 2.
	K float64

	// Window is over how much time calls are counted, 10 ns to 24 h; it moves on
	// by tenths. It should be longer than nearly all calls take. Default: 2 min.
	Window time.Duration

	// Observer hears events of KindRejected. Default: none.
	Observer core.Observer
}

// Throttle refuses, before they are made, as many calls as the other side would
// refuse or fail anyway, with a probability of
//
//	max(0, (requests - K·accepts) / (requests + 1))
//
// It is the client-side throttling of "Site Reliability Engineering" (Beyer et al.,
// O'Reilly 2016, chapter 21), for what a Breaker is too coarse for: a service of
// which a part is down. Requests are the calls that asked for admission in the
// Window, refused ones too; accepts are those that ended in core.Success. A call
// that is out counts as not accepted; one that is Ignored or cancelled does not
// count at all.
//
// It is a core.Guard and chains with a Breaker; put it in front of it, so that what
// the breaker refuses is cancelled here. It is safe for concurrent use, has no
// goroutine and no timer, and needs no Close. A nil *Throttle admits every call.
type Throttle struct {
	name      string
	k         uint64 // in thousandths
	observer  core.Observer
	clock     clock.Clock
	rejection *core.Rejection
	window    time.Duration
	history   history
	counts    stripe.Group
}

const (
	countRequests  = iota
	countAccepts   // calls that ended in Success
	countWithdrawn // requests that count no more
	countRefused
)

// NewThrottle makes a Throttle that has seen no call. The error lists every bad
// field of cfg; errors.Is(err, core.ErrConfig).
func NewThrottle(cfg ThrottleConfig) (*Throttle, error) {
	cfg.Name = cmp.Or(cfg.Name, "throttle")
	cfg.K = cmp.Or(cfg.K, 2)
	cfg.Window = cmp.Or(cfg.Window, 2*time.Minute)
	bad := core.Check("circuit.ThrottleConfig")
	bad.If(!(cfg.K >= 1 && cfg.K <= 100), "K", cfg.K, "must be 1 to 100, or 0 for the default")
	bad.If(cfg.Window < windowSlots || cfg.Window > maxTimeWindow, "Window", cfg.Window, "must be 10ns to 24h, or 0 for the default")
	if err := bad.Err(); err != nil {
		return nil, err
	}
	t := &Throttle{
		name: cfg.Name, k: uint64(math.Round(cfg.K * 1000)), observer: cfg.Observer, clock: clock.New(), window: cfg.Window,
		rejection: &core.Rejection{Guard: cfg.Name, Reason: core.Overloaded, Err: ErrThrottled},
	}
	t.history.init(cfg.Window, func() sums {
		return sums{
			countAccepts:   t.counts.Sum(countAccepts),
			countWithdrawn: t.counts.Sum(countWithdrawn),
			countRequests:  t.counts.Sum(countRequests), // last, so that it is not below the others
		}
	})
	return t, nil
}

// Acquire admits the call, or refuses it with ErrThrottled. It allocates nothing but
// a few bytes with each tenth of the Window.
func (t *Throttle) Acquire(ctx context.Context, call core.Call) (core.Permit, error) {
	if t == nil {
		return core.Permit{}, nil
	}
	t.history.tick(t.clock.Now())
	requests, surplus := t.surplus()
	t.counts.Add(countRequests, 1)
	if surplus > 0 && rand.Uint64N((requests+1)*1000) < surplus {
		t.counts.Add(countRefused, 1)
		core.Emit(ctx, t.observer, core.Event{
			Kind: core.KindRejected, Component: t.name, Reason: core.Overloaded, N: int64(call.Weight()),
		})
		return core.Permit{}, t.rejection
	}
	return core.NewPermit(t, core.Token{}, core.WantsResult), nil
}

// surplus is how many requests there were in the window, and by how many they are
// more than K times those accepted, in thousandths.
func (t *Throttle) surplus() (requests, thousandths uint64) {
	s := t.history.grown()
	requests = s[countRequests] - min(s[countRequests], s[countWithdrawn])
	if granted := s[countAccepts] * t.k; requests*1000 > granted {
		return requests, requests*1000 - granted
	}
	return requests, 0
}

// FinishPermit is core.Finisher's, and called by permits only.
func (t *Throttle) FinishPermit(_ context.Context, _ core.Token, r core.Result) {
	switch r.Outcome {
	case core.Success:
		t.history.tick(t.clock.Now())
		t.counts.Add(countAccepts, 1)
	case core.Failure, core.Throttled:
	default:
		t.counts.Add(countWithdrawn, 1)
	}
}

// CancelPermit is core.Finisher's, and called by permits only.
func (t *Throttle) CancelPermit(core.Token) { t.counts.Add(countWithdrawn, 1) }

// ThrottleStats is a Throttle at one moment.
type ThrottleStats struct {
	Admitted, Refused uint64 // since NewThrottle

	// In the Window: calls that asked, without those that count no more, and
	// calls accepted.
	Requests, Accepts uint64

	// RefusedPart is the probability with which a call is refused now.
	RefusedPart float64
}

// Stats reads the counters. Those of a nil *Throttle are zero.
func (t *Throttle) Stats() (s ThrottleStats) {
	if t == nil {
		return s
	}
	t.history.tick(t.clock.Now())
	s.Refused = t.counts.Sum(countRefused) // before the requests, of which they are
	s.Admitted = t.counts.Sum(countRequests) - s.Refused
	s.Accepts = t.history.grown()[countAccepts]
	requests, surplus := t.surplus()
	s.Requests = requests
	s.RefusedPart = float64(surplus) / 1000 / float64(requests+1)
	return s
}

// Name is the configured name.
func (t *Throttle) Name() string {
	if t == nil {
		return ""
	}
	return t.name
}

// Inspect reports the throttle as it is now.
func (t *Throttle) Inspect() core.Report {
	if t == nil {
		return core.Report{Kind: "throttle"}
	}
	s := t.Stats()
	return core.Report{
		Kind: "throttle", Name: t.name, Since: t.clock.Time(0),
		Values: []core.Value{
			core.Count("surgewall.throttle.calls", "{call}", s.Admitted).With("outcome", "admitted"),
			core.Count("surgewall.throttle.calls", "{call}", s.Refused).With("outcome", "rejected"),
		},
		Settings: []core.Setting{
			{Name: "K", Value: float64(t.k) / 1000},
			{Name: "Window", Value: t.window},
		},
	}
}
