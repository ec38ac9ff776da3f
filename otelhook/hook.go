package otelhook

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/surgewall/surgewall/core"
)

// Hook turns events of components into spans and metrics. It is safe for
// concurrent use. It owns one goroutine, which Shutdown ends.
//
// A nil *Hook hears nothing.
type Hook struct {
	tracer   trace.Tracer
	meter    metric.Meter
	interval time.Duration
	epoch    time.Time

	refusals byName[refusalKey, refusals]
	breakers byName[component, breaker]
	pools    byName[component, pool]

	stateChanges metric.Int64Counter
	retries      metric.Int64Counter
	times        *connectionTimes // nil unless WithConnectionTimes

	exporter exporter

	wake    chan struct{}      // capacity 1: a window has opened
	learn   chan struct{}      // capacity 1: a report had a name that has no instrument yet
	flushes chan chan struct{} // asks the goroutine to flush; it closes the channel sent
	stop    chan struct{}      // closed by Shutdown
	ended   chan struct{}      // closed when the goroutine has ended
	stopped atomic.Bool
	once    sync.Once
}

var _ core.Observer = (*Hook)(nil)

// New makes a Hook. The error lists every bad option (errors.Is(err,
// core.ErrConfig)) and every instrument that the meter did not make.
func New(opts ...Option) (*Hook, error) {
	var s settings
	if err := s.apply(opts); err != nil {
		return nil, err
	}
	h := &Hook{
		tracer:   s.tracers.Tracer(ScopeName, trace.WithSchemaURL(semconv.SchemaURL)),
		meter:    s.meters.Meter(ScopeName, metric.WithSchemaURL(semconv.SchemaURL)),
		interval: s.interval,
		epoch:    time.Now().Add(-1), // so that no instant is 0
		wake:     make(chan struct{}, 1),
		learn:    make(chan struct{}, 1),
		flushes:  make(chan chan struct{}),
		stop:     make(chan struct{}),
		ended:    make(chan struct{}),
	}
	var errs [4]error
	h.stateChanges, errs[0] = h.meter.Int64Counter(metricStateChanges,
		metric.WithUnit("{change}"), metric.WithDescription("Changes of state of circuit breakers."))
	if s.times {
		h.times, errs[1] = newConnectionTimes(h.meter)
	}
	h.retries, errs[2] = h.meter.Int64Counter(metricRetries,
		metric.WithUnit("{retry}"), metric.WithDescription("Retries of calls that failed."))
	errs[3] = h.exporter.start(h)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, errors.Join(err, h.exporter.end())
	}
	go h.run()
	return h, nil
}

// Enabled is core.Observer's: it says yes to what becomes a span or a count,
// and to the times of a pool only while somebody collects them.
func (h *Hook) Enabled(k core.Kind) bool {
	if h == nil || h.stopped.Load() {
		return false
	}
	switch k {
	case core.KindRejected, core.KindShadowed, core.KindAcquireFailed, core.KindStateChanged, core.KindRetried:
		return true
	case core.KindAcquired, core.KindReleased, core.KindCreated:
		return h.times.enabled(k)
	default:
		return false
	}
}

// Observe is core.Observer's. It starts no span of a refusal on the goroutine
// that was refused, and allocates nothing for one after the first of an
// interval.
func (h *Hook) Observe(ctx context.Context, e core.Event) {
	if h == nil || h.stopped.Load() {
		return
	}
	switch e.Kind {
	case core.KindRejected, core.KindAcquireFailed:
		h.refused(ctx, e, true)
	case core.KindShadowed:
		h.refused(ctx, e, false)
	case core.KindStateChanged:
		h.stateChanged(ctx, e)
	case core.KindRetried:
		h.retried(ctx, e)
	case core.KindAcquired, core.KindReleased, core.KindCreated:
		h.took(ctx, e)
	}
}

// Flush ends the spans of refusals that are being gathered, and waits until
// they were handed to the tracer, or for ctx, whose error it then returns.
func (h *Hook) Flush(ctx context.Context) error {
	if h == nil {
		return nil
	}
	done := make(chan struct{})
	select {
	case h.flushes <- done:
	case <-h.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-done:
	case <-h.ended:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// Shutdown is Flush, and the end: later events are not heard, the instruments
// are no longer observed, and the Hook's goroutine has ended when Shutdown
// returns without an error. Call it before the Shutdown of the providers, as
// often as you like.
func (h *Hook) Shutdown(ctx context.Context) error {
	if h == nil {
		return nil
	}
	h.once.Do(func() {
		h.stopped.Store(true)
		close(h.stop)
	})
	select {
	case <-h.ended:
		return h.exporter.end()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run hands the gathered refusals to the tracer when their interval is over.
// It alone does so, however many want it. Should a span processor exit the
// goroutine, another takes over.
func (h *Hook) run() {
	over := false
	defer func() {
		if over {
			close(h.ended)
		} else {
			go h.run()
		}
	}()
	timer := time.NewTimer(h.interval)
	defer timer.Stop()
	for {
		select {
		case <-h.wake:
		case <-timer.C:
		case <-h.learn:
			// Register has reported the names that the meter does not accept;
			// one that appeared later is left out.
			_ = h.exporter.update(h)
		case done := <-h.flushes:
			h.flushFor(done)
		case <-h.stop:
			h.flush(true)
			over = true
			return
		}
		if next, some := h.flush(false); some {
			timer.Reset(next)
		}
	}
}

// flushFor flushes for one who waits on done.
func (h *Hook) flushFor(done chan struct{}) {
	defer close(done)
	h.flush(true)
}

// poke tells the goroutine something that it need be told only once.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// now is the time since the epoch, never 0.
func (h *Hook) now() int64 { return int64(time.Since(h.epoch)) }

func (h *Hook) time(n int64) time.Time { return h.epoch.Add(time.Duration(n)) }
