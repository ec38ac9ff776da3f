package pgtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	// closeGrace is how long Close waits for a fast shutdown.
	closeGrace = 15 * time.Second
	// killGrace is how long an immediate shutdown may take: the server itself
	// kills its children after 5 seconds.
	killGrace = 10 * time.Second
)

// Stop stops the server in fast mode: transactions are rolled back, clients
// disconnected, everything is written. Its data stay for [Server.Restart]. A
// server that is not running is fine.
//
// If ctx ends first, the server is killed, which may take seconds more, and the
// error wraps ctx's.
func (s *Server) Stop(ctx context.Context) error {
	return s.exclusively(ctx, func() error { return s.halt(ctx, fast) })
}

// Kill stops the server in immediate mode, as after a crash: clients lose their
// connections, and the next start recovers from the log. What was committed is
// kept. A server that is not running is fine.
//
// The postmaster waits for its children, up to 5 seconds for one that does not
// react, whatever ctx says; if ctx ends first, the error wraps ctx's.
func (s *Server) Kill(ctx context.Context) error {
	return s.exclusively(ctx, func() error { return s.halt(ctx, immediate) })
}

// Restart starts the server again, with the same data on the same port, and
// waits until it accepts connections. A server that is running is stopped
// first. If it fails, the server is stopped, and Restart may be called again.
func (s *Server) Restart(ctx context.Context) error {
	return s.exclusively(ctx, func() error {
		if err := s.halt(ctx, fast); err != nil {
			return err
		}
		return s.boot(ctx)
	})
}

// Pause suspends processes of the server (SIGSTOP), until Resume, Stop, Kill,
// Restart or Close. Without arguments it is the postmaster: the kernel still
// accepts connections, and nobody answers them. With the ids of backends
// (pg_backend_pid), it is these: they fall silent, and their connections stay
// open. Elsewhere than on Unix it returns [errors.ErrUnsupported].
func (s *Server) Pause(backends ...int) error {
	if slices.ContainsFunc(backends, func(pid int) bool { return pid <= 1 }) {
		return fmt.Errorf("pgtest: pause: no process id in %v may be below 2", backends)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil || !s.proc.alive() {
		return errors.New("pgtest: pause: the server is not running")
	}
	if len(backends) == 0 {
		backends = []int{s.proc.pid}
	}
	var errs []error
	for _, pid := range backends {
		if err := suspend(pid); err != nil {
			errs = append(errs, fmt.Errorf("pgtest: pause %d: %w", pid, err))
			continue
		}
		s.paused[pid] = struct{}{}
	}
	return errors.Join(errs...)
}

// Resume lets all processes go on that Pause has suspended.
func (s *Server) Resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resumeLocked()
}

// resumeLocked is Resume under s.mu.
func (s *Server) resumeLocked() error {
	var errs []error
	for _, pid := range slices.Sorted(maps.Keys(s.paused)) {
		// A process that has gone meanwhile, by SIGKILL, has nothing to resume.
		if err := resume(pid); err != nil && !noSuchProcess(err) {
			errs = append(errs, fmt.Errorf("pgtest: resume %d: %w", pid, err))
		}
	}
	clear(s.paused)
	return errors.Join(errs...)
}

// Close stops the server and removes its folder. When it returns, no process,
// goroutine, file or descriptor of it is left. It waits for a running Stop,
// Kill or Restart. Closing again returns the first result.
func (s *Server) Close() error {
	<-s.turn
	defer func() { s.turn <- struct{}{} }()
	s.mu.Lock()
	closed, err := s.closed, s.closeErr
	s.mu.Unlock()
	if closed {
		return err
	}
	err = s.haltWithin(closeGrace)
	if s.crashed() {
		// A postmaster that was killed leaves shared memory behind, which only
		// the next one on the same data removes.
		ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
		err = errors.Join(err, s.boot(ctx), s.haltWithin(closeGrace))
		cancel()
	}
	err = errors.Join(err, removeAll(s.dir))
	s.watchdog.close()
	s.mu.Lock()
	s.closed, s.closeErr = true, err
	s.mu.Unlock()
	return err
}

// exclusively runs f while nobody else starts or stops the server.
func (s *Server) exclusively(ctx context.Context, f func() error) error {
	select {
	case <-s.turn: // also when ctx has ended: then Stop kills
	default:
		select {
		case <-s.turn:
		case <-ctx.Done():
			return fmt.Errorf("pgtest: %w", ctx.Err())
		}
	}
	defer func() { s.turn <- struct{}{} }()
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return ErrClosed
	}
	return f()
}

// halt stops the server if it is running. The caller holds the turn.
func (s *Server) halt(ctx context.Context, mode shutdownMode) error {
	s.mu.Lock()
	p := s.proc
	s.proc = nil            // from here on, Pause finds no server
	err := s.resumeLocked() // and a suspended process would not hear a signal
	s.mu.Unlock()
	if p != nil && p.alive() {
		err = errors.Join(err, s.end(ctx, p, mode))
	}
	return err
}

// haltWithin is halt in fast mode, with a time instead of a context.
func (s *Server) haltWithin(d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return s.halt(ctx, fast)
}

// end stops p, and kills it when ctx ends before it has stopped. It returns
// once p is gone.
func (s *Server) end(ctx context.Context, p *process, mode shutdownMode) error {
	err := requestShutdown(p, s.bin, mode)
	if err == nil {
		select {
		case <-p.done:
			return nil
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	err = fmt.Errorf("pgtest: server killed: %w", err)
	_ = requestShutdown(p, s.bin, immediate)
	grace := time.NewTimer(killGrace)
	defer grace.Stop()
	select {
	case <-p.done:
		return err
	case <-grace.C:
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	return err
}

// crashed reports whether the last postmaster did not end by itself. One that
// does removes its pid file.
func (s *Server) crashed() bool {
	_, err := os.Stat(filepath.Join(s.dataDir(), "postmaster.pid"))
	return err == nil
}

// removeAll removes the folder of a server that has ended. A child that was
// orphaned by a kill may still be about to end, and to write.
func removeAll(dir string) error {
	for try := 1; ; try++ {
		err := os.RemoveAll(dir)
		if err == nil {
			return nil
		}
		if try == 50 {
			return fmt.Errorf("pgtest: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
