package transport

import (
	"errors"
	"net/http"
	"strings"
)

// Origin is where a request goes (RFC 9110, section 4.3.1): a key for
// RateLimitBy.
type Origin struct {
	Scheme string // in lower case
	Host   string // in lower case, with the port unless it is the scheme's own
}

// String is the origin as in a URL: "https://api.example.com".
func (o Origin) String() string { return o.Scheme + "://" + o.Host }

var errNoHost = errors.New("the request's URL has no host")

// OriginOf is the origin of the request's URL, a key for RateLimitBy. It is the
// same for https://API.example.com:443 and https://api.example.com; names that
// only the DNS knows to be the same differ. The error is for a URL without a
// host. It does not allocate where the host is in lower case.
func OriginOf(req *http.Request) (Origin, error) {
	if req.URL == nil || req.URL.Host == "" {
		return Origin{}, errNoHost
	}
	o := Origin{Scheme: strings.ToLower(req.URL.Scheme), Host: strings.ToLower(req.URL.Host)}
	switch o.Scheme {
	case "http":
		o.Host = strings.TrimSuffix(o.Host, ":80")
	case "https":
		o.Host = strings.TrimSuffix(o.Host, ":443")
	}
	o.Host = strings.TrimSuffix(o.Host, ":")
	return o, nil
}
