package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
)

// slots is a guard of this program's own: so many calls at a time. It is all
// that it takes to write one; Name and Inspect put it on the page.
type slots struct {
	name  string
	max   int64
	since time.Time
	heard core.Observer
	full  *core.Rejection

	taken   atomic.Int64
	refused atomic.Uint64
}

var errFull = errors.New("all slots are taken")

func newSlots(name string, n int64, heard core.Observer) *slots {
	return &slots{
		name: name, max: n, since: time.Now(), heard: heard,
		full: &core.Rejection{Guard: name, Reason: core.ConcurrencyLimited, Err: errFull},
	}
}

// Acquire takes a slot, or refuses.
func (s *slots) Acquire(ctx context.Context, _ core.Call) (core.Permit, error) {
	if s.taken.Add(1) > s.max {
		s.taken.Add(-1)
		s.refused.Add(1)
		core.Emit(ctx, s.heard, core.Event{Kind: core.KindRejected, Component: s.name, Reason: s.full.Reason, N: 1})
		return core.Permit{}, s.full
	}
	return core.NewPermit(s, core.Token{}, core.WantsEnd), nil
}

// FinishPermit gives the slot back.
func (s *slots) FinishPermit(context.Context, core.Token, core.Result) { s.taken.Add(-1) }

// CancelPermit gives the slot back.
func (s *slots) CancelPermit(core.Token) { s.taken.Add(-1) }

// Name is the name on the page.
func (s *slots) Name() string { return s.name }

// Inspect reports how many slots are taken.
func (s *slots) Inspect() core.Report {
	return core.Report{
		Kind: "slots", Name: s.name, Since: s.since,
		Values: []core.Value{
			core.Amount("webapp.slots.taken", "{call}", s.taken.Load()),
			core.Amount("webapp.slots.max", "{call}", s.max),
			core.Count("webapp.slots.refused", "{call}", s.refused.Load()),
		},
	}
}
