package transport

import (
	"math/rand/v2"
	"sync"
	"time"
)

// pauses is when the pause of each key ends, so that none is made shorter. The
// times count from one epoch. The zero pauses is ready to use, and safe for
// concurrent use.
type pauses[K comparable] struct {
	mu    sync.Mutex
	until map[K]time.Duration // guarded by mu; a pause that is over stays until a sweep meets it
}

const (
	// The most pauses that are remembered at a time. Beyond it a pause is still
	// made, but a later one may make it shorter.
	maxPauses = 100_000

	sweepStep = 4 // pauses looked at for each new one
)

// extend makes the pause of key last until then, and up to jitter longer, unless
// it does already. It returns its end, and whether that has changed.
func (p *pauses[K]) extend(key K, now, until, jitter time.Duration) (end time.Duration, longer bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	end, known := p.until[key]
	if known && end >= until {
		return end, false
	}
	if end = until; jitter > 0 {
		end += rand.N(jitter + 1)
	}
	if known || p.room(now) {
		p.until[key] = end
	}
	return end, true
}

// room makes room for one more pause, if it can. The caller holds mu.
func (p *pauses[K]) room(now time.Duration) bool {
	if p.until == nil {
		p.until = make(map[K]time.Duration)
	}
	looked := 0
	for key, until := range p.until { // from anywhere, each time anew
		if until <= now {
			delete(p.until, key)
		}
		if looked++; looked == sweepStep {
			break
		}
	}
	return len(p.until) < maxPauses
}

// of is when the pause of key ends, if that is known.
func (p *pauses[K]) of(key K) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.until[key]
}
