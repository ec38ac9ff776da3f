package transport

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const forever = time.Duration(math.MaxInt64)

func responseWith(status int, fields ...string) *http.Response {
	resp := &http.Response{StatusCode: status, Header: http.Header{}}
	for i := 0; i < len(fields); i += 2 {
		resp.Header.Add(fields[i], fields[i+1])
	}
	return resp
}

// The RateLimit fields of draft-ietf-httpapi-ratelimit-headers-10, with what a
// client is to make of each.
func TestRateLimitOfTheDraft(t *testing.T) {
	for field, want := range map[string]time.Duration{
		`"default";r=50;t=30`:                           0,
		`"default";r=999;pk=:dHJpYWwxMjEzMjM=:`:         0,
		`"default";r=300000000;t=60;pk=:QXBwLTk5OQ==:`:  0,
		`"problemPolicy";r=0;t=10`:                      10 * time.Second,
		`"default";r=1;t=7`:                             0,
		`"daily";r=1;t=36400`:                           0,
		`"somepolicy";r=10000;t=10`:                     0,
		`"default";r=0;t=50`:                            50 * time.Second,
		`"default";r=0;t=48`:                            48 * time.Second,
		`"dayLimit";r=100;t=36000`:                      0,
		`"basic";r=60;t=58`:                             0,
		`"basic";r=20;t=56`:                             0,
		`"default";r=0;t=5`:                             5 * time.Second,
		`"fixedwindow";r=99;t=50`:                       0,
		`"dynamic";r=9;t=50`:                            0,
		`"dynamic";r=0;t=20`:                            20 * time.Second,
		`"dynamic";r=15;t=40`:                           0,
		`"sliding";q=12;r=1;t=1`:                        0,
		`"day";r=100;t=36000`:                           0,
		`"permin";r=0;t=30, "perhr";r=0;t=1800`:         30 * time.Minute,
		`"permin";r=3;t=30,"perhr";r=0;t=1800`:          30 * time.Minute,
		`"permin";r=0;t=30, "perhr";r=7;t=1800`:         30 * time.Second,
		`"a";r=0;t=1;acme-burst=2.5;x;y="r=1, z";z=(`:   -1,
		`"a";r=0;t=1;acme-burst=2.5;x;y="r=1, z";z=@17`: time.Second,
		`"a";r=0`:                                 0, // nobody knows until when
		`"a";r=0;t=0`:                             0,
		`"a"; r=0; t=9`:                           9 * time.Second,
		`"a";r=5;r=0;t=1;t=2`:                     2 * time.Second, // the last counts
		`"a";r=0;t=999999999999999`:               forever,
		`"a";r=0;t=9223372036`:                    9223372036 * time.Second,
		`"a";r=0;t=9223372037`:                    forever,
		`"";r=0;t=1`:                              time.Second,
		`"a";r=0;t=1;a=5;w=9`:                     time.Second, // a and w are comments beside r
		`"a";r=0;t=1;a="x"`:                       time.Second,
		`"a";r=0;w=9`:                             0,
		`"burst";a=80;w=45`:                       0, // after draft 10
		`"burst";a=0;w=45;c=2`:                    45 * time.Second,
		`"burst";a=0;t=45`:                        0,
		`limit=100, remaining=50, reset=5`:        0, // draft 07
		`limit=100, remaining=0, reset=5`:         5 * time.Second,
		`limit=100,remaining=0,reset=5;x=1, y=.5`: -1,
		`remaining=0, reset=5, y=0.5`:             5 * time.Second,
		`remaining=0`:                             0,

		// Malformed: the draft's own "quota;t=1" is a Token and has no r.
		`quota;t=1`:                     -1,
		`quota;r=0;t=1`:                 -1,
		`default;r=0;t=1`:               -1,
		`1;r=0;t=1`:                     -1,
		`("a" "b");r=0;t=1`:             -1,
		`"a";t=1`:                       -1,
		`"a"`:                           -1,
		`"a";r;t=1`:                     -1,
		`"a";r=-1;t=1`:                  -1,
		`"a";r=0.0;t=1`:                 -1,
		`"a";r="0";t=1`:                 -1,
		`"a";r=0;t=-1`:                  -1,
		`"a";r=0;t=1.5`:                 -1,
		`"a";r=0;t=@1`:                  -1,
		`"a";r=0;t`:                     -1,
		`"a";r=1;t=x`:                   -1,
		`"a";r=0;t=9999999999999999`:    -1, // 16 digits
		`"a";a=0;w=x`:                   -1,
		`"a";R=0;t=1`:                   -1,
		`"a";r=0;t=1,`:                  -1,
		`"a";r=0;t=1;`:                  -1,
		`"a";r=0 ;t=1`:                  -1,
		`"a" r=0`:                       -1,
		`a";r=0;t=1`:                    -1,
		`"a";r=0;t=1, "b"`:              -1, // one bad member spoils the others
		`"b", "a";r=0;t=1`:              -1,
		`b;r=1, "a";r=0;t=1`:            -1,
		`"a";r=0;t=1, b;r=1`:            -1,
		`"a";r=0;t=1, "b";r=x`:          -1,
		`"ä";r=0;t=1`:                   -1,
		`limit=100, remaining=0; r=5`:   0,
		`limit=100, reset=5`:            -1,
		`limit=100, remaining, reset=5`: -1,
		`limit, remaining, reset`:       -1,
		`remaining=0, reset=-5`:         -1,
		`remaining=0, reset=5s`:         -1,
		`remaining=(0), reset=5`:        -1,
		`remaining=0; reset=5`:          0,
		`0`:                             -1,
		``:                              -1,
		`0, 0;w=1`:                      -1,
	} {
		d, ok := serviceLimit(field)
		if want < 0 {
			require.False(t, ok, "%q: %v", field, d)
			want = 0
		} else {
			require.True(t, ok, field)
			require.Equal(t, want, d, field)
		}
		require.Equal(t, want, PauseAsked(responseWith(200, "RateLimit", field)), field)
	}
}

