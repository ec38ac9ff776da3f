//go:build unix

package sqlpool

import (
	"net"
	"syscall"
	"time"
)

// checkEvery is how long a connection is idle before it is pinged. A look at the
// socket finds what the peer has closed; this is for a peer that is silent.
const checkEvery = 15 * time.Second

// peeker looks whether a socket has something to read, without reading it and
// without waiting. What it keeps between looks makes a look allocate nothing.
type peeker struct{ p *peek }

type peek struct {
	raw  syscall.RawConn
	look func(fd uintptr)
	ok   bool
	buf  [1]byte
}

// newPeeker is a peeker for c, or for what is under its TLS. One that cannot
// look finds every socket quiet.
func newPeeker(c net.Conn) peeker {
	for {
		under, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = under.NetConn()
	}
	s, ok := c.(syscall.Conn)
	if !ok {
		return peeker{}
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return peeker{}
	}
	p := &peek{raw: raw}
	p.look = func(fd uintptr) {
		_, _, err := syscall.Recvfrom(int(fd), p.buf[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		p.ok = err == syscall.EAGAIN || err == syscall.EWOULDBLOCK || err == syscall.EINTR
	}
	return peeker{p}
}

// quiet reports whether the socket is open and has nothing to be read. It uses
// Control and not Read, which would wait for the lock that a Read under way
// holds: after a slow write, pgx leaves one behind on an idle connection.
func (k peeker) quiet() bool {
	if k.p == nil {
		return true
	}
	k.p.ok = false
	return k.p.raw.Control(k.p.look) == nil && k.p.ok
}
