//go:build linux

package containerd

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"

	"shoal/runtime/containerd/exitrecord"
	"shoal/runtime/pods"
)

// Files in a container's folder.
const (
	recordFile = "container.json" // record; written last by Create
	startFile  = "start.json"     // startRecord
	exitFile   = "exit.json"      // exitrecord.Record, by the shim or by us
	stdinFile  = "stdin"          // FIFO
)

// record is what a container was made from, as far as it is needed later.
type record struct {
	ID, PodUID, Name      string
	Attempt               int
	Labels                map[string]string
	Image, ImageID        string
	LogPath               string
	LogMaxBytes           int64
	LogMaxFiles           int
	StopSignal            string
	Stdin, StdinOnce, TTY bool
	Cgroup                string
	CreatedAt             time.Time
	Pause                 bool // holds a pod's pid namespace; not one of the pod's containers
}

type startRecord struct {
	StartedAt time.Time
	PID       int
}

// container is one container in memory.
type container struct {
	record
	folder string

	verb sync.Mutex // held by the verb that works on it

	mu       sync.Mutex // guards what follows
	status   pods.Status
	pid      int
	started  time.Time
	exit     exitrecord.Record
	exited   chan struct{} // closed when status becomes exited
	mounts   []mount.Mount // of the root file system, between Create and Start
	taskGone bool          // containerd's task is deleted, or there never was one
	rootFS   pods.FSUsage
	rootFSAt time.Time
}

// containerID is the same for the same identity, which makes Create idempotent
// even when its answer was lost.
func containerID(podUID, name string, attempt int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d", podUID, name, attempt))
	return hex.EncodeToString(sum[:])
}

func newContainer(r record, folder string) *container {
	return &container{record: r, folder: folder, status: pods.StatusCreated, exited: make(chan struct{})}
}

// loadContainer reads the folder of a container; fs.ErrNotExist when Create did
// not come to its end.
func loadContainer(folder string) (*container, error) {
	var r record
	if err := readJSON(filepath.Join(folder, recordFile), &r); err != nil {
		return nil, err
	}
	c := newContainer(r, folder)
	var start startRecord
	if err := readJSON(filepath.Join(folder, startFile), &start); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	c.started, c.pid = start.StartedAt, start.PID
	return c, nil
}

func (c *container) file(name string) string { return filepath.Join(c.folder, name) }

// state is the container as callers see it.
func (c *container) state() pods.ContainerState {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := pods.ContainerState{
		ID:        c.ID,
		PodUID:    c.PodUID,
		Name:      c.Name,
		Attempt:   c.Attempt,
		Labels:    c.Labels,
		Image:     c.Image,
		ImageID:   c.ImageID,
		Status:    c.status,
		CreatedAt: c.CreatedAt,
		StartedAt: c.started,
		LogPath:   c.LogPath,
	}
	switch c.status {
	case pods.StatusRunning:
		s.PID = c.pid
	case pods.StatusExited:
		s.FinishedAt = c.exit.ExitedAt
		s.ExitCode = int(c.exit.Status)
		s.OOMKilled = c.exit.OOMKilled
		s.Message = c.exit.Message
	}
	return s
}

func (c *container) is(status pods.Status) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status == status
}

// setStarted notes that the main process runs. Its end may have been noted before.
func (c *container) setStarted(at time.Time, pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pid = pid
	if c.status == pods.StatusExited {
		if c.started.IsZero() {
			c.started = c.exit.ExitedAt
		}
		return
	}
	c.started, c.status = at, pods.StatusRunning
}

// setExited notes the end once; it reports whether it was news.
func (c *container) setExited(end exitrecord.Record) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status == pods.StatusExited {
		return false
	}
	c.status, c.exit = pods.StatusExited, end
	close(c.exited)
	return true
}

// setFailed notes a start that failed.
func (c *container) setFailed(end exitrecord.Record) {
	c.mu.Lock()
	c.started, c.taskGone = end.ExitedAt, true
	c.mu.Unlock()
	c.setExited(end)
}

// container returns nil when there is none.
func (e *Engine) container(id string) *container {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.containers[id]
}

// find is container with an error for callers.
func (e *Engine) find(id string) (*container, error) {
	if c := e.container(id); c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %s: %w", id, pods.ErrNotFound)
}
