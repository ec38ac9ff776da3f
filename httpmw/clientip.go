package httpmw

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"strings"

	"github.com/surgewall/surgewall/core"
)

// ClientIPConfig configures the key functions that tell a client's address:
// PeerIPWith, ForwardedForIP, ForwardedIP, HopCountIP and HeaderIP.
type ClientIPConfig struct {
	// Proxies is where trusted proxies connect from: theirs alone, and not the
	// whole network that they are in. A header is read only if the peer, the
	// other end of the connection, is one of these; any other peer is the
	// client itself. IPv4 prefixes hold for IPv4-mapped IPv6 addresses too.
	//
	// Required, unless Unix is UnixTrusted; PeerIPWith takes none. HopCountIP
	// and HeaderIP accept 0.0.0.0/0 and ::/0, for a server that nothing but
	// its proxies can reach.
	Proxies []netip.Prefix

	// IPv6Prefix is how many bits of an IPv6 address are kept, 48 to 128: a
	// subscriber has at least a /64, and would have as many keys as there are
	// addresses in it. Default: 64. IPv4 addresses are kept whole.
	IPv6Prefix int

	// Unix says what a peer on a Unix socket is, which has no address.
	// Default: UnixRefused.
	Unix UnixPeer
}

// UnixPeer is what the peer on a Unix socket is.
type UnixPeer uint8

const (
	// UnixRefused: no client. The key function fails.
	UnixRefused UnixPeer = iota
	// UnixTrusted: a trusted proxy, whose headers are read.
	UnixTrusted
	// UnixShared: a client. All that come by Unix sockets share one key, the
	// unspecified address ::, and their headers are not read.
	UnixShared
)

// What keeps an address from being told. The first two are mistakes of the
// server's own, and 500; the rest are 400.
var (
	errNoPeer    = fmt.Errorf("httpmw: the RemoteAddr of the request is no address with a port; does something rewrite it? (%w)", StatusError(http.StatusInternalServerError))
	errUnixPeer  = fmt.Errorf("httpmw: the peer is on a Unix socket and has no address: see ClientIPConfig.Unix (%w)", StatusError(http.StatusInternalServerError))
	errNoHeader  = errors.New("httpmw: a trusted proxy did not send the header that tells its client")
	errGarbage   = errors.New("httpmw: the header that tells the client holds what is no address")
	errNoClient  = errors.New("httpmw: the header that tells the client names trusted proxies only")
	errFewHops   = errors.New("httpmw: X-Forwarded-For has fewer entries than there are proxies")
	errTwoValues = errors.New("httpmw: the header that tells the client was sent more than once")
)

// PeerIP is a key function: the address of the other end of the connection,
// which nobody can choose freely. It is the client's unless there are proxies
// in between. IPv6 addresses are cut to their /64, see ClientIPConfig; they are
// without a zone, and IPv4-mapped ones are IPv4. No header is read, and the
// request is not changed, here and in all functions of this kind.
func PeerIP(r *http.Request) (netip.Addr, error) { return peerIP.fromPeer(r) }

var peerIP = clientIP{bits: 64} // read-only

// PeerIPWith is PeerIP with a configuration.
func PeerIPWith(cfg ClientIPConfig) (func(*http.Request) (netip.Addr, error), error) {
	bad := core.Check("httpmw.ClientIPConfig")
	bad.If(len(cfg.Proxies) > 0, "Proxies", cfg.Proxies, "must be empty: no header is read")
	bad.If(cfg.Unix == UnixTrusted, "Unix", nil, "must not be UnixTrusted: no header is read")
	c := newClientIP(cfg, bad)
	return checked(c.fromPeer, bad)
}

// ForwardedForIP is the key function for a server behind proxies whose
// addresses are known, each of which appends its peer to X-Forwarded-For. It
// walks from the peer back, through header lines from the last to the first and
// their entries from right to left, as long as what it finds is one of
// cfg.Proxies. The first that is not is the client; whatever is left of it
// was not written by a proxy, and is not looked at.
//
// It fails if that ends before there is a client: without the header, at an
// entry that is no address, and if all are proxies'. Entries may have ports.
func ForwardedForIP(cfg ClientIPConfig) (func(*http.Request) (netip.Addr, error), error) {
	bad := core.Check("httpmw.ClientIPConfig")
	c := newWalk(cfg, bad)
	return checked(c.fromForwardedFor, bad)
}

// ForwardedIP is ForwardedForIP for the Forwarded header of RFC 7239: the for
// parameters of its elements are the entries. It fails also at an element that
// has none, and at one that is unknown or obfuscated.
func ForwardedIP(cfg ClientIPConfig) (func(*http.Request) (netip.Addr, error), error) {
	bad := core.Check("httpmw.ClientIPConfig")
	c := newWalk(cfg, bad)
	return checked(c.fromForwarded, bad)
}

