//go:build linux

package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	coresandbox "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

// shimSandbox is the one sandbox that containerd is told of. Containers that
// belong to a sandbox are run by the shim at a given address, and that is what
// matters: containerd would otherwise execute the shim program twice for each
// of them. Which sandbox it is has no meaning to it.
const shimSandbox = "shoal"

const (
	shimUnixScheme = "unix://"
	shimVersion    = 3 // of the task API that the shim speaks
	shimCallLimit  = 5 * time.Second
)

// recordShimSandbox makes containerd know the sandbox.
func (e *Engine) recordShimSandbox(ctx context.Context) error {
	_, err := e.client.SandboxStore().Create(ctx, coresandbox.Sandbox{
		ID:        shimSandbox,
		Sandboxer: "shoal",
		Runtime:   coresandbox.RuntimeOpts{Name: e.config.Shim},
	})
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return engineError(err)
}

// shimAddress is where a sandbox's shim listens. Its name is a hash because a
// socket's path is bounded and a pod's UID is not.
func (e *Engine) shimAddress(podUID string) string {
	sum := sha256.Sum256([]byte(podUID))
	return shimUnixScheme + filepath.Join(e.config.StateDir, "s", hex.EncodeToString(sum[:12]))
}

// startShim starts the process that all containers of the pod will be children
// of. It does not wait for it to answer: the socket listens already, and who
// connects first waits by himself.
func (e *Engine) startShim(ctx context.Context, s *sandbox) error {
	if e.config.SystemShim {
		return nil
	}
	s.ShimAddress = e.shimAddress(s.PodUID)
	path := strings.TrimPrefix(s.ShimAddress, shimUnixScheme)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return diskError(err)
	}
	// The rest of an attempt, or of a shim that was killed.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("shim socket: %w", err)
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	socket, err := listener.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	logFile, err := os.OpenFile(filepath.Join(s.folder, "shim.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return diskError(err)
	}
	defer logFile.Close()

	command := exec.Command(e.config.Shim, "-namespace", e.config.Namespace, "-id", s.PodUID, "-address", e.config.Socket)
	command.Dir = s.folder
	command.Env = append(os.Environ(), "TTRPC_ADDRESS="+e.config.Socket+".ttrpc", "GRPC_ADDRESS="+e.config.Socket, "SHOAL_SHIM_OWNER="+s.PodUID)
	command.ExtraFiles = []*os.File{socket} // becomes descriptor 3, where a shim looks for its socket
	command.Stdout, command.Stderr = logFile, logFile
	// A session of its own: a Ctrl-C for the peer is not for the pods.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start shim: %w", err)
	}
	go func() {
		_ = command.Wait() // only to reap it; containerd reports a dead shim as exits
	}()
	return nil
}

// reviveShim starts a new shim for a pod whose shim died, with all its
// containers: the sandbox's namespaces are files and still there.
func (e *Engine) reviveShim(ctx context.Context, podUID string) error {
	s := e.sandbox(podUID)
	if s == nil || s.ShimAddress == "" {
		return nil
	}
	_, err, _ := e.shims.Do(podUID, func() (any, error) {
		conn, err := net.Dial("unix", strings.TrimPrefix(s.ShimAddress, shimUnixScheme))
		if err == nil {
			return nil, conn.Close()
		}
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("shim of pod %s: %w", podUID, err)
		}
		e.logger.Warn("the shim of a pod had died, a new one is started", "pod", podUID)
		return nil, e.startShim(ctx, s)
	})
	return err
}

// stopShim ends the sandbox's shim and waits for its end. One that still knows
// of containers (containerd lost them) is killed.
func (e *Engine) stopShim(ctx context.Context, s *sandbox) error {
	path, found := strings.CutPrefix(s.ShimAddress, shimUnixScheme)
	if !found {
		return nil
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		// Nobody listens: it is gone.
		return removeIfThere(path)
	}
	ctx, cancel := context.WithTimeout(ctx, shimCallLimit)
	defer cancel()
	closed := make(chan struct{})
	connection := ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(closed) }))
	defer connection.Close()
	shim := taskapi.NewTTRPCTaskClient(connection)
	// Not from the socket's credentials: they name who made it listen, us.
	known, err := shim.Connect(ctx, &taskapi.ConnectRequest{ID: s.PodUID})
	if errors.Is(err, ttrpc.ErrClosed) {
		return removeIfThere(path)
	}
	if err != nil {
		return fmt.Errorf("shim of pod %s: %w", s.PodUID, err)
	}
	_, err = shim.Shutdown(ctx, &taskapi.ShutdownRequest{ID: s.PodUID})
	if err == nil || errors.Is(err, ttrpc.ErrClosed) {
		select {
		case <-closed:
			return removeIfThere(path)
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
	if err := e.cgroups.killAll(s.Cgroup); err != nil {
		return err
	}
	if err := unix.Kill(int(known.ShimPid), unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill shim %d: %w", known.ShimPid, err)
	}
	return removeIfThere(path)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
