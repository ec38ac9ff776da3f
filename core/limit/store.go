package limit

import (
	"hash/maphash"
	"math/bits"
	"sync/atomic"
)

// table remembers a state S for each of some keys. It is a hash table with
// chains that grows by linear hashing (W. Litwin, "Linear hashing: a new tool for
// file and table addressing", VLDB 1980): a key that comes splits one bucket, and
// for each that goes one or two are merged. So memory follows the number of keys,
// up and down, and no call ever waits for the table to be copied. A key costs its
// cell and a pointer to it, at most a quarter of a pointer more.
//
// Whoever calls holds the lock that guards the table, and gives the hash of a key
// with it, by one seed for all keys: nobody outside can choose keys that share a
// bucket. Keys are compared whole. The zero table is empty.
type table[K comparable, S, H any] struct {
	buckets uint32
	keys    uint32
	dir     [][]*cell[K, S, H] // the chains, in segments
	hand    uint32             // the bucket that the next sweep begins with
	fixed   bool               // no buckets are merged
}

// cell is what is remembered of one key. For a string and a state of 16 bytes it
// takes 48, which is one of the sizes that Go allocates.
//
// It is never used again for another key: whoever holds one, as a permit does,
// holds what it was charged to, even after the key is gone.
type cell[K comparable, S, H any] struct {
	home  *H             // never changes
	next  *cell[K, S, H] // in the bucket; or see replace
	state S
	key   K
}

const (
	shardBits = 8 // the lowest bits of a hash choose the shard, and no bucket
	maxShards = 1 << shardBits

	// A new key makes room in its own shard first, so there are no more shards
	// than have this many keys each at the cap.
	keysPerShard = 32

	segmentBits = 7 // buckets come in segments of 2^7, of 1 KiB
	segmentSize = 1 << segmentBits

	sweepStep = 4  // buckets and cells that a sweep looks at, but for idle ones
	sweepMost = 32 // the idle cells that it removes at most, or a few more
)

// shardsFor is the number of tables that so many keys are spread over, a power of
// two.
func shardsFor(maxKeys int) int {
	n := 1
	for n < maxShards && maxKeys/keysPerShard >= 2*n {
		n *= 2
	}
	return n
}

// places counts the keys of several tables. It is safe for concurrent use.
type places struct {
	_     [128]byte // it is written, what is around it is read
	taken atomic.Int64
	most  atomic.Int64
	_     [112]byte
}

// take takes a place for one more key, if there is one.
func (p *places) take() bool {
	if p.taken.Add(1) <= p.most.Load() {
		return true
	}
	p.taken.Add(-1)
	return false
}

// plenty reports whether there are places left, and not only a few.
func (p *places) plenty() bool {
	n := p.taken.Load()
	return n+n/8 < p.most.Load()
}

// find is the cell of key, whose hash is h, or nil.
func (t *table[K, S, H]) find(h uint64, key K) *cell[K, S, H] {
	if t.buckets == 0 {
		return nil
	}
	c := *t.bucket(t.place(h))
	for c != nil && c.key != key {
		c = c.next
	}
	return c
}

// add makes the cell of a key that find does not find.
func (t *table[K, S, H]) add(seed maphash.Seed, h uint64, key K, home *H) *cell[K, S, H] {
	t.keys++
	if t.keys > t.buckets {
		t.split(seed)
	}
	b := t.bucket(t.place(h))
	c := &cell[K, S, H]{home: home, next: *b, key: key}
	*b = c
	return c
}

// replace puts a new cell in the place of c, which find found, and returns it.
// The state is c's. From then on c.next is the cell that came after c.
func (t *table[K, S, H]) replace(h uint64, c *cell[K, S, H], home *H) *cell[K, S, H] {
	d := &cell[K, S, H]{home: home, next: c.next, state: c.state, key: c.key}
	p := t.bucket(t.place(h))
	for *p != c {
		p = &(*p).next
	}
	*p, c.next = d, d
	return d
}

