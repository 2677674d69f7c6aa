//go:build linux

package fence

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"shoal/internal/boottime"
)

// Dir is a peer's state folder. The peer writes in it, the watchdog reads.
type Dir string

// Pod says where the processes of a pod are.
type Pod struct {
	UID string `json:"-"`
	// Cgroups are absolute folders, one in each hierarchy. Everything in and
	// below them is the pod's; those that do not exist are empty.
	Cgroups []string `json:"cgroups"`
	// Spare names a cgroup directly below them that is left alone: the process
	// that holds a shared pid namespace runs nothing of the user's, and the pod
	// could not go on without it.
	Spare string `json:"spare,omitempty"`
}

const unfinished = ".new"

func (d Dir) heartbeat() string { return filepath.Join(string(d), "heartbeat") }

func (d Dir) pod(uid string) string { return filepath.Join(string(d), "fence", uid) }

// Arm makes a heartbeat that is overdue unless there is one: from now on a
// renewal is needed.
func (d Dir) Arm() error {
	if _, err := os.Stat(d.heartbeat()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.beat(never)
}

// Renewed notes that the lease was renewed at that moment, which must carry a
// monotonic reading, as time.Now's does.
func (d Dir) Renewed(at time.Time) error {
	now, err := boottime.Now()
	if err != nil {
		return err
	}
	return d.beat(now - time.Since(at))
}

// Extend lets the pods run until that moment, up to half a minute ahead, without
// another renewal. A lease that is not kept (Kept) is not extended: the node may have been judged lost before its restart was announced, and
// its pods are replaced then whoever is waited for.
func (d Dir) Extend(until time.Time) error {
	if old, err := d.Overdue(Kept); err != nil || old {
		return err
	}
	return d.Renewed(until.Add(-KillAfter))
}

func (d Dir) beat(renewed time.Duration) error {
	return replace(d.heartbeat(), strconv.AppendInt(nil, int64(renewed), 10))
}

// Overdue reports whether there is a heartbeat and the last renewal is limit or
// more ago.
func (d Dir) Overdue(limit time.Duration) (bool, error) {
	now, err := boottime.Now()
	if err != nil {
		return false, err
	}
	text, found, err := d.read()
	if err != nil {
		return false, err
	}
	return sight{}.next(now, text, found).overdue(now, limit), nil
}

// read returns the heartbeat's content.
func (d Dir) read() (text string, found bool, err error) {
	data, err := os.ReadFile(d.heartbeat())
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	return string(data), err == nil, err
}

// Add lists a pod.
func (d Dir) Add(pod Pod) error {
	data, err := json.Marshal(pod)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.pod(""), 0o700); err != nil {
		return err
	}
	return replace(d.pod(pod.UID), data)
}

// Remove takes a pod from the list. Unknown UID: nil.
func (d Dir) Remove(uid string) error {
	if err := os.Remove(d.pod(uid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Pods returns the list. The error tells of files that could not be read; the
// others are returned all the same.
func (d Dir) Pods() ([]Pod, error) {
	entries, err := os.ReadDir(d.pod(""))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	failed := []error{err}
	var pods []Pod
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), unfinished) {
			continue
		}
		pod := Pod{UID: entry.Name()}
		data, err := os.ReadFile(d.pod(pod.UID))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = json.Unmarshal(data, &pod)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("fenced pod %s: %w", pod.UID, err))
			continue
		}
		pods = append(pods, pod)
	}
	return pods, errors.Join(failed...)
}

// replace makes a file appear whole or not at all.
func replace(path string, data []byte) error {
	if err := os.WriteFile(path+unfinished, data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+unfinished, path)
}
