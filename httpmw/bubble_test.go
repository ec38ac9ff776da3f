package httpmw

import (
	"bytes"
	"context"
	"log"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// inBubbles runs test in virtual time, against a server of h over HTTP/1.1 and
// over HTTP/2, on connections in memory.
func inBubbles(t *testing.T, h func(t *testing.T) http.Handler, test func(t *testing.T, client *http.Client)) {
	t.Helper()
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test(t, bubble(t, h(t), http2))
			})
		})
	}
}

// bubble is a client of a server of h, for http://bubble. No handler may be
// answered for a second time.
func bubble(t *testing.T, h http.Handler, http2 bool) *http.Client {
	t.Helper()
	var protocols http.Protocols
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	var said bytes.Buffer                                                                   // written under the log's lock, read at the end
	srv := &http.Server{Handler: h, Protocols: &protocols, ErrorLog: log.New(&said, "", 0)} //nolint:gosec // of a test
	l := &memory{accepted: make(chan net.Conn), closed: make(chan struct{})}
	tr := &http.Transport{DialContext: l.dial, Protocols: &protocols, DisableCompression: true}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		_ = srv.Close()
		serving.Wait()
		synctest.Wait()
		require.NotContains(t, said.String(), "superfluous")
		require.NotContains(t, said.String(), "hijacked connection")
	})
	return &http.Client{Transport: tr}
}

// memory is a listener of pipes.
type memory struct {
	accepted chan net.Conn
	closed   chan struct{}
	once     sync.Once
}

func (l *memory) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.accepted <- server:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *memory) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memory) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *memory) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }
