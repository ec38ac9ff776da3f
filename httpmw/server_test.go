package httpmw

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

// fetch is the answer to a GET with its whole body.
func fetch(t *testing.T, srv *httptest.Server, path string) (*http.Response, string) {
	t.Helper()
	resp, err := srv.Client().Get(srv.URL + path)
	require.NoError(t, err)
	defer func() { require.NoError(t, resp.Body.Close()) }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(body)
}

// awaiting gives what comes over c before the test is given up.
func awaiting[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(10 * time.Second): // real time: a socket is on the other side
		require.Fail(t, "nothing came")
	}
	return v
}

// after calls f when the handler, and the guard in front of it, are done.
func after(h http.Handler, f func()) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer f()
		h.ServeHTTP(w, r)
	})
}

func TestRefusalOverTheWire(t *testing.T) {
	h := Guard(&fakeGuard{refusal: &core.Rejection{Reason: core.CircuitOpen}})(answer(200))
	bothProtocols(t, h, func(t *testing.T, srv *httptest.Server) {
		resp, body := fetch(t, srv, "/")
		require.Equal(t, 503, resp.StatusCode)
		require.Equal(t, "1", resp.Header.Get("Retry-After"))
		require.Equal(t, "Service Unavailable\n", body)
	})
}

// A client that asks before it sends never sends the body of what is refused.
func TestAdmissionComesBeforeTheBody(t *testing.T) {
	srv := serve(t, Guard(&fakeGuard{refusal: &core.Rejection{Reason: core.RateLimited}})(answer(200)), false)
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	_, err = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
	require.NoError(t, err)
	line, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "HTTP/1.1 429 Too Many Requests\r\n", line)
}

func TestStreamIsFlushedThroughTheWrapper(t *testing.T) {
	g := &fakeGuard{wants: core.WantsResult}
	next := make(chan struct{})
	h := Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 2 {
			_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			<-next
		}
		_, _ = fmt.Fprint(w, "data: 2\n\n")
		_ = http.NewResponseController(w).Flush()
		<-next
	}))
	bothProtocols(t, h, func(t *testing.T, srv *httptest.Server) {
		resp, err := srv.Client().Get(srv.URL)
		require.NoError(t, err)
		defer func() { require.NoError(t, resp.Body.Close()) }()
		lines := bufio.NewReader(resp.Body)
		for i := range 3 {
			// The handler waits until this event has arrived.
			line, err := lines.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "data: "+strconv.Itoa(i)+"\n", line)
			_, _ = lines.ReadString('\n')
			next <- struct{}{}
		}
		_, err = lines.ReadByte()
		require.Equal(t, io.EOF, err)
	})
	results, _ := g.ended(t)
	require.Len(t, results, 2)
	for _, r := range results {
		require.Equal(t, core.Success, r.Outcome)
	}
}

// An upgrade by hand, as WebSocket libraries do it, directly and through a
// reverse proxy that is itself behind a guard.
func TestUpgradeHoldsThePermitUntilTheHandlerReturns(t *testing.T) {
	backend, front := &fakeGuard{wants: core.WantsResult}, &fakeGuard{wants: core.WantsResult}
	done := make(chan struct{}, 2)
	echo := serve(t, after(Guard(backend)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer func() { _ = conn.Close() }()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = rw.Flush()
		line, _ := rw.ReadString('\n')
		_, _ = rw.WriteString(line)
		_ = rw.Flush()
	})), func() { done <- struct{}{} }), false)
	target, err := url.Parse(echo.URL)
	require.NoError(t, err)
	proxy := serve(t, after(Guard(front)(httputil.NewSingleHostReverseProxy(target)), func() { done <- struct{}{} }), false)

	conn, err := net.Dial("tcp", proxy.Listener.Addr().String())
	require.NoError(t, err)
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	require.NoError(t, err)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, 101, resp.StatusCode)
	require.Equal(t, 1, backend.holding())
	require.Equal(t, 1, front.holding())
	_, err = io.WriteString(conn, "hello\n")
	require.NoError(t, err)
	line, err := in.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "hello\n", line)
	require.NoError(t, conn.Close())
	awaiting(t, done)
	awaiting(t, done)
	require.Equal(t, core.Success, backend.only(t).Outcome)
	require.Equal(t, core.Success, front.only(t).Outcome)
}

func TestEarlyHintsAreNoAnswer(t *testing.T) {
	g := &fakeGuard{wants: core.WantsResult}
	h := Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		status, _ := strconv.Atoi(r.URL.Path[1:])
		w.WriteHeader(status)
	}))
	bothProtocols(t, h, func(t *testing.T, srv *httptest.Server) {
		for _, status := range []int{200, 500} {
			hints := 0
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
				Got1xxResponse: func(int, textproto.MIMEHeader) error { hints++; return nil },
			})
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"/"+strconv.Itoa(status), nil)
			require.NoError(t, err)
			resp, err := srv.Client().Do(req)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, status, resp.StatusCode)
			require.Equal(t, 1, hints)
		}
	})
	results, _ := g.ended(t)
	require.Len(t, results, 4)
	for i, r := range results {
		require.Equal(t, []core.Outcome{core.Success, core.Failure}[i%2], r.Outcome)
	}
}

func TestControllerReachesTheBase(t *testing.T) {
	h := Guard(&fakeGuard{wants: core.WantsResult})(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c := http.NewResponseController(w)
		for name, err := range map[string]error{
			"read deadline":  c.SetReadDeadline(time.Now().Add(time.Hour)), // real time: of a socket
			"write deadline": c.SetWriteDeadline(time.Now().Add(time.Hour)),
			"full duplex":    c.EnableFullDuplex(),
			"flush":          c.Flush(),
		} {
			if err != nil {
				_, _ = fmt.Fprintln(w, name, err)
			}
		}
	}))
	bothProtocols(t, h, func(t *testing.T, srv *httptest.Server) {
		_, body := fetch(t, srv, "/")
		require.Empty(t, body)
	})
}

