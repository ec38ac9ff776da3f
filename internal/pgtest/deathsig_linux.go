package pgtest

import "syscall"

// deathSignal makes the kernel send SIGQUIT to the child when the thread that
// forks it exits, and so when this process is killed: an immediate shutdown.
// See startProcess for the thread.
func deathSignal(attr *syscall.SysProcAttr) {
	attr.Pdeathsig = syscall.SIGQUIT
}
