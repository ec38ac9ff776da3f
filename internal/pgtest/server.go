package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
)

// Options are the settings of a [Server]. The zero value is ready to use.
type Options struct {
	// BinDir is the folder of the initdb and postgres binaries. The default is
	// what FindBinaries returns.
	BinDir string

	// Settings are server settings (the names of postgresql.conf) beside or
	// instead of the package's own: fsync, full_page_writes and autovacuum off,
	// shared_buffers 16MB, wal_retrieve_retry_interval 100ms, wal_sender_timeout
	// 5s. Where the server listens and keeps its data cannot be set.
	Settings map[string]string
}

// Server is a PostgreSQL cluster of this process. Whoever starts it closes it.
// All methods may be called concurrently; those that start or stop the server
// wait for each other.
type Server struct {
	bin      string
	dir      string // holds the data, the socket and the log; removed by Close
	account  *account
	settings map[string]string
	password string
	port     int // set once, before Start returns
	watchdog *watchdog

	// turn holds one value: whoever took it out may start or stop the server.
	turn chan struct{}

	mu       sync.Mutex       // guards what follows
	proc     *process         // nil unless a start has finished and no stop has begun
	paused   map[int]struct{} // pids that Pause stopped
	closed   bool
	closeErr error
}

// ErrClosed reports that a [Server] was closed.
var ErrClosed = errors.New("pgtest: server closed")

// portTries is how many ports Start tries. Each is free when it is chosen, and
// taken by somebody else a moment later only by bad luck.
const portTries = 10

// Start makes a new cluster and starts its server. When it returns, the server
// accepts connections. Nearly all of its time, a second or so, is initdb's.
//
// When ctx ends first, or anything fails, Start leaves nothing behind. The end
// of ctx does not stop a server that has started. If there are no binaries, the
// error wraps [ErrNotInstalled].
func Start(ctx context.Context, o Options) (*Server, error) {
	return start(ctx, o, startParts{pickPort: freePort})
}

// startParts are what a start takes from elsewhere.
type startParts struct {
	pickPort  func() (int, error)
	prototype *Server // if not nil, its data are copied instead of running initdb
	primary   *Server // if not nil, a replica of it is started
}

func start(ctx context.Context, o Options, parts startParts) (_ *Server, err error) {
	s, err := create(ctx, o, parts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = joinClose(err, s)
		}
	}()
	for try := 1; ; try++ {
		if s.port, err = parts.pickPort(); err != nil {
			return nil, fmt.Errorf("pgtest: %w", err)
		}
		err = s.boot(ctx)
		if err == nil {
			return s, nil
		}
		if try == portTries || !errors.Is(err, errPortTaken) {
			return nil, err
		}
	}
}

// create makes a server that has data and was never started.
func create(ctx context.Context, o Options, parts startParts) (_ *Server, err error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("pgtest: start: %w", err)
	}
	base := defaults
	if parts.primary != nil {
		base = parts.primary.settings // some of a replica's must not be below its primary's
	}
	settings, err := mergeSettings(base, o.Settings)
	if err != nil {
		return nil, err
	}
	bin := o.BinDir
	if bin == "" {
		bin, err = FindBinaries()
	} else {
		err = checkBinaries(bin)
	}
	if err != nil {
		return nil, err
	}
	acct, err := serviceAccount()
	if err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	dir, err := os.MkdirTemp(tempRoot(acct), "pg")
	if err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	s := &Server{
		bin:      bin,
		dir:      dir,
		account:  acct,
		settings: settings,
		password: rand.Text(),
		turn:     make(chan struct{}, 1),
		paused:   make(map[int]struct{}),
	}
	s.turn <- struct{}{}
	defer func() {
		if err != nil {
			err = joinClose(err, s)
		}
	}()
	if err := acct.own(dir); err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	if s.watchdog, err = startWatchdog(dir); err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	switch from := parts.prototype; {
	case parts.primary != nil:
		s.password = parts.primary.password
		err = s.backup(ctx, parts.primary)
	case from != nil && from.bin == bin: // data belong to one version
		s.password = from.password
		err = s.copyData(ctx, from)
	default:
		err = s.initdb(ctx)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// joinClose closes a server that is not handed out because of err.
func joinClose(err error, s *Server) error { return errors.Join(err, s.Close()) }

// DSN is the connection string of the database postgres over TCP, as a URL. It
// contains the superuser's password, and stays the same over restarts.
func (s *Server) DSN() string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword("postgres", s.password),
		Host:     s.Addr(),
		Path:     "/postgres",
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// SocketDSN is the connection string of the database postgres over the Unix
// socket, as a URL. It is empty where the server has none (Windows).
func (s *Server) SocketDSN() string {
	if !haveSockets {
		return ""
	}
	q := url.Values{
		"host":    {s.dir},
		"port":    {strconv.Itoa(s.port)},
		"sslmode": {"disable"},
	}
	return "postgres://postgres@/postgres?" + q.Encode()
}

// Addr is the TCP address the server listens on, as host:port.
func (s *Server) Addr() string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port))
}

// PID is the process id of the server's parent process, the postmaster. It is 0
// unless the server is running.
func (s *Server) PID() int {
	p := s.running()
	if p == nil {
		return 0
	}
	return p.pid
}

// Log returns the end of the server's log, at most 64 KiB, for the message of a
// test that fails. It is empty after Close.
func (s *Server) Log() string {
	return readTail(s.logFile(), 0, 64<<10)
}

func (s *Server) dataDir() string { return filepath.Join(s.dir, "data") }

func (s *Server) logFile() string { return filepath.Join(s.dir, "log") }

// running returns the server's process, nil if it is not running.
func (s *Server) running() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil || !s.proc.alive() {
		return nil
	}
	return s.proc
}
