package httpmw

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
)

func newDeadline(t testing.TB, cfg DeadlineConfig) func(http.Handler) http.Handler {
	t.Helper()
	mw, err := Deadline(cfg)
	require.NoError(t, err)
	return mw
}

func TestDeadlineConfigIsChecked(t *testing.T) {
	for field, cfg := range map[string]DeadlineConfig{
		"Timeout":     {},
		"must be at ": {Timeout: 10*time.Millisecond - 1},
		"Status":      {Timeout: time.Second, Status: 500},
		"Header":      {Timeout: time.Second, Header: "no header"},
		"HeaderUnit":  {Timeout: time.Second, Header: "X", HeaderUnit: -1},
		"without":     {Timeout: time.Second, HeaderUnit: 1},
	} {
		mw, err := Deadline(cfg)
		require.ErrorIs(t, err, core.ErrConfig)
		require.ErrorContains(t, err, field)
		require.Nil(t, mw)
	}
	_, err := Deadline(DeadlineConfig{Status: 1, Header: "\n"})
	for _, field := range []string{"Timeout", "Status", "Header"} {
		require.ErrorContains(t, err, "httpmw.DeadlineConfig."+field)
	}
}

// waits until its context has ended, and returns without a word.
var waits = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })

func TestDeadlineAnswersForASilentHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for want, cfg := range map[int]DeadlineConfig{503: {}, 504: {Status: 504}} {
			cfg.Timeout = 2 * time.Second
			start := time.Now()
			got := get(after(newDeadline(t, cfg)(waits), func() {
				require.Equal(t, cfg.Timeout, time.Since(start))
			}))
			require.Equal(t, want, got.Code)
			require.Equal(t, http.StatusText(want)+"\n", got.Body.String())
			require.Empty(t, got.Header().Values("Retry-After"))
		}
	})
}

// What the handler has set was meant for another answer.
func TestDeadlineDropsTheHeadersOfTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newDeadline(t, DeadlineConfig{Timeout: time.Second, Answer: RefuseWithProblem})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "public")
			w.Header().Set("Content-Encoding", "gzip")
			w.Header()["Vary"][0] = "changed"
			w.Header().Add("Vary", "Cookie")
			waits(w, r)
		}))
		got := get(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Vary", "Origin")
			h.ServeHTTP(w, r)
		}))
		require.Equal(t, 503, got.Code)
		require.JSONEq(t, `{"type":"about:blank","title":"Service Unavailable","status":503}`, got.Body.String())
		require.Equal(t, http.Header{
			"Vary": {"Origin"}, "Content-Type": {"application/problem+json"}, "X-Content-Type-Options": {"nosniff"},
		}, got.Header())
	})
}

func TestDeadlineLeavesAnswersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, row := range map[string]struct {
			h    http.HandlerFunc
			want int
			body string
		}{
			"in time":       {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, 404, ""},
			"silent":        {func(http.ResponseWriter, *http.Request) {}, 200, ""},
			"late":          {func(w http.ResponseWriter, r *http.Request) { waits(w, r); w.WriteHeader(418) }, 418, ""},
			"late body":     {func(w http.ResponseWriter, r *http.Request) { waits(w, r); fmt.Fprint(w, "late") }, 200, "late"},
			"late string":   {func(w http.ResponseWriter, r *http.Request) { waits(w, r); _, _ = io.WriteString(w, "late") }, 200, "late"},
			"begun":         {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "begun"); waits(w, r) }, 200, "begun"},
			"flushed":       {func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush(); waits(w, r) }, 200, ""},
			"by controller": {func(w http.ResponseWriter, r *http.Request) { _ = http.NewResponseController(w).Flush(); waits(w, r) }, 200, ""},
			"hint only":     {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(103); waits(w, r) }, 503, "Service Unavailable\n"},
		} {
			for _, mw := range []func(http.Handler) http.Handler{nil, logged} {
				if mw != nil && name == "flushed" {
					continue // the writer of logged is no http.Flusher
				}
				got := get(Chain(mw, newDeadline(t, DeadlineConfig{Timeout: time.Second}))(row.h))
				require.Equal(t, row.body, got.Body.String(), name)
				if name != "hint only" { // which httptest takes for the answer
					require.Equal(t, row.want, got.Code, name)
				}
			}
		}
	})
}

