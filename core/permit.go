package core

import "context"

// Permit is one admitted call. It lives on the caller's stack and is finished
// exactly once, by Finish, Done, DoneErr or Cancel; each of them empties it, so
// that finishing twice is harmless. The zero Permit is empty, and finishing it
// does nothing.
//
// A Permit is used by one goroutine at a time and is not copied (go vet tells);
// Take moves it. Methods of a nil *Permit panic.
type Permit struct {
	_        noCopy
	finisher Finisher
	token    Token // the Guard's, with wants in the two highest bits of B
}

// A Permit of four words travels in registers; a fifth, for wants, would send
// it through memory, which cost half as much again as the rest of Do.
const (
	wantsShift = 62
	tokenBits  = 1<<wantsShift - 1
)

// Finisher is what the author of a Guard puts behind a Permit. A Permit calls
// one of its methods once; a copied Permit may call again with the same token,
// so a guard whose state that would corrupt remembers which tokens are live.
// Both methods are safe for concurrent use.
type Finisher interface {
	// FinishPermit books how an admitted call ended.
	FinishPermit(ctx context.Context, t Token, r Result)

	// CancelPermit undoes the admission: the call never started, and what it
	// was charged goes back.
	CancelPermit(t Token)
}

// Token is what a Guard remembers of an admission until its Permit is
// finished. Its meaning is the Guard's own. A is 64 bits, and B is 62: NewPermit
// drops the two highest.
type Token struct{ A, B uint64 }

// Wants says what a guard still has to learn of an admitted call. An adapter
// that would pay to watch for it, by wrapping a response writer or a body,
// asks first.
type Wants uint8

const (
	// WantsNothing: the permit may be finished at any time. A rate limiter.
	WantsNothing Wants = iota
	// WantsEnd: something is held until the call has ended, however it ended.
	// A bulkhead.
	WantsEnd
	// WantsResult: the outcome counts, and when it was reached. A breaker.
	WantsResult
)

// NewPermit makes the Permit of an admitted call. It is for authors of Guards.
func NewPermit(f Finisher, t Token, w Wants) Permit {
	t.B = t.B&tokenBits | uint64(w)<<wantsShift
	return Permit{finisher: f, token: t}
}

// Finish ends the call with r.
func (p *Permit) Finish(ctx context.Context, r Result) {
	f, t := p.finisher, p.token
	*p = Permit{}
	if f != nil {
		t.B &= tokenBits
		f.FinishPermit(ctx, t, r)
	}
}

// Done is Finish with an Outcome only.
func (p *Permit) Done(ctx context.Context, o Outcome) {
	if p.finisher != nil {
		p.end(ctx, o, nil)
	}
}

// end is Finish for a permit that is not empty. A Result is long to copy, so it is
// made where it is passed on.
func (p *Permit) end(ctx context.Context, o Outcome, err error) {
	f, t := p.finisher, p.token
	*p = Permit{}
	t.B &= tokenBits
	f.FinishPermit(ctx, t, Result{Outcome: o, Err: err})
}

// DoneErr is Finish with what Classify makes of err, or Cancel if err is or
// wraps a *Rejection: a guard further in said no, so the call never started.
// To count work that was done before that refusal, Mark the error.
func (p *Permit) DoneErr(ctx context.Context, err error) {
	p.DoneErrLeft(ctx, err, unlimited)
}

// Cancel says that the call never started: tokens and probe slots go back.
func (p *Permit) Cancel() {
	f, t := p.finisher, p.token
	*p = Permit{}
	if f != nil {
		t.B &= tokenBits
		f.CancelPermit(t)
	}
}

// WantsResult reports whether the outcome of the call is of use. If it is
// false, an adapter need not watch status or errors.
func (p *Permit) WantsResult() bool { return p.wants() >= WantsResult }

// WantsEnd reports whether the end of the call matters: something is held
// until then. If it is false, an adapter may finish the permit at once.
func (p *Permit) WantsEnd() bool { return p.wants() >= WantsEnd }

// Take moves the permit: it returns it and leaves p empty.
func (p *Permit) Take() Permit {
	f, t := p.finisher, p.token
	*p = Permit{}
	return Permit{finisher: f, token: t}
}

func (p *Permit) wants() Wants { return Wants(p.token.B >> wantsShift) }

// noCopy makes go vet's copylocks check report copies of what it is part of.
type noCopy struct{}

func (*noCopy) Lock()   {}
func (*noCopy) Unlock() {}
