package otelhook

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
)

// reporter is a component that reports what it is told to.
type reporter struct {
	mu     sync.Mutex
	report core.Report // guarded by mu
}

func (r *reporter) Name() string { return r.report.Name }

func (r *reporter) Inspect() core.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.report
}

func TestRegisteredComponentsAreExported(t *testing.T) {
	b := newBackend(t)
	breaker, err := circuit.New(circuit.Config{Name: "payments"})
	require.NoError(t, err)
	unregister, err := b.Register(breaker)
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, core.Do(t.Context(), breaker, func(context.Context) error { return nil }))
	}
	const calls = "surgewall.circuit_breaker.calls{surgewall.circuit_breaker.name=payments,surgewall.circuit_breaker.outcome="
	const state = "surgewall.circuit_breaker.state{surgewall.circuit_breaker.name=payments,surgewall.circuit_breaker.state="
	require.Equal(t, map[string]float64{
		calls + "success}":   3,
		calls + "failure}":   0,
		calls + "throttled}": 0,
		calls + "ignored}":   0,
		calls + "rejected}":  0,
		state + "closed}":    1,
		state + "open}":      0,
		state + "half_open}": 0,
	}, b.metrics(t))

	unregister()
	require.Empty(t, b.metrics(t))
	unregister()
}

func TestTypesAndUnits(t *testing.T) {
	b := newBackend(t)
	_, err := b.Register(&reporter{report: core.Report{Name: "x", Values: []core.Value{
		core.Count("surgewall.pool.acquisitions", "{call}", 7),
		{Name: "surgewall.pool.waited", Unit: "s", Type: core.Counter, Number: 0.25},
		core.Amount("db.client.connection.count", "{connection}", 4).With("state", "idle"),
		core.Reading("surgewall.pool.load", "1", 0.5),
		core.Count("surgewall.pool.failed", "{call}", 1).With("error.type", "timeout"),
		{Name: "surgewall.pool.wait_time", Unit: "s", Type: core.Distribution, Histogram: &core.Histogram{}},
	}}})
	require.NoError(t, err)
	require.Equal(t, map[string]float64{
		"surgewall.pool.acquisitions{surgewall.pool.name=x}":                                           7,
		"surgewall.pool.waited{surgewall.pool.name=x}":                                                 0.25,
		"db.client.connection.count{db.client.connection.pool.name=x,db.client.connection.state=idle}": 4,
		"surgewall.pool.load{surgewall.pool.name=x}":                                                   0.5,
		"surgewall.pool.failed{error.type=timeout,surgewall.pool.name=x}":                              1,
	}, b.metrics(t))

	var rm metricdata.ResourceMetrics
	require.NoError(t, b.reader.Collect(t.Context(), &rm))
	got := make(map[string]string)
	for _, m := range rm.ScopeMetrics[0].Metrics {
		got[m.Name] = fmt.Sprintf("%T %s", m.Data, m.Unit)
		switch d := m.Data.(type) {
		case metricdata.Sum[int64]:
			got[m.Name] += fmt.Sprint(" ", d.IsMonotonic)
		case metricdata.Sum[float64]:
			got[m.Name] += fmt.Sprint(" ", d.IsMonotonic)
		}
	}
	require.Equal(t, map[string]string{
		"surgewall.pool.acquisitions": "metricdata.Sum[int64] {call} true",
		"surgewall.pool.waited":       "metricdata.Sum[float64] s true",
		"db.client.connection.count":  "metricdata.Sum[int64] {connection} false",
		"surgewall.pool.load":         "metricdata.Gauge[float64] 1",
		"surgewall.pool.failed":       "metricdata.Sum[int64] {call} true",
	}, got)
}

func TestChildren(t *testing.T) {
	b := newBackend(t)
	parent := core.Report{Name: "shop"}
	const children = maxChildren + 36
	for i := range children {
		parent.Children = append(parent.Children, core.Report{
			Name: fmt.Sprint("b", i), Values: []core.Value{core.Count("surgewall.balancer.backend.picks", "{call}", 2)},
		})
	}
	_, err := b.Register(&reporter{report: parent})
	require.NoError(t, err)
	m := b.metrics(t)
	require.Len(t, m, maxChildren+1)
	require.EqualValues(t, 2, m["surgewall.balancer.backend.picks{surgewall.balancer.name=b0,surgewall.balancer.parent=shop}"])
	require.EqualValues(t, 2*36, m["surgewall.balancer.backend.picks{surgewall.balancer.name=_OTHER,surgewall.balancer.parent=shop}"])
}

