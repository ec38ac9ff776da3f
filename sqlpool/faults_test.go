package sqlpool

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// wire makes connections whose faults a test arms. A fault happens to
// the first write, of whichever connection, that holds the text it is armed with.
type wire struct {
	mu     sync.Mutex
	text   []byte
	fault  fault
	struck int
	writes int // of the armed text, whatever came of them
}

type fault int

const (
	none      fault = iota
	cut             // the write fails before a byte is out
	cutAlways       // and so does every later one
	lost            // the write seems to succeed, and the connection breaks
	unheard         // the server gets it and answers, but the connection breaks
	silent          // the server gets it and answers, but the answer never comes
)

var errUnsent = errors.New("wire: nothing was sent")

// arm makes the next write that holds text fail. It counts all that hold it.
func (w *wire) arm(f fault, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text, w.fault, w.struck, w.writes = []byte(text), f, 0, 0
}

// strike is the fault that happens to a write.
func (w *wire) strike(b []byte) fault {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.text == nil || !bytes.Contains(b, w.text) {
		return none
	}
	w.writes++
	f := w.fault
	if f != none {
		w.struck++
		if f != cutAlways {
			w.fault = none
		}
	}
	return f
}

func (w *wire) seen() (struck, writes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.struck, w.writes
}

// config is that of connections to dsn over the wire.
func (w *wire) config(t testing.TB, dsn string) *pgx.ConnConfig {
	cfg, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		return &faulty{Conn: c, wire: w}, err
	}
	return cfg
}

type faulty struct {
	net.Conn
	wire  *wire
	fault atomic.Int32 // that goes on: pgx reads on a goroutine of its own, too
}

func (c *faulty) Write(b []byte) (int, error) {
	f := c.wire.strike(b)
	switch f {
	case cut, cutAlways:
		return 0, errUnsent
	case lost:
		c.fault.Store(int32(f))
		return len(b), nil
	case unheard, silent:
		c.fault.Store(int32(f))
	}
	return c.Conn.Write(b)
}

func (c *faulty) Read(b []byte) (int, error) {
	f := fault(c.fault.Load())
	if f == unheard || f == silent {
		if _, err := c.Conn.Read(b); err != nil { // so the server is done with it
			return 0, err
		}
	}
	if f == lost || f == unheard {
		return 0, io.EOF
	}
	return c.Conn.Read(b)
}