func TestWhatAsksForAPause(t *testing.T) {
	const quota, none = `"a";r=0;t=9`, `"a";r=1;t=9`
	date := func(s int) string { return time.Unix(1e9+int64(s), 0).UTC().Format(http.TimeFormat) }
	for _, c := range []struct {
		status int
		fields []string
		want   time.Duration
	}{
		{429, nil, 0},
		{503, nil, 0},
		{429, []string{"Retry-After", "7"}, 7 * time.Second},
		{503, []string{"Retry-After", "7"}, 7 * time.Second},
		{429, []string{"Retry-After", "0"}, 0},
		{429, []string{"Retry-After", "-7"}, 0},
		{429, []string{"Retry-After", "7.5"}, 0},
		{429, []string{"Retry-After", "7 seconds"}, 0},
		{429, []string{"Retry-After", ""}, 0},
		{429, []string{"Retry-After", "99999999999999999999"}, forever},

		// With other statuses it speaks of that request.
		{200, []string{"Retry-After", "7"}, 0},
		{301, []string{"Retry-After", "7"}, 0},
		{413, []string{"Retry-After", "7"}, 0},
		{500, []string{"Retry-After", "7"}, 0},

		// A date counts from Date, whatever the clock here says, and from when a
		// cache handed the response out.
		{503, []string{"Retry-After", date(30), "Date", date(0)}, 30 * time.Second},
		{503, []string{"Retry-After", date(0), "Date", date(30)}, 0},
		{503, []string{"Retry-After", date(30), "Date", date(0), "Age", "10"}, 20 * time.Second},
		{503, []string{"Retry-After", date(30), "Date", date(0), "Age", "99"}, 0},
		{503, []string{"Retry-After", date(30), "Date", date(0), "Age", "99999999999999999999"}, 0},
		{503, []string{"Retry-After", date(30), "Date", "yesterday"}, 0}, // 2001 is past

		{200, []string{"RateLimit", quota}, 9 * time.Second},
		{201, []string{"Ratelimit", quota}, 9 * time.Second},
		{301, []string{"RateLimit", quota}, 9 * time.Second},
		{304, []string{"RateLimit", quota}, 9 * time.Second},
		{404, []string{"RateLimit", quota}, 9 * time.Second},
		{429, []string{"RateLimit", quota}, 9 * time.Second},
		{429, []string{"RateLimit", none}, 0},
		{200, []string{"RateLimit", none, "RateLimit", `"b";r=0;t=3`}, 3 * time.Second},
		{200, []string{"RateLimit", quota, "RateLimit", "garbage"}, 0},
		{200, []string{"RateLimit", `"a`, "RateLimit", `b";r=0;t=3`}, 3 * time.Second}, // lines are one field
		{200, []string{"RateLimit-Policy", quota}, 0},

		// Retry-After takes precedence, if it can be read.
		{429, []string{"RateLimit", quota, "Retry-After", "2"}, 2 * time.Second},
		{429, []string{"RateLimit", quota, "Retry-After", "20"}, 20 * time.Second},
		{429, []string{"RateLimit", quota, "Retry-After", "0"}, 0},
		{200, []string{"RateLimit", quota, "Retry-After", "2"}, 2 * time.Second},
		{200, []string{"RateLimit", none, "Retry-After", "2"}, 0},
		{429, []string{"RateLimit", quota, "Retry-After", "soon"}, 9 * time.Second},
		{429, []string{"RateLimit", none, "Retry-After", "2"}, 2 * time.Second},
		{429, []string{"RateLimit", "garbage", "Retry-After", "2"}, 2 * time.Second},

		// A response from a cache says nothing of now.
		{200, []string{"RateLimit", quota, "Age", "1"}, 0},
		{200, []string{"RateLimit", quota, "Age", "1, 0"}, 0},
		{200, []string{"RateLimit", quota, "Age", "0"}, 9 * time.Second},
		{200, []string{"RateLimit", quota, "Age", "-1"}, 9 * time.Second},
		{200, []string{"RateLimit", quota, "Age", "old"}, 9 * time.Second},
		{429, []string{"Retry-After", "7", "Age", "5"}, 7 * time.Second},

		// Not asked for.
		{429, []string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", "9"}, 0},
		{429, []string{"RateLimit-Remaining", "0", "RateLimit-Reset", "9"}, 0},
	} {
		require.Equal(t, c.want, PauseAsked(responseWith(c.status, c.fields...)), "%d %q", c.status, c.fields)
	}
	resp := responseWith(200)
	resp.Trailer = http.Header{"Ratelimit": {quota}, "Retry-After": {"5"}}
	require.Zero(t, PauseAsked(resp))
	require.Zero(t, PauseAsked(&http.Response{StatusCode: 429}))
}

func TestOlderFieldsByChoice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the clock says the year 2000
		now := time.Now().Unix()
		in := func(s int64) string { return strconv.FormatInt(now+s, 10) }
		for _, c := range []struct {
			fields    []string
			sec, unix time.Duration
		}{
			{[]string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", "9"}, 9 * time.Second, 0},
			{[]string{"RateLimit-Remaining", "0", "RateLimit-Reset", "9"}, 9 * time.Second, 0},
			{[]string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", in(9)}, time.Duration(now+9) * time.Second, 9 * time.Second},
			{[]string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", in(-9)}, time.Duration(now-9) * time.Second, 0},
			{
				[]string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", in(9), "Date", time.Unix(now+4, 0).UTC().Format(http.TimeFormat)},
				time.Duration(now+9) * time.Second, 5 * time.Second,
			},
			{[]string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", "99999999999999999999"}, forever, forever},
			{[]string{"X-RateLimit-Remaining", "1", "X-RateLimit-Reset", "9"}, 0, 0},
			{[]string{"X-RateLimit-Remaining", "-1", "X-RateLimit-Reset", "9"}, 0, 0},
			{[]string{"X-RateLimit-Remaining", "", "X-RateLimit-Reset", "9"}, 0, 0},
			{[]string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", "-9"}, 0, 0},
			{[]string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", "9.5"}, 0, 0},
			{[]string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", "tomorrow"}, 0, 0},
			{[]string{"X-RateLimit-Remaining", "0"}, 0, 0},
			{[]string{"X-RateLimit-Reset", in(9)}, 0, 0},
			{[]string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", in(9), "Age", "3"}, 0, 0},

			// What is newer goes before.
			{[]string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", in(9), "Retry-After", "3"}, 3 * time.Second, 3 * time.Second},
			{[]string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", in(9), "Retry-After", "0"}, 0, 0},
			{[]string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", in(9), "RateLimit", `"a";r=1`}, 0, 0},
			{[]string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", in(9), "RateLimit", `a;r=1`}, time.Duration(now+9) * time.Second, 9 * time.Second},
			{[]string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", in(9), "RateLimit", ``}, time.Duration(now+9) * time.Second, 9 * time.Second},
			{[]string{"RateLimit-Remaining", "0", "RateLimit-Reset", "4", "X-RateLimit-Remaining", "0", "X-RateLimit-Reset", in(9)}, 4 * time.Second, 9 * time.Second},
		} {
			resp := responseWith(429, c.fields...)
			require.Equal(t, c.sec, PauseAskedSeconds(resp), "seconds %q", c.fields)
			require.Equal(t, c.unix, PauseAskedUnix(resp), "unix %q", c.fields)
		}
	})
}

// A field that is written by the rules is read as it was meant.
func TestRateLimitThatIsWellFormedIsRead(t *testing.T) {
	other := rapid.SampledFrom([]string{
		`pk=:dHJpYWw=:`, `c=2`, `x`, `x=?0`, `x="r=1;t=2, \"b\";"`, `x=t/5:6`, `x=%"%e2%82%ac"`, `x=@99`, `x=-1.5`, `q=10`,
	})
	space := rapid.SampledFrom([]string{"", " ", "   "})
	comma := rapid.SampledFrom([]string{",", ", ", " ,\t ", "\t,"})
	rapid.Check(t, func(t *rapid.T) {
		var field strings.Builder
		var want time.Duration
		field.WriteString(space.Draw(t, "before"))
		for i := range rapid.IntRange(1, 4).Draw(t, "policies") {
			if i > 0 {
				field.WriteString(comma.Draw(t, "comma"))
			}
			r := max(0, rapid.Int64Range(-3, 3).Draw(t, "r")) * rapid.Int64Range(0, 99999999999999).Draw(t, "scale")
			s := rapid.Int64Range(-1, 999999999999999).Draw(t, "t")
			if rapid.Bool().Draw(t, "small") {
				s %= 100
			}
			params := rapid.SliceOfN(other, 0, 3).Draw(t, "others")
			names := rapid.SampledFrom([][2]string{{"r", "t"}, {"a", "w"}}).Draw(t, "names")
			params = append(params, fmt.Sprintf("%s=%d", names[0], r))
			if s >= 0 {
				params = append(params, fmt.Sprintf("%s=%d", names[1], s))
			}
			params = rapid.Permutation(params).Draw(t, "order")
			fmt.Fprintf(&field, "%q", rapid.StringMatching(`[ !#-\[\]-~]{0,5}`).Draw(t, "policy"))
			for _, p := range params {
				field.WriteString(";" + space.Draw(t, "space") + p)
			}
			switch {
			case r > 0 || s <= 0:
			case s > int64(forever/time.Second):
				want = forever
			default:
				want = max(want, time.Duration(s)*time.Second)
			}
		}
		field.WriteString(space.Draw(t, "after"))
		d, ok := serviceLimit(field.String())
		if !ok || d != want {
			t.Fatalf("%q: %v, %v; want %v", field.String(), d, ok, want)
		}
	})
}

func FuzzPauseAsked(f *testing.F) {
	f.Add(429, "7", `"default";r=50;t=30`, "", "0", "9")
	f.Add(503, "Mon, 05 Aug 2019 09:27:05 GMT", `limit=100, remaining=0, reset=5`, "1", "1", "1372700873")
	f.Add(200, "-1", `"a";a=0;w=45;c=2, "b";r=0;t=999999999999999`, "0, 1", "", "")
	f.Fuzz(func(t *testing.T, status int, after, limit, age, remaining, reset string) {
		resp := responseWith(
			status, "Retry-After", after, "RateLimit", limit, "Age", age, "X-RateLimit-Remaining", remaining, "X-RateLimit-Reset", reset,
		)
		d := PauseAsked(resp)
		for _, asked := range []time.Duration{d, PauseAskedSeconds(resp), PauseAskedUnix(resp)} {
			require.GreaterOrEqual(t, asked, time.Duration(0))
			if asked > 0 {
				require.True(t, strings.ContainsAny(after+limit+reset, "123456789"), "out of nothing")
			}
		}
		// A member that is malformed silences a field, one that has something left
		// changes nothing.
		if own, ok := serviceLimit(limit); ok && own > 0 {
			if items, ok := limitItems(limit + `, "z";r=1;t=7`); ok {
				require.Equal(t, own, items)
			}
			_, ok := serviceLimit(limit + `, "z";t=7`)
			require.False(t, ok)
		}
	})
}

// A date in the year 1 is as far before one in 9999 as a Duration goes; what its
// age takes off must not make it the future.
func TestRetryAfterLongPastIsNotTheFuture(t *testing.T) {
	resp := &http.Response{StatusCode: 429, Header: http.Header{
		"Date": {"Fri, 31 Dec 9999 23:59:59 GMT"}, "Retry-After": {"Mon, 01 Jan 0001 00:00:00 GMT"}, "Age": {"5"},
	}}
	require.Zero(t, PauseAsked(resp))
}
