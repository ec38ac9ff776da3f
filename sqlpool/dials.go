package sqlpool

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
)

// dials are those that pgx makes for one connection: its own, and when it gives
// up a connection that waits for an answer, that of a cancel request. For this
// one it has a goroutine, which waits up to 15 s for the server, and which nobody
// but the DialFunc can reach: that is what dials are for.
//
// pgx dials with a context that ends when it has logged in, or is done with the
// cancel request. What was dialled is remembered until then: a user may connect
// with a copy of the connection's Config, and keep that connection for longer.
type dials struct {
	dialFunc pgconn.DialFunc
	ctx      context.Context // of all dials
	stop     context.CancelFunc

	mu        sync.Mutex
	forbidden bool // no further dial is made
	made      []dialled
}

type dialled struct {
	ctx  context.Context // under which pgx uses it
	conn net.Conn
}

func newDials(dial pgconn.DialFunc) *dials {
	d := &dials{dialFunc: dial}
	d.ctx, d.stop = context.WithCancel(context.Background())
	return d
}

// errNoCancelRequest is seen by pgx alone, which goes on without.
var errNoCancelRequest = errors.New("sqlpool: no cancel request is sent")

// forbid has no more dials made: the connection stands, and is never to send a
// cancel request.
func (d *dials) forbid() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forbidden = true
}

// dial is the DialFunc that pgx is given.
func (d *dials) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if d.refuses() {
		return nil, errNoCancelRequest
	}
	dialCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.ctx, cancel)()
	c, err := d.dialFunc(dialCtx, network, addr)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.ctx.Err(); err != nil { // end sets it before it looks at what was made
		_ = c.Close()
		return nil, err
	}
	d.made = slices.DeleteFunc(d.made, func(m dialled) bool { return m.ctx.Err() != nil })
	d.made = append(d.made, dialled{ctx, c})
	return c, nil
}

func (d *dials) refuses() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.forbidden
}

// end cuts short what is being dialled, and closes what was dialled and is not
// done with. Nothing is dialled after it.
func (d *dials) end() {
	d.stop()
	d.mu.Lock()
	made := d.made
	d.made = nil
	d.mu.Unlock()
	for _, m := range made {
		if m.ctx.Err() == nil {
			_ = m.conn.Close()
		}
	}
}
