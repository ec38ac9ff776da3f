//go:build !unix

package pgtest

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// haveSockets: the server listens on TCP only.
const haveSockets = false

// account has no meaning here: the server runs as the current user.
type account struct{}

func serviceAccount() (*account, error) { return nil, nil }

func (*account) own(string) error { return nil }

func (*account) confine(*exec.Cmd) {}

func tempRoot(*account) string { return os.TempDir() }

// childEnv passes on what the system's libraries need, without PG* variables.
func childEnv(_, _ string) []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(strings.ToUpper(kv), "PG") {
			env = append(env, kv)
		}
	}
	return append(env, "LC_ALL=C", "TZ=UTC")
}

func killGroup(cmd *exec.Cmd) error { return cmd.Process.Kill() }

// shutdownMode is a mode of `pg_ctl stop`, as the signal that pg_ctl emulates.
type shutdownMode string

const (
	fast      shutdownMode = "INT"
	immediate shutdownMode = "QUIT"
)

func requestShutdown(p *process, bin string, mode shutdownMode) error {
	err := exec.Command(binary(bin, "pg_ctl"), "kill", string(mode), strconv.Itoa(p.pid)).Run()
	if err != nil && !p.alive() {
		return nil
	}
	return err
}

func suspend(int) error { return errors.ErrUnsupported }

func resume(int) error { return errors.ErrUnsupported }

func noSuchProcess(error) bool { return false }

// watchdog does nothing: a killed process leaves its server behind.
type watchdog struct{}

func startWatchdog(string) (*watchdog, error) { return nil, nil }

func (*watchdog) watch(int) {}

func (*watchdog) close() {}
