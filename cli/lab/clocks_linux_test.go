package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/peer/admin"
)

// clockNamespaces are in different shards: more of them than a peer leads shards.
var clockNamespaces = []string{"clocks-1", "clocks-2", "clocks-3", "clocks-4", "clocks-5", "clocks-6", "clocks-7", "clocks-8"}

// TestClocks sets the clocks of real peers hours forward and back. The peer that is far off takes no writes and says so, leads nothing, and
// is heeded again when its clock is right; the others go on, nothing is lost, and no pod notices.
func TestClocks(t *testing.T) {
	c := openClusterOf(t, Config{Peers: 3, Clocks: true})
	for _, peer := range c.Peers {
		awaitShards(t, peer, 3, 0)
	}
	for _, ns := range clockNamespaces {
		c.namespace(t, ns)
	}
	c.apply(t, clockNamespaces[0], statefulSet("db", 3))
	before := c.readyPods(t, soon, clockNamespaces[0], "app=db", 3)
	w := &writes{c: c, confirmed: map[string]bool{}}
	for _, ahead := range []time.Duration{5 * time.Hour, -5 * time.Hour} {
		// Whoever leads the meta shard now has the most to get wrong.
		wrong := c.metaLeader(t)
		t.Run(fmt.Sprintf("the meta leader's clock jumps by %v", ahead), func(t *testing.T) {
			if err := wrong.SetClock(ahead); err != nil {
				t.Fatal(err)
			}
			setRight(t, wrong)
			w.farOff(t, wrong, ahead)
			if err := wrong.SetClock(0); err != nil {
				t.Fatal(err)
			}
			w.heeded(t, wrong)
		})
		t.Run(fmt.Sprintf("a peer starts %v ahead", ahead), func(t *testing.T) {
			wrong := c.Peers[1]
			if err := wrong.KillProcess(); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(wrong.SetClock(ahead), wrong.Start()); err != nil {
				t.Fatal(err)
			}
			setRight(t, wrong)
			w.farOff(t, wrong, ahead)
			if err := wrong.SetClock(0); err != nil {
				t.Fatal(err)
			}
			w.heeded(t, wrong)
		})
	}
	t.Run("a peer dies while another's clock is ahead", w.deathWhileAhead)
	for _, pod := range c.readyPods(t, soon, clockNamespaces[0], "app=db", 3) {
		for _, old := range before {
			if pod.Name == old.Name && pod.UID != old.UID {
				t.Errorf("%s was replaced", pod.Name)
			}
		}
	}
}

// setRight leaves no wrong clock behind for the steps that follow one that failed.
func setRight(t *testing.T, peer *Peer) {
	t.Cleanup(func() {
		if err := peer.SetClock(0); err != nil {
			t.Error(err)
		}
	})
}

// metaLeader is the peer that leads the meta shard.
func (c *cluster) metaLeader(t testing.TB) *Peer {
	t.Helper()
	var leader *Peer
	awaitStatus(t, c.Peers[0], "knows the meta leader", func(s *admin.Status) error {
		for _, peer := range c.Peers {
			for _, known := range s.Peers {
				if known.PeerID == s.Shards[0].Leader && known.Name == peer.Name {
					leader = peer
					return nil
				}
			}
		}
		return fmt.Errorf("it is %q", s.Shards[0].Leader)
	})
	return leader
}

// writes are ConfigMaps that were confirmed, as namespace/name.
type writes struct {
	c         *cluster
	confirmed map[string]bool
}

// write creates a ConfigMap in every namespace through one peer.
func (w *writes) write(t *testing.T, through *Peer) {
	t.Helper()
	for _, ns := range clockNamespaces {
		name := fmt.Sprintf("n-%d", len(w.confirmed))
		eventually(t, soon, "a write through "+through.Name+" in "+ns, func(ctx context.Context) error {
			_, err := w.c.try(ctx, "", tools.kubectl, "--server", through.API, "-n", ns, "create", "configmap", name)
			if err != nil && strings.Contains(err.Error(), "AlreadyExists") {
				return nil // of an attempt whose answer was lost
			}
			return err
		})
		w.confirmed[ns+"/"+name] = true
	}
}

