package pgtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrBouncerNotInstalled reports that there is no pgbouncer program. Errors that
// wrap it name the command that installs it.
var ErrBouncerNotInstalled = errors.New("PgBouncer not found")

// BouncerOptions are the settings of a [Bouncer]. The zero value is ready to use.
type BouncerOptions struct {
	// MaxPreparedStatements is how many prepared statements of the protocol
	// PgBouncer keeps for each of its connections; with 0, it knows none of them
	// in transaction mode, as before version 1.21. Older ones refuse any other
	// value with an error that wraps errors.ErrUnsupported.
	MaxPreparedStatements int

	// Settings are settings of pgbouncer.ini beside or instead of the package's
	// own: pool_mode = transaction. Where it listens, how it authenticates and
	// where it logs cannot be set.
	Settings map[string]string
}

// Bouncer is a PgBouncer of this process, in front of a server. Whoever starts
// it closes it.
type Bouncer struct {
	dir      string // holds its files and the log; removed by Close
	dsn      string
	addr     string
	account  *account
	watchdog *watchdog
	proc     *process // nil if it never started

	closeOnce sync.Once
	closeErr  error
}

// managedByBouncer are the settings that the package's promises hang on.
var managedByBouncer = []string{
	"admin_users", "auth_file", "auth_type", "listen_addr", "listen_port", "logfile", "max_prepared_statements",
	"pidfile", "syslog", "unix_socket_dir", "user",
}

// StartBouncer starts PgBouncer in front of the server that dsn connects to, for
// all its databases and the user of dsn alone. When it returns, PgBouncer accepts
// connections. It runs as the same user as a [Server].
func StartBouncer(ctx context.Context, dsn string, o BouncerOptions) (*Bouncer, error) {
	return startBouncer(ctx, dsn, o, freePort)
}

func startBouncer(ctx context.Context, dsn string, o BouncerOptions, pickPort func() (int, error)) (_ *Bouncer, err error) {
	path, err := FindBouncer()
	if err != nil {
		return nil, err
	}
	upstream, err := parseDSN(dsn)
	if err != nil {
		return nil, err
	}
	settings, err := o.settings(ctx, path)
	if err != nil {
		return nil, err
	}
	b := new(Bouncer)
	if b.account, err = serviceAccount(); err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	if b.dir, err = os.MkdirTemp(tempRoot(b.account), "pg"); err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	if err := b.account.own(b.dir); err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	if b.watchdog, err = startWatchdog(b.dir); err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	for try := 1; ; try++ {
		port, err := pickPort()
		if err != nil {
			return nil, fmt.Errorf("pgtest: %w", err)
		}
		b.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		if b.dsn, err = withAddr(dsn, b.addr); err != nil {
			return nil, err
		}
		settings["listen_port"] = strconv.Itoa(port)
		if err := b.configure(upstream, settings); err != nil {
			return nil, err
		}
		err = b.boot(ctx, path)
		if err == nil {
			return b, nil
		}
		if try == portTries || !errors.Is(err, errPortTaken) {
			return nil, err
		}
	}
}

// settings are those of pgbouncer.ini but for the port.
func (o BouncerOptions) settings(ctx context.Context, path string) (map[string]string, error) {
	settings := map[string]string{
		"auth_type":       "scram-sha-256",
		"auth_file":       "userlist.txt",
		"listen_addr":     "127.0.0.1",
		"unix_socket_dir": "", // none
		"pool_mode":       "transaction",
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(o.Settings)) {
		if slices.Contains(managedByBouncer, name) {
			errs = append(errs, fmt.Errorf("pgtest: setting %s of PgBouncer cannot be changed", name))
		}
		settings[name] = o.Settings[name]
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	version, err := bouncerVersion(ctx, path)
	if err != nil {
		return nil, err
	}
	if slices.Compare(version, []int{1, 21}) >= 0 {
		settings["max_prepared_statements"] = strconv.Itoa(o.MaxPreparedStatements)
	} else if o.MaxPreparedStatements != 0 {
		return nil, fmt.Errorf("pgtest: prepared statements need PgBouncer 1.21, and %s is %v: %w",
			path, version, errors.ErrUnsupported)
	}
	return settings, nil
}

// configure writes the files that PgBouncer reads.
func (b *Bouncer) configure(upstream *pgconn.Config, settings map[string]string) error {
	quote := func(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
	var ini strings.Builder
	fmt.Fprintf(&ini, "[databases]\n* = host=%s port=%d\n[pgbouncer]\n", upstream.Host, upstream.Port)
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&ini, "%s = %s\n", name, settings[name])
	}
	fmt.Fprintf(&ini, "admin_users = %s\n", upstream.User) // asks for the version, see boot
	for name, content := range map[string]string{
		"pgbouncer.ini": ini.String(),
		"userlist.txt":  quote(upstream.User) + " " + quote(upstream.Password) + "\n",
	} {
		path := filepath.Join(b.dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return fmt.Errorf("pgtest: %w", err)
		}
		if err := b.account.own(path); err != nil {
			return fmt.Errorf("pgtest: %w", err)
		}
	}
	return nil
}

