package limit

import "time"

// era is the settings of a limiter over a state S, from one change of them to the
// next: new settings, or a pause. What a call was charged, and its turn, are
// those of an era; retime makes of them those of the one in force.
type era[S any] struct {
	law     law[S]
	by      charger // of charges made in it
	maxWait time.Duration
	paused  int64 // the clock reading at which a pause ends; past if there is none

	// What came after it, and when; written before changed is closed.
	changed chan struct{}
	next    *era[S]
	at      int64
}

// start is the clock reading from which a call at now may run at the earliest.
func (e *era[S]) start(now int64) int64 { return max(now, e.paused) }

// change is the end of e, for the law of the next era.
func (e *era[S]) change() change[S] {
	return change[S]{at: e.at, from: e.law, paused: e.paused, till: e.next.paused}
}

// end makes next follow e. The state that goes with next is in force by now.
func (e *era[S]) end() { close(e.changed) }

// retime is for charger.
func (e *era[S]) retime(c charge) charge {
	for {
		select {
		case <-e.changed:
		default:
			return c
		}
		next := e.next
		c.token, c.turn = next.law.retime(c.token, c.turn, e.change())
		c.by, c.changed = next.by, next.changed
		e = next
	}
}
