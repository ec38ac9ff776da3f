package main

import (
	"context"
	"log/slog"
	"maps"
	"sync"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/surgewall/surgewall/core"
)

// counts is a number for each name.
type counts struct {
	mu sync.Mutex
	n  map[string]int // guarded by mu
}

func (c *counts) add(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[name]++
}

// byName is a copy of the numbers.
func (c *counts) byName() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.n)
}

// tripCounter is an observer that counts how often each breaker opened.
type tripCounter struct{ counts }

// Enabled reports whether events of kind k are counted.
func (t *tripCounter) Enabled(k core.Kind) bool { return k == core.KindStateChanged }

// Observe counts a trip.
func (t *tripCounter) Observe(_ context.Context, e core.Event) {
	if e.From == "closed" && e.To == "open" {
		t.add(e.Component)
	}
}

// spanCounter is a span processor that counts the spans that end, by name, and
// logs each. A real program exports them; this one has nowhere to send them.
type spanCounter struct {
	counts
	log *slog.Logger
}

// OnStart does nothing.
func (c *spanCounter) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd counts a span.
func (c *spanCounter) OnEnd(s sdktrace.ReadOnlySpan) {
	c.add(s.Name())
	attrs := make([]any, 0, len(s.Attributes()))
	for _, a := range s.Attributes() {
		attrs = append(attrs, slog.Any(string(a.Key), a.Value.AsInterface()))
	}
	c.log.Debug("span "+s.Name(), attrs...)
}

// Shutdown does nothing.
func (c *spanCounter) Shutdown(context.Context) error { return nil }

// ForceFlush does nothing.
func (c *spanCounter) ForceFlush(context.Context) error { return nil }
