package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"

	"shoal/peer/admin"
)

// TestThreePeers proves what peers do for each other. The steps share one lab and build on one another, so the first failure ends it.
func TestThreePeers(t *testing.T) {
	c := openCluster(t, 3)
	for _, step := range []struct {
		name string
		test func(t *testing.T, c *cluster)
	}{
		{"every shard has three voters", votersEverywhere},
		{"any peer answers", anyPeerAnswers},
		{"pods reach pods of other peers", podsReachPods},
		{"a Service answers everywhere", serviceAnswers},
		{"a headless Service names its pods", headlessNames},
		{"a change of a Service reaches all peers", serviceChangeReaches},
		{"a DaemonSet has a pod per node", daemonSetEverywhere},
		{"peers restart one after the other without a failed request", rollingRestart},
		{"a lost peer is replaced", lostPeerReplaced},
		{"the lost peer comes back", lostPeerReturns},
		{"the meta leader is lost", metaLeaderLost},
		{"a peer leaves", peerLeaves},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.test(t, c) }) {
			c.show(t)
			return
		}
	}
}

// show describes what there is, for a step that failed.
func (c *cluster) show(t *testing.T) {
	for _, peer := range c.Peers {
		if peer.Pid() == 0 {
			continue
		}
		for _, args := range [][]string{{"status"}, {"get", "pods,nodes,events", "-A", "-o", "wide"}} {
			out, err := peer.Command(t.Context(), args...)
			t.Logf("%s on %s: %v\n%s", strings.Join(args, " "), peer.Name, err, out)
			if err == nil && args[0] == "get" {
				return
			}
		}
	}
}

// status is what a peer says about itself.
func status(t testing.TB, peer *Peer) (*admin.Status, error) {
	out, err := peer.Command(t.Context(), "status", "-o", "json")
	if err != nil {
		return nil, err
	}
	s := new(admin.Status)
	return s, json.Unmarshal([]byte(out), s)
}

// awaitShards waits until every shard has a leader and the wanted numbers of voters and other copies.
func awaitShards(t testing.TB, peer *Peer, voters, others int) {
	t.Helper()
	eventually(t, 2*soon, fmt.Sprintf("every shard has %d voters and %d other copies", voters, others), func(context.Context) error {
		s, err := status(t, peer)
		if err != nil {
			return err
		}
		if len(s.Shards) != 9 {
			return fmt.Errorf("%d shards", len(s.Shards))
		}
		for _, shard := range s.Shards {
			if len(shard.Voters) != voters || len(shard.NonVoters) != others || shard.Leader == "" {
				return fmt.Errorf("shard %d has voters %v, others %v and leader %q", shard.Shard, shard.Voters, shard.NonVoters, shard.Leader)
			}
		}
		return nil
	})
}

func votersEverywhere(t *testing.T, c *cluster) {
	for _, peer := range c.Peers {
		awaitShards(t, peer, 3, 0)
		eventually(t, soon, peer.Name+" sees no problem", func(context.Context) error {
			s, err := status(t, peer)
			if err == nil && (!s.Ready || len(s.Peers) != 3 || len(s.Problems) > 0) {
				err = fmt.Errorf("it sees %+v", s)
			}
			return err
		})
	}
	eventually(t, soon, "status prints a table and succeeds", func(context.Context) error {
		out, err := c.Peers[1].Command(t.Context(), "status")
		if err == nil && (!strings.Contains(out, "peer-1,peer-2,peer-3") || !strings.Contains(out, "alive")) {
			err = fmt.Errorf("it prints %s", out)
		}
		return err
	})
	wants(t, c.kubectl(t, "wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s"), "peer-1", "peer-2", "peer-3")
}

