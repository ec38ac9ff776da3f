package httpmw

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// quiet is a RecoverConfig that logs nothing.
var quiet = RecoverConfig{OnPanic: func(*http.Request, any, []byte) {}}

func panics(v any) http.Handler {
	return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(v) })
}

func TestRecoverAnswersWhereNothingWasWritten(t *testing.T) {
	boom := errors.New("boom")
	for _, v := range []any{boom, "text", []int{1}, fmt.Errorf("wrapped: %w", http.ErrAbortHandler)} {
		calls := 0
		h := Recover(RecoverConfig{OnPanic: func(r *http.Request, got any, stack []byte) {
			calls++
			require.Equal(t, "/path", r.URL.Path)
			require.Equal(t, v, got)
			require.Contains(t, string(stack), "httpmw.throwDeep")
		}})(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", "public")
			w.Header().Set("Set-Cookie", "session=half")
			w.Header().Set("Content-Length", "5")
			throwDeep(v)
		}))
		w := httptest.NewRecorder()
		w.Header().Set("X-Request-Id", "7")
		h.ServeHTTP(w, httptest.NewRequest("GET", "/path", nil))
		require.Equal(t, 500, w.Code)
		require.Equal(t, "Internal Server Error\n", w.Body.String())
		require.Equal(t, http.Header{
			"X-Request-Id": {"7"}, "Content-Type": {"text/plain; charset=utf-8"}, "X-Content-Type-Options": {"nosniff"},
		}, w.Header())
		require.Equal(t, 1, calls)
	}
}

func TestRecoverLeavesAnswersAlone(t *testing.T) {
	h := Recover(RecoverConfig{OnPanic: func(*http.Request, any, []byte) { t.Error("there was no panic") }})
	require.Equal(t, 404, get(h(answer(404))).Code)
	require.Equal(t, 200, get(h(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))).Code)
}

func TestRecoverPassesAbortAndGoexit(t *testing.T) {
	h := Recover(RecoverConfig{OnPanic: func(*http.Request, any, []byte) { t.Error("that is no panic") }})
	w := httptest.NewRecorder()
	func() {
		defer func() { require.Same(t, http.ErrAbortHandler, recover()) }()
		h(panics(http.ErrAbortHandler)).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	}()
	done, returned := make(chan struct{}), false
	go func() {
		defer close(done)
		h(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { runtime.Goexit() })).
			ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		returned = true
	}()
	<-done
	require.False(t, returned)
	require.Empty(t, w.Header())
	require.Empty(t, w.Body.String())
}

// throwing is a reader that gives a little and panics.
type throwing struct{ left int }

func (r *throwing) Read(b []byte) (int, error) {
	if r.left--; r.left < 0 {
		panic("reader")
	}
	return copy(b, strings.Repeat("x", len(b))), nil
}

// begun is each way to begin an answer and panic.
var begun = map[string]func(w http.ResponseWriter){
	"status": func(w http.ResponseWriter) { w.WriteHeader(204); panic("boom") },
	"body":   func(w http.ResponseWriter) { _, _ = w.Write([]byte("half")); panic("boom") },
	"string": func(w http.ResponseWriter) { _, _ = io.WriteString(w, "half"); panic("boom") },
	"flush":  func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush(); panic("boom") },
	"copy":   func(w http.ResponseWriter) { _, _ = io.Copy(w, &throwing{8}) },
	"flush half": func(w http.ResponseWriter) {
		fmt.Fprint(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic("boom")
	},
	"promised": func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", "10")
		fmt.Fprint(w, "half")
		panic("boom")
	},
}

func TestRecoverCutsOffAnAnswerThatHasBegun(t *testing.T) {
	for name, begin := range begun {
		for _, between := range []func(http.Handler) http.Handler{nil, logged} {
			told := 0
			inBubbles(t, func(*testing.T) http.Handler {
				return Chain(between, Recover(RecoverConfig{OnPanic: func(*http.Request, any, []byte) { told++ }}))(
					http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { begin(w) }))
			}, func(t *testing.T, client *http.Client) {
				resp, err := client.Get("http://bubble/")
				if err == nil {
					var body []byte
					body, err = io.ReadAll(resp.Body)
					require.NotContains(t, string(body), "Internal", name)
					_ = resp.Body.Close()
				}
				require.Error(t, err, "%s: a part was taken for the whole", name)
			})
			require.Equal(t, 2, told)
		}
	}
}

