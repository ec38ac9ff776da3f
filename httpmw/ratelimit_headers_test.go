package httpmw

import (
	"encoding/base64"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/surgewall/surgewall/core/limit"
)

func bytesOf(t *testing.T, text string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text)
	require.NoError(t, err)
	return b
}

// The examples of draft-ietf-httpapi-ratelimit-headers-10 and -11, but for those
// with tokens for names, which both drafts call malformed, and for parameters
// that they do not define. Lists are with a space after the comma, as RFC 9651
// writes them.
func TestDraftExamples(t *testing.T) {
	policy := func(name string, q, w int64) standing { return standing{policy: name, quota: q, window: w} }
	left := func(name string, r, t int64) standing { return standing{policy: name, remaining: r, spread: t} }
	for _, row := range []struct {
		field string
		want  string
		items []standing
	}{
		{headerPolicy, `"burst";q=100;w=60, "daily";q=1000;w=86400`, []standing{policy("burst", 100, 60), policy("daily", 1000, 86400)}},
		{headerPolicy, `"default";q=100;w=10`, []standing{policy("default", 100, 10)}},
		{headerPolicy, `"permin";q=50;w=60, "perhr";q=1000;w=3600`, []standing{policy("permin", 50, 60), policy("perhr", 1000, 3600)}},
		{headerPolicy, `"somepolicy";q=10000;w=1000`, []standing{policy("somepolicy", 10000, 1000)}},
		{headerPolicy, `"basic";q=100;w=60`, []standing{policy("basic", 100, 60)}},
		{headerPolicy, `"fixedwindow";q=100;w=60`, []standing{policy("fixedwindow", 100, 60)}},
		{headerPolicy, `"dynamic";q=100;w=60`, []standing{policy("dynamic", 100, 60)}},
		{headerPolicy, `"dynamic";q=15;w=20`, []standing{policy("dynamic", 15, 20)}},
		{headerPolicy, `"hour";q=1000;w=3600, "day";q=5000;w=86400`, []standing{policy("hour", 1000, 3600), policy("day", 5000, 86400)}},
		{headerPolicy, `"sliding";q=12;w=1`, []standing{policy("sliding", 12, 1)}},

		{headerLimit, `"default";r=50;t=30`, []standing{left("default", 50, 30)}},
		{headerLimit, `"default";r=999;pk=:dHJpYWwxMjEzMjM=:`, []standing{{policy: "default", remaining: 999, spread: -1, partition: []byte("trial121323")}}},
		{headerLimit, `"default";r=300000000;t=60;pk=:QXBwLTk5OQ==:`, []standing{{policy: "default", remaining: 300000000, spread: 60, partition: []byte("App-999")}}},
		{headerLimit, `"problemPolicy";r=0;t=10`, []standing{left("problemPolicy", 0, 10)}},
		{headerLimit, `"default";r=1;t=7`, []standing{left("default", 1, 7)}},
		{headerLimit, `"daily";r=1;t=36400`, []standing{left("daily", 1, 36400)}},
		{headerLimit, `"daily";r=1;t=86400`, []standing{left("daily", 1, 86400)}},
		{headerLimit, `"somepolicy";r=10000;t=10`, []standing{left("somepolicy", 10000, 10)}},
		{headerLimit, `"default";r=0;t=50`, []standing{left("default", 0, 50)}},
		{headerLimit, `"default";r=0;t=48`, []standing{left("default", 0, 48)}},
		{headerLimit, `"dayLimit";r=100;t=36000`, []standing{left("dayLimit", 100, 36000)}},
		{headerLimit, `"basic";r=60;t=58`, []standing{left("basic", 60, 58)}},
		{headerLimit, `"basic";r=20;t=56`, []standing{left("basic", 20, 56)}},
		{headerLimit, `"default";r=0;t=5`, []standing{left("default", 0, 5)}},
		{headerLimit, `"fixedwindow";r=99;t=50`, []standing{left("fixedwindow", 99, 50)}},
		{headerLimit, `"dynamic";r=9;t=50`, []standing{left("dynamic", 9, 50)}},
		{headerLimit, `"dynamic";r=0;t=20`, []standing{left("dynamic", 0, 20)}},
		{headerLimit, `"dynamic";r=15;t=40`, []standing{left("dynamic", 15, 40)}},
		{headerLimit, `"day";r=100;t=36000`, []standing{left("day", 100, 36000)}},
		{headerLimit, `"default";r=50;t=60`, []standing{left("default", 50, 60)}},
		{headerLimit, `"sliding";r=50;t=44`, []standing{left("sliding", 50, 44)}},
	} {
		for _, headers := range []Headers{HeadersDraft10, HeadersDraft11} {
			h := http.Header{}
			for _, s := range row.items {
				(&teller{headers: headers}).tell(h, &s, false)
			}
			require.Equal(t, []string{row.want}, h.Values(row.field))
		}
	}

	// The drafts' own byte sequences have bits set in the padding, which RFC
	// 9651 lets a parser accept and an encoder not write.
	for _, row := range []struct {
		draft string
		s     standing
	}{
		{`"peruser";q=100;w=60;pk=:cHsdsRa894==:`, standing{policy: "peruser", quota: 100, window: 60, partition: bytesOf(t, "cHsdsRa894==")}},
		{
			`"peruser";q=65535;qu="content-bytes";w=10;pk=:sdfjLJUOUH==:`,
			standing{policy: "peruser", unit: "content-bytes", quota: 65535, window: 10, partition: bytesOf(t, "sdfjLJUOUH==")},
		},
	} {
		want, err := parseSFList(row.draft)
		require.NoError(t, err)
		h := http.Header{}
		(&teller{headers: HeadersDraft11}).tell(h, &row.s, false)
		require.Equal(t, want, items(t, h, "RateLimit-Policy"))
	}
}

