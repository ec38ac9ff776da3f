package sqlpool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/retry"
)

// ear is an observer that keeps what it hears.
type ear struct {
	mu     sync.Mutex
	events []core.Event
	on     func(core.Event) // user code
}

func (e *ear) Enabled(core.Kind) bool { return true }

func (e *ear) Observe(_ context.Context, event core.Event) {
	e.mu.Lock()
	e.events = append(e.events, event)
	e.mu.Unlock()
	if e.on != nil {
		e.on(event)
	}
}

// take are the events of one kind since the last take.
func (e *ear) take(k core.Kind) (heard []core.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range e.events {
		if event.Kind == k {
			heard = append(heard, event)
		}
	}
	e.events = slices.DeleteFunc(e.events, func(event core.Event) bool { return event.Kind == k })
	return heard
}

func TestWrapTellsHowConnectionsEnd(t *testing.T) {
	ctx := context.Background() // of no bubble
	bad := driver.ErrBadConn
	for name, c := range map[string]struct {
		fails map[string][]error
		run   func(db *sql.DB)
		want  []string
	}{
		"closed": {run: func(db *sql.DB) { _, _ = db.ExecContext(ctx, "x") }, want: []string{"closed"}},
		"a bad statement": {fails: map[string][]error{"ExecContext": {bad}}, run: func(db *sql.DB) {
			_, _ = db.ExecContext(ctx, "x")
		}, want: []string{"broken", "closed"}},
		"a bad session": {fails: map[string][]error{"ResetSession": {bad}}, run: func(db *sql.DB) {
			_, _ = db.ExecContext(ctx, "x")
			_, _ = db.ExecContext(ctx, "x")
		}, want: []string{"broken", "closed"}},
		"not valid": {fails: map[string][]error{"IsValid": {errBroken}}, run: func(db *sql.DB) {
			_, _ = db.ExecContext(ctx, "x")
		}, want: []string{"broken"}},
		"a bad ping": {fails: map[string][]error{"Ping": {bad}}, run: func(db *sql.DB) {
			_ = db.PingContext(ctx)
		}, want: []string{"broken"}},
		"a bad commit": {fails: map[string][]error{"Commit": {bad}}, run: func(db *sql.DB) {
			tx, _ := db.BeginTx(ctx, nil)
			_ = tx.Commit()
		}, want: []string{"broken"}},
		"a bad statement of a transaction": {fails: map[string][]error{"ExecContext": {bad}}, run: func(db *sql.DB) {
			tx, _ := db.BeginTx(ctx, nil)
			_, _ = tx.ExecContext(ctx, "x")
			_ = tx.Rollback()
		}, want: []string{"broken"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &ear{}
				db := sql.OpenDB(fullDriver(&world{fails: c.fails}, WrapConfig{Name: "orders", Observer: e}))
				time.Sleep(time.Minute) // virtual: it is the age of connections that counts
				c.run(db)
				time.Sleep(time.Hour)
				require.NoError(t, db.Close())
				var got []string
				for _, event := range e.take(core.KindDestroyed) {
					require.Equal(t, "orders", event.Component)
					require.Contains(t, []time.Duration{0, time.Hour}, event.Duration)
					got = append(got, event.To)
				}
				require.Equal(t, c.want, got)
				require.Len(t, e.take(core.KindCreated), len(got))
			})
		})
	}
}

// An observer may panic, and lose its events; one that exits the goroutine of a
// dial leaves no connection behind, and no permit.
func TestWrapObserverThatDoesNotReturn(t *testing.T) {
	for how, fail := range noReturns {
		for _, on := range []core.Kind{core.KindCreated, core.KindRetried, core.KindDestroyed} {
			t.Run(fmt.Sprint(how, " ", on), func(t *testing.T) {
				w := &world{fails: map[string][]error{"ExecContext": {unsentErr{safe: true}}}}
				g := &spy{}
				e := &ear{on: func(event core.Event) {
					if event.Kind == on {
						fail()
					}
				}}
				connector := fullDriver(w, WrapConfig{Guard: g, Observer: e, Retry: WrapRetry{Tries: 2, Backoff: retry.Backoff{Base: -1}}})
				closed := false
				panicked := apart(func() {
					c, err := connector.Connect(t.Context())
					require.NoError(t, err)
					closed = true
					defer c.Close()
					_, _ = c.(driver.ExecerContext).ExecContext(t.Context(), "x", nil)
				})
				require.Nil(t, panicked)
				require.Equal(t, how == "goexit" && on == core.KindCreated, !closed)
				require.Zero(t, g.held())
				require.Contains(t, w.log[len(w.log)-1], "Close", "of the connection")
			})
		}
	}
}
