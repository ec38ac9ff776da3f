package transport_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/transport"
)

func TestPermitIsHeldUntilTheEndOfTheStream(t *testing.T) {
	more := make(chan struct{})
	base, address := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "first\n")
		_ = http.NewResponseController(w).Flush()
		<-more
		_, _ = io.WriteString(w, "second\n")
	})
	g := newGuard()
	b := balancer(t, []string{address})
	client := &http.Client{Transport: newTransport(t, transport.Config{Base: base, Guard: g, Backends: b})}
	resp, err := client.Get("http://logical")
	require.NoError(t, err)
	lines := bufio.NewReader(resp.Body)
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "first\n", line)
	require.Equal(t, 1, g.out())
	require.EqualValues(t, 1, b.Stats().Backends[0].InFlight)
	close(more)
	rest, err := io.ReadAll(lines)
	require.NoError(t, err)
	require.Equal(t, "second\n", string(rest))
	require.Equal(t, core.Success, g.only(t).Outcome, "at EOF, before Close")
	require.Zero(t, b.Stats().Backends[0].InFlight)
	require.NoError(t, resp.Body.Close())
}

// A success that is booked at the headers would hide a server whose streams die.
func TestStreamThatDiesHalfWayIsAFailure(t *testing.T) {
	for name, length := range map[string]string{"chunked": "", "of known length": "100"} {
		t.Run(name, func(t *testing.T) {
			base, address := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				if length != "" {
					w.Header().Set("Content-Length", length)
				}
				_, _ = io.WriteString(w, "half")
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			})
			g := newGuard()
			resp, err := (&http.Client{Transport: transport.Guard(g, base)}).Get(address)
			require.NoError(t, err)
			_, err = io.ReadAll(resp.Body)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, core.Failure, g.only(t).Outcome)
		})
	}
}

func TestCallerWhoGoesAway(t *testing.T) {
	for name, c := range map[string]struct {
		headers bool // whether the server has answered by then
		timeout bool // of the http.Client, in place of a cancellation
		want    core.Outcome
	}{
		"before the headers":   {false, false, core.Ignored},
		"in the body":          {true, false, core.Ignored},
		"timeout, headers":     {false, true, core.Failure},
		"timeout, in the body": {true, true, core.Failure},
	} {
		t.Run(name, func(t *testing.T) {
			arrived, gone := make(chan struct{}), make(chan struct{})
			base, address := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if c.headers {
					_ = http.NewResponseController(w).Flush()
				}
				close(arrived)
				<-r.Context().Done()
				close(gone)
			})
			g := newGuard()
			client := &http.Client{Transport: transport.Guard(g, base)}
			if c.timeout {
				client.Timeout = 300 * time.Millisecond // real time: a socket is waited for
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-arrived
				if !c.timeout {
					cancel()
				}
			}()
			defer cancel()
			resp, err := client.Do(request(t, "GET", address, nil).WithContext(ctx))
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
			}
			require.Error(t, err)
			require.Equal(t, c.want, g.only(t).Outcome)
			<-gone
		})
	}
}

func TestTraceAndInformationalResponses(t *testing.T) {
	base, address := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "body")
	})
	var seen []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { seen = append(seen, "conn") },
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			seen = append(seen, fmt.Sprint(code, " ", h.Get("Link")))
			return nil
		},
		GotFirstResponseByte: func() { seen = append(seen, "byte") },
	})
	g := newGuard()
	rt := newTransport(t, transport.Config{Base: base, Guard: g, Backends: balancer(t, []string{address})})
	resp, err := rt.RoundTrip(request(t, "GET", "http://logical", nil).WithContext(ctx))
	require.NoError(t, err)
	_, _ = io.ReadAll(resp.Body)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, []string{"conn", "byte", "103 </style.css>; rel=preload"}, seen)
	require.Equal(t, core.Success, g.only(t).Outcome)
}

func TestTrailersHeadAndEmptyAnswers(t *testing.T) {
	base, address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/trailer":
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.WriteString(w, "body")
			w.Header().Set("X-Sum", "42")
		case "/head":
			w.Header().Set("Content-Length", "1000")
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.WriteHeader(304)
		case "/redirect":
			http.Redirect(w, r, "/204", http.StatusFound)
		}
	})
	get := func(method, path string) (*http.Response, core.Result) {
		g := newGuard()
		resp, err := transport.Guard(g, base).RoundTrip(request(t, method, address+path, nil))
		require.NoError(t, err)
		_, err = io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		return resp, g.only(t)
	}
	resp, _ := get("GET", "/trailer")
	require.Equal(t, "42", resp.Trailer.Get("X-Sum"))
	for _, c := range [][2]string{{"HEAD", "/head"}, {"GET", "/204"}, {"GET", "/304"}, {"GET", "/empty"}} {
		resp, r := get(c[0], c[1])
		require.Equal(t, http.NoBody, resp.Body, c)
		require.Equal(t, core.Success, r.Outcome, c)
	}
	resp, _ = get("GET", "/redirect")
	require.Equal(t, 302, resp.StatusCode, "redirects are for http.Client to follow")

	g := newGuard()
	client := &http.Client{Transport: newTransport(t, transport.Config{Base: base, Guard: g, Backends: balancer(t, []string{address})})}
	resp, err := client.Get("http://logical/redirect")
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, 204, resp.StatusCode)
	require.Len(t, g.results, 2, "each hop is a call")
	require.Zero(t, g.out())
}

