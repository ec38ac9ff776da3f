package transport_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/core/limit"
	"github.com/surgewall/surgewall/transport"
)

func newBreaker(t testing.TB, cfg circuit.Config) *circuit.Breaker {
	t.Helper()
	b, err := circuit.New(cfg)
	require.NoError(t, err)
	return b
}

// behave is a server that does what the path says. What hangs, hangs until the
// client has gone.
func behave(w http.ResponseWriter, r *http.Request) {
	flush := func() { _ = http.NewResponseController(w).Flush() }
	switch r.URL.Path {
	case "/ok":
		_, _ = io.WriteString(w, "whole")
	case "/404", "/408", "/429", "/500", "/501", "/503":
		w.WriteHeader(map[string]int{
			"/404": 404, "/408": 408, "/429": 429, "/500": 500, "/501": 501, "/503": 503,
		}[r.URL.Path])
		_, _ = io.WriteString(w, "why")
	case "/204":
		w.WriteHeader(http.StatusNoContent)
	case "/early":
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusOK)
	case "/dies":
		_, _ = io.WriteString(w, "half")
		flush()
		panic(http.ErrAbortHandler)
	case "/resets":
		panic(http.ErrAbortHandler)
	case "/hangs":
		<-r.Context().Done()
	case "/stalls":
		_, _ = io.WriteString(w, "half")
		flush()
		<-r.Context().Done()
	}
}

// What each kind of call does to a breaker that is half-open, over a socket: a
// probe succeeds, or opens it again, or gives its place back and decides nothing.
func TestWhatAProbeTeachesABreaker(t *testing.T) {
	const soon = 100 * time.Millisecond // real time: a socket is waited for
	const (
		nothing = iota
		success
		failure
	)
	do := func(method, path string) func(*testing.T, *http.Client, string) {
		return func(t *testing.T, c *http.Client, address string) {
			resp, err := c.Do(request(t, method, address+path, nil))
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}
	get := func(path string) func(*testing.T, *http.Client, string) { return do("GET", path) }
	for name, c := range map[string]struct {
		call func(t *testing.T, c *http.Client, address string)
		want int
	}{
		"200":              {get("/ok"), success},
		"204":              {get("/204"), success},
		"103, then 200":    {get("/early"), success},
		"404":              {get("/404"), success},
		"501":              {get("/501"), success},
		"HEAD":             {do("HEAD", "/ok"), success},
		"HEAD of a 500":    {do("HEAD", "/500"), failure},
		"408":              {get("/408"), failure},
		"429":              {get("/429"), failure},
		"500":              {get("/500"), failure},
		"503":              {get("/503"), failure},
		"reset":            {get("/resets"), failure},
		"stream dies":      {get("/dies"), failure},
		"nobody listens":   {func(t *testing.T, c *http.Client, _ string) { get("/")(t, c, "http://127.0.0.1:1") }, failure},
		"no such protocol": {func(t *testing.T, c *http.Client, _ string) { get("/")(t, c, "ftp://127.0.0.1") }, nothing},
		"closed early": {func(t *testing.T, c *http.Client, address string) {
			resp, err := c.Get(address + "/stalls")
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
		}, success},
		"cancelled before the headers": {func(t *testing.T, c *http.Client, address string) {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
			time.AfterFunc(soon, cancel)
			_, err := c.Do(request(t, "GET", address+"/hangs", nil).WithContext(ctx)) //nolint:bodyclose // an error
			require.ErrorIs(t, err, context.Canceled)
		}, nothing},
		"cancelled in the body": {func(t *testing.T, c *http.Client, address string) {
			ctx, cancel := context.WithCancel(t.Context())
			resp, err := c.Do(request(t, "GET", address+"/stalls", nil).WithContext(ctx))
			require.NoError(t, err)
			cancel()
			_, err = io.ReadAll(resp.Body)
			require.ErrorIs(t, err, context.Canceled)
			require.NoError(t, resp.Body.Close())
		}, nothing},
		"the client's Timeout before the headers": {func(t *testing.T, c *http.Client, address string) {
			c.Timeout = soon
			get("/hangs")(t, c, address)
		}, failure},
		"the client's Timeout in the body": {func(t *testing.T, c *http.Client, address string) {
			c.Timeout = soon
			get("/stalls")(t, c, address)
		}, failure},
		"a deadline of the caller's": {func(t *testing.T, c *http.Client, address string) {
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			defer cancel()
			_, err := c.Do(request(t, "GET", address+"/hangs", nil).WithContext(ctx)) //nolint:bodyclose // an error
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}, failure},
	} {
		t.Run(name, func(t *testing.T) {
			base, address := serve(t, behave)
			b := newBreaker(t, circuit.Config{FailureThreshold: 1, OpenFor: 1, SuccessThreshold: 2, Probes: 1})
			p, err := b.Acquire(t.Context(), core.Call{})
			require.NoError(t, err)
			p.Done(t.Context(), core.Failure)
			require.Equal(t, circuit.HalfOpen, b.State())

			c.call(t, &http.Client{Transport: transport.Guard(b, base)}, address)
			s := b.Stats()
			require.Zero(t, s.ProbesOut, "its place is given back")
			require.Equal(t, c.want == success, s.ProbesSucceeded == 1)
			require.Equal(t, c.want == failure, s.Reopens == 1)
			require.Equal(t, circuit.HalfOpen, s.State)
		})
	}
}

// A timeout of ours for each attempt, further in than the breaker, counts as a
// failure: the caller's context is live.
func TestTimeoutOfAnAttemptIsAFailure(t *testing.T) {
	base, address := serve(t, behave)
	slow := errors.New("attempt timeout")
	attempt := stub(func(req *http.Request) (*http.Response, error) {
		ctx, cancel := context.WithTimeoutCause(req.Context(), 50*time.Millisecond, slow) // real time
		defer cancel()
		return base.RoundTrip(req.WithContext(ctx))
	})
	b := newBreaker(t, circuit.Config{FailureThreshold: 1})
	_, err := transport.Guard(b, attempt).RoundTrip(request(t, "GET", address+"/hangs", nil)) //nolint:bodyclose // an error
	require.Error(t, err)
	require.Equal(t, circuit.Open, b.State())
}

// A server that asks for less counts in the rate of failures, and not as one of
// those in a row.
func TestThrottledCountsInTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, circuit.Config{FailureThreshold: 2, FailurePercent: 80, MinCalls: 10})
		status := 429
		rt := transport.Guard(b, stub(func(req *http.Request) (*http.Response, error) { return respond(status, text("x"))(req) }))
		for range 7 {
			require.NoError(t, get(t, rt, "http://a"))
		}
		require.Zero(t, b.Stats().FailuresInARow)
		require.EqualValues(t, 7, b.Stats().WindowFailures)
		status = 200
		require.NoError(t, get(t, rt, "http://a"))
		require.NoError(t, get(t, rt, "http://a"))
		status = 429
		require.Equal(t, circuit.Closed, b.State(), "7 of 9")
		require.NoError(t, get(t, rt, "http://a"))
		require.Equal(t, circuit.Open, b.State(), "8 of 10")
	})
}

