package otelhook

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/goleak"

	"github.com/surgewall/surgewall/core"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend is a Hook with an SDK behind it.
type backend struct {
	*Hook
	spans  *tracetest.SpanRecorder
	tracer trace.Tracer
	reader *sdkmetric.ManualReader
}

func newBackend(t *testing.T, opts ...Option) *backend {
	t.Helper()
	b := &backend{spans: tracetest.NewSpanRecorder(), reader: sdkmetric.NewManualReader()}
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(b.spans))
	b.tracer = tracers.Tracer("test")
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(b.reader))
	var err error
	b.Hook, err = New(append([]Option{WithTracerProvider(tracers), WithMeterProvider(meters)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Shutdown(context.Background())) })
	return b
}

// named are the ended spans of that name.
func (b *backend) named(name string) (found []sdktrace.ReadOnlySpan) {
	for _, s := range b.spans.Ended() {
		if s.Name() == name {
			found = append(found, s)
		}
	}
	return found
}

func attrs(kv []attribute.KeyValue) map[string]any {
	m := make(map[string]any)
	for _, a := range kv {
		m[string(a.Key)] = a.Value.AsInterface()
	}
	return m
}

// metrics are all data points collected now: "name{key=value,…}" to number.
func (b *backend) metrics(t *testing.T) map[string]float64 {
	t.Helper()
	var rm metricdata.ResourceMetrics
	require.NoError(t, b.reader.Collect(context.Background(), &rm))
	all := make(map[string]float64)
	put := func(name string, set attribute.Set, n float64) {
		all[name+"{"+set.Encoded(attribute.DefaultEncoder())+"}"] = n
	}
	for _, scope := range rm.ScopeMetrics {
		require.Equal(t, "github.com/surgewall/surgewall/otelhook", scope.Scope.Name)
		require.Equal(t, semconv.SchemaURL, scope.Scope.SchemaURL)
		for _, m := range scope.Metrics {
			switch d := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range d.DataPoints {
					put(m.Name, p.Attributes, float64(p.Value))
				}
			case metricdata.Sum[float64]:
				for _, p := range d.DataPoints {
					put(m.Name, p.Attributes, p.Value)
				}
			case metricdata.Gauge[float64]:
				for _, p := range d.DataPoints {
					put(m.Name, p.Attributes, p.Value)
				}
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					put(m.Name+".count", p.Attributes, float64(p.Count))
					put(m.Name+".sum", p.Attributes, p.Sum)
				}
			default:
				t.Fatalf("%s: %T", m.Name, d)
			}
		}
	}
	return all
}

func limited(name string) core.Event {
	return core.Event{Kind: core.KindRejected, Component: name, Reason: core.RateLimited, N: 1}
}

func TestRefusalsBecomeOneSpanPerLimiterAndInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(t)
		start := time.Now()
		ctx, request := b.tracer.Start(t.Context(), "GET /")
		b.Observe(ctx, limited("api"))
		time.Sleep(300 * time.Millisecond)
		for range 9 {
			b.Observe(t.Context(), limited("api"))
		}
		b.Observe(t.Context(), limited("login"))
		b.Observe(t.Context(), core.Event{Kind: core.KindRejected, Component: "login", Reason: core.NeverFits})
		b.Observe(t.Context(), core.Event{Kind: core.KindRejected, Component: "login", Reason: core.NeverFits})
		synctest.Wait()
		require.Empty(t, b.spans.Ended())

		time.Sleep(700 * time.Millisecond)
		synctest.Wait()
		spans := b.named("rate_limiting reject")
		require.Len(t, spans, 1, "the window of login is open for 300 ms more")
		s := spans[0]
		require.Equal(t, map[string]any{
			"surgewall.rate_limiting.name":           "api",
			"surgewall.rate_limiting.reason":         "rate_limited",
			"surgewall.rate_limiting.rejected.count": int64(10),
		}, attrs(s.Attributes()))
		require.Equal(t, start, s.StartTime())
		require.Equal(t, start.Add(300*time.Millisecond), s.EndTime())
		require.False(t, s.Parent().IsValid())
		require.NotEqual(t, request.SpanContext().TraceID(), s.SpanContext().TraceID())
		require.Len(t, s.Links(), 1)
		require.Equal(t, request.SpanContext(), s.Links()[0].SpanContext)
		require.Equal(t, trace.SpanKindInternal, s.SpanKind())
		require.Equal(t, codes.Unset, s.Status().Code)
		require.Equal(t, ScopeName, s.InstrumentationScope().Name)

		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		spans = b.named("rate_limiting reject")
		require.Len(t, spans, 2)
		require.Equal(t, map[string]any{
			"surgewall.rate_limiting.name":           "login",
			"surgewall.rate_limiting.reason":         "never_fits",
			"surgewall.rate_limiting.rejected.count": int64(3),
		}, attrs(spans[1].Attributes()))
		require.Empty(t, spans[1].Links())

		time.Sleep(time.Hour)
		b.Observe(t.Context(), limited("api"))
		time.Sleep(time.Second)
		synctest.Wait()
		spans = b.named("rate_limiting reject")
		require.Len(t, spans, 3)
		require.EqualValues(t, 1, attrs(spans[2].Attributes())["surgewall.rate_limiting.rejected.count"])
		require.Equal(t, start.Add(time.Hour+1300*time.Millisecond), spans[2].StartTime())
	})
}

