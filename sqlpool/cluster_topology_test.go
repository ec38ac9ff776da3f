package sqlpool

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var errDown = errors.New("down")

// told is a topology that is told of one sighting a second.
type told struct {
	*topology
	now time.Time
}

func newTold(nodes int) *told {
	return &told{newTopology(nodes, 10*time.Second, false), time.Unix(1000, 0)}
}

func (t *told) primary(i int, timeline uint32, at lsn) {
	t.tell(i, sighting{timeline: timeline, lsn: at})
}

func (t *told) replica(i int, timeline uint32, at lsn) {
	t.tell(i, sighting{replica: true, timeline: timeline, lsn: at})
}

func (t *told) gone(i int) { t.tell(i, sighting{err: errDown}) }

func (t *told) tell(i int, s sighting) {
	t.now = t.now.Add(time.Second)
	s.at = t.now
	t.see(i, s, t.now)
}

func TestTopologyChoosesWhenAllWereAsked(t *testing.T) {
	c := newTold(3)
	c.primary(0, 1, 100)
	require.Equal(t, -1, c.topology.primary)
	require.Equal(t, RoleUnknown, c.nodes[0].role)
	c.gone(2)
	require.Equal(t, -1, c.topology.primary)
	c.primary(1, 2, 50)
	require.Equal(t, 1, c.topology.primary, "the latest timeline")
	require.Equal(t, RoleOldPrimary, c.nodes[0].role)
	require.Equal(t, RoleUnreachable, c.nodes[2].role)
}

func TestTopologyKeepsThePrimaryThatWas(t *testing.T) {
	c := newTold(2)
	c.primary(0, 1, 100)
	c.replica(1, 1, 100)
	c.primary(1, 1, 900) // says the same, with the same right
	require.Equal(t, 0, c.topology.primary)
	c.gone(0)
	require.Equal(t, 1, c.topology.primary, "it cannot be asked, and another can")
	c.primary(0, 1, 2000)
	require.Equal(t, 1, c.topology.primary)
}

func TestTopologyKeepsAPrimaryThatCannotBeAsked(t *testing.T) {
	c := newTold(2)
	c.primary(0, 1, 100)
	c.replica(1, 1, 100)
	c.gone(0)
	require.Equal(t, 0, c.topology.primary)
	require.Equal(t, RoleUnreachable, c.nodes[0].role)
	c.replica(0, 1, 100)
	require.Equal(t, -1, c.topology.primary)
}

// A replica that follows a later timeline says that there is another primary,
// even if that is none of ours.
func TestTopologyWritesToNoPrimaryOfAnEarlierTimeline(t *testing.T) {
	c := newTold(2)
	c.primary(0, 1, 100)
	c.replica(1, 1, 100)
	c.replica(1, 2, 110)
	require.Equal(t, -1, c.topology.primary)
	require.Equal(t, RoleOldPrimary, c.nodes[0].role)
	c.primary(0, 1, 500)
	require.Equal(t, -1, c.topology.primary)
	c.primary(0, 2, 500)
	require.Equal(t, 0, c.topology.primary)
}

func TestReplicaIsAsFreshAsTheMarkItHasReached(t *testing.T) {
	c := newTold(2)
	c.replica(1, 1, 100)
	require.False(t, c.nodes[1].reads, "it may be behind the primary, which was not asked yet")
	c.primary(0, 1, 100) // the replica is known to have had that
	require.True(t, c.nodes[1].reads)
	first := c.now
	require.Equal(t, first, c.nodes[1].freshAt)
	for range 5 {
		c.primary(0, 1, 100) // writes nothing
	}
	require.Equal(t, c.now, c.nodes[1].freshAt, "it still has all")
	idle := c.now
	c.primary(0, 1, 200)
	require.Equal(t, idle, c.nodes[1].freshAt)
	c.replica(1, 1, 150)
	require.Equal(t, idle, c.nodes[1].freshAt, "half is not all")
	require.Equal(t, time.Second, c.nodes[1].lag)
	c.replica(1, 1, 200)
	require.Equal(t, idle.Add(time.Second), c.nodes[1].freshAt)
	require.Zero(t, c.nodes[1].lag)
	c.gone(0)
	c.replica(1, 1, 200)
	require.Equal(t, idle.Add(time.Second), c.nodes[1].freshAt, "nobody knows of more")
	require.True(t, c.nodes[1].reads)
	require.False(t, WithinLag(time.Second).metBy(&c.nodes[1], c.now))
	require.True(t, WithinLag(4*time.Second).metBy(&c.nodes[1], c.now))
}

