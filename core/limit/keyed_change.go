package limit

import (
	"hash/maphash"

	"github.com/surgewall/surgewall/core"
)

// What a key owes moves to a new cell when its limit changes: when it is
// reconfigured or paused, or when its plan is another. The old cell leads to the
// new one, and the new one's site says what happened between, so whoever holds a
// charge, a permit or a call that waits, finds it again, and it is reckoned as
// if it had been made there.

// update is the cell of a key brought to the rules in force: c, which is in the
// table, or the one after it. The caller holds the lock of s.
func (k *keyedRate[K, S]) update(s *rateShard[K, S], h uint64, c *rateCell[K, S]) *rateCell[K, S] {
	old := c.home.rule
	if old.set == s.set {
		return c
	}
	home := &s.sites[s.rule(old.plan).place]
	if s.paused != nil {
		if resume := s.paused[c.key]; resume > home.at {
			home = &site[K, S]{shard: s, rule: home.rule, at: home.at, paused: resume, till: resume}
		}
	}
	return s.move(h, c, home)
}

// replan is the cell of a key whose plan has that rule: c, which has been
// updated, or the one after it.
func (k *keyedRate[K, S]) replan(s *rateShard[K, S], h uint64, c *rateCell[K, S], r *rule[S]) *rateCell[K, S] {
	if c.home.rule == r {
		return c
	}
	resume := s.paused[c.key]
	s.wake()
	return s.move(h, c, &site[K, S]{shard: s, rule: r, at: s.now, paused: resume, till: resume})
}

// move makes the cell that comes after c.
func (s *rateShard[K, S]) move(h uint64, c *rateCell[K, S], home *site[K, S]) *rateCell[K, S] {
	d := s.replace(h, c, home)
	home.rule.law.convert(&d.state, home.change(c.home))
	return d
}

// change is by what the cells of a site came, if they were at from before.
func (h *site[K, S]) change(from *site[K, S]) change[S] {
	return change[S]{at: h.at, from: from.rule.law, paused: h.paused, till: h.till}
}

// follow is where the charge t, which was made in c, is now, and how it and its
// turn look there. ok is false if that key was forgotten there, so that nothing is
// left of the charge. The caller holds the lock of c's shard.
func (k *keyedRate[K, S]) follow(c *rateCell[K, S], t core.Token, turn int64) (_ *rateCell[K, S], _ core.Token, _ int64, ok bool) {
	s := c.home.shard
	var last *rateCell[K, S]
	if s == &k.shared {
		last = s.spares[s.rule(c.home.rule.plan).place]
	} else {
		h := maphash.Comparable(k.seed, c.key)
		if last = s.find(h, c.key); last != nil {
			last = k.update(s, h, last)
		}
	}
	for ; c != last; c = c.next {
		if c.next == nil {
			return c, t, turn, false
		}
		after := c.next.home
		t, turn = after.rule.law.retime(t, turn, after.change(c.home))
	}
	return c, t, turn, true
}

// wake lets those who wait in s ask for their turns again.
func (s *rateShard[K, S]) wake() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// changes is closed when turns in s may have changed.
func (s *rateShard[K, S]) changes() <-chan struct{} {
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// pausedUntil sets the start of a call of key.
func (k *keyedRate[K, S]) pausedUntil(s *rateShard[K, S], key K) {
	resume, ok := s.paused[key]
	if ok && resume <= s.now {
		k.unpause(s, key)
	}
	s.start = max(s.now, resume)
}

// unpause forgets the pause of key. If rules came during it that the key's cell
// has yet to be brought to, that is done first: by then time stood still.
func (k *keyedRate[K, S]) unpause(s *rateShard[K, S], key K) {
	h := maphash.Comparable(k.seed, key)
	if c := s.find(h, key); c != nil {
		k.update(s, h, c)
	}
	delete(s.paused, key)
	k.pauses.Add(-1)
	if len(s.paused) == 0 {
		s.paused = nil
	}
}

// pause stops the limit of key until the clock reading until, if there is a place
// for one more pause.
func (k *keyedRate[K, S]) pause(key K, until int64) bool {
	if k.pauses.Load() >= k.places.most.Load() {
		for i := range k.shards {
			k.shards[i].mu.Lock()
			k.endPauses(&k.shards[i])
			k.shards[i].mu.Unlock()
		}
	}
	h := maphash.Comparable(k.seed, key)
	s := &k.shards[h&k.mask]
	s.mu.Lock()
	defer s.mu.Unlock()
	k.endPauses(s)
	before, paused := s.paused[key]
	c := s.find(h, key)
	if c != nil {
		c = k.update(s, h, c) // by the pause before
	}
	switch {
	case until <= s.now && !paused:
		return true
	case until <= s.now:
		k.unpause(s, key)
	case !paused && !k.mayPause(key):
		return false
	default:
		if s.paused == nil {
			s.paused = make(map[K]int64)
		}
		s.paused[key] = until
	}
	if c != nil {
		s.move(h, c, &site[K, S]{shard: s, rule: c.home.rule, at: s.now, paused: before, till: until})
		s.wake()
	}
	return true
}

// endPauses forgets a few pauses of s that are over, in no order. The caller holds
// the lock of s.
func (k *keyedRate[K, S]) endPauses(s *rateShard[K, S]) {
	s.time(k.clock.Now())
	looks := sweepStep
	for key, end := range s.paused {
		if looks--; looks < 0 {
			break
		}
		if end <= s.now {
			k.unpause(s, key)
		}
	}
}

// mayPause takes a place for one more pause, if there is one. A key that could
// not be found again has none.
func (k *keyedRate[K, S]) mayPause(key K) bool {
	if key == key && k.pauses.Add(1) <= k.places.most.Load() {
		return true
	}
	if key == key {
		k.pauses.Add(-1)
	}
	return false
}

// reconfigure puts the rules of cfg in force, one shard after another. The cells
// of a shard are brought to them in steps, each under the lock by itself, or by
// a call that comes first; either way as of one clock reading.
func (k *keyedRate[K, S]) reconfigure(cfg KeyedConfig[K]) {
	set := k.rules(cfg)
	o := &k.shared
	o.mu.Lock()
	old := o.spares
	o.time(k.clock.Now())
	o.adopt(set, o.now)
	o.spares = o.newSpares()
	for _, c := range old {
		d := o.spares[o.rule(c.home.rule.plan).place]
		if c.home.rule.plan != d.home.rule.plan {
			continue // its plan is gone
		}
		d.state = c.state
		d.home.rule.law.convert(&d.state, d.home.change(c.home))
		c.next = d
	}
	o.wake()
	o.mu.Unlock()
	for i := range k.shards {
		k.shards[i].renew(set)
	}
}

// renew is reconfigure for one shard.
func (s *rateShard[K, S]) renew(set *ruleset[S]) {
	k := s.owner
	s.mu.Lock()
	s.time(k.clock.Now())
	s.adopt(set, s.now)
	s.fixed = true // no cell comes to where the steps have been
	s.wake()
	s.mu.Unlock()
	for i, done := uint32(0), false; !done; {
		s.mu.Lock()
		for range bucketsPerStep {
			if i >= s.buckets {
				done, s.fixed = true, false
				break
			}
			for c := *s.bucket(i); c != nil; c = c.next {
				if c.home.rule.set != set {
					c = k.update(s, maphash.Comparable(k.seed, c.key), c)
				}
			}
			i++
		}
		s.mu.Unlock()
	}
}

const bucketsPerStep = 64
