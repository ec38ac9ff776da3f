package otelhook

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/surgewall/surgewall/core"
)

// breaker is what the Hook remembers of a circuit breaker: the outage, from the
// change to open until the change to a state in which all calls are admitted.
type breaker struct {
	mu     sync.Mutex
	outage outage // guarded by mu
}

type outage struct {
	opened  time.Time // zero: there is none
	trip    trace.SpanContext
	reopens int64
	refused uint64 // what the breaker had refused before
}

// halfOpen is the one state of a breaker that neither begins nor ends an
// outage.
const halfOpen = "half_open"

// stateChanged counts a change, and makes a span of the trip and one of the
// outage that is over. Changes of one component come one at a time.
func (h *Hook) stateChanged(ctx context.Context, e core.Event) {
	h.stateChanges.Add(ctx, 1, metric.WithAttributes(
		keyBreaker.String(e.Component), keyState.String(e.To), keyStatePrevious.String(e.From)))
	at := e.At
	if at.IsZero() {
		at = time.Now()
	}
	b := h.breakers.get(component(e.Component), newBreaker)
	switch {
	case e.Reason == core.CircuitOpen:
		if b.opens(at, h.refusedBy(e.Component)) {
			b.tripped(h.trip(ctx, e, at))
		}
	case e.To != halfOpen:
		if over := b.closes(); !over.opened.IsZero() {
			h.spanOfOutage(e, over, at)
		}
	}
}

func newBreaker(component) *breaker { return new(breaker) }

// opens begins an outage, or counts a reopening in the one that lasts.
func (b *breaker) opens(at time.Time, refused uint64) (begins bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.outage.opened.IsZero() {
		b.outage.reopens++
		return false
	}
	b.outage = outage{opened: at, refused: refused}
	return true
}

func (b *breaker) tripped(span trace.SpanContext) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.outage.trip = span
}

func (b *breaker) closes() (over outage) {
	b.mu.Lock()
	defer b.mu.Unlock()
	over, b.outage = b.outage, outage{}
	return over
}

// trip makes the span of a trip. It has no length: when the trouble began, an
// event does not say.
func (h *Hook) trip(ctx context.Context, e core.Event, at time.Time) trace.SpanContext {
	attrs := []attribute.KeyValue{
		keyBreaker.String(e.Component),
		keyStatePrevious.String(e.From),
		keyState.String(e.To),
		keyFailures.Int64(e.N),
	}
	if e.Why != "" {
		attrs = append(attrs, keyWhy.String(e.Why))
	}
	if e.ErrorType != "" {
		attrs = append(attrs, semconv.ErrorTypeKey.String(e.ErrorType))
	}
	_, span := h.tracer.Start(ctx, spanTrip, rootSpan(at, trace.SpanContextFromContext(ctx), attrs)...)
	span.SetStatus(codes.Error, "circuit breaker opened")
	span.End(trace.WithTimestamp(at))
	return span.SpanContext()
}

func (h *Hook) spanOfOutage(e core.Event, o outage, at time.Time) {
	_, span := h.tracer.Start(context.Background(), spanOutage, rootSpan(o.opened, o.trip, []attribute.KeyValue{
		keyBreaker.String(e.Component),
		keyReopens.Int64(o.reopens),
		keyRefused.Int64(int64(h.refusedBy(e.Component) - o.refused)),
	})...)
	span.End(trace.WithTimestamp(at))
}

// rootSpan are the options of a span that begins its own trace, linked to
// another if that is one.
func rootSpan(start time.Time, to trace.SpanContext, attrs []attribute.KeyValue) []trace.SpanStartOption {
	opts := []trace.SpanStartOption{
		trace.WithNewRoot(),
		trace.WithTimestamp(start),
		trace.WithAttributes(attrs...),
	}
	if to.IsValid() {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: to}))
	}
	return opts
}
