package otelhook

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/codes"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
)

func TestTripAndOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(t)
		breaker, err := circuit.New(circuit.Config{
			Name: "payments", FailureThreshold: 2, SuccessThreshold: 1, OpenFor: 10 * time.Second, Observer: b,
		})
		require.NoError(t, err)
		ctx, request := b.tracer.Start(t.Context(), "POST /buy")
		call := func(err error) { _ = core.Do(ctx, breaker, func(context.Context) error { return err }) }

		call(errors.New("reset"))
		require.Empty(t, b.spans.Ended())
		call(context.DeadlineExceeded)
		opened := time.Now()
		trips := b.named("circuit_breaker trip")
		require.Len(t, trips, 1)
		trip := trips[0]
		require.Equal(t, map[string]any{
			"surgewall.circuit_breaker.name":           "payments",
			"surgewall.circuit_breaker.state":          "open",
			"surgewall.circuit_breaker.state.previous": "closed",
			"surgewall.circuit_breaker.trip.reason":    "failures_in_a_row",
			"surgewall.circuit_breaker.failure.count":  int64(2),
			"error.type": "timeout",
		}, attrs(trip.Attributes()))
		require.Equal(t, codes.Error, trip.Status().Code)
		require.Equal(t, opened, trip.StartTime())
		require.Equal(t, opened, trip.EndTime())
		require.False(t, trip.Parent().IsValid())
		require.NotEqual(t, request.SpanContext().TraceID(), trip.SpanContext().TraceID())
		require.Len(t, trip.Links(), 1)
		require.Equal(t, request.SpanContext(), trip.Links()[0].SpanContext)

		for range 3 {
			call(nil) // refused
		}
		time.Sleep(10 * time.Second)
		call(errors.New("still down"))
		call(nil) // refused
		time.Sleep(10 * time.Second)
		require.Empty(t, b.named("circuit_breaker open"))
		call(nil)
		require.Equal(t, circuit.Closed, breaker.State())
		require.Len(t, b.named("circuit_breaker trip"), 1, "a reopening is no trip")
		outages := b.named("circuit_breaker open")
		require.Len(t, outages, 1)
		outage := outages[0]
		require.Equal(t, map[string]any{
			"surgewall.circuit_breaker.name":           "payments",
			"surgewall.circuit_breaker.reopen.count":   int64(1),
			"surgewall.circuit_breaker.rejected.count": int64(4),
		}, attrs(outage.Attributes()))
		require.Equal(t, opened, outage.StartTime())
		require.Equal(t, opened.Add(20*time.Second), outage.EndTime())
		require.Equal(t, codes.Unset, outage.Status().Code)
		require.False(t, outage.Parent().IsValid())
		require.Len(t, outage.Links(), 1)
		require.Equal(t, trip.SpanContext(), outage.Links()[0].SpanContext)

		// The next outage starts from nothing.
		call(errors.New("reset"))
		call(errors.New("reset"))
		time.Sleep(10 * time.Second)
		call(nil)
		outages = b.named("circuit_breaker open")
		require.Len(t, outages, 2)
		require.Equal(t, map[string]any{
			"surgewall.circuit_breaker.name":           "payments",
			"surgewall.circuit_breaker.reopen.count":   int64(0),
			"surgewall.circuit_breaker.rejected.count": int64(0),
		}, attrs(outages[1].Attributes()))
		request.End()

		const changes = "surgewall.circuit_breaker.state_changes{surgewall.circuit_breaker.name=payments,surgewall.circuit_breaker.state="
		m := b.metrics(t)
		require.EqualValues(t, 2, m[changes+"open,surgewall.circuit_breaker.state.previous=closed}"])
		require.EqualValues(t, 3, m[changes+"half_open,surgewall.circuit_breaker.state.previous=open}"])
		require.EqualValues(t, 1, m[changes+"open,surgewall.circuit_breaker.state.previous=half_open}"])
		require.EqualValues(t, 2, m[changes+"closed,surgewall.circuit_breaker.state.previous=half_open}"])
	})
}

func TestTripWithoutARequestHasNoLink(t *testing.T) {
	b := newBackend(t)
	b.Observe(t.Context(), core.Event{Kind: core.KindStateChanged, Component: "x", From: "closed", To: "open", Reason: core.CircuitOpen})
	trips := b.named("circuit_breaker trip")
	require.Len(t, trips, 1)
	require.Empty(t, trips[0].Links())
	require.NotContains(t, attrs(trips[0].Attributes()), "error.type")
}

// A Hook that hears a breaker close, having missed that it opened, tells of no
// outage; one that hears it reopen tells of a trip.
func TestHookThatCameLate(t *testing.T) {
	b := newBackend(t)
	b.Observe(t.Context(), core.Event{Kind: core.KindStateChanged, Component: "x", From: "half_open", To: "closed"})
	require.Empty(t, b.spans.Ended())
	b.Observe(t.Context(), core.Event{Kind: core.KindStateChanged, Component: "x", From: "half_open", To: "open", Reason: core.CircuitOpen})
	require.Len(t, b.named("circuit_breaker trip"), 1)
}
