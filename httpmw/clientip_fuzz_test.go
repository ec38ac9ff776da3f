package httpmw

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// route is a model of how a request comes to a server: from a client, who sends
// header lines of his own choice, through proxies that each append their peer.
type route struct {
	client netip.Addr
	lines  []string // the client's
	hops   []byte   // how each proxy writes, the client's first
}

// proxy is the address of the proxy at a place, which is trusted.
func (route) proxy(i int) netip.Addr {
	if i%2 == 0 {
		return netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})
	}
	return netip.MustParseAddr("fd00::1").Next()
}

// arrives is the request as the server sees it, with a list header that each
// proxy appends to in a way that its byte chooses.
func (m route) arrives(header string, entry func(a netip.Addr, how byte) string) *http.Request {
	lines, peer := append([]string(nil), m.lines...), m.client
	for i, how := range m.hops {
		e := entry(peer, how)
		switch last := len(lines) - 1; {
		case last < 0 || how%4 == 0:
			lines = append(lines, e)
		case how%4 == 1:
			lines[last] += ", " + e
		case how%4 == 2:
			lines[last] += "," + e
		default:
			lines = []string{strings.Join(append(lines, e), ", ")}
		}
		peer = m.proxy(i)
	}
	r := from(netip.AddrPortFrom(peer, 4711).String())
	r.Header[header] = lines
	return r
}

// fuzzed makes a route of a fuzzer's bytes, or skips.
func fuzzed(t *testing.T, client []byte, mapped bool, lines string, hops []byte) route {
	a, ok := netip.AddrFromSlice(client)
	if !ok || len(hops) > 8 || plain(a).IsUnspecified() {
		t.Skip()
	}
	for _, p := range proxies {
		if p.Contains(plain(a)) {
			t.Skip()
		}
	}
	if mapped && a.Is4() {
		a = netip.AddrFrom16(a.As16())
	}
	m := route{client: a, hops: hops}
	if lines != "" {
		m.lines = strings.Split(lines, "\n")
	}
	return m
}

func nodeForXFF(a netip.Addr, how byte) string {
	switch how >> 2 % 4 {
	case 1:
		return netip.AddrPortFrom(a, 80).String()
	case 2:
		if a.Is6() {
			return "[" + a.String() + "]"
		}
	}
	return a.String()
}

func nodeForForwarded(a netip.Addr, how byte) string {
	node := a.String()
	if a.Is6() {
		node = "[" + node + "]"
	}
	if how&16 != 0 {
		node += ":_obf"
	}
	pair := "for=" + node
	if a.Is6() || how&(16|32) != 0 {
		pair = fmt.Sprintf("For=%q", node)
	}
	switch how >> 2 % 4 {
	case 1:
		return pair + `;proto=https;by="[2001:db8::9]:1"`
	case 2:
		return `host="a,\"b;for=1.1.1.1\\";` + pair
	case 3:
		return `;` + pair + `;secret=""`
	}
	return pair
}

func seed(f *testing.F, lines ...string) {
	f.Helper()
	v4, v6 := []byte{192, 0, 2, 60}, netip.MustParseAddr("2001:db8:1:2:3:4:5:6").AsSlice()
	for i, l := range lines {
		how := byte(i) * 7
		f.Add(v4, false, l, []byte{})
		f.Add(v6, false, l, []byte{how, how + 5})
		f.Add(v4, true, l, []byte{how + 1, how + 2, how + 15})
	}
	for how := byte(0); how < 64; how++ {
		f.Add(v4, false, lines[1], []byte{how})
		f.Add(v6, false, "", []byte{how, how + 1})
	}
}

