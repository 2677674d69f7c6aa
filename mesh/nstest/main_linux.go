// Package nstest runs tests against the real kernel without touching the host's network: the whole test program runs
// in network and mount namespaces of its own, which vanish with it, whatever happens.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// roleVariable tells a child of the test program what it is.
const roleVariable = "SHOAL_NSTEST_ROLE"

const roleTests = "tests"

// Main is for TestMain: os.Exit(nstest.Main(m, roles)). It runs the program again in new namespaces and the tests in
// there. A child started by Start runs the function that roles has under its name instead.
func Main(m *testing.M, roles map[string]func() error) int {
	switch role := os.Getenv(roleVariable); role {
	case "":
		return report(again())
	case roleTests:
		if err := errors.Join(privateRun(), loopbackUp(), talkative()); err != nil {
			return report(fmt.Errorf("nstest: %w", err))
		}
		return m.Run()
	default:
		run, ok := roles[role]
		if !ok {
			return report(fmt.Errorf("nstest: no role %q", role))
		}
		return report(run())
	}
}

func report(err error) int {
	if err == nil {
		return 0
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// again runs this program with the same arguments in new namespaces.
func again() error {
	if os.Getuid() != 0 {
		return errors.New("nstest: these tests make network namespaces and need root")
	}
	runtime.LockOSThread() // the child dies with the thread that started it
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), roleVariable+"="+roleTests)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	signal.Ignore(os.Interrupt) // the child gets it as well, and reports
	return cmd.Run()
}

// privateRun hides the host's /run, where programs keep sockets named after interfaces.
func privateRun() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("nstest", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	return nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

// talkative lifts the kernel's limit of six "unreachable" messages at once and then one a second to the same address:
// tests are quicker than clients.
func talkative() error {
	if err := os.WriteFile("/proc/sys/net/ipv4/icmp_ratelimit", []byte("0"), 0); err != nil {
		return fmt.Errorf("lift the limit of ICMP messages: %w", err)
	}
	return nil
}
