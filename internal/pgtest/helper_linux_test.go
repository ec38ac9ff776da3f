package pgtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// helperInfo is what a helper process prints once it is where it should be.
type helperInfo struct{ PID int }

func init() { runHelper = startAndWait }

// startAndWait is the test binary as a program that starts a server and is
// killed.
func startAndWait(mode string) {
	s, err := Start(context.Background(), Options{})
	if err == nil && mode == "paused" {
		err = s.Pause()
	}
	if err == nil && mode == "unwatched" {
		err = s.watchdog.proc.cmd.Process.Kill()
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(helperInfo{PID: s.PID()})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if mode == "exit" {
		os.Exit(0) // without Close
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until killed
}
