package transport

import (
	"errors"
	"net/http"
	"strings"
)

// Origin is where a request goes (RFC 9110, section 4.3.1): a key for GuardBy and
// RateLimitBy.
type Origin struct {
	Scheme string // in lower case
	Host   string // in lower case, with the port unless it is the scheme's own
}

// String is the origin as in a URL: "https://api.example.com".
func (o Origin) String() string { return o.Scheme + "://" + o.Host }

var errNoHost = errors.New("the request's URL has no host")

// OriginOf is the origin of the request's URL, a key for GuardBy and RateLimitBy. It
// is the same for https://API.example.com:443 and https://api.example.com; names
// that only the DNS knows to be the same differ, and so do addresses that are
// written in two ways. The error is for a URL without a host. It does not allocate
// where the host is in lower case.
func OriginOf(req *http.Request) (Origin, error) {
	if req.URL == nil || req.URL.Host == "" {
		return Origin{}, errNoHost
	}
	o := Origin{Scheme: strings.ToLower(req.URL.Scheme), Host: strings.ToLower(req.URL.Host)}
	colon := strings.LastIndexByte(o.Host, ':')
	if colon <= strings.LastIndexByte(o.Host, ']') {
		return o, nil // without a port; the colon is in an IPv6 address
	}
	host, port := o.Host[:colon], o.Host[colon+1:]
	for len(port) > 1 && port[0] == '0' {
		port = port[1:]
	}
	switch {
	case port == "", port == "80" && o.Scheme == "http", port == "443" && o.Scheme == "https":
		o.Host = host
	case len(host)+len(":")+len(port) < len(o.Host):
		o.Host = host + ":" + port
	}
	return o, nil
}