func TestDeadlineIsTheContexts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = time.Minute
		for name, row := range map[string]struct {
			around time.Duration // the deadline of the context before; 0 for none
			unit   time.Duration
			header []string
			want   time.Duration
		}{
			"ours":            {0, 0, nil, timeout},
			"context's":       {time.Second, 0, nil, time.Second},
			"context's later": {time.Hour, 0, nil, timeout},
			"header":          {0, 0, []string{"2"}, 2 * time.Second},
			"header later":    {0, 0, []string{"3600"}, timeout},
			"both":            {time.Second, 0, []string{"2"}, time.Second},
			"milliseconds":    {0, time.Millisecond, []string{"250"}, 250 * time.Millisecond},
			"garbage":         {0, 0, []string{"soon"}, timeout},
			"empty":           {0, 0, []string{""}, timeout},
			"negative":        {0, 0, []string{"-1"}, timeout},
			"twice":           {0, 0, []string{"1", "1"}, timeout},
			"overflow":        {0, 1000 * time.Hour, []string{"999999999"}, timeout},
		} {
			ctx, cancel := t.Context(), context.CancelFunc(func() {})
			if row.around != 0 {
				ctx, cancel = context.WithTimeout(ctx, row.around)
			}
			var got time.Duration
			var ended context.Context
			h := newDeadline(t, DeadlineConfig{Timeout: timeout, Header: "request-timeout", HeaderUnit: row.unit})(
				http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					got, ended = core.TimeLeft(r.Context()), r.Context()
				}))
			r := httptest.NewRequest("GET", "/", nil).WithContext(ctx)
			r.Header["Request-Timeout"] = row.header
			h.ServeHTTP(httptest.NewRecorder(), r)
			require.Equal(t, row.want, got, name)
			require.Error(t, ended.Err(), "the context outlives the request")
			cancel()
		}
		// A header that nobody named is nobody's.
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Request-Timeout", "0")
		w := httptest.NewRecorder()
		newDeadline(t, DeadlineConfig{Timeout: timeout})(answer(204)).ServeHTTP(w, r)
		require.Equal(t, 204, w.Code)
	})
}

// What the guards on both sides learn.
func TestDeadlineToldToGuards(t *testing.T) {
	type told struct {
		outcome core.Outcome
		err     error
	}
	missed, ignored, success := told{core.Failure, context.DeadlineExceeded}, told{core.Ignored, nil}, told{core.Success, nil}
	const late = 2 * time.Second
	answers := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { waits(w, r); w.WriteHeader(status) }
	}
	for name, row := range map[string]struct {
		header       string        // the caller's time
		around       time.Duration // the context's deadline
		leave        time.Duration // when the client goes; 0 if it stays
		h            http.HandlerFunc
		outer, inner told
		code         int
	}{
		"in time":                      {"", 0, 0, func(http.ResponseWriter, *http.Request) {}, success, success, 200},
		"missed":                       {"", 0, 0, waits, missed, missed, 503},
		"missed, client goes later":    {"", 0, late, func(http.ResponseWriter, *http.Request) { time.Sleep(time.Hour) }, missed, missed, 503},
		"client goes before":           {"", 0, 1, waits, ignored, ignored, 200},
		"client goes before, and late": {"", 0, 1, func(http.ResponseWriter, *http.Request) { time.Sleep(time.Hour) }, ignored, ignored, 200},
		"handler's own answer":         {"", 0, 0, answers(504), told{core.Failure, StatusError(504)}, told{core.Failure, StatusError(504)}, 504},
		"late success":                 {"", 0, 0, answers(200), success, success, 200},
		"caller's":                     {"0.005", 0, 0, waits, missed, missed, 503},
		"caller's, hopeless":           {"0.004", 0, 0, waits, ignored, ignored, 503},
		"hopeless, own answer":         {"0.004", 0, 0, answers(504), ignored, ignored, 504},
		"hopeless, but it failed":      {"0.004", 0, 0, answer(500).ServeHTTP, told{core.Failure, StatusError(500)}, told{core.Failure, StatusError(500)}, 500},
		"hopeless, but it worked":      {"0.004", 0, 0, answer(204).ServeHTTP, success, success, 204},
		"hopeless, throttled":          {"0.004", 0, 0, answer(429).ServeHTTP, told{core.Throttled, nil}, told{core.Throttled, nil}, 429},
		"no time":                      {"0", 0, 0, nil, ignored, told{}, 503},
		"context's":                    {"", core.MinTime, 0, waits, missed, missed, 503},
		"context's, hopeless":          {"", core.MinTime - 1, 0, waits, ignored, ignored, 503},
		"context's, none":              {"", -1, 0, nil, ignored, told{}, 503},
	} {
		synctest.Test(t, func(t *testing.T) {
			for i, mw := range []func(http.Handler) http.Handler{Chain(), logged} {
				outer, inner := &fakeGuard{wants: core.WantsResult}, &fakeGuard{wants: core.WantsResult}
				ctx, leave := context.WithCancel(t.Context())
				if row.leave != 0 {
					time.AfterFunc(row.leave, leave)
				}
				if row.around != 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, row.around)
					defer cancel()
				}
				ran := false
				h := Chain(Guard(outer), mw, newDeadline(t, DeadlineConfig{Timeout: time.Second, Header: "Left"}), mw, Guard(inner))(
					http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { ran = true; row.h(w, r) }))
				w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx)
				if row.header != "" {
					r.Header.Set("Left", row.header)
				}
				h.ServeHTTP(w, r)
				leave()
				got := outer.only(t)
				require.Equal(t, row.outer, told{got.Outcome, got.Err}, "%s: outer, %d", name, i)
				require.Equal(t, row.code, w.Code, name)
				require.Equal(t, row.h != nil, ran, name)
				if ran {
					got = inner.only(t)
					require.Equal(t, row.inner, told{got.Outcome, got.Err}, "%s: inner, %d", name, i)
				}
			}
		})
	}
}

