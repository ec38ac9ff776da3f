//go:build unix

package sqlpool

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// pooler is a PgBouncer in transaction mode in front of a database of the
// test's own, with two connections to the server.
type pooler struct {
	dsn    string // through the pooler, as a URL with a query
	direct string // past it
}

// pgbouncer starts a PgBouncer, or skips the test where none is installed.
// PGBOUNCER names the binary if it is not in the PATH. A number of prepared
// statements above 0 needs version 1.21.
func pgbouncer(t *testing.T, maxPrepared int) pooler {
	t.Helper()
	bin, err := exec.LookPath(orElse(os.Getenv("PGBOUNCER"), "pgbouncer"))
	if err != nil {
		if os.Getenv("REQUIRE_POSTGRES") != "" {
			t.Fatal("pgbouncer is not installed")
		}
		t.Skip("pgbouncer is not installed")
	}
	out, err := exec.Command(bin, "--version").Output()
	require.NoError(t, err)
	version := regexp.MustCompile(`PgBouncer (\d+)\.(\d+)`).FindStringSubmatch(string(out))
	require.NotNil(t, version, "%s", out)
	minor, err := strconv.Atoi(version[2])
	require.NoError(t, err)
	prepares := version[1] != "1" || minor >= 21
	if maxPrepared > 0 && !prepares {
		t.Skipf("%s keeps no prepared statements", version[0])
	}

	p := pooler{direct: pgtest.DSN(t)}
	server, err := url.Parse(p.direct)
	require.NoError(t, err)
	password, _ := server.User.Password()
	dir, err := os.MkdirTemp("/tmp", "pgb") // the path of a socket is short, and others must reach it
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	// The port is free when it is chosen; PgBouncer ends if it is not any more.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	require.NoError(t, l.Close())
	config := fmt.Sprintf(`[databases]
* = host=%s port=%s user=%s password=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_client_conn = 200
`, server.Hostname(), server.Port(), server.User.Username(), password, port)
	if prepares {
		config += fmt.Sprintf("max_prepared_statements = %d\n", maxPrepared)
	}
	ini := filepath.Join(dir, "pgbouncer.ini")
	require.NoError(t, os.WriteFile(ini, []byte(config), 0o600))
	cmd := exec.Command(bin, ini)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Geteuid() == 0 { // which PgBouncer refuses to run as
		nobody, err := user.Lookup("nobody")
		require.NoError(t, err)
		uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
		require.NoError(t, err)
		gid, err := strconv.ParseUint(nobody.Gid, 10, 32)
		require.NoError(t, err)
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		require.NoError(t, os.Chown(dir, int(uid), int(gid)))
		require.NoError(t, os.Chown(ini, int(uid), int(gid)))
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("PgBouncer's log:\n%s", text)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	require.Eventually(t, func() bool { // real time: a real pooler
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, 10*time.Second, 5*time.Millisecond)
	client := *server
	client.User, client.Host = url.UserPassword("app", secret), address
	p.dsn = client.String()
	return p
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
