package transport

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
)

// outgoing is a request as it is sent, where that differs from the caller's: a
// shallow copy, which shares the headers, since no base modifies them either.
type outgoing struct {
	req  http.Request
	url  url.URL
	body requestBody
}

func copyOf(req *http.Request) *outgoing { return &outgoing{req: *req} }

var (
	errOpaque = errors.New("a request with an opaque URL cannot be sent to another host")
	errNoURL  = errors.New("the request has no URL")
)

// redirect copies req and sends the copy to a backend.
func redirect(req *http.Request, to *url.URL) (*outgoing, error) {
	if problem := checkBackend(to); problem != "" {
		return nil, errors.New("the URL " + problem)
	}
	if req.URL == nil {
		return nil, errNoURL
	}
	if req.URL.Opaque != "" {
		return nil, errOpaque
	}
	o := copyOf(req)
	o.url = *req.URL
	o.url.Scheme, o.url.Host = to.Scheme, to.Host
	o.url.Path = joinPath(to.Path, req.URL.Path)
	if req.URL.RawPath != "" || to.RawPath != "" {
		// Path must be RawPath unescaped, or net/url falls back on it: a prefix
		// that ends in %2F ends in no slash.
		o.url.RawPath = joinPath(to.EscapedPath(), req.URL.EscapedPath())
		o.url.Path, _ = url.PathUnescape(o.url.RawPath) // EscapedPath is always valid
	}
	o.req.URL = &o.url
	if req.Host == req.URL.Host {
		o.req.Host = "" // then the host of the URL is sent
	}
	return o, nil
}

// joinPath puts prefix in front of path with one slash between them, and
// changes neither: "//" and ".." mean what the backend takes them for.
func joinPath(prefix, path string) string {
	if prefix = strings.TrimSuffix(prefix, "/"); prefix == "" || path == "" {
		return prefix + path
	}
	if path[0] != '/' {
		return prefix + "/" + path
	}
	return prefix + path
}

// streams reports whether reading body may fail for reasons of the caller's: a
// body that comes from elsewhere, such as the one that a reverse proxy passes
// on. One that net/http can replay is in memory, and files are left to their
// fast path.
func streams(body io.ReadCloser, replays bool) bool {
	if body == nil || body == http.NoBody || replays {
		return false
	}
	_, file := body.(*os.File)
	return !file
}

// watchBody makes the copy notice when its body cannot be read.
func (o *outgoing) watchBody() *requestBody {
	o.body.base, o.body.length = o.req.Body, o.req.ContentLength
	o.req.Body = &o.body
	return &o.body
}

// requestBody is a request body that remembers whether reading it failed, or gave
// less or more than the request's ContentLength: a call that fails for that says
// nothing of the server. A Read that fails since the base has closed the body does
// not count: the base had given up before. The base may read it after RoundTrip
// has returned.
type requestBody struct {
	base   io.ReadCloser
	length int64 // unknown if it is not above 0
	read   int64 // by one Read at a time
	closed atomic.Bool
	broken atomic.Bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.base.Read(p)
	b.read += int64(n)
	if b.fails(err) && !b.closed.Load() {
		b.broken.Store(true)
	}
	return n, err
}

// fails reports whether a Read that ended with err tells that the body is broken.
func (b *requestBody) fails(err error) bool {
	switch {
	case b.length > 0 && b.read > b.length:
		return true
	case err == io.EOF: //nolint:errorlint // a reader at its end returns io.EOF itself
		return b.length > 0 && b.read < b.length
	}
	return err != nil
}

func (b *requestBody) Close() error {
	b.closed.Store(true) // before the Read that this interrupts returns
	return b.base.Close()
}

// failed is false for a body that is not watched.
func (b *requestBody) failed() bool { return b != nil && b.broken.Load() }
