package circuit

import (
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
)

// model is the breaker as one would write it without haste: no words, no
// generations packed, everything in plain fields.
type model struct {
	cfg        Config
	state      State
	generation int
	failures   int
	successes  int
	until      time.Time
	probes     map[int]time.Time // by number of the call: when the lease ends
	order      []int             // of probes, oldest first
	changes    []State
	counts     map[core.Outcome]uint64
}

func (m *model) change(to State) {
	m.state, m.failures, m.successes = to, 0, 0
	m.generation++
	m.until = time.Now().Add(m.cfg.OpenFor)
	m.probes, m.order = map[int]time.Time{}, nil
	m.changes = append(m.changes, to)
}

func (m *model) placesTaken() (n int) {
	for _, expires := range m.probes {
		if time.Now().Before(expires) {
			n++
		}
	}
	return n
}

func (m *model) acquire(number int) error {
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
		m.probes[number] = time.Now().Add(m.cfg.ProbeLease)
		m.order = append(m.order, number)
	}
	return nil
}

// end books a call. cancel is for one that never started.
func (m *model) end(number, generation int, o core.Outcome, cancel bool) {
	if !cancel {
		m.counts[o]++
	}
	if generation != m.generation {
		return
	}
	if m.state == HalfOpen {
		if _, known := m.probes[number]; !known {
			return
		}
		delete(m.probes, number)
		for i, n := range m.order {
			if n == number {
				m.order = append(m.order[:i:i], m.order[i+1:]...)
				break
			}
		}
		switch {
		case cancel:
		case o == core.Success:
			if m.successes++; m.successes == m.cfg.SuccessThreshold {
				m.change(Closed)
			}
		case o != core.Ignored:
			m.change(Open)
		}
		return
	}
	switch {
	case cancel:
	case o == core.Success:
		m.failures = 0
	case o == core.Failure:
		if m.failures++; m.failures == m.cfg.FailureThreshold {
			m.change(Open)
		}
	}
}

// Any sequence of calls, results, cancellations, losses and waits leaves the
// breaker in the state that the model is in, after each step.
func TestAgreesWithModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(noDeadline{t}, agree)
	})
}

// noDeadline hides the test's deadline, which is none of the bubble's time.
type noDeadline struct{ *testing.T }

func (noDeadline) Deadline() (time.Time, bool) { return time.Time{}, false }

type call struct {
	number, generation int
	permit             core.Permit
}

func agree(t *rapid.T) {
	small := rapid.IntRange(1, 4)
	m := &model{
		cfg: Config{
			FailureThreshold: small.Draw(t, "FailureThreshold"),
			SuccessThreshold: small.Draw(t, "SuccessThreshold"),
			Probes:           small.Draw(t, "Probes"),
			OpenFor:          time.Duration(small.Draw(t, "OpenFor")) * time.Second,
			ProbeLease:       time.Duration(small.Draw(t, "ProbeLease")) * time.Second,
		},
		counts: map[core.Outcome]uint64{},
	}
	cfg := m.cfg
	var changes []State
	cfg.OnStateChange = func(_, to State) { changes = append(changes, to) }
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	var out []*call
	number := 0
	take := func(t *rapid.T) *call {
		i := rapid.IntRange(0, len(out)-1).Draw(t, "call")
		c := out[i]
		out = append(out[:i:i], out[i+1:]...)
		return c
	}
	t.Repeat(map[string]func(*rapid.T){
		"acquire": func(t *rapid.T) {
			number++
			want := m.acquire(number)
			p, err := b.Acquire(ctx, core.Call{})
			switch {
			case want == nil && err == nil:
				out = append(out, &call{number, m.generation, p.Take()})
			case want == nil || err == nil || !err.(*core.Rejection).Is(want):
				t.Fatalf("Acquire: %v, model: %v", err, want)
			}
		},
		"finish": func(t *rapid.T) {
			if len(out) == 0 {
				t.Skip("no call is out")
			}
			c := take(t)
			o := core.Outcome(rapid.IntRange(0, 3).Draw(t, "outcome"))
			m.end(c.number, c.generation, o, false)
			c.permit.Done(ctx, o)
			c.permit.Done(ctx, o)
		},
		"cancel": func(t *rapid.T) {
			if len(out) == 0 {
				t.Skip("no call is out")
			}
			c := take(t)
			m.end(c.number, c.generation, core.Ignored, true)
			c.permit.Cancel()
		},
		"lose": func(t *rapid.T) {
			if len(out) == 0 {
				t.Skip("no call is out")
			}
			take(t)
		},
		"wait": func(t *rapid.T) {
			time.Sleep(time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms")) * time.Millisecond)
		},
		"": func(t *rapid.T) {
			s := b.Stats()
			state := m.state
			ready := state == Closed
			if state == Open && !time.Now().Before(m.until) {
				state, ready = HalfOpen, true
			} else if state == HalfOpen {
				ready = m.placesTaken() < m.cfg.Probes
				if s.ProbesOut != m.placesTaken() || s.ProbesSucceeded != m.successes {
					t.Fatalf("%d probes out, %d succeeded; model: %d, %d", s.ProbesOut, s.ProbesSucceeded, m.placesTaken(), m.successes)
				}
			}
			if b.State() != state || s.State != state {
				t.Fatalf("State %v, Stats %v; model: %v", b.State(), s.State, state)
			}
			if b.Ready() != ready {
				t.Fatalf("Ready %v, model: %v", b.Ready(), ready)
			}
			if s.FailuresInARow != m.failures {
				t.Fatalf("%d failures in a row, model: %d", s.FailuresInARow, m.failures)
			}
			if s.Successes != m.counts[core.Success] || s.Failures != m.counts[core.Failure] ||
				s.Throttled != m.counts[core.Throttled] || s.Ignored != m.counts[core.Ignored] {
				t.Fatalf("counts %+v, model: %v", s, m.counts)
			}
			if len(changes) != len(m.changes) {
				t.Fatalf("told of %v, model: %v", changes, m.changes)
			}
			for i := range changes {
				if changes[i] != m.changes[i] {
					t.Fatalf("told of %v, model: %v", changes, m.changes)
				}
			}
		},
	})
}