// A refusal is no call: in front of a half-open breaker it takes no probe, and
// behind one it gives the probe back.
func TestRefusalsSpendNoProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, circuit.Config{FailureThreshold: 1, OpenFor: time.Second, SuccessThreshold: 1})
		full, err := limit.NewConcurrency(limit.ConcurrencyConfig{Limit: 1})
		require.NoError(t, err)
		held, err := full.Acquire(t.Context(), core.Call{})
		require.NoError(t, err)
		status := 500
		base := stub(func(req *http.Request) (*http.Response, error) { return respond(status, text("x"))(req) })
		require.NoError(t, get(t, transport.Guard(b, base), "http://a"))
		require.Equal(t, circuit.Open, b.State())
		time.Sleep(time.Second)
		for name, rt := range map[string]http.RoundTripper{
			"in front": transport.Guard(full, transport.Guard(b, base)),
			"behind":   transport.Guard(b, transport.Guard(full, base)),
		} {
			for range 3 {
				body := text("x")
				_, err := rt.RoundTrip(request(t, "POST", "http://a", body)) //nolint:bodyclose // refused
				require.ErrorIs(t, err, limit.ErrFull, name)
				require.Equal(t, 1, body.closed, name)
			}
			s := b.Stats()
			require.Equal(t, circuit.HalfOpen, s.State, name)
			require.Zero(t, s.ProbesOut, name)
			require.EqualValues(t, 1, s.Failures+s.Successes+s.Ignored, "nothing but the failure is booked")
		}
		held.Cancel()
		status = 200
		require.NoError(t, get(t, transport.Guard(full, transport.Guard(b, base)), "http://a"))
		require.Equal(t, circuit.Closed, b.State())
	})
}

