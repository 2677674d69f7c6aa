package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/internal/polling"
	"shoal/peer/admin"
)

// containers are all containers of a namespace: what each one's ID, start and count of restarts are, and which processes are in its pod.
func (c *cluster) containers(t *testing.T, namespace string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, pod := range c.readyOrNot(t, namespace, "") {
		for _, status := range pod.Status.ContainerStatuses {
			begun := "not running"
			if running := status.State.Running; running != nil {
				begun = running.StartedAt.UTC().Format(time.RFC3339)
			}
			processes := processesOfPod(t, string(pod.UID))
			slices.Sort(processes)
			found[pod.Name+"/"+status.Name] = fmt.Sprintf("%s on %s, %d restarts, since %s, processes %v", status.ContainerID, pod.Spec.NodeName, status.RestartCount, begun, processes)
		}
	}
	return found
}

func sameContainers(t *testing.T, before, after map[string]string) {
	t.Helper()
	if maps.Equal(before, after) {
		return
	}
	for name, was := range before {
		if after[name] != was {
			t.Errorf("%s was %s\nand is %s", name, was, after[name])
		}
	}
	for name, is := range after {
		if before[name] == "" {
			t.Errorf("%s is new: %s", name, is)
		}
	}
}

// leadersLost kills the processes of all peers that lead anything, at the same moment: the store elects anew, and no container notices.
func leadersLost(t *testing.T, c *cluster) {
	ns := c.namespace(t, "leaders")
	c.apply(t, ns, patient(web("web", 10, "w")))
	c.readyPods(t, soon, ns, "app=web", 10)
	s, err := status(t, c.Peers[0])
	if err != nil {
		t.Fatal(err)
	}
	leaders := map[*Peer]bool{}
	for _, shard := range s.Shards {
		leaders[c.peerByID(s, shard.Leader)] = true
	}
	t.Logf("%d of %d peers lead the %d shards", len(leaders), len(c.Peers), len(s.Shards))
	before := c.containers(t, ns)
	var group errgroup.Group
	for leader := range leaders {
		group.Go(leader.KillProcess)
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	c.back(t, slices.Collect(maps.Keys(leaders))...)
	awaitShards(t, c.Peers[0], 3, 0)
	c.readyPods(t, soon, ns, "app=web", 10)
	sameContainers(t, before, c.containers(t, ns))
}

// majorityLost takes two of the three voters of a namespace's shard away, longer than pods of lost nodes stay: nobody can decide about
// these pods, and none is restarted, neither then nor when the shard is back.
func majorityLost(t *testing.T, c *cluster) {
	ns := c.namespace(t, "majority")
	c.apply(t, ns, patient(web("web", 10, "w")))
	pods := c.readyPods(t, soon, ns, "app=web", 10)
	shard := c.placement(t, ns, pods[0].Name).Shard
	s, err := status(t, c.Peers[0])
	if err != nil {
		t.Fatal(err)
	}
	of := func(shard uint64) *admin.ShardStatus {
		return &s.Shards[slices.IndexFunc(s.Shards, func(s admin.ShardStatus) bool { return s.Shard == shard })]
	}
	// The first peer stays, since the client asks it; so does the meta shard's majority if it can.
	var victims []*Peer
	for _, id := range of(shard).Voters {
		if peer := c.peerByID(s, id); peer != c.Peers[0] {
			victims = append(victims, peer)
		}
	}
	if len(victims) != 2 {
		t.Fatalf("shard %d has a voter on each of %d peers beside the first", shard, len(victims))
	}
	before := c.containers(t, ns)
	for _, victim := range victims {
		if err := victim.KillProcess(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, soon, "the shard is known to be lost", func(context.Context) error {
		now, err := status(t, c.Peers[0])
		if err != nil {
			return err
		}
		*s = *now
		if !of(shard).Lost {
			return errNotYet
		}
		return nil
	})
	out, err := c.try(t.Context(), "", tools.kubectl, "--server", c.Peers[0].API, "-n", ns, "create", "configmap", "nobody")
	if err == nil {
		t.Errorf("a shard without a majority wrote: %s", out)
	}
	wants(t, out, fmt.Sprintf("shard %d", shard))
	// Absence of evictions takes time to see: more than the five seconds of the default toleration and the ten of fencing.
	polling.Throughout(t, time.Second, 16*time.Second, "nothing is evicted", func() error {
		for name, was := range before {
			pod, _, _ := strings.Cut(name, "/")
			i := slices.IndexFunc(pods, func(p corev1.Pod) bool { return p.Name == pod })
			if len(processesOfPod(t, string(pods[i].UID))) == 0 {
				return fmt.Errorf("%s has no process any more, it was %s", name, was)
			}
		}
		return nil
	})
	c.back(t, victims...)
	awaitShards(t, c.Peers[0], 3, 0)
	c.readyPods(t, soon, ns, "app=web", 10)
	sameContainers(t, before, c.containers(t, ns))
}

// placement is what explain-placement says about a pod.
func (c *cluster) placement(t *testing.T, namespace, pod string) *admin.Placement {
	t.Helper()
	found := new(admin.Placement)
	eventually(t, soon, "the placement of "+pod+" is explained", func(ctx context.Context) error {
		out, err := c.Peers[0].Command(ctx, "explain-placement", pod, "-n", namespace, "-o", "json")
		if err != nil {
			return err
		}
		*found = admin.Placement{}
		return json.Unmarshal([]byte(out), found)
	})
	return found
}

// zoneLost takes three of the three nodes of a zone away within a minute: their pods leave the endpoints and are not evicted, and status,
// nodes and events say why. When one node is back, the others' pods are replaced.
func zoneLost(t *testing.T, c *cluster) {
	ns := c.namespace(t, "zone")
	c.apply(t, ns, web("web", 10, "w"))
	c.apply(t, ns, "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}")
	pods := c.readyPods(t, soon, ns, "app=web", 10)
	zone := c.Peers[1:4]
	inZone := func(pod *corev1.Pod) bool {
		return slices.ContainsFunc(zone, func(p *Peer) bool { return p.Name == pod.Spec.NodeName })
	}
	var held, free []string
	for i := range pods {
		if inZone(&pods[i]) {
			held = append(held, string(pods[i].UID))
		} else {
			free = append(free, string(pods[i].UID))
		}
	}
	if len(held) == 0 || len(free) == 0 {
		t.Fatalf("%d pods in the zone, %d outside", len(held), len(free))
	}
	var group errgroup.Group
	for _, peer := range zone {
		group.Go(func() error { return c.Cut(peer) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, peer := range zone {
		c.nodeIs(t, peer.Name, corev1.ConditionUnknown)
	}
	const says = `3 of 3 nodes of zone "b" were lost within 1m0s`
	for _, peer := range zone {
		c.eventSays(t, "default", peer.Name, "EvictionsHeldBack", says)
	}
	eventually(t, soon, "status says that evictions are held back", func(context.Context) error {
		s, err := status(t, c.Peers[0])
		if err == nil && !strings.Contains(strings.Join(s.Problems, "\n"), says) {
			err = fmt.Errorf("problems %q", s.Problems)
		}
		return err
	})
	wants(t, c.kubectl(t, "describe", "node", zone[0].Name), "EvictionsHeldBack")
	eventually(t, soon, "the lost pods are no endpoints any more", func(ctx context.Context) error {
		slices, err := c.client.DiscoveryV1().EndpointSlices(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		serving := 0
		for _, slice := range slices.Items {
			for _, endpoint := range slice.Endpoints {
				if *endpoint.Conditions.Ready {
					serving++
				}
			}
		}
		if serving != len(free) {
			return fmt.Errorf("%d are ready, wanted %d", serving, len(free))
		}
		return nil
	})
	uids := func() map[string]bool {
		found := map[string]bool{}
		for _, pod := range c.readyOrNot(t, ns, "app=web") {
			found[string(pod.UID)] = pod.DeletionTimestamp == nil
		}
		return found
	}
	// Absence of evictions takes time to see: twice the toleration.
	polling.Throughout(t, 500*time.Millisecond, 10*time.Second, "the brake holds", func() error {
		now := uids()
		for _, uid := range held {
			if !now[uid] {
				return fmt.Errorf("pod %s of the lost zone was evicted", uid)
			}
		}
		return nil
	})
	if err := c.Mend(zone[0]); err != nil {
		t.Fatal(err)
	}
	c.back(t, zone[0])
	eventually(t, 2*soon, "the pods of the two nodes that are still lost are replaced", func(context.Context) error {
		up := 0
		for _, pod := range c.readyOrNot(t, ns, "app=web") {
			if ready(&pod) && pod.Spec.NodeName != zone[1].Name && pod.Spec.NodeName != zone[2].Name {
				up++
			}
		}
		if up < len(pods) {
			return fmt.Errorf("%d of %d", up, len(pods))
		}
		return nil
	})
	now := uids()
	for _, uid := range free {
		if !now[uid] {
			t.Errorf("pod %s, whose node was never lost, was replaced", uid)
		}
	}
	if err := errors.Join(c.Mend(zone[1]), c.Mend(zone[2])); err != nil {
		t.Fatal(err)
	}
	c.back(t, zone[1:]...)
	eventually(t, soon, "status has no problem", func(context.Context) error {
		s, err := status(t, c.Peers[0])
		if err == nil && strings.Contains(strings.Join(s.Problems, "\n"), "evictions") {
			err = fmt.Errorf("problems %q", s.Problems)
		}
		return err
	})
}
