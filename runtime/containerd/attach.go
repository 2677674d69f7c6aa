//go:build linux

package containerd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"shoal/runtime/containerd/crilog"
	"shoal/runtime/pods"
)

// Attach implements pods.Streams. Output comes from the log, which the shim
// writes at once and which any number of readers may follow; there is no second
// way out of the container that a slow reader could block.
func (e *Engine) Attach(ctx context.Context, id string, stdio pods.Stdio) error {
	c, err := e.find(id)
	if err != nil {
		return err
	}
	if !c.is(pods.StatusRunning) {
		return fmt.Errorf("container %s: %w", c.Name, pods.ErrNotRunning)
	}
	tail, err := openTail(c.LogPath)
	if err != nil {
		return fmt.Errorf("output of container %s: %w", c.Name, err)
	}
	defer tail.close()
	ctx, cancel := context.WithCancel(e.in(ctx))
	defer cancel()
	if stdio.In != nil && c.Stdin {
		go e.attachStdin(ctx, c, stdio.In)
	}
	if stdio.Resize != nil {
		go e.attachSizes(ctx, c, stdio.Resize)
	}
	return tail.copy(ctx, c.exited, stdio)
}

// attachStdin copies until input ends. The FIFO's other end is held by the
// shim, so the container notices nothing of us coming and going, unless it
// asked for its input to end with ours.
func (e *Engine) attachStdin(ctx context.Context, c *container, input io.Reader) {
	fifo, err := os.OpenFile(c.file(stdinFile), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		e.logger.Warn("stdin of container cannot be attached", "container", c.ID, "err", err)
		return
	}
	defer fifo.Close()
	stop := context.AfterFunc(ctx, func() { fifo.Close() })
	defer stop()
	if _, err := io.Copy(fifo, input); err != nil && ctx.Err() == nil {
		e.logger.Debug("stdin of container", "container", c.ID, "err", err)
	}
	if !c.StdinOnce {
		return
	}
	_, err = e.tasks.CloseIO(context.WithoutCancel(ctx), &tasksapi.CloseIORequest{ContainerID: c.ID, Stdin: true})
	if err = ignoreNotFound(errgrpc.ToNative(err)); err != nil {
		e.logger.Warn("stdin of container not closed", "container", c.ID, "err", err)
	}
}

func (e *Engine) attachSizes(ctx context.Context, c *container, sizes <-chan pods.Size) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, open := <-sizes:
			if !open {
				return
			}
			if err := e.resize(ctx, c.ID, "", size); err != nil {
				e.logger.Debug("terminal not resized", "container", c.ID, "err", err)
			}
		}
	}
}

// tail follows a log from its present end, over rotations.
type tail struct {
	path    string
	watcher *fsnotify.Watcher
	file    *os.File
	reader  *bufio.Reader
	begun   []byte // an entry of which the end is not written yet
}

func openTail(path string) (*tail, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	// The folder, because a rotation replaces the file.
	if err := watcher.Add(filepath.Dir(path)); err != nil {
		return nil, errors.Join(err, watcher.Close())
	}
	t := &tail{path: path, watcher: watcher}
	if err := t.open(); err != nil {
		return nil, errors.Join(err, watcher.Close())
	}
	if _, err := t.file.Seek(0, io.SeekEnd); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *tail) open() error {
	file, err := os.Open(t.path)
	if err != nil {
		return err
	}
	t.file, t.reader = file, bufio.NewReader(file)
	return nil
}

func (t *tail) close() {
	// Nothing was written through them.
	_ = t.file.Close()
	_ = t.watcher.Close()
}

// copy writes entries to the streams until the container has exited and all is
// read, or ctx ends.
func (t *tail) copy(ctx context.Context, exited <-chan struct{}, stdio pods.Stdio) error {
	for {
		if err := t.read(stdio); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-exited:
			// The log is complete when the exit is known.
			return t.read(stdio)
		case _, open := <-t.watcher.Events:
			if !open {
				return errors.New("the log is not watched any more")
			}
		case err := <-t.watcher.Errors:
			return err
		}
	}
}

// read copies all there is, in this file and in its successor.
func (t *tail) read(stdio pods.Stdio) error {
	for {
		// Asked before reading: what is written between must not be skipped.
		replaced := t.replaced()
		for {
			part, err := t.reader.ReadBytes('\n')
			t.begun = append(t.begun, part...)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			if err := deliver(t.begun, stdio); err != nil {
				return err
			}
			t.begun = t.begun[:0]
		}
		if !replaced {
			return nil
		}
		if err := t.file.Close(); err != nil {
			return err
		}
		if err := t.open(); err != nil {
			return err
		}
	}
}

// replaced reports whether another file lies at the path than the open one.
func (t *tail) replaced() bool {
	now, err := os.Stat(t.path)
	if err != nil {
		return false // in the middle of a rotation
	}
	have, err := t.file.Stat()
	return err == nil && !os.SameFile(now, have)
}

func deliver(line []byte, stdio pods.Stdio) error {
	entry, err := crilog.ParseEntry(line)
	if err != nil {
		return err
	}
	to := stdio.Out
	if entry.Stream == "stderr" && stdio.Err != nil {
		to = stdio.Err
	}
	if to == nil {
		return nil
	}
	content := entry.Content
	if !entry.Partial {
		content = append(content, '\n')
	}
	_, err = to.Write(content)
	return err
}
