package sqlpool

import (
	"context"
	"database/sql/driver"
	"io"
	"time"

	"github.com/surgewall/surgewall/core"
)

// wrapConnector dials, with the driver's own connector.
type wrapConnector struct {
	driver.Connector // Driver is the driver's own
	g                *guarded
}

// Connect dials, and dials again as the configuration says.
func (c *wrapConnector) Connect(ctx context.Context) (driver.Conn, error) {
	if err := c.g.admitsDial(ctx); err != nil {
		return nil, err
	}
	dc, err := c.dial(ctx)
	for n := 1; err != nil && c.g.redial(ctx, n, err); n++ {
		dc, err = c.dial(core.WithAttempt(ctx, n+1))
	}
	return dc, err
}

// Close is called by sql.DB.Close.
func (c *wrapConnector) Close() error {
	if closer, ok := c.Connector.(io.Closer); ok {
		return closer.Close()
	}
	return nil
}

// dial makes one connection, or tells the guard why that failed.
func (c *wrapConnector) dial(ctx context.Context) (driver.Conn, error) {
	left, began := core.TimeLeft(ctx), time.Now()
	dc, err := c.Connector.Connect(ctx)
	kept := false
	defer func() {
		if err == nil && !kept { // an observer has exited the goroutine
			_ = dc.Close()
		}
	}()
	now := time.Now()
	core.Emit(ctx, c.g.observer, core.Event{
		Kind: core.KindCreated, Component: c.g.name, ErrorType: core.ErrorType(err), Duration: now.Sub(began),
	})
	if err != nil {
		c.g.failedDial(ctx, err, left)
		return nil, err
	}
	kept = true
	return wrapDriverConn(dc, c.g, now), nil
}

// admitsDial is the guard's refusal if it says that there would be one. Then it
// is asked, as it counts what it refuses, and tells of it.
func (g *guarded) admitsDial(ctx context.Context) error {
	if core.RefusalOf(g.guard) == nil {
		return nil
	}
	p, err := g.guard.Acquire(ctx, core.Call{})
	if err != nil {
		return err
	}
	p.Cancel() // it has changed its mind
	return nil
}

// failedDial tells the guard of a dial, as of a call that was made.
func (g *guarded) failedDial(ctx context.Context, err error, left time.Duration) {
	if g.guard == nil {
		return
	}
	if p, refused := g.guard.Acquire(ctx, core.Call{}); refused == nil {
		p.Finish(ctx, core.Result{Outcome: outcome(ctx, err, left), Err: err})
	}
}

// destroyed tells that database/sql has closed a connection.
func (g *guarded) destroyed(made time.Time, broken bool) {
	why := "closed"
	if broken {
		why = "broken"
	}
	core.Emit(context.Background(), g.observer, core.Event{
		Kind: core.KindDestroyed, Component: g.name, To: why, Duration: time.Since(made),
	})
}
