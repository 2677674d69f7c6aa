//go:build linux

package taskshim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"shoal/runtime/containerd/crilog"
)

// output carries one container's streams from FIFOs in its bundle to its log.
type output struct {
	target         crilog.Target
	stdout, stderr string // FIFOs
	log            *crilog.Log
	sources        map[string]*os.File // stream name → read end
	drained        chan struct{}       // closed when every stream has ended
}

// openOutput returns nil when the request does not ask for a CRI log.
func openOutput(r *taskapi.CreateTaskRequest) (_ *output, err error) {
	target, ok, err := crilog.ParseTarget(r.Stdout)
	if err != nil || !ok {
		return nil, err
	}
	o := &output{target: target, sources: map[string]*os.File{}, drained: make(chan struct{})}
	defer func() {
		if err != nil {
			o.close()
		}
	}()
	if o.log, err = crilog.Open(target); err != nil {
		return nil, err
	}
	if o.stdout, err = o.openFIFO(r.Bundle, "stdout"); err != nil {
		return nil, err
	}
	if r.Terminal {
		return o, nil // a terminal has one stream
	}
	o.stderr, err = o.openFIFO(r.Bundle, "stderr")
	return o, err
}

// openFIFO makes a FIFO and opens its read end. Non-blocking, because nobody
// writes yet.
func (o *output) openFIFO(bundle, stream string) (string, error) {
	path := filepath.Join(bundle, stream+".fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("make fifo %s: %w", path, err)
	}
	source, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", fmt.Errorf("open fifo: %w", err)
	}
	o.sources[stream] = source
	return path, nil
}

// drain starts to copy. The writers must be open by now: a FIFO that nobody
// has opened for writing reads as ended.
func (o *output) drain() {
	var all sync.WaitGroup
	for name, source := range o.sources {
		all.Go(func() {
			if err := o.log.Stream(name).Drain(source); err != nil {
				log.L.WithError(err).WithField("log", o.target.Path).Warn("container output was lost")
			}
		})
	}
	go func() {
		all.Wait()
		close(o.drained)
		o.close()
	}()
}

func (o *output) close() {
	for _, source := range o.sources {
		source.Close()
	}
	if o.log != nil {
		if err := o.log.Close(); err != nil {
			log.L.WithError(err).WithField("log", o.target.Path).Warn("close container log")
		}
	}
}
