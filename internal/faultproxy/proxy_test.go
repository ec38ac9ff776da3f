package faultproxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// silence is how long a test waits for what must not come, and patience for what
// must.
// real time: sockets
const (
	silence  = 50 * time.Millisecond
	patience = 10 * time.Second
)

// echo is a server that answers each line with itself. It remembers how its
// connections ended.
type echo struct {
	l     net.Listener
	lines chan string
	ends  chan error
	wg    sync.WaitGroup
}

func startEcho(t *testing.T, network, addr string) *echo {
	t.Helper()
	l, err := net.Listen(network, addr)
	require.NoError(t, err)
	e := &echo{l: l, lines: make(chan string, 1000), ends: make(chan error, 1000)}
	e.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			e.wg.Go(func() { e.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		e.wg.Wait()
	})
	return e
}

func (e *echo) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err == nil {
			e.lines <- line
			_, err = c.Write([]byte(line))
		}
		if err != nil {
			e.ends <- err
			return
		}
	}
}

func startProxy(t *testing.T) (*Proxy, *echo) {
	t.Helper()
	e := startEcho(t, "tcp", "127.0.0.1:0")
	p, err := Start(e.l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) }) // before the server's end
	return p, e
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

func say(t *testing.T, c net.Conn, line string) {
	t.Helper()
	_, err := io.WriteString(c, line+"\n")
	require.NoError(t, err)
}

func hear(t *testing.T, c net.Conn, line string) {
	t.Helper()
	b := make([]byte, len(line)+1)
	_, err := io.ReadFull(c, b)
	require.NoError(t, err)
	require.Equal(t, line+"\n", string(b))
}

func ask(t *testing.T, c net.Conn, line string) {
	t.Helper()
	say(t, c, line)
	hear(t, c, line)
}

// hearNothing shows that c stays open and silent for a while.
func hearNothing(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(silence)))
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
}

func hearReset(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := c.Read(make([]byte, 1))
	require.Error(t, err)
	if runtime.GOOS != "windows" {
		require.ErrorIs(t, err, syscall.ECONNRESET)
	}
}

// dialReset shows that a connection is reset. The dial itself may learn it.
func dialReset(t *testing.T, p *Proxy) {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		return
	}
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	hearReset(t, c)
	require.NoError(t, c.Close())
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, patience, time.Millisecond)
}

func TestPass(t *testing.T) {
	p, e := startProxy(t)
	a, b := dial(t, p), dial(t, p)
	ask(t, a, "one")
	ask(t, b, "two")
	ask(t, a, strings.Repeat("x", 200<<10))
	require.Equal(t, Stats{Accepted: 2, Open: 2, MostOpen: 2}, p.Stats())
	require.NoError(t, a.Close())
	require.ErrorIs(t, <-e.ends, io.EOF, "a clean end is passed on")
	eventually(t, func() bool { return p.Stats().Open == 1 })
	require.Equal(t, Stats{Accepted: 2, Open: 1, MostOpen: 2}, p.Stats())
}

// A client may end its own direction and still read.
func TestHalfClose(t *testing.T) {
	p, _ := startProxy(t)
	c := dial(t, p)
	say(t, c, "last")
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	hear(t, c, "last")
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

func TestUnixUpstream(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("paths begin with a drive")
	}
	path := filepath.Join(t.TempDir(), "s")
	startEcho(t, "unix", path)
	p, err := Start(path)
	require.NoError(t, err)
	defer p.Close()
	c := dial(t, p)
	ask(t, c, "one")
	p.Cut()
	hearReset(t, c)
}

func TestRefuse(t *testing.T) {
	p, _ := startProxy(t)
	c := dial(t, p)
	ask(t, c, "one")
	for range 3 {
		p.Refuse()
		p.Refuse()
		_, err := net.Dial("tcp", p.Addr())
		require.Error(t, err)
		if runtime.GOOS != "windows" {
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
		}
		ask(t, c, "two")
		require.NoError(t, p.Pass())
		ask(t, dial(t, p), "three")
	}
	require.Equal(t, 4, p.Stats().Accepted, "the refused are not counted")

	p.Refuse()
	thief, err := net.Listen("tcp4", p.Addr())
	require.NoError(t, err)
	require.Error(t, p.Pass())
	require.NoError(t, thief.Close())
	require.NoError(t, p.Pass())
}

