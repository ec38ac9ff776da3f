//go:build unix && !linux

package pgtest

import "syscall"

// deathSignal does nothing: only Linux has death signals. The watchdog alone
// stops the server here.
func deathSignal(*syscall.SysProcAttr) {}
