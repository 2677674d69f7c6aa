//go:build linux

// Package taskshim is containerd's runc shim with two things of Shoal's: it
// writes a container's output to a CRI log itself, without a logging process
// beside it, and it records how each container ended in a file, so that exit
// codes survive a containerd that was down at that moment.
//
// Both are asked for by a crilog URL in the stdout field of the create request;
// without one it behaves as io.containerd.runc.v2 does.
package taskshim

import (
	"context"
	"os"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	runc "github.com/containerd/go-runc"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Main runs the shim for the command line in os.Args and exits.
func Main() {
	// The shim starts every registered plugin and ends when one fails, and its
	// dependencies register some that need a daemon. Only the task service stays.
	registry.Reset()
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn:   newService,
	})
	shim.RunShim(context.Background(), manager.NewShimManager("io.containerd.runc.v2"), func(c *shim.Config) {
		// Started by the peer itself, standard error is a file. containerd gives
		// a FIFO named log instead.
		c.NoSetupLogger = os.Getenv(OwnerEnv) != ""
	})
}

// OwnerEnv is the variable that tells the shim that the peer started it, for a
// sandbox: it holds the sandbox's ID, the only one whose shutdown counts.
const OwnerEnv = "SHOAL_SHIM_OWNER"

func newService(ic *plugin.InitContext) (any, error) {
	publisher, err := ic.GetByID(plugins.EventPlugin, "publisher")
	if err != nil {
		return nil, err
	}
	stop, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
	if err != nil {
		return nil, err
	}
	recorder := newRecorder(publisher.(shim.Publisher))
	inner, err := task.NewTaskService(ic.Context, recorder, stop.(shutdown.Service))
	if err != nil {
		return nil, err
	}
	// The service has set its own, which executes the runtime for each command.
	runc.Monitor = &inlineMonitor{ProcessMonitor: runc.Monitor}
	return &service{TTRPCTaskService: inner, recorder: recorder, owner: os.Getenv(OwnerEnv)}, nil
}

// service adds logs and exit records to the shim's task service.
type service struct {
	taskapi.TTRPCTaskService
	recorder *recorder
	owner    string // "" when containerd started the shim
}

// RegisterTTRPC makes the service reachable; the shim calls it.
func (s *service) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

// Create makes the container's output flow into its log before it is created,
// and knows where to record its end.
func (s *service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	output, err := openOutput(r)
	if err != nil {
		return nil, err
	}
	if output == nil {
		return s.TTRPCTaskService.Create(ctx, r)
	}
	r.Stdout, r.Stderr = output.stdout, output.stderr
	s.recorder.add(r.ID, output, r.Bundle)
	response, err := s.TTRPCTaskService.Create(ctx, r)
	if err != nil {
		s.recorder.forget(r.ID)
		output.close()
		return nil, err
	}
	output.drain()
	return response, nil
}

// Shutdown ends the shim. containerd asks for it after each container; one that
// belongs to a sandbox stays, because the pod's next container needs it.
func (s *service) Shutdown(ctx context.Context, r *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	if s.owner != "" && r.ID != s.owner {
		return &emptypb.Empty{}, nil
	}
	return s.TTRPCTaskService.Shutdown(ctx, r)
}

// Delete forgets the container.
func (s *service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	response, err := s.TTRPCTaskService.Delete(ctx, r)
	if err == nil && r.ExecID == "" {
		s.recorder.forget(r.ID)
	}
	return response, err
}
