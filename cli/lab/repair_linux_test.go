package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes"

	"shoal/peer/admin"
)

// TestRepair proves what becomes of pods when nodes are emptied, die, are cut off and come back, and when the store's leaders and
// replicas are lost. Zone b has three of the five peers and holds one copy of each shard, so it can be lost as a whole.
// The steps share one lab, so the first failure ends it.
func TestRepair(t *testing.T) {
	t.Parallel() // most of its time is waiting
	c := openClusterOf(t, Config{Peers: 5, Zones: []string{"a", "b", "b", "b", "c"}, Clocks: true})
	for _, step := range []struct {
		name string
		test func(t *testing.T, c *cluster)
	}{
		{"each zone has a copy of each shard", copyPerZone},
		{"a placement is explained", placementExplained},
		{"a node is drained", nodeDrained},
		{"a node dies and returns", nodeDies},
		{"a node is cut off, and clocks differ", nodeCutOff},
		{"all leaders are lost at once", leadersLost},
		{"a shard loses its majority", majorityLost},
		{"most of a zone is lost", zoneLost},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.test(t, c) }) {
			c.show(t)
			return
		}
	}
}

// peerByID finds the peer that a status means.
func (c *cluster) peerByID(s *admin.Status, id string) *Peer {
	for _, member := range s.Peers {
		for _, peer := range c.Peers {
			if member.PeerID == id && member.Name == peer.Name {
				return peer
			}
		}
	}
	return nil
}

func (c *cluster) peerNamed(name string) *Peer {
	return c.Peers[slices.IndexFunc(c.Peers, func(p *Peer) bool { return p.Name == name })]
}

func copyPerZone(t *testing.T, c *cluster) {
	eventually(t, 3*soon, "each zone has a copy of each shard", func(context.Context) error {
		s, err := status(t, c.Peers[0])
		if err != nil {
			return err
		}
		for _, shard := range s.Shards {
			zones := sets.New[string]()
			for _, id := range shard.Voters {
				if peer := c.peerByID(s, id); peer != nil {
					zones.Insert(peer.zone)
				}
			}
			if len(shard.Voters) != 3 || len(zones) != 3 {
				return fmt.Errorf("shard %d has %d voters in zones %v", shard.Shard, len(shard.Voters), sets.List(zones))
			}
		}
		return nil
	})
}

