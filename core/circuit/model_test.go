package circuit

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
)

// model is the breaker as one would write it without haste: no words, no
// generations packed, no counters that only grow, everything in plain fields.
type model struct {
	cfg        Config
	epoch      time.Time
	state      State
	generation int
	failures   int
	results    []modelResult // of this generation
	known      bool
	succeeded  int
	failed     int
	streak     int
	until      time.Time // of Open and ForcedOpen
	below      State
	belowUntil time.Time
	rampFrom   time.Time
	rampFor    time.Duration // of the ramp that runs
	ramped     int
	probes     map[int]modelProbe // by number of the call
	order      []int              // of probes, oldest first
	changes    []State
	counts     map[core.Outcome]uint64
	slow       uint64
	wouldTrip  uint64
}

type modelProbe struct{ began, expires time.Time }

type modelResult struct {
	slot      int64
	bad, slow bool
}

func (m *model) now() int64 { return int64(time.Since(m.epoch)) }

func (m *model) change(to State) {
	m.begin()
	m.state, m.succeeded, m.failed = to, 0, 0
	m.generation++
	m.rampFrom = time.Time{}
	m.probes, m.order = map[int]modelProbe{}, nil
	m.changes = append(m.changes, to)
}

// begin forgets what is known of results.
func (m *model) begin() { m.failures, m.results, m.known = 0, nil, false }

func (m *model) openNow() {
	m.change(Open)
	d := float64(m.cfg.OpenFor) * math.Pow(m.cfg.OpenGrowth, float64(m.streak))
	if m.cfg.OpenGrowth > 1 && m.streak > 0 {
		d = min(d, float64(m.cfg.OpenMax))
	}
	m.until = time.Now().Add(time.Duration(d))
}

func (m *model) force(to State, d time.Duration) {
	if m.state == ForcedOpen && !time.Now().Before(m.until) {
		m.restore()
	}
	if !m.state.forced() {
		m.below, m.belowUntil = m.state, m.until
	}
	if m.state != to {
		m.change(to)
	}
	if to == ForcedOpen {
		m.until = time.Now().Add(time.Hour * 100_000)
		if d > 0 {
			m.until = time.Now().Add(d)
		}
	}
}

func (m *model) restore() {
	m.change(m.below)
	m.until = m.belowUntil
}

func (m *model) placesTaken() (n int) {
	for _, p := range m.probes {
		if time.Now().Before(p.expires) {
			n++
		}
	}
	return n
}

func (m *model) acquire(number int) error {
	if m.state == ForcedOpen {
		if time.Now().Before(m.until) {
			return ErrOpen
		}
		m.restore()
	}
	if m.state == Open {
		if time.Now().Before(m.until) {
			return ErrOpen
		}
		m.change(HalfOpen)
	}
	if m.state == HalfOpen {
		if m.placesTaken() >= m.cfg.Probes {
			return ErrProbesTaken
		}
		// As many overdue probes are remembered as there are places.
		for len(m.probes)-m.placesTaken() > m.cfg.Probes {
			delete(m.probes, m.order[0])
			m.order = m.order[1:]
		}
		m.probes[number] = modelProbe{time.Now(), time.Now().Add(m.cfg.ProbeLease)}
		m.order = append(m.order, number)
	}
	if m.state == Closed && !m.rampFrom.IsZero() {
		percent := 100
		switch since := time.Since(m.rampFrom); {
		case since < m.rampFor/3:
			percent = 10
		case since < m.rampFor/3*2:
			percent = 25
		case since < m.rampFor:
			percent = 50
		default:
			m.rampFrom = time.Time{}
			return nil
		}
		// The calls 1, 1+100/percent, 1+2·100/percent, … of the ramp.
		m.ramped++
		if (m.ramped-1)%(100/percent) != 0 {
			return ErrRamping
		}
	}
	return nil
}