// A service that hangs opens the breakers on both sides, once for each request,
// though its clients have long gone when a handler returns.
func TestBreakersSeeAServiceThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := circuit.Config{FailureThreshold: 3, OpenFor: time.Hour}
		outer, inner := newBreaker(t, cfg), newBreaker(t, cfg)
		h := Chain(Guard(outer), newDeadline(t, DeadlineConfig{Timeout: time.Second}), Guard(inner))(
			http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(30 * time.Second) }))
		for i := range 3 {
			require.Equal(t, circuit.Closed, outer.State(), i)
			require.Equal(t, circuit.Closed, inner.State(), i)
			ctx, leave := context.WithTimeout(t.Context(), 15*time.Second)
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx))
			leave()
		}
		require.Equal(t, circuit.Open, outer.State())
		require.Equal(t, circuit.Open, inner.State())
	})
}

// The refusal of a guard further in is neither answered for nor counted, and what
// limits and bulkheads in front have charged for it goes back, also across a mux.
func TestInnerRefusalIsSeenThroughDeadlineAndRecover(t *testing.T) {
	throughMux := func(h http.Handler) http.Handler {
		mux := http.NewServeMux()
		mux.Handle("/", h)
		return mux
	}
	for name, wants := range allWants {
		for _, between := range []func(http.Handler) http.Handler{nil, logged, throughMux} {
			synctest.Test(t, func(t *testing.T) {
				outer, middle := &fakeGuard{wants: wants}, &fakeGuard{wants: wants}
				inner := &fakeGuard{refusal: &core.Rejection{Reason: core.CircuitOpen}}
				got := get(Chain(
					Guard(outer),
					Recover(RecoverConfig{}),
					between,
					Guard(middle),
					newDeadline(t, DeadlineConfig{Timeout: time.Second}),
					between,
					GuardWith(inner, GuardConfig{Refuse: func(w http.ResponseWriter, r *http.Request, status int, err error) {
						<-r.Context().Done()
						refuseWithText(w, r, status, err)
					}}),
				)(answer(200)))
				require.Equal(t, 503, got.Code)
				require.Equal(t, "1", got.Header().Get("Retry-After"))
				for _, g := range []*fakeGuard{outer, middle} {
					results, cancelled := g.ended(t)
					require.Empty(t, results, name)
					require.Equal(t, 1, cancelled, name)
				}
			})
		}
	}
}

func TestDeadlinePassesOnWhatEndsAHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mw := newDeadline(t, DeadlineConfig{Timeout: time.Second})
		var ctx context.Context
		ends := func(how func()) http.Handler {
			return mw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { ctx = r.Context(); waits(w, r); how() }))
		}
		w := httptest.NewRecorder()
		for _, v := range []any{"boom", http.ErrAbortHandler} {
			require.PanicsWithValue(t, v, func() {
				ends(func() { panic(v) }).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			})
			require.Error(t, ctx.Err())
		}
		returned := false
		go func() {
			ends(runtime.Goexit).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			returned = true
		}()
		time.Sleep(time.Minute)
		require.False(t, returned)
		require.Empty(t, w.Body.String())
		require.Empty(t, w.Header())
	})
}

func TestDeadlineAnswerThatMisbehaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DeadlineConfig{Timeout: time.Second, Status: 504, Answer: func(w http.ResponseWriter, _ *http.Request, status int, err error) {
			require.Equal(t, 504, status)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			w.Header().Set("X", "x")
		}}
		got := get(newDeadline(t, cfg)(waits))
		require.Equal(t, 504, got.Code, "silence is not 200")
		require.Empty(t, got.Header().Get("X"))

		outer := &fakeGuard{wants: core.WantsResult}
		cfg.Answer = func(http.ResponseWriter, *http.Request, int, error) { panic("answer") }
		h := Chain(Guard(outer), newDeadline(t, cfg))(waits)
		require.PanicsWithValue(t, "answer", func() { get(h) })
		require.ErrorIs(t, outer.only(t).Err, core.ErrNoReturn)
	})
}

func TestDeadlineTellsThePattern(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("GET /items/{id}", answer(200))
	mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	h := newDeadline(t, DeadlineConfig{Timeout: time.Second})(mux)
	for path, want := range map[string]string{"/items/1": "GET /items/{id}", "/panic": "GET /panic"} {
		r := httptest.NewRequest("GET", path, nil)
		func() {
			defer func() { _ = recover() }()
			h.ServeHTTP(httptest.NewRecorder(), r)
		}()
		require.Equal(t, want, r.Pattern)
	}
}

func TestDeadlineOverTheWire(t *testing.T) {
	mw := func(t *testing.T) func(http.Handler) http.Handler {
		return Chain(Recover(RecoverConfig{}), Guard(&fakeGuard{wants: core.WantsResult}), newDeadline(t, DeadlineConfig{Timeout: 2 * time.Second}))
	}
	inBubbles(t, func(t *testing.T) http.Handler { return mw(t)(waits) }, func(t *testing.T, client *http.Client) {
		start := time.Now()
		resp, err := client.Get("http://bubble/")
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, 2*time.Second, time.Since(start))
		require.Equal(t, 503, resp.StatusCode)
		require.Equal(t, "Service Unavailable\n", string(body))
	})
}

// An event stream goes on beyond the deadline, event by event, as far as its
// handler wants.
func TestStreamOutlivesTheDeadline(t *testing.T) {
	for name, between := range map[string]func(http.Handler) http.Handler{"": Chain(), "logged": logged} {
		g := &fakeGuard{wants: core.WantsResult}
		inBubbles(t, func(t *testing.T) http.Handler {
			return Chain(
				Recover(RecoverConfig{}), between, Guard(g), newDeadline(t, DeadlineConfig{Timeout: 1500 * time.Millisecond}),
			)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				for i := range 4 {
					_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
					_ = http.NewResponseController(w).Flush()
					time.Sleep(time.Second)
				}
			}))
		}, func(t *testing.T, client *http.Client) {
			start := time.Now()
			resp, err := client.Get("http://bubble/")
			require.NoError(t, err)
			lines := bufio.NewReader(resp.Body)
			for i := range 4 {
				line, err := lines.ReadString('\n')
				require.NoError(t, err)
				require.Equal(t, fmt.Sprintf("data: %d\n", i), line)
				require.Equal(t, time.Duration(i)*time.Second, time.Since(start), name)
				_, _ = lines.ReadString('\n')
			}
			_, err = lines.ReadByte()
			require.Equal(t, io.EOF, err)
			require.NoError(t, resp.Body.Close())
		})
		results, _ := g.ended(t)
		for _, r := range results {
			require.Equal(t, core.Success, r.Outcome)
		}
	}
}

