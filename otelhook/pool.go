package otelhook

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/surgewall/surgewall/core"
)

// connectionTimes are the histograms of pools.
type connectionTimes struct {
	wait, use, create metric.Float64Histogram
}

// A wait in a pool is usually far below a millisecond.
var boundaries = []float64{
	0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
}

func newConnectionTimes(m metric.Meter) (*connectionTimes, error) {
	var errs []error
	histogram := func(name, description string) metric.Float64Histogram {
		h, err := m.Float64Histogram(name, metric.WithUnit("s"),
			metric.WithDescription(description), metric.WithExplicitBucketBoundaries(boundaries...))
		errs = append(errs, err)
		return h
	}
	t := &connectionTimes{
		wait:   histogram(metricWaitTime, "The time it took to obtain an open connection from the pool."),
		use:    histogram(metricUseTime, "The time between borrowing a connection and returning it to the pool."),
		create: histogram(metricCreateTime, "The time it took to create a new connection."),
	}
	return t, errors.Join(errs...)
}

// of is the histogram of a kind of event, or nil.
func (t *connectionTimes) of(k core.Kind) metric.Float64Histogram {
	switch {
	case t == nil:
		return nil
	case k == core.KindAcquired:
		return t.wait
	case k == core.KindReleased:
		return t.use
	case k == core.KindCreated:
		return t.create
	}
	return nil
}

func (t *connectionTimes) enabled(k core.Kind) bool {
	h := t.of(k)
	return h != nil && h.Enabled(context.Background())
}

// pool is the attributes of a pool, made once.
type pool struct{ attrs []metric.RecordOption }

func newPool(name component) *pool {
	set := attribute.NewSet(semconv.DBClientConnectionPoolName(string(name)))
	return &pool{[]metric.RecordOption{metric.WithAttributeSet(set)}}
}

// took records how long something of a pool took. What failed is not recorded.
func (h *Hook) took(ctx context.Context, e core.Event) {
	if t := h.times.of(e.Kind); t != nil && e.ErrorType == "" {
		t.Record(ctx, e.Duration.Seconds(), h.pools.get(component(e.Component), newPool).attrs...)
	}
}
