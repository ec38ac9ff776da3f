package transport_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/transport"
)

func TestStatusIsAnOutcomeAndNeverAnError(t *testing.T) {
	for status, want := range map[int]core.Outcome{
		200: core.Success, 201: core.Success, 204: core.Success, 206: core.Success,
		301: core.Success, 304: core.Success,
		400: core.Success, 401: core.Success, 403: core.Success, 404: core.Success, 499: core.Success,
		408: core.Throttled, 429: core.Throttled,
		500: core.Failure, 502: core.Failure, 503: core.Failure, 504: core.Failure, 599: core.Failure,
		501: core.Success,
	} {
		g := newGuard()
		resp, err := transport.Guard(g, respond(status, text("x"))).RoundTrip(request(t, "GET", "http://a", nil))
		require.NoError(t, err, status)
		require.Equal(t, status, resp.StatusCode)
		require.Equal(t, 1, g.out(), "held until the end of the body")
		_, err = io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, want, g.only(t).Outcome, "%d, read to the end", status)

		g = newGuard()
		b := text("x")
		resp, err = transport.Guard(g, respond(status, b)).RoundTrip(request(t, "GET", "http://a", nil))
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, 1, b.closed)
		require.Equal(t, want, g.only(t).Outcome, "%d, closed early", status)
	}
}

func TestOutcomeMayBeTheProgramsOwn(t *testing.T) {
	g := newGuard()
	rt := newTransport(t, transport.Config{
		Base: respond(404, text("")), Guard: g,
		Outcome: func(resp *http.Response) core.Outcome {
			require.Equal(t, 404, resp.StatusCode)
			return core.Failure
		},
	})
	resp, err := rt.RoundTrip(request(t, "GET", "http://a", nil))
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, core.Failure, g.only(t).Outcome)
}

func TestBodyThatFails(t *testing.T) {
	broken := errors.New("connection reset")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx    context.Context
		status int
		err    error
		want   core.Outcome
	}{
		"breaks off":                    {t.Context(), 200, broken, core.Failure},
		"is too short":                  {t.Context(), 200, io.ErrUnexpectedEOF, core.Failure},
		"is cancelled by the caller":    {canceled, 200, context.Canceled, core.Ignored},
		"is cancelled by somebody else": {t.Context(), 200, context.Canceled, core.Failure},
		"is of a failure":               {canceled, 500, context.Canceled, core.Failure},
	} {
		g := newGuard()
		b := reading(io.MultiReader(strings.NewReader("half"), errReader{c.err}))
		resp, err := transport.Guard(g, respond(c.status, b)).RoundTrip(request(t, "GET", "http://a", nil).WithContext(c.ctx))
		require.NoError(t, err)
		got, err := io.ReadAll(resp.Body)
		require.Same(t, c.err, err, name)
		require.Equal(t, "half", string(got))
		require.NoError(t, resp.Body.Close())
		r := g.only(t)
		require.Equal(t, c.want, r.Outcome, name)
		require.Same(t, c.err, r.Err, name)
		require.Equal(t, 1, b.closed)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestErrorOfTheBase(t *testing.T) {
	failed := errors.New("dial: refused")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		err  error
		want core.Outcome
	}{
		"transport error":  {t.Context(), failed, core.Failure},
		"caller went away": {canceled, context.Canceled, core.Ignored},
		"marked":           {t.Context(), core.Mark(failed, core.Throttled), core.Throttled},
	} {
		g := newGuard()
		rt := transport.Guard(g, stub(func(*http.Request) (*http.Response, error) { return nil, c.err }))
		resp, err := rt.RoundTrip(request(t, "GET", "http://a", nil).WithContext(c.ctx))
		require.Nil(t, resp)
		require.Same(t, c.err, err, name)
		require.Equal(t, c.want, g.only(t).Outcome, name)
	}
}

