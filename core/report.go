package core

import "time"

// Component is what every long-lived part of surgewall is: it has a name and
// can be inspected. A page or a metrics exporter reads reports and needs to
// know no concrete type; a program reads the component's own Stats.
type Component interface {
	// Name is the configured name.
	Name() string

	// Inspect reports the component as it is now. It is safe for concurrent
	// use, takes no lock for long, and may be called every second.
	Inspect() Report
}

// Report is a component at one moment. The receiver owns it.
type Report struct {
	Kind     string    // "circuit_breaker", "token_bucket", "pool": constant per type
	Name     string    // the configured name
	State    string    // a constant of the component: "closed", "open"; "" if it has none
	Since    time.Time // when it came into State
	Values   []Value
	Settings []Setting // the settings in force, defaults filled in
	Children []Report  // the backends of a balancer, the breakers of a group
}

// ValueType is what kind of number a Value is, in OpenTelemetry's terms.
type ValueType uint8

const (
	// Counter only grows.
	Counter ValueType = iota + 1
	// UpDownCounter is an amount that adds up across components: connections.
	UpDownCounter
	// Gauge is a reading that does not add up: a ratio.
	Gauge
	// Distribution is a Histogram.
	Distribution
)

// Value is one number of a Report. Values with the same Name differ in Attr.
type Value struct {
	Name      string // an OpenTelemetry metric name, whole: "surgewall.circuit_breaker.calls"
	Unit      string // UCUM, as OpenTelemetry writes it: "{call}", "s", "1"
	Type      ValueType
	Attr      Attr
	Number    float64
	Histogram *Histogram // for a Distribution; Number is not used then
}

// Attr is one attribute: a constant key, and a constant or configured value.
type Attr struct{ Key, Value string }

// Histogram is a distribution: Counts[i] values were at most Bounds[i], the
// last count holds those above all bounds.
type Histogram struct {
	Bounds []float64
	Counts []uint64
	Sum    float64
}

// Setting is one setting in force: the Config field's name and its value.
type Setting struct {
	Name  string
	Value any
}

// Count is a Value of type Counter.
func Count(name, unit string, n uint64) Value {
	return Value{Name: name, Unit: unit, Type: Counter, Number: float64(n)}
}

// Amount is a Value of type UpDownCounter.
func Amount(name, unit string, n int64) Value {
	return Value{Name: name, Unit: unit, Type: UpDownCounter, Number: float64(n)}
}

// Reading is a Value of type Gauge.
func Reading(name, unit string, x float64) Value {
	return Value{Name: name, Unit: unit, Type: Gauge, Number: x}
}

// With is v with an attribute.
func (v Value) With(key, value string) Value {
	v.Attr = Attr{key, value}
	return v
}
