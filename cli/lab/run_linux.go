package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// Options are what `peer lab` asks for.
type Options struct {
	Peers int
	// Once tears down after the demo instead of waiting for ctx to end.
	Once bool
	// WebAddress is where the demo's Service is forwarded to on the host.
	WebAddress string
	Dir        string
}

// Run opens a lab, shows the demo and, unless Once, stays up until ctx ends. Whatever happens, nothing is left behind; an error in taking
// down is an error.
func Run(ctx context.Context, options Options, out io.Writer) (err error) {
	fmt.Fprintf(out, "A lab of %d peers on this machine. Ctrl-C ends it and leaves nothing behind.\n\n", options.Peers)
	progress := steps{out: out}
	l, err := Open(ctx, Config{Peers: options.Peers, Dir: options.Dir, Progress: progress.step})
	if err != nil {
		return err
	}
	demo := &Demo{Lab: l, Out: out, WebAddress: options.WebAddress}
	defer func() {
		err = errors.Join(err, demo.Close(), l.step("take everything down", l.Close))
	}()
	if err := demo.Run(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // the user has seen enough
		}
		keepLogs(l, out)
		return err
	}
	if options.Once {
		return nil
	}
	fmt.Fprintf(out, "\nThe lab stays up. In another terminal:\n\n    export KUBECONFIG=%s\n    peer get pods -A        (or kubectl)\n    curl http://%s/\n\nCtrl-C ends it.\n",
		l.Kubeconfig, demo.WebAddress)
	<-ctx.Done()
	fmt.Fprintln(out)
	return nil
}

// keepLogs saves the peers' logs from being removed with the lab, because it failed.
func keepLogs(l *Lab, out io.Writer) {
	dir, err := os.MkdirTemp("", "shoal-lab-logs-")
	if err != nil {
		return
	}
	for _, peer := range l.Peers {
		if text, err := os.ReadFile(peer.Log); err == nil {
			// Best effort: the lab's own error is what counts.
			_ = os.WriteFile(dir+"/"+peer.Name+".log", text, 0o600)
		}
	}
	fmt.Fprintf(out, "\nThe peers' logs are kept in %s\n", dir)
}

// Progress prints one line per step to out, with its time: a Config.Progress.
func Progress(out io.Writer) func(step string) (done func(error)) { return steps{out: out}.step }

// steps prints one line per step, with its time. On a terminal the step is announced when it begins.
type steps struct{ out io.Writer }

func (s steps) step(name string) func(error) {
	begun := time.Now()
	back := ""
	if file, ok := s.out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		fmt.Fprintf(s.out, "  … %s", name)
		back = "\r"
	}
	return func(err error) {
		mark := "✓"
		if err != nil {
			mark = "✗"
		}
		fmt.Fprintf(s.out, "%s  %s %-74s %5.1f s\n", back, mark, name, time.Since(begun).Seconds())
	}
}