func TestMissedDeadlineIsAFailureUnlessTheCallWasDoomed(t *testing.T) {
	for left, want := range map[time.Duration]core.Outcome{
		time.Second:          core.Failure,
		time.Millisecond / 2: core.Ignored,
	} {
		synctest.Test(t, func(t *testing.T) {
			hang := stub(func(req *http.Request) (*http.Response, error) {
				<-req.Context().Done()
				return nil, req.Context().Err()
			})
			g := newGuard()
			ctx, cancel := context.WithTimeout(t.Context(), left)
			defer cancel()
			_, err := transport.Guard(g, hang).RoundTrip(request(t, "GET", "http://a", nil).WithContext(ctx))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, want, g.only(t).Outcome)
		})
	}
}

func TestLatencyIsTheTimeToTheHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard()
		b := text("x")
		rt := transport.Guard(g, stub(func(req *http.Request) (*http.Response, error) {
			time.Sleep(3 * time.Second)
			return respond(200, b)(req)
		}))
		resp, err := rt.RoundTrip(request(t, "GET", "http://a", nil))
		require.NoError(t, err)
		time.Sleep(time.Hour)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, 3*time.Second, g.only(t).Latency)
	})
}

func TestRefusalIsTheRejectionAndClosesTheRequestBody(t *testing.T) {
	refused := rejection()
	g := newGuard()
	g.refusal = refused
	base := stub(func(*http.Request) (*http.Response, error) { panic("sent") })
	none, err := balance.New(balance.Config[*url.URL]{AllowEmpty: true})
	require.NoError(t, err)
	outer := newGuard()

	for name, c := range map[string]struct {
		cfg  transport.Config
		want error
	}{
		"the guard":           {transport.Config{Base: base, Guard: g}, errRefused},
		"no backend":          {transport.Config{Base: base, Guard: outer, Backends: none}, balance.ErrNoBackend},
		"the backend's guard": {transport.Config{Base: base, Backends: balancer(t, []string{"http://b"}, g)}, balance.ErrNoneHealthy},
	} {
		b := text("payload")
		resp, err := newTransport(t, c.cfg).RoundTrip(request(t, "POST", "http://a", b))
		require.Nil(t, resp)
		require.IsType(t, refused, err, name)
		require.ErrorIs(t, err, c.want, name)
		require.Equal(t, 1, b.closed, name)

		b = text("payload")
		client := &http.Client{Transport: newTransport(t, c.cfg)}
		_, err = client.Do(request(t, "POST", "http://a", b)) //nolint:bodyclose // refused
		require.ErrorIs(t, err, c.want, "through http.Client")
		_, ok := errors.AsType[*core.Rejection](err)
		require.True(t, ok)
		require.Equal(t, 1, b.closed, name)
	}
	require.Zero(t, outer.out())
	require.Equal(t, 2, outer.cancelled, "the outer guard is not charged")
}

func TestRefusalFurtherInIsACallThatNeverStarted(t *testing.T) {
	inner, outer, of := newGuard(), newGuard(), newGuard()
	inner.refusal = rejection()
	rt := newTransport(t, transport.Config{
		Guard: outer, Backends: balancer(t, []string{"http://b"}, of),
		Base: transport.Guard(inner, respond(200, text(""))),
	})
	_, err := rt.RoundTrip(request(t, "GET", "http://a", nil))
	require.ErrorIs(t, err, errRefused)
	outer.onlyCancelled(t)
	of.onlyCancelled(t)
}

func TestMarkOfARefusalOutranksIt(t *testing.T) {
	g := newGuard()
	b := balancer(t, []string{"http://b"})
	rt := newTransport(t, transport.Config{Guard: g, Backends: b, Base: stub(func(*http.Request) (*http.Response, error) {
		return nil, core.Mark(rejection(), core.Failure) // after attempts that failed
	})})
	_, err := rt.RoundTrip(request(t, "GET", "http://a", nil)) //nolint:bodyclose // an error
	require.ErrorIs(t, err, errRefused)
	require.Equal(t, core.Failure, g.only(t).Outcome)
	require.EqualValues(t, 1, b.Stats().Backends[0].Failures)
}

