//go:build linux

package containerd

import (
	"context"
	"errors"
	"io/fs"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	coreevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"

	"shoal/runtime/containerd/exitrecord"
	"shoal/runtime/pods"
)

// exitFilter selects from containerd's events those of our namespace that tell
// of an end.
func (e *Engine) exitFilter() string {
	return `topic=="/tasks/exit",namespace==` + e.config.Namespace
}

// follow turns containerd's exit events into ours until ctx ends. When the
// stream breaks (containerd died) it takes stock as soon as containerd answers
// again, and tells that something may have been missed.
func (e *Engine) follow(ctx context.Context) {
	pause := firstBackoff
	for first := true; ctx.Err() == nil; first = false {
		stream, broken := e.client.Subscribe(ctx, e.exitFilter())
		// The subscription is established when the server answers anything; what
		// ended before that is found by taking stock.
		if err := e.refresh(ctx); err == nil {
			if !first {
				e.emit(pods.Event{Kind: pods.EventResync})
			}
			pause = firstBackoff
			e.read(ctx, stream, broken)
		} else if ctx.Err() == nil {
			e.logger.Warn("containerd does not answer", "err", err)
			if conn, ok := e.client.Conn().(*grpc.ClientConn); ok {
				conn.ResetConnectBackoff() // it will be back in milliseconds
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
	}
}

// read handles events until the stream breaks.
func (e *Engine) read(ctx context.Context, stream <-chan *coreevents.Envelope, broken <-chan error) {
	// The server may have registered the subscription a little after it answered.
	settled := time.After(time.Second)
	for {
		select {
		case <-settled:
			if err := e.refresh(ctx); err != nil && ctx.Err() == nil {
				e.logger.Warn("containerd does not answer", "err", err)
				return
			}
		case envelope := <-stream:
			event, err := typeurl.UnmarshalAny(envelope.Event)
			if err != nil {
				e.logger.Warn("containerd sent an event that cannot be read", "err", err)
				continue
			}
			if exit, ok := event.(*apievents.TaskExit); ok && exit.ID == exit.ContainerID {
				e.ended(ctx, exit)
			}
		case err := <-broken:
			if ctx.Err() == nil {
				e.logger.Warn("containerd's event stream broke", "err", err)
			}
			return
		case <-ctx.Done():
			return
		}
	}
}

// ended handles the end of a container's main process. The shim's record knows
// more than the event, and is right where containerd had to guess (it reports
// 137 or 255 for a task whose shim is gone).
func (e *Engine) ended(ctx context.Context, exit *apievents.TaskExit) {
	c := e.container(exit.ContainerID)
	if c == nil {
		return
	}
	end, err := exitrecord.Read(c.file(exitFile))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			e.logger.Warn("exit record cannot be read", "container", c.ID, "err", err)
		}
		end = exitrecord.Record{ID: c.ID, PID: exit.Pid, Status: exit.ExitStatus, ExitedAt: exit.ExitedAt.AsTime()}
		if err := exitrecord.Write(c.file(exitFile), end); err != nil {
			e.logger.Warn("exit not recorded", "container", c.ID, "err", err)
		}
	}
	e.finish(ctx, c, end)
}

// finish notes an end, tells of it and frees the task.
func (e *Engine) finish(ctx context.Context, c *container, end exitrecord.Record) {
	if !c.setExited(end) {
		return
	}
	if c.Pause {
		return
	}
	e.emit(pods.Event{Kind: pods.EventExited, State: c.state()})
	e.loop.Go(func() {
		c.verb.Lock()
		defer c.verb.Unlock()
		if err := e.deleteTask(ctx, c); err != nil && ctx.Err() == nil {
			e.logger.Warn("ended container keeps its task until it is removed", "err", err)
		}
	})
}