func TestNamesOfRefusals(t *testing.T) {
	for _, c := range []struct {
		kind   core.Kind
		reason core.Reason
		span   string
		attrs  map[string]any
		metric string
	}{
		{
			core.KindRejected, core.NeverFits, "rate_limiting reject",
			map[string]any{
				"surgewall.rate_limiting.name": "x", "surgewall.rate_limiting.reason": "never_fits",
				"surgewall.rate_limiting.rejected.count": int64(1),
			},
			"surgewall.rate_limiting.requests{surgewall.rate_limiting.name=x,surgewall.rate_limiting.result=rejected}",
		},
		{
			core.KindRejected, core.CircuitOpen, "load_shedding reject",
			map[string]any{
				"surgewall.load_shedding.name": "x", "surgewall.load_shedding.reason": "circuit_open",
				"surgewall.load_shedding.rejected.count": int64(1),
			},
			"surgewall.load_shedding.requests{surgewall.load_shedding.name=x,surgewall.load_shedding.reason=circuit_open}",
		},
		{
			core.KindAcquireFailed, core.Overloaded, "load_shedding reject",
			map[string]any{
				"surgewall.load_shedding.name": "x", "surgewall.load_shedding.reason": "overloaded",
				"surgewall.load_shedding.rejected.count": int64(1),
			},
			"surgewall.load_shedding.requests{surgewall.load_shedding.name=x,surgewall.load_shedding.reason=overloaded}",
		},
		{
			core.KindShadowed, core.RateLimited, "rate_limiting shadow",
			map[string]any{
				"surgewall.rate_limiting.name": "x", "surgewall.rate_limiting.reason": "rate_limited",
				"surgewall.rate_limiting.rejected.count": int64(1),
			},
			"surgewall.shadow.refusals{surgewall.shadow.enforced=false,surgewall.shadow.name=x}",
		},
		{
			core.KindShadowed, core.ConcurrencyLimited, "load_shedding shadow",
			map[string]any{
				"surgewall.load_shedding.name": "x", "surgewall.load_shedding.reason": "concurrency_limited",
				"surgewall.load_shedding.rejected.count": int64(1),
			},
			"surgewall.shadow.refusals{surgewall.shadow.enforced=false,surgewall.shadow.name=x}",
		},
	} {
		t.Run(fmt.Sprint(c.kind, " ", c.reason), func(t *testing.T) {
			b := newBackend(t)
			b.Observe(t.Context(), core.Event{Kind: c.kind, Component: "x", Reason: c.reason})
			require.NoError(t, b.Flush(t.Context()))
			spans := b.spans.Ended()
			require.Len(t, spans, 1)
			require.Equal(t, c.span, spans[0].Name())
			require.Equal(t, c.attrs, attrs(spans[0].Attributes()))
			require.Equal(t, map[string]float64{c.metric: 1}, b.metrics(t))
		})
	}
}