// A slow call is one whose headers are late. How long its body lasts says how
// much there is, and a stream without an end would open every breaker.
func TestLongStreamIsNoSlowCall(t *testing.T) {
	for name, c := range map[string]struct {
		headers, body time.Duration
		slow          bool
	}{
		"quick headers, long body":   {0, time.Hour, false},
		"headers just in time":       {time.Second - 1, time.Hour, false},
		"slow headers, no body":      {time.Second, 0, true},
		"slow headers, closed early": {2 * time.Second, -1, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBreaker(t, circuit.Config{FailureThreshold: circuit.Off, SlowCall: time.Second, SlowPercent: 50, MinCalls: 2})
				rt := transport.Guard(b, stub(func(req *http.Request) (*http.Response, error) {
					time.Sleep(c.headers)
					if c.body == 0 {
						return respond(200, http.NoBody)(req)
					}
					return respond(200, &lasting{d: c.body})(req)
				}))
				for range 2 {
					resp, err := rt.RoundTrip(request(t, "GET", "http://a", nil))
					require.NoError(t, err)
					if c.body >= 0 {
						_, err = io.Copy(io.Discard, resp.Body)
						require.NoError(t, err)
					}
					require.NoError(t, resp.Body.Close())
				}
				require.Equal(t, c.slow, b.State() == circuit.Open)
				require.Equal(t, c.slow, b.Stats().Slow == 2)
			})
		})
	}
}

// lasting is a body that takes its time to end.
type lasting struct{ d time.Duration }

func (l *lasting) Read([]byte) (int, error) { time.Sleep(l.d); return 0, io.EOF }
func (l *lasting) Close() error             { return nil }

// A call without an answer takes until its error: a breaker that looks for slow
// calls sees that of a server that accepts and hangs.
func TestCallWithoutAnAnswerIsAsSlowAsItsError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, circuit.Config{FailureThreshold: circuit.Off, SlowCall: time.Second, SlowPercent: 100, MinCalls: 2})
		rt := transport.Guard(b, stub(func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return nil, errors.New("connection reset")
		}))
		for range 2 {
			require.Error(t, get(t, rt, "http://a"))
		}
		require.EqualValues(t, 2, b.Stats().Slow)
		require.Equal(t, circuit.Open, b.State())
	})
}

// An http.Client with a Timeout ends a call in two ways at once: by a deadline and
// by a channel. Which of them the base notices first must not matter.
func TestCallThatWasDoomedIsIgnoredHoweverItsEndIsNoticed(t *testing.T) {
	for name, err := range map[string]error{
		"deadline":     context.DeadlineExceeded,
		"channel":      errors.New("net/http: request canceled"),
		"marked error": core.Mark(errors.New("x"), core.Failure),
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx := lateContext{Context: t.Context(), deadline: time.Now().Add(time.Millisecond)}
			g := newGuard()
			_, got := transport.Guard(g, stub(func(*http.Request) (*http.Response, error) {
				time.Sleep(time.Millisecond)
				return nil, err
			})).RoundTrip(request(t, "GET", "http://a", nil).WithContext(ctx)) //nolint:bodyclose // an error
			require.Equal(t, err, got)
			require.Equal(t, name == "marked error", g.only(t).Outcome == core.Failure, name)
		})
	}
}

// lateContext has a deadline, and is never done.
type lateContext struct {
	context.Context
	deadline time.Time
}

func (c lateContext) Deadline() (time.Time, bool) { return c.deadline, true }

// echoUntilEOF is the server of an upgraded connection that sends each line back,
// and says goodbye when the client has closed its side.
func echoUntilEOF(w http.ResponseWriter, _ *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	_ = rw.Flush()
	for {
		line, err := rw.ReadString('\n')
		if err != nil {
			_, _ = rw.WriteString("goodbye\n")
			_ = rw.Flush()
			return
		}
		_, _ = rw.WriteString("echo " + line)
		_ = rw.Flush()
	}
}

// Through a reverse proxy, with a breaker in half-open on both sides of it: the
// upgrade closes both at the headers, while the connection is open; and closing one
// direction of it reaches the server, which a wrapped body would keep from it.
func TestUpgradeClosesABreakerAndHalfClosesItsConnection(t *testing.T) {
	halfOpen := func() *circuit.Breaker {
		b := newBreaker(t, circuit.Config{FailureThreshold: 1, OpenFor: 1, SuccessThreshold: 1})
		p, err := b.Acquire(t.Context(), core.Call{})
		require.NoError(t, err)
		p.Done(t.Context(), core.Failure)
		require.Equal(t, circuit.HalfOpen, b.State())
		return b
	}
	inner, outer := halfOpen(), halfOpen()
	base, backend := serve(t, echoUntilEOF)
	group, err := circuit.NewGroup(circuit.GroupConfig[transport.Origin]{})
	require.NoError(t, err)
	byHost, err := transport.GuardBy(group, transport.OriginOf, transport.Guard(inner, base))
	require.NoError(t, err)
	target, err := url.Parse(backend)
	require.NoError(t, err)
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: byHost,
	}
	front, address := serve(t, proxy.ServeHTTP)

	req := request(t, "GET", address, nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "websocket")
	resp, err := transport.Guard(outer, front).RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	require.Equal(t, circuit.Closed, inner.State())
	require.Equal(t, circuit.Closed, outer.State())

	conn := resp.Body.(io.ReadWriteCloser)
	back := bufio.NewReader(conn)
	_, err = io.WriteString(conn, "hello\n")
	require.NoError(t, err)
	line, err := back.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "echo hello\n", line)
	require.NoError(t, resp.Body.(interface{ CloseWrite() error }).CloseWrite())
	rest, err := io.ReadAll(back)
	require.NoError(t, err)
	require.Equal(t, "goodbye\n", string(rest))
	require.NoError(t, conn.Close())
	require.EqualValues(t, 1, inner.Stats().Successes)
	require.EqualValues(t, 1, outer.Stats().Successes)
}