// A wrapper that kept the base from seeing the end of a body would keep its
// connection from the next request.
func TestOneConnectionServesOneAfterTheOther(t *testing.T) {
	base, address := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "x") })
	base.MaxConnsPerHost = 1
	g := newGuard()
	client := &http.Client{Transport: transport.Guard(g, base)}
	for range 5 {
		resp, err := client.Get(address)
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, resp.Body)
		require.NoError(t, resp.Body.Close())
	}
	require.Len(t, g.results, 5)
}

// echoUpgrade is the server of an upgraded connection that sends each line back.
func echoUpgrade(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "echo" {
		w.WriteHeader(http.StatusUpgradeRequired)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	_ = rw.Flush()
	for {
		line, err := rw.ReadString('\n')
		if err != nil {
			return
		}
		_, _ = rw.WriteString("echo " + line)
		_ = rw.Flush()
	}
}

func TestUpgradeThroughAReverseProxy(t *testing.T) {
	base, backend := serve(t, echoUpgrade)
	g := newGuard()
	b := balancer(t, []string{backend})
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Host = "logical" },
		Transport: newTransport(t, transport.Config{Base: base, Guard: g, Backends: b}),
	}
	front, address := serve(t, proxy.ServeHTTP)

	req := request(t, "GET", address, nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	client := newGuard()
	resp, err := transport.Guard(client, front).RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, 101, resp.StatusCode)
	conn, ok := resp.Body.(io.ReadWriteCloser)
	require.True(t, ok, "the body of 101 is the connection")
	_, ok = resp.Body.(interface{ CloseWrite() error })
	require.True(t, ok)
	back := bufio.NewReader(conn)
	for _, word := range []string{"one", "two"} {
		_, err = io.WriteString(conn, word+"\n")
		require.NoError(t, err)
		line, err := back.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "echo "+word+"\n", line)
	}
	require.NoError(t, conn.Close())
	require.Equal(t, core.Success, client.only(t).Outcome)
	require.Equal(t, core.Success, g.only(t).Outcome)
	require.Zero(t, b.Stats().Backends[0].InFlight)
}

func TestReverseProxyAnswersARefusalWith502(t *testing.T) {
	g := newGuard()
	g.refusal = rejection()
	target, err := url.Parse("http://backend")
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = transport.Guard(g, nil)
	var refused error
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
		refused = err
		w.WriteHeader(http.StatusBadGateway)
	}
	w := httptest.NewRecorder()
	proxy.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	require.Equal(t, http.StatusBadGateway, w.Code)
	require.Same(t, g.refusal, refused)
}

func TestHTTP2StreamInBothDirections(t *testing.T) {
	var proto atomic.Value
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proto.Store(r.Proto)
		rc := http.NewResponseController(w)
		_ = rc.Flush() // the headers, before the request's body has come
		lines := bufio.NewReader(r.Body)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(w, "echo "+line)
			_ = rc.Flush()
		}
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	base := s.Client().Transport
	g, b := newGuard(), balancer(t, []string{s.URL})
	client := &http.Client{Transport: newTransport(t, transport.Config{Base: base, Guard: g, Backends: b})}
	defer client.CloseIdleConnections()

	r, w := io.Pipe()
	resp, err := client.Do(request(t, "POST", "http://logical", r))
	require.NoError(t, err)
	back := bufio.NewReader(resp.Body)
	for _, word := range []string{"one", "two"} {
		_, err = io.WriteString(w, word+"\n")
		require.NoError(t, err)
		line, err := back.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "echo "+word+"\n", line)
		require.Equal(t, 1, g.out())
	}
	require.NoError(t, w.Close())
	rest, err := io.ReadAll(back)
	require.NoError(t, err)
	require.Empty(t, rest)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, core.Success, g.only(t).Outcome)
	require.Equal(t, "HTTP/2.0", proto.Load())
}

// A server that gives up makes net/http close the request's body, and the Read
// of the upload that this interrupts is no fault of the upload's.
func TestServerThatDiesDuringAnUploadIsAFailure(t *testing.T) {
	for name, afterHeaders := range map[string]bool{"before the headers": false, "after them": true} {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = r.Body.Read(make([]byte, 1))
			if afterHeaders {
				_ = http.NewResponseController(w).Flush()
			}
			panic(http.ErrAbortHandler)
		}))
		s.EnableHTTP2 = true
		s.StartTLS()
		g := newGuard()
		rt := transport.Guard(g, s.Client().Transport)
		upload, w := io.Pipe()
		go func() { _, _ = io.WriteString(w, "x") }() // and no more: the next Read waits
		resp, err := rt.RoundTrip(request(t, "POST", s.URL, upload))
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			_ = resp.Body.Close()
		}
		require.Error(t, err, name)
		require.Equal(t, core.Failure, g.only(t).Outcome, name)
		rt.CloseIdleConnections()
		s.Close()
	}
}

// A timeout that is meant for the headers must not cut the body.
func TestHeaderTimeoutOfTheBaseDoesNotCutTheBody(t *testing.T) {
	const wait = 500 * time.Millisecond
	base, address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			<-r.Context().Done()
			return
		}
		_ = http.NewResponseController(w).Flush()
		<-time.After(wait + wait/4) // real time: a socket is waited for
		_, _ = io.WriteString(w, strings.Repeat("x", 10))
	})
	base.ResponseHeaderTimeout = wait
	g := newGuard()
	resp, err := transport.Guard(g, base).RoundTrip(request(t, "GET", address+"/stream", nil))
	require.NoError(t, err)
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Len(t, b, 10)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, core.Success, g.only(t).Outcome)

	g = newGuard()
	_, err = transport.Guard(g, base).RoundTrip(request(t, "GET", address+"/hang", nil)) //nolint:bodyclose // an error
	require.Error(t, err)
	require.Equal(t, core.Failure, g.only(t).Outcome)
}
