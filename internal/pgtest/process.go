package pgtest

import (
	"os/exec"
	"runtime"
)

// process is a running child. One goroutine starts it, waits for it and ends
// with it.
type process struct {
	cmd  *exec.Cmd
	pid  int
	done chan struct{} // closed once the child has been reaped
	err  error         // how it ended; read it after done
}

// startProcess starts cmd. onExit, if any, runs after the child was reaped and
// before done is closed.
//
// On Linux the kernel ties the death signal of a child (see deathSignal) to the
// thread that forked it, not to the process: when that thread exits, the child
// is killed. Go ends a thread whenever a goroutine returns that is locked to
// it, and the caller may be such a goroutine. So the child is forked from a
// goroutine of its own that keeps its thread until the child is gone. It costs
// no extra thread, as waiting for the child blocks one anyway.
func startProcess(cmd *exec.Cmd, onExit func()) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go p.run(started, onExit)
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// run is the child's goroutine.
func (p *process) run(started chan<- error, onExit func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread() // the thread goes back to the runtime and lives on
	err := p.cmd.Start()
	if err == nil {
		p.pid = p.cmd.Process.Pid
	}
	started <- err
	if err != nil {
		return
	}
	p.err = p.cmd.Wait()
	if onExit != nil {
		onExit()
	}
	close(p.done)
}

// alive reports whether the child has not been reaped yet.
func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}
