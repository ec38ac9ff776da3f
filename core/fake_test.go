package core_test

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/surgewall/surgewall/core"
)

// errFull is the sentinel of a fakeGuard.
var errFull = errors.New("fake: full")

// fakeGuard admits while it has room, books what it is told, and notices a
// permit that is finished twice.
type fakeGuard struct {
	name     string
	room     int // -1: without end
	wants    core.Wants
	onFinish func(core.Result) // called by FinishPermit, after it has booked

	mu        sync.Mutex
	next      uint64
	live      map[uint64]bool
	results   []core.Result
	cancelled int
	twice     int
	log       *[]string // shared by the guards of one test
}

func newFake(name string, room int) *fakeGuard {
	return &fakeGuard{name: name, room: room, wants: core.WantsResult, live: map[uint64]bool{}}
}

func (g *fakeGuard) Acquire(context.Context, core.Call) (core.Permit, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.room == 0 {
		return core.Permit{}, &core.Rejection{Guard: g.name, Reason: core.ConcurrencyLimited, Err: errFull}
	}
	g.room--
	g.next++
	g.live[g.next] = true
	g.note("acquire")
	return core.NewPermit(g, core.Token{A: g.next}, g.wants), nil
}

func (g *fakeGuard) Ready() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.room != 0
}

func (g *fakeGuard) FinishPermit(_ context.Context, t core.Token, r core.Result) {
	g.mu.Lock()
	if g.end(t) {
		g.results = append(g.results, r)
		g.note("finish")
	}
	g.mu.Unlock()
	if g.onFinish != nil {
		g.onFinish(r)
	}
}

func (g *fakeGuard) CancelPermit(t core.Token) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.end(t) {
		g.cancelled++
		g.note("cancel")
	}
}

func (g *fakeGuard) end(t core.Token) bool {
	if !g.live[t.A] {
		g.twice++
		return false
	}
	delete(g.live, t.A)
	g.room++
	return true
}

func (g *fakeGuard) note(what string) {
	if g.log != nil {
		*g.log = append(*g.log, g.name+" "+what)
	}
}

// open is a guard without state, for what must not allocate.
type open struct{ wants core.Wants }

func (o *open) Acquire(context.Context, core.Call) (core.Permit, error) {
	return core.NewPermit(o, core.Token{}, o.wants), nil
}
func (*open) FinishPermit(context.Context, core.Token, core.Result) {}
func (*open) CancelPermit(core.Token)                               {}

// shut refuses every call with the one Rejection that it has.
type shut struct{ no *core.Rejection }

func (s shut) Acquire(context.Context, core.Call) (core.Permit, error) { return core.Permit{}, s.no }

// recorder is an Observer that remembers.
type recorder struct {
	mu     sync.Mutex
	events []core.Event
	deaf   bool
}

func (r *recorder) Enabled(core.Kind) bool { return !r.deaf }

func (r *recorder) Observe(_ context.Context, e core.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// observerFunc is an Observer made of a function.
type observerFunc func(core.Event)

func (observerFunc) Enabled(core.Kind) bool                    { return true }
func (f observerFunc) Observe(_ context.Context, e core.Event) { f(e) }

// doneCtx is a context that has ended with err.
func doneCtx(err error) context.Context {
	if errors.Is(err, context.Canceled) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return ctx
	}
	ctx, cancel := context.WithDeadline(context.Background(), time.Unix(0, 0))
	cancel()
	return ctx
}