func TestReset(t *testing.T) {
	p, _ := startProxy(t)
	c := dial(t, p)
	ask(t, c, "one")
	p.Refuse()
	require.NoError(t, p.Reset())
	for range 5 {
		dialReset(t, p)
	}
	ask(t, c, "two")
	eventually(t, func() bool { return p.Stats().Accepted == 6 })
	require.Equal(t, 1, p.Stats().MostOpen)
}

func TestServerThatIsGoneIsAReset(t *testing.T) {
	p, e := startProxy(t)
	require.NoError(t, e.l.Close())
	dialReset(t, p)
	eventually(t, func() bool { return p.Stats().Open == 0 })
}

func TestSilence(t *testing.T) {
	p, e := startProxy(t)
	c := dial(t, p)
	ask(t, c, "one")
	<-e.lines
	require.NoError(t, p.Silence())
	late := dial(t, p)
	say(t, late, "hello")
	hearNothing(t, late)
	require.Empty(t, e.lines)
	ask(t, c, "two")
	require.NoError(t, p.Pass())
	hear(t, late, "hello")
}

func TestFreeze(t *testing.T) {
	p, e := startProxy(t)
	c, leaver := dial(t, p), dial(t, p)
	ask(t, c, "one")
	ask(t, leaver, "one")
	<-e.lines
	<-e.lines
	p.Freeze()
	p.Freeze()
	say(t, c, "two")
	hearNothing(t, c)
	require.NoError(t, leaver.Close())
	require.Empty(t, e.lines)
	require.Empty(t, e.ends, "the server does not learn that a client left")
	ask(t, dial(t, p), "a new connection passes")
	<-e.lines
	require.NoError(t, p.Pass())
	hear(t, c, "two")
	require.Error(t, <-e.ends)
	p.Freeze()
	say(t, c, "three")
	p.Cut()
	hearReset(t, c)
}

// The server's words do not come through either, nor its end.
func TestFreezeHoldsTheServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	p, err := Start(l.Addr().String())
	require.NoError(t, err)
	defer p.Close()
	c := dial(t, p)
	server, err := l.Accept()
	require.NoError(t, err)
	p.Freeze()
	say(t, server, "bye")
	require.NoError(t, server.Close())
	hearNothing(t, c)
	require.NoError(t, p.Pass())
	hear(t, c, "bye")
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

func TestCut(t *testing.T) {
	p, e := startProxy(t)
	c := dial(t, p)
	ask(t, c, "one")
	p.Cut()
	hearReset(t, c)
	require.Error(t, <-e.ends)
	ask(t, dial(t, p), "two")
}

func TestDelays(t *testing.T) {
	const delay = 60 * time.Millisecond
	p, _ := startProxy(t)
	c := dial(t, p)
	ask(t, c, "one")
	p.DelayDials(delay)
	start := time.Now()
	ask(t, dial(t, p), "two")
	require.GreaterOrEqual(t, time.Since(start), delay)
	p.DelayDials(0)
	p.Delay(delay)
	start = time.Now()
	ask(t, c, "three")
	require.GreaterOrEqual(t, time.Since(start), 2*delay, "there and back")

	// Whoever waits does not hold up Cut and Close.
	p.Delay(time.Hour)
	p.DelayDials(time.Hour)
	say(t, c, "four")
	late := dial(t, p)
	eventually(t, func() bool { return p.Stats().Open == 3 })
	p.Cut()
	hearReset(t, c)
	hearReset(t, late)
	eventually(t, func() bool { return p.Stats().Open == 0 })
}

