//go:build unix

package pgtest

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// watchdogScript reads process ids, one a line, until its input ends: then the
// process that wrote them has closed the watchdog or has died. It stops the
// process named last (an empty line: none), and removes the folder $1.
//
// Removing is tried again while something may still be writing there.
const watchdogScript = `
trap '' HUP INT QUIT TERM
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
	kill -CONT "$pid"
	kill -QUIT "$pid"
	n=0
	while kill -0 "$pid"; do
		if [ $n -ge 100 ]; then kill -KILL "$pid"; break; fi
		sleep 0.1
		n=$((n + 1))
	done
fi
n=0
while [ -e "$1" ] && [ $n -lt 50 ]; do
	rm -rf -- "$1" && break
	sleep 0.1
	n=$((n + 1))
done
`

// watchdog is a shell that cleans up when this process dies without doing so.
// It learns of that from the end of a pipe whose write side only this process
// holds, which the kernel closes however the process ends.
//
// It runs as this process's own user, who made the folder and can remove it.
type watchdog struct {
	pipe *os.File
	proc *process
}

func startWatchdog(dir string) (*watchdog, error) {
	r, w, err := os.Pipe() // close-on-exec: no child inherits the write side
	if err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	cmd := exec.Command("/bin/sh", "-c", watchdogScript, "pgtest-watchdog", dir)
	cmd.Dir = "/" // it must outlive the folder
	cmd.Env = childEnv("/bin", "/")
	cmd.Stdin = r
	// Out of the terminal's process group, and without a death signal: it has
	// to outlive this process too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p, err := startProcess(cmd, nil)
	_ = r.Close()
	if err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	return &watchdog{pipe: w, proc: p}, nil
}

// watch names the process to stop; 0 means none. A watchdog that somebody
// killed is no reason to fail.
func (w *watchdog) watch(pid int) {
	line := "\n"
	if pid != 0 {
		line = strconv.Itoa(pid) + "\n"
	}
	_, _ = w.pipe.WriteString(line) // shorter than PIPE_BUF: atomic
}

// close ends the watchdog and waits for it.
func (w *watchdog) close() {
	if w == nil {
		return
	}
	_ = w.pipe.Close()
	<-w.proc.done
}
