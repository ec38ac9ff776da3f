package otelhook_test

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/otelhook"
)

func Example() {
	ctx := context.Background()
	spans := tracetest.NewInMemoryExporter() // your exporter
	tracers := trace.NewTracerProvider(trace.WithSyncer(spans))

	hook, err := otelhook.New(otelhook.WithTracerProvider(tracers))
	if err != nil {
		fmt.Println(err)
		return
	}
	breaker, err := circuit.New(circuit.Config{Name: "payments", FailureThreshold: 2, Observer: hook})
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 5 {
		_ = core.Do(ctx, breaker, func(context.Context) error { return errors.New("down") })
	}
	if err := hook.Shutdown(ctx); err != nil { // before that of the providers
		fmt.Println(err)
	}
	for _, s := range spans.GetSpans() {
		fmt.Println(s.Name)
		for _, a := range s.Attributes {
			fmt.Printf("  %s = %s\n", a.Key, a.Value.String())
		}
	}
	// Output:
	// circuit_breaker trip
	//   surgewall.circuit_breaker.name = payments
	//   surgewall.circuit_breaker.state.previous = closed
	//   surgewall.circuit_breaker.state = open
	//   surgewall.circuit_breaker.failure.count = 2
	//   surgewall.circuit_breaker.trip.reason = failures_in_a_row
	//   error.type = other
	// load_shedding reject
	//   surgewall.load_shedding.name = payments
	//   surgewall.load_shedding.rejected.count = 3
	//   surgewall.load_shedding.reason = circuit_open
}

func ExampleHook_Register() {
	ctx := context.Background()
	reader := metric.NewManualReader() // your reader
	hook, err := otelhook.New(otelhook.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(reader))))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = hook.Shutdown(ctx) }()
	breaker, err := circuit.New(circuit.Config{Name: "payments", Observer: hook})
	if err != nil {
		fmt.Println(err)
		return
	}
	unregister, err := hook.Register(breaker)
	if err != nil {
		fmt.Println(err)
	}
	defer unregister()

	_ = core.Do(ctx, breaker, func(context.Context) error { return nil })

	var collected metricdata.ResourceMetrics
	if err := reader.Collect(ctx, &collected); err != nil {
		fmt.Println(err)
	}
	var lines []string
	for _, m := range collected.ScopeMetrics[0].Metrics {
		for _, p := range m.Data.(metricdata.Sum[int64]).DataPoints {
			if p.Value > 0 {
				name, _ := p.Attributes.Value("surgewall.circuit_breaker.name")
				lines = append(lines, fmt.Sprintf("%s of %s: %d", m.Name, name.AsString(), p.Value))
			}
		}
	}
	sort.Strings(lines)
	for _, l := range lines {
		fmt.Println(l)
	}
	// Output:
	// surgewall.circuit_breaker.calls of payments: 1
	// surgewall.circuit_breaker.state of payments: 1
}
