package limit

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
)

// KeyedConfig configures NewKeyed.
type KeyedConfig[K comparable] struct {
	// Name is the name in rejections, events and reports. Default: "keyed".
	Name string

	// Limit is the limit of each key: the Config of one of the algorithms,
	// without Name and Observer. Required.
	Limit Algorithm

	// Plans are limits for some of the keys, by the name of the plan: the free
	// and the paid one. They are of the same algorithm as Limit.
	// Default: none.
	Plans map[string]Algorithm

	// Plan is the name of a key's plan. For "", and for a name that is not in
	// Plans, it is Limit. It is asked in each call, before anything is locked,
	// so it should be quick: a look-up in a map. When its answer changes, the
	// key still owes what it owed, in tokens.
	// Required if there are Plans.
	Plan func(key K) string

	// MaxKeys is how many keys are remembered at most. Beyond it, keys that
	// are not known share one limit (one for each plan), of the same size,
	// until known ones that owe nothing any more are found. Default: 100,000.
	MaxKeys int

	// Observer hears core.KindRejected for each refusal, core.KindPaused and
	// core.KindReconfigured. It never hears a key. Default: none.
	Observer core.Observer
}

const defaultMaxKeys = 100_000

// Keyed is a limit for each key: for each client, tenant or address. A key
// that was never seen has a limit never used.
//
// Its memory is bounded, and follows the number of keys that are of interest:
// for a bucket, a key takes at most 58 bytes, its string header included, and
// what is not limited any more goes. A key that owes nothing is as good as none,
// so it may be forgotten; one that still limits never is, whatever keys come: a
// flood of new keys cannot push out the debt of an old one. Now and then a call
// looks at a few others' keys, so that no call waits for a sweep and no goroutine
// runs.
//
// Of bulkheads, a key has as many slots as its limit, exactly; beyond MaxKeys it
// takes a slot of a pool of that size too, which such keys share. The slots of
// Allow, Take and Wait are given back by Refund, those of a permit by the permit.
// Reserve is refused, since nobody knows when a slot comes free, and Charge and
// Pause do nothing.
//
// It is safe for concurrent use, a core.KeyedGuard and core.Component, and needs
// no Close. A nil *Keyed is no limit.
//
// A key is compared and hashed as a map does it: one that is an interface with
// something in it that cannot be compared panics, and NaN, which is not equal to
// itself, is always among the keys that share a limit.
type Keyed[K comparable] struct {
	*keyedBase[K]
	each perKey[K]
}

// keyedBase is what a Keyed has whatever its algorithm.
type keyedBase[K comparable] struct {
	limiter
	kind   kind
	seed   maphash.Seed
	mask   uint64 // the number of shards, a power of two, less 1
	plan   atomic.Pointer[func(K) string]
	waits  atomic.Bool // a limit has a MaxWait
	places places

	mu  sync.Mutex     // one change of settings at a time
	cfg KeyedConfig[K] // those in force; guarded by mu
}

// perKey is the verbs for a key, n being at least 1; the others are Keyed's.
type perKey[K comparable] interface {
	allow(key K, n int) bool
	take(key K, n int) Decision
	peek(key K, n int) Decision // of any n
	reserve(key K, n int, maxWait time.Duration) (Reservation, error)
	acquire(ctx context.Context, key K, n int) (core.Permit, error)
	wait(ctx context.Context, key K, n int) error
	charge(key K, n int)
	refund(key K, n int)
	pause(key K, until int64) bool
	reconfigure(cfg KeyedConfig[K])
	count(s *KeyedStats)
}

// NewKeyed makes a limit for each key. The error lists every bad field of cfg;
// errors.Is(err, core.ErrConfig).
func NewKeyed[K comparable](cfg KeyedConfig[K]) (*Keyed[K], error) {
	p := core.Check("limit.KeyedConfig")
	cfg = cfg.checked(p)
	if err := p.Err(); err != nil {
		return nil, err
	}
	b := &keyedBase[K]{kind: kindOf(cfg.Limit), seed: maphash.MakeSeed(), mask: uint64(shardsFor(cfg.MaxKeys) - 1)}
	b.limiter.init(cfg.Name, cfg.Observer)
	b.keep(cfg.MaxKeys)
	b.adopt(cfg)
	k := &Keyed[K]{keyedBase: b}
	switch b.kind {
	case bulkheads:
		k.each = newKeyedSlots(b)
	case slidingWindows:
		k.each = newKeyedRate(b, windowLawOf)
	case slidingLogs:
		k.each = newKeyedRate(b, logLawOf)
	default:
		k.each = newKeyedRate(b, bucketLawOf)
	}
	return k, nil
}

