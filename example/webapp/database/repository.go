package database

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"
)

// repository stands on a loopback port between embedded-postgres and the real
// repository. What it adds: an archive is passed on only if the repository has
// a checksum of it and the archive matches (the library skips the check if
// there is none), the end of a context stops a download, and progress is shown.
//
// The checksum comes from the same place as the archive. It is a check against
// damage; against forgery there is only the repository's TLS.
type repository struct {
	ctx      context.Context
	base     string
	progress io.Writer
	listener net.Listener
	server   *http.Server
	served   chan struct{} // closed when the server's goroutine has ended

	mu  sync.Mutex
	err error // the first failure
}

// serveRepository starts a repository in front of the one at base. Whoever
// starts it closes it.
func serveRepository(ctx context.Context, base string, progress io.Writer) (*repository, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &repository{ctx: ctx, base: strings.TrimSuffix(base, "/"), progress: progress, listener: l, served: make(chan struct{})}
	r.server = &http.Server{Handler: r}
	go func() {
		defer close(r.served)
		_ = r.server.Serve(l) // ends with close
	}()
	return r, nil
}

func (r *repository) url() string { return "http://" + r.listener.Addr().String() }

func (r *repository) close() {
	_ = r.server.Close()
	<-r.served
}

// failure returns why a file was not passed on; nil if all were.
func (r *repository) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// ServeHTTP answers for an archive and for its checksum, the same path with
// .sha256 after it.
func (r *repository) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	file, checksumOnly := strings.CutSuffix(req.URL.Path, ".sha256")
	sum, err := r.checksum(file)
	body := []byte(sum)
	if err == nil && !checksumOnly {
		body, err = r.archive(file, sum)
	}
	if err != nil {
		r.mu.Lock()
		if r.err == nil {
			r.err = err
		}
		r.mu.Unlock()
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	_, _ = w.Write(body)
}

// checksum fetches the checksum of file, as 64 lower-case hexadecimal digits.
func (r *repository) checksum(file string) (string, error) {
	resp, err := r.get(file + ".sha256")
	if err != nil {
		return "", fmt.Errorf("its checksum, without which nothing is used: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil {
		return "", fmt.Errorf("checksum of %s: %w", path.Base(file), err)
	}
	// Some tools write the file's name after the digits.
	sum, _, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	if raw, err := hex.DecodeString(sum); err != nil || len(raw) != sha256.Size {
		return "", fmt.Errorf("checksum of %s: %.80q is no SHA-256", path.Base(file), sum)
	}
	return strings.ToLower(sum), nil
}

// archive fetches file and returns it only if its checksum is sum.
func (r *repository) archive(file, sum string) ([]byte, error) {
	resp, err := r.get(file)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	p := &progress{out: r.progress, total: resp.ContentLength}
	body, err := io.ReadAll(io.TeeReader(resp.Body, p))
	if err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("the download ended early: %w", err)
		}
		return nil, fmt.Errorf("%s: %w", path.Base(file), err)
	}
	p.print()
	if got := sha256.Sum256(body); hex.EncodeToString(got[:]) != sum {
		return nil, fmt.Errorf("%s is damaged and not used: its SHA-256 is %x instead of %s", path.Base(file), got, sum)
	}
	return body, nil
}

func (r *repository) get(file string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(r.ctx, http.MethodGet, r.base+file, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", req.URL.Redacted(), resp.Status)
	}
	return resp, nil
}

// progressInterval is the least time between two lines about one download.
const progressInterval = time.Second

// progress counts what is written to it and prints how much that is.
type progress struct {
	out     io.Writer
	total   int64 // negative if unknown
	done    int64
	printed time.Time
}

// Write counts b. It never fails: a download does not depend on who watches it.
func (p *progress) Write(b []byte) (int, error) {
	p.done += int64(len(b))
	// The last line is print's, when the download is complete.
	if p.done != p.total && time.Since(p.printed) >= progressInterval {
		p.print()
	}
	return len(b), nil
}

func (p *progress) print() {
	p.printed = time.Now()
	done := float64(p.done) / 1e6
	if p.total <= 0 {
		_, _ = fmt.Fprintf(p.out, "fetching PostgreSQL %s: %.1f MB\n", version, done)
		return
	}
	_, _ = fmt.Fprintf(p.out, "fetching PostgreSQL %s: %.1f of %.1f MB (%d %%)\n", version, done, float64(p.total)/1e6, p.done*100/p.total)
}
