package otelhook

import (
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/surgewall/surgewall/core"
)

// Option sets one thing of a Hook.
type Option func(*settings)

type settings struct {
	tracers  trace.TracerProvider
	meters   metric.MeterProvider
	interval time.Duration
	times    bool
}

// WithTracerProvider sets where spans go. Default, and for nil: the global
// provider.
func WithTracerProvider(p trace.TracerProvider) Option {
	return func(s *settings) { s.tracers = p }
}

// WithMeterProvider sets where metrics go. Default, and for nil: the global
// provider.
func WithMeterProvider(p metric.MeterProvider) Option {
	return func(s *settings) { s.meters = p }
}

// WithInterval sets for how long the refusals of one component are gathered
// into one span, and so how late the span can be. Default, and for 0: 1 s.
func WithInterval(d time.Duration) Option {
	return func(s *settings) { s.interval = d }
}

// WithConnectionTimes turns on the histograms db.client.connection.wait_time,
// use_time and create_time, for the pools that have the Hook as Observer. They
// cost the pool two clock reads and an event for each acquisition. Default:
// off.
func WithConnectionTimes() Option {
	return func(s *settings) { s.times = true }
}

func (s *settings) apply(opts []Option) error {
	for _, o := range opts {
		if o != nil {
			o(s)
		}
	}
	if s.tracers == nil {
		s.tracers = otel.GetTracerProvider()
	}
	if s.meters == nil {
		s.meters = otel.GetMeterProvider()
	}
	if s.interval == 0 {
		s.interval = time.Second
	}
	bad := core.Check("otelhook.Option")
	bad.If(s.interval < 0, "WithInterval", s.interval, "must be above 0, or 0 for the default")
	return bad.Err()
}
