// Package faultproxy is a TCP proxy for tests that makes a network fail: it
// refuses, stays silent, freezes, cuts and delays connections, and loses chosen
// answers. It listens on 127.0.0.1 of this process.
//
//	p, err := faultproxy.Start(server.Addr())
//	defer p.Close()
//	// clients connect to p.Addr()
//	p.Freeze() // and hear no more
//	p.Pass()   // it was only the network
package faultproxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Proxy forwards connections to one server. Whoever starts it closes it. All
// methods may be called concurrently, also by a Hook.
type Proxy struct {
	network, upstream string
	addr              string // stays the same
	wg                sync.WaitGroup

	mu        sync.Mutex   // guards what follows
	listener  net.Listener // nil while connections are refused, and after Close
	arrival   arrival
	hook      Hook
	dialDelay time.Duration
	delay     time.Duration
	links     map[*link]struct{}
	stats     Stats
	closed    bool
}

// arrival is what happens to a connection that was accepted.
type arrival uint8

const (
	forwarded arrival = iota
	reset
	frozen
)

// Stats counts connections.
type Stats struct {
	Accepted int // ever, also those that were reset or met silence
	Open     int // now
	MostOpen int // at any one time
}

// ErrClosed reports that a [Proxy] was closed.
var ErrClosed = errors.New("faultproxy: closed")

// Start starts a proxy in front of upstream: host:port, or the path of a Unix
// socket, which begins with a slash. It does not connect to it before a client
// comes. A client whose connection cannot be forwarded is reset.
func Start(upstream string) (*Proxy, error) {
	p := &Proxy{network: "tcp", upstream: upstream, links: make(map[*link]struct{})}
	if strings.HasPrefix(upstream, "/") {
		p.network = "unix"
	} else if _, _, err := net.SplitHostPort(upstream); err != nil {
		return nil, fmt.Errorf("faultproxy: upstream: %w", err)
	}
	l, err := listenAnywhere()
	if err != nil {
		return nil, fmt.Errorf("faultproxy: %w", err)
	}
	p.addr = l.Addr().String()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serveLocked(l)
	return p, nil
}

// listenAnywhere listens on a port below those that systems give to outgoing
// connections: one of them might take it while connections are refused.
func listenAnywhere() (net.Listener, error) {
	const first, last = 20000, 29999
	var err error
	for range 100 {
		port := first + rand.IntN(last-first+1)
		var l net.Listener
		if l, err = net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("no free port: %w", err)
}

// Addr is where clients connect to, as host:port. It never changes.
func (p *Proxy) Addr() string { return p.addr }

// Stats reads the counts.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Open = len(p.links)
	return s
}

// Pass ends what Refuse, Reset, Silence and Freeze have begun. Connections that
// were frozen or met silence go on where they were. It fails if somebody else
// has taken the port while connections were refused, or after Close.
func (p *Proxy) Pass() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.arriveLocked(forwarded); err != nil {
		return err
	}
	for l := range p.links {
		l.thawLocked()
	}
	return nil
}

// Refuse lets new connections be refused by the system, as if no program
// listened. These are not counted. Open connections go on.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopLocked()
}

// Reset accepts new connections and resets them at once: a refusal that is
// counted. Open connections go on.
func (p *Proxy) Reset() error { return p.arrive(reset) }

// Silence accepts new connections, and neither forwards nor answers anything on
// them. Open connections go on.
func (p *Proxy) Silence() error { return p.arrive(frozen) }

// Freeze stops the bytes on all open connections in both directions, and closes
// none. What one end does to its connection, the other does not learn. What was
// being forwarded at this moment may still arrive. New connections are not
// concerned: see Silence.
func (p *Proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.freezeLocked()
	}
}

// Cut resets all open connections on both sides.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.cutLocked()
	}
}

// DelayDials makes each new connection wait for d before it is forwarded, as if
// the server were slow to accept it. 0 ends that.
func (p *Proxy) DelayDials(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dialDelay = d
}

// Delay makes whatever is forwarded, in either direction, wait for d. 0 ends
// that. What follows on the same connection waits in turn, so it is a delay for
// questions and answers and not for a stream.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Intercept has the hook decide about all that is forwarded from now on; nil
// lets it pass.
func (p *Proxy) Intercept(hook Hook) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = hook
}

// Close resets all connections and stops listening. When it returns, nothing of
// the proxy is left. Closing again does nothing. A Hook must not call it.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.stopLocked()
	for l := range p.links {
		l.cutLocked()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return nil
}

func (p *Proxy) arrive(a arrival) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.arriveLocked(a)
}

// arriveLocked says what becomes of new connections, and listens again.
func (p *Proxy) arriveLocked(a arrival) error {
	if p.closed {
		return ErrClosed
	}
	if p.listener == nil {
		l, err := net.Listen("tcp4", p.addr)
		if err != nil {
			return fmt.Errorf("faultproxy: %w", err)
		}
		p.serveLocked(l)
	}
	p.arrival = a
	return nil
}

func (p *Proxy) serveLocked(l net.Listener) {
	p.listener = l
	p.wg.Go(func() { p.serve(l) })
}

func (p *Proxy) stopLocked() {
	if p.listener != nil {
		_ = p.listener.Close() // nothing is lost by it
		p.listener = nil
	}
}

// serve accepts connections until the listener is closed.
func (p *Proxy) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			p.accept(l, c)
		case errors.Is(err, net.ErrClosed):
			return
		default: // out of descriptors, or a client that left at once
			time.Sleep(time.Millisecond)
		}
	}
}

func (p *Proxy) accept(l net.Listener, c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != l { // closed meanwhile
		resetConn(c)
		return
	}
	p.stats.Accepted++
	if p.arrival == reset {
		resetConn(c)
		return
	}
	n := &link{proxy: p, id: p.stats.Accepted, client: c}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if p.arrival == frozen {
		n.freezeLocked()
	}
	p.links[n] = struct{}{}
	p.stats.MostOpen = max(p.stats.MostOpen, len(p.links))
	wait := p.dialDelay
	p.wg.Go(func() { n.run(wait) })
}
