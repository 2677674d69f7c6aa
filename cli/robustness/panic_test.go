package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/cli/lab"
	"shoal/peer/admin"
)

// TestABrokenDiskIsNoFailedRun: a peer whose disk another fault has taken away, or is replacing, has no replicas to name; what stands in a
// file that can be read must be right.
func TestABrokenDiskIsNoFailedRun(t *testing.T) {
	peer := &lab.Peer{Name: "p", Dir: t.TempDir()}
	if _, err := readHeld(peer); !errors.Is(err, errNoDisk) {
		t.Errorf("without a file: %v", err)
	}
	if err := ofDisk(&fs.PathError{Op: "open", Path: "f", Err: syscall.EIO}); !errors.Is(err, errNoDisk) {
		t.Errorf("with a file that cannot be read: %v", err)
	}
	if err := os.Mkdir(filepath.Join(peer.Dir, "consensus"), 0o700); err != nil {
		t.Fatal(err)
	}
	for text, bad := range map[string]bool{`{"replicas": [{"shard": 3, "replica": 4}]}`: false, "garbage": true} {
		if err := os.WriteFile(filepath.Join(peer.Dir, "consensus", "consensus.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if h, err := readHeld(peer); errors.Is(err, errNoDisk) || (err != nil) != bad || !bad && h.replica(3) != 4 {
			t.Errorf("%s: %+v, %v", text, h, err)
		}
	}
}

// TestRaftPanicsStayInTheirShard breaks an invariant of one shard's replica until it is quarantined, while another peer is away, so that
// nothing can take its place: the shard stands still and every peer's status says so, by shard, peer and reason, while all other shards take
// writes through the very peer. When the third is back, the replica is replaced by itself and no problem is left.
func TestRaftPanicsStayInTheirShard(t *testing.T) {
	l := openLab(t)
	n := newNemesis(l, t.Logf)
	watched, stop := context.WithCancel(t.Context())
	supervised := make(chan struct{})
	go func() {
		defer close(supervised)
		n.supervise(watched)
	}()
	defer func() { stop(); <-supervised }()
	victim, away, other := n.hosts[0], n.hosts[1], n.hosts[2]
	victim.excuse(true)
	namespaces := namespaceInEach(t, l)
	await(t, "three voters of each shard", func() error { return noProblem(t, other.peer) })

	const broken = 3 // any data shard
	for round := range 3 {
		if round == 2 {
			if err := away.down(func(peer *lab.Peer) error { return peer.Stop(t.Context()) }); err != nil {
				t.Fatal(err)
			}
		}
		if err := victim.awaitUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), panicLimit)
		err := breakReplica(ctx, victim.peer, other.peer, broken)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if words := victim.lastWords(); !strings.Contains(words, fmt.Sprintf("raft found an invariant broken in shard %d (replica ", broken)) {
			t.Fatalf("round %d: it ended with: %s", round, words)
		}
	}
	if err := victim.awaitUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "every peer's status names the replica", func() error {
		return errors.Join(
			hasProblem(t, victim.peer, fmt.Sprintf("shard %d: ", broken), "quarantined", "invalid commitTo index"),
			hasProblem(t, other.peer, fmt.Sprintf("shard %d: the replica on %s is quarantined: 3 faults within", broken, victim.peer.Name)))
	})
	client := clientOf(t, l, 0)
	for shard, namespace := range namespaces {
		if shard == broken {
			continue
		}
		await(t, fmt.Sprintf("shard %d takes writes", shard), func() error { return write(t.Context(), client, namespace, "meanwhile") })
	}
	if err := write(t.Context(), client, namespaces[broken], "impossible"); err == nil || !strings.Contains(err.Error(), "no quorum") {
		t.Errorf("a write to the shard with one voter of three: %v", err)
	}
	if err := away.up(); err != nil {
		t.Fatal(err)
	}
	await(t, "the replica is replaced", func() error {
		return errors.Join(noProblem(t, victim.peer), noProblem(t, other.peer), write(t.Context(), client, namespaces[broken], "after"))
	})
	text, err := os.ReadFile(filepath.Join(victim.peer.Dir, "consensus", "faults.json"))
	if err != nil || strings.Count(string(text), `"kind": "raft"`) != 3 || strings.Count(string(text), `"kind": "renewed"`) != 1 {
		t.Errorf("faults: %s, %v", text, err)
	}
}

// namespaceInEach makes namespaces until each data shard has one.
func namespaceInEach(t *testing.T, l *lab.Lab) map[uint64]string {
	t.Helper()
	client := clientOf(t, l, 0)
	names := map[uint64]string{}
	for n := 0; len(names) < 8; n++ {
		name := fmt.Sprintf("spread-%d", n)
		if _, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		// The version of an object says in its low bits which shard wrote it.
		object, err := client.CoreV1().ConfigMaps(name).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "first"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var version uint64
		if _, err := fmt.Sscan(object.ResourceVersion, &version); err != nil {
			t.Fatal(err)
		}
		if shard := version & 0xff; names[shard] == "" {
			names[shard] = name
		}
	}
	return names
}

func write(ctx context.Context, client kubernetes.Interface, namespace, name string) error {
	_, err := client.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: name + "-"}}, metav1.CreateOptions{})
	return err
}

func problems(t *testing.T, peer *lab.Peer) ([]string, error) {
	t.Helper()
	out, err := peer.Command(t.Context(), "status", "-o", "json")
	if err != nil {
		return nil, err
	}
	var s admin.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return nil, err
	}
	for _, shard := range s.Shards {
		if len(shard.Voters) != 3 || len(shard.Moves) > 0 {
			s.Problems = append(s.Problems, fmt.Sprintf("shard %d has the voters %v and still to do %v", shard.Shard, shard.Voters, shard.Moves))
		}
	}
	return s.Problems, nil
}

func noProblem(t *testing.T, peer *lab.Peer) error {
	found, err := problems(t, peer)
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("%s has %q", peer.Name, found)
	}
	return err
}

// hasProblem wants one problem that contains all these words.
func hasProblem(t *testing.T, peer *lab.Peer, words ...string) error {
	found, err := problems(t, peer)
	if err != nil {
		return err
	}
	for _, problem := range found {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(problem, word) }) {
			return nil
		}
	}
	return fmt.Errorf("%s has the problems %q and none with %q", peer.Name, found, words)
}