// HopCountIP is the key function for a server behind so many proxies, 1 to 64,
// of which only the last connects from cfg.Proxies: the others' addresses
// change, say. Each appends its peer to X-Forwarded-For, so the client is the
// entry at that place from the right. It fails if there are fewer entries, or
// if one up to there is no address.
//
// Every way in has to pass as many proxies: who can come by fewer, and through
// the last, can choose the address. If that is possible, the proxies have to be
// known one by one, see ForwardedForIP.
func HopCountIP(hops int, cfg ClientIPConfig) (func(*http.Request) (netip.Addr, error), error) {
	bad := core.Check("httpmw.ClientIPConfig")
	bad.If(hops < 1 || hops > 64, "hops", hops, "must be 1 to 64")
	c := newProxied(cfg, bad)
	return checked(func(r *http.Request) (netip.Addr, error) { return c.fromHops(r, hops) }, bad)
}

// HeaderIP is the key function for a server behind a proxy that sets one header
// to the client's address, and removes what the client sent under that name:
// CF-Connecting-IP, Fly-Client-IP, X-Real-IP. It fails if the header is
// missing, was sent twice, or is no address.
//
// name cannot be X-Forwarded-For or Forwarded: these are lists, which proxies
// append to.
func HeaderIP(name string, cfg ClientIPConfig) (func(*http.Request) (netip.Addr, error), error) {
	bad := core.Check("httpmw.ClientIPConfig")
	name, problem := headerName(name)
	bad.If(problem != "", "name", name, problem)
	notAList(bad, name)
	c := newProxied(cfg, bad)
	return checked(func(r *http.Request) (netip.Addr, error) { return c.fromHeader(r, name) }, bad)
}

// clientIP tells addresses. It is immutable.
type clientIP struct {
	proxies []netip.Prefix // none is IPv4-mapped
	bits    int            // of an IPv6 address that are kept
	unix    UnixPeer
}

func newClientIP(cfg ClientIPConfig, bad *core.Problems) *clientIP {
	if cfg.IPv6Prefix == 0 {
		cfg.IPv6Prefix = 64
	}
	bad.If(cfg.IPv6Prefix < 48 || cfg.IPv6Prefix > 128, "IPv6Prefix", cfg.IPv6Prefix, "must be 48 to 128")
	bad.If(cfg.Unix > UnixShared, "Unix", cfg.Unix, "must be UnixRefused, UnixTrusted or UnixShared")
	c := &clientIP{bits: cfg.IPv6Prefix, unix: cfg.Unix}
	for _, p := range cfg.Proxies {
		if a := p.Addr(); a.Is4In6() {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96) // invalid if it reaches beyond IPv4
		}
		bad.If(!p.IsValid(), "Proxies", p, "must be a valid prefix")
		c.proxies = append(c.proxies, p)
	}
	return c
}

// newProxied is newClientIP for who reads a header.
func newProxied(cfg ClientIPConfig, bad *core.Problems) *clientIP {
	bad.If(len(cfg.Proxies) == 0 && cfg.Unix != UnixTrusted, "Proxies", nil, "must say where the proxies connect from")
	return newClientIP(cfg, bad)
}

// newWalk is newProxied for who tells proxies by their addresses: if all
// addresses were trusted, the client would be what the client says.
func newWalk(cfg ClientIPConfig, bad *core.Problems) *clientIP {
	c := newProxied(cfg, bad)
	for _, p := range c.proxies {
		bad.If(p.IsValid() && p.Bits() == 0, "Proxies", p, "must not be all addresses: see HopCountIP")
	}
	return c
}

func (c *clientIP) fromPeer(r *http.Request) (netip.Addr, error) {
	peer, _, err := c.peer(r)
	return c.kept(peer), err
}

func (c *clientIP) fromForwardedFor(r *http.Request) (netip.Addr, error) {
	peer, proxied, err := c.peer(r)
	if !proxied {
		return c.kept(peer), err
	}
	err = errNoHeader
	for list := lastFirst(r.Header["X-Forwarded-For"], lastEntry); list.next(); {
		a, ok := parseNode(list.entry)
		if !ok {
			return netip.Addr{}, errGarbage
		}
		if !c.trusts(a) {
			return c.kept(a), nil
		}
		err = errNoClient
	}
	return netip.Addr{}, err
}

func (c *clientIP) fromForwarded(r *http.Request) (netip.Addr, error) {
	peer, proxied, err := c.peer(r)
	if !proxied {
		return c.kept(peer), err
	}
	err = errNoHeader
	for list := lastFirst(r.Header["Forwarded"], lastElement); list.next(); {
		a, ok := forwardedFor(list.entry)
		if !ok {
			return netip.Addr{}, errGarbage
		}
		if !c.trusts(a) {
			return c.kept(a), nil
		}
		err = errNoClient
	}
	return netip.Addr{}, err
}