func anyPeerAnswers(t *testing.T, c *cluster) {
	ns := c.namespace(t, "anywhere")
	for n, peer := range c.Peers {
		name := fmt.Sprintf("from-%s", peer.Name)
		c.kubectl(t, "--server", peer.API, "-n", ns, "create", "configmap", name)
		// What one peer has confirmed, every other one shows at once.
		for m := range c.Peers {
			client, err := c.clientFor((n + m) % 3)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.CoreV1().ConfigMaps(ns).Get(t.Context(), name, metav1.GetOptions{}); err != nil {
				t.Errorf("%s does not have what %s confirmed: %v", c.Peers[(n+m)%3].Name, peer.Name, err)
			}
		}
		out, err := peer.Command(t.Context(), "get", "nodes", "-o", "name")
		if err != nil {
			t.Fatal(err)
		}
		wants(t, out, "node/peer-1", "node/peer-2", "node/peer-3")
	}
	// Logs and exec go to the pod's node, whichever peer is asked.
	c.apply(t, ns, sh("talker", "echo spoken; exec e2e pause"))
	c.podIs(t, ns, "talker", "ready", ready)
	for _, peer := range c.Peers {
		wants(t, c.kubectl(t, "--server", peer.API, "-n", ns, "logs", "talker"), "spoken")
		wants(t, c.kubectl(t, "--server", peer.API, "-n", ns, "exec", "talker", "--", "echo", "from "+peer.Name), "from "+peer.Name)
	}
}

// mesh is the namespace that the network's tests share, with the Deployment web: one pod on each peer.
const mesh = "mesh"

func podsReachPods(t *testing.T, c *cluster) {
	c.kubectl(t, "create", "namespace", mesh)
	c.apply(t, mesh, web("web", 3, "first"))
	pods := c.readyPods(t, soon, mesh, "app=web", 3)
	nodes := sets.New[string]()
	for _, pod := range pods {
		nodes.Insert(pod.Spec.NodeName)
	}
	if len(nodes) != 3 {
		t.Fatalf("the pods were spread over %v", nodes)
	}
	for _, from := range pods {
		for _, to := range pods {
			out := c.kubectl(t, "-n", mesh, "exec", from.Name, "--", "e2e", "get", "http://"+to.Status.PodIP+":8080/")
			wants(t, out, to.Name+" first")
		}
	}
	// Large packets too: the tunnel's MTU must be right.
	for _, to := range pods[1:] {
		out := c.kubectl(t, "-n", mesh, "exec", pods[0].Name, "--", "sh", "-c", "e2e get 'http://"+to.Status.PodIP+":8080/bytes?n=3000000' | wc -c")
		if strings.TrimSpace(out) != "3000000" {
			t.Errorf("%s bytes of 3000000 came from %s", strings.TrimSpace(out), to.Spec.NodeName)
		}
	}
}

func (c *cluster) serviceIP(t testing.TB, namespace, name string) string {
	t.Helper()
	return c.kubectl(t, "-n", namespace, "get", "service", name, "-o", "jsonpath={.spec.clusterIP}")
}

func serviceAnswers(t *testing.T, c *cluster) {
	c.apply(t, mesh, "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}}")
	vip := c.serviceIP(t, mesh, "web")
	port := c.kubectl(t, "-n", mesh, "get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}")
	pods := c.readyPods(t, soon, mesh, "app=web", 3)
	for n, peer := range c.Peers {
		c.answers(t, "the virtual IP from "+peer.Name, peer.host, vip+":80", "first")
		c.answers(t, "the node port of "+peer.Name+" from a client", c.Lab.client, net.JoinHostPort(peer.Address, port), "first")
		if err := c.Lab.client.route(serviceCIDR, peer.host.address); err != nil {
			t.Fatal(err)
		}
		c.answers(t, "the virtual IP from a client by way of "+peer.Name, c.Lab.client, vip+":80", "first")
		wants(t, c.kubectl(t, "-n", mesh, "exec", pods[n].Name, "--", "e2e", "get", "http://web/"), "first")
		wants(t, c.kubectl(t, "-n", mesh, "exec", pods[n].Name, "--", "e2e", "get", "http://web.mesh.svc.cluster.local/"), "first")
	}
	// Every pod gets its share, also of those on other peers.
	answered := sets.New[string]()
	eventually(t, soon, "all three pods have answered", func(ctx context.Context) error {
		body, err := fetchFrom(ctx, dialerFunc(c.Peers[0].host.dial), "http://"+vip+"/")
		if err != nil {
			return err
		}
		answered.Insert(strings.Fields(body)[0])
		if len(answered) < 3 {
			return fmt.Errorf("so far %v", sets.List(answered))
		}
		return nil
	})
}