func TestRequestIsNotModifiedAndItsBodyIsSent(t *testing.T) {
	var got []string
	base, address := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = append(got, r.Method+" "+r.URL.String()+" "+string(b))
	})
	rt := newTransport(t, transport.Config{Base: base, Guard: newGuard(), Backends: balancer(t, []string{address})})
	req := request(t, "POST", "http://logical/a%2Fb?q=1", strings.NewReader("payload"))
	req.Header.Set("X-A", "1")
	body, before, header := req.Body, *req, req.Header.Clone()
	beforeURL := *req.URL
	resp, err := rt.RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, []string{"POST /a%2Fb?q=1 payload"}, got)

	require.Equal(t, beforeURL, *req.URL)
	require.Equal(t, header, req.Header)
	require.Equal(t, body, req.Body)
	was, is := reflect.ValueOf(before), reflect.ValueOf(*req) //nolint:govet // fields are only compared
	for i := range was.NumField() {
		if f := was.Field(i); f.Comparable() {
			require.True(t, f.Equal(is.Field(i)), was.Type().Field(i).Name)
		}
	}
}

// A client of a reverse proxy that breaks off its upload must not open the
// breaker of the backend.
func TestUploadThatBreaksOffSaysNothingOfTheServer(t *testing.T) {
	base, address := serve(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	broken := errors.New("client disconnected")
	for _, cfg := range []transport.Config{
		{Base: base},
		{Base: base, Backends: balancer(t, []string{address})},
	} {
		g := newGuard()
		cfg.Guard = g
		upload := reading(io.MultiReader(strings.NewReader("half"), errReader{broken}))
		req := request(t, "POST", address, upload)
		before := req.Body
		_, err := newTransport(t, cfg).RoundTrip(req) //nolint:bodyclose // an error
		require.ErrorIs(t, err, broken)
		require.Equal(t, core.Ignored, g.only(t).Outcome)
		require.Same(t, before, req.Body, "the request is not modified")
	}

	// One that is whole leaves the blame with the server.
	g := newGuard()
	rt := transport.Guard(g, readAndFail{broken})
	_, err := rt.RoundTrip(request(t, "POST", address, text("whole"))) //nolint:bodyclose // an error
	require.ErrorIs(t, err, broken)
	require.Equal(t, core.Failure, g.only(t).Outcome)
}

// readAndFail reads the request to its end, and fails.
type readAndFail struct{ err error }

func (f readAndFail) RoundTrip(req *http.Request) (*http.Response, error) {
	_, _ = io.Copy(io.Discard, req.Body)
	_ = req.Body.Close()
	return nil, f.err
}

// A body that cannot fail is passed on as it is, since net/http sends what it
// knows to be in memory in one piece with the headers.
func TestRequestBodyIsWatchedOnlyIfItStreams(t *testing.T) {
	file, err := os.Open("transport.go")
	require.NoError(t, err)
	for name, c := range map[string]struct {
		body    io.Reader
		wants   core.Wants
		watched bool
	}{
		"in memory":    {strings.NewReader("x"), core.WantsResult, false},
		"none":         {nil, core.WantsResult, false},
		"file":         {file, core.WantsResult, false},
		"stream":       {text("x"), core.WantsResult, true},
		"nobody wants": {text("x"), core.WantsEnd, false},
	} {
		g := newGuard()
		g.wants = c.wants
		req := request(t, "POST", "http://a", c.body)
		rt := transport.Guard(g, stub(func(got *http.Request) (*http.Response, error) {
			require.Equal(t, c.watched, got != req, name)
			return respond(200, http.NoBody)(got)
		}))
		_, err := rt.RoundTrip(req) //nolint:bodyclose // there is none
		require.NoError(t, err)
	}
}

func TestSharedHeaderIsOnlyRead(t *testing.T) {
	base, address := serve(t, func(http.ResponseWriter, *http.Request) {})
	rt := newTransport(t, transport.Config{Base: base, Guard: newGuard(), Backends: balancer(t, []string{address})})
	header := http.Header{"X-A": {"1"}}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				req, err := http.NewRequestWithContext(t.Context(), "GET", "http://logical/", nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header = header
				resp, err := rt.RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				_ = resp.Body.Close()
			}
		})
	}
	wg.Wait()
	require.Equal(t, http.Header{"X-A": {"1"}}, header)
}

