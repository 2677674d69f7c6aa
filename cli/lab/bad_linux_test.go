package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/peer/identity"
)

// TestBadInput proves that a peer refuses what is wrong with one clear sentence and a non-zero exit, and that nothing is lost by it. A
// cluster of two peers stands by; the third host is the one that gets it wrong.
func TestBadInput(t *testing.T) {
	c := openCluster(t, 2)
	t.Run("two peers keep one voter and one other copy", func(t *testing.T) {
		awaitShards(t, c.Peers[0], 1, 1)
		awaitShards(t, c.Peers[1], 1, 1)
	})
	stranger, err := c.addPeer(3)
	if err != nil {
		t.Fatal(err)
	}
	c.Peers = append(c.Peers, stranger) // it is taken down with the others
	t.Run("joining", func(t *testing.T) { badJoins(t, c, stranger) })
	t.Run("a clock minutes off", func(t *testing.T) { clockOff(t, c) })
	t.Run("a port in use", func(t *testing.T) { portInUse(t, stranger) })
	t.Run("missing root", missingRoot)
	t.Run("a data folder of another cluster", func(t *testing.T) { foreignFolder(t, c, stranger) })
	t.Run("nothing was lost", func(t *testing.T) {
		if nodes := c.kubectl(t, "get", "nodes", "--no-headers"); strings.Count(nodes, " Ready ") != 2 || strings.Contains(nodes, stranger.Name) {
			t.Errorf("nodes:\n%s", nodes)
		}
		awaitShards(t, c.Peers[0], 1, 1)
	})
}

// fails runs `peer join` on a host and wants it to end by itself, with a sentence that says all of the wanted.
func fails(t *testing.T, peer *Peer, wanted []string, args ...string) {
	t.Helper()
	mark := 0
	if text, err := os.ReadFile(peer.Log); err == nil {
		mark = len(text)
	}
	if err := peer.Start(args...); err != nil {
		t.Fatal(err)
	}
	select {
	case <-peer.Exited():
	case <-time.After(soon):
		_ = peer.Kill()
		text, _ := os.ReadFile(peer.Log)
		t.Errorf("peer join %s goes on:\n%s", strings.Join(args, " "), text[mark:])
		return
	}
	text, err := os.ReadFile(peer.Log)
	if err != nil {
		t.Fatal(err)
	}
	oneSentence(t, peer.command.ProcessState.ExitCode(), string(text[mark:]), wanted)
}

// oneSentence wants the last line to be the only one that is no log line, and the exit status to say that something is wrong.
func oneSentence(t *testing.T, status int, said string, wanted []string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(said), "\n")
	last := lines[len(lines)-1]
	if status != 1 || !strings.HasPrefix(last, "peer: ") {
		t.Errorf("it ended with status %d and said:\n%s", status, said)
	}
	for _, line := range lines[:len(lines)-1] {
		if !strings.Contains(line, "level=") {
			t.Errorf("more than one sentence: %s", line)
		}
	}
	if strings.Contains(last, "panic") || strings.Contains(last, "goroutine") {
		t.Error("that is no sentence for a user")
	}
	wants(t, last, wanted...)
}

func newJoinToken(t *testing.T, c *cluster) string {
	t.Helper()
	token, err := c.Peers[0].Command(t.Context(), "token", "create", "--quiet")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(token)
}

func badJoins(t *testing.T, c *cluster, stranger *Peer) {
	good, member := newJoinToken(t, c), c.Peers[1].Address
	id, rest, _ := strings.Cut(good, ".")
	secret, pin, _ := strings.Cut(rest, ".")
	wrong := id + "." + strings.Repeat("a", len(secret)) + "." + pin
	t.Run("with a wrong token", func(t *testing.T) {
		fails(t, stranger, []string{"the token is not known to this cluster"}, member, "--token", wrong)
	})
	t.Run("with half a token", func(t *testing.T) { fails(t, stranger, []string{"token"}, member, "--token", id) })
	t.Run("without a token", func(t *testing.T) { fails(t, stranger, []string{"token"}, member) })
	t.Run("with an expired token", func(t *testing.T) {
		expired := newJoinToken(t, c)
		id, _, _ := strings.Cut(expired, ".")
		c.kubectl(t, "-n", "kube-system", "patch", "secret", identity.SecretName(id), "-p", `{"stringData":{"expiration":"2026-01-02T03:04:05Z"}}`)
		// Which of the two it says depends on whether the token has been cleaned away meanwhile.
		fails(t, stranger, []string{"expired", "peer token create"}, member, "--token", expired)
	})
	t.Run("with a deleted token", func(t *testing.T) {
		deleted := newJoinToken(t, c)
		if _, err := c.Peers[1].Command(t.Context(), "token", "delete", deleted); err != nil {
			t.Fatal(err)
		}
		fails(t, stranger, []string{"the token is not known to this cluster"}, member, "--token", deleted)
	})
	t.Run("with another cluster's token", func(t *testing.T) {
		foreign := id + "." + secret + "." + strings.Repeat("a", len(pin))
		fails(t, stranger, []string{"belongs to another cluster than the token"}, member, "--token", foreign)
	})
	t.Run("at a dead address", func(t *testing.T) {
		fails(t, stranger, []string{"cannot join", "192.168.77.200"}, "192.168.77.200", "--token", good)
	})
	t.Run("at a port nobody listens on", func(t *testing.T) {
		fails(t, stranger, []string{"cannot join", member + ":9", "connection refused"}, member+":9", "--token", good)
	})
	t.Run("under a name that is taken", func(t *testing.T) {
		fails(t, stranger, []string{`the name "peer-1" is taken by another peer`, "--name"}, member, "--token", good, "--name", "peer-1")
	})
	t.Run("under no name", func(t *testing.T) {
		fails(t, stranger, []string{"Not_A_Name", "--name"}, member, "--token", good, "--name", "Not_A_Name")
	})
	t.Run("with an address inside the pod range", func(t *testing.T) {
		fails(t, stranger, []string{"10.32.0.9", "--cluster-cidr"}, member, "--token", good, "--advertise", "10.32.0.9")
	})
}

