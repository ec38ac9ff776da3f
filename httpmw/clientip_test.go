package httpmw

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
)

type ipKey = func(*http.Request) (netip.Addr, error)

func prefixes(list ...string) (p []netip.Prefix) {
	for _, s := range list {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// from is a request from a peer, with headers given as "Name: value".
func from(remote string, headers ...string) *http.Request {
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = remote
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	return r
}

// told is what a key function says, as text.
func told(key ipKey, r *http.Request) string {
	a, err := key(r)
	if err != nil {
		if a.IsValid() {
			return "an address beside an error"
		}
		return err.Error()
	}
	return a.String()
}

func TestPeerIP(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.60:80":                    "192.0.2.60",
		"0.0.0.1:0":                        "0.0.0.1",
		"255.255.255.255:65535":            "255.255.255.255",
		"[::ffff:192.0.2.60]:80":           "192.0.2.60",
		"[2001:db8:1:2:3:4:5:6]:80":        "2001:db8:1:2::",
		"[2001:db8:1:2:ffff::]:80":         "2001:db8:1:2::",
		"[fe80::1%eth0]:80":                "fe80::",
		"[fe80::1%eth1]:80":                "fe80::",
		"[::1]:80":                         "::1", // not ::, which UnixShared is
		"[::ffff:192.0.2.60%eth0]:80":      "192.0.2.60",
		"192.0.2.60":                       errNoPeer.Error(),
		"192.0.2.60:":                      errNoPeer.Error(),
		"192.0.2.60:65536":                 errNoPeer.Error(),
		"192.0.2.060:80":                   errNoPeer.Error(),
		"192.0.2.256:80":                   errNoPeer.Error(),
		"192.0.2:80":                       errNoPeer.Error(),
		"1.2.3.4.5:80":                     errNoPeer.Error(),
		"2001:db8::1":                      errNoPeer.Error(),
		"pipe":                             errNoPeer.Error(),
		"localhost:80":                     errNoPeer.Error(),
		"@":                                errNoPeer.Error(),
		"":                                 errNoPeer.Error(),
		strings.Repeat("[", 1000):          errNoPeer.Error(),
		"192.0.2.60:80, 198.51.100.7:9999": errNoPeer.Error(),
	} {
		r := from(remote, "X-Forwarded-For: 203.0.113.9", "Forwarded: for=203.0.113.9")
		require.Equal(t, want, told(PeerIP, r), remote)
		require.Equal(t, remote, r.RemoteAddr)
	}
}

// The short ways to parse are taken for what net/http writes, and agree with
// net/netip.
func TestPeersAreParsedAsByNetip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := rapid.SliceOfN(rapid.OneOf(rapid.Just(byte(0)), rapid.Byte()), 16, 16).Draw(rt, "address")
		port := rapid.Uint16().Draw(rt, "port")
		v4 := netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), port)
		got, ok := plainIPv4(v4.String())
		require.True(t, ok, v4)
		require.Equal(t, v4.Addr(), got)
		v6 := netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)), port)
		for _, s := range []string{v6.String(), strings.ToUpper(v6.String()), fmt.Sprintf("[%s]:%d", v6.Addr().StringExpanded(), port)} {
			got, ok = plainIPv6(s)
			require.Equal(t, !strings.Contains(s, "."), ok, s) // IPv4-mapped
			if ok {
				require.Equal(t, v6.Addr(), got)
			}
			got, ok = peerOf(s)
			require.True(t, ok)
			require.Equal(t, v6.Addr().Unmap(), got)
		}
		// One letter wrong: the answers are net/netip's.
		bad := []byte(v6.String())
		bad[rapid.IntRange(0, len(bad)-1).Draw(rt, "at")] = rapid.SampledFrom([]byte("0f:g.[]%")).Draw(rt, "letter")
		want, err := netip.ParseAddrPort(string(bad))
		got, ok = peerOf(string(bad))
		require.Equal(t, err == nil, ok, "%s", bad)
		require.Equal(t, plain(want.Addr()), got, "%s", bad)
	})
}

