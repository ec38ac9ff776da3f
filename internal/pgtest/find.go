package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ErrNotInstalled reports that no PostgreSQL server binaries were found. Errors
// that wrap it name the command that installs them.
var ErrNotInstalled = errors.New("PostgreSQL server binaries not found")

// FindBinaries returns the folder that holds the initdb and postgres binaries.
// It takes the first of:
//
//   - PGBIN, if set; a PGBIN without the binaries is an error and not a reason
//     to look further
//   - what `pg_config --bindir` prints
//   - the folder of postgres in PATH
//   - the newest version in the usual folders of Linux distributions, Homebrew,
//     MacPorts, Postgres.app and the Windows installer
//
// If there are none, the error wraps [ErrNotInstalled].
func FindBinaries() (string, error) {
	return finder{
		getenv:   os.Getenv,
		lookPath: exec.LookPath,
		bindir:   pgConfigBindir,
		folders:  usualFolders,
	}.find()
}

// usualFolders are glob patterns of folders that are not in PATH.
var usualFolders = []string{
	"/usr/lib/postgresql/*/bin",         // Debian, Ubuntu
	"/usr/pgsql-*/bin",                  // Fedora and RHEL, from postgresql.org
	"/usr/libexec/postgresql*",          // Alpine
	"/opt/homebrew/opt/postgresql*/bin", // Homebrew on Apple silicon
	"/usr/local/opt/postgresql*/bin",    // Homebrew on Intel
	"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
	"/opt/local/lib/postgresql*/bin", // MacPorts
	"/Applications/Postgres.app/Contents/Versions/*/bin",
	`C:\Program Files\PostgreSQL\*\bin`,
}

// finder is the search of FindBinaries, with what it asks of the machine as
// fields.
type finder struct {
	getenv   func(string) string
	lookPath func(string) (string, error)
	bindir   func() (string, error)
	folders  []string
}

func (f finder) find() (string, error) {
	if dir := f.getenv("PGBIN"); dir != "" {
		// A version that was asked for is never silently replaced by another.
		return dir, checkBinaries(dir)
	}
	// The client library's development package brings pg_config without a
	// server, so its answer is a hint only.
	if dir, err := f.bindir(); err == nil && checkBinaries(dir) == nil {
		return dir, nil
	}
	if path, err := f.lookPath("postgres"); err == nil {
		if dir := filepath.Dir(path); checkBinaries(dir) == nil {
			return dir, nil
		}
	}
	var newest string
	var newestVersion []int
	for _, pattern := range f.folders {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return "", fmt.Errorf("pgtest: pattern %q: %w", pattern, err)
		}
		for _, dir := range dirs {
			if checkBinaries(dir) != nil {
				continue
			}
			v := folderVersion(dir)
			if newest == "" || slices.Compare(v, newestVersion) > 0 {
				newest, newestVersion = dir, v
			}
		}
	}
	if newest == "" {
		return "", fmt.Errorf("pgtest: %w; install them (%s) or set PGBIN to their folder", ErrNotInstalled, installLine(runtime.GOOS))
	}
	return newest, nil
}

// checkBinaries returns nil if dir holds what a server needs.
func checkBinaries(dir string) error {
	for _, name := range []string{"initdb", "postgres"} {
		info, err := os.Stat(binary(dir, name))
		if err != nil {
			return fmt.Errorf("pgtest: %w", err)
		}
		if info.IsDir() || runtime.GOOS != "windows" && info.Mode()&0o111 == 0 {
			return fmt.Errorf("pgtest: %s is not executable", binary(dir, name))
		}
	}
	return nil
}

// binary is the path of the program name in dir.
func binary(dir, name string) string {
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	return filepath.Join(dir, name)
}

// pgConfigTimeout bounds a pg_config that hangs; it answers in milliseconds.
const pgConfigTimeout = 10 * time.Second

func pgConfigBindir() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), pgConfigTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output()
	return strings.TrimSpace(string(out)), err
}

var versionNumber = regexp.MustCompile(`\d+(\.\d+)*`)

// folderVersion reads the version out of a folder's name: the last number in
// it, as in /usr/lib/postgresql/15/bin. No number is older than any.
func folderVersion(dir string) []int {
	all := versionNumber.FindAllString(dir, -1)
	if len(all) == 0 {
		return nil
	}
	var v []int
	for part := range strings.SplitSeq(all[len(all)-1], ".") {
		n, err := strconv.Atoi(part)
		if err != nil { // out of range: not a version
			return nil
		}
		v = append(v, n)
	}
	return v
}

func installLine(goos string) string {
	switch goos {
	case "darwin":
		return "brew install postgresql"
	case "windows":
		return "winget install PostgreSQL.PostgreSQL"
	case "freebsd", "dragonfly":
		return "pkg install postgresql-server"
	default:
		return "apt-get install postgresql, dnf install postgresql-server or apk add postgresql"
	}
}
