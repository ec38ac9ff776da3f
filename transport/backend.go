package transport

import (
	"errors"
	"net/url"
	"strings"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
)

// ParseBackends makes backends for a balance.Balancer of URLs such as
// "http://10.0.0.1:8080" or "https://eu.example.com/api". The ID of each is its
// host and path, and guard, if it is not nil, is called with that for the
// backend's guard: a circuit breaker.
//
// A URL needs a host, and a scheme of http or https; a user, query or fragment
// is refused. The error, errors.Is(err, core.ErrConfig), lists all problems by
// index, so that a password that a URL should not hold is not printed, and the
// errors of guard.
func ParseBackends(urls []string, guard func(id string) (core.Guard, error)) ([]balance.Backend[*url.URL], error) {
	bad := core.Check("transport.ParseBackends")
	list := make([]balance.Backend[*url.URL], 0, len(urls))
	for i, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil {
			bad.If(true, "urls", i, "the URL at this index must parse")
			continue
		}
		if problem := checkBackend(u); problem != "" {
			bad.If(true, "urls", i, "the URL at this index "+problem)
			continue
		}
		b := balance.Backend[*url.URL]{ID: u.Host + strings.TrimSuffix(u.EscapedPath(), "/"), Value: u}
		list = append(list, b)
	}
	if err := bad.Err(); err != nil {
		return nil, err
	}
	if guard == nil {
		return list, nil
	}
	var errs []error
	for i := range list {
		var err error
		list[i].Guard, err = guard(list[i].ID)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return list, nil
}

// checkBackend is what is wrong with a backend's URL, or "".
func checkBackend(u *url.URL) string {
	switch {
	case u == nil:
		return "must not be nil"
	case u.Scheme != "http" && u.Scheme != "https":
		return "must have the scheme http or https"
	case u.Hostname() == "":
		return "must have a host"
	case u.User != nil:
		return "must not hold a user: set the Authorization header"
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "must not have a query or a fragment"
	}
	return ""
}
