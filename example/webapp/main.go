// Webapp is a flash-sale shop that stays up: it protects itself on the server
// side, the client side and the SQL side with surgewall, and shows on its page
// what that does.
//
//	go run .              serve the shop, until Ctrl-C
//	go run . -load 2000   let 2000 buyers in, print what became of them, audit
//
// It needs nothing but Go. With DATABASE_URL it uses that server; otherwise it
// starts a throwaway PostgreSQL from installed binaries; otherwise it fetches
// those. It says which.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "webapp:", err)
		os.Exit(1)
	}
}

// run is the program: it returns when ctx ends, or when the load is through.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	flags := flag.NewFlagSet("webapp", flag.ContinueOnError)
	flags.SetOutput(stderr)
	addr := flags.String("addr", "127.0.0.1:8080", "`address` to serve on; with -load, any free port of loopback")
	buyers := flags.Int("load", 0, "let `N` buyers in, print a table, audit the database, and end")
	units := flags.Int("stock", 0, "`units` on sale in a new database (default 100; with -load, 4 for every 5 buyers)")
	verbose := flags.Bool("v", false, "log spans and warnings of the clients")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case *buyers < 0 || *buyers > 100_000:
		return fmt.Errorf("-load %d: must be 0 to 100000", *buyers)
	case *units < 0 || *units > 1_000_000:
		return fmt.Errorf("-stock %d: must be 0 to 1000000", *units)
	}
	if *units == 0 {
		*units = 100
		if *buyers > 0 {
			*units = max(1, *buyers*4/5)
		}
	}
	level := slog.LevelInfo
	if *verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	if *buyers > 0 {
		*addr = "127.0.0.1:0"
		if !*verbose {
			log = slog.New(slog.DiscardHandler) // the table says it all
		}
	}

	a, err := start(ctx, settings{units: *units, log: log, out: stdout, databaseURL: os.Getenv("DATABASE_URL"), private: *buyers > 0})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop()) }()

	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	url := "http://" + l.Addr().String()
	fmt.Fprintln(stdout, "shop:", url)
	served := make(chan error, 1)
	web := a.web()
	go func() { served <- web.Serve(l) }()
	defer func() { err = errors.Join(err, a.drain(web)) }()

	if *buyers > 0 {
		return a.underLoad(ctx, url, *buyers, stdout)
	}
	fmt.Fprintln(stdout, "Ctrl-C ends it.")
	select {
	case <-ctx.Done():
		fmt.Fprintln(stdout, "draining")
		return nil
	case err := <-served:
		return err
	}
}

// drain lets requests finish, and ends the live pages.
func (a *app) drain(web *http.Server) error {
	close(a.closing)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := web.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("draining: %w", err), web.Close())
	}
	return nil
}