func TestBaseThatBreaksTheContract(t *testing.T) {
	get := func(method string, resp *http.Response, err error) (*http.Response, *fakeGuard, error) {
		g := newGuard()
		rt := transport.Guard(g, stub(func(*http.Request) (*http.Response, error) { return resp, err }))
		got, err := rt.RoundTrip(request(t, method, "http://a", nil))
		return got, g, err
	}
	resp, g, err := get("GET", nil, nil)
	require.Nil(t, resp)
	require.EqualError(t, err, "transport: the base returned neither a response nor an error")
	require.Equal(t, core.Failure, g.only(t).Outcome)

	resp, g, err = get("GET", &http.Response{StatusCode: 200}, nil)
	require.NoError(t, err)
	require.Equal(t, http.NoBody, resp.Body)
	require.Equal(t, core.Success, g.only(t).Outcome)

	resp, g, err = get("HEAD", &http.Response{StatusCode: 200, ContentLength: 5}, nil)
	require.NoError(t, err)
	require.Equal(t, http.NoBody, resp.Body)
	require.Equal(t, core.Success, g.only(t).Outcome)

	resp, g, err = get("GET", &http.Response{StatusCode: 200, ContentLength: 5}, nil)
	require.Nil(t, resp)
	require.EqualError(t, err, "transport: the base returned a response with a length and no body")
	require.Equal(t, core.Failure, g.only(t).Outcome)

	failed, b := errors.New("failed"), text("")
	resp, g, err = get("GET", &http.Response{StatusCode: 200, Body: b}, failed)
	require.Nil(t, resp)
	require.Same(t, failed, err)
	require.Equal(t, 1, b.closed)
	require.Equal(t, core.Failure, g.only(t).Outcome)
}

func TestPanicAndGoexitLeaveNothingHeld(t *testing.T) {
	panics := stub(func(*http.Request) (*http.Response, error) { panic("base") })
	exits := stub(func(*http.Request) (*http.Response, error) { runtime.Goexit(); return nil, nil })
	open := text("")
	for name, cfg := range map[string]transport.Config{
		"base panics":    {Base: panics},
		"base exits":     {Base: exits},
		"outcome panics": {Base: respond(200, open), Outcome: func(*http.Response) core.Outcome { panic("outcome") }},
	} {
		outer, of := newGuard(), newGuard()
		cfg.Guard, cfg.Backends = outer, balancer(t, []string{"http://b"}, of)
		rt := newTransport(t, cfg)
		var value any
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer func() { value = recover() }()
			_, _ = rt.RoundTrip(request(t, "GET", "http://a", nil)) //nolint:bodyclose // there is none
		}()
		<-done
		if name == "base panics" {
			require.Equal(t, "base", value, "the panic goes on as it was")
		}
		for _, g := range []*fakeGuard{outer, of} {
			r := g.only(t)
			require.Equal(t, core.Failure, r.Outcome, name)
			require.ErrorIs(t, r.Err, core.ErrNoReturn)
		}
		require.Zero(t, cfg.Backends.Stats().Backends[0].InFlight)
	}
	require.Equal(t, 1, open.closed, "the response that nobody gets is closed")
}

func TestPanicOfTheGuardClosesTheRequestBody(t *testing.T) {
	b := text("")
	require.Panics(t, func() {
		_, _ = transport.Guard(panicGuard{}, nil).RoundTrip(request(t, "POST", "http://a", b)) //nolint:bodyclose // there is none
	})
	require.Equal(t, 1, b.closed)
}

type panicGuard struct{}

func (panicGuard) Acquire(context.Context, core.Call) (core.Permit, error) { panic("guard") }

