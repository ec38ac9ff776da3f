package sqlpool

import (
	"slices"
	"time"
)

// Role is what a node of a Cluster is, as of its last probe.
type Role uint8

// The roles. A Cluster's writes go to its primary, and reads to its replicas.
const (
	RoleUnknown     Role = iota // it was not asked yet
	RolePrimary                 // it accepts writes, and gets them
	RoleReplica                 // it is in recovery
	RoleOldPrimary              // it would accept writes, and gets none: another was promoted, or it is of another cluster
	RoleUnreachable             // it could not be asked
)

var roleNames = [...]string{
	RoleUnknown: "unknown", RolePrimary: "primary", RoleReplica: "replica",
	RoleOldPrimary: "old_primary", RoleUnreachable: "unreachable",
}

func (r Role) String() string {
	if int(r) < len(roleNames) {
		return roleNames[r]
	}
	return roleNames[RoleUnknown]
}

// sighting is what one probe of a node saw.
type sighting struct {
	at  time.Time // when it began
	err error     // then nothing was seen
	// errType is err's class; asked of it here, as it may be of a user's type.
	errType string
	// full: the server answered that it has no room for the probe. It is there,
	// so what was seen before holds, and grows old.
	full bool

	replica  bool
	timeline uint32
	lsn      lsn // a primary's end of the log, or how far a replica has replayed it
	server   identity
}

// topology is what the probes know of a cluster. It is told of sightings, one
// after the other, does no I/O, and waits for nothing.
type topology struct {
	maxLag       time.Duration // negative: off
	primaryReads bool

	nodes     []nodeView
	primary   int  // where writes go; -1: nowhere
	primaries bool // there was one once

	// system is what most of the nodes that can be asked are of; a node of another
	// serves nothing. Each system counts its timelines anew: latest has those of
	// the ones before.
	system uint64
	latest map[uint64]uint32

	// timeline is the latest that any node of system was seen on. A promotion begins a new
	// one, so a primary on an earlier one was replaced, whether or not its
	// successor can be asked now.
	timeline uint32
	marks    []mark // of timeline, oldest first
}

// nodeView is what is known of one node.
type nodeView struct {
	role    Role
	since   time.Time // when it came into role; zero: it never was in another
	err     error     // of the last probe
	errType string

	asked     bool // once at least
	reachable bool

	at       time.Time // when the last probe that saw it began; zero: none
	replica  bool      // this and what follows is what that one saw
	timeline uint32
	lsn      lsn
	server   identity

	// freshAt is an instant before which all that the primary committed is on
	// this replica; zero: not known. It is never later than it should be.
	freshAt time.Time
	lag     time.Duration // from freshAt to the last mark; with no freshAt, at least this
	lagging bool          // lag was last known to be above maxLag, and since then not to be well below
	reads   bool          // it serves reads that say Any
}

// mark is a primary's end of the log: all that was committed before at is in it.
type mark struct {
	at   time.Time
	lsn  lsn
	node int // the primary
}

const (
	maxMarks = 256                    // remembered, to date what a lagging replica has reached
	markGap  = 250 * time.Millisecond // between those remembered
)

func newTopology(nodes int, maxLag time.Duration, primaryReads bool) *topology {
	return &topology{
		maxLag: maxLag, primaryReads: primaryReads,
		nodes: make([]nodeView, nodes), primary: -1, latest: make(map[uint64]uint32),
	}
}

// see takes in a sighting of node i, at now.
func (t *topology) see(i int, s sighting, now time.Time) {
	n := &t.nodes[i]
	n.asked, n.err, n.errType = true, s.err, s.errType
	switch {
	case s.err == nil:
		t.take(n, s)
	case !s.full:
		n.reachable = false
	}
	t.adopt()
	t.choose()
	t.date()
	for j := range t.nodes {
		t.judge(j, now)
	}
}

// take takes in what a probe saw.
func (t *topology) take(n *nodeView, s sighting) {
	// A server that was restarted, or made anew, may be behind what it was. Once
	// there was a primary, one of which nothing is known stays out until it is dated.
	if n.at.IsZero() || s.server != n.server || s.replica != n.replica || s.timeline < n.timeline || s.lsn < n.lsn {
		n.freshAt = time.Time{}
		n.lagging = t.maxLag >= 0 && t.primaries
	}
	n.reachable = true
	n.at, n.replica, n.timeline, n.lsn, n.server = s.at, s.replica, s.timeline, s.lsn, s.server
	t.latest[s.server.system] = max(t.latest[s.server.system], s.timeline)
}

// adopt decides which system the cluster is: the one that it was, unless more of
// the nodes that can be asked are of another. So a server that has no business
// here, or an address that leads astray, takes over nothing, and a cluster that
// was made anew, as by pg_upgrade, is the cluster once it is up. Then, and when
// there is a new timeline, it forgets how far the other had got.
func (t *topology) adopt() {
	votes := make(map[uint64]int)
	for i := range t.nodes {
		if t.nodes[i].reachable {
			votes[t.nodes[i].server.system]++
		}
	}
	system := t.system
	for i := range t.nodes {
		if id := t.nodes[i].server.system; votes[id] > votes[system] {
			system = id
		}
	}
	timeline := t.latest[system]
	if system == t.system && timeline == t.timeline {
		return
	}
	if system != t.system {
		t.primary = -1
	}
	t.system, t.timeline = system, timeline
	t.forget()
}