func TestIntercept(t *testing.T) {
	p, e := startProxy(t)
	c := dial(t, p)
	var mu sync.Mutex
	var seen []string
	p.Intercept(func(k Chunk) Action {
		mu.Lock()
		defer mu.Unlock()
		text := string(k.Data)
		if k.FromServer {
			text = "server: " + text
		}
		seen = append(seen, text)
		require.Equal(t, 1, k.Conn)
		switch text {
		case "drop\n", "server: lose\n":
			return Drop
		case "cut\n":
			return Cut
		case "freeze\n":
			p.Freeze()
		}
		return Pass
	})
	ask(t, c, "one")
	say(t, c, "drop")
	hearNothing(t, c)
	say(t, c, "lose")
	hearNothing(t, c)
	say(t, c, "freeze")
	hearNothing(t, c)
	require.NoError(t, p.Pass())
	hear(t, c, "freeze")
	say(t, c, "cut")
	hearReset(t, c)
	mu.Lock()
	require.Equal(t, []string{
		"one\n", "server: one\n", "drop\n", "lose\n", "server: lose\n", "freeze\n", "server: freeze\n", "cut\n",
	}, seen)
	mu.Unlock()
	close(e.lines)
	var arrived []string
	for line := range e.lines {
		arrived = append(arrived, line)
	}
	require.Equal(t, []string{"one\n", "lose\n", "freeze\n"}, arrived)
}

func TestLoseReply(t *testing.T) {
	for _, how := range []Action{Drop, Cut} {
		p, e := startProxy(t)
		other, c := dial(t, p), dial(t, p)
		hook, lost := LoseReply("Commit", how)
		p.Intercept(hook)
		ask(t, other, "begin")
		ask(t, c, "begin")
		say(t, c, "COMMIT")
		<-lost
		if how == Cut {
			hearReset(t, c)
		} else {
			hearNothing(t, c)
			ask(t, c, "still there")
		}
		ask(t, other, "commit") // it happens once
		require.Equal(t, []string{"begin\n", "begin\n", "COMMIT\n"}, []string{<-e.lines, <-e.lines, <-e.lines})
	}
}

func TestClose(t *testing.T) {
	p, _ := startProxy(t)
	c := dial(t, p)
	ask(t, c, "one")
	p.Freeze()
	require.NoError(t, p.Silence())
	late := dial(t, p)
	say(t, c, "two")
	eventually(t, func() bool { return p.Stats().Open == 2 })
	require.NoError(t, p.Close())
	hearReset(t, c)
	hearReset(t, late)
	require.NoError(t, p.Close())
	require.ErrorIs(t, p.Pass(), ErrClosed)
	require.ErrorIs(t, p.Reset(), ErrClosed)
	require.ErrorIs(t, p.Silence(), ErrClosed)
	p.Refuse()
	p.Freeze()
	p.Cut()
	_, err := net.Dial("tcp", p.Addr())
	require.Error(t, err)

	_, err = Start("nowhere")
	require.ErrorContains(t, err, "nowhere")
}

// Whatever happens at once, Close ends it.
func TestConcurrentUse(t *testing.T) {
	p, _ := startProxy(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 50 {
				c, err := net.Dial("tcp", p.Addr())
				if err != nil {
					continue
				}
				_, _ = io.WriteString(c, "hello\n")
				_ = c.SetReadDeadline(time.Now().Add(time.Millisecond)) // real time: some are frozen
				_, _ = c.Read(make([]byte, 6))
				_ = c.Close()
			}
		})
		wg.Go(func() {
			for range 20 {
				p.Refuse()
				err := errors.Join(p.Pass(), p.Silence(), p.Reset(), p.Pass())
				if err != nil && !errors.Is(err, ErrClosed) && i == 0 {
					t.Error(err) // nobody else wants the port
				}
				p.Freeze()
				p.Cut()
				p.Delay(time.Duration(i) * time.Microsecond)
				p.Stats()
			}
		})
	}
	wg.Wait()
	require.NoError(t, p.Close())
	require.Zero(t, p.Stats().Open)
}
