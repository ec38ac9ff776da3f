//go:build unix

package database

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFetched goes the whole way: it fetches an archive (of links to the
// installed binaries, and some data), runs its server, and runs it again
// without a fetch.
func TestFetched(t *testing.T) {
	installedBin := installed(t)
	if os.Geteuid() == 0 {
		rerunAsNobody(t)
		return
	}
	entries := []entry{{name: "share/data", content: make([]byte, 3<<20)}}
	for _, name := range []string{"initdb", "pg_ctl", "postgres"} {
		entries = append(entries, entry{name: "bin/" + name, target: filepath.Join(installedBin, name)})
	}
	s := newFileServer(t, jar(t, entries...))
	cache, temp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temp)
	var progress bytes.Buffer
	o := opener{find: notInstalled, Options: Options{Repository: s.URL, CacheDir: cache, Progress: &progress}}

	d, err := o.open(t.Context())
	require.NoError(t, err)
	requireServer(t, d)
	require.NoError(t, d.Close())
	requireStopped(t, d)

	kept, err := filepath.Glob(filepath.Join(cache, "*"))
	require.NoError(t, err)
	require.Len(t, kept, 1, "only the binaries stay")
	require.Equal(t, "started a throwaway PostgreSQL server from the fetched binaries in "+filepath.Join(kept[0], "bin"), d.What())
	found, err := filepath.Glob(filepath.Join(kept[0], "*"))
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Join(kept[0], "bin"), filepath.Join(kept[0], "share")}, found)
	requireEmpty(t, temp)

	lines := strings.Split(strings.TrimSuffix(progress.String(), "\n"), "\n")
	for _, line := range lines {
		require.Regexp(t, regexp.MustCompile(`^fetching PostgreSQL [0-9.]+: \d+\.\d of 3\.\d MB \(\d+ %\)$`), line)
	}
	require.Contains(t, lines[len(lines)-1], "(100 %)")

	requests := s.requests()
	require.Contains(t, requests, ".jar")
	require.Contains(t, requests, ".sha256")
	s.Close()
	progress.Reset()
	d, err = o.open(t.Context())
	require.NoError(t, err, "the repository is not needed any more")
	requireServer(t, d)
	require.NoError(t, d.Close())
	require.Equal(t, requests, s.requests())
	require.Empty(t, progress.String())
}

// TestFetchStopsServer has a pg_ctl that fails after it has started the server,
// as one does that is interrupted. The library does not stop that server.
func TestFetchStopsServer(t *testing.T) {
	installedBin := installed(t)
	if os.Geteuid() == 0 {
		rerunAsNobody(t)
		return
	}
	temp, portFile := t.TempDir(), filepath.Join(t.TempDir(), "port")
	t.Setenv("TMPDIR", temp)
	script := fmt.Sprintf("#!/bin/sh\n%q \"$@\" || exit\n[ \"$1\" = stop ] && exit\nsed -n 4p \"$4/postmaster.pid\" >%q\nexit 1\n",
		filepath.Join(installedBin, "pg_ctl"), portFile)
	s := newFileServer(t, jar(t,
		entry{name: "bin/pg_ctl", content: []byte(script)},
		entry{name: "bin/initdb", target: filepath.Join(installedBin, "initdb")},
		entry{name: "bin/postgres", target: filepath.Join(installedBin, "postgres")},
	))
	cache := t.TempDir()
	o := opener{find: notInstalled, Options: Options{Repository: s.URL, CacheDir: cache}}
	_, err := o.open(t.Context())
	require.ErrorContains(t, err, "could not start postgres")
	require.NotContains(t, err.Error(), "\n")
	requireEmpty(t, cache)
	requireEmpty(t, temp)

	port, err := os.ReadFile(portFile)
	require.NoError(t, err, "the server has run")
	conn, err := net.Dial("tcp", "localhost:"+strings.TrimSpace(string(port)))
	if err == nil {
		_ = conn.Close()
	}
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

// rerunAsNobody runs the test again in a process of an unprivileged user, as
// neither the library nor PostgreSQL works as root.
func rerunAsNobody(t *testing.T) {
	t.Helper()
	nobody, err := user.Lookup("nobody")
	require.NoError(t, err)
	uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
	require.NoError(t, err)
	gid, err := strconv.ParseUint(nobody.Gid, 10, 32)
	require.NoError(t, err)

	// A folder of its own, because t.TempDir is inside one of root's.
	dir, err := os.MkdirTemp("", "fetched")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary := filepath.Join(dir, "database.test")
	self, err := os.Executable()
	require.NoError(t, err)
	copyFile(t, binary, self)
	require.NoError(t, os.Chown(dir, int(uid), int(gid)))

	cmd := exec.CommandContext(t.Context(), binary, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "as nobody:\n%s", out)
	require.Contains(t, string(out), "--- PASS: "+t.Name())
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	in, err := os.Open(from)
	require.NoError(t, err)
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(out, in)
	require.NoError(t, err)
	require.NoError(t, out.Close())
}