func TestBodyIsWrappedOnlyForWhatWaitsForItsEnd(t *testing.T) {
	for wants, wrapped := range map[core.Wants]bool{
		core.WantsNothing: false, core.WantsEnd: true, core.WantsResult: true,
	} {
		g, b := newGuard(), text("x")
		g.wants = wants
		resp, err := transport.Guard(g, respond(200, b)).RoundTrip(request(t, "GET", "http://a", nil))
		require.NoError(t, err)
		require.Equal(t, wrapped, resp.Body != io.ReadCloser(b))
		require.Equal(t, wrapped, g.out() == 1)
		require.NoError(t, resp.Body.Close())
		r := g.only(t)
		require.Equal(t, wants == core.WantsResult, r.Outcome == core.Success)
	}
	for name, c := range map[string]struct {
		status int
		body   io.ReadCloser
	}{
		"no body":  {200, http.NoBody},
		"upgraded": {101, struct{ io.ReadWriteCloser }{}},
	} {
		g := newGuard()
		resp, err := transport.Guard(g, respond(c.status, c.body)).RoundTrip(request(t, "GET", "http://a", nil))
		require.NoError(t, err)
		require.Equal(t, c.body, resp.Body, name)
		require.Equal(t, core.Success, g.only(t).Outcome, name)
	}
	b := text("x")
	resp, err := transport.Guard(nil, respond(200, b)).RoundTrip(request(t, "GET", "http://a", nil))
	require.NoError(t, err)
	require.Same(t, b, resp.Body, "no guard, no wrapper")
	require.NoError(t, resp.Body.Close())
}

// writerToBody is a body with a WriteTo.
type writerToBody struct {
	closable
	fail error
}

func (b *writerToBody) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, "whole")
	if err == nil {
		err = b.fail
	}
	return int64(n), err
}

func TestWriterToIsKeptWherePresent(t *testing.T) {
	broken := errors.New("connection reset")
	for name, c := range map[string]struct {
		fail error
		w    io.Writer
		err  error
		want core.Outcome
		end  bool
	}{
		"whole":        {nil, &strings.Builder{}, nil, core.Success, true},
		"breaks off":   {broken, &strings.Builder{}, broken, core.Failure, true},
		"writer fails": {nil, errWriter{}, io.ErrClosedPipe, core.Success, false},
	} {
		g := newGuard()
		rt := transport.Guard(g, respond(200, &writerToBody{fail: c.fail}))
		resp, err := rt.RoundTrip(request(t, "GET", "http://a", nil))
		require.NoError(t, err)
		_, ok := resp.Body.(io.WriterTo)
		require.True(t, ok)
		_, err = io.Copy(c.w, resp.Body)
		require.Equal(t, c.err, err, name)
		require.Equal(t, c.end, g.out() == 0, name)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, c.want, g.only(t).Outcome, name)
	}
	resp, err := transport.Guard(newGuard(), respond(200, text(""))).RoundTrip(request(t, "GET", "http://a", nil))
	require.NoError(t, err)
	_, ok := resp.Body.(io.WriterTo)
	require.False(t, ok)
	require.NoError(t, resp.Body.Close())
}

type errWriter struct{}

func (errWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// closingBody is a body whose Close lets everybody else run before it returns.
type closingBody struct{ *io.PipeReader }

func (b closingBody) Close() error {
	defer synctest.Wait()
	return b.PipeReader.Close()
}

// A Close that interrupts a Read must not be taken for a broken stream.
func TestCloseInterruptsARead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		defer w.Close()
		g := newGuard()
		resp, err := transport.Guard(g, respond(200, closingBody{r})).RoundTrip(request(t, "GET", "http://a", nil))
		require.NoError(t, err)
		read := make(chan error)
		go func() {
			_, err := resp.Body.Read(make([]byte, 1))
			read <- err
		}()
		synctest.Wait()
		require.NoError(t, resp.Body.Close())
		require.ErrorIs(t, <-read, io.ErrClosedPipe)
		require.NoError(t, resp.Body.Close(), "twice")
		require.Equal(t, core.Success, g.only(t).Outcome)
	})
}

// finishing is a guard whose permits run a function when they are finished.
type finishing func()

func (f finishing) Acquire(context.Context, core.Call) (core.Permit, error) {
	return core.NewPermit(f, core.Token{}, core.WantsResult), nil
}
func (f finishing) FinishPermit(context.Context, core.Token, core.Result) { f() }
func (f finishing) CancelPermit(core.Token)                               { f() }

