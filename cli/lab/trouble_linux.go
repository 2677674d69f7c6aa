package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// troubleTable is the table in every peer's namespace that holds nothing but Trouble's rules.
const troubleTable = "shoal-lab-trouble"

// Path is one direction between two peers, and what is wrong with it.
type Path struct {
	From, To *Peer
	// Loss is the share of packets that are dropped, from 0 to 1. At 1 nothing arrives.
	Loss float64
}

// Trouble makes these the only paths of the lab on which packets are lost; none heals the network. Packets are dropped where they
// arrive, so what a peer sends itself, and what its clients on the same host send it, is untouched.
func (l *Lab) Trouble(paths ...Path) error {
	arriving := map[*Peer][]Path{}
	for _, path := range paths {
		arriving[path.To] = append(arriving[path.To], path)
	}
	var failed []error
	for _, peer := range l.Peers {
		if err := peer.host.drop(arriving[peer]); err != nil {
			failed = append(failed, fmt.Errorf("rules for %s: %w", peer.Name, err))
		}
	}
	return errors.Join(failed...)
}

// drop replaces the rules of a host, in one transaction.
func (h *host) drop(paths []Path) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(h.ns)))
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: troubleTable, Family: nftables.TableFamilyIPv4}
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	if len(paths) == 0 {
		return conn.Flush()
	}
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{
		Name: "arriving", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	for _, path := range paths {
		const saddr, length = 12, 4 // of the IPv4 header
		exprs := []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: saddr, Len: length},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: path.From.host.address.AsSlice()},
		}
		if path.Loss < 1 {
			const parts = 1000
			limit := make([]byte, 4)
			// Numgen's result is in the byte order of the host, which a comparison of greatness must not be.
			for i, shift := range []uint{24, 16, 8, 0} {
				limit[i] = byte(uint32(path.Loss*parts) >> shift)
			}
			exprs = append(exprs,
				&expr.Numgen{Register: 2, Type: unix.NFT_NG_RANDOM, Modulus: parts},
				&expr.Byteorder{SourceRegister: 2, DestRegister: 2, Op: expr.ByteorderHton, Len: 4, Size: 4},
				&expr.Cmp{Op: expr.CmpOpLt, Register: 2, Data: limit})
		}
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(exprs, &expr.Verdict{Kind: expr.VerdictDrop})})
	}
	return conn.Flush()
}

// Throttle limits what a peer sends and receives to a number of bytes per second, each way, as a line that is too thin: what waits is
// delayed by up to half a second, and what finds no room is lost. 0 ends that.
func (l *Lab) Throttle(peer *Peer, rate uint64) error {
	inside, err := netlink.NewHandleAt(peer.host.ns)
	if err != nil {
		return err
	}
	defer inside.Close()
	return errors.Join(throttle(inside, "eth0", rate), throttle(l.underlay.link, peer.host.cable, rate))
}

func throttle(handle *netlink.Handle, name string, rate uint64) error {
	link, err := handle.LinkByName(name)
	if err != nil {
		return err
	}
	const packet = 64 << 10 // veth hands over packets as large as this
	attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	qdisc := &netlink.Tbf{QdiscAttrs: attrs, Rate: rate, Limit: uint32(max(rate/2, 2*packet)), Buffer: netlink.Xmittime(max(rate, 1), packet*2)}
	if rate == 0 {
		if err := handle.QdiscDel(qdisc); err != nil && !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.EINVAL) {
			return fmt.Errorf("removing the limit of %s: %w", name, err)
		}
		return nil
	}
	if err := handle.QdiscReplace(qdisc); err != nil {
		return fmt.Errorf("limiting %s: %w", name, err)
	}
	return nil
}

// Pause stops the peer's own process as it is, by SIGSTOP: its connections stay open and nobody answers. Its containers run on.
func (p *Peer) Pause() error { return p.signal(syscall.SIGSTOP) }

// Resume lets it go on.
func (p *Peer) Resume() error { return p.signal(syscall.SIGCONT) }

func (p *Peer) signal(signal syscall.Signal) error {
	pid := p.Pid()
	if pid == 0 {
		return fmt.Errorf("%s does not run", p.Name)
	}
	return syscall.Kill(pid, signal)
}

// limitMemory makes the cgroup of the peer's pods, with a limit.
func (p *Peer) limitMemory(bytes int64) error {
	dir, file := filepath.Join("/sys/fs/cgroup/memory", p.cgroup), "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil {
		dir, file = filepath.Join("/sys/fs/cgroup", p.cgroup), "memory.max"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if file == "memory.max" {
		for _, above := range []string{"/sys/fs/cgroup", filepath.Dir(dir), dir} {
			if err := os.WriteFile(filepath.Join(above, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
				return fmt.Errorf("limiting the memory of the pods of %s: %w", p.Name, err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.FormatInt(bytes, 10)), 0); err != nil {
		return fmt.Errorf("limiting the memory of the pods of %s: %w", p.Name, err)
	}
	return nil
}

// slowPeriod is how often the kernel grants the peer its share.
const slowPeriod = 100000 // µs

// Slow gives the peer's own process a share of one processor, such as 0.1; 0 ends that. It lasts until then or until the process ends.
func (p *Peer) Slow(share float64) error {
	pid := p.Pid()
	if pid == 0 {
		return fmt.Errorf("%s does not run", p.Name)
	}
	root, limits := "/sys/fs/cgroup/cpu", map[string]string{
		"cpu.cfs_period_us": strconv.Itoa(slowPeriod), "cpu.cfs_quota_us": strconv.Itoa(int(share * slowPeriod)),
	}
	if _, err := os.Stat(root); err != nil {
		root, limits = "/sys/fs/cgroup", map[string]string{"cpu.max": fmt.Sprintf("%d %d", int(share*slowPeriod), slowPeriod)}
	}
	if share == 0 {
		return os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
	}
	dir := filepath.Join(root, p.cgroup+"-slow")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, value := range limits {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0); err != nil {
			return fmt.Errorf("limiting the processor time of %s: %w", p.Name, err)
		}
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}
