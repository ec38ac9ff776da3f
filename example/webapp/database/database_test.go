package database

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

func TestOpenGivenServer(t *testing.T) {
	const dsn = "postgres://shop:secret@db.example/shop"
	o := opener{Options: Options{DatabaseURL: dsn}, find: func() (string, error) {
		t.Error("binaries were looked for")
		return "", nil
	}}
	d, err := o.open(t.Context())
	require.NoError(t, err)
	require.Equal(t, dsn, d.DSN())
	require.Equal(t, "using the PostgreSQL server of DATABASE_URL", d.What())
	require.NoError(t, d.Close())
}

func TestOpenInstalledBinaries(t *testing.T) {
	bin := installed(t)
	repo := newFileServer(t, nil)
	d, err := Open(t.Context(), Options{Repository: repo.URL, CacheDir: t.TempDir()})
	require.NoError(t, err)
	require.Equal(t, "started a throwaway PostgreSQL server from the installed binaries in "+bin, d.What())
	requireServer(t, d)
	require.NoError(t, d.Close())
	requireStopped(t, d)
	require.NoError(t, d.Close(), "closed again")
	require.Empty(t, repo.requests(), "installed binaries are not fetched")
}

func TestOpenWrongPGBIN(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PGBIN", dir)
	repo := newFileServer(t, nil)
	_, err := Open(t.Context(), Options{Repository: repo.URL, CacheDir: t.TempDir()})
	require.ErrorContains(t, err, dir)
	require.Empty(t, repo.requests(), "a wrong PGBIN is not silently replaced")
}

func TestOpenCancelled(t *testing.T) {
	installed(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Open(ctx, Options{})
	require.ErrorIs(t, err, context.Canceled)
}

func TestOpenAsRootWithoutBinaries(t *testing.T) {
	cache := t.TempDir()
	repo := newFileServer(t, nil)
	for _, c := range []struct {
		managers []string
		want     string
	}{
		{[]string{"apt-get"}, "(apt-get install postgresql)"},
		{[]string{"brew", "apt-get"}, "(apt-get install postgresql)"},
		{[]string{"dnf"}, "(dnf install postgresql-server)"},
		{[]string{"apk"}, "(apk add postgresql)"},
		{[]string{"brew"}, "(brew install postgresql)"},
		{nil, "(the package is called postgresql or postgresql-server)"},
	} {
		o := opener{
			Options: Options{Repository: repo.URL, CacheDir: cache},
			root:    true,
			find:    notInstalled,
			lookPath: func(name string) (string, error) {
				if slices.Contains(c.managers, name) {
					return name, nil
				}
				return "", exec.ErrNotFound
			},
		}
		_, err := o.open(t.Context())
		require.ErrorIs(t, err, pgtest.ErrNotInstalled)
		require.ErrorContains(t, err, c.want)
		require.NotContains(t, err.Error(), "\n")
	}
	require.Empty(t, repo.requests())
	requireEmpty(t, cache)
}

// notInstalled is the search on a machine without binaries.
func notInstalled() (string, error) {
	return "", fmt.Errorf("looked everywhere: %w", pgtest.ErrNotInstalled)
}

// installed returns the folder of the machine's binaries. As everywhere,
// REQUIRE_POSTGRES decides whether their absence skips the test or fails it.
func installed(t *testing.T) string {
	t.Helper()
	bin, err := pgtest.FindBinaries()
	if errors.Is(err, pgtest.ErrNotInstalled) {
		pgtest.DSN(t) // skips or fails
	}
	require.NoError(t, err)
	return bin
}

// requireServer checks that the server of d answers.
func requireServer(t *testing.T, d *Database) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.DSN())
	require.NoError(t, err)
	var one int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT 1").Scan(&one))
	require.Equal(t, 1, one)
	require.NoError(t, conn.Close(t.Context()))
}

// requireStopped checks that the server of d is gone.
func requireStopped(t *testing.T, d *Database) {
	t.Helper()
	_, err := pgx.Connect(t.Context(), d.DSN())
	require.Error(t, err)
}

// requireEmpty checks that nothing is in dir.
func requireEmpty(t *testing.T, dir string) {
	t.Helper()
	found, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, found)
}