func TestLaggingReplicaLeavesAndComesBackWhenWell(t *testing.T) {
	c := newTold(2)
	c.primary(0, 1, 100)
	c.replica(1, 1, 100)
	at := lsn(100)
	for range 9 {
		at += 100
		c.primary(0, 1, at)
	}
	require.True(t, c.nodes[1].reads)
	at += 100
	c.primary(0, 1, at)
	require.False(t, c.nodes[1].reads, "11 marks of a second each")
	c.replica(1, 1, at-600)
	require.False(t, c.nodes[1].reads, "6 s is not well below 10")
	c.replica(1, 1, at-500)
	require.True(t, c.nodes[1].reads)
	// One of which nobody knows how far behind it is, is out.
	c.replica(1, 1, 50)
	require.False(t, c.nodes[1].reads)
}

// One that lags does not come back because nobody knows any more by how much.
func TestLaggingReplicaStaysOutInAFailover(t *testing.T) {
	for _, away := range []bool{false, true} {
		c := newTold(3)
		c.primary(0, 1, 100)
		c.replica(1, 1, 100)
		c.replica(2, 1, 100)
		if away { // and lags behind unseen
			c.gone(2)
		}
		at := lsn(100)
		for range 30 {
			at += 100
			c.primary(0, 1, at)
			c.replica(1, 1, at)
		}
		c.gone(0)
		c.replica(1, 2, at) // follows a new primary, that was not seen yet
		require.True(t, c.nodes[1].reads)
		c.replica(2, 1, 100)
		require.False(t, c.nodes[2].reads)
		c.replica(2, 1, 50)
		require.False(t, c.nodes[2].reads)
		c.primary(1, 2, at)
		require.False(t, c.nodes[2].reads)
		c.replica(2, 2, at)
		require.True(t, c.nodes[2].reads)
	}
}

// One that was never seen beside a primary is out as well, once there was one.
func TestReplicaFirstSeenInAFailoverStaysOut(t *testing.T) {
	c := newTold(3)
	c.gone(2)
	c.replica(1, 1, 100)
	c.primary(0, 1, 100)
	c.replica(1, 2, 100)
	c.replica(2, 1, 50)
	require.False(t, c.nodes[2].reads)
	c.replica(0, 2, 100) // nor the old primary, of which nobody knows what it lacks
	require.False(t, c.nodes[0].reads)
	require.True(t, c.nodes[1].reads)
}

func TestReplicaServesAtTheStartWhenAllWereAsked(t *testing.T) {
	c := newTold(2)
	c.replica(1, 1, 1)
	require.False(t, c.nodes[1].reads)
	c.gone(0)
	require.True(t, c.nodes[1].reads, "nothing says that it lags")
	c.primary(0, 1, 1000)
	require.False(t, c.nodes[1].reads)
}

// A server that has no business here takes over nothing, whatever timeline it is
// on; a cluster that was made anew does, once most of it is up.
func TestTopologyOfAnotherSystem(t *testing.T) {
	c := newTold(3)
	c.primary(0, 3, 100)
	c.replica(1, 3, 100)
	c.replica(2, 3, 100)
	stray := sighting{timeline: 57, lsn: 9000, server: identity{system: 1}}
	c.tell(1, stray)
	require.Equal(t, 0, c.topology.primary)
	require.Equal(t, RoleOldPrimary, c.nodes[1].role)
	c.primary(0, 3, 200)
	c.replica(2, 3, 200)
	require.True(t, c.nodes[2].reads)
	c.tell(1, sighting{replica: true, timeline: 57, lsn: 9000, server: identity{system: 1}})
	require.False(t, c.nodes[1].reads)
	require.Zero(t, c.nodes[1].freshAt, "it has got far, in another log")
	c.tell(0, stray)
	require.EqualValues(t, 1, c.topology.system, "two of three do")
	require.False(t, c.nodes[2].reads)

	c.primary(0, 3, 200)
	c.replica(1, 3, 200)
	require.Equal(t, 0, c.topology.primary)
	for i := range 3 {
		c.gone(i)
	}
	require.Zero(t, c.topology.system)
	c.tell(0, sighting{timeline: 1, lsn: 50, server: identity{system: 2}})
	require.Equal(t, 0, c.topology.primary)
	require.EqualValues(t, 1, c.topology.timeline)
	c.primary(1, 3, 200) // one that was forgotten
	require.Equal(t, 0, c.topology.primary)
}