// clockOff asks a real peer to let in a host whose clock is three minutes ahead. Clocks of one machine cannot differ (a time namespace
// has the same wall clock), so the joining side runs here, with a clock of its own; peer/identity's tests try more differences.
func clockOff(t *testing.T, c *cluster) {
	token, err := identity.ParseToken(newJoinToken(t, c))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pending, err := identity.Prepare(dir)
	if err != nil {
		t.Fatal(err)
	}
	joiner := identity.Joiner{Token: token, Pending: pending, Name: "hasty", Port: 7443, Now: func() time.Time { return time.Now().Add(3 * time.Minute) }}
	_, err = joiner.Join(t.Context(), []string{strings.TrimPrefix(c.Peers[0].API, "https://")})
	if err == nil {
		t.Fatal("it was let in")
	}
	wants(t, err.Error(), "this host's clock says", "apart", "set this host's clock")
}

func portInUse(t *testing.T, stranger *Peer) {
	var listener net.Listener
	if err := stranger.host.do(func() (err error) {
		listener, err = net.Listen("tcp", ":"+apiPort)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	fails(t, stranger, []string{"TCP port 7443 cannot be used", "address already in use", "--listen"})
	listener.Close()
	if entries, err := os.ReadDir(filepath.Join(stranger.Dir, "identity")); err == nil && len(entries) > 0 {
		t.Errorf("something was founded: %v", entries)
	}
}

func missingRoot(t *testing.T) {
	dir, err := os.MkdirTemp("", "shoal-nobody-") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program := filepath.Join(dir, "peer")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Link(tools.peer, program)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	command := exec.CommandContext(ctx, program, "join", "--data-dir", filepath.Join(dir, "data"))
	command.Dir, command.Env = "/", []string{"PATH=/usr/bin:/bin", "HOME=/"}
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var said bytes.Buffer
	command.Stdout, command.Stderr = &said, &said
	_ = command.Run()
	oneSentence(t, command.ProcessState.ExitCode(), said.String(), []string{"needs root", "sudo"})
}

// sameHost is another process for the same host and folder.
func sameHost(p *Peer) *Peer {
	return &Peer{Name: p.Name, Dir: p.Dir, Log: p.Log, Address: p.Address, host: p.host, binary: p.binary, cgroup: p.cgroup}
}

// foreignFolder founds a second cluster on the third host, and tries to make its folder one of the first cluster.
func foreignFolder(t *testing.T, c *cluster, stranger *Peer) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*soon)
	defer cancel()
	if err := errors.Join(stranger.Start(), stranger.Await(ctx)); err != nil {
		t.Fatal(err)
	}
	if out, err := stranger.Command(ctx, "create", "configmap", "kept", "--from-literal=a=b"); err != nil {
		t.Fatal(err, out)
	}
	t.Run("is opened only once", func(t *testing.T) {
		second := sameHost(stranger)
		second.Log = stranger.Log + ".second"
		fails(t, second, []string{stranger.Dir})
	})
	if err := stranger.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	token, member := newJoinToken(t, c), c.Peers[0].Address
	t.Run("does not join", func(t *testing.T) {
		fails(t, stranger, []string{"belongs to", "another", "--data-dir"}, member, "--token", token)
	})
	t.Run("does not join without a token", func(t *testing.T) {
		fails(t, stranger, []string{"belongs to another cluster than this data folder"}, member)
	})
	t.Run("keeps its name", func(t *testing.T) {
		renamed := sameHost(stranger)
		renamed.Name = "somebody-else"
		fails(t, renamed, []string{`belongs to the peer "peer-3"`, "--name"})
	})
	t.Run("keeps its ranges", func(t *testing.T) {
		fails(t, stranger, []string{"--service-cidr", "10.96.0.0/16", "cannot be changed"}, "--service-cidr", "10.97.0.0/16")
	})
	for _, format := range []string{"identity", "consensus"} {
		t.Run("of a newer version: "+format, func(t *testing.T) { newerFolder(t, stranger, format) })
	}
	t.Run("is still whole", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		defer cancel()
		if err := errors.Join(stranger.Start(), stranger.Await(ctx)); err != nil {
			t.Fatal(err)
		}
		out, err := stranger.Command(ctx, "get", "configmap", "kept", "-o", "jsonpath={.data.a}")
		if err != nil || out != "b" {
			t.Errorf("%q, %v", out, err)
		}
	})
}