// foreign reports whether n is of another system than the cluster.
func (t *topology) foreign(n *nodeView) bool { return n.server.system != t.system }

// position is how far n has got.
func (n *nodeView) position() Token { return Token{n.server.family(), n.timeline, n.lsn} }

// forget drops the marks of another primary. Nobody knows since when there is a
// new one, and what that one has committed is on no mark of the one before.
func (t *topology) forget() {
	t.marks = nil
	for i := range t.nodes {
		t.nodes[i].freshAt = time.Time{}
	}
}

// choose decides where writes go. A primary stays it until it is a replica, or a
// later timeline is seen, or it cannot be asked and another says that it is a
// primary of the same timeline: that it cannot be asked alone is no proof that
// it is gone. The first is chosen when every node was asked: the one that
// answers late may have been promoted in the place of one that was quick.
func (t *topology) choose() {
	if t.primary >= 0 {
		n := &t.nodes[t.primary]
		switch {
		case n.replica || n.timeline < t.timeline || t.foreign(n):
			t.primary = -1
		case n.reachable:
			return
		}
	}
	best := -1
	for i := range t.nodes {
		n := &t.nodes[i]
		if !n.asked && t.primary < 0 {
			return
		}
		if n.reachable && !n.replica && !t.foreign(n) && n.timeline == t.timeline && (best < 0 || n.lsn > t.nodes[best].lsn) {
			best = i
		}
	}
	if best >= 0 {
		t.primary = best
	}
}

// date marks how far the primary is, if that was seen, and dates the replicas by
// the last mark that they have reached.
func (t *topology) date() {
	if t.primary >= 0 {
		t.primaries = true
		p := &t.nodes[t.primary]
		if k := len(t.marks); k > 0 && t.marks[k-1].node != t.primary {
			t.forget()
		}
		if k := len(t.marks); k == 0 || p.at.After(t.marks[k-1].at) {
			t.mark(mark{p.at, p.lsn, t.primary})
		}
	}
	for i := range t.nodes {
		n := &t.nodes[i]
		if !n.replica || n.timeline < t.timeline || t.foreign(n) {
			continue
		}
		for _, m := range slices.Backward(t.marks) {
			if n.lsn >= m.lsn {
				if m.at.After(n.freshAt) {
					n.freshAt = m.at
				}
				break
			}
		}
	}
}

// mark adds m. Of marks that are close together the last stays, so that a replica
// which has all that there is gets the latest date.
func (t *topology) mark(m mark) {
	if k := len(t.marks); k >= 2 && m.at.Sub(t.marks[k-2].at) < markGap {
		t.marks[k-1] = m
		return
	}
	if len(t.marks) == maxMarks {
		t.marks = slices.Delete(t.marks, 0, 1)
	}
	t.marks = append(t.marks, m)
}

// judge says what node i is, and whether it serves reads. A replica that lagged
// comes back when it lags half of what is allowed, so that it does not come and
// go. While there is nothing to date it by, one that lagged stays out, and one
// that did not stays in. Before every node was asked, none serves: the primary
// that it is behind may be the one that has not answered yet.
func (t *topology) judge(i int, now time.Time) {
	n := &t.nodes[i]
	if role := t.role(i); role != n.role {
		n.role, n.since = role, now
	}
	n.lag = 0
	switch k := len(t.marks); {
	case !n.replica:
		n.lagging = false
	case k > 0: // reachable or not: it may come back when the marks are gone
		from := n.freshAt
		unknown := from.IsZero()
		if unknown {
			from = t.marks[0].at
		}
		lag := t.marks[k-1].at.Sub(from)
		n.lagging = t.maxLag >= 0 && (unknown || lag > t.maxLag || n.lagging && lag > t.maxLag/2)
		if n.reachable {
			n.lag = lag
		}
	}
	n.reads = n.role == RoleReplica && !n.lagging && !t.foreign(n) && t.complete() || n.role == RolePrimary && t.primaryReads
}

// complete reports whether each node was asked.
func (t *topology) complete() bool {
	return !slices.ContainsFunc(t.nodes, func(n nodeView) bool { return !n.asked })
}

func (t *topology) role(i int) Role {
	n := &t.nodes[i]
	switch {
	case !n.asked:
		return RoleUnknown
	case !n.reachable:
		return RoleUnreachable
	case n.replica:
		return RoleReplica
	case i == t.primary:
		return RolePrimary
	case t.primary < 0 && n.timeline == t.timeline && !t.foreign(n):
		return RoleUnknown // until all were asked
	default:
		return RoleOldPrimary
	}
}