func (c *clientIP) fromHops(r *http.Request, hops int) (netip.Addr, error) {
	peer, proxied, err := c.peer(r)
	if !proxied {
		return c.kept(peer), err
	}
	for list := lastFirst(r.Header["X-Forwarded-For"], lastEntry); list.next(); {
		a, ok := parseNode(list.entry)
		if !ok {
			return netip.Addr{}, errGarbage
		}
		if hops--; hops == 0 {
			return c.kept(a), nil
		}
	}
	return netip.Addr{}, errFewHops
}

func (c *clientIP) fromHeader(r *http.Request, name string) (netip.Addr, error) {
	peer, proxied, err := c.peer(r)
	if !proxied {
		return c.kept(peer), err
	}
	switch values := r.Header[name]; len(values) {
	case 0:
		return netip.Addr{}, errNoHeader
	case 1:
		if a, ok := parseNode(textproto.TrimString(values[0])); ok {
			return c.kept(a), nil
		}
		return netip.Addr{}, errGarbage
	default:
		return netip.Addr{}, errTwoValues
	}
}

// peer is the other end of the connection, and whether that is a proxy of ours,
// so that a header is to be read. If not, it is the client, or there is an
// error.
func (c *clientIP) peer(r *http.Request) (a netip.Addr, proxied bool, err error) {
	// First, since a peer on a Unix socket chooses its RemoteAddr: it is the name
	// that it bound its own end to, "10.0.0.1:80" if it likes.
	unix := onUnixSocket(r)
	a, ok := netip.Addr{}, false
	if !unix {
		a, ok = peerOf(r.RemoteAddr)
	}
	switch {
	case ok:
		return a, c.trusts(a), nil
	case !unix:
		return netip.Addr{}, false, errNoPeer
	case c.unix == UnixTrusted:
		return netip.Addr{}, true, nil
	case c.unix == UnixShared:
		return netip.IPv6Unspecified(), false, nil
	default:
		return netip.Addr{}, false, errUnixPeer
	}
}

// onUnixSocket goes by the server's own end of the connection, which no
// middleware rewrites.
func onUnixSocket(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return ok && local.Network() == "unix"
}

func (c *clientIP) trusts(a netip.Addr) bool {
	for i := range c.proxies {
		if c.proxies[i].Contains(a) {
			return true
		}
	}
	return false
}

// kept is a as a key.
func (c *clientIP) kept(a netip.Addr) netip.Addr {
	if !a.Is6() || a.IsLoopback() { // whose /64 begins with ::, the key of UnixShared
		return a
	}
	p, _ := a.Prefix(c.bits) // 128 at most
	return p.Addr()
}

// entries walks through the lines of a list header, from the last entry to the
// first. It needs no more of them than where it gets to.
type entries struct {
	lines []string
	cut   func(line string) (rest, last string, more bool)
	rest  string
	more  bool
	entry string
}

func lastFirst(lines []string, cut func(string) (string, string, bool)) entries {
	return entries{lines: lines, cut: cut}
}

func (e *entries) next() bool {
	if !e.more {
		last := len(e.lines) - 1
		if last < 0 {
			return false
		}
		e.rest, e.lines = e.lines[last], e.lines[:last]
	}
	e.rest, e.entry, e.more = e.cut(e.rest)
	e.entry = textproto.TrimString(e.entry)
	return true
}

func lastEntry(line string) (rest, last string, more bool) {
	i := strings.LastIndexByte(line, ',')
	if i < 0 {
		return "", line, false
	}
	return line[:i], line[i+1:], true
}

// checked is key, or none if there are problems.
func checked[K any](key func(*http.Request) (K, error), bad *core.Problems) (func(*http.Request) (K, error), error) {
	if err := bad.Err(); err != nil {
		return nil, err
	}
	return key, nil
}

// headerName is name in the form that http.Header has it, and what is wrong
// with it, if anything.
func headerName(name string) (canonical, problem string) {
	if name == "" {
		return name, "must be the name of a header"
	}
	for i := range len(name) {
		if !isTokenByte(name[i]) {
			return name, "must be the name of a header"
		}
	}
	canonical = textproto.CanonicalMIMEHeaderKey(name)
	if canonical == "Host" {
		return canonical, "is not among a request's headers: use r.Host"
	}
	return canonical, ""
}

// notAList refuses a header of which a client can write the beginning.
func notAList(bad *core.Problems, name string) {
	bad.If(name == "X-Forwarded-For", "name", name, "is a list that clients can begin: see ForwardedForIP and HopCountIP")
	bad.If(name == "Forwarded", "name", name, "is a list that clients can begin: see ForwardedIP")
}

func isTokenByte(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0
}
