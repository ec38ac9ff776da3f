//go:build unix

package sqlpool

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// After a write that took long, pgx reads in the background, and leaves that
// read on the connection when it becomes idle. A look that waited for it would
// hang until the server speaks.
func TestLookDoesNotWaitForARead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	server, err := l.Accept()
	require.NoError(t, err)
	defer server.Close()

	reading, read := make(chan struct{}), make(chan error, 1)
	go func() {
		close(reading)
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	<-reading
	k := newPeeker(c)
	for range 1000 { // the read has begun in some of them
		require.True(t, k.quiet())
	}
	require.NoError(t, server.Close())
	require.Error(t, <-read)
	require.False(t, k.quiet(), "closed by the server")
}