func TestServersWriterKeepsItsInterfaces(t *testing.T) {
	interfaces := func(w http.ResponseWriter) (s string) {
		if _, ok := w.(http.Flusher); ok {
			s += "Flusher "
		}
		if _, ok := w.(http.Hijacker); ok {
			s += "Hijacker "
		}
		if _, ok := w.(io.ReaderFrom); ok {
			s += "ReaderFrom "
		}
		if _, ok := w.(http.Pusher); ok {
			s += "Pusher "
		}
		if _, ok := w.(io.StringWriter); ok {
			s += "StringWriter "
		}
		return s
	}
	inner := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, interfaces(w)) })
	guarded := Guard(&fakeGuard{wants: core.WantsResult})(inner)
	bothProtocols(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Base", interfaces(w))
		guarded.ServeHTTP(w, r)
	}), func(t *testing.T, srv *httptest.Server) {
		resp, body := fetch(t, srv, "/")
		require.Equal(t, strings.TrimSpace(resp.Header.Get("Base")), strings.TrimSpace(body))
		require.NotEmpty(t, body)
	})
}

func TestFileIsServedWhole(t *testing.T) {
	content := strings.Repeat("0123456789abcdef", 1<<16)
	name := filepath.Join(t.TempDir(), "file.bin")
	require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	g := &fakeGuard{wants: core.WantsResult}
	h := Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, name) }))
	bothProtocols(t, h, func(t *testing.T, srv *httptest.Server) {
		resp, body := fetch(t, srv, "/")
		require.EqualValues(t, len(content), resp.ContentLength)
		require.True(t, body == content, "another body")
	})
	results, _ := g.ended(t)
	require.Len(t, results, 2)
}

func TestDisconnectIsNeutral(t *testing.T) {
	g := &fakeGuard{wants: core.WantsResult}
	done := make(chan struct{})
	h := after(Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
		if r.URL.Path != "/stream" {
			w.WriteHeader(http.StatusGatewayTimeout)
		}
	})), func() { done <- struct{}{} })
	bothProtocols(t, h, func(t *testing.T, srv *httptest.Server) {
		ctx, leave := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"/stream", nil)
		require.NoError(t, err)
		resp, err := srv.Client().Do(req)
		require.NoError(t, err)
		leave()
		_ = resp.Body.Close()
		awaiting(t, done)

		ctx, leave = context.WithTimeout(t.Context(), 20*time.Millisecond) // real time: a client that gives up
		defer leave()
		req, err = http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
		require.NoError(t, err)
		_, err = srv.Client().Do(req) //nolint:bodyclose // there is no answer
		require.ErrorIs(t, err, context.DeadlineExceeded)
		awaiting(t, done)
	})
	results, cancelled := g.ended(t)
	require.Zero(t, cancelled)
	require.Len(t, results, 4)
	for _, r := range results {
		require.Equal(t, core.Ignored, r.Outcome)
	}
}

func TestAbortedAndExitedHandlersOverTheWire(t *testing.T) {
	g := &fakeGuard{wants: core.WantsResult}
	done := make(chan struct{}, 1)
	h := after(Guard(g)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/abort" {
			panic(http.ErrAbortHandler)
		}
		runtime.Goexit()
	})), func() { done <- struct{}{} })
	srv := serve(t, h, false)
	for path, want := range map[string]core.Outcome{"/abort": core.Ignored, "/exit": core.Failure} {
		_, err := srv.Client().Post(srv.URL+path, "", nil) //nolint:bodyclose // there is no answer
		require.Error(t, err)
		awaiting(t, done)
		results, _ := g.ended(t)
		require.Equal(t, want, results[len(results)-1].Outcome, path)
	}
}

// However requests end, every permit ends once.
func TestEveryPermitEndsUnderStress(t *testing.T) {
	outer, inner := &fakeGuard{wants: core.WantsResult}, &fakeGuard{wants: core.WantsEnd}
	guarded := Chain(Guard(outer), Guard(inner))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/0":
			panic(http.ErrAbortHandler)
		case "/1":
			_, _ = w.Write(make([]byte, 1<<16))
		case "/2":
			<-r.Context().Done()
		case "/3":
			w.WriteHeader(500)
		}
	}))
	var handlers sync.WaitGroup // with HTTP/2 they can outlive the server's Close
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers.Add(1)
		defer handlers.Done()
		guarded.ServeHTTP(w, r)
	})
	bothProtocols(t, h, func(t *testing.T, srv *httptest.Server) {
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				for j := range 25 {
					if i == 0 {
						inner.refuse([]error{nil, &core.Rejection{Reason: core.Overloaded}}[j%2])
					}
					// real time: clients on sockets that give up
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration((i+j)%5)*time.Millisecond)
					req, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL+"/"+strconv.Itoa(j%5), nil)
					if err == nil {
						if resp, err := srv.Client().Do(req); err == nil {
							_ = resp.Body.Close()
						}
					}
					cancel()
				}
			})
		}
		all.Wait()
		srv.Client().CloseIdleConnections()
		srv.Close()
		handlers.Wait()
	})
	for _, g := range []*fakeGuard{outer, inner} {
		results, cancelled := g.ended(t)
		require.EqualValues(t, g.acquired, len(results)+cancelled)
	}
}
