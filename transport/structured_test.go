package transport

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// list is what eachItem tells of a field: "kind number" of each member, its
// parameters before it.
func list(field string) (told []string, ok bool) {
	s := structured{rest: field}
	ok = s.eachItem(
		func(key string, v bare) { told = append(told, fmt.Sprintf(";%s=%d/%d", key, v.kind, v.number)) },
		func(v bare) { told = append(told, fmt.Sprintf("%d/%d", v.kind, v.number)) },
	)
	return told, ok
}

func TestStructuredValues(t *testing.T) {
	for field, kind := range map[string]bareKind{
		"1": bareInteger, "-1": bareInteger, "0": bareInteger, "-0": bareInteger, "007": bareInteger,
		"999999999999999": bareInteger, "-999999999999999": bareInteger,
		"1.5": bareDecimal, "-1.123": bareDecimal, "123456789012.123": bareDecimal,
		`""`: bareString, `"a b"`: bareString, `"\"\\"`: bareString, `" ~"`: bareString,
		"a": bareToken, "A": bareToken, "*": bareToken, "a:b/c!#$%&'*+-.^_`|~9Z": bareToken,
		"::": bareBytes, ":aGk=:": bareBytes, ":aGk:": bareBytes, ":aGl=:": bareBytes, ":+/+/:": bareBytes,
		"?0": bareBoolean, "?1": bareBoolean,
		"@0": bareDate, "@-62135596800": bareDate,
		`%""`: bareDisplay, `%"f%c3%bc"`: bareDisplay,
		"()": bareList, "( )": bareList, `(1 "a"  b)`: bareList, "( a;b=1;c   d )": bareList,
	} {
		told, ok := list(field)
		require.True(t, ok, field)
		require.Len(t, told, 1, field)
		require.Equal(t, fmt.Sprint(kind), strings.Split(told[0], "/")[0], field)
	}
	for _, field := range []string{
		"-", "--1", "-a", "+1", "1.", ".5", "1.1234", "1234567890123.1", "1.5.5", "1-2",
		"1000000000000000", "-1000000000000000", "1e3", "0x1",
		`"`, `"a`, `"a\`, `"\a"`, "\"\t\"", "\"\x7f\"", `"ü"`, `"a"b`, `'a'`,
		"=", "!a", "ü", "aü", "a b", "{a}", "[a]", "@", "`a",
		":", ":a", ":aGk", ":a:", ":a*a=:", ":=:a", ":YQ==YQ==:", ":a-_b:", ": YQ==:", ":Y\nQ=:", ":ü:",
		"?", "?2", "?true", "??1", "?01",
		"@a", "@1.5", "@-",
		"%", `%"`, `%a"`, `%"%"`, `%"%c"`, `%"%C3%BC"`, `%"%c3"`, `%"%ff"`, `%"ü"`, "%\"\t\"", `%"%c3%bc`,
		"(", "(1", "(1 ", "(1,2)", "(1)(2)", "(1(2))", ")", "(1\t2)", `("a""b")`, "(1;)",
	} {
		told, ok := list(field)
		require.False(t, ok, "%q: %v", field, told)
	}
}

func TestStructuredLists(t *testing.T) {
	for field, want := range map[string][]string{
		"":                  nil,
		"  ":                nil,
		"1,2":               {"1/1", "1/2"},
		"  1 ,\t2  ":        {"1/1", "1/2"},
		"1 \t,\t \t2":       {"1/1", "1/2"},
		"1\t":               {"1/1"}, // white space after a member may be anything
		"1;a=2":             {";a=1/2", "1/1"},
		"1;  a=2;b":         {";a=1/2", ";b=6/0", "1/1"},
		"1;a=1;a=2":         {";a=1/1", ";a=1/2", "1/1"},
		"1;a, 2;b=-3":       {";a=6/0", "1/1", ";b=1/-3", "1/2"},
		"1;*a_-.*9=7":       {";*a_-.*9=1/7", "1/1"},
		`1;a="x,y;z=1",2`:   {";a=3/0", "1/1", "1/2"},
		"(1;x=5 2);a=3, 4":  {";a=1/3", "9/0", "1/4"},
		"1;a=:YQ==:;b=@5,2": {";a=5/0", ";b=7/0", "1/1", "1/2"},
	} {
		told, ok := list(field)
		require.True(t, ok, field)
		require.Equal(t, want, told, field)
	}
	for _, field := range []string{
		",", ",1", "1,", "1, ", "1,\t", "1,,2", "1, ,2", "1;", "1;;a", "1; ", "1;A=1", "1;1=1", "1;a=", "1;a= 1",
		"1;a =1", "1 ;a=1", "1;\ta", "1;a=(1)", "\t1", "1\v", "1\r\n", "1\x00", "1 2", "a=1", "1;ü=1",
	} {
		_, ok := list(field)
		require.False(t, ok, "%q", field)
	}
}

func TestStructuredDictionaries(t *testing.T) {
	read := func(field string) (told []string, ok bool) {
		s := structured{rest: field}
		ok = s.eachEntry(func(key string, v bare) { told = append(told, fmt.Sprintf("%s=%d/%d", key, v.kind, v.number)) })
		return told, ok
	}
	for field, want := range map[string][]string{
		"":                   nil,
		"a=1, b=2":           {"a=1/1", "b=1/2"},
		"a=1\t,\tb;x=1;y":    {"a=1/1", "b=6/0"},
		"a=1;x=2,a=3":        {"a=1/1", "a=1/3"},
		"a=(1 2);x, *b=?0":   {"a=9/0", "*b=6/0"},
		`a="x, y", b=:YQ==:`: {"a=3/0", "b=5/0"},
	} {
		told, ok := read(field)
		require.True(t, ok, field)
		require.Equal(t, want, told, field)
	}
	for _, field := range []string{
		",", "a,", "a=", "a= 1", "a =1", "a=1 b=2", "A=1", "1=1", `"a"=1`, "a=1,,b", "a;", "a=1=2",
	} {
		_, ok := read(field)
		require.False(t, ok, "%q", field)
	}
}

// What is told before a mistake further on is of no use, but a field must not
// make the reader go round and round.
func FuzzStructured(f *testing.F) {
	for _, seed := range []string{
		`"default";r=50;t=30`, `a=(1 "b";c);d=?1, e=%"%c3%bc", f=@1;g=:YQ==:`, `(((`, `%"%`, `"\`, `;;;`, "1 ,\t",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, field string) {
		if len(field) > 1000 {
			return
		}
		items := 0
		s := structured{rest: field}
		ok := s.eachItem(nil, func(bare) { items++ })
		require.LessOrEqual(t, items, len(field))
		if ok {
			require.Empty(t, s.rest)
			// One more member, and the same with more white space, is a List too.
			for _, more := range []string{"x, " + field, "  " + field + "  "} {
				if items == 0 && more[0] == 'x' {
					continue
				}
				s = structured{rest: more}
				require.True(t, s.eachItem(nil, func(bare) {}), "%q", more)
			}
			// A List is ASCII, without control characters but tabs.
			require.NotContains(t, field, "\n")
			require.Equal(t, strings.ToValidUTF8(field, ""), field)
			for _, c := range field {
				require.True(t, c == '\t' || ' ' <= c && c <= '~', "%q", field)
			}
		}
		s = structured{rest: field}
		if s.eachEntry(func(key string, _ bare) { require.NotEmpty(t, key) }) {
			require.Empty(t, s.rest)
		}
	})
}
