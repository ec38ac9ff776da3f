package core

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// ShadowConfig configures Shadow.
type ShadowConfig struct {
	// Name is the name in events and reports. Default: "shadow".
	Name string

	// EnforcePercent is the share of calls, 0 to 100, on which a refusal is
	// enforced; on the rest it is told and not enforced. Default: 0, never.
	EnforcePercent int

	// Exempt, if set, names the calls that are admitted without asking the
	// guard: health checks, say. It is called for every call, concurrently,
	// outside all locks.
	Exempt func(context.Context, Call) bool

	// Observer hears an event of KindShadowed for each refusal that was not
	// enforced. The guard in the shadow does not know that it is in one: an
	// Observer of its own hears KindRejected for the same refusal, and its
	// reports count it. Default: none.
	Observer Observer
}

// ShadowGuard is a guard that lets another decide and tell, and does not
// refuse, or refuses only in part: to see what a limit would do before it does
// it, and then to roll it out. It is safe for concurrent use.
type ShadowGuard struct {
	guard Guard
	shadow
}

// Shadow puts g in the shadow. A call that g refuses, and that is not enforced,
// is admitted with an empty permit: it uses nothing of g. If g may wait, it
// waits in the shadow too.
//
// The error lists every bad field of cfg; errors.Is(err, ErrConfig).
func Shadow(g Guard, cfg ShadowConfig) (*ShadowGuard, error) {
	s := &ShadowGuard{guard: g}
	if err := s.init(cfg, g == nil); err != nil {
		return nil, err
	}
	return s, nil
}

// Acquire is Guard's Acquire.
func (s *ShadowGuard) Acquire(ctx context.Context, call Call) (Permit, error) {
	if s.exempt(ctx, call) {
		return Permit{}, nil
	}
	p, err := s.guard.Acquire(ctx, call)
	if err != nil {
		return Permit{}, s.refused(ctx, call, err)
	}
	return p.Take(), nil
}

// Ready reports whether a call would be admitted: it always is unless refusals
// are enforced on all calls.
func (s *ShadowGuard) Ready() bool {
	return s.cfg.EnforcePercent < 100 || IsReady(s.guard)
}

// ShadowKeyedConfig configures ShadowKeyed.
type ShadowKeyedConfig[K comparable] struct {
	ShadowConfig

	// ExemptKey, if set, names the keys whose calls are admitted without asking
	// the guard: our own services, say. It is called as Exempt is.
	ExemptKey func(K) bool
}

// ShadowKeyedGuard is ShadowGuard for a KeyedGuard.
type ShadowKeyedGuard[K comparable] struct {
	guard     KeyedGuard[K]
	exemptKey func(K) bool
	shadow
}

// ShadowKeyed is Shadow for a KeyedGuard.
func ShadowKeyed[K comparable](g KeyedGuard[K], cfg ShadowKeyedConfig[K]) (*ShadowKeyedGuard[K], error) {
	s := &ShadowKeyedGuard[K]{guard: g, exemptKey: cfg.ExemptKey}
	if err := s.init(cfg.ShadowConfig, g == nil); err != nil {
		return nil, err
	}
	return s, nil
}

// AcquireKey is KeyedGuard's AcquireKey.
func (s *ShadowKeyedGuard[K]) AcquireKey(ctx context.Context, key K, call Call) (Permit, error) {
	if s.exempt(ctx, call) || s.exemptKey != nil && s.exemptKey(key) {
		return Permit{}, nil
	}
	p, err := s.guard.AcquireKey(ctx, key, call)
	if err != nil {
		return Permit{}, s.refused(ctx, call, err)
	}
	return p.Take(), nil
}

// shadow is what both have in common.
type shadow struct {
	cfg      ShadowConfig
	since    time.Time
	shadowed atomic.Uint64
	enforced atomic.Uint64
}

func (s *shadow) init(cfg ShadowConfig, noGuard bool) error {
	if cfg.Name == "" {
		cfg.Name = "shadow"
	}
	bad := Check("core.ShadowConfig")
	bad.If(noGuard, "guard", nil, "must not be nil")
	bad.If(cfg.EnforcePercent < 0 || cfg.EnforcePercent > 100, "EnforcePercent", cfg.EnforcePercent, "must be 0 to 100")
	s.cfg, s.since = cfg, time.Now()
	return bad.Err()
}

func (s *shadow) exempt(ctx context.Context, call Call) bool {
	return s.cfg.Exempt != nil && s.cfg.Exempt(ctx, call)
}

// refused is the answer to a refusal: the refusal itself where it is enforced.
func (s *shadow) refused(ctx context.Context, call Call, err error) error {
	if percent := s.cfg.EnforcePercent; percent > 0 && rand.IntN(100) < percent {
		s.enforced.Add(1)
		return err
	}
	s.shadowed.Add(1)
	reason := ReasonUnknown
	if r, ok := errors.AsType[*Rejection](err); ok {
		reason = r.Reason
	}
	Emit(ctx, s.cfg.Observer, Event{Kind: KindShadowed, Component: s.cfg.Name, Reason: reason, N: int64(call.Weight())})
	return nil
}

// Name is the configured name.
func (s *shadow) Name() string { return s.cfg.Name }

// Inspect reports how many refusals were told only, and how many enforced.
func (s *shadow) Inspect() Report {
	state := "shadow"
	if s.cfg.EnforcePercent > 0 {
		state = "partial"
	}
	if s.cfg.EnforcePercent == 100 {
		state = "enforced"
	}
	return Report{
		Kind: "shadow", Name: s.cfg.Name, State: state, Since: s.since,
		Values: []Value{
			Count("surgewall.shadow.refusals", "{call}", s.shadowed.Load()).With("enforced", "false"),
			Count("surgewall.shadow.refusals", "{call}", s.enforced.Load()).With("enforced", "true"),
		},
		Settings: []Setting{{"EnforcePercent", s.cfg.EnforcePercent}},
	}
}
