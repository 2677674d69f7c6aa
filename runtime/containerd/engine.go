//go:build linux

package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"shoal/runtime/containerd/fence"
	"shoal/runtime/pods"
)

// eventBuffer is how many events wait for the reader before they are replaced
// by one request to list again.
const eventBuffer = 1024

// Engine is the pods.Engine over one containerd.
type Engine struct {
	config  Config
	logger  *slog.Logger
	client  *client.Client
	cgroups *cgroupTree
	fence   fence.Dir
	oomMin  int // the lowest oom_score_adj that containers may get

	tasks     tasksapi.TasksClient
	records   containers.Store
	snapshots snapshots.Snapshotter

	events chan pods.Event
	cancel context.CancelFunc
	loop   sync.WaitGroup

	images imageIndex
	pulls  singleflight.Group
	shims  singleflight.Group // by pod UID: replacing one that died

	mu         sync.Mutex
	sandboxes  map[string]*sandbox   // by pod UID
	containers map[string]*container // by ID
	missed     bool                  // an event did not fit into the channel
}

var _ pods.Engine = (*Engine)(nil)

// Open connects to containerd, finds what a predecessor left, sweeps what
// belongs to nothing and starts to follow events. It fails with
// pods.ErrUnavailable when containerd does not answer.
func Open(ctx context.Context, config Config) (*Engine, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	// The client's own logger tells of every refused request of a pull, which is
	// no news: the error says it.
	if err := log.SetLevel("error"); err != nil {
		return nil, err
	}
	e := &Engine{
		config:     config,
		logger:     config.Logger,
		fence:      fence.Dir(config.StateDir),
		events:     make(chan pods.Event, eventBuffer),
		sandboxes:  map[string]*sandbox{},
		containers: map[string]*container{},
	}
	var err error
	if e.cgroups, err = openCgroups(config.CgroupRoot); err != nil {
		return nil, err
	}
	if e.oomMin, err = lowestOOMScore(); err != nil {
		return nil, err
	}
	if e.oomMin > -1000 {
		e.logger.Info("CAP_SYS_RESOURCE is missing: containers' oom_score_adj is raised where it would be lower", "minimum", e.oomMin)
	}
	for _, folder := range []string{e.sandboxFolder(""), e.containerFolder("")} {
		if err := os.MkdirAll(folder, 0o711); err != nil {
			return nil, fmt.Errorf("engine state: %w", diskError(err))
		}
	}
	if config.Lease {
		if err := e.fence.Arm(); err != nil {
			return nil, fmt.Errorf("heartbeat: %w", diskError(err))
		}
	}
	if e.client, err = client.New(config.Socket, client.WithDefaultNamespace(config.Namespace), client.WithTimeout(startTimeout)); err != nil {
		return nil, fmt.Errorf("%w: %w", pods.ErrUnavailable, err)
	}
	e.tasks = e.client.TaskService()
	e.records = e.client.ContainerService()
	e.snapshots = e.client.SnapshotService(config.Snapshotter)
	if err := e.adopt(e.in(ctx)); err != nil {
		return nil, errors.Join(err, e.client.Close())
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e.cancel = cancel
	e.loop.Go(func() { e.follow(e.in(run)) })
	return e, nil
}

// Close lets go of containerd. Containers run on.
func (e *Engine) Close() error {
	e.cancel()
	e.loop.Wait()
	return e.client.Close()
}

// in adds containerd's namespace, which every call needs.
func (e *Engine) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, e.config.Namespace)
}

func (e *Engine) sandboxFolder(uid string) string {
	return filepath.Join(e.config.StateDir, "p", uid)
}

func (e *Engine) containerFolder(id string) string {
	return filepath.Join(e.config.StateDir, "k", id)
}

// Events implements pods.Engine.
func (e *Engine) Events() <-chan pods.Event { return e.events }

// emit never blocks: a slow reader is told to list again.
func (e *Engine) emit(event pods.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.missed {
		select {
		case e.events <- pods.Event{Kind: pods.EventResync}:
			e.missed = false
		default:
			return
		}
	}
	select {
	case e.events <- event:
	default:
		e.missed = true
	}
}

// List implements pods.Engine.
func (e *Engine) List(context.Context) (pods.Inventory, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var inventory pods.Inventory
	for _, s := range e.sandboxes {
		inventory.Sandboxes = append(inventory.Sandboxes, s.Sandbox)
	}
	for _, c := range e.containers {
		if !c.Pause {
			inventory.Containers = append(inventory.Containers, c.state())
		}
	}
	return inventory, nil
}

// Info implements pods.Engine.
func (e *Engine) Info(ctx context.Context) (pods.Info, error) {
	ctx, cancel := context.WithTimeout(e.in(ctx), 5*time.Second)
	defer cancel()
	version, err := e.client.Version(ctx)
	if err != nil {
		return pods.Info{}, engineError(err)
	}
	root, err := e.snapshotRoot(ctx)
	if err != nil {
		return pods.Info{}, engineError(err)
	}
	return pods.Info{Name: "containerd", Version: version.Version, ImageRoot: root, ImageBytes: e.images.bytes()}, nil
}

// MemoryRoom implements pods.Engine.
func (e *Engine) MemoryRoom() (pods.MemoryRoom, error) { return e.cgroups.memoryRoom() }

// snapshotRoot asks containerd where the snapshotter keeps its layers.
func (e *Engine) snapshotRoot(ctx context.Context) (string, error) {
	response, err := e.client.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1,id=="+e.config.Snapshotter)
	if err != nil {
		return "", err
	}
	for _, plugin := range response.Plugins {
		if plugin.InitErr != nil {
			return "", fmt.Errorf("snapshotter %s: %s", e.config.Snapshotter, plugin.InitErr.Message)
		}
		if root := plugin.Exports["root"]; root != "" {
			return root, nil
		}
	}
	return "", fmt.Errorf("containerd has no snapshotter %q", e.config.Snapshotter)
}

// engineError translates containerd's errors into those of pods.Engine.
func engineError(err error) error {
	switch {
	case err == nil:
		return nil
	case status.Code(err) == codes.Unavailable, errdefs.IsUnavailable(err):
		return fmt.Errorf("%w: %w", pods.ErrUnavailable, err)
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%w: %w", pods.ErrNotFound, err)
	default:
		return diskError(err)
	}
}
