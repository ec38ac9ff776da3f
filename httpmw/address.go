package httpmw

import (
	"net/netip"
	"strings"
)

// peerOf parses a RemoteAddr, an address with a port. The result has no zone,
// and is IPv4 if it was IPv4-mapped.
func peerOf(remote string) (netip.Addr, bool) {
	if a, ok := plainIPv4(remote); ok {
		return a, true
	}
	if a, ok := plainIPv6(remote); ok {
		return a.Unmap(), true
	}
	ap, err := netip.ParseAddrPort(remote)
	return plain(ap.Addr()), err == nil
}

// plain is a without what tells nobody apart.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// plainIPv4 is netip.ParseAddrPort for "a.b.c.d:port". It says no to all else,
// and takes a fifth of the time.
func plainIPv4(s string) (netip.Addr, bool) {
	var addr, n uint32
	digits, dots := 0, 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if d := c - '0'; d <= 9 {
			if n = n*10 + uint32(d); n > 255 || digits > 0 && n < 10 { // a leading zero
				break
			}
			digits++
			continue
		}
		if digits == 0 {
			break
		}
		addr, n, digits = addr<<8|n, 0, 0
		if c == '.' && dots < 3 {
			dots++
			continue
		}
		if c == ':' && dots == 3 && isPort(s[i+1:]) {
			return netip.AddrFrom4([4]byte{byte(addr >> 24), byte(addr >> 16), byte(addr >> 8), byte(addr)}), true
		}
		break
	}
	return netip.Addr{}, false
}

// plainIPv6 is the same for "[a:b::c]:port" without a zone, and without an IPv4
// address at the end.
func plainIPv6(s string) (netip.Addr, bool) {
	if len(s) < len("[::]:0") || s[0] != '[' {
		return netip.Addr{}, false
	}
	var b [16]byte
	n, gap, i := 0, -1, 1 // bytes so far, and how many before the "::"
	if s[1] == ':' && s[2] == ':' {
		gap, i = 0, 3
	}
	for s[i] != ']' {
		v, start := 0, i
		for ; i < len(s) && i-start < 4; i++ {
			d := hexDigit(s[i])
			if d < 0 {
				break
			}
			v = v<<4 | d
		}
		if i == start || n == 16 || i+1 >= len(s) {
			return netip.Addr{}, false
		}
		b[n], b[n+1] = byte(v>>8), byte(v)
		n += 2
		switch {
		case s[i] == ']':
		case s[i] != ':' || s[i+1] == ']':
			return netip.Addr{}, false
		case s[i+1] == ':' && gap < 0:
			gap = n
			i += 2
		default:
			i++
		}
		if i == len(s) {
			return netip.Addr{}, false
		}
	}
	switch {
	case gap < 0 && n < 16 || gap >= 0 && n == 16:
		return netip.Addr{}, false
	case gap >= 0:
		copy(b[16-(n-gap):], b[gap:n])
		clear(b[gap : 16-(n-gap)])
	}
	if i++; i == len(s) || s[i] != ':' || !isPort(s[i+1:]) {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16(b), true
}

func hexDigit(b byte) int {
	if b-'0' <= 9 {
		return int(b - '0')
	}
	if b |= 0x20; b-'a' <= 5 {
		return int(b-'a') + 10
	}
	return -1
}

func isPort(s string) bool {
	if len(s) < 1 || len(s) > 5 {
		return false
	}
	n := 0
	for i := range len(s) {
		if s[i]-'0' > 9 {
			return false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n <= 65535
}

// parseNode parses an entry of X-Forwarded-For and of headers like it: an
// address, with a port or without; IPv6 with a port is in brackets, and may be
// without one. The unspecified address is nobody's.
func parseNode(s string) (netip.Addr, bool) {
	if host, bracketed, ok := cutPort(s, isPort); ok {
		return parseHost(host, bracketed)
	}
	return parseHost(s, false) // IPv6 without brackets
}

// parseForwardedNode is parseNode for RFC 7239: IPv6 is in brackets, and a port
// may be obfuscated. It says no to "unknown" and to obfuscated identifiers.
func parseForwardedNode(s string) (netip.Addr, bool) {
	host, bracketed, ok := cutPort(s, func(port string) bool { return isPort(port) || isObfuscated(port) })
	if !ok {
		return netip.Addr{}, false
	}
	return parseHost(host, bracketed)
}

// cutPort splits "[host]", "[host]:port", "host:port" and a host without a
// colon. It says no to all else.
func cutPort(s string, port func(string) bool) (host string, bracketed, ok bool) {
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", false, false
		}
		rest := s[end+1:]
		return s[1:end], true, rest == "" || rest[0] == ':' && port(rest[1:])
	}
	host, p, has := strings.Cut(s, ":")
	return host, false, !has || port(p)
}

func parseHost(s string, bracketed bool) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil || bracketed && !a.Is6() {
		return netip.Addr{}, false
	}
	a = plain(a)
	return a, !a.IsUnspecified()
}

