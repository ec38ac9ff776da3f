package database

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
	"github.com/stretchr/testify/require"
)

// fileServer is a repository that has one archive, for whatever system. A test
// may change any of its fields before the first request.
type fileServer struct {
	*httptest.Server
	archive  http.HandlerFunc
	checksum http.HandlerFunc

	mu   sync.Mutex
	seen []string // the extensions of the paths requested
}

func newFileServer(t *testing.T, archive []byte) *fileServer {
	s := &fileServer{
		archive:  serve(string(archive)),
		checksum: serve(fmt.Sprintf("%x", sha256.Sum256(archive))),
	}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *fileServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ext := path.Ext(r.URL.Path)
	s.mu.Lock()
	s.seen = append(s.seen, ext)
	s.mu.Unlock()
	switch ext {
	case ".jar":
		s.archive(w, r)
	case ".sha256":
		s.checksum(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (s *fileServer) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

func serve(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = io.WriteString(w, body)
	}
}

// TestFetchRefused has the downloads that must not be used. After each, nothing
// is in the cache and nothing in the temporary folder.
func TestFetchRefused(t *testing.T) {
	archive := jar(t, entry{name: "bin/pg_ctl", content: make([]byte, 1<<20)})
	for _, c := range []struct {
		name   string
		damage func(*fileServer)
		want   string
	}{
		{"wrong checksum", func(s *fileServer) {
			s.checksum = serve(strings.Repeat("ab", sha256.Size))
		}, "is damaged and not used"},
		{"changed archive", func(s *fileServer) {
			s.archive = serve(string(archive[:len(archive)-1]) + "x")
		}, "is damaged and not used"},
		{"no checksum", func(s *fileServer) {
			s.checksum = http.NotFound
		}, ".sha256: 404 Not Found"},
		{"empty checksum", func(s *fileServer) {
			s.checksum = serve("")
		}, "is no SHA-256"},
		{"a page instead of a checksum", func(s *fileServer) {
			s.checksum = serve("<html>\n<body>please log in</body>\n</html>")
		}, "is no SHA-256"},
		{"no archive", func(s *fileServer) {
			s.archive = http.NotFound
		}, ".jar: 404 Not Found"},
		{"truncated download", func(s *fileServer) {
			s.archive = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", strconv.Itoa(len(archive)))
				_, _ = w.Write(archive[:len(archive)/2])
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
		}, "the download ended early"},
		{"server down", func(s *fileServer) { s.Close() }, "its checksum, without which nothing is used: Get"},
		{"no archive in the archive", func(s *fileServer) {
			s.archive = serve("not a zip file")
			s.checksum = serve(fmt.Sprintf("%x", sha256.Sum256([]byte("not a zip file"))))
		}, "not a valid zip file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFileServer(t, archive)
			c.damage(s)
			cache, temp := t.TempDir(), t.TempDir()
			t.Setenv("TMPDIR", temp)
			o := opener{find: notInstalled, Options: Options{Repository: s.URL, CacheDir: cache}}
			_, err := o.open(t.Context())
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "\n")
			requireEmpty(t, cache)
			requireEmpty(t, temp)
		})
	}
}

// TestFetchBroken has an archive whose checksum is right and whose programs do
// not run.
func TestFetchBroken(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the programs are shell scripts")
	}
	script := []byte("#!/bin/sh\necho wrong machine\necho no luck\nexit 1\n")
	s := newFileServer(t, jar(t, entry{name: "bin/initdb", content: script}, entry{name: "bin/pg_ctl", content: script}))
	cache, temp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temp)
	o := opener{find: notInstalled, Options: Options{Repository: s.URL, CacheDir: cache}}
	_, err := o.open(t.Context())
	require.ErrorContains(t, err, "wrong machine; no luck")
	require.NotContains(t, err.Error(), "\n")
	requireEmpty(t, cache)
	requireEmpty(t, temp)
}

func TestFetchCancelled(t *testing.T) {
	archive := jar(t, entry{name: "bin/pg_ctl", content: make([]byte, 1<<20)})
	s := newFileServer(t, archive)
	aborted := make(chan struct{})
	s.archive = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(archive)))
		_, _ = w.Write(archive[:len(archive)/2])
		w.(http.Flusher).Flush()
		<-r.Context().Done() // the client has gone
		close(aborted)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cache, temp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temp)
	o := opener{find: notInstalled, Options: Options{
		Repository: s.URL,
		CacheDir:   cache,
		Progress:   writerFunc(func([]byte) { cancel() }), // in the middle of the download
	}}
	_, err := o.open(ctx)
	require.ErrorIs(t, err, context.Canceled)
	<-aborted
	requireEmpty(t, cache)
	requireEmpty(t, temp)
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) {
	f(b)
	return len(b), nil
}

// TestChecksumForms has the ways in which a right checksum may be written.
func TestChecksumForms(t *testing.T) {
	archive := []byte("an archive")
	sum := fmt.Sprintf("%x", sha256.Sum256(archive))
	for _, text := range []string{sum, sum + "\n", strings.ToUpper(sum), sum + "  some.jar\n"} {
		s := newFileServer(t, archive)
		s.checksum = serve(text)
		r, err := serveRepository(t.Context(), s.URL+"/", io.Discard)
		require.NoError(t, err)
		for file, want := range map[string]string{"/some.jar": string(archive), "/some.jar.sha256": sum} {
			resp, err := http.Get(r.url() + file)
			require.NoError(t, err)
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, want, string(body))
		}
		require.NoError(t, r.failure())
		r.close()
	}
}

func TestProgressLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := &progress{out: &out, total: 30e6}
		for range 300 { // 30 MB in 3 s
			_, _ = p.Write(make([]byte, 1e5))
			time.Sleep(10 * time.Millisecond)
		}
		p.print()
		require.Equal(t, strings.ReplaceAll(`fetching PostgreSQL V: 0.1 of 30.0 MB (0 %)
fetching PostgreSQL V: 10.1 of 30.0 MB (33 %)
fetching PostgreSQL V: 20.1 of 30.0 MB (67 %)
fetching PostgreSQL V: 30.0 of 30.0 MB (100 %)
`, "V", string(version)), out.String())
	})
}

func TestProgressUnknownSize(t *testing.T) {
	var out bytes.Buffer
	p := &progress{out: &out, total: -1}
	_, _ = p.Write(make([]byte, 2.5e6))
	require.Equal(t, "fetching PostgreSQL "+string(version)+": 2.5 MB\n", out.String())
}

// TestLibraryInternals fails if a new version of the library keeps what is read
// out of it elsewhere.
func TestLibraryInternals(t *testing.T) {
	u, err := url.Parse(defaultRepository(embeddedpostgres.DefaultConfig()))
	require.NoError(t, err)
	require.Equal(t, "https", u.Scheme)
	require.NotEmpty(t, u.Host)

	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	t.Setenv("TMP", temp)
	port, err := freePort()
	require.NoError(t, err)
	library := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Port(port).RuntimePath(t.TempDir()).CachePath(t.TempDir()).BinaryRepositoryURL("http://127.0.0.1:0"))
	removeLog(library) // there is none yet
	require.Error(t, library.Start())
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	require.Len(t, left, 1)
	removeLog(library)
	requireEmpty(t, temp)
}