func TestGuardThatDoesNotReturnLeavesTheOthersFinished(t *testing.T) {
	for name, c := range map[string]struct {
		base http.RoundTripper
		fn   finishing
	}{
		"panic, finished":  {respond(200, text("")), func() { panic("guard") }},
		"exit, finished":   {respond(200, text("")), runtime.Goexit},
		"panic, cancelled": {stub(func(*http.Request) (*http.Response, error) { return nil, rejection() }), func() { panic("guard") }},
	} {
		outer := newGuard()
		b := balancer(t, []string{"http://b"}, c.fn)
		rt := newTransport(t, transport.Config{Base: c.base, Guard: outer, Backends: b})
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer func() { _ = recover() }()
			resp, err := rt.RoundTrip(request(t, "GET", "http://a", nil))
			if err == nil {
				_ = resp.Body.Close()
			}
		}()
		<-done
		require.Zero(t, outer.out(), name)
		require.Equal(t, strings.HasSuffix(name, "cancelled"), outer.cancelled == 1, name)
		require.Zero(t, b.Stats().Backends[0].InFlight, name)
	}
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now().UTC()
		for header, want := range map[string]time.Duration{
			"":                                   0,
			"2":                                  2 * time.Second,
			" 2 ":                                2 * time.Second,
			"0":                                  0,
			"-2":                                 0,
			"+2":                                 0,
			"1.5":                                0,
			"soon":                               0,
			"86400":                              24 * time.Hour,
			"9223372036":                         9223372036 * time.Second,
			"9223372037":                         1<<63 - 1,
			"9223372036854775807":                1<<63 - 1,
			"99999999999999999999999":            1<<63 - 1,
			now.Add(2e9).Format(http.TimeFormat): 2 * time.Second,
			now.Add(2e9).Format(time.ANSIC):      2 * time.Second,
			now.Add(2e9).Format("Monday, 02-Jan-06 15:04:05 GMT"): 2 * time.Second,
			now.Add(-time.Hour).Format(http.TimeFormat):           0,
			"Mon, 99 Foo 2026 00:00:00 GMT":                       0,
		} {
			for _, status := range []int{429, 503, 200} {
				g := newGuard()
				rt := transport.Guard(g, stub(func(req *http.Request) (*http.Response, error) {
					resp, err := respond(status, http.NoBody)(req)
					resp.Header["Retry-After"] = []string{header, "77"}
					return resp, err
				}))
				_, err := rt.RoundTrip(request(t, "GET", "http://a", nil)) //nolint:bodyclose // there is none
				require.NoError(t, err)
				if status == 200 {
					want = 0
				}
				require.Equal(t, want, g.only(t).RetryAfter, "%d %q", status, header)
			}
		}
	})
}

type idler struct {
	stub
	closed int
}

func (i *idler) CloseIdleConnections() { i.closed++ }

func TestCloseIdleConnectionsReachesTheBase(t *testing.T) {
	base := &idler{}
	client := &http.Client{Transport: transport.Guard(nil, transport.Guard(newGuard(), base))}
	client.CloseIdleConnections()
	require.Equal(t, 1, base.closed)
	transport.Guard(nil, respond(200, nil)).CloseIdleConnections() // without the method: nothing
}

// A probe of a half-open breaker whose response body nobody closes gives its
// place back when its lease is over.
func TestForgottenCloseDoesNotHoldABreakerHalfOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		breaker, err := circuit.New(circuit.Config{FailureThreshold: 1, Probes: 1, SuccessThreshold: 1, OpenFor: time.Second, ProbeLease: time.Minute})
		require.NoError(t, err)
		status := 500
		rt := transport.Guard(breaker, stub(func(req *http.Request) (*http.Response, error) { return respond(status, text("x"))(req) }))
		send := func() (*http.Response, error) { return rt.RoundTrip(request(t, "GET", "http://a", nil)) }

		resp, err := send()
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		_, err = send() //nolint:bodyclose // refused
		require.ErrorIs(t, err, circuit.ErrOpen)

		status = 200
		time.Sleep(time.Second)
		forgotten, err := send()
		require.NoError(t, err)
		_, err = send() //nolint:bodyclose // refused
		require.Error(t, err)
		time.Sleep(time.Minute)
		resp, err = send()
		require.NoError(t, err, "the lease is over")
		require.NoError(t, resp.Body.Close())
		require.Equal(t, circuit.Closed, breaker.State())
		require.NoError(t, forgotten.Body.Close()) // late, and without effect
		require.Equal(t, circuit.Closed, breaker.State())
	})
}
