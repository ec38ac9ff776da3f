package circuit

import "github.com/surgewall/surgewall/core"

// State is what a Breaker does with calls.
type State uint8

const (
	// Closed: every call is admitted, or, after an outage and with a RampFor, a
	// growing part of them. Results can open the breaker.
	Closed State = iota
	// Open: every call is refused, for a time.
	Open
	// HalfOpen: a few calls are admitted, as probes.
	HalfOpen
	// ForcedOpen: every call is refused, as ForceOpen said.
	ForcedOpen
	// ForcedClosed: every call is admitted, as ForceClosed said. Results are
	// counted and change nothing.
	ForcedClosed
	// Disabled: every call is admitted, as Disable said. Nothing is counted.
	Disabled
	// MetricsOnly: every call is admitted, as MetricsOnly said. Results are
	// counted, and so is how often they would have opened the breaker.
	MetricsOnly
)

func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case Open:
		return "open"
	case HalfOpen:
		return "half_open"
	case ForcedOpen:
		return "forced_open"
	case ForcedClosed:
		return "forced_closed"
	case Disabled:
		return "disabled"
	case MetricsOnly:
		return "metrics_only"
	default:
		return "unknown"
	}
}

// forced reports whether somebody has said so, whatever the results are.
func (s State) forced() bool { return s >= ForcedOpen }

// judges reports whether the conditions look at results.
func (s State) judges() bool { return s == Closed || s == MetricsOnly }

// A word is the breaker's state and its generation, which grows by one with
// each change of state, and flags: everything that Acquire needs while the
// breaker is closed. A permit remembers the word that it was admitted under, and
// its result changes something only while the generation is still the breaker's.
type word uint64

const (
	stateMask      = 1<<3 - 1
	ramping        = 1 << 3 // part of the calls are refused
	timed          = 1 << 4 // a permit has to know when it began
	careful        = 1 << 5 // Acquire has more to do than to admit
	generationBits = 56
)

func makeWord(generation uint64, s State, flags word) word {
	w := word(generation<<(64-generationBits)) | word(s) | flags
	if flags != 0 || s == Open || s == HalfOpen || s == ForcedOpen {
		w |= careful
	}
	return w
}

func (w word) state() State       { return State(w & stateMask) }
func (w word) generation() uint64 { return uint64(w >> (64 - generationBits)) }

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
	countSlow
	countOpen   // refused with ErrOpen
	countProbes // refused with ErrProbesTaken
	countRamp   // refused with ErrRamping
)