// end books a call. cancel is for one that never started.
func (m *model) end(c *call, o core.Outcome, cancel bool) {
	current := c.generation == m.generation
	if c.state == Disabled {
		return
	}
	isSlow := m.cfg.SlowCall > 0 && o != core.Ignored && !cancel && c.timed && time.Since(c.began) >= m.cfg.SlowCall
	if !cancel {
		m.counts[o]++
	}
	if c.state == HalfOpen {
		if _, known := m.probes[c.number]; !known || !current {
			return
		}
		if isSlow {
			m.slow++
		}
		delete(m.probes, c.number)
		for i, n := range m.order {
			if n == c.number {
				m.order = append(m.order[:i:i], m.order[i+1:]...)
				break
			}
		}
		needed := int(math.Ceil(float64(m.cfg.SuccessThreshold) * float64(m.cfg.SuccessPercent) / 100))
		switch {
		case cancel || o == core.Ignored:
		case o == core.Success && !isSlow:
			if m.succeeded++; m.succeeded >= needed {
				m.streak = 0
				m.change(Closed)
				if m.cfg.RampFor > 0 {
					m.rampFrom, m.rampFor, m.ramped = time.Now(), m.cfg.RampFor, 0
				}
			}
		default:
			if m.failed++; m.failed > m.cfg.SuccessThreshold-needed {
				m.streak++
				m.openNow()
			}
		}
		return
	}
	if isSlow {
		m.slow++
	}
	if cancel || o == core.Ignored || !current || m.state != Closed && m.state != MetricsOnly {
		return
	}
	if m.inARow(o) || m.overRate(o, isSlow) {
		if m.state == MetricsOnly {
			m.wouldTrip++
			m.begin()
			m.generation++
			return
		}
		m.openNow()
	}
}

func (m *model) inARow(o core.Outcome) bool {
	switch o {
	case core.Success:
		m.failures = 0
	case core.Failure:
		m.failures++
		return m.cfg.FailureThreshold != Off && m.failures >= m.cfg.FailureThreshold
	}
	return false
}

func (m *model) overRate(o core.Outcome, isSlow bool) bool {
	if !m.cfg.rated() {
		return false
	}
	r := modelResult{bad: o != core.Success, slow: isSlow}
	if m.cfg.Window > 0 {
		r.slot = m.now() / (int64(m.cfg.Window) / 10)
	}
	m.results = append(m.results, r)
	if m.known && !r.bad && !r.slow {
		return false
	}
	total, bad, slow := m.window()
	if total < m.cfg.MinCalls {
		return false
	}
	m.known = true
	return m.cfg.FailurePercent > 0 && bad*100 >= m.cfg.FailurePercent*total ||
		m.cfg.SlowPercent > 0 && slow*100 >= m.cfg.SlowPercent*total
}

// window is the results that count now.
func (m *model) window() (total, bad, slow int) {
	results := m.results
	if m.cfg.WindowCalls > 0 {
		results = results[max(0, len(results)-m.cfg.WindowCalls):]
	}
	for _, r := range results {
		if m.cfg.Window > 0 && r.slot < m.now()/(int64(m.cfg.Window)/10)-9 {
			continue
		}
		total++
		if r.bad {
			bad++
		}
		if r.slow {
			slow++
		}
	}
	return total, bad, slow
}

func (m *model) reconfigure(cfg Config) {
	if cfg.Window != m.cfg.Window || cfg.WindowCalls != m.cfg.WindowCalls {
		m.results = nil
	}
	m.known = false
	m.cfg = cfg
	for n, p := range m.probes {
		if end := p.began.Add(cfg.ProbeLease); end.Before(p.expires) {
			m.probes[n] = modelProbe{p.began, end}
		}
	}
}

// Any sequence of calls, results, cancellations, losses, waits, forces and new settings
// leaves the breaker in the state that the model is in, after each step.
func TestAgreesWithModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(noDeadline{t}, agree)
	})
}

// FuzzAgreesWithModel is TestAgreesWithModel for go test -fuzz.
func FuzzAgreesWithModel(f *testing.F) {
	fuzzed := rapid.MakeFuzz(agree)
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) { fuzzed(t, data) })
	})
}