// A new primary has committed since nobody knows when: what was known of replicas
// is void.
func TestFreshnessIsOfOneTimeline(t *testing.T) {
	c := newTold(3)
	c.primary(0, 1, 100)
	c.replica(1, 1, 100)
	c.replica(2, 1, 900)
	require.NotZero(t, c.nodes[2].freshAt)
	c.replica(1, 2, 110) // of a primary that was not seen yet
	require.Zero(t, c.nodes[2].freshAt)
	c.primary(1, 2, 110)
	require.Equal(t, 1, c.topology.primary)
	require.Zero(t, c.nodes[2].freshAt, "it has got far, on another timeline")
	require.False(t, c.nodes[2].reads)
	c.replica(2, 2, 110)
	require.NotZero(t, c.nodes[2].freshAt)
	require.True(t, c.nodes[2].reads)
}

// A probe for which a server has no room tells that it is there, and no more.
func TestTopologyOfAFullServer(t *testing.T) {
	c := newTold(2)
	c.tell(0, sighting{err: errDown, full: true})
	c.replica(1, 1, 100)
	require.Equal(t, RoleUnreachable, c.nodes[0].role)
	c.primary(0, 1, 100)
	c.tell(1, sighting{err: errDown, full: true})
	require.Equal(t, RoleReplica, c.nodes[1].role)
	require.True(t, c.nodes[1].reads)
	c.gone(1)
	require.False(t, c.nodes[1].reads)
}

func TestMarksAreBounded(t *testing.T) {
	c := newTold(2)
	c.replica(1, 1, 1)
	for n := range 3 * maxMarks {
		c.now = c.now.Add(-990 * time.Millisecond) // 10 ms apart
		c.primary(0, 1, lsn(n))
	}
	require.LessOrEqual(t, len(c.marks), maxMarks)
	require.LessOrEqual(t, len(c.marks), int(3*maxMarks*10*time.Millisecond/markGap)+3)
	require.Equal(t, c.now, c.marks[len(c.marks)-1].at, "the last is always there")
}

