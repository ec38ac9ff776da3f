package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/surgewall/surgewall/core"
)

// timeline is an observer that keeps the latest changes of state, for the page.
// Refusals are not kept one by one: they are counted on the cards.
type timeline struct {
	mu   sync.Mutex
	last []happening // guarded by mu; oldest first
}

// happening is one line of the timeline.
type happening struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

const timelineLength = 50

// Enabled reports whether events of kind k are shown.
func (t *timeline) Enabled(k core.Kind) bool {
	return k == core.KindStateChanged || k == core.KindBackendChanged
}

// Observe keeps an event.
func (t *timeline) Observe(_ context.Context, e core.Event) {
	who := e.Component
	if e.Backend != "" {
		who += " · " + e.Backend
	}
	t.add(fmt.Sprintf("%s: %s → %s", who, e.From, e.To))
}

// add keeps a line.
func (t *timeline) add(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, happening{time.Now(), text})
	if len(t.last) > timelineLength {
		t.last = append(t.last[:0], t.last[1:]...)
	}
}

// latest returns the lines, newest first.
func (t *timeline) latest() []happening {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]happening, 0, len(t.last))
	for i := len(t.last) - 1; i >= 0; i-- {
		out = append(out, t.last[i])
	}
	return out
}
