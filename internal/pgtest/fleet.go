package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// servers are those of this test binary. They are package state because Go's
// tests have no other place that all tests of a binary can reach.
var servers = newFleet()

// fleet makes the servers of a test binary: one that the tests share, and any
// number of private ones.
//
// Nearly all the time of a start is initdb's, and its result is the same each
// time. So from the second server on, they are copies of a prototype: a server
// that is never started. A binary that needs one server does not pay for it.
type fleet struct {
	turn chan struct{} // holds one value: whoever took it out may use the rest

	starts    int
	prototype *Server

	tried  bool
	shared *Server
	err    error // of the shared server's start: every later test gets it, without a new try
}

func newFleet() *fleet {
	f := &fleet{turn: make(chan struct{}, 1)}
	f.turn <- struct{}{}
	return f
}

// start starts a server that the caller closes.
func (f *fleet) start() (*Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	<-f.turn
	prototype, err := f.next(ctx)
	f.turn <- struct{}{}
	if err != nil {
		return nil, err
	}
	return start(ctx, Options{}, startParts{pickPort: freePort, prototype: prototype})
}

// next returns what to copy for the next server, nil for nothing. The caller
// holds the turn.
func (f *fleet) next(ctx context.Context) (*Server, error) {
	f.starts++
	if f.starts == 1 || f.prototype != nil {
		return f.prototype, nil
	}
	var err error
	f.prototype, err = create(ctx, Options{}, startParts{})
	return f.prototype, err
}

// sharedServer returns the server that the tests share, which close closes.
func (f *fleet) sharedServer() (*Server, error) {
	<-f.turn
	defer func() { f.turn <- struct{}{} }()
	if !f.tried {
		f.tried = true
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		var prototype *Server
		if prototype, f.err = f.next(ctx); f.err == nil {
			f.shared, f.err = start(ctx, Options{}, startParts{pickPort: freePort, prototype: prototype})
		}
	}
	return f.shared, f.err
}

// close closes the shared server and the prototype. The fleet can be used again.
func (f *fleet) close() error {
	<-f.turn
	defer func() { f.turn <- struct{}{} }()
	var errs []error
	for _, s := range []*Server{f.shared, f.prototype} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	f.starts, f.prototype = 0, nil
	f.tried, f.shared, f.err = false, nil, nil
	return errors.Join(errs...)
}

// copyData makes the cluster as a copy of one that was never started. Copies
// have the same system identifier and the same password.
func (s *Server) copyData(ctx context.Context, from *Server) error {
	err := filepath.WalkDir(from.dataDir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(from.dataDir(), path)
		if err != nil {
			return err
		}
		to := filepath.Join(s.dataDir(), rel)
		if d.IsDir() {
			err = os.Mkdir(to, 0o700)
		} else {
			err = copyFile(to, path)
		}
		if err != nil {
			return err
		}
		return s.account.own(to)
	})
	if err != nil {
		return fmt.Errorf("pgtest: copy: %w", err)
	}
	return nil
}

func copyFile(to, from string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}