// The model: servers that really have histories. A history is a list of commits,
// and a promotion forks it. Whatever is probed, in whatever order and however
// late, the topology never takes a replica for fresher than it is, a token as
// reached that is not, and never lets writes go from a later timeline to an
// earlier one.
func TestTopologyModel(t *testing.T) {
	type commit struct {
		at       time.Time
		timeline uint32
	}
	type server struct {
		primary  bool
		down     bool
		timeline uint32
		log      []commit
	}
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1000, 0)
		nodes := rapid.IntRange(2, 4).Draw(t, "nodes")
		servers := make([]*server, nodes)
		for i := range servers {
			servers[i] = &server{primary: i == 0, timeline: 1}
		}
		leader := servers[0] // the one that ought to have the writes
		topo := newTopology(nodes, 5*time.Second, false)
		type token struct {
			Token
			log []commit
		}
		var tokens []token
		latest := uint32(1)
		chosen := uint32(0)
		behind := make([]bool, nodes) // was last known to lag
		pick := func() *server { return servers[rapid.IntRange(0, nodes-1).Draw(t, "server")] }
		prefix := func(log, of []commit) bool {
			if len(log) > len(of) {
				return false
			}
			for i := range log {
				if log[i] != of[i] {
					return false
				}
			}
			return true
		}
		t.Repeat(map[string]func(*rapid.T){
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms")) * time.Millisecond)
			},
			"commit": func(t *rapid.T) {
				s := pick()
				if s.primary && !s.down {
					now = now.Add(time.Millisecond)
					s.log = append(s.log[:len(s.log):len(s.log)], commit{now, s.timeline})
				}
			},
			"token": func(t *rapid.T) {
				if leader.primary {
					tokens = append(tokens, token{Token{0, leader.timeline, lsn(len(leader.log))}, leader.log})
				}
			},
			"replay": func(t *rapid.T) {
				// From the leader or from one that was, but on no fork.
				s, from := pick(), pick()
				if s.primary || s.down || from.timeline < s.timeline || !prefix(s.log, from.log) {
					return
				}
				n := rapid.IntRange(len(s.log), len(from.log)).Draw(t, "upto")
				s.log = from.log[:n:n]
				if n == len(from.log) {
					s.timeline = from.timeline // it is certain only then
				}
			},
			"promote": func(t *rapid.T) {
				s := pick()
				if s.primary || s.down || s.timeline < latest {
					return
				}
				latest++
				s.primary, s.timeline, leader = true, latest, s
			},
			"rebuild": func(t *rapid.T) {
				s := pick()
				if s != leader {
					*s = server{timeline: leader.timeline, log: leader.log[:len(leader.log):len(leader.log)]}
				}
			},
			"down": func(t *rapid.T) { s := pick(); s.down = !s.down },
			"probe": func(t *rapid.T) {
				i := rapid.IntRange(0, nodes-1).Draw(t, "node")
				s := servers[i]
				began := now
				// What happens while the probe is under way is in its answer.
				now = now.Add(time.Millisecond)
				if s.down {
					topo.see(i, sighting{at: began, err: errDown}, now)
				} else {
					topo.see(i, sighting{at: began, replica: !s.primary, timeline: s.timeline, lsn: lsn(len(s.log))}, now)
				}
			},
			"stray": func(t *rapid.T) { // a probe that gets to another cluster
				i := rapid.IntRange(0, nodes-1).Draw(t, "node")
				topo.see(i, sighting{
					at: now, replica: rapid.Bool().Draw(t, "replica"), timeline: rapid.Uint32Range(1, 9).Draw(t, "timeline"),
					lsn: 5, server: identity{system: 1},
				}, now)
			},
			"": func(t *rapid.T) {
				if p := topo.primary; p >= 0 {
					require.Equal(t, topo.system, topo.nodes[p].server.system)
				}
				if p := topo.primary; p >= 0 && topo.system == 0 {
					got := topo.nodes[p].timeline
					require.GreaterOrEqual(t, got, chosen, "writes went back to an earlier timeline")
					chosen = got
					require.Equal(t, topo.timeline, got)
					require.False(t, topo.nodes[p].replica)
				}
				asked := !slices.ContainsFunc(topo.nodes, func(n nodeView) bool { return !n.asked })
				for i := range topo.nodes {
					n := &topo.nodes[i]
					if n.role == RoleReplica {
						if n.reads {
							require.True(t, asked, "it serves, and may be behind one that was not asked")
							require.False(t, behind[i] && n.freshAt.IsZero(), "it lagged, and is back without a date")
						}
						if k := len(topo.marks); k > 0 && n.reads {
							require.False(t, n.freshAt.IsZero())
							require.LessOrEqual(t, topo.marks[k-1].at.Sub(n.freshAt), topo.maxLag)
						}
						require.False(t, n.reads && n.server.system != topo.system)
						behind[i] = asked && !n.reads && n.server.system == topo.system
					}
					s := servers[i]
					if n.server.system != 0 {
						continue
					}
					if !n.replica || !n.reachable || int(n.lsn) > len(s.log) || s.primary || s.timeline < n.timeline {
						continue // it was restarted since: what its old connections would tell
					}
					// All that the latest primary that was seen had committed before
					// freshAt is there, of what is still part of its history.
					if seen := topo.primary; seen >= 0 && topo.system == 0 && !n.freshAt.IsZero() && topo.nodes[seen].timeline == servers[seen].timeline && servers[seen].primary {
						for k, c := range servers[seen].log {
							if c.at.Before(n.freshAt) {
								require.Less(t, k, len(s.log), "a commit of before freshAt is missing")
								require.Equal(t, c, s.log[k])
							}
						}
					}
					for _, tok := range tokens {
						if !tok.Token.within(n.timeline, n.lsn) || !prefix(tok.log, leader.log) {
							continue // not reached, or lost in the failover
						}
						require.True(t, prefix(tok.log, s.log), "a token was taken as reached that is not")
					}
				}
			},
		})
	})
}
