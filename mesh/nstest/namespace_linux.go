package nstest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace: a pod's, a client's, or another node's.
type Namespace struct {
	t      testing.TB
	handle netns.NsHandle
}

// New makes an empty namespace, with the loopback down, that lasts until the test ends.
func New(t testing.TB) *Namespace {
	t.Helper()
	type result struct {
		handle netns.NsHandle
		err    error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err != nil {
			made <- result{err: err}
			return
		}
		handle, err := netns.Get()
		made <- result{handle, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatalf("make network namespace: %v", r.err)
	}
	ns := &Namespace{t: t, handle: r.handle}
	t.Cleanup(func() { ns.handle.Close() })
	return ns
}

// Path names the namespace for others in this process and its children.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(n.handle)) }

// FD is the namespace's file descriptor.
func (n *Namespace) FD() int { return int(n.handle) }

// Do runs f in a thread of the namespace. Sockets opened there stay there.
func (n *Namespace) Do(f func()) {
	n.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		err := netns.Set(n.handle)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		n.t.Fatalf("enter network namespace: %v", err)
	}
}

// Links returns an rtnetlink handle of the namespace.
func (n *Namespace) Links() *netlink.Handle {
	n.t.Helper()
	links, err := netlink.NewHandleAt(n.handle, unix.NETLINK_ROUTE)
	if err != nil {
		n.t.Fatalf("open rtnetlink: %v", err)
	}
	n.t.Cleanup(links.Close)
	return links
}

// Dial opens a connection from the namespace.
func (n *Namespace) Dial(network, address string, timeout time.Duration) (conn net.Conn, err error) {
	n.Do(func() { conn, err = net.DialTimeout(network, address, timeout) })
	return conn, err
}

// Listen opens a stream socket in the namespace, closed when the test ends.
func (n *Namespace) Listen(network, address string) net.Listener {
	n.t.Helper()
	var (
		l   net.Listener
		err error
	)
	n.Do(func() { l, err = net.Listen(network, address) })
	if err != nil {
		n.t.Fatalf("listen on %s: %v", address, err)
	}
	n.t.Cleanup(func() { l.Close() })
	return l
}

// ListenPacket opens a packet socket in the namespace, closed when the test ends.
func (n *Namespace) ListenPacket(network, address string) net.PacketConn {
	n.t.Helper()
	var (
		c   net.PacketConn
		err error
	)
	n.Do(func() { c, err = net.ListenPacket(network, address) })
	if err != nil {
		n.t.Fatalf("listen on %s: %v", address, err)
	}
	n.t.Cleanup(func() { c.Close() })
	return c
}

// Start runs this program as role in a new network namespace and returns the process; its standard error is the
// test's. Killed when the test ends.
func Start(t testing.TB, role string, stdin *os.File, stdout *os.File) *os.Process {
	t.Helper()
	started := make(chan error)
	ended := make(chan struct{})
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	go func() {
		defer close(ended)
		runtime.LockOSThread() // the child dies with this thread
		cmd.Env = append(os.Environ(), roleVariable+"="+role)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed by the cleanup, or it has reported on standard error
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", role, err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails only if it has ended already
		<-ended
	})
	return cmd.Process
}

// Eventually polls f until it returns nil, and fails the test with its last error after timeout.
func Eventually(t testing.TB, timeout time.Duration, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not within %s: %v", timeout, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