// noDeadline hides the test's deadline, which is none of the bubble's time.
type noDeadline struct{ *testing.T }

func (noDeadline) Deadline() (time.Time, bool) { return time.Time{}, false }

type call struct {
	number, generation int
	state              State
	began              time.Time
	timed              bool // it was known then that this would be asked for
	permit             core.Permit
}

func drawConfig(t *rapid.T) Config {
	small := rapid.IntRange(1, 4)
	seconds := func(field string) time.Duration { return time.Duration(small.Draw(t, field)) * time.Second }
	cfg := Config{
		FailureThreshold: small.Draw(t, "FailureThreshold"),
		SuccessThreshold: small.Draw(t, "SuccessThreshold"),
		SuccessPercent:   rapid.SampledFrom([]int{0, 1, 34, 50, 51, 75, 100}).Draw(t, "SuccessPercent"),
		Probes:           small.Draw(t, "Probes"),
		OpenFor:          seconds("OpenFor"),
		ProbeLease:       seconds("ProbeLease"),
		OpenGrowth:       rapid.SampledFrom([]float64{0, 1.5, 2}).Draw(t, "OpenGrowth"),
	}
	if rapid.Bool().Draw(t, "OpenMax set") {
		cfg.OpenMax = cfg.OpenFor + seconds("OpenMax")
	}
	if rapid.Bool().Draw(t, "ramp") {
		cfg.RampFor = 3 * seconds("RampFor")
	}
	if rapid.Bool().Draw(t, "rated") {
		percent := rapid.SampledFrom([]int{1, 25, 50, 60, 67, 100})
		cfg.FailurePercent = percent.Draw(t, "FailurePercent")
		if rapid.Bool().Draw(t, "slow") {
			cfg.SlowCall, cfg.SlowPercent = seconds("SlowCall"), percent.Draw(t, "SlowPercent")
		}
		if rapid.Bool().Draw(t, "FailureThreshold off") {
			cfg.FailureThreshold = Off
		}
		cfg.MinCalls = rapid.IntRange(1, 8).Draw(t, "MinCalls")
		if rapid.Bool().Draw(t, "count window") {
			cfg.WindowCalls = cfg.MinCalls + rapid.IntRange(0, 5).Draw(t, "WindowCalls")
		} else {
			cfg.Window = seconds("Window")
		}
	}
	return cfg
}

