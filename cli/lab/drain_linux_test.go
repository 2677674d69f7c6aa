package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/peer/admin"
)

// placementExplained: for a pod that fits nowhere event and explanation say what kube-scheduler says, and each node says why not; for one
// that has its node, the explanation says why there.
func placementExplained(t *testing.T, c *cluster) {
	ns := c.namespace(t, "explained")
	tainted, cordoned := c.Peers[3].Name, c.Peers[4].Name
	c.kubectl(t, "taint", "node", tainted, "kept=for-others:NoSchedule")
	c.kubectl(t, "cordon", cordoned)
	c.apply(t, ns, sh("fits", "exec e2e pause"))
	c.apply(t, ns, strings.Replace(sh("huge", "true"), "  - name: main\n", "  - name: main\n    resources: {requests: {cpu: 1000}}\n", 1))
	c.apply(t, ns, strings.Replace(sh("picky", "true"), "  containers:\n", "  nodeSelector: {disk: fast}\n  containers:\n", 1))

	// The texts are those of kube-scheduler v1.37's FitError for this cluster; placement/schedule/oracle compares them with upstream's own.
	const huge = "0/5 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, 3 Insufficient cpu. " +
		"preemption: 0/5 nodes are available: 5 Preemption is not helpful for scheduling."
	const picky = "0/5 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, " +
		"3 node(s) didn't match Pod's node affinity/selector. preemption: 0/5 nodes are available: 5 Preemption is not helpful for scheduling."
	for pod, says := range map[string]string{"huge": huge, "picky": picky} {
		c.eventSays(t, ns, pod, "FailedScheduling", says)
		c.podIs(t, ns, pod, "said not to be scheduled", func(p *corev1.Pod) bool {
			i := slices.IndexFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodScheduled })
			return i >= 0 && p.Status.Conditions[i].Reason == corev1.PodReasonUnschedulable && p.Status.Conditions[i].Message == says
		})
		for _, peer := range c.Peers[:2] { // the shard's leader is one of them at most
			out, err := peer.Command(t.Context(), "explain-placement", ns+"/"+pod)
			if err != nil {
				t.Fatal(err)
			}
			wants(t, out, says, tainted, cordoned)
		}
	}
	reasons := func(p *admin.Placement, node string) string {
		i := slices.IndexFunc(p.Nodes, func(n admin.NodePlacement) bool { return n.Node == node })
		if i < 0 {
			t.Fatalf("no word about %s in %+v", node, p)
		}
		return strings.Join(p.Nodes[i].Reasons, "; ")
	}
	explained := c.placement(t, ns, "huge")
	for node, want := range map[string]string{
		tainted: "kept", cordoned: "unschedulable", c.Peers[0].Name: "Insufficient cpu", c.Peers[1].Name: "Insufficient cpu", c.Peers[2].Name: "Insufficient cpu",
	} {
		wants(t, reasons(explained, node), want)
	}

	fits := c.podIs(t, ns, "fits", "ready", ready)
	explained = c.placement(t, ns, "fits")
	if explained.On != fits.Spec.NodeName || len(explained.Nodes) != len(c.Peers) || reasons(explained, fits.Spec.NodeName) != "" {
		t.Errorf("the pod is on %s, explained as %+v", fits.Spec.NodeName, explained)
	}
	out, err := c.Peers[1].Command(t.Context(), "explain-placement", "fits", "-n", ns)
	if err != nil {
		t.Fatal(err)
	}
	wants(t, out, fits.Spec.NodeName+" (here)", "TOTAL", "untolerated taint", "unschedulable")
	if out, err := c.Peers[0].Command(t.Context(), "explain-placement", "none", "-n", ns); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("a pod that does not exist: %v %s", err, out)
	}
	c.kubectl(t, "taint", "node", tainted, "kept-")
	c.kubectl(t, "uncordon", cordoned)
}

// nodeDrained: an eviction that a budget forbids is refused with 429 and a drain waits for it; allowed, the pods move, nothing new comes
// until the node is uncordoned.
func nodeDrained(t *testing.T, c *cluster) {
	ns := c.namespace(t, "drained")
	c.apply(t, ns, web("web", 5, "w"))
	c.apply(t, ns, "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: web}, spec: {minAvailable: 5, selector: {matchLabels: {app: web}}}}")
	pods := c.readyPods(t, soon, ns, "app=web", 5)
	victim := pods[0].Spec.NodeName
	eventually(t, soon, "the budget allows nothing", func(ctx context.Context) error {
		budget, err := c.client.PolicyV1().PodDisruptionBudgets(ns).Get(ctx, "web", metav1.GetOptions{})
		if err == nil && (budget.Status.ObservedGeneration != budget.Generation || budget.Status.CurrentHealthy != 5 || budget.Status.DisruptionsAllowed != 0) {
			err = fmt.Errorf("%+v", budget.Status)
		}
		return err
	})
	err := c.client.PolicyV1().Evictions(ns).Evict(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pods[0].Name}})
	if !apierrors.IsTooManyRequests(err) || !apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause) {
		t.Errorf("an eviction that the budget forbids: %v", err)
	}
	// Not all pods of all namespaces: only this one's are known here.
	drain := []string{"drain", victim, "--ignore-daemonsets", "--delete-emptydir-data", "--pod-selector=app=web"}
	c.refused(t, "", []string{"Cannot evict pod as it would violate the pod's disruption budget", "global timeout reached"}, append(drain, "--timeout=4s")...)
	if after := c.readyPods(t, soon, ns, "app=web", 5); identities(after) != identities(pods) {
		t.Errorf("pods before:\n%s\nafter:\n%s", identities(pods), identities(after))
	}
	wants(t, c.kubectl(t, "get", "node", victim), "SchedulingDisabled")

	c.kubectl(t, "-n", ns, "patch", "pdb", "web", "-p", `{"spec":{"minAvailable":3}}`)
	wants(t, c.kubectl(t, append(drain, "--timeout=60s")...), "drained")
	elsewhere := func(n int) {
		t.Helper()
		for _, pod := range c.readyPods(t, soon, ns, "app=web", n) {
			if pod.Spec.NodeName == victim {
				t.Errorf("%s is on the drained node", pod.Name)
			}
		}
	}
	elsewhere(5)
	c.kubectl(t, "-n", ns, "scale", "deployment", "web", "--replicas=8")
	elsewhere(8)
	c.kubectl(t, "uncordon", victim)
	c.kubectl(t, "-n", ns, "scale", "deployment", "web", "--replicas=12")
	if !slices.ContainsFunc(c.readyPods(t, soon, ns, "app=web", 12), func(pod corev1.Pod) bool { return pod.Spec.NodeName == victim }) {
		t.Errorf("nothing is placed on %s again", victim)
	}
}
