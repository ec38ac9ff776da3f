package pgtest

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// fakeBinaries makes a folder with empty programs.
func fakeBinaries(t *testing.T, elem ...string) string {
	t.Helper()
	dir := filepath.Join(elem...)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	for _, name := range []string{"initdb", "postgres"} {
		require.NoError(t, os.WriteFile(binary(dir, name), nil, 0o755))
	}
	return dir
}

func TestFindBinariesOrder(t *testing.T) {
	root := t.TempDir()
	pgbin := fakeBinaries(t, root, "explicit")
	configured := fakeBinaries(t, root, "configured")
	inPath := fakeBinaries(t, root, "path")
	fakeBinaries(t, root, "usual", "9.6", "bin")
	fakeBinaries(t, root, "usual", "15", "bin")
	newest := fakeBinaries(t, root, "other", "postgresql@17", "bin")
	require.NoError(t, os.MkdirAll(filepath.Join(root, "usual", "18", "bin"), 0o755)) // without binaries
	absent := errors.New("absent")

	// Each step takes the best place away.
	env := map[string]string{"PGBIN": pgbin}
	f := finder{
		getenv:   func(name string) string { return env[name] },
		bindir:   func() (string, error) { return configured, nil },
		lookPath: func(string) (string, error) { return binary(inPath, "postgres"), nil },
		folders: []string{
			filepath.Join(root, "usual", "*", "bin"),
			filepath.Join(root, "other", "postgresql*", "bin"),
		},
	}
	find := func() string {
		t.Helper()
		dir, err := f.find()
		require.NoError(t, err)
		return dir
	}
	require.Equal(t, pgbin, find())

	env["PGBIN"] = ""
	require.Equal(t, configured, find())

	f.bindir = func() (string, error) { return root, nil } // pg_config without a server
	require.Equal(t, inPath, find())
	f.bindir = func() (string, error) { return configured, absent }
	require.Equal(t, inPath, find())

	f.lookPath = func(string) (string, error) { return "", absent }
	require.Equal(t, newest, find())

	f.folders = f.folders[:1]
	require.Equal(t, filepath.Join(root, "usual", "15", "bin"), find(), "15 is newer than 9.6")

	f.folders = nil
	_, err := f.find()
	require.ErrorIs(t, err, ErrNotInstalled)
	require.ErrorContains(t, err, installLine(runtime.GOOS))
}

func TestFindBinariesWrongPGBIN(t *testing.T) {
	root := t.TempDir()
	f := finder{
		getenv:   func(string) string { return filepath.Join(root, "nothing") },
		bindir:   func() (string, error) { return fakeBinaries(t, root, "good"), nil },
		lookPath: func(string) (string, error) { return "", errors.New("absent") },
	}
	_, err := f.find()
	require.Error(t, err, "another version must not be taken silently")
	require.NotErrorIs(t, err, ErrNotInstalled, "a wrong PGBIN must not skip tests")
}

func TestCheckBinaries(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no executable bit")
	}
	dir := fakeBinaries(t, t.TempDir())
	require.NoError(t, checkBinaries(dir))
	require.NoError(t, os.Chmod(binary(dir, "postgres"), 0o644))
	require.ErrorContains(t, checkBinaries(dir), "not executable")
	require.NoError(t, os.Remove(binary(dir, "initdb")))
	require.ErrorIs(t, checkBinaries(dir), os.ErrNotExist)
}

func TestFolderVersion(t *testing.T) {
	for dir, want := range map[string][]int{
		"/usr/lib/postgresql/15/bin":           {15},
		"/opt/homebrew/opt/postgresql@9.6/bin": {9, 6},
		"/usr/pgsql-16/bin":                    {16},
		"/x1/opt/postgresql/bin":               {1}, // a number elsewhere: no harm, it only ranks
		"/opt/postgresql/bin":                  nil,
		"/v/99999999999999999999/bin":          nil,
	} {
		require.Equal(t, want, folderVersion(dir), dir)
	}
}