func agree(t *rapid.T) {
	cfg := drawConfig(t)
	m := &model{cfg: cfg.withDefaults(), counts: map[core.Outcome]uint64{}, epoch: time.Now()}
	var changes []State
	last := Closed
	cfg.OnStateChange = func(from, to State) {
		if from != last || from == to {
			t.Errorf("from %v to %v after %v", from, to, last)
		}
		last = to
		changes = append(changes, to)
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	var out []*call
	number := 0
	take := func(t *rapid.T) *call {
		if len(out) == 0 {
			t.Skip("no call is out")
		}
		i := rapid.IntRange(0, len(out)-1).Draw(t, "call")
		c := out[i]
		out = append(out[:i:i], out[i+1:]...)
		return c
	}
	acquire := func(t *rapid.T) {
		number++
		want := m.acquire(number)
		p, err := b.Acquire(ctx, core.Call{})
		switch {
		case want == nil && err == nil:
			out = append(out, &call{number, m.generation, m.state, time.Now(), m.cfg.SlowCall > 0 || m.state == HalfOpen, p.Take()})
		case want == nil || err == nil || !err.(*core.Rejection).Is(want):
			t.Fatalf("Acquire: %v, model: %v", err, want)
		}
	}
	finish := func(t *rapid.T) {
		c := take(t)
		o := core.Outcome(rapid.IntRange(0, 3).Draw(t, "outcome"))
		m.end(c, o, false)
		c.permit.Done(ctx, o)
		c.permit.Done(ctx, o)
	}
	t.Repeat(map[string]func(*rapid.T){
		"acquire":  acquire,
		"acquire2": acquire,
		"acquire3": acquire,
		"finish":   finish,
		"finish2":  finish,
		"finish3":  finish,
		"cancel": func(t *rapid.T) {
			c := take(t)
			m.end(c, core.Ignored, true)
			c.permit.Cancel()
		},
		"lose": func(t *rapid.T) { take(t) },
		"wait": func(t *rapid.T) {
			time.Sleep(time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms")) * time.Millisecond)
		},
		"force": func(t *rapid.T) {
			switch rapid.IntRange(0, 11).Draw(t, "force") {
			case 0:
				d := time.Duration(rapid.IntRange(0, 4).Draw(t, "for")) * time.Second
				m.force(ForcedOpen, d)
				b.ForceOpen(d)
			case 1:
				m.force(ForcedClosed, 0)
				b.ForceClosed()
			case 2:
				m.force(Disabled, 0)
				b.Disable()
			case 3:
				m.force(MetricsOnly, 0)
				b.MetricsOnly()
			case 4:
				m.streak = 0
				if m.state == Closed {
					m.begin()
					m.generation++
					m.rampFrom = time.Time{}
				} else {
					m.change(Closed)
				}
				b.Reset()
			default:
				if m.state.forced() {
					m.restore()
				}
				b.ClearForce()
			}
		},
		"reconfigure": func(t *rapid.T) {
			if rapid.IntRange(0, 3).Draw(t, "seldom") > 0 {
				t.Skip("not now")
			}
			cfg := drawConfig(t)
			m.reconfigure(cfg.withDefaults())
			if err := b.Reconfigure(cfg); err != nil {
				t.Fatal(err)
			}
		},
		"": func(t *rapid.T) { m.compare(t, b, changes) },
	})
}

func (m *model) compare(t *rapid.T, b *Breaker, changes []State) {
	s := b.Stats()
	state, until := m.state, m.until
	if state == ForcedOpen && !time.Now().Before(until) {
		state, until = m.below, m.belowUntil
	}
	fresh := state != m.state
	ready := true
	switch state {
	case Open:
		if ready = !time.Now().Before(until); ready {
			state, fresh = HalfOpen, true
		}
	case ForcedOpen:
		ready = false
	case HalfOpen:
		if fresh {
			break
		}
		ready = m.placesTaken() < m.cfg.Probes
		if s.ProbesOut != m.placesTaken() || s.ProbesSucceeded != m.succeeded || s.ProbesFailed != m.failed {
			t.Fatalf("%+v; model: %d out, %d, %d", s, m.placesTaken(), m.succeeded, m.failed)
		}
	case Closed, MetricsOnly:
		total, bad, slow := m.window()
		if fresh {
			total, bad, slow = 0, 0, 0
		}
		if m.cfg.rated() && (s.WindowCalls != uint64(total) || s.WindowFailures != uint64(bad) || s.WindowSlow != uint64(slow)) {
			t.Fatalf("window %d, %d, %d; model: %d, %d, %d", s.WindowCalls, s.WindowFailures, s.WindowSlow, total, bad, slow)
		}
		if !fresh && s.FailuresInARow != m.failures {
			t.Fatalf("%d failures in a row, model: %d", s.FailuresInARow, m.failures)
		}
	}
	if b.State() != state || s.State != state {
		t.Fatalf("State %v, Stats %v; model: %v", b.State(), s.State, state)
	}
	if b.Ready() != ready {
		t.Fatalf("Ready %v, model: %v", b.Ready(), ready)
	}
	if s.Successes != m.counts[core.Success] || s.Failures != m.counts[core.Failure] ||
		s.Throttled != m.counts[core.Throttled] || s.Ignored != m.counts[core.Ignored] ||
		s.Slow != m.slow || s.WouldTrip != m.wouldTrip {
		t.Fatalf("counts %+v, model: %+v", s, m)
	}
	if len(changes) != len(m.changes) {
		t.Fatalf("told of %v, model: %v", changes, m.changes)
	}
	for i := range changes {
		if changes[i] != m.changes[i] {
			t.Fatalf("told of %v, model: %v", changes, m.changes)
		}
	}
}
