package tunnel

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
)

// userspace is wireguard-go in this process, controlled through its UAPI socket like the kernel's through netlink.
type userspace struct {
	device   *device.Device
	listener net.Listener
}

// startUserspace makes a TUN interface and serves it. Its UDP sockets belong to the network namespace of the threads
// that open them, so the whole process must live in the namespace of the interface.
func startUserspace(c Config) (*userspace, error) {
	tunDevice, err := tun.CreateTUN(c.Interface, c.MTU)
	if err != nil {
		return nil, fmt.Errorf("create TUN interface: %w", err)
	}
	logger := &device.Logger{
		Verbosef: func(format string, args ...any) {},
		Errorf: func(format string, args ...any) {
			text := strings.TrimSpace(fmt.Sprintf(format, args...))
			switch {
			case strings.HasPrefix(text, "IPC error"):
				// The answer to our own request, which returns it.
			case strings.HasPrefix(format, "%v - "):
				// About one peer that cannot be reached at the moment, again and again.
				c.Logger.Debug("tunnel: "+text, "interface", c.Interface)
			default:
				c.Logger.Warn("tunnel: "+text, "interface", c.Interface)
			}
		},
	}
	u := &userspace{device: device.NewDevice(tunDevice, conn.NewDefaultBind(), logger)}
	socket, err := ipc.UAPIOpen(c.Interface)
	if err != nil {
		u.device.Close()
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	if u.listener, err = ipc.UAPIListen(c.Interface, socket); err != nil {
		u.device.Close()
		return nil, errors.Join(fmt.Errorf("listen on control socket: %w", err), socket.Close())
	}
	go u.serve()
	return u, nil
}

func (u *userspace) serve() {
	for {
		conn, err := u.listener.Accept()
		if err != nil { // closed, or its socket was removed; the device goes on as configured
			return
		}
		go u.device.IpcHandle(conn)
	}
}

// uapiErrno finds the error number in an answer of the control socket, which wgctrl passes on as text.
func uapiErrno(err error) (syscall.Errno, bool) {
	_, text, ok := strings.Cut(err.Error(), "wguser: errno=-")
	number, parse := strconv.Atoi(text)
	return syscall.Errno(number), ok && parse == nil
}

// close removes the interface and the control socket.
func (u *userspace) close() {
	// Its error says only that the watcher of the socket's folder, which it wants to wake up, has ended first.
	_ = u.listener.Close()
	u.device.Close()
}
