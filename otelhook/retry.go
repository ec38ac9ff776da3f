package otelhook

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/surgewall/surgewall/core"
)

// retried counts a retry, by the class of the error that led to it.
func (h *Hook) retried(ctx context.Context, e core.Event) {
	attrs := []attribute.KeyValue{keyRetrier.String(e.Component)}
	if e.ErrorType != "" {
		attrs = append(attrs, semconv.ErrorTypeKey.String(e.ErrorType))
	}
	h.retries.Add(ctx, 1, metric.WithAttributes(attrs...))
}
