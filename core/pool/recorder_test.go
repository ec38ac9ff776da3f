package pool

import (
	"context"
	"runtime"
	"slices"
	"sync"

	"github.com/surgewall/surgewall/core"
)

// recorder is an observer that keeps what it hears.
type recorder struct {
	deaf   map[core.Kind]bool
	exitOn core.Kind

	mu     sync.Mutex
	events []core.Event
}

func (r *recorder) Enabled(k core.Kind) bool { return !r.deaf[k] }

func (r *recorder) Observe(_ context.Context, e core.Event) {
	if r.exitOn == e.Kind {
		runtime.Goexit()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *recorder) heard() []core.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}