// 100000 refusals of 8 goroutines in ten bursts: a span for each burst, and not
// one refusal lost or counted twice.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(t)
		const goroutines, each = 8, 12_500
		var wg sync.WaitGroup
		for range goroutines {
			wg.Go(func() {
				for i := range each {
					if i%1250 == 0 {
						time.Sleep(1100 * time.Millisecond)
					}
					b.Observe(t.Context(), limited("api"))
				}
			})
		}
		wg.Wait()
		require.NoError(t, b.Flush(t.Context()))
		spans := b.named("rate_limiting reject")
		require.Len(t, spans, 10)
		require.EqualValues(t, goroutines*each, rejected(spans))
		require.Equal(t, map[string]float64{
			"surgewall.rate_limiting.requests{surgewall.rate_limiting.name=api,surgewall.rate_limiting.result=rejected}": goroutines * each,
		}, b.metrics(t))
	})
}

func rejected(spans []sdktrace.ReadOnlySpan) (sum int64) {
	for _, s := range spans {
		sum += attrs(s.Attributes())["surgewall.rate_limiting.rejected.count"].(int64)
	}
	return sum
}

// The same while windows close as fast as they open.
func TestFloodAgainstFlush(t *testing.T) {
	b := newBackend(t, WithInterval(time.Nanosecond)) // real time: the race is what is tested
	const goroutines, each = 8, 5000
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for i := range each {
				b.Observe(t.Context(), limited("api"))
				if i%100 == 0 {
					runtime.Gosched()
					_ = b.Flush(t.Context())
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, b.Shutdown(t.Context()))
	require.EqualValues(t, goroutines*each, rejected(b.named("rate_limiting reject")))
}

// A refusal that comes while the span of the ones before it is being made opens
// the next window.
func TestRefusalWhileItsSpanIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h *Hook
		again := true
		spans := tracetest.NewSpanRecorder()
		tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans), sdktrace.WithSpanProcessor(processor{func() {
			if again {
				again = false
				h.Observe(t.Context(), limited("api"))
			}
		}}))
		var err error
		h, err = New(WithTracerProvider(tracers), WithMeterProvider(metricnoop.NewMeterProvider()))
		require.NoError(t, err)
		h.Observe(t.Context(), limited("api"))
		time.Sleep(time.Second)
		synctest.Wait()
		require.EqualValues(t, 1, rejected(spans.Ended()))
		time.Sleep(time.Second)
		synctest.Wait()
		require.EqualValues(t, 2, rejected(spans.Ended()))
		require.NoError(t, h.Shutdown(t.Context()))
	})
}

func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(t)
		b.Observe(t.Context(), limited("api"))
		require.True(t, b.Enabled(core.KindRejected))
		require.NoError(t, b.Shutdown(t.Context()))
		require.EqualValues(t, 1, rejected(b.named("rate_limiting reject")))

		b.Observe(t.Context(), limited("api"))
		b.Observe(t.Context(), core.Event{Kind: core.KindStateChanged, Component: "x", Reason: core.CircuitOpen})
		require.False(t, b.Enabled(core.KindRejected))
		require.NoError(t, b.Flush(t.Context()))
		require.NoError(t, b.Shutdown(t.Context()))
		require.Len(t, b.spans.Ended(), 1)
		require.Empty(t, b.metrics(t))
	})
}

func TestFlushAndShutdownEndWithTheirContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(processor{func() { <-release }}))
		h, err := New(WithTracerProvider(tracers), WithMeterProvider(metricnoop.NewMeterProvider()))
		require.NoError(t, err)
		h.Observe(t.Context(), limited("api"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, h.Flush(ctx), context.DeadlineExceeded)
		h.Observe(t.Context(), limited("api")) // is not held up
		require.ErrorIs(t, h.Flush(ctx), context.DeadlineExceeded)
		require.ErrorIs(t, h.Shutdown(ctx), context.DeadlineExceeded)
		close(release)
		require.NoError(t, h.Shutdown(t.Context()))
	})
}

// processor is a span processor that does something at the end of each span.
type processor struct{ does func() }

func (processor) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (p processor) OnEnd(sdktrace.ReadOnlySpan)                   { p.does() }
func (processor) Shutdown(context.Context) error                  { return nil }
func (processor) ForceFlush(context.Context) error                { return nil }

func TestSpanProcessorThatMisbehaves(t *testing.T) {
	for name, does := range map[string]func(){"panic": func() { panic("boom") }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			ended := 0
			tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(processor{func() { ended++; does() }}))
			h, err := New(WithTracerProvider(tracers), WithMeterProvider(metricnoop.NewMeterProvider()))
			require.NoError(t, err)
			for range 3 {
				h.Observe(t.Context(), limited("api"))
				require.NoError(t, h.Flush(t.Context()))
			}
			h.Observe(t.Context(), limited("api"))
			require.NoError(t, h.Shutdown(t.Context()))
			require.Equal(t, 4, ended)
		})
	}
}