// checked is cfg with its defaults, and a copy of what it refers to.
func (cfg KeyedConfig[K]) checked(p *core.Problems) KeyedConfig[K] {
	if cfg.Name == "" {
		cfg.Name = "keyed"
	}
	if cfg.MaxKeys == 0 {
		cfg.MaxKeys = defaultMaxKeys
	}
	p.If(cfg.MaxKeys < 0 || int64(cfg.MaxKeys) > maxMaxKeys, "MaxKeys", cfg.MaxKeys, "must be 0 to 2147483647")
	p.If(cfg.Limit == nil, "Limit", nil, "must be set")
	kind := kindOf(cfg.Limit)
	p.If(cfg.Limit != nil && kind == noAlgorithm, "Limit", nil, "must be the Config of an algorithm, and no pointer to it")
	if kind != noAlgorithm {
		cfg.Limit = cfg.Limit.perKey(p, "Limit")
	}
	plans := make(map[string]Algorithm, len(cfg.Plans))
	for name, a := range cfg.Plans {
		field := "Plans[" + name + "]"
		p.If(name == "", field, nil, "must have a name: without one it is Limit")
		switch kindOf(a) {
		case noAlgorithm:
			p.If(true, field, nil, "must be the Config of an algorithm, and no pointer to it")
			continue
		case kind:
		default:
			p.If(kind != noAlgorithm, field, nil, "must be of the same algorithm as Limit")
		}
		plans[name] = a.perKey(p, field)
	}
	p.If(len(cfg.Plans) > 0 && cfg.Plan == nil, "Plan", nil, "must be set if there are Plans")
	cfg.Plans = plans
	return cfg
}

const maxMaxKeys = 1<<31 - 1

// adopt makes the settings of cfg those in force that are not the algorithm's.
func (b *keyedBase[K]) adopt(cfg KeyedConfig[K]) {
	b.cfg = cfg
	b.places.most.Store(int64(cfg.MaxKeys))
	var plan *func(K) string
	if cfg.Plan != nil {
		plan = &cfg.Plan
	}
	b.plan.Store(plan) // once: no call finds none in between
	n, per := cfg.Limit.pace()
	waits := cfg.Limit.maxWait() > 0
	for _, a := range cfg.Plans {
		waits = waits || a.maxWait() > 0
		if n1, per1 := a.pace(); per1/time.Duration(n1) < per/time.Duration(n) {
			n, per = n1, per1
		}
	}
	b.waits.Store(waits)
	b.setRound(n, per)
}

// planOf asks for the plan of key. The caller has nothing locked.
func (b *keyedBase[K]) planOf(key K) string {
	if plan := b.plan.Load(); plan != nil {
		return (*plan)(key)
	}
	return ""
}

// Allow takes one token of key if there is one, and reports whether it did.
func (k *Keyed[K]) Allow(key K) bool { return k.AllowN(key, 1) }

// AllowN takes n tokens of key if there are as many, and reports whether it did;
// it never takes a part. It is false for a negative n and for one above the
// limit, and true for 0.
func (k *Keyed[K]) AllowN(key K, n int) bool {
	if k == nil {
		return n >= 0
	}
	if n <= 0 {
		return n == 0 || k.malformed(context.Background(), n) == nil
	}
	return k.each.allow(key, n)
}

// Take is AllowN that also says what is left. Its Policy is the name of the
// key's plan, or the limiter's own.
func (k *Keyed[K]) Take(key K, n int) Decision {
	if k == nil {
		return unlimited(n)
	}
	if n <= 0 {
		if n < 0 {
			_ = k.malformed(context.Background(), n)
		}
		return k.each.peek(key, n)
	}
	return k.each.take(key, n)
}

// Peek is what Take would say, without taking anything: Peek(key, 0) is how
// things stand.
func (k *Keyed[K]) Peek(key K, n int) Decision {
	if k == nil {
		return unlimited(n)
	}
	return k.each.peek(key, n)
}

