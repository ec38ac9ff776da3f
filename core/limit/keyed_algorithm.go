package limit

import (
	"time"

	"github.com/surgewall/surgewall/core"
)

// Algorithm is what Keyed gives to each key: a TokenBucketConfig,
// LeakyBucketConfig, SlidingWindowConfig, SlidingLogConfig or ConcurrencyConfig,
// without Name and Observer. The set is closed.
type Algorithm interface {
	// perKey checks the settings, as those of a field with that name, and
	// returns them with their defaults.
	perKey(p *core.Problems, field string) Algorithm

	// pace: about n calls in every per are admitted.
	pace() (n int, per time.Duration)

	maxWait() time.Duration

	settings(prefix string) []core.Setting
}

// kind is which algorithm an Algorithm is.
type kind uint8

const (
	noAlgorithm kind = iota
	tokenBuckets
	leakyBuckets
	slidingWindows
	slidingLogs
	bulkheads
)

// kindOf is noAlgorithm for nil and for pointers, which are Algorithms for the
// compiler.
func kindOf(a Algorithm) kind {
	switch a.(type) {
	case TokenBucketConfig:
		return tokenBuckets
	case LeakyBucketConfig:
		return leakyBuckets
	case SlidingWindowConfig:
		return slidingWindows
	case SlidingLogConfig:
		return slidingLogs
	case ConcurrencyConfig:
		return bulkheads
	default:
		return noAlgorithm
	}
}

// unnamed checks what is Keyed's to say.
func unnamed(p *core.Problems, field, name string, o core.Observer) {
	p.If(name != "", field+".Name", name, "must be empty: the name is KeyedConfig's")
	p.If(o != nil, field+".Observer", nil, "must be nil: the observer is KeyedConfig's")
}

func (cfg TokenBucketConfig) perKey(p *core.Problems, field string) Algorithm {
	unnamed(p, field, cfg.Name, cfg.Observer)
	cfg.check(p, field+".")
	return cfg.withDefaults()
}

func (cfg TokenBucketConfig) pace() (n int, per time.Duration) { return cfg.Rate.Tokens, cfg.Rate.Per }
func (cfg TokenBucketConfig) maxWait() time.Duration           { return cfg.MaxWait }

func (cfg TokenBucketConfig) settings(prefix string) []core.Setting {
	return []core.Setting{
		{Name: prefix + "Rate", Value: cfg.Rate},
		{Name: prefix + "Burst", Value: cfg.Burst},
		{Name: prefix + "MaxWait", Value: cfg.MaxWait},
	}
}

func (cfg LeakyBucketConfig) perKey(p *core.Problems, field string) Algorithm {
	unnamed(p, field, cfg.Name, cfg.Observer)
	cfg.check(p, field+".")
	cfg.Capacity = cfg.tokenBucket().Burst
	return cfg
}

func (cfg LeakyBucketConfig) pace() (n int, per time.Duration) { return cfg.Rate.Tokens, cfg.Rate.Per }
func (cfg LeakyBucketConfig) maxWait() time.Duration           { return cfg.MaxWait }

func (cfg LeakyBucketConfig) settings(prefix string) []core.Setting {
	return []core.Setting{
		{Name: prefix + "Rate", Value: cfg.Rate},
		{Name: prefix + "Capacity", Value: cfg.Capacity},
		{Name: prefix + "MaxWait", Value: cfg.MaxWait},
	}
}

// bucketLawOf is the law of either bucket.
func bucketLawOf(a Algorithm) law[bucketState] {
	switch cfg := a.(type) {
	case TokenBucketConfig:
		return &bucketLaw{gcra: newGCRA(cfg.Rate, cfg.Burst)}
	case LeakyBucketConfig:
		return &bucketLaw{gcra: newGCRA(cfg.Rate, cfg.Capacity), shaped: true}
	}
	return nil
}

func (cfg ConcurrencyConfig) perKey(p *core.Problems, field string) Algorithm {
	unnamed(p, field, cfg.Name, cfg.Observer)
	cfg.check(p, field+".")
	return cfg.withDefaults()
}

func (cfg ConcurrencyConfig) pace() (n int, per time.Duration) { return 1, day }
func (cfg ConcurrencyConfig) maxWait() time.Duration           { return cfg.MaxWait }

func (cfg ConcurrencyConfig) settings(prefix string) []core.Setting {
	return []core.Setting{
		{Name: prefix + "Limit", Value: cfg.Limit},
		{Name: prefix + "MaxWait", Value: cfg.MaxWait},
		{Name: prefix + "MaxWaiters", Value: cfg.MaxWaiters},
	}
}
