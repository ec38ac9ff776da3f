package otelhook

import (
	"maps"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
)

// ScopeName is the name of the instrumentation scope of all spans and metrics.
const ScopeName = "github.com/surgewall/surgewall/otelhook"

// The names of spans.
const (
	spanTrip   = "circuit_breaker trip"
	spanOutage = "circuit_breaker open"
)

// The names of metrics.
const (
	metricStateChanges = "surgewall.circuit_breaker.state_changes"
	metricLimited      = "surgewall.rate_limiting.requests"
	metricShed         = "surgewall.load_shedding.requests"
	metricShadow       = "surgewall.shadow.refusals" // as in core.Shadow's own report
	metricRetries      = "surgewall.retry.retries"
	metricWaitTime     = "db.client.connection.wait_time"
	metricUseTime      = "db.client.connection.use_time"
	metricCreateTime   = "db.client.connection.create_time"
)

// The keys of attributes.
const (
	keyBreaker       = attribute.Key("surgewall.circuit_breaker.name")
	keyState         = attribute.Key("surgewall.circuit_breaker.state")
	keyStatePrevious = attribute.Key("surgewall.circuit_breaker.state.previous")
	keyWhy           = attribute.Key("surgewall.circuit_breaker.trip.reason")
	keyFailures      = attribute.Key("surgewall.circuit_breaker.failure.count")
	keyReopens       = attribute.Key("surgewall.circuit_breaker.reopen.count")
	keyRefused       = attribute.Key("surgewall.circuit_breaker.rejected.count")

	keyLimiter    = attribute.Key("surgewall.rate_limiting.name")
	keyResult     = attribute.Key("surgewall.rate_limiting.result")
	keyShedder    = attribute.Key("surgewall.load_shedding.name")
	keyShedReason = attribute.Key("surgewall.load_shedding.reason")
	keyRetrier    = attribute.Key("surgewall.retry.name")
	keyShadow     = attribute.Key("surgewall.shadow.name")
	keyEnforced   = attribute.Key("surgewall.shadow.enforced")
)

// other is the name that stands for all components beyond maxNames. Names come
// from the configuration, so that only a mistake gets there.
const (
	other    = "_OTHER"
	maxNames = 1000
)

// named is a key that knows the one which stands for all that have no room.
type named[K any] interface {
	comparable
	other() K
}

// byName keeps a T for each key, at most about maxNames of them. Reading takes
// no lock and allocates nothing. It is safe for concurrent use.
type byName[K named[K], T any] struct {
	m  atomic.Pointer[map[K]*T] // replaced, never written
	mu sync.Mutex               // held to replace m
}

// get returns the T of key, made by fill the first time. fill runs under a
// lock and must be brief.
func (b *byName[K, T]) get(key K, fill func(K) *T) *T {
	if t, ok := b.all()[key]; ok {
		return t
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.all()
	if len(old) >= maxNames {
		key = key.other()
	}
	if t, ok := old[key]; ok {
		return t
	}
	t := fill(key)
	next := maps.Clone(old)
	if next == nil {
		next = make(map[K]*T)
	}
	next[key] = t
	b.m.Store(&next)
	return t
}

// all is everything kept, and must not be written to.
func (b *byName[K, T]) all() map[K]*T {
	if m := b.m.Load(); m != nil {
		return *m
	}
	return nil
}

// component is the key of what is kept for a component.
type component string

func (component) other() component { return other }