// A stream in both directions is a probe that is out until the answer ends, and
// with a breaker alone the request is passed on as it came.
func TestHTTP2StreamIsOneProbe(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.Flush()
		b := make([]byte, 1)
		for {
			if _, err := io.ReadFull(r.Body, b); err != nil {
				return
			}
			_, _ = w.Write(b)
			_ = rc.Flush()
		}
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	breaker := newBreaker(t, circuit.Config{FailureThreshold: 1, OpenFor: 1, SuccessThreshold: 1})
	p, err := breaker.Acquire(t.Context(), core.Call{})
	require.NoError(t, err)
	p.Done(t.Context(), core.Failure)
	client := &http.Client{Transport: transport.Guard(breaker, s.Client().Transport)}
	defer client.CloseIdleConnections()

	r, w := io.Pipe()
	resp, err := client.Do(request(t, "POST", s.URL, r))
	require.NoError(t, err)
	require.Equal(t, "HTTP/2.0", resp.Proto)
	for _, c := range []byte("abc") {
		_, err = w.Write([]byte{c})
		require.NoError(t, err)
		got := make([]byte, 1)
		_, err = io.ReadFull(resp.Body, got)
		require.NoError(t, err)
		require.Equal(t, c, got[0])
		require.Equal(t, 1, breaker.Stats().ProbesOut)
	}
	require.NoError(t, w.Close())
	rest, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Empty(t, rest)
	require.Equal(t, circuit.Closed, breaker.State())
	require.NoError(t, resp.Body.Close())
}

// A request body that is known to be none is passed on as that: another value
// would be sent in chunks.
func TestNoRequestBodyStaysNone(t *testing.T) {
	for name, cfg := range map[string]transport.Config{
		"guard":    {Guard: newGuard()},
		"backends": {Backends: balancer(t, []string{"http://b"})},
	} {
		var got io.ReadCloser
		cfg.Base = stub(func(req *http.Request) (*http.Response, error) {
			got = req.Body
			return respond(200, http.NoBody)(req)
		})
		req := request(t, "POST", "http://a", http.NoBody)
		_, err := newTransport(t, cfg).RoundTrip(req) //nolint:bodyclose // there is none
		require.NoError(t, err)
		require.Equal(t, http.NoBody, got, name)
		require.Equal(t, http.NoBody, req.Body, name)
	}
}

// A request whose body is not of the length that it was said to have fails in
// net/http. An upload from elsewhere that ends too early must not open the breaker.
func TestUploadOfAnotherLengthSaysNothingOfTheServer(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	h2 := s.Client().Transport.(*http.Transport)
	h1 := h2.Clone()
	h1.ForceAttemptHTTP2 = false
	h1.Protocols = &http.Protocols{}
	h1.Protocols.SetHTTP1(true)
	h1.TLSClientConfig.NextProtos = nil
	for name, base := range map[string]*http.Transport{"HTTP/1": h1, "HTTP/2": h2} {
		defer base.CloseIdleConnections()
		for _, length := range []int64{3, 5, 7, -1} {
			g := newGuard()
			body := text("12345")
			req := request(t, "POST", s.URL, body)
			req.ContentLength = length
			resp, err := transport.Guard(g, base).RoundTrip(req)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
			}
			want := core.Success
			if err != nil {
				want = core.Ignored
			}
			require.Equal(t, want, g.only(t).Outcome, "%s %d: %v", name, length, err)
			switch length {
			case 7:
				require.Error(t, err, name)
			case 5, -1:
				require.NoError(t, err, name)
			} // of one that is too long the server can have answered the beginning
		}
	}
	// One that is as long as it should be leaves the blame with the server.
	g := newGuard()
	req := request(t, "POST", "http://a", text("12345"))
	req.ContentLength = 5
	_, err := transport.Guard(g, readAndFail{io.ErrUnexpectedEOF}).RoundTrip(req) //nolint:bodyclose // an error
	require.Error(t, err)
	require.Equal(t, core.Failure, g.only(t).Outcome)
}
