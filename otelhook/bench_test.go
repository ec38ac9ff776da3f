package otelhook

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/surgewall/surgewall/core"
)

func BenchmarkRefusal(b *testing.B) {
	h, err := New(WithTracerProvider(sdktrace.NewTracerProvider()), WithMeterProvider(metricnoop.NewMeterProvider()), WithInterval(time.Second))
	require.NoError(b, err)
	ctx, e := context.Background(), limited("api")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			core.Emit(ctx, h, e)
		}
	})
	require.NoError(b, h.Shutdown(ctx))
}
