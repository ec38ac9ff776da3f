package transport

import (
	"net/http"
	"strings"
)

// malformed reports whether no server could have been sent req, so that its
// error says nothing of one: net/http refuses such a request by an error that
// has no type. It is asked of requests that failed only. The rules are those of
// RFC 9110, sections 5.1, 5.5 and 9.1.
func malformed(req *http.Request) bool {
	return req.URL == nil || req.URL.Host == "" || req.Header == nil ||
		req.Method != "" && !isToken(req.Method) ||
		malformedFields(req.Header) || malformedFields(req.Trailer)
}

// unsupported reports whether err says that net/http knows no protocol for the
// scheme of req. Which ones a base knows beside these two, only it can say.
func unsupported(req *http.Request, err error) bool {
	return req.URL.Scheme != "http" && req.URL.Scheme != "https" &&
		strings.Contains(err.Error(), "unsupported protocol scheme")
}

func malformedFields(h http.Header) bool {
	for name, values := range h {
		if !isToken(name) {
			return true
		}
		for _, v := range values {
			if strings.ContainsFunc(v, isControl) {
				return true
			}
		}
	}
	return false
}

// isControl reports whether c must not be in the value of a field.
func isControl(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }

func isToken(s string) bool {
	for i := range len(s) {
		if !isTokenByte(s[i]) {
			return false
		}
	}
	return s != ""
}

func isTokenByte(c byte) bool {
	return isDigit(c) || isLower(c|0x20) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