// The client's address is found, whatever the client sends.
func FuzzForwardedForIP(f *testing.F) {
	seed(f, "", "1.1.1.1", "1.1.1.1, 10.0.0.1", "10.0.0.1\n10.0.0.2, fd00::1", ", ,\n,", "unknown", "[", "[::", "1.1.1.1:", "\x00", `"`)
	walk := must(ForwardedForIP(ClientIPConfig{Proxies: proxies}))
	f.Fuzz(func(t *testing.T, client []byte, mapped bool, lines string, hops []byte) {
		m := fuzzed(t, client, mapped, lines, hops)
		r := m.arrives("X-Forwarded-For", nodeForXFF)
		want := peerIP.kept(plain(m.client)).String()
		require.Equal(t, want, told(walk, r), "%q", r.Header)
		if len(hops) > 0 {
			count := must(HopCountIP(len(hops), ClientIPConfig{Proxies: proxies}))
			require.Equal(t, want, told(count, r), "%q", r.Header)
		}
	})
}

func FuzzForwardedIP(f *testing.F) {
	seed(f, "", "for=1.1.1.1", `for="1.1.1.1`, `for="1.1.1.1\`, "for=10.0.0.1, for=1.1.1.1;x=\"", ",;,\n;", `for=unknown, x="\"`, `"`, `\`, `for=1.1.1.1, x="a", "`)
	walk := must(ForwardedIP(ClientIPConfig{Proxies: proxies}))
	f.Fuzz(func(t *testing.T, client []byte, mapped bool, lines string, hops []byte) {
		m := fuzzed(t, client, mapped, lines, hops)
		r := m.arrives("Forwarded", nodeForForwarded)
		require.Equal(t, peerIP.kept(plain(m.client)).String(), told(walk, r), "%q", r.Header)
	})
}

// Whatever arrives, nothing panics, an error comes without an address, a peer
// that is no proxy is the client, and PeerIP agrees with net/netip.
func FuzzClientIP(f *testing.F) {
	for _, s := range []string{
		"", "@", "192.0.2.60:80", "10.0.0.1:80", "[fd00::1%eth0]:80", "[::ffff:10.0.0.1]:80", "192.0.2.060:80", "1.2.3.4:00080",
		"1.2.3.4:", "1.2.3:80", "1..3.4:80", "1.2.3.4.5:80", "1.2.3.4:80:80", "256.1.1.1:80", "1.2.3.4:99999", "1.2.3.4 :80",
		"[::]:0", "[1:2:3:4:5:6:7:8]:1", "[1:2:3:4:5:6:7::]:1", "[::2:3:4:5:6:7:8]:1", "[1::2::3]:1", "[1:2:3:4:5:6:7:8::]:1",
		"[1:2:3]:1", "[1:]:1", "[:1]:1", "[12345::]:1", "[g::]:1", "[1:::2]:1", "[::1.2.3.4]:1", "[::]", "[::]1", "[::]:", "[::",
		"[1:2:3:4:5:6:7:8:9]:1", "[ABCD::]:1", "[abcd:", "[1:2",
	} {
		f.Add(s, "192.0.2.60, 10.0.0.2")
		f.Add(s, `for="[::1]:80";host="\"", for=_x`)
	}
	cfg := ClientIPConfig{Proxies: proxies}
	keys := []ipKey{
		PeerIP, must(ForwardedForIP(cfg)), must(ForwardedIP(cfg)), must(HopCountIP(2, cfg)), must(HeaderIP("X-Real-IP", cfg)),
	}
	f.Fuzz(func(t *testing.T, remote, header string) {
		r := from(remote)
		for _, name := range []string{"X-Forwarded-For", "Forwarded", "X-Real-Ip"} {
			r.Header[name] = strings.Split(header, "\n")
		}
		ap, err := netip.ParseAddrPort(remote)
		peer := ap.Addr().Unmap().WithZone("")
		parsed, ok := peerOf(remote)
		require.Equal(t, err == nil, ok)
		require.Equal(t, peer, parsed)
		for i, key := range keys {
			got := told(key, r)
			require.NotEqual(t, "an address beside an error", got)
			switch trusted := peerTrusted(peer); {
			case err != nil:
				require.Equal(t, errNoPeer.Error(), got)
			case i == 0 || !trusted:
				want, _ := peer.Prefix(min(64, peer.BitLen()))
				require.Equal(t, want.Addr().String(), got)
			}
		}
	})
}

func peerTrusted(a netip.Addr) bool {
	for _, p := range proxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