func isObfuscated(s string) bool {
	if len(s) < 2 || s[0] != '_' {
		return false
	}
	for i := range len(s) {
		if b := s[i]; !('a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' || b == '.' || b == '_' || b == '-') {
			return false
		}
	}
	return true
}

// lastElement cuts a Forwarded header line before its last element. It works
// from the right, where the proxies wrote: what a client put before that, an
// open quote say, changes nothing. An element with a quote that has no partner
// is the whole line, and is found to be malformed later.
func lastElement(line string) (rest, last string, more bool) {
	for i := len(line) - 1; i >= 0; i-- {
		switch line[i] {
		case ',':
			return line[:i], line[i+1:], true
		case '"':
			i = openingQuote(line[:i])
		}
	}
	return "", line, false
}

// openingQuote is the place of the last quote in s that is not escaped, or -1. s
// ends before a closing quote. Within a quoted string each quote has a backslash
// before it, and the one that opens it has an equals sign.
func openingQuote(s string) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == '"' && (i == 0 || s[i-1] != '\\') {
			return i
		}
	}
	return -1
}

// forwardedFor is the address in the for parameter of an element of Forwarded.
// It says no if there is none or more than one, and to a malformed element.
func forwardedFor(element string) (a netip.Addr, ok bool) {
	found := false
	for more := true; more; {
		var name, value string
		if name, value, element, more, ok = cutPair(element); !ok {
			return netip.Addr{}, false
		}
		if !strings.EqualFold(name, "for") {
			continue
		}
		if found {
			return netip.Addr{}, false
		}
		if a, found = parseForwardedNode(value); !found {
			return netip.Addr{}, false
		}
	}
	return a, found
}

// cutPair takes the first of the pairs of an element, which may be empty.
func cutPair(s string) (name, value, rest string, more, ok bool) {
	s = strings.TrimLeft(s, " \t")
	for len(name) < len(s) && isTokenByte(s[len(name)]) {
		name = s[:len(name)+1]
	}
	s = s[len(name):]
	if name != "" {
		if !strings.HasPrefix(s, "=") {
			return "", "", "", false, false
		}
		if value, s, ok = cutValue(s[1:]); !ok {
			return "", "", "", false, false
		}
	}
	s = strings.TrimLeft(s, " \t")
	if s == "" {
		return name, value, "", false, true
	}
	return name, value, s[1:], true, s[0] == ';'
}

// cutValue takes a token or a quoted string off the front of s.
func cutValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		n := 0
		for n < len(s) && isTokenByte(s[n]) {
			n++
		}
		return s[:n], s[n:], n > 0
	}
	var unescaped []byte // nil while nothing was escaped
	for i := 1; i < len(s); i++ {
		switch b := s[i]; {
		case b == '"':
			if unescaped != nil {
				return string(unescaped), s[i+1:], true
			}
			return s[1:i], s[i+1:], true
		case b == '\\':
			if unescaped == nil {
				unescaped = append(make([]byte, 0, len(s)), s[1:i]...)
			}
			if i++; i < len(s) {
				unescaped = append(unescaped, s[i])
			}
		case unescaped != nil:
			unescaped = append(unescaped, b)
		}
	}
	return "", "", false
}
