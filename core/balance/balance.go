// Package balance spreads calls over several backends of any type: URLs,
// connection pools, clients.
//
// A [Balancer] picks one for each call. Backends are marked healthy or not, come
// and go at run time, and may each have a guard of their own, a circuit breaker
// say: one that would refuse is passed over without being asked.
//
//	err := backends.Do(ctx, func(ctx context.Context, c *Client) error {
//		return c.Charge(ctx, order)
//	})
//
// Where a call is not a function, Pick returns a [Lease], to be finished with how
// the call ended.
//
// A pick takes no lock and allocates nothing: it reads an immutable snapshot of
// the backends, which every change replaces.
package balance

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/internal/clock"
	"github.com/surgewall/surgewall/core/internal/notify"
)

// The sentinels of a pick that found nothing. Each comes inside a
// *core.Rejection whose Reason is core.NoBackend.
var (
	// ErrNoBackend: the list of backends is empty. New and Update return it
	// too, beside core.ErrConfig, unless the Config has AllowEmpty.
	ErrNoBackend = errors.New("balance: no backend")

	// ErrNoneHealthy: there are backends, and each is marked unhealthy or its
	// guard refuses.
	ErrNoneHealthy = errors.New("balance: no healthy backend")

	// ErrAllTried: all backends that could take the call are among those that
	// PickInfo.Tried excludes.
	ErrAllTried = errors.New("balance: every backend was tried")
)

// Config configures a Balancer.
type Config[T any] struct {
	// Name is the balancer's name in reports, events and refusals.
	// Default: "balancer".
	Name string

	// Backends are those to begin with; Update replaces them. All begin as
	// healthy. An empty list is an error, unless AllowEmpty is set.
	Backends []Backend[T]

	// AllowEmpty accepts an empty list of backends, in New and in Update: for
	// a program that learns its backends while it runs. Every Pick is refused
	// with ErrNoBackend meanwhile. Default: false, so that a discovery that
	// finds nothing does not wipe out the backends that still work.
	AllowEmpty bool

	// Policy decides which backend a call goes to: RoundRobin or LeastInFlight.
	// Default: RoundRobin.
	Policy Policy

	// Observer hears core.KindBackendChanged, in order, when a backend comes,
	// goes, or is marked, and core.KindRejected when a pick finds nothing.
	// Default: none.
	Observer core.Observer
}

// Backend is one of those that calls are spread over.
type Backend[T any] struct {
	// ID tells the backend from the others, also across an Update. It appears
	// in reports, events and metrics, so it must hold no secret: "eu-1".
	ID string

	// Value is what the Balancer hands out.
	Value T

	// Weight is how much the backend bears in comparison with the others, at
	// most 1,000,000: with LeastInFlight, one of weight 2 has twice as many
	// calls in flight as one of weight 1. RoundRobin ignores it. Default: 1.
	Weight int

	// Guard, if set, is asked before the backend is picked, a circuit breaker
	// or a bulkhead: its permit is part of the Lease. While it is not Ready
	// (see core.Ready) the backend is passed over, and when it refuses, another
	// backend is picked. It should not wait, since the pick would. A guard that
	// several backends share acts on each of them. Default: none.
	Guard core.Guard
}

// Balancer spreads calls over backends. Make one with New. It is safe for
// concurrent use, owns no goroutine, and needs no Close.
type Balancer[T any] struct {
	name       string
	policy     Policy
	allowEmpty bool
	observer   core.Observer
	clock      clock.Clock
	changes    notify.Queue[core.Event]
	asked      sync.Pool // of *asked

	mu   sync.Mutex                  // held by what changes the snapshot
	seq  uint64                      // guarded by mu: the changes so far
	snap atomic.Pointer[snapshot[T]] // written under mu, read by every pick

	refused [refusalCount]atomic.Uint64
}

// New makes a Balancer. The error lists every bad field of cfg; errors.Is(err,
// core.ErrConfig), and errors.Is(err, ErrNoBackend) if there are no backends.
func New[T any](cfg Config[T]) (*Balancer[T], error) {
	if cfg.Name == "" {
		cfg.Name = "balancer"
	}
	if cfg.Policy == nil {
		cfg.Policy = RoundRobin()
	}
	if err := check(cfg.Backends, cfg.AllowEmpty); err != nil {
		return nil, err
	}
	b := &Balancer[T]{
		name:       cfg.Name,
		policy:     cfg.Policy,
		allowEmpty: cfg.AllowEmpty,
		observer:   cfg.Observer,
		clock:      clock.New(),
	}
	b.changes.Merge = mergeChanges
	members := make([]*member[T], len(cfg.Backends))
	for i, backend := range cfg.Backends {
		members[i] = newMember(backend, &node{}, healthy, 0)
	}
	b.publish(members)
	return b, nil
}

// maxWeight keeps what weights are multiplied with far from an overflow.
const maxWeight = 1_000_000

// check reports all that is wrong with a list of backends.
func check[T any](backends []Backend[T], allowEmpty bool) error {
	bad := core.Check("balance.Config")
	empty := len(backends) == 0 && !allowEmpty
	bad.If(empty, "Backends", len(backends), "must not be empty unless AllowEmpty is set")
	seen := make(map[string]bool, len(backends))
	for i, backend := range backends {
		bad.If(strings.TrimSpace(backend.ID) == "", "Backends.ID", i, "the backend at this index must have an ID")
		bad.If(seen[backend.ID] && backend.ID != "", "Backends.ID", backend.ID, "must be given once")
		seen[backend.ID] = true
		bad.If(backend.Weight < 0 || backend.Weight > maxWeight, "Backends.Weight", backend.Weight, "must be 0 to 1000000")
	}
	if empty {
		return errors.Join(bad.Err(), ErrNoBackend)
	}
	return bad.Err()
}

// Name is the configured name.
func (b *Balancer[T]) Name() string { return b.name }