func headlessNames(t *testing.T, c *cluster) {
	c.apply(t, mesh, statefulSet("db", 3))
	pods := c.readyPods(t, soon, mesh, "app=db", 3)
	from := c.readyPods(t, soon, mesh, "app=web", 3)[0].Name
	eventually(t, soon, "the headless Service has all addresses", func(context.Context) error {
		out, err := c.try(t.Context(), "", tools.kubectl, "-n", mesh, "exec", from, "--", "e2e", "resolve", "db.mesh.svc.cluster.local")
		if err != nil {
			return err
		}
		for _, pod := range pods {
			if !strings.Contains(out, pod.Status.PodIP) {
				return fmt.Errorf("%s (%s) is missing in: %s", pod.Name, pod.Status.PodIP, out)
			}
		}
		return nil
	})
	for _, pod := range pods {
		wants(t, c.kubectl(t, "-n", mesh, "exec", from, "--", "e2e", "resolve", pod.Name+".db.mesh.svc.cluster.local"), pod.Status.PodIP)
	}
}

func serviceChangeReaches(t *testing.T, c *cluster) {
	vip := c.serviceIP(t, mesh, "web")
	c.apply(t, mesh, web("other", 1, "second"))
	c.readyPods(t, soon, mesh, "app=other", 1)
	c.kubectl(t, "-n", mesh, "patch", "service", "web", "-p", `{"spec":{"selector":{"app":"other"}}}`)
	for _, peer := range c.Peers {
		c.answers(t, "the other pod through "+peer.Name, peer.host, vip+":80", "second")
	}
	c.kubectl(t, "-n", mesh, "patch", "service", "web", "-p", `{"spec":{"selector":{"app":"web"},"ports":[{"name":"http","port":80,"$patch":"delete"},{"name":"http","port":81,"targetPort":8080}]}}`)
	for _, peer := range c.Peers {
		c.answers(t, "the new port through "+peer.Name, peer.host, vip+":81", "first")
		eventually(t, soon, "the old port is closed on "+peer.Name, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			if _, err := fetchFrom(ctx, dialerFunc(peer.host.dial), "http://"+vip+":80/"); err == nil {
				return errors.New("it answers")
			}
			return nil
		})
	}
	c.kubectl(t, "-n", mesh, "delete", "deployment", "other")
}

// requester asks for something again and again and counts what failed.
type requester struct {
	stop    context.CancelFunc
	done    sync.WaitGroup
	lock    sync.Mutex
	asked   int
	failure []string
}

