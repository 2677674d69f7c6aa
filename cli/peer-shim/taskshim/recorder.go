//go:build linux

package taskshim

import (
	"context"
	"sync"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/log"

	"shoal/runtime/containerd/exitrecord"
)

// flushWait is how long the news of an exit waits for the last output to
// reach the log. Who sees the exit may then read the whole log. A stray
// process that keeps the stream open must not hold up the news.
const flushWait = 200 * time.Millisecond

// recorder writes exit records, then passes events on to containerd.
type recorder struct {
	shim.Publisher

	mu         sync.Mutex
	containers map[string]*watched
}

// watched is one container whose end is to be recorded.
type watched struct {
	output *output
	cgroup string // of its OCI spec
}

func newRecorder(publisher shim.Publisher) *recorder {
	return &recorder{Publisher: publisher, containers: map[string]*watched{}}
}

func (r *recorder) add(id string, output *output, bundle string) {
	cgroup, err := specCgroup(bundle)
	if err != nil {
		log.L.WithError(err).WithField("id", id).Warn("cannot tell out-of-memory kills from others")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers[id] = &watched{output: output, cgroup: cgroup}
}

func (r *recorder) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.containers, id)
}

// Publish records the exit of a container's main process before it tells
// containerd, which may be down.
func (r *recorder) Publish(ctx context.Context, topic string, event events.Event) error {
	if exit, ok := event.(*apievents.TaskExit); ok && topic == runtime.TaskExitEventTopic && exit.ID == exit.ContainerID {
		r.record(exit)
	}
	return r.Publisher.Publish(ctx, topic, event)
}

func (r *recorder) record(exit *apievents.TaskExit) {
	r.mu.Lock()
	c := r.containers[exit.ContainerID]
	r.mu.Unlock()
	if c == nil || c.output.target.ExitPath == "" {
		return
	}
	select {
	case <-c.output.drained:
	case <-time.After(flushWait):
	}
	err := exitrecord.Write(c.output.target.ExitPath, exitrecord.Record{
		ID:        exit.ContainerID,
		PID:       exit.Pid,
		Status:    exit.ExitStatus,
		ExitedAt:  exit.ExitedAt.AsTime(),
		OOMKilled: exit.ExitStatus != 0 && oomKills(c.cgroup) > 0,
	})
	if err != nil {
		log.L.WithError(err).WithField("id", exit.ContainerID).Error("exit not recorded")
	}
}