func TestRecoverOverTheWire(t *testing.T) {
	inBubbles(t, func(*testing.T) http.Handler {
		return Recover(quiet)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints) // no answer
			panic("boom")
		}))
	}, func(t *testing.T, client *http.Client) {
		for range 2 { // on the same connection
			resp, err := client.Get("http://bubble/")
			require.NoError(t, err)
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, 500, resp.StatusCode)
			require.Equal(t, "Internal Server Error\n", string(body))
		}
	})
}

// The connection is the handler's own: nothing is written into it.
func TestRecoverWritesNothingAfterHijack(t *testing.T) {
	for name, between := range map[string]func(http.Handler) http.Handler{"": nil, "logged": logged} {
		synctest.Test(t, func(t *testing.T) {
			var ended any
			client := bubble(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() { ended = recover() }()
				Chain(between, Recover(quiet))(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					conn, rw, err := http.NewResponseController(w).Hijack()
					if err != nil {
						panic(err)
					}
					defer func() { _ = conn.Close() }()
					_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello\n")
					_ = rw.Flush()
					panic("boom")
				})).ServeHTTP(w, r)
			}), false)
			req, err := http.NewRequestWithContext(t.Context(), "GET", "http://bubble/", nil)
			require.NoError(t, err)
			req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"x"}}
			resp, err := client.Do(req)
			require.NoError(t, err)
			all, _ := io.ReadAll(bufio.NewReader(resp.Body))
			_ = resp.Body.Close()
			require.Equal(t, "hello\n", string(all), name)
			synctest.Wait()
			require.Equal(t, http.ErrAbortHandler, ended, name)
		})
	}
}

// To guards around it a panic stays one, however Recover ends the request.
func TestRecoverTellsGuardsOfThePanic(t *testing.T) {
	for wantsName, wants := range allWants {
		for name, row := range map[string]struct {
			answer func(http.ResponseWriter, *http.Request, int, error)
			begin  func(http.ResponseWriter)
			want   core.Result
		}{
			"500":      {nil, func(http.ResponseWriter) { panic("boom") }, core.Result{Outcome: core.Failure, Err: core.ErrNoReturn}},
			"cut off":  {nil, begun["body"], core.Result{Outcome: core.Failure, Err: core.ErrNoReturn}},
			"200":      {func(http.ResponseWriter, *http.Request, int, error) {}, func(http.ResponseWriter) { panic("boom") }, core.Result{Outcome: core.Failure, Err: core.ErrNoReturn}},
			"abort":    {nil, func(w http.ResponseWriter) { w.WriteHeader(500); panic(http.ErrAbortHandler) }, core.Result{Outcome: core.Ignored}},
			"no panic": {nil, func(w http.ResponseWriter) { w.WriteHeader(200) }, core.Result{Outcome: core.Success}},
		} {
			g := &fakeGuard{wants: wants}
			cfg := quiet
			cfg.Answer = row.answer
			h := Chain(Guard(g), logged, Recover(cfg))(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { row.begin(w) }))
			func() {
				defer func() { _ = recover() }()
				get(h)
			}()
			got := g.only(t)
			if wants == core.WantsResult {
				require.Equal(t, row.want.Outcome, got.Outcome, "%s, %s", name, wantsName)
				require.Equal(t, row.want.Err, got.Err, "%s, %s", name, wantsName)
			}
		}
	}
}

// A refusal whose answer panics is a failure, inside Recover and around it.
func TestRecoverOfARefusalThatPanics(t *testing.T) {
	outer := &fakeGuard{wants: core.WantsResult}
	inner := GuardWith(&fakeGuard{refusal: &core.Rejection{}}, GuardConfig{
		Refuse: func(http.ResponseWriter, *http.Request, int, error) { panic("refuse") },
	})
	got := get(Chain(Guard(outer), Recover(quiet), inner)(answer(200)))
	require.Equal(t, 500, got.Code)
	require.Empty(t, got.Header().Get("Retry-After"))
	require.ErrorIs(t, outer.only(t).Err, core.ErrNoReturn)
}

