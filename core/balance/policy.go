package balance

import (
	"math/rand/v2"
	"sync/atomic"
)

// Policy decides which backend a call goes to. The policies are those of this
// package; a value of one serves any number of balancers.
type Policy interface {
	// String is the policy's name in reports.
	String() string

	// table is the choice among the eligible, who may be none. old is the table
	// of the snapshot before, of the same policy, or nil: a policy that keeps
	// its place takes it from there.
	table(eligible []candidate, old table) table
}

// candidate is a backend that may be picked, as a policy sees it.
type candidate struct {
	*node
	weight uint64 // at least 1
}

// table is a policy's choice among the eligible of one snapshot. It is safe for
// concurrent use.
type table interface {
	// next is the index of the backend to ask next. a holds those that this
	// pick has asked already, nil at first; next returns none of these, and -1
	// when nothing is left. All calls of one pick together take O(n) steps.
	next(a *asked) int
}

// RoundRobin gives the backends a call each in turn. It begins at a random one,
// so that many programs which start together do not all begin with the first.
//
// The turn counts over the backends that can be picked only: what is unhealthy,
// or refuses, uses up its turns, so each of the others gets the same number of
// calls, exactly. Weights have no say. Source: round-robin scheduling, with one
// counter in place of a queue.
func RoundRobin() Policy { return roundRobin{} }

type roundRobin struct{}

func (roundRobin) String() string { return "round_robin" }

func (roundRobin) table(eligible []candidate, old table) table {
	t := &turns{n: len(eligible)}
	if before, ok := old.(*turns); ok {
		t.turn = before.turn
	} else {
		t.turn = new(turn)
		t.turn.count.Store(uint64(rand.Uint32()))
	}
	return t
}

type turns struct {
	n    int
	turn *turn
}

// turn is the counter that all snapshots share, on cache lines of its own.
type turn struct {
	_     [128]byte
	count atomic.Uint64 // 64 bits: a narrower one would skip turns as it wraps
	_     [128]byte
}

// next draws the next turn. When the backend whose turn it is cannot take the
// call, the pick draws another: the turn of a backend that is down is thus
// spent, and does not fall to its neighbour. Calls that draw at the same time
// may leave a pick without the one turn that would have served it, so after n
// draws it asks the remaining backends in order.
func (t *turns) next(a *asked) int {
	if t.n == 0 {
		return -1
	}
	if a == nil {
		return t.draw()
	}
	for a.draws < t.n {
		a.draws++
		if i := t.draw(); !a.has(i) {
			return i
		}
	}
	return a.walk()
}

func (t *turns) draw() int {
	return int(t.turn.count.Add(1) % uint64(t.n))
}

// asked is the set of backends that one pick has asked, by their index among
// the eligible. Only a pick whose first choice said no has one.
type asked struct {
	bits  []uint64
	n     int // the eligible
	draws int // taken by the policy
	first int // where walk begins
	steps int // taken by walk
}

func (a *asked) reset(n, first int) {
	words := (n + 63) / 64
	if cap(a.bits) < words {
		a.bits = make([]uint64, words)
	}
	a.bits = a.bits[:words]
	clear(a.bits)
	a.n, a.draws, a.first, a.steps = n, 0, first, 0
}

func (a *asked) add(i int)      { a.bits[i/64] |= 1 << (i % 64) }
func (a *asked) has(i int) bool { return a.bits[i/64]&(1<<(i%64)) != 0 }

// walk is the next backend in order that was not asked, or -1 after one round.
func (a *asked) walk() int {
	for a.steps < a.n {
		i := (a.first + a.steps) % a.n
		a.steps++
		if !a.has(i) {
			return i
		}
	}
	return -1
}
