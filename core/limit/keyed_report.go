package limit

import "github.com/surgewall/surgewall/core"

// KeyedStats is a Keyed at one moment.
type KeyedStats struct {
	Admitted   uint64 // calls admitted
	Refused    uint64 // calls refused, for whatever reason
	Cancelled  uint64 // calls admitted whose permit was cancelled
	Overflowed uint64 // calls that used the bucket shared beyond MaxKeys
	Keys       int    // keys remembered
	MaxKeys    int
}

// Stats reads the counters. Those of a nil *Keyed are zero.
func (k *Keyed[K]) Stats() KeyedStats {
	if k == nil {
		return KeyedStats{}
	}
	return KeyedStats{
		Admitted:   k.counts.Sum(countAdmitted),
		Refused:    k.counts.Sum(countRefused),
		Cancelled:  k.counts.Sum(countCancelled),
		Overflowed: k.overflowed.Load(),
		Keys:       int(min(k.keys.Load(), int64(k.maxKeys))),
		MaxKeys:    k.maxKeys,
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
	s := k.Stats()
	return core.Report{
		Kind: "keyed_limit", Name: k.name, Since: k.since,
		Values: append(callValues(s.Admitted, s.Refused),
			core.Amount("surgewall.rate_limiting.key.count", "{key}", int64(s.Keys)),
			core.Count("surgewall.rate_limiting.key.overflows", "{call}", s.Overflowed)),
		Settings: []core.Setting{
			{Name: "Rate", Value: k.limit.Rate},
			{Name: "Burst", Value: k.limit.Burst},
			{Name: "MaxWait", Value: k.limit.MaxWait},
			{Name: "MaxKeys", Value: k.maxKeys},
		},
	}
}
