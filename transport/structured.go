package transport

import (
	"encoding/base64"
	"strings"
	"unicode/utf8"
)

// structured reads a structured field (RFC 9651, section 4.2), as strictly as
// its parsing algorithms: what they do not accept makes ok false, and then the
// whole field is to be ignored. It reads values of every type, so that
// parameters that mean nothing here do no harm, but keeps Integers only.
//
// It works through the field once, from left to right, and allocates nothing
// unless there is a Byte Sequence or a Display String.
type structured struct {
	rest string // what is still to be read
	bad  bool
}

// bare is a value without its parameters.
type bare struct {
	kind   bareKind
	number int64 // of an Integer
}

type bareKind uint8

const (
	bareInteger bareKind = iota + 1
	bareDecimal
	bareString
	bareToken
	bareBytes
	bareBoolean
	bareDate
	bareDisplay
	bareList // not bare: an Inner List, whose members are checked and dropped
)

// eachItem reads a List (section 4.2.1). It calls item for each member, after
// param for each of its parameters, those of the members of an Inner List left
// out. A parameter that comes twice is told twice: the last counts.
func (s *structured) eachItem(param func(key string, v bare), item func(bare)) (ok bool) {
	s.members(func() {
		v := s.member(param)
		if !s.bad {
			item(v)
		}
	})
	return !s.bad
}

// eachEntry reads a Dictionary (section 4.2.2) and calls entry for each of its
// members. A key that comes twice is told twice: the last counts.
func (s *structured) eachEntry(entry func(key string, v bare)) (ok bool) {
	s.members(func() {
		key := s.key()
		v := bare{kind: bareBoolean}
		if s.skip('=') {
			v = s.member(nil)
		} else {
			s.params(nil)
		}
		if !s.bad {
			entry(key, v)
		}
	})
	return !s.bad
}

// members reads what commas separate, and nothing after it.
func (s *structured) members(member func()) {
	s.rest = strings.Trim(s.rest, " ")
	for s.rest != "" && !s.bad {
		member()
		s.rest = strings.TrimLeft(s.rest, " \t")
		if s.rest == "" || !s.expect(',') {
			return
		}
		if s.rest = strings.TrimLeft(s.rest, " \t"); s.rest == "" {
			s.bad = true // a comma at the end
		}
	}
}

// member reads an Item or an Inner List, with its parameters.
func (s *structured) member(param func(string, bare)) bare {
	v := bare{kind: bareList}
	if s.skip('(') {
		s.innerList()
	} else {
		v = s.bare()
	}
	s.params(param)
	return v
}

// innerList reads what is behind the opening parenthesis (section 4.2.1.2).
func (s *structured) innerList() {
	for !s.bad {
		s.rest = strings.TrimLeft(s.rest, " ")
		if s.skip(')') {
			return
		}
		s.bare()
		s.params(nil)
		if s.rest == "" || s.rest[0] != ' ' && s.rest[0] != ')' {
			s.bad = true
		}
	}
}

// params reads parameters (section 4.2.3.2).
func (s *structured) params(param func(string, bare)) {
	for !s.bad && s.skip(';') {
		s.rest = strings.TrimLeft(s.rest, " ")
		key, v := s.key(), bare{kind: bareBoolean}
		if s.skip('=') {
			v = s.bare()
		}
		if param != nil && !s.bad {
			param(key, v)
		}
	}
}

// key reads a key (section 4.2.3.3).
func (s *structured) key() string {
	if s.rest == "" || s.rest[0] != '*' && !isLower(s.rest[0]) {
		s.bad = true
		return ""
	}
	return s.run(func(c byte) bool { return isLower(c) || isDigit(c) || strings.IndexByte("_-.*", c) >= 0 })
}

