package sqlpool

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTokenText(t *testing.T) {
	for text, want := range map[string]Token{
		"":                                   {},
		"0-1-0":                              {0, 1, 0},
		"A-1-16B3748":                        {0xA, 1, 0x16B3748},
		"FFFFFFFF-FFFFFFFF-FFFFFFFFFFFFFFFF": {0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF},
	} {
		got, err := ParseToken(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got)
		require.Equal(t, text, got.String())
	}
	for _, text := range []string{
		"-", "--", "1", "1-", "-1", "1-1", "1-1-", "-1-1", "1--1", "1-0-1", "1-1-1-1", "1-1-g", "1-1-16b3748", "a-1-1",
		"01-1-1", "1-01-1", "1-1-01", "+1-1-1", "1-+1-1", "1-1-+1", " 1-1-1", "1-1-1 ", "1_0-1-1", "0x1-1-1",
		"100000000-1-1", "1-100000000-1", "1-1-10000000000000000", "1-1-0/16B3748",
	} {
		_, err := ParseToken(text)
		require.ErrorIs(t, err, ErrToken, text)
	}
}

func TestTokenInJSON(t *testing.T) {
	type session struct{ Seen Token }
	b, err := json.Marshal(session{Token{3, 2, 0xAB}})
	require.NoError(t, err)
	require.JSONEq(t, `{"Seen":"3-2-AB"}`, string(b))
	var back session
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, Token{3, 2, 0xAB}, back.Seen)
	require.ErrorIs(t, json.Unmarshal([]byte(`{"Seen":"3-2-xy"}`), &back), ErrToken)
	require.Equal(t, Token{3, 2, 0xAB}, back.Seen, "an error changes nothing")
}

func TestAfterTheZeroTokenIsAny(t *testing.T) {
	require.Equal(t, Any(), After(Token{}))
}

// A token comes back from a client: whatever is read is written the same way, and
// nothing makes it panic.
func FuzzParseToken(f *testing.F) {
	for _, text := range []string{"", "0-1-0", "A-1-16B3748", "FFFFFFFF-FFFFFFFF-FFFFFFFFFFFFFFFF", "1-0-1", "1-1-01", "1-1-g", "-", "--", "1-1-+1", "1-1-0/1", "1-1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			require.True(t, token.IsZero())
			return
		}
		require.Equal(t, text, token.String())
	})
}

// A position comes from a server.
func FuzzParseLSN(f *testing.F) {
	for _, text := range []string{"0/0", "0/16B3748", "FFFFFFFF/FFFFFFFF", "1", "/", "0/-1", "100000000/0"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := parseLSN(text)
		if err != nil {
			return
		}
		again, err := parseLSN(l.String())
		require.NoError(t, err)
		require.Equal(t, l, again)
	})
}
