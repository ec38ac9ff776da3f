package otelhook

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/surgewall/surgewall/core"
)

// Register exports the numbers in the reports of components, at each
// collection, until unregister is called or the Hook is shut down. A Value
// becomes an observable instrument of the Value's name, unit and type, with the
// component's name as attribute: surgewall.circuit_breaker.calls has
// surgewall.circuit_breaker.name and surgewall.circuit_breaker.outcome. Children
// of a report are exported too, with their parent's name as
// surgewall.….parent; those beyond 64 of one parent together, under the name
// "_OTHER". What has the same name and attributes is added up. A Distribution
// is left out: no observable instrument takes one.
//
// Register a component once, and not beside a parent that reports it. Reports
// are read on the goroutine of the collection. err joins what the meter did not
// accept; the rest is registered, so unregister is never nil.
func (h *Hook) Register(components ...core.Component) (unregister func(), err error) {
	if h == nil {
		return func() {}, nil
	}
	added := &registration{components: slices.Clone(components)}
	h.exporter.change(func(all []*registration) []*registration {
		return append(slices.Clone(all), added)
	})
	return func() {
		h.exporter.change(func(all []*registration) []*registration {
			return slices.DeleteFunc(slices.Clone(all), func(r *registration) bool { return r == added })
		})
	}, h.exporter.update(h)
}

type registration struct{ components []core.Component }

// exporter observes instruments: for registered components, and for what the
// Hook counts itself.
type exporter struct {
	registered  atomic.Pointer[[]*registration]        // replaced under mu
	instruments atomic.Pointer[map[string]*instrument] // replaced under mu; by name

	// mu is held to change what is observed, also while the meter is told of
	// it. Neither events nor collections take it.
	mu       sync.Mutex
	callback metric.Registration // guarded by mu; nil after end
	ended    bool                // guarded by mu
}

// instrument is one observable instrument. The zero instrument stands for one
// that the meter did not accept, and is not asked for again.
type instrument struct {
	unit   string
	typ    core.ValueType
	number metric.Int64Observable // one of these is set
	real   metric.Float64Observable
}

// own are what the Hook observes whether or not a component is registered.
var own = []core.Value{
	{Name: metricLimited, Unit: "{request}", Type: core.Counter},
	{Name: metricShed, Unit: "{request}", Type: core.Counter},
	{Name: metricShadow, Unit: "{call}", Type: core.Counter},
}

func (x *exporter) start(h *Hook) error {
	x.registered.Store(&[]*registration{})
	x.instruments.Store(&map[string]*instrument{})
	return x.update(h)
}

func (x *exporter) end() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ended = true
	if x.callback == nil {
		return nil
	}
	err := x.callback.Unregister()
	x.callback = nil
	return err
}

func (x *exporter) change(f func([]*registration) []*registration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	next := f(*x.registered.Load())
	x.registered.Store(&next)
}

// update makes the instruments that reports name and that are not there yet,
// and has the meter call back for all.
func (x *exporter) update(h *Hook) error {
	wanted := slices.Clone(own) // read before mu is taken: Inspect is code of others
	for _, r := range *x.registered.Load() {
		for _, c := range r.components {
			eachValue(inspect(c), "", func(_, _ string, v core.Value) { wanted = append(wanted, v) })
		}
	}

	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ended {
		return nil
	}
	var errs []error
	all := maps.Clone(*x.instruments.Load())
	known := len(all)
	for _, v := range wanted {
		if _, ok := all[v.Name]; !ok && v.Type != core.Distribution {
			i, err := newInstrument(h.meter, v)
			all[v.Name] = i
			errs = append(errs, err)
		}
	}
	if len(all) == known {
		return nil
	}
	if x.callback != nil {
		errs = append(errs, x.callback.Unregister())
		x.callback = nil
	}
	var observables []metric.Observable
	for _, i := range all {
		switch {
		case i.number != nil:
			observables = append(observables, i.number)
		case i.real != nil:
			observables = append(observables, i.real)
		}
	}
	x.instruments.Store(&all)
	callback, err := h.meter.RegisterCallback(h.collect, observables...)
	if err == nil {
		x.callback = callback
	}
	return errors.Join(append(errs, err)...)
}

// newInstrument is never nil. What is counted in pieces is an integer, what is
// measured is not.
func newInstrument(m metric.Meter, v core.Value) (i *instrument, err error) {
	i = &instrument{unit: v.Unit, typ: v.Type}
	unit := metric.WithUnit(v.Unit)
	pieces := strings.HasPrefix(v.Unit, "{")
	switch {
	case v.Type == core.Counter && pieces:
		i.number, err = orNil(m.Int64ObservableCounter(v.Name, unit))
	case v.Type == core.Counter:
		i.real, err = orNil(m.Float64ObservableCounter(v.Name, unit))
	case v.Type == core.UpDownCounter && pieces:
		i.number, err = orNil(m.Int64ObservableUpDownCounter(v.Name, unit))
	case v.Type == core.UpDownCounter:
		i.real, err = orNil(m.Float64ObservableUpDownCounter(v.Name, unit))
	case v.Type == core.Gauge:
		i.real, err = orNil(m.Float64ObservableGauge(v.Name, unit))
	}
	return i, err
}

