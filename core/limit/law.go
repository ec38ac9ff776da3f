package limit

import (
	"time"

	"github.com/surgewall/surgewall/core"
)

// law is an algorithm over a state S. A law is immutable; whoever calls holds the
// lock that guards the state. now is a clock reading, in ns, and may be a little
// older than what the state has seen, which never admits more. n is 1 to most().
type law[S any] interface {
	// begin makes s the state of a limiter never used.
	begin(s *S, now int64)

	// most is the greatest cost that can ever fit.
	most() int

	// take charges n to s if its turn comes within patience. turn is the clock
	// reading from which the call may run, now if at once; if the answer is no,
	// it is the first at which the same call would not have to wait.
	take(s *S, now int64, n int, patience time.Duration) (t core.Token, turn int64, ok bool)

	// giveBack undoes n of the tokens of the charge t, as far as that does not
	// break the limit.
	giveBack(s *S, now int64, t core.Token, n int)

	// refund gives back n that were charged at some time; never beyond a state
	// that owes nothing.
	refund(s *S, now int64, n int)

	// charge takes n, of any size, whether it is there or not.
	charge(s *S, now int64, n int)

	// peek is what take would say to n, which may be any number; Policy is left
	// empty. The limiter is paused until start, or start is now.
	peek(s *S, now, start int64, n int) Decision

	// idle reports whether s owes nothing: a state that begins now is as good.
	idle(s *S, now int64) bool

	// convert makes of a state of c.from's one of this law, at a change.
	convert(s *S, c change[S])

	// retime is the same for a charge whose turn may be yet to come.
	retime(t core.Token, turn int64, c change[S]) (core.Token, int64)
}

// change is what happens to the state of a limiter when it is reconfigured or
// paused at some clock reading: what it owes it still owes, in tokens, and time
// stands still for it while it is paused.
type change[S any] struct {
	at           int64
	from         law[S]
	paused, till int64 // the end of the pause before and after the change; past if there is none
}
