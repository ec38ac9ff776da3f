package pgtest_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"testing"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// A program that brings its own server.
func ExampleStart() {
	srv, err := pgtest.Start(context.Background(), pgtest.Options{
		Settings: map[string]string{"max_connections": "50"},
	})
	if errors.Is(err, pgtest.ErrNotInstalled) {
		fmt.Println("using another server:", err)
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		if err := srv.Close(); err != nil {
			log.Print(err)
		}
	}()
	fmt.Println("PostgreSQL on", srv.Addr())
}

// A test that uses a database of its own.
func ExampleDSN() {
	_ = func(t *testing.T) {
		dsn := pgtest.DSN(t)
		t.Log("connect to", dsn)
	}
}

// A test that takes its server away from under its clients.
func ExampleCluster() {
	_ = func(t *testing.T) {
		srv := pgtest.Cluster(t)
		if err := srv.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := srv.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// A test that loses its primary and goes on with a replica.
func ExampleReplicas() {
	_ = func(t *testing.T) {
		primary, replicas := pgtest.Replicas(t, 1)
		if err := primary.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := replicas[0].Promote(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := primary.Follow(t.Context(), replicas[0]); err != nil {
			t.Fatal(err)
		}
	}
}

// A test on a network that fails, and behind a PgBouncer.
func ExampleProxy() {
	_ = func(t *testing.T) {
		bouncer := pgtest.PgBouncer(t, pgtest.DSN(t), pgtest.BouncerOptions{})
		proxy, dsn := pgtest.Proxy(t, bouncer.DSN())
		t.Log("connect to", dsn)
		proxy.Freeze()
		if err := proxy.Pass(); err != nil {
			t.Fatal(err)
		}
	}
}
