package otelhook

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/surgewall/surgewall/core"
)

// refusalKey is a component that refuses, why in general, and whether it means
// it.
type refusalKey struct {
	name     string
	quota    bool // as core.Reason.Quota has it
	enforced bool
}

func (k refusalKey) other() refusalKey {
	k.name = other
	return k
}

// span is the name of the spans.
func (k refusalKey) span() string {
	switch {
	case k.quota && k.enforced:
		return "rate_limiting reject"
	case k.quota:
		return "rate_limiting shadow"
	case k.enforced:
		return "load_shedding reject"
	default:
		return "load_shedding shadow"
	}
}

// refusals counts what one component refused. The counts only grow. A window
// opens with the first refusal after the last window, and after an interval the
// Hook's goroutine makes a span of it, with what the counts grew by.
type refusals struct {
	counts [maxReasons]atomic.Uint64         // by core.Reason
	opened atomic.Int64                      // when the window opened; 0: there is none
	last   atomic.Int64                      // when the newest refusal was
	link   atomic.Pointer[trace.SpanContext] // of the request that opened the window

	told [maxReasons]uint64 // the counts in spans so far; the goroutine's own
}

const (
	maxReasons = 32 // more than core has

	// grain keeps a flood from writing the time of each refusal.
	grain = time.Millisecond
)

// refused counts a refusal, and opens a window if there is none. It counts
// first: whoever then finds a window open knows that its end will see the
// count, because closing comes before reading.
func (h *Hook) refused(ctx context.Context, e core.Event, enforced bool) {
	key := refusalKey{name: e.Component, quota: e.Reason.Quota(), enforced: enforced}
	r := h.refusals.get(key, newRefusals)
	r.counts[e.Reason%maxReasons].Add(1)
	now := h.now()
	if now-r.last.Load() >= int64(grain) {
		r.last.Store(now)
	}
	if r.opened.Load() == 0 && r.opened.CompareAndSwap(0, now) {
		if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
			r.link.Store(&sc)
		}
		poke(h.wake)
	}
}

func newRefusals(refusalKey) *refusals { return new(refusals) }

// flush ends the windows that are due, or all, and returns the time until the
// next is due, if there is one. Only the goroutine calls it.
func (h *Hook) flush(all bool) (next time.Duration, some bool) {
	now := h.now()
	for key, r := range h.refusals.all() {
		opened := r.opened.Load()
		if opened == 0 {
			continue
		}
		if left := time.Duration(opened-now) + h.interval; left > 0 && !all {
			if !some || left < next {
				next, some = left, true
			}
			continue
		}
		var link trace.SpanContext
		if of := r.link.Swap(nil); of != nil {
			link = *of
		}
		r.opened.Store(0)
		h.spanOf(key, r, opened, link)
	}
	return next, some
}

// spanOf makes the span of a window that was just closed. A panic of a span
// processor costs this one span.
func (h *Hook) spanOf(key refusalKey, r *refusals, opened int64, link trace.SpanContext) {
	defer func() {
		if v := recover(); v != nil {
			otel.Handle(fmt.Errorf("otelhook: %s: panic: %v", key.span(), v))
		}
	}()
	var total, most uint64
	var reason core.Reason
	for i := range r.counts {
		n := r.counts[i].Load()
		grown := n - r.told[i]
		r.told[i] = n
		total += grown
		if grown > most {
			most, reason = grown, core.Reason(i)
		}
	}
	if total == 0 { // the window before this one had it all
		return
	}
	_, span := h.tracer.Start(context.Background(), key.span(),
		rootSpan(h.time(opened), link, key.attributes(total, reason))...)
	span.End(trace.WithTimestamp(h.time(max(opened, r.last.Load()))))
}

func (k refusalKey) attributes(count uint64, reason core.Reason) []attribute.KeyValue {
	namespace, name := "surgewall.load_shedding.", keyShedder
	if k.quota {
		namespace, name = "surgewall.rate_limiting.", keyLimiter
	}
	return []attribute.KeyValue{
		name.String(k.name),
		attribute.Int64(namespace+"rejected.count", int64(count)),
		attribute.String(namespace+"reason", reason.String()), // the most frequent one
	}
}

// refusedBy is how often an open or half-open breaker refused.
func (h *Hook) refusedBy(breaker string) uint64 {
	r, ok := h.refusals.all()[refusalKey{name: breaker, enforced: true}]
	if !ok {
		return 0
	}
	return r.counts[core.CircuitOpen].Load() + r.counts[core.ProbesTaken].Load()
}
