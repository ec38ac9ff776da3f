package sqlpool

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Token says how far a primary had written its log: what was committed before
// the token was taken is part of it. Cluster.Token takes one, and After reads
// no less than that. The zero Token is of nothing: any node has reached it.
//
// A token is of one database system: a primary and what was copied from it. What
// pg_upgrade or initdb makes is another, and a token from before is refused with
// ErrForeignToken.
//
// Its text, of String and ParseToken, is a line of letters, digits and hyphens
// that fits into a cookie or a header, to be read by another process. It is no
// secret, and it is not signed. Who makes one up makes his reads wait for
// ClusterConfig.CatchUpWait, in which all nodes are probed often. If the primary
// has got as far they go there, as far as ClusterConfig.Fallback allows, which is
// everybody's; else they are refused, after the next probe of all nodes, or twice
// ProbeInterval if one cannot be asked. Where that matters, sign the cookie.
type Token struct {
	family   uint32 // of the identity of its server
	timeline uint32
	lsn      lsn
}

// ErrForeignToken is found by errors.Is in the refusal of a Read with a Token of
// another database system. Nothing will ever satisfy it: forget it.
var ErrForeignToken = errors.New("sqlpool: the token is of another database system")

// ErrToken is found by errors.Is in the error of ParseToken.
var ErrToken = errors.New("sqlpool: not a token")

// ParseToken reads what String wrote, and nothing else. The empty text is the
// zero Token, as of a cookie that is not there. Its error does not contain the
// text, which somebody sent.
func ParseToken(text string) (Token, error) {
	if text == "" {
		return Token{}, nil
	}
	of, rest, okOf := strings.Cut(text, "-")
	line, at, ok := strings.Cut(rest, "-")
	family, errOf := strconv.ParseUint(of, 16, 32)
	timeline, errLine := strconv.ParseUint(line, 16, 32)
	position, errAt := strconv.ParseUint(at, 16, 64)
	t := Token{uint32(family), uint32(timeline), lsn(position)}
	// One text for each token: what strconv also takes is not ours.
	if !okOf || !ok || errOf != nil || errLine != nil || errAt != nil || t.timeline == 0 || t.String() != text {
		return Token{}, ErrToken
	}
	return t, nil
}

// IsZero reports whether t is of nothing.
func (t Token) IsZero() bool { return t == Token{} }

// String is the token's text: a hash of the system identifier, the timeline and the
// position in the log, in hexadecimal, "5C0FFEE5-1-16B3748". That of the zero Token is empty.
func (t Token) String() string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%X-%X-%X", t.family, t.timeline, uint64(t.lsn))
}

// MarshalText is String.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText is ParseToken.
func (t *Token) UnmarshalText(text []byte) error {
	parsed, err := ParseToken(string(text))
	if err == nil {
		*t = parsed
	}
	return err
}

// within reports whether a server that is on timeline, or a later one, and has
// got as far as at has what t stands for. A server on an earlier timeline may
// have got further in a history that forked off before t.
func (t Token) within(timeline uint32, at lsn) bool {
	return timeline >= t.timeline && at >= t.lsn
}

// lsn is a position in the write-ahead log.
type lsn uint64

// parseLSN reads the text of a pg_lsn: "0/16B3748".
func parseLSN(text string) (lsn, error) {
	hi, lo, ok := strings.Cut(text, "/")
	high, errHigh := strconv.ParseUint(hi, 16, 32)
	low, errLow := strconv.ParseUint(lo, 16, 32)
	if !ok || errHigh != nil || errLow != nil {
		return 0, errors.New("sqlpool: not a position in the log")
	}
	return lsn(high<<32 | low), nil
}

func (l lsn) String() string {
	return fmt.Sprintf("%X/%X", uint64(l)>>32, uint64(l)&math.MaxUint32)
}
