//go:build unix

package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// haveSockets: the server also listens on a Unix socket.
const haveSockets = true

// maxSocketPath is the longest path of a Unix socket: sun_path has 104 bytes on
// macOS and the BSDs, 108 on Linux, and ends with a zero byte.
const maxSocketPath = 103

// account is the user that runs the server.
type account struct {
	uid, gid uint32
}

// serviceAccount returns the user to run the server as, nil for the current
// one. PostgreSQL's programs refuse to run as root, and as a user that is not
// in the password file.
func serviceAccount() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("uid of %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("gid of %s: %w", name, err)
		}
		return &account{uid: uint32(uid), gid: uint32(gid)}, nil
	}
	return nil, errors.New("root may not run PostgreSQL, and there is neither a user postgres nor nobody to run it")
}

// own gives path to the account.
func (a *account) own(path string) error {
	if a == nil {
		return nil
	}
	return os.Lchown(path, int(a.uid), int(a.gid))
}

// confine makes cmd run as the account, in a process group of its own: Ctrl-C
// in a terminal reaches this process, which then stops the server in its own
// time.
func (a *account) confine(cmd *exec.Cmd) {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if a != nil {
		// No Groups: root's supplementary groups are dropped.
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	deathSignal(attr)
	cmd.SysProcAttr = attr
}

// tempRoot returns the folder to make the server's folder in. Not a test's own
// temporary folder: those are closed to other users, and their paths are too
// long for a socket.
func tempRoot(a *account) string {
	const name = "/pg0123456789/.s.PGSQL.65535"
	dir := os.TempDir()
	if len(dir)+len(name) > maxSocketPath || a != nil && !reachable(dir) {
		return "/tmp"
	}
	return dir
}

// reachable reports whether every user may pass through dir.
func reachable(dir string) bool {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}

// childEnv is the environment of the server's programs. Locale and time zone
// are fixed, so that messages can be read and initdb need not guess; PG*
// variables do not reach them.
func childEnv(bin, dir string) []string {
	path := []string{bin}
	if p := os.Getenv("PATH"); p != "" {
		path = append(path, p)
	}
	path = append(path, "/usr/bin", "/bin")
	env := []string{
		"PATH=" + strings.Join(path, string(os.PathListSeparator)),
		"LC_ALL=C", "TZ=UTC", "HOME=" + dir,
	}
	for _, name := range []string{"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// killGroup kills cmd and the children that did not leave its process group.
func killGroup(cmd *exec.Cmd) error {
	return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
}

// shutdownMode is a mode of `pg_ctl stop`, as the signal that stands for it.
type shutdownMode = syscall.Signal

const (
	fast      shutdownMode = syscall.SIGINT  // disconnect the clients, write a checkpoint
	immediate shutdownMode = syscall.SIGQUIT // exit at once; the next start recovers
)

// requestShutdown asks the postmaster to stop.
func requestShutdown(p *process, _ string, mode shutdownMode) error {
	err := p.cmd.Process.Signal(mode)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

func suspend(pid int) error { return syscall.Kill(pid, syscall.SIGSTOP) }

func resume(pid int) error { return syscall.Kill(pid, syscall.SIGCONT) }

// noSuchProcess reports whether err says that the process has gone.
func noSuchProcess(err error) bool { return errors.Is(err, syscall.ESRCH) }
