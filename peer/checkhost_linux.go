package peer

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// CheckHost reports what this host lacks to run a peer: root, or parts of the
// kernel, each by its name and with the remedy. It proves network features by
// using them in a throw-away network namespace; the host's own is not touched.
func CheckHost() error {
	if os.Geteuid() != 0 {
		return errors.New("peer join needs root (it makes namespaces, mounts, network devices and rules): run it with sudo")
	}
	return checkFeatures(hostFeatures())
}

// feature is one thing the kernel must offer.
type feature struct {
	name   string
	remedy string
	probe  func() error
}

func hostFeatures() []feature {
	return []feature{
		{"network namespaces", "boot a kernel with CONFIG_NET_NS, or give the container CAP_SYS_ADMIN", func() error { return inThrowAwayNamespace(func() error { return nil }) }},
		{"nftables with NAT", "modprobe nf_tables nft_chain_nat, or a kernel with CONFIG_NF_TABLES and CONFIG_NFT_NAT", func() error { return inThrowAwayNamespace(probeNftables) }},
		{"bridges", "modprobe bridge, or a kernel with CONFIG_BRIDGE", func() error { return inThrowAwayNamespace(probeBridge) }},
		{"veth pairs", "modprobe veth, or a kernel with CONFIG_VETH", func() error { return inThrowAwayNamespace(probeVeth) }},
		{"WireGuard or /dev/net/tun", "modprobe wireguard, or modprobe tun", probeTunnel},
		{"overlayfs", "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS", probeOverlay},
		{"cgroup controllers cpu, memory and pids", "enable them on the kernel's command line (cgroup_enable=memory) and mount /sys/fs/cgroup", probeCgroups},
	}
}

// checkFeatures probes all of them, so that one run names everything missing.
func checkFeatures(features []feature) error {
	var missing []string
	for _, f := range features {
		if err := f.probe(); err != nil {
			missing = append(missing, fmt.Sprintf("%s (%v; remedy: %s)", f.name, err, f.remedy))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("this host lacks %s", strings.Join(missing, " and "))
}

// inThrowAwayNamespace runs probe in a fresh network namespace. The thread is
// never unlocked, so it ends with its goroutine and takes the namespace along.
func inThrowAwayNamespace(probe func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		done <- probe()
	}()
	return <-done
}

func probeNftables() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "shoal_probe"})
	conn.AddChain(&nftables.Chain{
		Name: "probe", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	return conn.Flush()
}

func probeBridge() error {
	return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "probe"}})
}

func probeVeth() error {
	return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}, PeerName: "probe1"})
}

// probeTunnel is satisfied by either way to a WireGuard tunnel: the kernel's
// own, or the in-process one that needs a tun device.
func probeTunnel() error {
	kernel := inThrowAwayNamespace(func() error {
		return netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "probe"}})
	})
	if kernel == nil {
		return nil
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return tun.Close()
}

// probeOverlay opens the file system without mounting it; the kernel loads
// the module on the way if it has one.
func probeOverlay() error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		return overlayListed()
	}
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func overlayListed() error {
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if !strings.Contains(string(known), "\toverlay\n") {
		return errors.New("not in /proc/filesystems")
	}
	return nil
}

// probeCgroups accepts the unified hierarchy as well as version 1, whichever
// owns the controllers.
func probeCgroups() error {
	unified, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	have := map[string]bool{}
	for _, name := range strings.Fields(string(unified)) {
		have[name] = true
	}
	var missing []string
	for _, name := range []string{"cpu", "memory", "pids"} {
		if have[name] {
			continue
		}
		if _, err := os.Stat("/sys/fs/cgroup/" + name + "/cgroup.procs"); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing under /sys/fs/cgroup: %s", strings.Join(missing, ", "))
	}
	return nil
}