// boot starts the program and waits until it answers. If it fails, it is not
// running.
func (b *Bouncer) boot(ctx context.Context, path string) error {
	admin, err := withDatabase(b.dsn, "pgbouncer")
	if err != nil {
		return err
	}
	log, err := os.OpenFile(b.logFile(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	defer func() { _ = log.Close() }() // the program has its own descriptor
	cmd := exec.Command(path, "pgbouncer.ini")
	cmd.Dir = b.dir
	cmd.Env = childEnv(filepath.Dir(path), b.dir)
	cmd.Stdout, cmd.Stderr = log, log
	b.account.confine(cmd)
	b.proc, err = startProcess(cmd, func() { b.watchdog.watch(0) })
	if err != nil {
		return fmt.Errorf("pgtest: pgbouncer: %w", err)
	}
	b.watchdog.watch(b.proc.pid)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		// It says that it is up when it has its port: until then, another may
		// have it, and answer.
		err := errors.New("not up")
		if strings.Contains(b.Log(), "process up") {
			if err = execute(ctx, admin, "SHOW VERSION"); err == nil {
				return nil
			}
		}
		select {
		case <-b.proc.done:
			text := b.Log()
			if strings.Contains(text, "cannot listen") {
				return fmt.Errorf("pgtest: pgbouncer on %s: %w", b.addr, errPortTaken)
			}
			return fmt.Errorf("pgtest: pgbouncer: %w\n%s", b.proc.err, text)
		case <-ctx.Done():
			b.kill()
			return fmt.Errorf("pgtest: pgbouncer: %w: %w\n%s", ctx.Err(), err, b.Log())
		case <-tick.C:
		}
	}
}

// DSN is the DSN that the Bouncer was started with, through it.
func (b *Bouncer) DSN() string { return b.dsn }

// Addr is where PgBouncer listens, as host:port.
func (b *Bouncer) Addr() string { return b.addr }

// Log returns the end of PgBouncer's log, at most 64 KiB. It is empty after
// Close.
func (b *Bouncer) Log() string { return readTail(b.logFile(), 0, 64<<10) }

func (b *Bouncer) logFile() string { return filepath.Join(b.dir, "log") }

// Close ends PgBouncer, with its connections on both sides, and removes its
// folder. When it returns, nothing of it is left. Closing again returns the
// first result.
func (b *Bouncer) Close() error {
	b.closeOnce.Do(func() {
		b.kill()
		b.closeErr = removeAll(b.dir)
		b.watchdog.close()
	})
	return b.closeErr
}

// kill ends the program: it has nothing to save.
func (b *Bouncer) kill() {
	if b.proc != nil {
		_ = b.proc.cmd.Process.Kill() // it may have ended
		<-b.proc.done
	}
}

// FindBouncer returns the path of pgbouncer: PGBOUNCER, if set, else the one in
// PATH or in the usual folders. If there is none, the error wraps
// [ErrBouncerNotInstalled].
func FindBouncer() (string, error) {
	if path := os.Getenv("PGBOUNCER"); path != "" {
		_, err := os.Stat(path)
		if err != nil { // what was asked for is never silently replaced
			return "", fmt.Errorf("pgtest: PGBOUNCER: %w", err)
		}
		return path, nil
	}
	// The system's folder is not in every user's PATH.
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer", "/opt/homebrew/bin/pgbouncer", "/usr/local/bin/pgbouncer"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	install := "apt-get, dnf or apk install pgbouncer"
	if runtime.GOOS == "darwin" {
		install = "brew install pgbouncer"
	}
	return "", fmt.Errorf("pgtest: %w; install it (%s) or set PGBOUNCER to its path", ErrBouncerNotInstalled, install)
}

var bouncerBanner = regexp.MustCompile(`(?i)pgbouncer (?:version )?(\d+)\.(\d+)`)

// bouncerVersion asks the program for its version.
func bouncerVersion(ctx context.Context, path string) ([]int, error) {
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("pgtest: %s --version: %w", path, errors.Join(ctx.Err(), err))
	}
	return readBouncerVersion(string(out))
}

func readBouncerVersion(text string) ([]int, error) {
	m := bouncerBanner.FindStringSubmatch(text)
	if m == nil {
		return nil, fmt.Errorf("pgtest: no version of PgBouncer: %q", text)
	}
	major, _ := strconv.Atoi(m[1]) // digits
	minor, _ := strconv.Atoi(m[2])
	return []int{major, minor}, nil
}
