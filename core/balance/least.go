package balance

import (
	"math/bits"
	"math/rand/v2"
	"slices"
)

// LeastInFlight gives each call to the backend that has the fewest calls in
// flight for its weight: the one where (in flight + 1) / weight is least, which
// counts the call itself. A slow backend gets fewer calls so, and one that has
// stopped answering gets none once the others are as full. In flight is what
// this Balancer has picked and what is not finished, from Pick on: a Lease that
// waits for something, for a connection say, counts.
//
// Up to 8 backends are all compared, and of those that are equal one is taken at
// random. Of more, two are drawn at random, by their weights, and the better
// of these is taken: that balances nearly as well, and calls which pick at the
// same time do not all find the same one best. Where all are compared they may:
// as many as there are processors.
//
// While the backends are idle, those with the greatest weight are best: few
// calls at a time go to these alone. A backend that fails fast looks idle, so
// give it a Guard, such as a circuit breaker.
//
// Sources: "shortest expected delay" of the Linux Virtual Server; M. Mitzenmacher,
// "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS, 2001.
func LeastInFlight() Policy { return leastInFlight{} }

type leastInFlight struct{}

func (leastInFlight) String() string { return "least_in_flight" }

func (leastInFlight) table(eligible []candidate, _ table) table {
	if len(eligible) <= maxCompared {
		return leastOfAll(eligible)
	}
	t := &leastOfTwo{candidates: eligible, sums: make([]uint64, len(eligible))}
	for i, c := range eligible {
		t.total += c.weight
		t.sums[i] = t.total
	}
	return t
}

// maxCompared is up to how many backends are all compared: with more, that costs
// more than to draw two.
const maxCompared = 8

// leastOfAll compares all that were not asked. They are at most maxCompared, so
// that a pick which asks each in turn still does so in bounded time.
type leastOfAll []candidate

func (t leastOfAll) next(a *asked) int {
	var best burden
	var equals uint8 // a bit for each that is as good as best
	for i, c := range t {
		if a != nil && a.has(i) {
			continue
		}
		b := burdenOf(c)
		switch {
		case equals == 0 || b.less(best):
			best, equals = b, 1<<i
		case !best.less(b):
			equals |= 1 << i
		}
	}
	if equals == 0 {
		return -1
	}
	if n := bits.OnesCount8(equals); n > 1 {
		for range rand.IntN(n) {
			equals &= equals - 1 // without the lowest
		}
	}
	return bits.TrailingZeros8(equals)
}

// leastOfTwo compares two drawn at random, each as likely as its weight is
// great: were all as likely, a heavy one could not get its share.
type leastOfTwo struct {
	candidates []candidate
	sums       []uint64 // of the weights up to and with each candidate
	total      uint64
}

// next draws anew when what was drawn cannot take the call, and after n draws
// asks what is left in order, as turns.next does.
func (t *leastOfTwo) next(a *asked) int {
	if a == nil {
		i := t.at(rand.Uint64N(t.total))
		return t.lesser(i, t.other(i))
	}
	first := -1
	for a.draws < len(t.candidates) {
		a.draws++
		i := t.at(rand.Uint64N(t.total))
		switch {
		case a.has(i) || i == first:
		case first < 0:
			first = i
		default:
			return t.lesser(first, i)
		}
	}
	if first >= 0 {
		return first
	}
	return a.walk()
}

// at is whose part of the sum of all weights x is in.
func (t *leastOfTwo) at(x uint64) int {
	i, _ := slices.BinarySearch(t.sums, x+1)
	return i
}

// other draws from all but i.
func (t *leastOfTwo) other(i int) int {
	weight := t.candidates[i].weight
	x := rand.Uint64N(t.total - weight)
	if x >= t.sums[i]-weight {
		x += weight
	}
	return t.at(x)
}

// lesser is which of two that were drawn is better, the first if they are equal.
func (t *leastOfTwo) lesser(i, j int) int {
	if burdenOf(t.candidates[j]).less(burdenOf(t.candidates[i])) {
		return j
	}
	return i
}

// burden is what a backend would bear with one more call.
type burden struct{ calls, weight uint64 }

func burdenOf(c candidate) burden { return burden{uint64(c.inFlight()) + 1, c.weight} }

// less compares calls/weight without a division. It does not overflow: there are
// no 2^44 calls in flight, and a weight is below 2^20.
func (b burden) less(than burden) bool { return b.calls*than.weight < than.calls*b.weight }