func TestIPv6PrefixIsConfigurable(t *testing.T) {
	r := from("[2001:db8:1:2:3:4:5:6]:80")
	for bits, want := range map[int]string{
		0: "2001:db8:1:2::", 48: "2001:db8:1::", 56: "2001:db8:1::", 64: "2001:db8:1:2::", 128: "2001:db8:1:2:3:4:5:6",
	} {
		require.Equal(t, want, told(must(PeerIPWith(ClientIPConfig{IPv6Prefix: bits})), r), bits)
	}
	v4 := must(PeerIPWith(ClientIPConfig{IPv6Prefix: 48}))
	require.Equal(t, "192.0.2.60", told(v4, from("192.0.2.60:1")))
	require.Equal(t, "192.0.2.60", told(v4, from("[::ffff:192.0.2.60]:1")))
}

var proxies = prefixes("10.0.0.0/24", "fd00::/8", "203.0.113.8/32")

func TestForwardedForIP(t *testing.T) {
	key := must(ForwardedForIP(ClientIPConfig{Proxies: proxies}))
	for _, row := range []struct {
		peer    string
		headers []string
		want    string
	}{
		{"10.0.0.1:80", []string{"192.0.2.60"}, "192.0.2.60"},
		{"10.0.0.1:80", []string{"evil, 192.0.2.60"}, "192.0.2.60"},
		{"10.0.0.1:80", []string{"198.51.100.1, 192.0.2.60, 10.0.0.2"}, "192.0.2.60"},
		{"10.0.0.1:80", []string{"198.51.100.1", "192.0.2.60", "10.0.0.2, fd00::1"}, "192.0.2.60"},
		{"10.0.0.1:80", []string{"198.51.100.1,192.0.2.60 ,\t10.0.0.2"}, "192.0.2.60"},
		{"10.0.0.1:80", []string{"192.0.2.60:4711"}, "192.0.2.60"},
		{"10.0.0.1:80", []string{"192.0.2.60:4711, 10.0.0.9:80, [fd00::1]:80, [fd00::1], ::ffff:10.0.0.2"}, "192.0.2.60"},
		{"10.0.0.1:80", []string{"::ffff:192.0.2.60"}, "192.0.2.60"},
		{"10.0.0.1:80", []string{"[::ffff:192.0.2.60]:1"}, "192.0.2.60"},
		{"10.0.0.1:80", []string{"2001:db8:1:2:3::4"}, "2001:db8:1:2::"},
		{"10.0.0.1:80", []string{"[2001:db8:1:2:3::4]:4711"}, "2001:db8:1:2::"},
		{"10.0.0.1:80", []string{"fe80::1%eth0"}, "fe80::"},
		{"[::ffff:10.0.0.1]:80", []string{"192.0.2.60"}, "192.0.2.60"},
		{"[fd00::1%eth0]:80", []string{"192.0.2.60"}, "192.0.2.60"},
		{"10.0.0.1:80", []string{"unknown, " + strings.Repeat("x", 10000) + ", 192.0.2.60"}, "192.0.2.60"},

		// The peer is no proxy: it is the client, whatever it sends.
		{"192.0.2.60:80", nil, "192.0.2.60"},
		{"192.0.2.60:80", []string{"198.51.100.1"}, "192.0.2.60"},
		{"192.0.2.60:80", []string{"198.51.100.1, 10.0.0.1"}, "192.0.2.60"},
		{"10.0.1.1:80", []string{"198.51.100.1"}, "10.0.1.1"},

		// Fail closed.
		{"10.0.0.1:80", nil, errNoHeader.Error()},
		{"10.0.0.1:80", []string{""}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"192.0.2.60", ""}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"192.0.2.60,"}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"192.0.2.60, ,10.0.0.2"}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"192.0.2.60, unknown"}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"192.0.2.60, unknown, 10.0.0.2"}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"10.0.0.3, 10.0.0.2"}, errNoClient.Error()},
		{"10.0.0.1:80", []string{"0.0.0.0"}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"::"}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"::ffff:0.0.0.0"}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"192.0.2.60:"}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"192.0.2.60:http"}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"192.0.2.60:65536"}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"[192.0.2.60]"}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"[2001:db8::1"}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"[2001:db8::1]80"}, errGarbage.Error()},
		{"10.0.0.1:80", []string{`"192.0.2.60"`}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"192.0.2.060"}, errGarbage.Error()},
		{"10.0.0.1:80", []string{"192.0.2.0/24"}, errGarbage.Error()},
		{"", []string{"192.0.2.60"}, errNoPeer.Error()},
		{"10.0.0.1", []string{"192.0.2.60"}, errNoPeer.Error()},
	} {
		r := from(row.peer)
		for _, h := range row.headers {
			r.Header.Add("X-Forwarded-For", h)
		}
		r.Header.Set("X-Real-Ip", "198.51.100.9")
		r.Header.Set("Forwarded", "for=198.51.100.9")
		require.Equal(t, row.want, told(key, r), "%s %q", row.peer, row.headers)
		require.Equal(t, row.peer, r.RemoteAddr)
	}
}