// bare reads a value (section 4.2.3.1).
func (s *structured) bare() bare {
	if s.rest == "" {
		s.bad = true
		return bare{}
	}
	switch c := s.rest[0]; {
	case c == '-' || isDigit(c):
		return s.number()
	case c == '*' || isLower(c|0x20):
		s.run(func(c byte) bool { return isTokenByte(c) || c == ':' || c == '/' })
		return bare{kind: bareToken}
	}
	c := s.rest[0]
	s.rest = s.rest[1:]
	switch c {
	case '"':
		s.text()
		return bare{kind: bareString}
	case ':':
		s.bytes()
		return bare{kind: bareBytes}
	case '?':
		if !s.skip('0') {
			s.expect('1')
		}
		return bare{kind: bareBoolean}
	case '@':
		if s.number().kind != bareInteger {
			s.bad = true
		}
		return bare{kind: bareDate}
	case '%':
		s.display()
		return bare{kind: bareDisplay}
	}
	s.bad = true
	return bare{}
}

// number reads an Integer of at most 15 digits, or a Decimal of at most 12 and 3
// (section 4.2.4).
func (s *structured) number() bare {
	minus := s.skip('-')
	whole := s.run(isDigit)
	if whole == "" || len(whole) > 15 {
		s.bad = true
		return bare{}
	}
	if s.skip('.') {
		if part := s.run(isDigit); len(whole) > 12 || part == "" || len(part) > 3 {
			s.bad = true
		}
		return bare{kind: bareDecimal}
	}
	v := bare{kind: bareInteger}
	for i := range len(whole) {
		v.number = 10*v.number + int64(whole[i]-'0')
	}
	if minus {
		v.number = -v.number
	}
	return v
}

// text reads a String behind its opening quote (section 4.2.5).
func (s *structured) text() {
	for i := 0; i < len(s.rest); i++ {
		switch c := s.rest[i]; {
		case c == '"':
			s.rest = s.rest[i+1:]
			return
		case c == '\\':
			i++
			if i == len(s.rest) || s.rest[i] != '"' && s.rest[i] != '\\' {
				s.bad = true
				return
			}
		case c < ' ' || c > '~':
			s.bad = true
			return
		}
	}
	s.bad = true // no closing quote
}

// bytes reads a Byte Sequence behind its opening colon (section 4.2.7). Padding
// may be missing, and what it pads need not be 0.
func (s *structured) bytes() {
	content, rest, closed := strings.Cut(s.rest, ":")
	s.rest = rest
	content = strings.TrimRight(content, "=") // the decoder refuses any other
	_, err := base64.RawStdEncoding.DecodeString(content)
	s.bad = s.bad || !closed || err != nil || strings.ContainsAny(content, "\r\n")
}

// display reads a Display String behind its percent sign (section 4.2.10).
func (s *structured) display() {
	s.expect('"')
	var decoded []byte
	for !s.bad && s.rest != "" {
		c := s.rest[0]
		s.rest = s.rest[1:]
		switch {
		case c == '"':
			s.bad = !utf8.Valid(decoded)
			return
		case c == '%':
			decoded = append(decoded, s.hex()<<4|s.hex())
		case c < ' ' || c > '~':
			s.bad = true
		default:
			decoded = append(decoded, c)
		}
	}
	s.bad = true
}

// hex reads one lowercase hexadecimal digit.
func (s *structured) hex() byte {
	if s.rest == "" {
		s.bad = true
		return 0
	}
	digit := strings.IndexByte("0123456789abcdef", s.rest[0])
	s.rest = s.rest[1:]
	if digit < 0 {
		s.bad = true
		return 0
	}
	return byte(digit)
}

// run reads the bytes that are all of one sort.
func (s *structured) run(of func(byte) bool) string {
	i := 0
	for i < len(s.rest) && of(s.rest[i]) {
		i++
	}
	read := s.rest[:i]
	s.rest = s.rest[i:]
	return read
}

// skip reads c, if it comes next.
func (s *structured) skip(c byte) bool {
	if s.rest == "" || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

// expect reads c, which must come next.
func (s *structured) expect(c byte) bool {
	s.bad = s.bad || !s.skip(c)
	return !s.bad
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isLower(c byte) bool { return 'a' <= c && c <= 'z' }