func TestStandingOfADecision(t *testing.T) {
	const min = time.Minute
	for name, row := range map[string]struct {
		d          limit.Decision
		retryAfter int64
		policy     string
		left       string
	}{
		"fresh":                      {limit.Decision{OK: true, Limit: 100, Remaining: 99, Window: min}, 0, `q=100;w=60`, `r=100;t=60`},
		"some left: no faster":       {limit.Decision{OK: true, Limit: 100, Remaining: 59, Window: min}, 0, `q=100;w=60`, `r=60;t=36`},
		"rounded up":                 {limit.Decision{OK: true, Limit: 7, Remaining: 2, Window: 10 * time.Second}, 0, `q=7;w=10`, `r=3;t=5`},
		"one left":                   {limit.Decision{OK: true, Limit: 100, Remaining: 0, Window: min}, 0, `q=100;w=60`, `r=1;t=1`},
		"none left":                  {limit.Decision{Limit: 100, Window: min, RetryAfter: 600 * time.Millisecond}, 0, `q=100;w=60`, `r=0;t=1`},
		"none left for long":         {limit.Decision{Limit: 1, Window: 24 * time.Hour, RetryAfter: 3*time.Hour + 1}, 0, `q=1;w=86400`, `r=0;t=10801`},
		"in debt":                    {limit.Decision{Limit: 100, Remaining: -5, Window: min, RetryAfter: min}, 0, `q=100;w=60`, `r=0;t=60`},
		"refused":                    {limit.Decision{Limit: 100, Window: min, RetryAfter: time.Second}, 7, `q=100;w=60`, `r=0;t=7`},
		"refused, some left":         {limit.Decision{OK: true, Limit: 100, Remaining: 49, Window: min}, 3, `q=100;w=60`, `r=50;t=3`},
		"window of a fraction":       {limit.Decision{OK: true, Limit: 5, Remaining: 4, Window: 500 * time.Millisecond}, 0, `q=5;w=1`, `r=5;t=1`},
		"window of a second and one": {limit.Decision{OK: true, Limit: 5, Remaining: 4, Window: time.Second + 1}, 0, `q=5;w=2`, `r=5;t=2`},
		"bulkhead":                   {limit.Decision{OK: true, Limit: 8, Remaining: 2}, 0, `q=8;qu="concurrent-requests"`, `r=3`},
		"bulkhead, full":             {limit.Decision{Limit: 8}, 1, `q=8;qu="concurrent-requests"`, `r=0`},
		"never":                      {limit.Decision{Limit: 0, Window: min, RetryAfter: limit.Never}, 0, `q=0;w=60`, `r=0`},
		"huge": {
			limit.Decision{OK: true, Limit: math.MaxInt, Remaining: math.MaxInt - 1, Window: math.MaxInt64},
			0,
			`q=999999999999999;w=9223372037`, `r=999999999999999;t=9223372037`,
		},
		"more left than the limit": {limit.Decision{OK: true, Limit: 10, Remaining: 19, Window: min}, 0, `q=10;w=60`, `r=20;t=60`},
	} {
		row.d.Policy = "p"
		s := standingOf(row.d, row.retryAfter)
		require.Equal(t, `"p";`+row.policy, string(s.appendPolicy(nil)), name)
		require.Equal(t, `"p";`+row.left, string(s.appendLimit(nil)), name)
	}
}

