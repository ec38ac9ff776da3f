package limit

import (
	"maps"
	"slices"

	"github.com/surgewall/surgewall/core"
)

// KeyedStats is a Keyed at one moment.
type KeyedStats struct {
	Admitted   uint64 // calls admitted, reservations included
	Refused    uint64 // calls refused, for whatever reason
	Cancelled  uint64 // calls admitted whose permit or reservation was cancelled
	Overflowed uint64 // calls that used a limit shared beyond MaxKeys
	Forgotten  uint64 // keys forgotten since they owed nothing
	Keys       int    // keys remembered
	Paused     int    // keys paused, or whose pause is not noticed to be over
	MaxKeys    int

	// Of bulkheads alone.
	InFlight  int    // slots taken
	Waiting   int    // calls that wait for some
	Unmatched uint64 // slots given back that nobody had taken: above 0, a caller has a bug
}

// Stats reads the counters. Those of a nil *Keyed are zero.
func (k *Keyed[K]) Stats() KeyedStats {
	if k == nil {
		return KeyedStats{}
	}
	s := KeyedStats{
		Admitted:  k.counts.Sum(countAdmitted),
		Refused:   k.counts.Sum(countRefused),
		Cancelled: k.counts.Sum(countCancelled),
		MaxKeys:   int(k.places.most.Load()),
	}
	k.each.count(&s)
	return s
}

func (k *keyedRate[K, S]) count(sum *KeyedStats) {
	sum.Paused = int(k.pauses.Load())
	for i := range len(k.shards) + 1 {
		s := &k.shared
		if i < len(k.shards) {
			s = &k.shards[i]
		}
		s.mu.Lock()
		sum.Admitted += s.admitted
		sum.Refused += s.refused
		sum.Overflowed += s.overflowed
		sum.Forgotten += s.forgotten
		sum.Keys += int(s.keys)
		s.mu.Unlock()
	}
}

// Name is the configured name.
func (k *Keyed[K]) Name() string {
	if k == nil {
		return ""
	}
	return k.name
}

// Inspect reports the limiter as it is now, and no key.
func (k *Keyed[K]) Inspect() core.Report {
	if k == nil {
		return core.Report{Kind: "keyed_limit"}
	}
	k.mu.Lock()
	cfg := k.cfg
	k.mu.Unlock()
	settings := cfg.Limit.settings("")
	for _, plan := range slices.Sorted(maps.Keys(cfg.Plans)) {
		settings = append(settings, cfg.Plans[plan].settings("Plans["+plan+"].")...)
	}
	s := k.Stats()
	return core.Report{
		Kind: "keyed_limit", Name: k.name, Since: k.since,
		Values: append(callValues(s.Admitted, s.Refused),
			core.Amount("surgewall.rate_limiting.key.count", "{key}", int64(s.Keys)),
			core.Count("surgewall.rate_limiting.key.overflows", "{call}", s.Overflowed),
			core.Count("surgewall.rate_limiting.key.forgotten", "{key}", s.Forgotten)),
		Settings: append(settings, core.Setting{Name: "MaxKeys", Value: cfg.MaxKeys}),
	}
}
