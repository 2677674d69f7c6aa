package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"shoal/runtime/pods"
)

func (s *Server) serveExec(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	command := r.URL.Query()["command"]
	if len(command) == 0 {
		http.Error(w, "a command is needed", http.StatusBadRequest)
		return
	}
	pod, id := s.running(w, r)
	if pod == nil {
		return
	}
	remotecommand.ServeExec(w, r, streams{s.cfg.Streams}, id, string(pod.UID), r.PathValue("container"), command, options,
		streamIdle, streamCreation, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) serveAttach(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pod, id := s.running(w, r)
	if pod == nil {
		return
	}
	remotecommand.ServeAttach(w, r, streams{s.cfg.Streams}, id, string(pod.UID), r.PathValue("container"), options,
		streamIdle, streamCreation, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request) {
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pod := s.pod(w, r)
	if pod == nil {
		return
	}
	portforward.ServePortForward(w, r, streams{s.cfg.Streams}, pod.Name, string(pod.UID), options, streamIdle, streamCreation, portforward.SupportedProtocols)
}

// streams adapts an Engine to the streaming library. The library's "name" carries the container ID.
type streams struct{ engine pods.Streams }

// ExecInContainer implements remotecommand.Executor.
func (s streams) ExecInContainer(ctx context.Context, id, _, _ string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	code, err := s.engine.Exec(ctx, id, cmd, stdio(ctx, in, out, errOut, tty, resize))
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// AttachContainer implements remotecommand.Attacher.
func (s streams) AttachContainer(ctx context.Context, id, _, _ string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return s.engine.Attach(ctx, id, stdio(ctx, in, out, errOut, tty, resize))
}

// stdio turns the library's streams into the Engine's. Sizes are passed on until ctx ends.
func stdio(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) pods.Stdio {
	io := pods.Stdio{In: in, TTY: tty}
	if out != nil {
		io.Out = out
	}
	if errOut != nil && !tty {
		io.Err = errOut
	}
	if resize != nil {
		sizes := make(chan pods.Size)
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case size, more := <-resize:
					if !more {
						return
					}
					select {
					case sizes <- pods.Size{Width: size.Width, Height: size.Height}:
					case <-ctx.Done():
						return
					}
				}
			}
		}()
		io.Resize = sizes
	}
	return io
}

// PortForward implements portforward.PortForwarder: it connects inside the pod, over IPv4 first.
func (s streams) PortForward(ctx context.Context, name, uid string, port int32, stream io.ReadWriteCloser) error {
	var conn net.Conn
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		c, err := s.engine.DialPod(ctx, uid, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			conn = c
			break
		}
		errs = append(errs, err)
	}
	if conn == nil {
		return fmt.Errorf("port %d of pod %s: %w", port, name, errors.Join(errs...))
	}
	defer conn.Close()
	return pipe(ctx, conn, stream)
}

// pipe copies both ways until the pod's side ends, or the client's side and then the pod's.
func pipe(ctx context.Context, conn net.Conn, stream io.ReadWriteCloser) error {
	up, down := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, stream)
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			err = half.CloseWrite()
		}
		up <- err
	}()
	go func() {
		_, err := io.Copy(stream, conn)
		down <- err
	}()
	for {
		select {
		case err := <-down:
			return err
		case err := <-up:
			if err != nil {
				return err
			}
			up = nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