// What is written is valid, and invites to no more than the limit allows.
func TestHeadersAreValidAndModest(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		name := string(rapid.SliceOf(rapid.Byte()).Draw(rt, "name"))
		q := rapid.IntRange(1, 1<<30).Draw(rt, "limit")
		d := limit.Decision{
			OK: rapid.Bool().Draw(rt, "ok"), Limit: q,
			Window:     time.Duration(rapid.Int64Range(1, math.MaxInt64).Draw(rt, "window")),
			RetryAfter: time.Duration(rapid.Int64Range(1, math.MaxInt64-1).Draw(rt, "retry")),
			ResetAfter: time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(rt, "reset")),
			Policy:     name,
		}
		if d.OK {
			d.Remaining, d.RetryAfter = rapid.IntRange(0, q-1).Draw(rt, "remaining"), 0
		}
		s := standingOf(d, 0)
		s.partition = rapid.SliceOf(rapid.Byte()).Draw(rt, "pk")
		h := http.Header{}
		(&teller{headers: HeadersDraft11 | HeadersLegacy}).tell(h, &s, false)
		policy, left := items(t, h, "RateLimit-Policy"), items(t, h, "RateLimit")
		require.Len(t, policy, 1)
		require.Len(t, left, 1)
		require.Equal(t, policy[0].value, left[0].value)
		require.EqualValues(t, q, policy[0].get("q"))
		w := policy[0].get("w").(int64)
		require.GreaterOrEqual(t, w, int64(1))
		require.GreaterOrEqual(t, time.Duration(w-1), (d.Window-1)/time.Second)
		r, after := left[0].get("r").(int64), left[0].get("t").(int64)
		require.GreaterOrEqual(t, after, int64(1))
		if d.OK {
			require.EqualValues(t, d.Remaining+1, r)
			// r/t <= limit/window
			require.LessOrEqual(t, float64(r)*d.Window.Seconds(), float64(q)*float64(after)*(1+1e-9))
		} else {
			require.Zero(t, r)
		}
		require.Equal(t, s.partition, left[0].get("pk"))
		require.NotEmpty(t, h.Get("X-RateLimit-Reset"))
		if isString(name) {
			require.Equal(t, name, policy[0].value)
		}
	})
}

func TestHeadersAppendToWhatIsThere(t *testing.T) {
	h := http.Header{}
	h.Add("RateLimit-Policy", `"theirs";q=1`)
	h.Add("RateLimit-Policy", `"others";q=2`)
	h.Add("RateLimit", `"theirs";r=1`)
	before := h["Ratelimit-Policy"]
	tell := &teller{headers: HeadersDraft10}
	s := standingOf(limit.Decision{OK: true, Limit: 100, Remaining: 0, Window: time.Minute, Policy: "burst"}, 0)
	tell.tell(h, &s, false)
	require.Equal(t, []string{`"theirs";q=1, "others";q=2, "burst";q=100;w=60`}, h.Values("RateLimit-Policy"))
	require.Equal(t, []string{`"theirs";r=1, "burst";r=1;t=1`}, h.Values("RateLimit"))
	require.Equal(t, []string{`"theirs";q=1`, `"others";q=2`}, before, "a slice of somebody else's")
}

