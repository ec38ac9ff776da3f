package pool

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/surgewall/surgewall/core"
)

// Held is a loan that has lasted for longer than LeakAfter.
type Held struct {
	For time.Duration

	// Stack is that of the Acquire which made the loan, a line for each function
	// and one for its file and line, as in a panic; "" if LeakSample passed the
	// loan over.
	Stack string
}

// Held is who has held a resource for longer than LeakAfter, the longest first.
// It takes time in proportion to Max. What is held may be a leak: a lease that
// nobody will release; or a transaction that waits for somebody.
func (p *Pool[T]) Held() []Held {
	type found struct {
		since int64
		stack []uintptr
	}
	p.mu.Lock()
	now := p.clock.Now()
	var all []found
	for _, r := range p.live {
		if p.leakedLocked(r, now) {
			all = append(all, found{r.lentAt, r.loan.stack})
		}
	}
	p.mu.Unlock()
	slices.SortFunc(all, func(a, b found) int { return cmp.Compare(a.since, b.since) })
	held := make([]Held, len(all))
	for i, f := range all {
		held[i] = Held{For: time.Duration(now - f.since), Stack: format(f.stack)}
	}
	return held
}

func (p *Pool[T]) leakedLocked(r *resource[T], now int64) bool {
	return p.cfg.LeakAfter > 0 && r.turn%2 == 1 && now-r.lentAt >= int64(p.cfg.LeakAfter)
}

// newlyHeldLocked has the observer told of loans that last too long, in a
// goroutine of its own: maintenance must not wait for user code. While one is
// telling, or does not return, the others are left for later.
func (p *Pool[T]) newlyHeldLocked(now int64) {
	if p.telling {
		return
	}
	var held []time.Duration
	for _, r := range p.live {
		if p.leakedLocked(r, now) && !r.loan.reported {
			r.loan.kept, r.loan.reported = true, true
			p.n.held++
			held = append(held, time.Duration(now-r.lentAt))
		}
	}
	if len(held) > 0 && p.cfg.Observer != nil {
		p.telling = true
		p.goroutines++
		go p.tellHeld(held)
	}
}

// tellHeld tells of loans that last too long.
func (p *Pool[T]) tellHeld(held []time.Duration) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.telling = false
		p.endLocked()
	}()
	for _, d := range held {
		p.emit(context.Background(), core.Event{Kind: core.KindHeld, Duration: d})
	}
}

// callers is the stack of who called Acquire.
func callers() []uintptr {
	var pcs [32]uintptr
	const ours = 5 // runtime.Callers, callers, remember, prepare, Acquire
	return slices.Clone(pcs[:runtime.Callers(ours, pcs[:])])
}

func format(stack []uintptr) string {
	if len(stack) == 0 {
		return ""
	}
	var text strings.Builder
	for frames := runtime.CallersFrames(stack); ; {
		f, more := frames.Next()
		fmt.Fprintf(&text, "%s\n\t%s:%d\n", f.Function, f.File, f.Line)
		if !more {
			return text.String()
		}
	}
}