func TestNamesAreBounded(t *testing.T) {
	b := newBackend(t)
	const names = maxNames + 500
	for i := range names {
		b.Observe(t.Context(), limited(fmt.Sprint("limiter-", i)))
	}
	require.LessOrEqual(t, len(b.refusals.all()), maxNames+1)
	require.NoError(t, b.Flush(t.Context()))
	spans := b.named("rate_limiting reject")
	require.Len(t, spans, maxNames+1)
	require.EqualValues(t, names, rejected(spans))
	require.EqualValues(t, 500, b.metrics(t)["surgewall.rate_limiting.requests{surgewall.rate_limiting.name=_OTHER,surgewall.rate_limiting.result=rejected}"])
}

func TestRefusalAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for name, opts := range map[string][]Option{
		"no-op": {WithTracerProvider(tracenoop.NewTracerProvider()), WithMeterProvider(metricnoop.NewMeterProvider())},
		"SDK":   {WithTracerProvider(sdktrace.NewTracerProvider()), WithMeterProvider(sdkmetric.NewMeterProvider())},
	} {
		h, err := New(append(opts, WithInterval(time.Hour))...)
		require.NoError(t, err)
		ctx, e := t.Context(), limited("api")
		require.Zero(t, testing.AllocsPerRun(1000, func() { core.Emit(ctx, h, e) }), name)
		require.NoError(t, h.Shutdown(ctx))
	}
}

func TestOptions(t *testing.T) {
	h, err := New(WithInterval(-time.Second))
	require.Nil(t, h)
	require.ErrorIs(t, err, core.ErrConfig)
	require.ErrorContains(t, err, "WithInterval: -1s")

	h, err = New(nil, WithTracerProvider(nil), WithMeterProvider(nil), WithInterval(0)) // the global ones
	require.NoError(t, err)
	require.Equal(t, time.Second, h.interval)
	require.NoError(t, h.Shutdown(t.Context()))
}

func TestNilHook(t *testing.T) {
	var h *Hook
	require.False(t, h.Enabled(core.KindRejected))
	h.Observe(t.Context(), limited("api"))
	require.NoError(t, h.Flush(t.Context()))
	unregister, err := h.Register()
	require.NoError(t, err)
	unregister()
	require.NoError(t, h.Shutdown(t.Context()))
}

func TestConnectionTimes(t *testing.T) {
	events := []core.Event{
		{Kind: core.KindAcquired, Component: "orders", Duration: 2 * time.Millisecond},
		{Kind: core.KindAcquired, Component: "orders", Duration: 3 * time.Millisecond},
		{Kind: core.KindReleased, Component: "orders", Duration: time.Second},
		{Kind: core.KindCreated, Component: "orders", Duration: 250 * time.Millisecond},
		{Kind: core.KindCreated, Component: "orders", Duration: time.Minute, ErrorType: "timeout"},
	}
	off := newBackend(t)
	on := newBackend(t, WithConnectionTimes())
	for _, e := range events {
		require.False(t, off.Enabled(e.Kind))
		require.True(t, on.Enabled(e.Kind))
		off.Observe(t.Context(), e)
		on.Observe(t.Context(), e)
	}
	require.False(t, on.Enabled(core.KindDestroyed))
	require.Empty(t, off.metrics(t))
	const orders = "{db.client.connection.pool.name=orders}"
	require.Equal(t, map[string]float64{
		"db.client.connection.wait_time.count" + orders:   2,
		"db.client.connection.wait_time.sum" + orders:     0.005,
		"db.client.connection.use_time.count" + orders:    1,
		"db.client.connection.use_time.sum" + orders:      1,
		"db.client.connection.create_time.count" + orders: 1,
		"db.client.connection.create_time.sum" + orders:   0.25,
	}, on.metrics(t))

	silent, err := New(WithConnectionTimes(), WithMeterProvider(metricnoop.NewMeterProvider()))
	require.NoError(t, err)
	require.False(t, silent.Enabled(core.KindAcquired), "nobody collects")
	require.NoError(t, silent.Shutdown(t.Context()))
}
