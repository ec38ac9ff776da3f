package httpmw

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// sfItem is an item of a list of RFC 9651 whose value is a String.
type sfItem struct {
	value  string
	params []sfParam
}

type sfParam struct {
	key   string
	value any // int64, string or []byte
}

func (i sfItem) get(key string) any {
	for _, p := range i.params {
		if p.key == key {
			return p.value
		}
	}
	return nil
}

// items parses a field as the drafts have it.
func items(t *testing.T, h http.Header, name string) []sfItem {
	t.Helper()
	list, err := parseSFList(strings.Join(h.Values(name), ", "))
	require.NoError(t, err, "%s: %q", name, h.Values(name))
	return list
}

// parseSFList parses a list of Strings with parameters, strictly by RFC 9651,
// section 4.2, but for the types that the drafts have no use for.
func parseSFList(s string) (list []sfItem, err error) {
	p := sfParser{s}
	p.skip(" ")
	for p.s != "" {
		item := sfItem{}
		if item.value, err = p.str(); err != nil {
			return nil, err
		}
		for p.eat(';') {
			p.skip(" ")
			param := sfParam{key: p.key(), value: true}
			if param.key == "" {
				return nil, errors.New("no key: " + p.s)
			}
			if p.eat('=') {
				if param.value, err = p.bare(); err != nil {
					return nil, err
				}
			}
			item.params = append(item.params, param)
		}
		list = append(list, item)
		p.skip(" \t")
		if p.s == "" {
			return list, nil
		}
		if !p.eat(',') {
			return nil, errors.New("no comma: " + p.s)
		}
		if p.skip(" \t"); p.s == "" {
			return nil, errors.New("a comma at the end")
		}
	}
	return list, nil
}

type sfParser struct{ s string }

func (p *sfParser) skip(set string) { p.s = strings.TrimLeft(p.s, set) }

func (p *sfParser) eat(b byte) bool {
	if p.s == "" || p.s[0] != b {
		return false
	}
	p.s = p.s[1:]
	return true
}

func (p *sfParser) key() string {
	n := 0
	for n < len(p.s) && (p.s[n] >= 'a' && p.s[n] <= 'z' || p.s[n] == '*' || n > 0 && strings.IndexByte("0123456789_-.", p.s[n]) >= 0) {
		n++
	}
	k := p.s[:n]
	p.s = p.s[n:]
	return k
}

func (p *sfParser) str() (string, error) {
	if !p.eat('"') {
		return "", errors.New("no string: " + p.s)
	}
	var b strings.Builder
	for p.s != "" {
		c := p.s[0]
		p.s = p.s[1:]
		switch {
		case c == '"':
			return b.String(), nil
		case c == '\\':
			if p.s == "" || p.s[0] != '"' && p.s[0] != '\\' {
				return "", errors.New("a bad escape")
			}
			b.WriteByte(p.s[0])
			p.s = p.s[1:]
		case c < ' ' || c > '~':
			return "", fmt.Errorf("a byte %#x", c)
		default:
			b.WriteByte(c)
		}
	}
	return "", errors.New("an open string")
}

func (p *sfParser) bare() (any, error) {
	switch {
	case strings.HasPrefix(p.s, `"`):
		return p.str()
	case p.eat(':'):
		text, rest, ok := strings.Cut(p.s, ":")
		if !ok {
			return nil, errors.New("an open byte sequence")
		}
		p.s = rest
		return base64.StdEncoding.DecodeString(text)
	default:
		n := 0
		for n < len(p.s) && p.s[n] >= '0' && p.s[n] <= '9' || n == 0 && strings.HasPrefix(p.s, "-") {
			n++
		}
		text := p.s[:n]
		p.s = p.s[n:]
		if len(strings.TrimPrefix(text, "-")) > 15 || strings.HasPrefix(p.s, ".") {
			return nil, errors.New("no Integer: " + text)
		}
		return strconv.ParseInt(text, 10, 64)
	}
}

func TestSFParserIsStrict(t *testing.T) {
	got, err := parseSFList(`"a\"\\";q=1;pk=:aGk=:;qu="x y";t=-3,` + "\t" + `"b"`)
	require.NoError(t, err)
	require.Equal(t, []sfItem{
		{`a"\`, []sfParam{{"q", int64(1)}, {"pk", []byte("hi")}, {"qu", "x y"}, {"t", int64(-3)}}}, {"b", nil},
	}, got)
	for _, bad := range []string{
		`a;q=1`, `"a`, `"a";`, `"a";Q=1`, `"a";q=1.5`, `"a";q=1000000000000000`, `"a";q=`, `"a" "b"`, `"a",`, `"ä"`,
		`"a";pk=:aGk`, `"a";pk=:a:`, `"a\n"`,
	} {
		_, err := parseSFList(bad)
		require.Error(t, err, bad)
	}
}
