// Package pgtest starts throwaway PostgreSQL servers for tests and examples.
//
// A [Server] is a real cluster in a temporary folder, made by initdb and run
// by this process. [Server.Close] stops it and removes its folder. Its data
// survive a crash of the server, and not one of the machine: fsync is off.
//
// # In a test
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m).Run()) }
//
//	func TestStock(t *testing.T) {
//		pool, err := sqlpool.Open(t.Context(), sqlpool.Config{DSN: pgtest.DSN(t)})
//		...
//	}
//
// [DSN] gives each test a database of its own on one cluster that all tests of
// the binary share. A test that stops, kills or pauses its server takes a
// private one from [Cluster], or one with replicas from [Replicas].
// [Proxy] puts a network that can fail in front of any of them, [PgBouncer] a
// PgBouncer in transaction mode.
//
// # In a program
//
//	srv, err := pgtest.Start(ctx, pgtest.Options{})
//	if errors.Is(err, pgtest.ErrNotInstalled) {
//		// use another server
//	}
//	defer srv.Close()
//
// # Environment
//
//   - TEST_DATABASE_URL: an existing server, as a DSN whose user may create
//     databases. DSN uses it instead of a cluster; Cluster skips the test. Start
//     does not look at it.
//   - PGBIN: the folder of initdb and postgres. See [FindBinaries] for where
//     they are looked for otherwise.
//   - PGBOUNCER: the path of pgbouncer. See [FindBouncer].
//   - REQUIRE_POSTGRES: if set, and not to 0 or false, a test that finds no
//     binaries fails instead of being skipped.
//
// # What happens when the process dies
//
// On Unix nothing is left behind, not even by SIGKILL: each server has a
// watchdog, a small shell process that waits for the end of this process, stops
// the server and removes its folder. On Linux the kernel stops the server as
// well. On Windows a server whose process dies without Close keeps running and
// keeps its folder.
//
// # Who runs the server
//
// PostgreSQL refuses to run as root. When this process is root, the server runs
// as the user postgres, or else nobody. The server listens on a port of
// 127.0.0.1, where it asks for a random password that is part of the DSN, and
// on a Unix socket in its folder, which only its own user (and root) can open.
//
// PostgreSQL 13 or newer is needed.
package pgtest