// remove takes c out, whose key has that hash, if it is in.
func (t *table[K, S, H]) remove(h uint64, c *cell[K, S, H]) {
	if t.buckets == 0 {
		return
	}
	p := t.bucket(t.place(h))
	for *p != nil && *p != c {
		p = &(*p).next
	}
	if *p == nil {
		return
	}
	*p, c.next = c.next, nil
	t.keys--
	t.shrink(1)
}

// place is the bucket of a hash. There are 2^l to 2^(l+1)-1 buckets, and each of
// those from 2^l on holds what was split off the one 2^l below it.
func (t *table[K, S, H]) place(h uint64) uint32 {
	l := bits.Len32(t.buckets) & 31
	i := uint32(h>>shardBits) & (1<<l - 1)
	if i >= t.buckets {
		i &= (1<<l - 1) >> 1
	}
	return i
}

// below is the bucket that bucket i was split off: i without its highest bit. i
// is above 0.
func below(i uint32) uint32 { return i &^ (1 << (bits.Len32(i) - 1)) }

func (t *table[K, S, H]) bucket(i uint32) **cell[K, S, H] {
	return &t.dir[i>>segmentBits][i&(segmentSize-1)]
}

// split makes one more bucket, of half of what is in another.
func (t *table[K, S, H]) split(seed maphash.Seed) {
	i := t.buckets
	t.grow(i)
	t.buckets++
	if i == 0 {
		return
	}
	low, high := t.bucket(below(i)), t.bucket(i)
	for c := *low; c != nil; c = *low {
		if t.place(maphash.Comparable(seed, c.key)) != i {
			low = &c.next
			continue
		}
		*low, c.next, *high = c.next, *high, c
	}
}

// grow makes room for bucket i. The first segment comes in parts, so that a table
// of few keys is small.
func (t *table[K, S, H]) grow(i uint32) {
	switch {
	case i == 0:
		t.dir = [][]*cell[K, S, H]{make([]*cell[K, S, H], 4)}
	case i < segmentSize:
		if i == uint32(len(t.dir[0])) {
			first := make([]*cell[K, S, H], 2*i)
			copy(first, t.dir[0])
			t.dir[0] = first
		}
	case i>>segmentBits == uint32(len(t.dir)):
		t.dir = append(t.dir, make([]*cell[K, S, H], segmentSize))
	}
}

// merge undoes the last split.
func (t *table[K, S, H]) merge() {
	i := t.buckets - 1
	high, low := t.bucket(i), t.bucket(below(i))
	end := low
	for *end != nil {
		end = &(*end).next
	}
	*end, *high = *high, nil
	t.buckets--
	if i%segmentSize == 0 {
		t.dir[i>>segmentBits] = nil
		t.dir = t.dir[:i>>segmentBits]
	}
}

// sweep looks at a few cells, the next in turn, and removes those that are idle;
// it goes on while it finds some, up to a bound. It returns how many it removed.
func (t *table[K, S, H]) sweep(idle func(*cell[K, S, H]) bool) (removed int) {
	looks := sweepStep
	for looks > 0 && removed < sweepMost && t.keys > 0 {
		if t.hand >= t.buckets {
			t.hand = 0
		}
		p := t.bucket(t.hand)
		if *p == nil {
			looks--
		}
		for c := *p; c != nil; c = *p {
			if !idle(c) {
				p = &c.next
				looks--
				continue
			}
			*p, c.next = c.next, nil
			t.keys--
			removed++
			looks++
		}
		t.hand++
	}
	t.shrink(removed)
	return removed
}

// shrink merges buckets after so many keys have gone: only when there are a
// quarter more buckets than keys, so that a key which comes and goes does not
// split and merge each time.
func (t *table[K, S, H]) shrink(removed int) {
	for range 2 * removed {
		if t.fixed || uint64(t.buckets) <= uint64(t.keys)+uint64(t.keys/4)+4 {
			return
		}
		t.merge()
	}
}
