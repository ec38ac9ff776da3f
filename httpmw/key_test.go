package httpmw

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core"
)

func fixed(s string) func(*http.Request) (string, error) {
	return func(*http.Request) (string, error) { return s, nil }
}

func TestKeyHeader(t *testing.T) {
	key := must(KeyHeader("x-api-KEY"))
	longest := strings.Repeat("k", MaxKeyLen)
	for _, row := range []struct {
		values []string
		want   string
		err    error
	}{
		{[]string{"k1"}, "k1", nil},
		{[]string{longest}, longest, nil},
		{nil, "", errEmptyKey},
		{[]string{""}, "", errEmptyKey},
		{[]string{"k1", "k2"}, "", errManyKeys},
		{[]string{"k1", ""}, "", errManyKeys},
		{[]string{longest + "k"}, "", errLongKey},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		for _, v := range row.values {
			r.Header.Add("X-Api-Key", v)
		}
		got, err := key(r)
		require.Equal(t, row.want, got)
		require.Equal(t, row.err, err)
	}
	for _, name := range []string{"", "a b", "a:b", "ü", "Host", "x-forwarded-for", "Forwarded"} {
		key, err := KeyHeader(name)
		require.Nil(t, key)
		require.ErrorIs(t, err, core.ErrConfig, name)
	}
}

func TestKeyMethodIsOfAFewConstants(t *testing.T) {
	for method, want := range map[string]string{"GET": "GET", "PATCH": "PATCH", "": "GET", "get": "_OTHER", "FOO1": "_OTHER", "FOO2": "_OTHER"} {
		got, err := KeyMethod(&http.Request{Method: method})
		require.NoError(t, err)
		require.Equal(t, want, got, method)
	}
}

func TestKeyPattern(t *testing.T) {
	mux := http.NewServeMux()
	var inside, outside error
	var key string
	mux.HandleFunc("GET /items/{id}", func(_ http.ResponseWriter, r *http.Request) { key, inside = KeyPattern(r) })
	r := httptest.NewRequest("GET", "/items/7", nil)
	_, outside = KeyPattern(r)
	mux.ServeHTTP(httptest.NewRecorder(), r)
	require.NoError(t, inside)
	require.Equal(t, "GET /items/{id}", key)
	status, ok := errors.AsType[StatusError](outside)
	require.True(t, ok)
	require.EqualValues(t, 500, status)
}

// Distinct lists of parts have distinct keys, of whatever lengths they are.
func TestJoinIsInjective(t *testing.T) {
	join := func(parts []string) JoinedKey {
		var keys []func(*http.Request) (string, error)
		for _, p := range parts {
			keys = append(keys, fixed(p))
		}
		return must(Join(keys...)(nil))
	}
	// Few letters, and those that a join is made of, so that collisions would be found.
	lists := rapid.SliceOfN(rapid.StringOfN(rapid.RuneFrom([]rune("01:2a,")), 1, 12, -1), 1, 4)
	rapid.Check(t, func(rt *rapid.T) {
		a, b := lists.Draw(rt, "a"), lists.Draw(rt, "b")
		if rapid.Bool().Draw(rt, "resplit") { // as many letters, split elsewhere
			b = nil
			for rest := strings.Join(a, ""); rest != ""; {
				n := rapid.IntRange(1, len(rest)).Draw(rt, "n")
				b, rest = append(b, rest[:n]), rest[n:]
			}
		}
		require.Equal(t, slices.Equal(a, b), join(a) == join(b), "%q %q", a, b)
	})
	require.Equal(t, JoinedKey("3:abc4:defg"), join([]string{"abc", "defg"}))
	require.NotEqual(t, join([]string{"a:b", "c"}), join([]string{"a", "b:c"}))
	require.NotEqual(t, join([]string{"1:a"}), join([]string{"1", "a"}))
}

func TestJoinFails(t *testing.T) {
	broken := errors.New("broken")
	fails := func(*http.Request) (string, error) { return "x", broken }
	long := strings.Repeat("x", MaxKeyLen)
	for name, row := range map[string]struct {
		key  func(*http.Request) (JoinedKey, error)
		want error
	}{
		"of nothing": {Join(), errEmptyKey},
		"empty":      {Join(fixed("a"), fixed("")), errEmptyKey},
		"error":      {Join(fixed("a"), fails), broken},
		"too long":   {Join(fixed("a"), fixed(long+"x")), errLongKey},
		"nil":        {Join(fixed("a"), nil), errNilKey},
		"nil text":   {Join(KeyText[netip.Addr](nil)), errNilKey},
		"zero text":  {Join(KeyText(func(*http.Request) (netip.Addr, error) { return netip.Addr{}, nil })), errEmptyKey},
		"text error": {Join(KeyText(PeerIP)), errNoPeer},
	} {
		got, err := row.key(&http.Request{})
		require.ErrorIs(t, err, row.want, name)
		require.Empty(t, got, name)
	}
	got, err := Join(KeyText(PeerIP), fixed(long), fixed(long))(from("192.0.2.60:80"))
	require.NoError(t, err)
	require.Equal(t, JoinedKey("10:192.0.2.60256:"+long+"256:"+long), got)
}

func TestBoth(t *testing.T) {
	r := from("192.0.2.60:80")
	got, err := Both(PeerIP, KeyMethod)(r)
	require.NoError(t, err)
	require.Equal(t, Pair[netip.Addr, string]{netip.MustParseAddr("192.0.2.60"), "GET"}, got)

	broken := errors.New("broken")
	fails := func(*http.Request) (string, error) { return "x", broken }
	for name, row := range map[string]struct {
		key  func(*http.Request) (Pair[string, string], error)
		want error
	}{
		"first error":  {Both(fails, fixed("b")), broken},
		"second error": {Both(fixed("a"), fails), broken},
		"first empty":  {Both(fixed(""), fixed("b")), errEmptyKey},
		"second empty": {Both(fixed("a"), fixed("")), errEmptyKey},
		"first nil":    {Both[string, string](nil, fixed("b")), errNilKey},
		"second nil":   {Both[string, string](fixed("a"), nil), errNilKey},
	} {
		got, err := row.key(r)
		require.ErrorIs(t, err, row.want, name)
		require.Zero(t, got, name)
	}
	if !raceEnabled {
		key := Both(PeerIP, KeyMethod)
		require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = key(r) }))
		joined := Join(KeyMethod, fixed("b"))
		require.Equal(t, 1.0, testing.AllocsPerRun(100, func() { _, _ = joined(r) }))
	}
}