// farOff checks what a peer and the others do while its clock is wrong.
func (w *writes) farOff(t *testing.T, wrong *Peer, ahead time.Duration) {
	t.Helper()
	side := fmt.Sprintf("clock is %v ahead", ahead)
	if ahead < 0 {
		side = fmt.Sprintf("clock is %v behind", -ahead)
	}
	side = strings.TrimSuffix(side, "0m0s ahead") // and what the exchange is wrong by
	side = strings.TrimSuffix(side, "0m0s behind")
	awaitStatus(t, wrong, "says that its clock is off", func(s *admin.Status) error {
		for _, problem := range s.Problems {
			if strings.Contains(strings.ReplaceAll(problem, "4h59m59", "5h"), side) && strings.Contains(problem, "takes no writes") {
				return nil
			}
		}
		return fmt.Errorf("its problems are %q", s.Problems)
	})
	for _, peer := range w.c.Peers {
		if peer != wrong {
			w.write(t, peer)
		}
	}
	eventually(t, soon, "kubectl is told", func(ctx context.Context) error {
		out, err := w.c.try(ctx, "", tools.kubectl, "--server", wrong.API, "-n", clockNamespaces[0], "create", "configmap", "refused")
		if err == nil {
			t.Fatal("a peer whose clock is far off took a write")
		}
		if !strings.Contains(out, "clock is too far off") {
			return fmt.Errorf("it says %s", out)
		}
		return nil
	})
	// It leads nothing, so that what leaders do goes on for all namespaces.
	other := w.c.Peers[0]
	if other == wrong {
		other = w.c.Peers[1]
	}
	awaitStatus(t, other, wrong.Name+" leads nothing", func(s *admin.Status) error {
		for _, peer := range s.Peers {
			for _, shard := range s.Shards {
				if peer.Name == wrong.Name && shard.Leader == peer.PeerID {
					return fmt.Errorf("it leads shard %d", shard.Shard)
				}
			}
		}
		return nil
	})
	// Whoever asks it still reads what there is, over all shards.
	client, err := w.c.clientFor(slices.Index(w.c.Peers, wrong))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, wrong.Name+" shows everything", func(ctx context.Context) error {
		list, err := client.CoreV1().ConfigMaps(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		if n := len(list.Items); n < len(w.confirmed) {
			return fmt.Errorf("%d of %d ConfigMaps", n, len(w.confirmed))
		}
		for i := range list.Items {
			if early := time.Until(list.Items[i].CreationTimestamp.Time); early > time.Minute {
				t.Fatalf("%s was created %v from now", list.Items[i].Name, early)
			}
		}
		return nil
	})
}

// deathWhileAhead lets a peer lose its connections to one that dies while its clock is ahead, and sets the clock right before the dead one
// returns: nothing between the two may wait until the clock shows again what it showed then. Each of them leads shards that the other has
// to hear of.
func (w *writes) deathWhileAhead(t *testing.T) {
	ahead, dies := w.c.Peers[2], w.c.Peers[1]
	if err := ahead.SetClock(5 * time.Hour); err != nil {
		t.Fatal(err)
	}
	setRight(t, ahead)
	if err := dies.KillProcess(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(8 * time.Second) // every connection is used, and lost, and tried again
	if err := errors.Join(ahead.SetClock(0), dies.Start()); err != nil {
		t.Fatal(err)
	}
	w.heeded(t, ahead)
	awaitStatus(t, w.c.Peers[0], "all peers lead", func(s *admin.Status) error {
		leads := map[string]int{}
		for _, shard := range s.Shards {
			leads[shard.Leader]++
		}
		if len(leads) < 3 {
			return fmt.Errorf("they lead %v", leads)
		}
		return nil
	})
	w.write(t, w.c.Peers[0])
	for i, asked := range w.c.Peers {
		client, err := w.c.clientFor(i)
		if err != nil {
			t.Fatal(err)
		}
		for name := range w.confirmed {
			ns, name, _ := strings.Cut(name, "/")
			eventually(t, 10*time.Second, "the copy of "+asked.Name+" has "+ns+"/"+name, func(ctx context.Context) error {
				_, err := client.CoreV1().ConfigMaps(ns).Get(ctx, name, metav1.GetOptions{ResourceVersion: "0"})
				return err
			})
		}
	}
}

// heeded checks that a peer whose clock is right again takes part, and that all that was confirmed is there.
func (w *writes) heeded(t *testing.T, peer *Peer) {
	t.Helper()
	w.write(t, peer)
	awaitStatus(t, peer, "has no problem", settledOn(9, 3))
	for _, asked := range w.c.Peers {
		out := w.c.kubectl(t, "--server", asked.API, "get", "configmaps", "-A", "-o", `jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}{"\n"}{end}`)
		there := map[string]bool{}
		for name := range strings.Lines(out) {
			there[strings.TrimSpace(name)] = true
		}
		for name := range w.confirmed {
			if !there[name] {
				t.Errorf("%s does not have %s, which was confirmed", asked.Name, name)
			}
		}
		if there[clockNamespaces[0]+"/refused"] {
			t.Errorf("%s has what was refused", asked.Name)
		}
	}
}