func TestLegacyHeadersAreOfTheTightestLimit(t *testing.T) {
	at := func(limit, remaining int64, reset time.Duration) *standing {
		return &standing{quota: limit, remaining: remaining, reset: reset}
	}
	for name, row := range map[string]struct {
		before  []string // limit, remaining, reset
		s       *standing
		refused bool
		want    []string
	}{
		"alone":               {nil, at(100, 60, 1500*time.Millisecond), false, []string{"100", "60", "2"}},
		"tighter":             {[]string{"1000", "61", "9"}, at(100, 60, time.Second), false, []string{"100", "60", "1"}},
		"wider":               {[]string{"1000", "59", "9"}, at(100, 60, time.Second), false, []string{"1000", "59", "9"}},
		"as tight, longer":    {[]string{"1000", "60", "9"}, at(100, 60, 10*time.Second), false, []string{"100", "60", "10"}},
		"as tight, shorter":   {[]string{"1000", "60", "9"}, at(100, 60, 8*time.Second), false, []string{"1000", "60", "9"}},
		"as tight, as long":   {[]string{"1000", "60", "9"}, at(100, 60, 9*time.Second), false, []string{"1000", "60", "9"}},
		"refused here":        {[]string{"1000", "0", "9"}, at(100, 3, time.Second), true, []string{"100", "3", "1"}},
		"what is no number":   {[]string{"many", "some", "soon"}, at(100, 60, time.Second), false, []string{"100", "60", "1"}},
		"not used at all":     {nil, at(100, 100, 0), false, []string{"100", "100", "0"}},
		"what cannot be told": {nil, at(maxInteger, maxInteger, math.MaxInt64), false, []string{"999999999999999", "999999999999999", "9223372037"}},
	} {
		h := http.Header{}
		names := []string{"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}
		for i, v := range row.before {
			h.Set(names[i], v)
		}
		(&teller{headers: HeadersLegacy}).tell(h, row.s, row.refused)
		for i, n := range names {
			require.Equal(t, []string{row.want[i]}, h.Values(n), "%s: %s", name, n)
		}
	}
}

func TestLegacyResetAsATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it begins at 2000-01-01 00:00:00
		h := http.Header{}
		tell := &teller{headers: HeadersLegacyUnix}
		tell.tell(h, &standing{quota: 10, remaining: 3, reset: 1500 * time.Millisecond}, false)
		require.Equal(t, "946684802", h.Get("X-RateLimit-Reset"))
		tell.tell(h, &standing{quota: 10, remaining: 2, reset: 0}, false)
		require.Equal(t, "946684800", h.Get("X-RateLimit-Reset"))
	})
}

func TestPolicyItemsAreKeptAndBounded(t *testing.T) {
	tell := &teller{headers: HeadersDraft11}
	for i := range int64(10 * maxPolicyItems) {
		s := standing{policy: "p", quota: i, window: 1}
		require.Equal(t, string(s.appendPolicy(nil)), tell.policyItem(&s))
		require.Equal(t, string(s.appendPolicy(nil)), tell.policyItem(&s))
		for _, change := range []func(*standing){
			func(s *standing) { s.unit = "content-bytes" }, func(s *standing) { s.window = 2 }, func(s *standing) { s.policy = "q" },
		} {
			other := s
			change(&other)
			require.Equal(t, string(other.appendPolicy(nil)), tell.policyItem(&other))
		}
		require.LessOrEqual(t, len(*tell.policies.Load()), maxPolicyItems)
	}
	s := standing{policy: "p", quota: 1, window: 1, partition: []byte("client 7")}
	require.True(t, strings.HasSuffix(tell.policyItem(&s), ";pk=:Y2xpZW50IDc=:"))
	require.NotContains(t, tell.policyItem(&standing{policy: "p", quota: 1, window: 1}), "pk")
}

func TestHeadersAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	d := limit.Decision{OK: true, Limit: 1000, Remaining: 654, Window: time.Hour, Policy: "hour", ResetAfter: time.Minute}
	for _, row := range []struct {
		name    string
		headers Headers
		nested  bool
		want    float64
	}{
		{"draft", HeadersDraft11, false, 2},
		{"nested draft", HeadersDraft11, true, 5}, // one list of policies is made of two
		{"legacy", HeadersLegacy, false, 2},
		{"both", HeadersLegacy | HeadersDraft11, false, 4},
	} {
		w := httptest.NewRecorder()
		tell, outer := &teller{headers: row.headers}, &teller{headers: row.headers}
		got := testing.AllocsPerRun(100, func() {
			clear(w.Header())
			s := standingOf(d, 0)
			if row.nested {
				outer.tell(w.Header(), &s, false)
			}
			tell.tell(w.Header(), &s, false)
		})
		require.Equal(t, row.want, got, row.name)
	}
}
