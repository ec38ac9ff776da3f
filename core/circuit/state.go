package circuit

import "github.com/surgewall/surgewall/core"

// State is what a Breaker does with calls.
type State uint8

const (
	// Closed: every call is admitted.
	Closed State = iota
	// Open: every call is refused, for a time.
	Open
	// HalfOpen: a few calls are admitted, as probes.
	HalfOpen
)

func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case Open:
		return "open"
	case HalfOpen:
		return "half_open"
	default:
		return "unknown"
	}
}

// A word is the breaker's state and its generation, which grows by one with
// each change of state: everything that Acquire needs while the breaker is
// closed. A permit remembers the word that it was admitted under, and its
// result changes something only while that is still the breaker's.
type word uint64

const stateBits = 8

func makeWord(generation uint64, s State) word { return word(generation<<stateBits | uint64(s)) }

func (w word) state() State       { return State(w & (1<<stateBits - 1)) }
func (w word) generation() uint64 { return uint64(w >> stateBits) }

// A run is the number of failures in a row, with the generation that they
// belong to: one word, so that a failure of one generation can neither be lost
// to nor counted in the next.
type run uint64

const runBits = 16 // room for maxThreshold and for the failures that race past it

func makeRun(generation uint64, failures int) run {
	return run(generation<<runBits | uint64(min(failures, 1<<runBits-1)))
}

func (r run) failures() int { return int(r & (1<<runBits - 1)) }

// of reports whether r belongs to the generation of w.
func (r run) of(w word) bool {
	return uint64(r>>runBits) == w.generation()<<runBits>>runBits
}

// counted is the index of an outcome's counter.
func counted(o core.Outcome) int {
	switch o {
	case core.Success:
		return countSuccess
	case core.Failure:
		return countFailure
	case core.Throttled:
		return countThrottled
	default:
		return countIgnored
	}
}

const (
	countSuccess = iota
	countFailure
	countThrottled
	countIgnored
	countOpen   // refused with ErrOpen
	countProbes // refused with ErrProbesTaken
)