func TestRecoverSurvivesItsCallbacks(t *testing.T) {
	logs := logTo(t)
	half := func(w http.ResponseWriter, _ *http.Request, _ int, _ error) {
		fmt.Fprint(w, "half")
		panic("answer")
	}
	for name, row := range map[string]struct {
		cfg    RecoverConfig
		want   string // the answer; "" for a cut
		logged bool
	}{
		"OnPanic panics": {RecoverConfig{OnPanic: func(*http.Request, any, []byte) { panic("callback") }}, "Internal Server Error\n", true},
		"OnPanic aborts": {RecoverConfig{OnPanic: func(*http.Request, any, []byte) { panic(http.ErrAbortHandler) }}, "Internal Server Error\n", true},
		"Answer is silent": {RecoverConfig{OnPanic: quiet.OnPanic, Answer: func(w http.ResponseWriter, _ *http.Request, _ int, _ error) {
			w.Header().Set("Content-Encoding", "gzip")
		}}, "Internal Server Error\n", false},
		"Answer panics": {RecoverConfig{OnPanic: quiet.OnPanic, Answer: func(w http.ResponseWriter, _ *http.Request, _ int, _ error) {
			w.Header().Set("Content-Encoding", "gzip")
			panic("answer")
		}}, "Internal Server Error\n", false},
		"Answer panics half-way": {RecoverConfig{OnPanic: quiet.OnPanic, Answer: half}, "", false},
		"Answer aborts":          {RecoverConfig{OnPanic: quiet.OnPanic, Answer: func(http.ResponseWriter, *http.Request, int, error) { panic(http.ErrAbortHandler) }}, "", false},
	} {
		logs.Reset()
		w := httptest.NewRecorder()
		func() {
			if row.want == "" {
				defer func() { require.Same(t, http.ErrAbortHandler, recover(), name) }()
			}
			Recover(row.cfg)(panics("boom")).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			require.Equal(t, 500, w.Code, name)
			require.Equal(t, row.want, w.Body.String(), name)
			require.Empty(t, w.Header().Get("Content-Encoding"), name)
		}()
		require.Equal(t, row.logged, strings.Contains(logs.String(), "panic=boom"), name)
	}

	// One that exits takes the goroutine with it: there is no answer.
	for _, cfg := range []RecoverConfig{
		{OnPanic: func(*http.Request, any, []byte) { runtime.Goexit() }},
		{OnPanic: quiet.OnPanic, Answer: func(http.ResponseWriter, *http.Request, int, error) { runtime.Goexit() }},
	} {
		w, g, done := httptest.NewRecorder(), &fakeGuard{wants: core.WantsResult}, make(chan struct{})
		go func() {
			defer close(done)
			Chain(Guard(g), Recover(cfg))(panics("boom")).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		}()
		<-done
		require.Empty(t, w.Body.String())
		require.ErrorIs(t, g.only(t).Err, core.ErrNoReturn)
	}
}

func TestRecoverLogsNoSecrets(t *testing.T) {
	logs := logTo(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /items/{id}", func(http.ResponseWriter, *http.Request) { throwDeep(errors.New("boom")) })
	r := httptest.NewRequest("GET", "/items/7?token=secret", strings.NewReader("secret"))
	r.Header.Set("Authorization", "secret")
	Recover(RecoverConfig{})(mux).ServeHTTP(httptest.NewRecorder(), r)
	got := logs.String()
	require.Equal(t, 1, strings.Count(got, "\n"))
	for _, part := range []string{"level=ERROR", "method=GET", "path=/items/7", `pattern="GET /items/{id}"`, "panic=boom", "httpmw.throwDeep"} {
		require.Contains(t, got, part)
	}
	require.NotContains(t, got, "secret")
}

// logTo gives what slog.Default says until the test ends.
func logTo(t *testing.T) *bytes.Buffer {
	t.Helper()
	var said bytes.Buffer
	before, output, flags := slog.Default(), log.Writer(), log.Flags()
	slog.SetDefault(slog.New(slog.NewTextHandler(&said, nil)))
	t.Cleanup(func() {
		slog.SetDefault(before)
		log.SetOutput(output) // which SetDefault has redirected
		log.SetFlags(flags)
	})
	return &said
}

// A file that is copied straight to the connection is none the worse.
func TestFileThroughAllLayers(t *testing.T) {
	name := t.TempDir() + "/file"
	content := strings.Repeat("0123456789abcdef", 1<<14)
	require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	h := Chain(Recover(RecoverConfig{}), newDeadline(t, DeadlineConfig{Timeout: 1 << 40}), Guard(&fakeGuard{wants: core.WantsResult}))(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, name) }))
	bothProtocols(t, h, func(t *testing.T, srv *httptest.Server) {
		_, body := fetch(t, srv, "/")
		require.True(t, body == content, "another body")
	})
}