func TestForwardedIP(t *testing.T) {
	key := must(ForwardedIP(ClientIPConfig{Proxies: proxies}))
	for _, row := range []struct {
		lines []string
		want  string
	}{
		// RFC 7239's own examples, of the form that proxies append.
		{[]string{"for=192.0.2.60;proto=http;by=203.0.113.43"}, "192.0.2.60"},
		{[]string{`For="[2001:db8:cafe::17]:4711"`}, "2001:db8:cafe::"},
		{[]string{"for=192.0.2.43, for=198.51.100.17"}, "198.51.100.17"},
		{[]string{`for="_gazonk"`}, errGarbage.Error()},
		{[]string{`for="_gazonk", for=198.51.100.17`}, "198.51.100.17"},
		{[]string{`for=192.0.2.43,for="[2001:db8:cafe::17]",for=unknown`}, errGarbage.Error()},
		{[]string{"for=_hidden, for=_SEVKISEK"}, errGarbage.Error()},
		{[]string{`for=192.0.2.43, for="[2001:db8:cafe::17]"`}, "2001:db8:cafe::"},
		{[]string{"for=192.0.2.43", "for=10.0.0.2"}, "192.0.2.43"},

		{[]string{`for=1.1.1.1, FOR="192.0.2.60:4711" , for="10.0.0.2:_port";host="a,b;c\"d\\"`}, "192.0.2.60"},
		{[]string{`;;proto=https; for=192.0.2.60 ;`}, "192.0.2.60"},
		{[]string{`for="192.0\.2.60"`}, "192.0.2.60"},
		{[]string{`for="[::ffff:192.0.2.60]"`}, "192.0.2.60"},

		// A client's open quotes and escapes change nothing.
		{[]string{`for="1.1.1.1, for=192.0.2.60`}, "192.0.2.60"},
		{[]string{`for=1.1.1.1, x=", for="[2001:db8:1:2::3]"`}, "2001:db8:1:2::"},
		{[]string{`for=1.1.1.1, x="\, for="[2001:db8:1:2::3]:80";proto="https"`}, "2001:db8:1:2::"},
		{[]string{`for=1.1.1.1\, for=192.0.2.60`}, "192.0.2.60"},
		{[]string{`,,,`, `for=192.0.2.60`}, "192.0.2.60"},

		// Fail closed.
		{nil, errNoHeader.Error()},
		{[]string{""}, errGarbage.Error()},
		{[]string{"for=192.0.2.60,"}, errGarbage.Error()},
		{[]string{"for=192.0.2.60, proto=https"}, errGarbage.Error()},
		{[]string{"for=192.0.2.60;for=192.0.2.61"}, errGarbage.Error()},
		{[]string{"for=192.0.2.60;For=10.0.0.2"}, errGarbage.Error()},
		{[]string{"for="}, errGarbage.Error()},
		{[]string{`for=""`}, errGarbage.Error()},
		{[]string{`for="192.0.2.60`}, errGarbage.Error()},
		{[]string{`for="192.0.2.60"x`}, errGarbage.Error()},
		{[]string{`for="192.0.2.60\`}, errGarbage.Error()},
		{[]string{"for =192.0.2.60"}, errGarbage.Error()},
		{[]string{"for= 192.0.2.60"}, errGarbage.Error()},
		{[]string{"for=2001:db8::1"}, errGarbage.Error()},
		{[]string{`for="2001:db8::1"`}, errGarbage.Error()},
		{[]string{"for=[2001:db8::1]"}, errGarbage.Error()},
		{[]string{"for=192.0.2.60:80"}, errGarbage.Error()},
		{[]string{`for="[2001:db8::1]:_"`}, errGarbage.Error()},
		{[]string{`for="[2001:db8::1]:_a!"`}, errGarbage.Error()},
		{[]string{`for="[192.0.2.60]"`}, errGarbage.Error()},
		{[]string{"192.0.2.60"}, errGarbage.Error()},
		{[]string{"for=10.0.0.2"}, errNoClient.Error()},
	} {
		r := from("10.0.0.1:80", "X-Forwarded-For: 198.51.100.9")
		for _, l := range row.lines {
			r.Header.Add("Forwarded", l)
		}
		require.Equal(t, row.want, told(key, r), "%q", row.lines)
		r.RemoteAddr = "192.0.2.99:80"
		require.Equal(t, "192.0.2.99", told(key, r), "%q", row.lines)
	}
}

func TestHopCountIP(t *testing.T) {
	two := must(HopCountIP(2, ClientIPConfig{Proxies: prefixes("10.0.0.0/8")}))
	for _, row := range []struct {
		peer, header, want string
	}{
		{"10.0.0.1:80", "192.0.2.60, 172.16.0.1", "192.0.2.60"},
		{"10.0.0.1:80", "198.51.100.1, 192.0.2.60, 172.16.0.1", "192.0.2.60"},
		{"10.0.0.1:80", "evil, 192.0.2.60:80, [fd00::1]", "192.0.2.60"},
		{"10.0.0.1:80", "172.16.0.1", errFewHops.Error()},
		{"10.0.0.1:80", "192.0.2.60, unknown", errGarbage.Error()},
		{"10.0.0.1:80", "unknown, 172.16.0.1", errGarbage.Error()},
		{"192.0.2.61:80", "192.0.2.60, 172.16.0.1", "192.0.2.61"},
		{"x", "192.0.2.60, 172.16.0.1", errNoPeer.Error()},
	} {
		require.Equal(t, row.want, told(two, from(row.peer, "X-Forwarded-For: "+row.header)), row.header)
	}
	require.Equal(t, errFewHops.Error(), told(two, from("10.0.0.1:80")))
	anyPeer := must(HopCountIP(1, ClientIPConfig{Proxies: prefixes("0.0.0.0/0", "::/0")}))
	require.Equal(t, "192.0.2.60", told(anyPeer, from("[2001:db8::1]:1", "X-Forwarded-For: x, 192.0.2.60")))
	require.Equal(t, "192.0.2.60", told(anyPeer, from("10.9.8.7:1", "X-Forwarded-For: x, 192.0.2.60")))
}

func TestHeaderIP(t *testing.T) {
	key := must(HeaderIP("cf-connecting-ip", ClientIPConfig{Proxies: prefixes("10.0.0.0/8")}))
	r := from("10.0.0.1:80", "CF-Connecting-IP:  192.0.2.60 ", "X-Forwarded-For: 198.51.100.9")
	require.Equal(t, "192.0.2.60", told(key, r))
	r.RemoteAddr = "192.0.2.61:80"
	require.Equal(t, "192.0.2.61", told(key, r))
	require.Equal(t, errNoHeader.Error(), told(key, from("10.0.0.1:80")))
	require.Equal(t, errGarbage.Error(), told(key, from("10.0.0.1:80", "CF-Connecting-IP: ")))
	require.Equal(t, errGarbage.Error(), told(key, from("10.0.0.1:80", "CF-Connecting-IP: 192.0.2.60, 192.0.2.61")))
	require.Equal(t, errTwoValues.Error(), told(key, from("10.0.0.1:80", "CF-Connecting-IP: 192.0.2.60", "CF-Connecting-IP: 192.0.2.60")))
}

func TestClientIPConfigReportsAllProblems(t *testing.T) {
	problems := func(key ipKey, err error) string {
		require.Nil(t, key)
		require.ErrorIs(t, err, core.ErrConfig)
		return err.Error()
	}
	require.Equal(t, `httpmw.ClientIPConfig.Proxies: [10.0.0.0/8]: must be empty: no header is read
httpmw.ClientIPConfig.Unix: must not be UnixTrusted: no header is read
httpmw.ClientIPConfig.IPv6Prefix: 129: must be 48 to 128`,
		problems(PeerIPWith(ClientIPConfig{Proxies: prefixes("10.0.0.0/8"), Unix: UnixTrusted, IPv6Prefix: 129})))
	require.Equal(t, `httpmw.ClientIPConfig.Proxies: must say where the proxies connect from
httpmw.ClientIPConfig.IPv6Prefix: 47: must be 48 to 128
httpmw.ClientIPConfig.Unix: 3: must be UnixRefused, UnixTrusted or UnixShared`,
		problems(ForwardedForIP(ClientIPConfig{IPv6Prefix: 47, Unix: 3})))
	require.Equal(t, `httpmw.ClientIPConfig.Proxies: invalid Prefix: must be a valid prefix
httpmw.ClientIPConfig.Proxies: 0.0.0.0/0: must not be all addresses: see HopCountIP
httpmw.ClientIPConfig.Proxies: ::/0: must not be all addresses: see HopCountIP`,
		problems(ForwardedIP(ClientIPConfig{Proxies: append(prefixes("0.0.0.0/0", "::/0"), netip.Prefix{})})))
	require.Contains(t, problems(ForwardedForIP(ClientIPConfig{Proxies: prefixes("::ffff:0.0.0.0/96")})), "0.0.0.0/0: must not be all addresses")
	require.Contains(t, problems(ForwardedForIP(ClientIPConfig{Proxies: prefixes("::ffff:0:0/90")})), "must be a valid prefix")
	require.Equal(t, `httpmw.ClientIPConfig.hops: 0: must be 1 to 64
httpmw.ClientIPConfig.Proxies: must say where the proxies connect from`,
		problems(HopCountIP(0, ClientIPConfig{})))
	require.Contains(t, problems(HopCountIP(65, ClientIPConfig{Proxies: proxies})), "hops: 65: must be 1 to 64")
	for name, want := range map[string]string{
		"x-forwarded-for": "X-Forwarded-For: is a list", "forwarded": "Forwarded: is a list",
		"": "must be the name of a header", "a b": "a b: must be the name of a header",
		"ä": "must be the name of a header", "host": "use r.Host",
	} {
		require.Contains(t, problems(HeaderIP(name, ClientIPConfig{Proxies: proxies})), want)
	}
}

// Known ways around a limit by address, and into somebody else's.
func TestKnownBypasses(t *testing.T) {
	walk := must(ForwardedForIP(ClientIPConfig{Proxies: proxies}))
	hops := must(HopCountIP(1, ClientIPConfig{Proxies: proxies}))
	header := must(HeaderIP("X-Real-IP", ClientIPConfig{Proxies: proxies}))
	const direct, proxied = "192.0.2.60:80", "10.0.0.1:80"
	for _, row := range []struct {
		name string
		key  ipKey
		r    *http.Request
		want string
	}{
		{
			"chi RealIP, GHSA-3fxj-6jh8-hvhx: a header of the client's", PeerIP,
			from(direct, "True-Client-IP: 1.1.1.1", "X-Real-IP: 1.1.1.1", "X-Forwarded-For: 1.1.1.1"), "192.0.2.60",
		},
		{
			"chi RealIP: the same to a server that expects a proxy", walk,
			from(direct, "True-Client-IP: 1.1.1.1", "X-Real-IP: 1.1.1.1", "X-Forwarded-For: 1.1.1.1"), "192.0.2.60",
		},
		{"chi RealIP: the leftmost entry", walk, from(proxied, "X-Forwarded-For: 1.1.1.1, 192.0.2.60"), "192.0.2.60"},
		{"Fleet, CVE-2026-24000: a fresh address each time", header, from(direct, "X-Real-IP: 1.1.1.2"), "192.0.2.60"},
		{"Vikunja, CVE-2026-29794: likewise", hops, from(direct, "X-Forwarded-For: 1.1.1.3"), "192.0.2.60"},
		{"realclientip-go: the peer is not looked at", walk, from(direct, "X-Forwarded-For: 1.1.1.1, 10.0.0.2"), "192.0.2.60"},
		{"fiber IsFromLocal, CVE-2023-41338: loopback by header", walk, from(direct, "X-Forwarded-For: 127.0.0.1"), "192.0.2.60"},
		{"fiber, CVE-2026-45045: a second X-Real-IP", header, from(proxied, "X-Real-IP: 1.1.1.1", "X-Real-IP: 192.0.2.60"), errTwoValues.Error()},
		{"GO-2024-2917: an IPv4-mapped proxy", walk, from("[::ffff:10.0.0.1]:80", "X-Forwarded-For: 192.0.2.60"), "192.0.2.60"},
		{"GO-2024-2917: an IPv4-mapped entry is the same client", walk, from(proxied, "X-Forwarded-For: ::ffff:192.0.2.60"), "192.0.2.60"},
		{"CVE-2024-24790: an IPv4-mapped peer is the same client", PeerIP, from("[::ffff:192.0.2.60]:80"), "192.0.2.60"},
		{"Traefik, CVE-2024-45410: Connection removed the header", walk, from(proxied), errNoHeader.Error()},
		{"Traefik, CVE-2024-45410: removed between two proxies", walk, from(proxied, "X-Forwarded-For: 10.0.0.2"), errNoClient.Error()},
		{"Traefik, CVE-2024-45410: with a count", must(HopCountIP(2, ClientIPConfig{Proxies: proxies})), from(proxied, "X-Forwarded-For: 10.0.0.2"), errFewHops.Error()},
		{
			"Traefik, CVE-2026-33433: another spelling of the name", must(HeaderIP("x-real-ip", ClientIPConfig{Proxies: proxies})),
			from(proxied, "X-REAL-IP: 192.0.2.60", "X_Real_IP: 1.1.1.1"), "192.0.2.60",
		},
		{"two lines, of which the client's is first", walk, from(proxied, "X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 192.0.2.60"), "192.0.2.60"},
		{"a new address of one's own /64 each time", PeerIP, from("[2001:db8:1:2:dead:beef:0:1]:80"), "2001:db8:1:2::"},
		{"a zone to tell two keys apart", walk, from(proxied, "X-Forwarded-For: 2001:db8:1:2::1%a"), "2001:db8:1:2::"},
		{"a port to tell two keys apart", walk, from(proxied, "X-Forwarded-For: 192.0.2.60:1"), "192.0.2.60"},
	} {
		require.Equal(t, row.want, told(row.key, row.r), row.name)
	}
}

// Unix sockets, for real: what their peers are called differs between systems.
func TestUnixSocket(t *testing.T) {
	bound := "" // the name of the client's own end
	ask := func(t *testing.T, key ipKey, headers ...string) string {
		said := make(chan string, 1)
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { said <- told(key, r) }))
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Skip("no Unix sockets here:", err)
		}
		require.NoError(t, srv.Listener.Close())
		srv.Listener = l
		srv.Start()
		defer srv.Close()
		client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			if bound != "" {
				d.LocalAddr = &net.UnixAddr{Name: bound, Net: "unix"}
			}
			return d.DialContext(ctx, "unix", path)
		}}}
		defer client.CloseIdleConnections()
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://unix/", nil)
		require.NoError(t, err)
		for _, h := range headers {
			name, value, _ := strings.Cut(h, ": ")
			r.Header.Add(name, value)
		}
		resp, err := client.Do(r)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		return <-said
	}
	const forged = "X-Forwarded-For: 1.1.1.1, 192.0.2.60"
	require.Equal(t, errUnixPeer.Error(), ask(t, PeerIP, forged))
	require.Equal(t, errUnixPeer.Error(), ask(t, must(ForwardedForIP(ClientIPConfig{Proxies: proxies})), forged))
	shared := must(ForwardedForIP(ClientIPConfig{Proxies: proxies, Unix: UnixShared}))
	require.Equal(t, "::", ask(t, shared, forged))
	require.Equal(t, "::", ask(t, must(PeerIPWith(ClientIPConfig{Unix: UnixShared})), forged))
	trusted := ClientIPConfig{Unix: UnixTrusted}
	require.Equal(t, "192.0.2.60", ask(t, must(ForwardedForIP(trusted)), forged))
	require.Equal(t, "192.0.2.60", ask(t, must(HopCountIP(1, trusted)), forged))
	require.Equal(t, "192.0.2.60", ask(t, must(HeaderIP("X-Real-IP", trusted)), "X-Real-IP: 192.0.2.60"))
	require.Equal(t, errNoHeader.Error(), ask(t, must(ForwardedForIP(trusted))))
	// What a peer calls its own end of the connection is nobody's address.
	t.Chdir(t.TempDir())
	for _, bound = range []string{"10.0.0.1:80", "[fe80::9]:1"} {
		proxied := ClientIPConfig{Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
		require.Equal(t, errUnixPeer.Error(), ask(t, PeerIP, forged))
		require.NoError(t, os.Remove(bound))
		require.Equal(t, errUnixPeer.Error(), ask(t, must(ForwardedForIP(proxied)), forged))
		require.NoError(t, os.Remove(bound))
		require.Equal(t, "::", ask(t, shared, forged))
		require.NoError(t, os.Remove(bound))
	}
	bound = ""
	// A trusted Unix socket makes nobody else trusted.
	require.Equal(t, errNoPeer.Error(), told(must(ForwardedForIP(trusted)), from("@", forged)))
	require.Equal(t, "192.0.2.61", told(must(ForwardedForIP(trusted)), from("192.0.2.61:80", forged)))
}

func TestClientIPAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	cfg := ClientIPConfig{Proxies: proxies}
	for name, key := range map[string]ipKey{
		"peer": PeerIP, "forwarded for": must(ForwardedForIP(cfg)), "forwarded": must(ForwardedIP(cfg)),
		"hops": must(HopCountIP(2, cfg)), "header": must(HeaderIP("X-Real-IP", cfg)),
	} {
		for _, peer := range []string{"10.0.0.1:80", "192.0.2.60:80", "[fd00::1]:80", "[2001:db8::1]:80"} {
			r := from(peer, "X-Forwarded-For: 192.0.2.60, [fd00::1]:80", "X-Real-IP: 192.0.2.60",
				`Forwarded: for=192.0.2.60, for="[fd00::1]:80";proto=https`)
			require.Zero(t, testing.AllocsPerRun(100, func() {
				if a, err := key(r); err != nil || !a.IsValid() {
					panic(err)
				}
			}), "%s, %s", name, peer)
		}
	}
}