func TestSameNameAddsUp(t *testing.T) {
	b := newBackend(t)
	r := &reporter{report: core.Report{Name: "x", Values: []core.Value{
		core.Count("surgewall.pool.acquisitions", "{call}", 7),
		core.Reading("surgewall.pool.load", "1", 0.5),
	}}}
	_, err := b.Register(r, r)
	require.NoError(t, err)
	require.Equal(t, map[string]float64{
		"surgewall.pool.acquisitions{surgewall.pool.name=x}": 14,
		"surgewall.pool.load{surgewall.pool.name=x}":         0.5,
	}, b.metrics(t))
}

// A refusal that the component counts itself is not counted again.
func TestReportedRefusalsAreNotCountedTwice(t *testing.T) {
	b := newBackend(t)
	shadow, err := core.Shadow(refusing{}, core.ShadowConfig{Name: "trial", Observer: b})
	require.NoError(t, err)
	_, err = shadow.Acquire(t.Context(), core.Call{})
	require.NoError(t, err)
	const told = "surgewall.shadow.refusals{surgewall.shadow.enforced=false,surgewall.shadow.name=trial}"
	require.EqualValues(t, 1, b.metrics(t)[told])
	_, err = b.Register(shadow)
	require.NoError(t, err)
	_, err = shadow.Acquire(t.Context(), core.Call{})
	require.NoError(t, err)
	require.EqualValues(t, 2, b.metrics(t)[told])

	// The component knows of more than the Hook has heard.
	other := &reporter{report: core.Report{Name: "other", Values: []core.Value{
		core.Count("surgewall.shadow.refusals", "{call}", 5).With("enforced", "false"),
	}}}
	_, err = b.Register(other)
	require.NoError(t, err)
	b.Observe(t.Context(), core.Event{Kind: core.KindShadowed, Component: "other", Reason: core.RateLimited})
	require.EqualValues(t, 5, b.metrics(t)["surgewall.shadow.refusals{surgewall.shadow.enforced=false,surgewall.shadow.name=other}"])
}

type refusing struct{}

func (refusing) Acquire(context.Context, core.Call) (core.Permit, error) {
	return core.Permit{}, &core.Rejection{Guard: "limit", Reason: core.RateLimited}
}

// What appears in a report only later gets its instrument then.
func TestNamesThatAppearLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(t)
		r := &reporter{report: core.Report{Name: "x"}}
		_, err := b.Register(r)
		require.NoError(t, err)
		require.Empty(t, b.metrics(t))
		r.mu.Lock()
		r.report.Values = []core.Value{core.Count("surgewall.pool.acquisitions", "{call}", 7)}
		r.mu.Unlock()
		b.metrics(t) // notices the name
		synctest.Wait()
		require.EqualValues(t, 7, b.metrics(t)["surgewall.pool.acquisitions{surgewall.pool.name=x}"])
	})
}

func TestBadReports(t *testing.T) {
	b := newBackend(t)
	good := &reporter{report: core.Report{Name: "good", Values: []core.Value{core.Count("surgewall.pool.acquisitions", "{call}", 7)}}}
	bad := &reporter{report: core.Report{Name: "bad", Values: []core.Value{
		core.Count("no name for an instrument", "{call}", 1),
		core.Reading("surgewall.pool.acquisitions", "1", 1), // another type under the same name
		{Name: "surgewall.pool.untyped"},
	}}}
	unregister, err := b.Register(good, bad, nil, panicking{})
	require.ErrorContains(t, err, "no name for an instrument")
	require.NotNil(t, unregister)
	want := map[string]float64{"surgewall.pool.acquisitions{surgewall.pool.name=good}": 7}
	require.Equal(t, want, b.metrics(t))
	_, err = b.Register(bad)
	require.NoError(t, err, "said once")
	require.Equal(t, want, b.metrics(t))
}

type panicking struct{}

func (panicking) Name() string         { return "" }
func (panicking) Inspect() core.Report { panic("Inspect") }

func TestRegisterWhileCollecting(t *testing.T) {
	b := newBackend(t)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				unregister, err := b.Register(&reporter{report: core.Report{Name: "x", Values: []core.Value{
					core.Count(fmt.Sprintf("surgewall.pool.n%d_%d", g, i), "{call}", 1),
				}}})
				if err != nil {
					t.Error(err)
				}
				unregister()
			}
		})
		wg.Go(func() {
			for range 50 {
				var rm metricdata.ResourceMetrics
				if err := b.reader.Collect(context.Background(), &rm); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.Empty(t, b.metrics(t))
}