func (c *cluster) keepAsking(t testing.TB, name string, ask func(ctx context.Context) error) *requester {
	ctx, cancel := context.WithCancel(t.Context())
	r := &requester{stop: cancel}
	r.done.Go(func() {
		for ctx.Err() == nil {
			err := ask(ctx)
			if ctx.Err() != nil {
				return
			}
			r.lock.Lock()
			r.asked++
			if err != nil {
				r.failure = append(r.failure, time.Now().UTC().Format("15:04:05.000 ")+name+": "+err.Error())
			}
			r.lock.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return r
}

// end stops asking and reports failures.
func (r *requester) end(t testing.TB, name string) {
	t.Helper()
	r.stop()
	r.done.Wait()
	if r.asked == 0 {
		t.Errorf("%s: nothing was asked", name)
	}
	if len(r.failure) > 0 {
		t.Errorf("%s: %d of %d requests failed:\n%s", name, len(r.failure), r.asked, strings.Join(r.failure, "\n"))
	}
}

func rollingRestart(t *testing.T, c *cluster) {
	// On a busy machine a restart may take longer than the few seconds after which pods of a silent node are replaced by default; these
	// tolerate it for longer, as Kubernetes lets them.
	c.apply(t, mesh, patient(web("steady", 3, "steady")))
	before := identities(c.readyPods(t, soon, mesh, "app=steady", 3))
	reads := c.keepAsking(t, "peer get", func(ctx context.Context) error {
		_, err := c.try(ctx, "", tools.peer, "get", "configmaps", "-n", mesh)
		return err
	})
	n := 0
	writes := c.keepAsking(t, "peer create", func(ctx context.Context) error {
		n++
		_, err := c.try(ctx, "", tools.peer, "create", "configmap", fmt.Sprintf("written-%d", n), "-n", mesh)
		return err
	})
	for _, peer := range c.Peers {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		defer cancel()
		if err := peer.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(peer.Start(), peer.Await(ctx)); err != nil {
			t.Fatal(err)
		}
		awaitShards(t, peer, 3, 0)
	}
	reads.end(t, "reads")
	writes.end(t, "writes")
	if after := identities(c.readyPods(t, soon, mesh, "app=steady", 3)); before != after {
		t.Errorf("pods before:\n%s\nafter:\n%s", before, after)
	}
	list, err := c.client.CoreV1().ConfigMaps(mesh).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if kept := len(list.Items) - 1; kept < writes.asked-len(writes.failure) {
		t.Errorf("%d writes were confirmed, %d are there", writes.asked-len(writes.failure), kept)
	}
	c.kubectl(t, "-n", mesh, "delete", "deployment", "steady")
	vip := c.serviceIP(t, mesh, "web")
	for _, peer := range c.Peers {
		c.answers(t, "the virtual IP through "+peer.Name, peer.host, vip+":81", "first")
	}
}

// patient makes a workload's pods stay for ten minutes on a node that is not ready.
func patient(manifest string) string {
	return strings.Replace(manifest, "      containers:\n", `      tolerations:
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 600}
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 600}
      containers:
`, 1)
}

// nodeIs waits until a node's Ready condition is as wanted.
func (c *cluster) nodeIs(t testing.TB, name string, want corev1.ConditionStatus) {
	t.Helper()
	eventually(t, 2*soon, fmt.Sprintf("Ready of node %s is %s", name, want), func(ctx context.Context) error {
		node, err := c.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status == want {
				return nil
			}
		}
		return errNotYet
	})
}

// uidsOn are the UIDs of the pods bound to a node.
func (c *cluster) uidsOn(t testing.TB, node string) sets.Set[string] {
	t.Helper()
	list, err := c.client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		t.Fatal(err)
	}
	uids := sets.New[string]()
	for _, pod := range list.Items {
		uids.Insert(string(pod.UID))
	}
	return uids
}

// lost remembers between two steps what ran on the lost peer.
var lost struct {
	peer *Peer
	uids sets.Set[string]
}

func lostPeerReplaced(t *testing.T, c *cluster) {
	victim, vip := c.Peers[2], c.serviceIP(t, mesh, "web")
	lost.peer, lost.uids = victim, c.uidsOn(t, victim.Name)
	stateful := ""
	for _, pod := range c.readyPods(t, soon, mesh, "app=db", 3) {
		if pod.Spec.NodeName == victim.Name {
			stateful = pod.Name
		}
	}
	if stateful == "" {
		t.Fatalf("no pod of the StatefulSet is on %s", victim.Name)
	}
	if err := c.Lab.client.route(serviceCIDR, c.Peers[0].host.address); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	if err := c.Cut(victim); err != nil {
		t.Fatal(err)
	}
	// Calm: no request has failed for two seconds.
	lastFailure := time.Now()
	eventually(t, soon, "the virtual IP answers every request again", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		if _, err := fetchFrom(ctx, dialerFunc(c.Lab.client.dial), "http://"+vip+":81/"); err != nil {
			lastFailure = time.Now()
			return err
		}
		if time.Since(lastFailure) < 2*time.Second {
			return errNotYet
		}
		return nil
	})
	t.Logf("the virtual IP: calm %s after the kill", lastFailure.Sub(killed).Round(10*time.Millisecond))
	c.nodeIs(t, victim.Name, corev1.ConditionUnknown)
	alive := func(what string, limit time.Duration, label string) {
		eventually(t, limit, what, func(ctx context.Context) error {
			list, err := c.client.CoreV1().Pods(mesh).List(ctx, metav1.ListOptions{LabelSelector: label})
			if err != nil {
				return err
			}
			n := 0
			for _, pod := range list.Items {
				if ready(&pod) && pod.Spec.NodeName != victim.Name {
					n++
				}
			}
			if n < 3 {
				return fmt.Errorf("%d of 3", n)
			}
			return nil
		})
		t.Logf("%s: %s after the kill", what, time.Since(killed).Round(100*time.Millisecond))
	}
	alive("three web pods are ready on the other peers", soon, "app=web")
	alive(stateful+" heals on another peer", 2*soon, "app=db")
	// Everything goes on with two of three.
	c.kubectl(t, "-n", mesh, "create", "configmap", "with-two")
}