// back brings peers back that were cut or killed, all at once.
func (c *cluster) back(t *testing.T, peers ...*Peer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*soon)
	defer cancel()
	var group errgroup.Group
	for _, peer := range peers {
		group.Go(func() error { return errors.Join(peer.Start(), peer.Await(ctx)) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, peer := range peers {
		c.nodeIs(t, peer.Name, corev1.ConditionTrue)
	}
}

// preferring is web with one replica that goes to a node if it can, and with other tolerations than the default.
func preferring(name, node, tolerations string) string {
	return strings.Replace(web(name, 1, name), "      containers:\n", fmt.Sprintf(`      tolerations: %s
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - {weight: 100, preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}}
      containers:
`, tolerations, node), 1)
}

// departures is when pods were seen to be gone, and when a node was lost: after it was last seen not to be (kept), and before it was first
// seen to be (lost). The loss may be dated before that, since it is decided before it is committed, and a date has whole seconds.
type departures struct {
	namespace, node   string
	there             map[string]bool // UIDs that were seen
	kept, dated, lost time.Time
	gone              map[string]time.Time // by UID

	stop context.CancelFunc
	done sync.WaitGroup
}

// watchDepartures looks at the pods of a namespace, and at a node, until it is ended; once before it returns.
func (c *cluster) watchDepartures(t *testing.T, namespace, node string) *departures {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	d := &departures{namespace: namespace, node: node, there: map[string]bool{}, gone: map[string]time.Time{}, stop: cancel}
	if err := d.look(ctx, c.client); err != nil {
		t.Fatal(err)
	}
	d.done.Go(func() {
		for ctx.Err() == nil {
			_ = d.look(ctx, c.client) // it is asked again
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return d
}

// look asks once.
func (d *departures) look(ctx context.Context, client kubernetes.Interface) error {
	begun := time.Now()
	node, err := client.CoreV1().Nodes().Get(ctx, d.node, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if d.lost.IsZero() {
		if i := slices.IndexFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeUnreachable && t.TimeAdded != nil }); i >= 0 {
			d.lost, d.dated = time.Now(), node.Spec.Taints[i].TimeAdded.Time
		} else {
			d.kept = begun
		}
	}
	list, err := client.CoreV1().Pods(d.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	left := map[string]bool{}
	for i := range list.Items {
		left[string(list.Items[i].UID)] = true
	}
	for uid := range d.there {
		if _, noted := d.gone[uid]; !left[uid] && !noted {
			d.gone[uid] = time.Now()
		}
	}
	maps.Copy(d.there, left)
	return nil
}

// end stops looking.
func (d *departures) end() {
	d.stop()
	d.done.Wait()
}

// after is how long after a moment a pod was gone; negative if it never was.
func (d *departures) after(pod *corev1.Pod, moment time.Time) time.Duration {
	at, gone := d.gone[string(pod.UID)]
	if !gone {
		return -1
	}
	return at.Sub(moment)
}

// nodeDies follows pods of all kinds on a node that loses its power: each stays for as long as it tolerates that, one with an identity
// until the node must have stopped it, and when the node is back, nothing of what was replaced runs there.
func nodeDies(t *testing.T, c *cluster) {
	ns, dir, victim := c.namespace(t, "dies"), recordDir(t), c.Peers[3]
	lost := func(seconds string) string {
		return "[{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute" + seconds + "}]"
	}
	c.apply(t, ns, recorded("db", 5, dir))
	c.apply(t, ns, preferring("hasty", victim.Name, lost(", tolerationSeconds: 0")))
	c.apply(t, ns, preferring("usual", victim.Name, "[]"))
	c.apply(t, ns, preferring("patient", victim.Name, lost(", tolerationSeconds: 20")))
	c.apply(t, ns, preferring("loyal", victim.Name, lost("")))
	on := map[string]*corev1.Pod{}
	for _, name := range []string{"hasty", "usual", "patient", "loyal"} {
		pod := c.readyPods(t, soon, ns, "app="+name, 1)[0]
		if pod.Spec.NodeName != victim.Name {
			t.Fatalf("%s is on %s", pod.Name, pod.Spec.NodeName)
		}
		on[name] = &pod
	}
	for _, pod := range c.readyPods(t, soon, ns, "app=db", 5) {
		if pod.Spec.NodeName == victim.Name {
			on["db"] = &pod
		}
	}
	if on["db"] == nil {
		t.Fatalf("no pod of the StatefulSet is on %s", victim.Name)
	}

	departures := c.watchDepartures(t, ns, victim.Name)
	if err := c.Cut(victim); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hasty", "usual", "patient"} {
		c.podMoves(t, ns, on[name], "app="+name)
	}
	c.podMoves(t, ns, on["db"], "statefulset.kubernetes.io/pod-name="+on["db"].Name)
	departures.end()
	// Tolerations count from the loss's date. Who has an identity waits from when a leader has seen it.
	dated := departures.kept
	if departures.dated.Before(dated) {
		dated = departures.dated
	}
	for name, stays := range map[string]struct {
		least time.Duration
		since time.Time
	}{"hasty": {0, dated}, "usual": {5 * time.Second, dated}, "patient": {20 * time.Second, dated}, "db": {10 * time.Second, departures.kept}} {
		t.Logf("%s was given up %s after its node was lost", name, departures.after(on[name], departures.lost).Round(10*time.Millisecond))
		if most := departures.after(on[name], stays.since); most < stays.least {
			t.Errorf("%s was given up %s after its node was lost at the most, it may stay for %s", name, most, stays.least)
		}
	}
	gone := func(name string) time.Time { return departures.gone[string(on[name].UID)] }
	if gone("hasty").After(gone("usual")) || gone("usual").After(gone("patient")) {
		t.Errorf("given up at %s, %s and %s", gone("hasty"), gone("usual"), gone("patient"))
	}
	loyal := c.readyOrNot(t, ns, "app=loyal")
	if len(loyal) != 1 || loyal[0].UID != on["loyal"].UID || ready(&loyal[0]) {
		t.Errorf("the pod that stays for ever: %+v", loyal)
	}

	if err := c.Mend(victim); err != nil {
		t.Fatal(err)
	}
	c.back(t, victim)
	c.readyPods(t, soon, ns, "app=db", 5)
	// A pod that was not replaced runs again, where it was; the machine is another since, as after a loss of power.
	if again := c.readyPods(t, soon, ns, "app=loyal", 1)[0]; again.UID != on["loyal"].UID || again.Spec.NodeName != victim.Name {
		t.Errorf("%s on %s is not the one that stayed", again.Name, again.Spec.NodeName)
	}
	for _, name := range []string{"hasty", "usual", "patient", "db"} {
		eventually(t, soon, "nothing of "+name+" is left on the node that is back", func(context.Context) error {
			if traces := tracesOf(string(on[name].UID)); len(traces) > 0 {
				return fmt.Errorf("%v", traces)
			}
			return nil
		})
	}
	neverTwo(t, dir)
}

// podMoves waits until a pod is replaced by one that is ready on another node.
func (c *cluster) podMoves(t *testing.T, namespace string, pod *corev1.Pod, label string) corev1.Pod {
	t.Helper()
	var moved corev1.Pod
	eventually(t, 2*soon, pod.Name+" is replaced on another node", func(context.Context) error {
		for _, now := range c.readyOrNot(t, namespace, label) {
			if now.UID != pod.UID && now.Spec.NodeName != pod.Spec.NodeName && ready(&now) {
				moved = now
				return nil
			}
		}
		return errNotYet
	})
	return moved
}

// readyOrNot are the pods with a label.
func (c *cluster) readyOrNot(t *testing.T, namespace, label string) []corev1.Pod {
	t.Helper()
	var list *corev1.PodList
	eventually(t, soon, "the pods with "+label+" are listed", func(ctx context.Context) (err error) {
		list, err = c.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: label})
		return err
	})
	return list.Items
}

// nodeCutOff isolates a peer that lives on, while clocks are as wrong as they may be: the date at which the node was marked as lost lies
// nearly a minute in the past of those who decide, and its own clock is ahead. It has to stop what has an identity before another begins.
func nodeCutOff(t *testing.T, c *cluster) {
	ns, dir := c.namespace(t, "cutoff"), recordDir(t)
	c.apply(t, ns, recorded("db", 5, dir))
	pods := c.readyPods(t, soon, ns, "app=db", 5)
	s, err := status(t, c.Peers[0])
	if err != nil {
		t.Fatal(err)
	}
	judge := c.peerByID(s, s.Shards[0].Leader)
	i := slices.IndexFunc(pods, func(pod corev1.Pod) bool {
		return pod.Spec.NodeName != judge.Name && pod.Spec.NodeName != c.Peers[0].Name
	})
	if i < 0 {
		t.Fatal("all pods are on two peers")
	}
	pod, victim := &pods[i], c.peerNamed(pods[i].Spec.NodeName)
	for peer, ahead := range map[*Peer]time.Duration{judge: -50 * time.Second, victim: 1500 * time.Millisecond} {
		if err := peer.SetClock(ahead); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := peer.SetClock(0); err != nil {
				t.Error(err)
			}
		}()
	}
	t.Logf("%s judges with a clock 50 s behind, %s is cut off", judge.Name, victim.Name)

	var cut []Path
	for _, peer := range c.Peers {
		if peer != victim {
			cut = append(cut, Path{From: peer, To: victim, Loss: 1}, Path{From: victim, To: peer, Loss: 1})
		}
	}
	if err := c.Trouble(cut...); err != nil {
		t.Fatal(err)
	}
	c.podMoves(t, ns, pod, "statefulset.kubernetes.io/pod-name="+pod.Name)
	var pauses []time.Duration
	eventually(t, soon, "the new "+pod.Name+" writes down that it runs", func(context.Context) error {
		if pauses = neverTwo(t, dir)[pod.Name]; len(pauses) == 0 {
			return fmt.Errorf("recorded are %v", lives(t, dir))
		}
		return nil
	})
	t.Logf("between the end of %s where it was cut off and its beginning elsewhere: %s", pod.Name, pauses)
	if err := c.Trouble(); err != nil {
		t.Fatal(err)
	}
	c.nodeIs(t, victim.Name, corev1.ConditionTrue)
	eventually(t, soon, "nothing of the replaced pod is left", func(context.Context) error {
		if traces := tracesOf(string(pod.UID)); len(traces) > 0 {
			return fmt.Errorf("%v", traces)
		}
		return nil
	})
	c.readyPods(t, soon, ns, "app=db", 5)
	neverTwo(t, dir)
}
