package consensus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/internal/transcript"
)

// The tests of faults that end a process run each host in one of its own: this test binary, started anew, over real sockets. It takes
// orders as lines of JSON on its standard input and answers each with one.

const processConfig = "SHOAL_TEST_HOST"

// hostProcess configures a host in a process of its own.
type hostProcess struct {
	Peer, Dir string
	// Peers are all peers' addresses, one socket each; the first byte of a connection names the service.
	Peers map[string]string
}

type order struct {
	Verb       string
	Shard      uint64
	Key, Value string
	Peer       string
	Replica    uint64
	Peers      []string
}

type reply struct {
	Error  string
	Value  string
	Status []consensus.ShardStatus
	Faults []consensus.Fault
}

func TestMain(m *testing.M) {
	if text := os.Getenv(processConfig); text != "" {
		if err := runHost(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runHost(text string) error {
	var p hostProcess
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return err
	}
	services, err := p.listen()
	if err != nil {
		return err
	}
	cfg := consensustest.NewNetwork().Config(p.Peer, p.Dir)
	cfg.Listen = func(service string) (net.Listener, error) { return services[service], nil }
	cfg.Dial = func(ctx context.Context, to, service string) (net.Conn, error) { return p.dial(ctx, to, service) }
	cfg.Peers = func() (all []string) {
		for peer := range p.Peers {
			all = append(all, peer)
		}
		return all
	}
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	h, err := consensus.Open(context.Background(), cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		p.obey(ctx, h, os.Stdin, os.Stdout)
		cancel()
	}()
	err = h.Failed(ctx)
	end, done := context.WithTimeout(context.Background(), 10*time.Second)
	defer done()
	return errors.Join(err, h.Shutdown(end))
}

func (p *hostProcess) obey(ctx context.Context, h *consensus.Host, in io.Reader, out io.Writer) {
	orders, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o order
		if orders.Decode(&o) != nil {
			return
		}
		bounded, cancel := context.WithTimeout(ctx, 20*time.Second)
		var r reply
		if err := p.do(bounded, h, o, &r); err != nil {
			r.Error = err.Error()
		}
		cancel()
		if answers.Encode(r) != nil {
			return
		}
	}
}

func (p *hostProcess) do(ctx context.Context, h *consensus.Host, o order, r *reply) error {
	switch o.Verb {
	case "found":
		return h.Found(ctx)
	case "put":
		_, err := h.Propose(ctx, o.Shard, put(o.Key, o.Value))
		return err
	case "get":
		kv, _, _, err := h.Get(ctx, o.Shard, o.Key, consensus.Linearizable)
		r.Value = string(kv.Value)
		return err
	case "place":
		return consensustest.Assign(ctx, h, o.Shard, voters(o.Peers...))
	case "heartbeat":
		return p.breakReplica(ctx, h, o)
	case "broken change":
		return consensus.ProposeBrokenChange(ctx, h, o.Shard, o.Peer, o.Replica)
	case "status":
		r.Status, r.Faults = h.Status(), consensus.Faults(h)
		return nil
	default:
		return fmt.Errorf("no order %q", o.Verb)
	}
}

// breakReplica sends another host what it cannot stand, in the name of the replica here.
func (p *hostProcess) breakReplica(ctx context.Context, h *consensus.Host, o order) error {
	cluster := consensustest.NewNetwork().Config(p.Peer, p.Dir).ClusterID
	for _, s := range h.Status() {
		if s.Shard != o.Shard {
			continue
		}
		frame, err := consensustest.BrokenHeartbeat(cluster, p.Peer, o.Shard, s.ReplicaID, o.Replica)
		if err != nil {
			return err
		}
		conn, err := p.dial(ctx, o.Peer, consensus.ServiceRaft)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(frame)
		return err
	}
	return fmt.Errorf("no replica of shard %d", o.Shard)
}

// listen opens the peer's socket and hands its connections to the services that their first line names.
func (p *hostProcess) listen() (map[string]*service, error) {
	l, err := net.Listen("tcp", p.Peers[p.Peer])
	if err != nil {
		return nil, err
	}
	services := map[string]*service{}
	for _, name := range []string{consensus.ServiceRaft, consensus.ServiceStore} {
		services[name] = &service{conns: make(chan net.Conn), closed: make(chan struct{}), address: l.Addr()}
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				var head [64]byte
				if _, err := io.ReadFull(conn, head[:]); err != nil {
					conn.Close()
					return
				}
				peer, name, _ := strings.Cut(strings.TrimRight(string(head[:]), " "), " ")
				if s := services[name]; s != nil {
					s.conns <- named{conn, peer}
				}
			}()
		}
	}()
	return services, nil
}

