package sqlpool

import "time"

// Consistency is how fresh the data of a Read must be. The zero value is Any.
type Consistency struct {
	kind  consistencyKind
	lag   time.Duration
	token Token
}

type consistencyKind uint8

const (
	anyAge consistencyKind = iota
	boundedAge
	afterToken
)

// Any is satisfied by every replica that is not further behind than
// ClusterConfig.MaxLag, as far as is known: see there for when no primary is.
// What one read has seen the next may not see yet.
func Any() Consistency { return Consistency{} }

// WithinLag is satisfied by a replica that has all that was committed d ago. It
// is known from the probes, and never taken for fresher than it is: a replica is
// as old as the beginning of the last probe of the primary whose answer it has
// reached. So it ages while the primary cannot be asked, and it is about
// ClusterConfig.ProbeInterval old when it is not behind at all: within less than
// twice that, reads have to wait for a probe. The primary satisfies it for as
// long as its probes see it, and is the only one to do so within 0.
func WithinLag(d time.Duration) Consistency {
	return Consistency{kind: boundedAge, lag: d}
}

// After is satisfied by a node that has what was committed before t was taken:
// read-your-writes, if t was taken after the write. After the zero Token is Any.
//
// What an asynchronous failover has lost is lost to tokens as well.
func After(t Token) Consistency {
	if t.IsZero() {
		return Any()
	}
	return Consistency{kind: afterToken, token: t}
}

// metBy reports whether a replica satisfies c at now.
func (c Consistency) metBy(n *nodeView, now time.Time) bool {
	switch c.kind {
	case boundedAge:
		return c.lag > 0 && !n.freshAt.IsZero() && now.Sub(n.freshAt) <= c.lag
	case afterToken:
		return n.server.family() == c.token.family && c.token.within(n.timeline, n.lsn)
	default:
		return true
	}
}

// servedBy reports whether a node that serves reads satisfies c at now. A primary
// has all that there is, unless t is of a later one, or further on than what was
// seen of it: it is seen again then, and if it still is behind, it is another
// primary, that was promoted to the same timeline. One that cannot be asked may
// have been replaced.
func (c Consistency) servedBy(n *nodeView, primary bool, now time.Time) bool {
	switch {
	case !primary:
		return c.metBy(n, now)
	case c.kind == afterToken:
		return n.server.family() == c.token.family &&
			(n.timeline > c.token.timeline || c.token.within(n.timeline, n.lsn))
	case c.kind == boundedAge:
		return n.reachable || now.Sub(n.at) <= c.lag
	default:
		return true
	}
}