// A WebSocket lives as long as it likes, also where it was hijacked through a
// writer that has no Hijack itself.
func TestHijackedConnectionOutlivesTheDeadline(t *testing.T) {
	for name, between := range map[string]func(http.Handler) http.Handler{"": Chain(), "logged": logged} {
		synctest.Test(t, func(t *testing.T) {
			outer, inner := &fakeGuard{wants: core.WantsResult}, &fakeGuard{wants: core.WantsResult}
			client := bubble(t, Chain(
				Recover(RecoverConfig{}), between, Guard(outer), newDeadline(t, DeadlineConfig{Timeout: time.Second}), Guard(inner),
			)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				conn, rw, err := http.NewResponseController(w).Hijack()
				if err != nil {
					panic(err)
				}
				defer func() { _ = conn.Close() }()
				_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				_ = rw.Flush()
				for {
					line, err := rw.ReadString('\n')
					if err != nil {
						return
					}
					_, _ = rw.WriteString(line)
					_ = rw.Flush()
				}
			})), false)
			req := httptest.NewRequest("GET", "http://bubble/", nil).WithContext(t.Context())
			req.RequestURI = ""
			req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"echo"}}
			resp, err := client.Do(req)
			require.NoError(t, err)
			require.Equal(t, 101, resp.StatusCode)
			conn := resp.Body.(io.ReadWriteCloser)
			in := bufio.NewReader(conn)
			for range 3 {
				time.Sleep(time.Minute)
				_, err := io.WriteString(conn, "hello\n")
				require.NoError(t, err)
				line, err := in.ReadString('\n')
				require.NoError(t, err)
				require.Equal(t, "hello\n", line)
				require.Equal(t, 1, outer.holding(), name)
			}
			require.NoError(t, conn.Close())
			synctest.Wait()
			require.Equal(t, core.Success, outer.only(t).Outcome, name)
			require.Equal(t, core.Success, inner.only(t).Outcome, name)
		})
	}
}

func TestDisconnectBeforeTheDeadlineIsNeutral(t *testing.T) {
	outer, inner := &fakeGuard{wants: core.WantsResult}, &fakeGuard{wants: core.WantsResult}
	inBubbles(t, func(t *testing.T) http.Handler {
		return Chain(Guard(outer), newDeadline(t, DeadlineConfig{Timeout: time.Hour}), Guard(inner))(waits)
	}, func(t *testing.T, client *http.Client) {
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://bubble/", nil)
		require.NoError(t, err)
		_, err = client.Do(req) //nolint:bodyclose // there is no answer
		require.ErrorIs(t, err, context.DeadlineExceeded)
		synctest.Wait()
		for _, g := range []*fakeGuard{outer, inner} {
			results, _ := g.ended(t)
			require.Equal(t, core.Ignored, results[len(results)-1].Outcome)
		}
	})
}

func TestParseUnits(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"0": 0, "2": 2 * time.Second, "0.25": 250 * time.Millisecond, "0.000000001": 1, "1.5": 1500 * time.Millisecond,
		"007": 7 * time.Second, "999999999.999999999": 999999999*time.Second + 999999999,
	} {
		got, ok := parseUnits(s, time.Second)
		require.True(t, ok, s)
		require.Equal(t, want, got, s)
	}
	for _, s := range []string{
		"", ".", "1.", ".5", "-1", "+1", "1e3", "0x1", "1_0", " 1", "1 ", "1,5", "1.2.3", "1s", "NaN", "Inf", "١",
		"1000000000", "0.0000000001", "1\x00", strings.Repeat("9", 1000),
	} {
		_, ok := parseUnits(s, time.Second)
		require.False(t, ok, "%q", s)
	}
}

// Against exact arithmetic.
func FuzzParseUnits(f *testing.F) {
	for _, s := range []string{"0", "2", "0.25", "999999999.999999999", "1e9", "-1", ".5", "5."} {
		for _, unit := range []int64{1, int64(time.Millisecond), int64(time.Second), 1<<63 - 1} {
			f.Add(s, unit)
		}
	}
	f.Fuzz(func(t *testing.T, s string, unit int64) {
		if unit <= 0 {
			return
		}
		got, ok := parseUnits(s, time.Duration(unit))
		if !ok {
			return
		}
		n, exact := new(big.Rat).SetString(s)
		require.True(t, exact, "%q", s)
		n.Mul(n, new(big.Rat).SetInt64(unit))
		floor := new(big.Int).Quo(n.Num(), n.Denom())
		want := int64(1<<63 - 1)
		if floor.IsInt64() {
			want = floor.Int64()
		}
		require.Equal(t, time.Duration(want), got, "%q × %d", s, unit)
	})
}