type named struct {
	net.Conn
	peer string
}

func (n named) PeerID() string { return n.peer }

type service struct {
	conns   chan net.Conn
	closed  chan struct{}
	address net.Addr
}

func (s *service) Accept() (net.Conn, error) {
	select {
	case conn := <-s.conns:
		return conn, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *service) Close() error {
	close(s.closed)
	return nil
}

func (s *service) Addr() net.Addr { return s.address }

func (p *hostProcess) dial(ctx context.Context, to, service string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", p.Peers[to])
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(conn, "%-64s", p.Peer+" "+service)
	return conn, err
}

// child is a host's process, seen from the test.
type child struct {
	hostProcess
	command *exec.Cmd
	in      io.WriteCloser
	out     *json.Decoder
	errors  *transcript.Buffer
}

// freeAddresses finds an address for each peer.
func freeAddresses(t *testing.T, peers ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, peer := range peers {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		all[peer] = l.Addr().String()
	}
	return all
}

func (c *child) start(t *testing.T) {
	t.Helper()
	config, err := json.Marshal(c.hostProcess)
	if err != nil {
		t.Fatal(err)
	}
	c.command = exec.Command(os.Args[0])
	c.command.Env = append(os.Environ(), processConfig+"="+string(config))
	c.errors = &transcript.Buffer{}
	c.command.Stderr = c.errors
	out, err := c.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = json.NewDecoder(out)
	if c.in, err = c.command.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.command.Start(); err != nil {
		t.Fatal(err)
	}
	running, output := c.command, c.errors
	t.Cleanup(func() {
		if !t.Failed() {
			_ = running.Process.Kill() //nolint:errcheck // gone already, most likely
			return
		}
		// What all its goroutines are waiting for tells more than that it did not come.
		if running.Process.Signal(syscall.SIGQUIT) == nil {
			_ = running.Wait() //nolint:errcheck // it ends with the signal
			t.Logf("host %s said:\n%s", c.Peer, output)
		}
	})
}

// ask gives an order and waits for the answer.
func (c *child) ask(o order) (r reply, err error) {
	line, err := json.Marshal(o)
	if err != nil {
		return r, err
	}
	if _, err := c.in.Write(append(line, '\n')); err != nil {
		return r, fmt.Errorf("host %s: %w", c.Peer, err)
	}
	if err := c.out.Decode(&r); err != nil {
		return r, fmt.Errorf("host %s: %w", c.Peer, err)
	}
	if r.Error != "" {
		return r, fmt.Errorf("host %s: %s", c.Peer, r.Error)
	}
	return r, nil
}

func (c *child) must(t *testing.T, o order) reply {
	t.Helper()
	r, err := c.ask(o)
	if err != nil {
		t.Fatalf("%s: %v\n%s", o.Verb, err, c.errors)
	}
	return r
}

func (c *child) shard(t *testing.T, shard uint64) consensus.ShardStatus {
	t.Helper()
	for _, s := range c.must(t, order{Verb: "status"}).Status {
		if s.Shard == shard {
			return s
		}
	}
	return consensus.ShardStatus{}
}

// family starts three hosts in processes of their own, with shards 0 to 2 on all of them.
func family(t *testing.T) map[string]*child {
	t.Helper()
	peers := []string{"a", "b", "c"}
	addresses := freeAddresses(t, peers...)
	all := map[string]*child{}
	for _, peer := range peers {
		all[peer] = &child{hostProcess: hostProcess{Peer: peer, Dir: t.TempDir(), Peers: addresses}}
		all[peer].start(t)
	}
	all["a"].must(t, order{Verb: "found"})
	for shard := range uint64(3) {
		all["a"].must(t, order{Verb: "place", Shard: shard, Peers: peers})
	}
	for _, c := range all {
		eventually(t, "three voters on "+c.Peer, func() error {
			for shard := range uint64(3) {
				s := c.shard(t, shard)
				votes := 0
				for _, m := range s.Members {
					if m.Voter {
						votes++
					}
				}
				if votes != 3 || !s.Local {
					return fmt.Errorf("shard %d is %+v", shard, s)
				}
			}
			return nil
		})
	}
	return all
}

// TestARaftPanicCostsOneShardsReplica breaks an invariant of one shard on one host, over a real socket, again and again: each time the
// host ends in order and names the shard, its other shards come back with it, and in the end the replica is quarantined and replaced.
func TestARaftPanicCostsOneShardsReplica(t *testing.T) {
	all := family(t)
	a, c := all["a"], all["c"]
	for shard := range uint64(3) {
		a.must(t, order{Verb: "put", Shard: shard, Key: "k", Value: "before"})
	}
	broken := uint64(0)
	for round := range consensus.FaultLimit {
		eventually(t, "c has caught up", func() error {
			if s := c.shard(t, 1); s.ReplicaID == 0 || s.Leader == "" {
				return fmt.Errorf("shard 1 is %+v", s)
			}
			return nil
		})
		broken = c.shard(t, 1).ReplicaID
		all["b"].must(t, order{Verb: "heartbeat", Shard: 1, Peer: "c", Replica: broken})
		err := c.command.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 3 || strings.Contains(c.errors.String(), "goroutine ") {
			t.Fatalf("round %d: %v\n%s", round, err, c.errors)
		}
		if want := fmt.Sprintf("in shard 1 (replica %d)", broken); !strings.Contains(c.errors.String(), want) {
			t.Fatalf("round %d does not say %q:\n%s", round, want, c.errors)
		}
		a.must(t, order{Verb: "put", Shard: 1, Key: "k", Value: fmt.Sprint("round ", round)})
		c.start(t)
		for _, shard := range []uint64{0, 2} {
			if got := c.must(t, order{Verb: "get", Shard: shard, Key: "k"}); got.Value != "before" {
				t.Fatalf("shard %d on c has %q", shard, got.Value)
			}
		}
	}
	eventually(t, "the replica is replaced", func() error {
		if s := c.shard(t, 1); !s.Local || !s.Voter || s.ReplicaID == broken {
			return fmt.Errorf("shard 1 is %+v on c, %+v on a; a says\n%s\nb says\n%s\nc says\n%s",
				s, a.shard(t, 1), a.errors, all["b"].errors, c.errors)
		}
		return nil
	})
	if got := c.must(t, order{Verb: "get", Shard: 1, Key: "k"}); got.Value != fmt.Sprint("round ", consensus.FaultLimit-1) {
		t.Errorf("c reads %q", got.Value)
	}
	if s := c.shard(t, 1); s.Quarantine != "" {
		t.Errorf("still quarantined: %s", s.Quarantine)
	}
}

// TestAPlainPanicIsCountedToo puts an entry into a shard's log over which dragonboat panics plainly, at each start anew: the runtime ends
// the process each time, and the next one knows whose fault that was, until the replica is quarantined and the host serves the others.
func TestAPlainPanicIsCountedToo(t *testing.T) {
	c := &child{hostProcess: hostProcess{Peer: "a", Dir: t.TempDir(), Peers: freeAddresses(t, "a")}}
	c.start(t)
	c.must(t, order{Verb: "found"})
	for _, shard := range []uint64{1, 2} {
		c.must(t, order{Verb: "put", Shard: shard, Key: "k", Value: "v"})
	}
	c.must(t, order{Verb: "broken change", Shard: 1, Peer: "a", Replica: 1})
	for round := range consensus.FaultLimit {
		err := c.command.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !strings.Contains(c.errors.String(), "goroutine ") {
			t.Fatalf("round %d: %v\n%s", round, err, c.errors)
		}
		c.start(t)
	}
	if got := c.must(t, order{Verb: "get", Shard: 2, Key: "k"}); got.Value != "v" {
		t.Errorf("shard 2 has %q", got.Value)
	}
	if s := c.shard(t, 1); s.Local || !strings.Contains(s.Quarantine, "panic") {
		t.Errorf("shard 1 is %+v, after %+v\n%s", s, c.must(t, order{Verb: "status"}).Faults, c.errors)
	}
}
