//go:build linux

package taskshim

import (
	"fmt"
	"io"
	"os/exec"
	"time"

	runc "github.com/containerd/go-runc"

	"shoal/cli/peer-shim/ocirun"
)

// inlineMonitor runs those runtime commands that start no process within the
// shim. The shim is the same program as the runtime, so nothing else changes.
type inlineMonitor struct {
	runc.ProcessMonitor
}

// Start runs or executes the command.
func (m *inlineMonitor) Start(c *exec.Cmd) (chan runc.Exit, error) {
	if exit := runInline(c); exit != nil {
		return exit, nil
	}
	return m.ProcessMonitor.Start(c)
}

// StartLocked runs or executes the command.
func (m *inlineMonitor) StartLocked(c *exec.Cmd) (chan runc.Exit, error) {
	if exit := runInline(c); exit != nil {
		return exit, nil
	}
	return m.ProcessMonitor.StartLocked(c)
}

// Wait returns the command's exit status.
func (m *inlineMonitor) Wait(c *exec.Cmd, exits chan runc.Exit) (int, error) {
	if c.Process == nil {
		return (<-exits).Status, nil
	}
	return m.ProcessMonitor.Wait(c, exits)
}

// runInline returns nil when the command must be executed.
func runInline(c *exec.Cmd) chan runc.Exit {
	stdout := c.Stdout
	if stdout == nil {
		stdout = io.Discard
	}
	ok, err := ocirun.Inline(c.Args[1:], c.Stdin, stdout)
	if !ok {
		return nil
	}
	exit := runc.Exit{Timestamp: time.Now()}
	if err != nil {
		exit.Status = 1
		if c.Stderr != nil {
			// A buffer; go-runc makes the error's text of it.
			_, _ = fmt.Fprintln(c.Stderr, err)
		}
	}
	exits := make(chan runc.Exit, 1)
	exits <- exit
	return exits
}
