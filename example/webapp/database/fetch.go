package database

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// version is the PostgreSQL that is fetched.
const version = embeddedpostgres.V18

// fetch returns the folder of the server binaries in the cache. If they are not
// there yet, it fetches them.
func (o opener) fetch(ctx context.Context) (_ string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("fetch PostgreSQL %s: %w", version, err)
		}
	}()
	cache := o.CacheDir
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(user, "surgewall-example")
	}
	kept := filepath.Join(cache, fmt.Sprintf("postgresql-%s-%s-%s", version, runtime.GOOS, runtime.GOARCH))
	bin := filepath.Join(kept, "bin")
	if _, err := os.Stat(kept); err == nil {
		return bin, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := o.fetchInto(ctx, dir); err != nil {
		return "", err
	}
	// The folder gets its name only when it is complete. If another process
	// was faster, its folder is as good.
	if err := os.Rename(filepath.Join(dir, "postgresql"), kept); err != nil {
		if _, statErr := os.Stat(kept); statErr != nil {
			return "", err
		}
	}
	return bin, nil
}

// fetchInto makes the library put the binaries into the folder postgresql in
// dir. The library does so only in order to start a server, so one is started
// and stopped: that shows, before they are kept, that they run on this machine.
// The server the shop uses is pgtest's all the same, because that one stops
// even if this process is killed.
func (o opener) fetchInto(ctx context.Context, dir string) error {
	config := embeddedpostgres.DefaultConfig().Version(version)
	repo, err := serveRepository(ctx, cmp.Or(o.Repository, defaultRepository(config)), cmp.Or(o.Progress, io.Discard))
	if err != nil {
		return err
	}
	defer repo.close()
	port, err := freePort()
	if err != nil {
		return err
	}
	binaries, data := filepath.Join(dir, "postgresql"), filepath.Join(dir, "data")
	library := embeddedpostgres.NewDatabase(config.
		BinaryRepositoryURL(repo.url()).
		CachePath(dir).
		BinariesPath(binaries).
		RuntimePath(filepath.Join(dir, "run")).
		DataPath(data).
		Port(port).
		Password(rand.Text()).
		Locale("C").
		Encoding("UTF8").
		// The default folder for sockets is often writable only for the
		// system's own server; TCP is enough here.
		StartParameters(map[string]string{"unix_socket_directories": ""}).
		Logger(nil))
	defer removeLog(library)

	err = library.Start()
	if err == nil {
		err = library.Stop()
	}
	if err != nil {
		// A server that was slow, or whose pg_ctl was interrupted, may be left.
		_ = exec.Command(filepath.Join(binaries, "bin", "pg_ctl"), "stop", "-m", "immediate", "-D", data).Run()
	}
	// The library takes every failed download for a missing version, and does
	// not know ctx.
	if cause := cmp.Or(repo.failure(), ctx.Err()); cause != nil {
		return cause
	}
	if err != nil {
		return errors.New(strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; "))
	}
	return nil
}

// freePort returns a TCP port that nobody listens on.
func freePort() (uint32, error) {
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		return 0, err
	}
	return uint32(l.Addr().(*net.TCPAddr).Port), l.Close()
}

// defaultRepository is the repository of the library, which has no method that
// tells it.
func defaultRepository(config embeddedpostgres.Config) string {
	return reflect.ValueOf(config).FieldByName("binaryRepositoryURL").String()
}

// removeLog removes the log that the library makes in the temporary folder. The
// library neither closes nor removes it, nor tells its name.
func removeLog(library *embeddedpostgres.EmbeddedPostgres) {
	logger := reflect.ValueOf(library).Elem().FieldByName("syncedLogger")
	if logger.Kind() != reflect.Pointer || logger.IsNil() {
		return
	}
	file := logger.Elem().FieldByName("file")
	if !file.IsValid() || file.Type() != reflect.TypeFor[*os.File]() || file.IsNil() {
		return
	}
	log := (*os.File)(file.UnsafePointer())
	_ = log.Close()
	_ = os.Remove(log.Name())
}
