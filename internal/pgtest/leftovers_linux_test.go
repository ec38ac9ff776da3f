package pgtest

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// ownTemp makes the folder that servers of this test are made in.
func ownTemp(t *testing.T) string {
	t.Helper()
	// Not t.TempDir, which is closed to the server's user.
	dir, err := os.MkdirTemp("/tmp", "own")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	t.Setenv("TMPDIR", dir)
	return dir
}

// processes lists the processes that work in the folder or name it.
func processes(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	var found []string
	for _, proc := range all {
		if filepath.Base(proc) == strconv.Itoa(os.Getpid()) {
			continue
		}
		cmdline, _ := os.ReadFile(proc + "/cmdline") // it may just have ended
		cwd, _ := os.Readlink(proc + "/cwd")
		if strings.Contains(string(cmdline), dir) || strings.HasPrefix(cwd, dir) {
			found = append(found, filepath.Base(proc)+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return found
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func descriptors(t *testing.T) int {
	t.Helper()
	return len(entries(t, "/proc/self/fd"))
}

// eventually waits for what another process does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 30*time.Second, 10*time.Millisecond, what) // real time: other processes
}

func TestCloseLeavesNothing(t *testing.T) {
	from := prototype(t)
	dir := ownTemp(t)
	ctx := testContext(t)
	round := func(from *Server) {
		s, err := start(ctx, Options{}, startParts{pickPort: freePort, prototype: from})
		require.NoError(t, err)
		require.NotEmpty(t, processes(t, dir), "the test sees the server")
		mustQuery(t, s.DSN(), "SELECT 1")
		require.NoError(t, s.Kill(ctx))
		require.NoError(t, s.Restart(ctx))
		require.NoError(t, s.Close())
		require.Empty(t, entries(t, dir))
		require.Empty(t, processes(t, dir))
	}
	round(from) // opens what the runtime keeps, such as the poller
	before := descriptors(t)
	round(from)
	round(nil) // with initdb
	require.LessOrEqual(t, descriptors(t), before)
}

// script makes a program that is not quite PostgreSQL's.
func script(t *testing.T, dir, name, body string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755))
}

func TestFailedStartLeavesNothing(t *testing.T) {
	bin := needBinaries(t)
	dir := ownTemp(t)
	fake, err := os.MkdirTemp("/tmp", "bin")
	require.NoError(t, err)
	defer func() { require.NoError(t, os.RemoveAll(fake)) }()
	require.NoError(t, os.Chmod(fake, 0o755))
	quick := `for a; do case $a in --pgdata=*) mkdir "${a#--pgdata=}";; esac; done`

	for _, c := range []struct {
		name, initdb, postgres string
		timeout                time.Duration
		port                   func() (int, error)
		check                  func(*testing.T, error)
	}{
		{
			name: "initdb fails", initdb: "echo no luck >&2; exit 1", postgres: "exit 0",
			check: func(t *testing.T, err error) { require.ErrorContains(t, err, "no luck") },
		},
		{
			name: "postgres ends", initdb: quick, postgres: "echo no luck; exit 0",
			check: func(t *testing.T, err error) { require.ErrorContains(t, err, "no luck") },
		},
		{
			name: "postgres is never ready", initdb: quick, postgres: "exec sleep 100", timeout: 200 * time.Millisecond,
			check: func(t *testing.T, err error) { require.ErrorIs(t, err, context.DeadlineExceeded) },
		},
		{
			name: "initdb hangs with a child", initdb: "sleep 100", postgres: "exit 0", timeout: 200 * time.Millisecond,
			check: func(t *testing.T, err error) { require.ErrorIs(t, err, context.DeadlineExceeded) },
		},
		{
			name: "no port", initdb: quick, postgres: "exit 0",
			port:  func() (int, error) { return 0, errors.New("no luck") },
			check: func(t *testing.T, err error) { require.ErrorContains(t, err, "no luck") },
		},
		{
			name: "every port taken", initdb: "exec " + bin + `/initdb "$@"`, postgres: "exec " + bin + `/postgres "$@"`,
			port: func() func() (int, error) {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				require.NoError(t, err)
				t.Cleanup(func() { _ = l.Close() })
				return func() (int, error) { return l.Addr().(*net.TCPAddr).Port, nil }
			}(),
			check: func(t *testing.T, err error) { require.ErrorIs(t, err, errPortTaken) },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			script(t, fake, "initdb", c.initdb)
			script(t, fake, "postgres", c.postgres)
			ctx := testContext(t)
			if c.timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, c.timeout) // real time: a real process hangs
				defer cancel()
			}
			if c.port == nil {
				c.port = freePort
			}
			_, err := start(ctx, Options{BinDir: fake}, startParts{pickPort: c.port})
			require.Error(t, err)
			c.check(t, err)
			require.Empty(t, entries(t, dir))
			require.Empty(t, processes(t, dir))
		})
	}
}

