package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// errPortTaken reports that the server could not listen on its port.
var errPortTaken = errors.New("the port is taken")

// errInUse reports that children of a killed postmaster still use its data.
var errInUse = errors.New("the data are still in use")

// pollInterval is the time between two looks at the server's status file.
const pollInterval = 5 * time.Millisecond

// defaults trade every guarantee after a crash of the machine for speed. They
// keep those after a crash of the server, when the kernel still has its writes:
// so synchronous_commit stays on, which without fsync costs next to nothing.
var defaults = map[string]string{
	"fsync":            "off",
	"full_page_writes": "off",
	"autovacuum":       "off",
	"shared_buffers":   "16MB",

	// A replica looks again for a primary that is gone after a tenth of a
	// second, not after five; and one that is silent does not hold up the
	// primary's shutdown, which waits for it, for a minute.
	"wal_retrieve_retry_interval": "100ms",
	"wal_sender_timeout":          "5s",
}

// managed are the settings that the package's promises hang on.
var managed = []string{
	"config_file", "data_directory", "external_pid_file", "hba_file", "listen_addresses",
	"logging_collector", "port", "unix_socket_directories",
}

func mergeSettings(base, custom map[string]string) (map[string]string, error) {
	settings := maps.Clone(base)
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(custom)) {
		if slices.Contains(managed, strings.ToLower(name)) {
			errs = append(errs, fmt.Errorf("pgtest: setting %s cannot be changed", name))
			continue
		}
		settings[strings.ToLower(name)] = custom[name]
	}
	return settings, errors.Join(errs...)
}

// initdb makes the cluster.
func (s *Server) initdb(ctx context.Context) error {
	pwfile := filepath.Join(s.dir, "password")
	if err := os.WriteFile(pwfile, []byte(s.password+"\n"), 0o600); err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	if err := s.account.own(pwfile); err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	// Any user of this machine reaches the port, and a superuser can run
	// programs, so TCP needs the password. Only the server's own user reaches
	// the socket: its folder is closed to others.
	cmd := exec.CommandContext(ctx, binary(s.bin, "initdb"),
		"--pgdata="+s.dataDir(), "--username=postgres", "--pwfile="+pwfile,
		"--auth-host=scram-sha-256", "--auth-local=trust",
		"--encoding=UTF8", "--locale=C", "--no-sync")
	s.prepare(cmd)
	if err := s.runTool(ctx, cmd); err != nil {
		return err
	}
	if err := os.Remove(pwfile); err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	return nil
}

// runTool runs a program that writes the data, until it ends or, with all its
// children, is killed at the end of ctx.
func (s *Server) runTool(ctx context.Context, cmd *exec.Cmd) error {
	name := filepath.Base(cmd.Path)
	// Its own children hold the other end of this buffer's pipe, so that Wait
	// also waits for them: after a kill nobody writes to the folder.
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Cancel = func() error { return killGroup(cmd) }
	cmd.WaitDelay = killGrace
	p, err := s.spawn(cmd)
	if err == nil {
		<-p.done
		err = p.err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("pgtest: %s: %w", name, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("pgtest: %s: %w\n%s", name, err, out.Bytes())
	}
	return nil
}

// boot starts the server on its port and waits until it is ready. If it fails,
// the server is not running.
func (s *Server) boot(ctx context.Context) error {
	deadline := time.Now().Add(killGrace)
	for {
		err := s.tryBoot(ctx)
		if !errors.Is(err, errInUse) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		case <-time.After(10 * pollInterval):
		}
	}
}

// tryBoot is boot without patience.
func (s *Server) tryBoot(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("pgtest: start: %w", err)
	}
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	defer func() { _ = log.Close() }() // the server has its own descriptor
	info, err := log.Stat()
	if err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	cmd := exec.Command(binary(s.bin, "postgres"), s.args()...)
	s.prepare(cmd)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := s.spawn(cmd)
	if err != nil {
		return fmt.Errorf("pgtest: postgres: %w", err)
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			tail := readTail(s.logFile(), info.Size(), 4<<10)
			if reason := failure(tail); reason != nil {
				return fmt.Errorf("pgtest: postgres on %s: %w", s.Addr(), reason)
			}
			if p.err == nil { // never, unless it is not PostgreSQL
				return fmt.Errorf("pgtest: postgres ended\n%s", tail)
			}
			return fmt.Errorf("pgtest: postgres: %w\n%s", p.err, tail)
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("pgtest: postgres: %w", ctx.Err()), s.end(context.WithoutCancel(ctx), p, immediate))
		case <-tick.C:
			if s.ready(p.pid) {
				s.mu.Lock()
				s.proc = p // not before: Pause must not hold up the start
				s.mu.Unlock()
				return nil
			}
		}
	}
}

// args are the server's arguments.
func (s *Server) args() []string {
	sockets := ""
	if haveSockets {
		sockets = s.dir
	}
	args := []string{
		"-D", s.dataDir(),
		"-c", "listen_addresses=127.0.0.1",
		"-c", "port=" + strconv.Itoa(s.port),
		"-c", "unix_socket_directories=" + sockets,
	}
	for _, name := range slices.Sorted(maps.Keys(s.settings)) {
		args = append(args, "-c", name+"="+s.settings[name])
	}
	return args
}

// prepare sets what all the server's programs have in common.
func (s *Server) prepare(cmd *exec.Cmd) {
	cmd.Dir = s.dir
	cmd.Env = childEnv(s.bin, s.dir)
	s.account.confine(cmd)
}

// spawn starts cmd and has the watchdog watch it while it runs.
func (s *Server) spawn(cmd *exec.Cmd) (*process, error) {
	p, err := startProcess(cmd, func() { s.watchdog.watch(0) })
	if err != nil {
		return nil, err
	}
	s.watchdog.watch(p.pid)
	return p, nil
}

// ready reads the status that the server writes into its pid file: line 8, in
// the file of the process whose id is line 1 and not of one that crashed.
func (s *Server) ready(pid int) bool {
	b, err := os.ReadFile(filepath.Join(s.dataDir(), "postmaster.pid"))
	if err != nil {
		return false
	}
	lines := strings.Split(string(b), "\n")
	if len(lines) < 8 || strings.TrimSpace(lines[0]) != strconv.Itoa(pid) {
		return false
	}
	status := strings.TrimSpace(lines[7])
	return status == "ready" || status == "standby"
}

// failure reads in the log of a server that did not start whether the reason is
// one that may pass. The messages are PostgreSQL's own, in the C locale.
func failure(log string) error {
	switch {
	case strings.Contains(log, "could not create any TCP/IP sockets"):
		return errPortTaken
	case strings.Contains(log, "pre-existing shared memory block"):
		return errInUse
	default:
		return nil
	}
}

// Ports are chosen below those that Linux (from 32768), macOS and Windows (from
// 49152) give to outgoing connections. From that range, a connection of this
// machine may take the port while the server is stopped, and a client that
// dials the stopped server may even be given the port it dials and connect to
// itself.
const firstPort, lastPort = 20000, 29999

// freePort returns a port that is free now.
func freePort() (int, error) {
	var last error
	for range 100 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
		last = err
	}
	return 0, fmt.Errorf("no free port: %w", last)
}

// readTail returns the end of a file from the offset on, at most limit bytes.
// A file that cannot be read is empty.
func readTail(path string, offset, limit int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	b := make([]byte, max(0, min(limit, size-offset)))
	n, _ := f.ReadAt(b, size-int64(len(b)))
	return string(b[:n])
}