var formatNumber = regexp.MustCompile(`("format": ?)(\d+)`)

// newerFolder raises the format number that a part of the data folder has written down, and takes that back afterwards.
func newerFolder(t *testing.T, peer *Peer, part string) {
	var file string
	var before []byte
	_ = filepath.WalkDir(filepath.Join(peer.Dir, part), func(path string, entry os.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".json" {
			if text, err := os.ReadFile(path); err == nil && formatNumber.Match(text) {
				file, before = path, text
			}
		}
		return nil
	})
	if file == "" {
		t.Fatalf("no file in %s has a format number", part)
	}
	after := formatNumber.ReplaceAllFunc(before, func(match []byte) []byte {
		parts := formatNumber.FindSubmatch(match)
		number, _ := strconv.Atoi(string(parts[2]))
		return fmt.Appendf(nil, "%s%d", parts[1], number+1)
	})
	if err := os.WriteFile(file, after, 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, peer, []string{"newer"})
	if err := os.WriteFile(file, before, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestFullDisk fills the file system under a peer: it ends and says why, no write that was confirmed is lost, and with room again
// everything goes on.
func TestFullDisk(t *testing.T) {
	c := openCluster(t, 1)
	small, err := c.addPeer(2)
	if err != nil {
		t.Fatal(err)
	}
	c.Peers = append(c.Peers, small)
	if err := os.MkdirAll(small.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("shoal-e2e", small.Dir, "tmpfs", 0, "size=400m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(small.Kill(), unmountBelow(small.Dir), syscall.Unmount(small.Dir, syscall.MNT_DETACH)); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := errors.Join(small.Start(), small.Await(ctx)); err != nil {
		t.Fatal(err)
	}
	create := func(n int) error {
		_, err := small.Command(t.Context(), "create", "configmap", fmt.Sprintf("kept-%d", n), "--from-literal=text="+strings.Repeat("x", 100_000), "--request-timeout=10s")
		return err
	}
	var confirmed []int
	for n := range 5 {
		if err := create(n); err != nil {
			t.Fatal(err)
		}
		confirmed = append(confirmed, n)
	}
	ballast := filepath.Join(small.Dir, "ballast")
	fillDisk(t, ballast)
	var refusal error
	for n := 5; n < 300 && refusal == nil; n++ {
		if refusal = create(n); refusal == nil {
			confirmed = append(confirmed, n)
		}
	}
	if refusal == nil {
		t.Fatal("300 writes were confirmed on a full disk")
	}
	_, why, _ := strings.Cut(refusal.Error(), "exit status")
	t.Logf("after %d writes: %s", len(confirmed), why)
	// The store cannot go on without its log, so the peer has ended, or is about to. Started again, it says why it does not run.
	select {
	case <-small.Exited():
		if said, _ := os.ReadFile(small.Log); !strings.Contains(string(said), "no space left on device") {
			t.Errorf("nobody said that the disk is full:\n%s", small.lastWords())
		}
		fails(t, small, []string{"the data folder cannot be written to", "no space left on device"})
	case <-time.After(soon):
		t.Error("the peer neither writes nor ends")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	again, cancelAgain := context.WithTimeout(t.Context(), soon)
	defer cancelAgain()
	if err := errors.Join(small.Start(), small.Await(again)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*soon, "with room again, writes are confirmed", func(context.Context) error { return create(1000) })
	out, err := small.Command(t.Context(), "get", "configmaps", "-o", "name")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range confirmed {
		if !strings.Contains(out, fmt.Sprintf("/kept-%d\n", n)) {
			t.Errorf("kept-%d was confirmed and is lost", n)
		}
	}
	// The other cluster never noticed.
	if _, err := c.client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
}

// fillDisk writes until nothing more fits.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for size := 1 << 20; size > 0; {
		if _, err := file.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