// orNil is the instrument, or a nil of its interface where the meter refused.
func orNil[I metric.Observable](i I, err error) (I, error) {
	if err != nil {
		var none I
		return none, err
	}
	return i, nil
}

// collect is the callback of the meter.
func (h *Hook) collect(_ context.Context, o metric.Observer) error {
	sums := make(sums)
	instruments := *h.exporter.instruments.Load()
	unknown := false
	for _, r := range *h.exporter.registered.Load() {
		for _, c := range r.components {
			eachValue(inspect(c), "", func(name, parent string, v core.Value) {
				i, ok := instruments[v.Name]
				switch {
				case v.Type == core.Distribution:
				case !ok:
					unknown = true
				case i.typ == v.Type && i.unit == v.Unit:
					sums.add(i, valueAttributes(name, parent, v), v.Number)
				}
			})
		}
	}
	if unknown {
		poke(h.learn)
	}
	for at, s := range h.ownCounts(instruments) {
		// What a component counts itself is in its report.
		if _, reported := sums[at]; !reported {
			sums[at] = s
		}
	}
	for at, s := range sums {
		switch with := metric.WithAttributeSet(s.attrs); {
		case at.instrument.number != nil:
			o.ObserveInt64(at.instrument.number, int64(s.n), with)
		case at.instrument.real != nil:
			o.ObserveFloat64(at.instrument.real, s.n, with)
		}
	}
	return nil
}

// ownCounts are the refusals that the Hook heard of.
func (h *Hook) ownCounts(instruments map[string]*instrument) sums {
	own := make(sums)
	for key, r := range h.refusals.all() {
		for i := range r.counts {
			n := float64(r.counts[i].Load())
			if n == 0 {
				continue
			}
			switch {
			case !key.enforced:
				own.add(instruments[metricShadow], attribute.NewSet(
					keyShadow.String(key.name), keyEnforced.String("false")), n)
			case key.quota:
				own.add(instruments[metricLimited], attribute.NewSet(
					keyLimiter.String(key.name), keyResult.String("rejected")), n)
			default:
				own.add(instruments[metricShed], attribute.NewSet(
					keyShedder.String(key.name), keyShedReason.String(core.Reason(i).String())), n)
			}
		}
	}
	return own
}

// sums adds up what has the same instrument and attributes. Of a Gauge, whose
// readings do not add up, the last stays.
type sums map[point]sum

type point struct {
	instrument *instrument
	attrs      attribute.Distinct
}

type sum struct {
	attrs attribute.Set
	n     float64
}

func (s sums) add(i *instrument, attrs attribute.Set, n float64) {
	at := point{i, attrs.Equivalent()}
	if i.typ != core.Gauge {
		n += s[at].n
	}
	s[at] = sum{attrs, n}
}

// inspect is c's report, or an empty one if c panics.
func inspect(c core.Component) (r core.Report) {
	defer func() {
		if recover() != nil {
			r = core.Report{}
		}
	}()
	if c == nil {
		return core.Report{}
	}
	return c.Inspect()
}

// maxChildren is how many children of one parent have their own attributes.
const maxChildren = 64

// eachValue calls f with each value in r, the name that it goes by, and its
// parent's.
func eachValue(r core.Report, parent string, f func(name, parent string, v core.Value)) {
	for _, v := range r.Values {
		f(r.Name, parent, v)
	}
	for i, child := range r.Children {
		if i >= maxChildren {
			child.Name = other
		}
		eachValue(child, r.Name, f)
	}
}

// connections are metrics whose attributes OpenTelemetry has named.
const connections = "db.client.connection."

// valueAttributes are the component's name, its parent's if it has one, and the
// value's own attribute, in the namespace of the metric: the first two parts of
// its name. A key that has a dot is whole already.
func valueAttributes(name, parent string, v core.Value) attribute.Set {
	namespace, rest, _ := strings.Cut(v.Name, ".")
	if second, _, ok := strings.Cut(rest, "."); ok {
		namespace += "." + second
	}
	nameKey := attribute.Key(namespace + ".name")
	if strings.HasPrefix(v.Name, connections) {
		namespace, nameKey = strings.TrimSuffix(connections, "."), semconv.DBClientConnectionPoolNameKey
	}
	attrs := append(make([]attribute.KeyValue, 0, 3), nameKey.String(name))
	if parent != "" {
		attrs = append(attrs, attribute.String(namespace+".parent", parent))
	}
	if key := v.Attr.Key; key != "" {
		if !strings.Contains(key, ".") {
			key = namespace + "." + key
		}
		attrs = append(attrs, attribute.String(key, v.Attr.Value))
	}
	return attribute.NewSet(attrs...)
}
