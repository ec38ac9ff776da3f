package pgtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Name is the name under which the server follows another: the application_name
// of its replication connection, as synchronous_standby_names wants it, and its
// replication slot. It needs no quotes, and no two servers have the same.
func (s *Server) Name() string { return filepath.Base(s.dir) }

// Replica makes a hot standby that streams from s, on a port and in a folder of
// its own. The caller closes it; which of the two is closed first does not
// matter. When Replica returns, the replica accepts connections and streams. It
// has the DSN's user and password of s, and its settings unless o has others.
// The default of o.BinDir is that of s.
//
// Its slot keeps, on s, the log that it has not received yet, also while it is
// stopped. It does not take over synchronous_standby_names: once promoted, it
// would wait for replicas that it does not have.
//
// Replication is asynchronous, unless synchronous_standby_names on s, set with
// ALTER SYSTEM and pg_reload_conf, holds the replica's Name.
func (s *Server) Replica(ctx context.Context, o Options) (*Server, error) {
	if o.BinDir == "" {
		o.BinDir = s.bin
	}
	r, err := start(ctx, o, startParts{pickPort: freePort, primary: s})
	if err != nil {
		return nil, err
	}
	if err := r.awaitStreaming(ctx); err != nil {
		return nil, joinClose(err, r)
	}
	return r, nil
}

// Promote makes a replica a primary, and returns when it accepts writes. The
// server that it followed does not notice. Afterwards it is a primary also when
// it is started again. The server must be running.
func (s *Server) Promote(ctx context.Context) error {
	return s.exclusively(ctx, func() error {
		const wait = "SELECT pg_promote(true, 3600)" // ctx ends it earlier
		if err := execute(ctx, s.DSN(), wait); err != nil {
			return fmt.Errorf("pgtest: promote: %w", err)
		}
		return nil
	})
}

// Follow makes s, whatever it was, a replica of primary, which must be running
// and have come from the same server as s, by Replica: an old primary follows
// the replica that was promoted in its place, a replica changes its primary. It is stopped, gets a fresh copy of the primary's
// data, and is started on the port that it had. What it had committed and the
// primary has not is lost. When Follow returns, s streams as after Replica.
//
// If it fails, s is stopped, and Follow may be called again; its data may be
// gone.
func (s *Server) Follow(ctx context.Context, primary *Server) error {
	if s == primary || s.password != primary.password {
		return fmt.Errorf("pgtest: follow: %s is not of the same family", primary.Addr())
	}
	return s.exclusively(ctx, func() error {
		if err := s.halt(ctx, fast); err != nil {
			return err
		}
		if err := removeAll(s.dataDir()); err != nil {
			return err
		}
		if err := s.backup(ctx, primary); err != nil {
			return err
		}
		if err := s.boot(ctx); err != nil {
			return err
		}
		return s.awaitStreaming(ctx)
	})
}

// backup makes the data of s a copy of the primary's that, when it is started,
// streams from it.
func (s *Server) backup(ctx context.Context, primary *Server) error {
	// The slot comes first, so that nothing is recycled between copy and start.
	err := execute(ctx, primary.DSN(), fmt.Sprintf(
		`SELECT pg_create_physical_replication_slot('%s', true)
		WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '%[1]s')`, s.Name()))
	if err != nil {
		return fmt.Errorf("pgtest: replication slot: %w", err)
	}
	host, port, err := net.SplitHostPort(primary.Addr())
	if err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	cmd := exec.CommandContext(ctx, binary(s.bin, "pg_basebackup"),
		"--pgdata="+s.dataDir(), "--host="+host, "--port="+port, "--username=postgres", "--no-password",
		"--wal-method=fetch", "--checkpoint=fast", "--no-sync")
	s.prepare(cmd)
	cmd.Env = append(cmd.Env, "PGPASSWORD="+primary.password)
	if err := s.runTool(ctx, cmd); err != nil {
		return err
	}
	return s.standby(host, port)
}

// standby makes the data those of a replica of the server at host and port,
// which has the same password.
func (s *Server) standby(host, port string) error {
	path := filepath.Join(s.dataDir(), "postgresql.auto.conf")
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	// What ALTER SYSTEM has set on the primary stays, except for what is about
	// its own replicas or its own primary.
	dropped := []string{"primary_conninfo", "primary_slot_name", "synchronous_standby_names"}
	var conf bytes.Buffer
	for line := range strings.Lines(string(old)) {
		name, _, _ := strings.Cut(line, "=")
		if !slices.Contains(dropped, strings.TrimSpace(name)) {
			conf.WriteString(line)
		}
	}
	// Nothing in these values needs a quote.
	fmt.Fprintf(&conf, "primary_conninfo = 'host=%s port=%s user=postgres password=%s sslmode=disable application_name=%s'\n",
		host, port, s.password, s.Name())
	fmt.Fprintf(&conf, "primary_slot_name = '%s'\n", s.Name())
	for _, f := range []struct {
		path    string
		content []byte
	}{
		{path, conf.Bytes()},
		{filepath.Join(s.dataDir(), "standby.signal"), nil},
	} {
		if err := os.WriteFile(f.path, f.content, 0o600); err != nil {
			return fmt.Errorf("pgtest: %w", err)
		}
		if err := s.account.own(f.path); err != nil {
			return fmt.Errorf("pgtest: %w", err)
		}
	}
	return nil
}

// awaitStreaming returns when the replica is connected to its primary.
func (s *Server) awaitStreaming(ctx context.Context) error {
	conn, err := pgconn.Connect(ctx, s.DSN())
	if err != nil {
		return fmt.Errorf("pgtest: replica: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		results, err := conn.Exec(ctx, "SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'").ReadAll()
		if err != nil {
			return fmt.Errorf("pgtest: replica: %w", err)
		}
		if len(results) == 1 && len(results[0].Rows) == 1 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("pgtest: replica does not stream: %w", ctx.Err())
		}
	}
}