// The context ends at each stage of a real start.
func TestCancelledStartLeavesNothing(t *testing.T) {
	from := prototype(t)
	dir := ownTemp(t)
	for _, c := range []struct {
		name, stage string // the stage is reached when this file is there
		parts       startParts
	}{
		{"initdb begins", "/pg*", startParts{}},
		{"initdb", "/pg*/data/base/1", startParts{}},
		{"copy", "/pg*/data/base/1", startParts{prototype: from}},
		{"boot begins", "/pg*/log", startParts{prototype: from}},
		{"boot", "/pg*/data/postmaster.pid", startParts{prototype: from}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.parts.pickPort = freePort
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			watcher := make(chan struct{})
			go func() {
				defer close(watcher)
				tick := time.NewTicker(time.Millisecond) // real time: initdb's
				defer tick.Stop()
				for range tick.C {
					if found, _ := filepath.Glob(dir + c.stage); found != nil || ctx.Err() != nil {
						cancel()
						return
					}
				}
			}()
			s, err := start(ctx, Options{}, c.parts)
			cancel()
			<-watcher
			if err == nil { // ready before the watcher looked: no failure to see
				require.NoError(t, s.Close())
			} else {
				require.ErrorIs(t, err, context.Canceled)
			}
			require.Empty(t, entries(t, dir))
			require.Empty(t, processes(t, dir))
		})
	}
}

// A process that ends without Close, in whatever way, leaves nothing either.
func TestKilledProcessLeavesNothing(t *testing.T) {
	needBinaries(t)
	exe, err := os.Executable()
	require.NoError(t, err)
	for _, mode := range []string{"running", "paused", "exit", "initdb", "unwatched"} {
		t.Run(mode, func(t *testing.T) {
			dir := ownTemp(t)
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), helperEnv+"="+mode)
			cmd.Stderr = os.Stderr
			stdin, err := cmd.StdinPipe()
			require.NoError(t, err)
			defer func() { _ = stdin.Close() }()
			stdout, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			if mode == "initdb" {
				eventually(t, "initdb at work", func() bool {
					found, _ := filepath.Glob(dir + "/pg*/data/base/1")
					return found != nil
				})
			} else {
				var info helperInfo
				require.NoError(t, json.NewDecoder(stdout).Decode(&info))
				require.NotZero(t, info.PID)
			}
			if mode != "exit" {
				require.NotEmpty(t, processes(t, dir), "the test sees the server")
				require.NoError(t, cmd.Process.Kill())
			}
			_ = cmd.Wait() // killed
			eventually(t, "processes gone", func() bool { return len(processes(t, dir)) == 0 })
			if mode == "unwatched" {
				require.NotEmpty(t, entries(t, dir), "the test has killed the right process")
			} else {
				require.Empty(t, entries(t, dir), "the watchdog goes last")
			}
		})
	}
}

// The watchdog stops the server without the death signal. The test that kills
// processes has the contrary.
func TestWatchdogAlone(t *testing.T) {
	s := startCopy(t, Options{})
	defer func() { _ = s.Close() }()
	require.NoError(t, s.Pause(), "deaf to all but the watchdog's SIGCONT")
	p := s.running()
	require.NoError(t, s.watchdog.pipe.Close()) // as the kernel does when a process ends
	<-s.watchdog.proc.done
	<-p.done
	require.False(t, p.cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled(), "it could end by itself")
	require.NoDirExists(t, s.dir)
	require.NoError(t, s.Close())
}

// A killed postmaster leaves shared memory, which belongs to no folder.
func TestCloseRemovesSharedMemory(t *testing.T) {
	s := startCopy(t, Options{})
	defer func() { require.NoError(t, s.Close()) }()
	pidfile, err := os.ReadFile(s.dataDir() + "/postmaster.pid")
	require.NoError(t, err)
	keyAndID := strings.Fields(strings.Split(string(pidfile), "\n")[6])
	segments := func() (found int) {
		all, err := os.ReadFile("/proc/sysvipc/shm")
		require.NoError(t, err)
		for line := range strings.Lines(string(all)) {
			if f := strings.Fields(line); f[0] == keyAndID[0] && f[1] == keyAndID[1] {
				found++
			}
		}
		return found
	}
	p := s.running()
	require.NoError(t, p.cmd.Process.Kill())
	<-p.done
	require.Equal(t, 1, segments())
	require.NoError(t, s.Close())
	require.Zero(t, segments())
}

// The server must not die with the thread that Start was called on.
func TestServerOutlivesTheThread(t *testing.T) {
	ctx, parts := testContext(t), startParts{pickPort: freePort, prototype: prototype(t)}
	var s *Server
	var err error
	thread := make(chan int)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		s, err = start(ctx, Options{}, parts)
		thread <- syscall.Gettid()
	}()
	tid := <-thread
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	if tid == os.Getpid() {
		t.Skip("the goroutine had the main thread, which never ends")
	}
	eventually(t, "the thread gone", func() bool {
		_, err := os.Stat("/proc/self/task/" + strconv.Itoa(tid))
		return errors.Is(err, os.ErrNotExist)
	})
	mustQuery(t, s.DSN(), "SELECT 1")
	require.True(t, s.running().alive())
}

func TestRootRunsAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	needBinaries(t)
	t.Setenv("TMPDIR", t.TempDir()) // closed to the other user: not taken
	s := Cluster(t)
	status, err := os.ReadFile("/proc/" + strconv.Itoa(s.PID()) + "/status")
	require.NoError(t, err)
	fields := make(map[string][]string)
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Fields(value)
	}
	acct, err := serviceAccount()
	require.NoError(t, err)
	uid, gid := strconv.Itoa(int(acct.uid)), strconv.Itoa(int(acct.gid))
	require.NotEqual(t, "0", uid)
	require.Equal(t, []string{uid, uid, uid, uid}, fields["Uid"])
	require.Equal(t, []string{gid, gid, gid, gid}, fields["Gid"])
	require.Empty(t, fields["Groups"], "root's groups are dropped")
	info, err := os.Stat(s.dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm(), "the socket is closed to others")
	require.Equal(t, "/tmp", filepath.Dir(s.dir))
	mustQuery(t, s.SocketDSN(), "SELECT 1")
}
