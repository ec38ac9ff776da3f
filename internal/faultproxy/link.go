package faultproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
)

// link is one connection of a client, and the one to the server behind it.
type link struct {
	proxy  *Proxy
	id     int
	client net.Conn
	ctx    context.Context // ends when the link is cut
	cancel context.CancelFunc

	// What follows is guarded by the proxy's mu.
	server net.Conn      // nil until it is there
	gate   chan struct{} // not nil while the link is frozen; then closed at the end of that
}

func (l *link) freezeLocked() {
	if l.gate == nil {
		l.gate = make(chan struct{})
	}
}

func (l *link) thawLocked() {
	if l.gate != nil {
		close(l.gate)
		l.gate = nil
	}
}

// cutLocked resets both connections, which ends the link's goroutines.
func (l *link) cutLocked() {
	l.cancel()
	resetConn(l.client)
	if l.server != nil {
		resetConn(l.server)
	}
}

func (l *link) cut() {
	l.proxy.mu.Lock()
	defer l.proxy.mu.Unlock()
	l.cutLocked()
}

// pass waits until bytes may pass. It is false if the link was cut.
func (l *link) pass() bool {
	for {
		l.proxy.mu.Lock()
		gate := l.gate
		l.proxy.mu.Unlock()
		if gate == nil {
			return l.ctx.Err() == nil
		}
		select {
		case <-gate: // to be frozen again, perhaps
		case <-l.ctx.Done():
			return false
		}
	}
}

// sleep waits for d. It is false if the link was cut.
func (l *link) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.ctx.Done():
		return false
	}
}

// run is the link's life.
func (l *link) run(wait time.Duration) {
	defer func() {
		l.proxy.mu.Lock()
		defer l.proxy.mu.Unlock()
		l.cancel()
		_ = l.client.Close()
		if l.server != nil {
			_ = l.server.Close()
		}
		delete(l.proxy.links, l)
	}()
	server := l.dial(wait)
	if server == nil {
		l.cut()
		return
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		l.pump(l.client, server, true)
	}()
	l.pump(server, l.client, false)
	<-answered
}

// dial connects to the server when that is time. It is nil if it cannot.
func (l *link) dial(wait time.Duration) net.Conn {
	if !l.sleep(wait) || !l.pass() {
		return nil
	}
	var d net.Dialer
	server, err := d.DialContext(l.ctx, l.proxy.network, l.proxy.upstream)
	if err != nil {
		return nil
	}
	l.proxy.mu.Lock()
	defer l.proxy.mu.Unlock()
	l.server = server
	if l.ctx.Err() != nil { // cut while it had no server
		return nil
	}
	return server
}

// pump forwards what from says until it ends. A clean end is passed on alone:
// the other direction may go on.
func (l *link) pump(to, from net.Conn, fromServer bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !l.forward(to, Chunk{Conn: l.id, FromServer: fromServer, Data: buf[:n]}) {
			l.cut()
			return
		}
		if err == nil {
			continue
		}
		if !l.pass() || !errors.Is(err, io.EOF) || closeWrite(to) != nil {
			l.cut()
		}
		return
	}
}

// forward sends a chunk on its way. It is false if the link is to be cut.
func (l *link) forward(to net.Conn, c Chunk) bool {
	l.proxy.mu.Lock()
	hook, delay := l.proxy.hook, l.proxy.delay
	l.proxy.mu.Unlock()
	action := Pass
	if hook != nil {
		action = hook(c)
	}
	if action == Cut || !l.sleep(delay) || !l.pass() {
		return false
	}
	if action == Drop {
		return true
	}
	_, err := to.Write(c.Data)
	return err == nil
}

// closeWrite ends one direction of a connection.
func closeWrite(c net.Conn) error {
	return c.(interface{ CloseWrite() error }).CloseWrite() // TCP and Unix sockets have it
}

// resetConn closes c with a reset, as far as it is TCP's: what was sent and not
// yet read is lost.
func resetConn(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}