// Reserve takes n tokens of key that are there within maxWait, after those who
// asked before, and does not wait: the Reservation says for how long to. The
// errors are those of Wait.
func (k *Keyed[K]) Reserve(key K, n int, maxWait time.Duration) (Reservation, error) {
	switch {
	case k == nil:
		return Reservation{}, malformed(n)
	case n < 0:
		return Reservation{}, k.malformed(context.Background(), n)
	case n == 0:
		return Reservation{}, nil
	}
	return k.each.reserve(key, n, maxWait)
}

// Wait takes n tokens of key as soon as there are as many, after those who asked
// before, as TokenBucket's or the other algorithm's Wait does. The errors are
// the same.
func (k *Keyed[K]) Wait(ctx context.Context, key K, n int) error {
	switch {
	case k == nil:
		return waitForNothing(ctx, n)
	case n < 0:
		return k.malformed(ctx, n)
	case n == 0:
		if err := ctx.Err(); err != nil {
			return k.refuse(ctx, k.ended(err), n)
		}
		return nil
	}
	return k.each.wait(ctx, key, n)
}

// AcquireKey is Acquire, of the algorithm, for the limit of key. What a permit
// gives back goes where it was taken, even if the key was forgotten meanwhile;
// what it charges beyond that goes to what the key has now.
func (k *Keyed[K]) AcquireKey(ctx context.Context, key K, call core.Call) (core.Permit, error) {
	n := call.Weight()
	switch {
	case k == nil:
		return core.Permit{}, malformed(n)
	case n < 0:
		return core.Permit{}, k.malformed(ctx, n)
	}
	return k.each.acquire(ctx, key, n)
}

// Charge takes n tokens of key whether they are there or not: for a cost that is
// known only afterwards.
func (k *Keyed[K]) Charge(key K, n int) {
	if k != nil && n > 0 {
		k.each.charge(key, n)
	}
}

// Refund gives n tokens of key back, which then count as not taken; never more
// than its limit. Where there is a permit, its Result.Cost says more precisely
// what is due. What a key took beyond MaxKeys, and so from a limit that it
// shares, comes back by a permit alone.
func (k *Keyed[K]) Refund(key K, n int) {
	if k != nil && n > 0 {
		k.each.refund(key, n)
	}
}

// Pause stops the limit of key: until then none of its calls is admitted, and
// those that wait, wait so much longer. Time stands still for it. A later Pause
// of the key replaces an earlier one: a time that is past ends the pause. A
// pause outlives what is remembered of the key. There are at most MaxKeys of
// them, and one beyond that has no effect: KeyedStats.Paused says how many there
// are, those included that are over and were not noticed yet. After a pause, a
// sliding window gives nothing back of what the key had taken before it.
func (k *Keyed[K]) Pause(key K, until time.Time) {
	if k != nil && k.each.pause(key, k.reading(until)) {
		k.tellChange(core.KindPaused, max(0, time.Until(until)))
	}
}

// Reconfigure changes Limit, Plans, Plan and MaxKeys, while calls go on. What a
// key owes it still owes, in tokens, and those who wait are given their new
// turns. The algorithm, Name and Observer stay as they are. Where there are more
// keys than MaxKeys now, none goes that still limits. If cfg is bad, nothing
// changes.
func (k *Keyed[K]) Reconfigure(cfg KeyedConfig[K]) error {
	p := core.Check("limit.KeyedConfig")
	cfg = cfg.checked(p)
	if k != nil {
		kind := kindOf(cfg.Limit)
		p.If(kind != noAlgorithm && kind != k.kind, "Limit", nil, "must be of the same algorithm as before")
	}
	if err := p.Err(); err != nil || k == nil {
		return err
	}
	k.mu.Lock()
	cfg.Name, cfg.Observer = k.cfg.Name, k.cfg.Observer
	k.adopt(cfg)
	k.each.reconfigure(cfg)
	k.mu.Unlock()
	k.tellChange(core.KindReconfigured, 0)
	return nil
}

// malformed is the refusal of a negative cost.
func (b *keyedBase[K]) malformed(ctx context.Context, n int) error {
	return b.refuse(ctx, b.misfit(n, 0), n)
}
