// Command storeref runs the store alone, without a peer around it, for the bench: one or more members on this machine's loopback, over the
// peers' own port with its certificates. The first member is this process, which also makes the load, the others are processes of their
// own; etcdref does the same with etcd. It reads load.Cases and prints load.Answers.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"shoal/cli/bench/load"
	"shoal/consensus"
	"shoal/peer/identity"
	"shoal/peer/link"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "storeref: "+err.Error())
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("storeref", flag.ContinueOnError)
	dir := flags.String("dir", "", "folder for the members' data")
	count := flags.Int("members", 1, "how many members")
	shards := flags.Int("shards", 8, "how many data shards")
	only := flags.Int("member", 0, "be this member (used internally)")
	where := flags.String("addresses", "", "ID=address of all members (used internally)")
	await := flags.Bool("await", false, "print a line when all shards are here again (used internally)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		return errors.New("--dir is needed")
	}
	if *only > 0 {
		addresses := map[string]string{}
		for pair := range strings.SplitSeq(*where, ",") {
			id, address, _ := strings.Cut(pair, "=")
			addresses[id] = address
		}
		m, err := open(ctx, memberDir(*dir, *only), *shards, addresses)
		if err != nil {
			return err
		}
		if *await {
			err = m.awaitShards(ctx, *shards)
			fmt.Fprintln(out, "up")
		}
		<-ctx.Done()
		return errors.Join(err, m.close())
	}
	c, err := newCluster(ctx, *dir, *count, *shards)
	if err != nil {
		return err
	}
	defer c.close()
	if err := json.NewEncoder(out).Encode(load.Ready{PIDs: c.pids()}); err != nil {
		return err
	}
	return load.Serve(ctx, in, out, c)
}

func memberDir(dir string, n int) string { return filepath.Join(dir, "member-"+strconv.Itoa(n)) }

// member is a store in this process.
type member struct {
	id   string
	host *consensus.Host
	link *link.Link
	stop context.CancelFunc
	done chan error
}

// open starts the member whose identity lies in the folder.
func open(ctx context.Context, dir string, shards int, addresses map[string]string) (*member, error) {
	self, err := identity.Load(dir, time.Now())
	if err != nil {
		return nil, err
	}
	_, text, err := net.SplitHostPort(addresses[self.ID])
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, err
	}
	quiet := slog.New(slog.DiscardHandler)
	l, err := link.Open(link.Config{Identity: self, Listen: "127.0.0.1", Port: port, Logger: quiet, Resolve: func(id string) (string, error) {
		if address, ok := addresses[id]; ok {
			return address, nil
		}
		return "", fmt.Errorf("there is no member %s", id)
	}})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	m := &member{id: self.ID, link: l, stop: stop, done: make(chan error, 1)}
	go func() { m.done <- l.Run(ctx) }()
	var ids []string
	for id := range addresses {
		ids = append(ids, id)
	}
	m.host, err = consensus.Open(ctx, consensus.Config{
		PeerID: self.ID, ClusterID: self.Cluster.ID, Dir: filepath.Join(dir, "store"), DataShards: shards,
		Listen: l.Listen, Dial: l.Dial, Peers: func() []string { return ids }, Logger: quiet,
	})
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

// awaitShards waits until the member's replicas have caught up.
func (m *member) awaitShards(ctx context.Context, shards int) error {
	return poll(ctx, func() (string, bool) {
		for shard := range uint64(shards + 1) {
			if _, ok := m.host.Local(shard); !ok {
				return fmt.Sprintf("shard %d has not caught up", shard), false
			}
		}
		return "", true
	})
}

func (m *member) close() error {
	var err error
	if m.host != nil {
		at, cancel := context.WithCancel(context.Background())
		cancel() // nobody is there to take over
		err = m.host.Shutdown(at)
	}
	m.stop()
	m.link.Close()
	return errors.Join(err, <-m.done)
}

// identities makes the members' keys, and chooses their ports.
func identities(dir string, count int) (ids []string, addresses map[string]string, err error) {
	cluster, err := identity.Found(time.Now().Add(-time.Hour), netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("10.96.0.0/16"))
	if err != nil {
		return nil, nil, err
	}
	addresses = map[string]string{}
	for n := range count {
		home := memberDir(dir, n+1)
		if err := os.MkdirAll(home, 0o700); err != nil {
			return nil, nil, err
		}
		pending, err := identity.Prepare(home)
		if err != nil {
			return nil, nil, err
		}
		self, err := pending.Found(time.Now(), cluster, fmt.Sprint("member-", n+1), []netip.Addr{netip.MustParseAddr("127.0.0.1")})
		if err != nil {
			return nil, nil, err
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, err
		}
		// It stays open until all are chosen, or the same port might be given twice.
		defer listener.Close()
		ids, addresses[self.ID] = append(ids, self.ID), listener.Addr().String()
	}
	return ids, addresses, nil
}

// spawn starts another member as a process.
func spawn(ctx context.Context, dir string, n, shards int, addresses map[string]string, more ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var pairs []string
	for id, address := range addresses {
		pairs = append(pairs, id+"="+address)
	}
	args := append([]string{"--dir", dir, "--member", strconv.Itoa(n), "--shards", strconv.Itoa(shards), "--addresses", strings.Join(pairs, ",")}, more...)
	command := exec.CommandContext(ctx, self, args...)
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = 5 * time.Second
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	command.Stderr = os.Stderr
	return command, nil
}
