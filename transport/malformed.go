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
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		return !letter && !(c < 0x80 && strings.ContainsRune("!#$%&'*+-.^_`|~", c))
	})
}