func lostPeerReturns(t *testing.T, c *cluster) {
	back := lost.peer
	if err := c.Mend(back); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := errors.Join(back.Start(), back.Await(ctx)); err != nil {
		t.Fatal(err)
	}
	c.nodeIs(t, back.Name, corev1.ConditionTrue)
	awaitShards(t, back, 3, 0)
	eventually(t, soon, "nothing of the replaced pods is left", func(context.Context) error {
		bound := c.uidsOn(t, back.Name)
		for uid := range lost.uids.Difference(bound) {
			if traces := tracesOf(uid); len(traces) > 0 {
				return fmt.Errorf("pod %s: %v", uid, traces)
			}
		}
		return nil
	})
	if out, err := back.Command(t.Context(), "get", "configmap", "with-two", "-n", mesh, "--server", "https://"+back.Address+":"+apiPort); err != nil {
		t.Errorf("%v %s", err, out)
	}
	// It takes pods again.
	c.kubectl(t, "-n", mesh, "scale", "deployment", "web", "--replicas=6")
	eventually(t, soon, "new pods run on the peer that is back", func(ctx context.Context) error {
		for _, pod := range c.readyPods(t, soon, mesh, "app=web", 6) {
			if pod.Spec.NodeName == back.Name {
				return nil
			}
		}
		return errNotYet
	})
	vip := c.serviceIP(t, mesh, "web")
	c.answers(t, "the virtual IP through the peer that is back", back.host, vip+":81", "first")
}

// tracesOf finds mounts and processes of a pod.
func tracesOf(uid string) []string {
	var traces []string
	if table, err := os.ReadFile("/proc/self/mountinfo"); err == nil && strings.Contains(string(table), uid) {
		traces = append(traces, "mounts")
	}
	groups, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, group := range groups {
		if text, err := os.ReadFile(group); err == nil && strings.Contains(string(text), uid) {
			traces = append(traces, filepath.Dir(group))
		}
	}
	return traces
}

func metaLeaderLost(t *testing.T, c *cluster) {
	s, err := status(t, c.Peers[0])
	if err != nil {
		t.Fatal(err)
	}
	var leader *Peer
	for _, member := range s.Peers {
		if member.PeerID != s.Shards[0].Leader {
			continue
		}
		for _, peer := range c.Peers {
			if peer.Name == member.Name {
				leader = peer
			}
		}
	}
	if s.Shards[0].Shard != 0 || leader == nil {
		t.Fatalf("no meta leader in %+v", s)
	}
	if err := c.Cut(leader); err != nil {
		t.Fatal(err)
	}
	for n, peer := range c.Peers {
		if peer == leader {
			continue
		}
		client, err := c.clientFor(n)
		if err != nil {
			t.Fatal(err)
		}
		name := "after-" + peer.Name
		eventually(t, soon, "a namespace is made through "+peer.Name, func(ctx context.Context) error {
			_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
			return err
		})
		c.client = client
	}
	c.nodeIs(t, leader.Name, corev1.ConditionUnknown)
	if err := c.Mend(leader); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := errors.Join(leader.Start(), leader.Await(ctx)); err != nil {
		t.Fatal(err)
	}
	c.nodeIs(t, leader.Name, corev1.ConditionTrue)
	awaitShards(t, leader, 3, 0)
}

func peerLeaves(t *testing.T, c *cluster) {
	leaver := c.Peers[2]
	out, err := leaver.Command(t.Context(), "leave")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wants(t, out, "giving up shard replicas", "removing the node", "left the cluster")
	eventually(t, soon, "the leaver's process ends", func(context.Context) error {
		if pid := leaver.Pid(); pid != 0 {
			return fmt.Errorf("process %d runs", pid)
		}
		return nil
	})
	awaitShards(t, c.Peers[0], 1, 1)
	if c.client, err = c.clientFor(0); err != nil {
		t.Fatal(err)
	}
	nodes := c.kubectl(t, "get", "nodes", "-o", "name")
	if strings.Contains(nodes, leaver.Name) || strings.Count(nodes, "node/") != 2 {
		t.Errorf("nodes: %s", nodes)
	}
	c.readyPods(t, soon, mesh, "app=web", 6)
	// What ran there is gone: nothing but the lab's own things is left in its cgroup.
	eventually(t, soon, "no container of the leaver is left", func(context.Context) error {
		if pids := processesOf("no-namespace", nil, leaver.cgroup); len(pids) > 0 {
			return fmt.Errorf("processes %v", pids)
		}
		return nil
	})
}
