// Package perf holds the cases of Kubernetes' scheduler_perf (test/integration/scheduler_perf) as
// decisions without an API server: the same nodes, the same pods, decided in batches as a leader's
// turns decide them, each batch's outcome going back into the view. Time is the caller's to take,
// as in the benchmark of this package:
//
//	go test ./placement/schedule/perf -run '^$' -bench . -benchtime 1x
package perf

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"shoal/placement"
	"shoal/placement/schedule"
)

// Case is one case of scheduler_perf.
type Case struct {
	Name string
	// Floor is the throughput in pods per second below which scheduler_perf reports a regression
	// of kube-scheduler, on its own hardware.
	Floor float64
	// Nodes are in the cluster, Placed pods on them before and Pods to decide.
	Nodes, Placed, Pods int
	zones               int // 0: no zone labels
	placed, pod         func(i int) *corev1.Pod
	churn               bool
}

// DistinctPods names the case that scheduler_perf does not have; its floor is that of Basic.
const DistinctPods = "DistinctPods"

// Batch is how many pods are decided by one call.
const Batch = 500

// Cases are those that the project compares itself by.
func Cases() []Case {
	plain := func(edits ...func(*corev1.Pod)) func(int) *corev1.Pod {
		return func(i int) *corev1.Pod { return makePod("sched-1", i, edits...) }
	}
	return []Case{
		{Name: "Basic", Floor: 270, Nodes: 5000, Placed: 1000, Pods: 10000, placed: plain(), pod: plain()},
		{Name: "NodeAffinity", Floor: 220, Nodes: 5000, Placed: 5000, Pods: 10000, zones: 1, placed: plain(inZone), pod: plain(inZone)},
		{Name: "TopologySpreading", Floor: 85, Nodes: 5000, Placed: 5000, Pods: 5000, zones: 3, placed: plain(), pod: plain(spread)},
		{Name: "PreferredPodAffinity", Floor: 90, Nodes: 5000, Placed: 5000, Pods: 5000, placed: plain(rather), pod: plain(rather)},
		{Name: "RequiredPodAntiAffinity", Floor: 60, Nodes: 5000, Placed: 1000, Pods: 2000, placed: plain(apart), pod: plain(apart)},
		{Name: "RequiredPodAffinity", Floor: 35, Nodes: 5000, Placed: 5000, Pods: 5000, zones: 1, placed: plain(together), pod: plain(together)},
		{Name: "Preemption", Floor: 160, Nodes: 5000, Placed: 20000, Pods: 5000, placed: plain(low), pod: plain(high)},
		{Name: "MixedChurn", Floor: 265, Nodes: 5000, Pods: 10000, pod: plain(), churn: true},
		{Name: "Daemonset", Floor: 390, Nodes: 15000, Pods: 15000, pod: daemon},
		{Name: DistinctPods, Floor: 270, Nodes: 5000, Placed: 1000, Pods: 1000, placed: plain(), pod: distinct},
	}
}

// Growth is a cluster of that many nodes in ten zones, with that many pods on each, and pods to decide that carry that many topology spread
// constraints, over zones and host names by turns. The pods are of one kind, or each is of its own: what a first pod of a kind costs.
type Growth struct {
	Nodes, PodsPerNode, Constraints, Pods int
	Distinct                              bool
}

// Case makes a case of it, without a floor.
func (g Growth) Case() Case {
	constrain := func(p *corev1.Pod) {
		p.Labels = map[string]string{}
		for i := range g.Constraints {
			label, key := fmt.Sprint("part-", i), corev1.LabelTopologyZone
			if i%2 == 1 {
				key = corev1.LabelHostname
			}
			p.Labels[label] = "of"
			p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, corev1.TopologySpreadConstraint{
				MaxSkew: 5, TopologyKey: key, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{label: "of"}},
			})
		}
	}
	return Case{
		Name:  fmt.Sprintf("%d nodes, %d pods on each, %d constraints", g.Nodes, g.PodsPerNode, g.Constraints),
		Nodes: g.Nodes, Placed: g.Nodes * g.PodsPerNode, Pods: g.Pods, zones: 10,
		placed: func(i int) *corev1.Pod { return makePod("sched-1", i) },
		pod: func(i int) *corev1.Pod {
			p := makePod("sched-1", i, constrain)
			if g.Distinct {
				requestCPU(p, fmt.Sprint(100+i, "m"))
			}
			return p
		},
	}
}

// now is when all of it happens.
var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// Run is a case under way. It has one owner.
type Run struct {
	view    *placement.View
	waiting []*corev1.Pod
	churn   bool
	round   int
}

// Prepare builds the cluster of a case.
func (c *Case) Prepare() *Run {
	r := &Run{view: placement.NewView(), churn: c.churn}
	for i := range c.Nodes {
		zone := ""
		if c.zones > 0 {
			zone = fmt.Sprintf("zone-%d", i%c.zones)
		}
		r.view.Upsert(makeNode(i, zone))
	}
	for i := range c.Placed {
		p := c.placed(-1 - i)
		p.Spec.NodeName = nodeName(i % c.Nodes)
		p.Status.StartTime = ptr.To(metav1.NewTime(now))
		r.view.Upsert(p)
	}
	for i := range c.Pods {
		p := c.pod(i)
		r.view.Upsert(p)
		r.waiting = append(r.waiting, p)
	}
	return r
}

// Waiting is how many pods are still without a node.
func (r *Run) Waiting() int { return len(r.waiting) }

// Step decides the next batch and puts what it decided into the view: pods on nodes, victims gone,
// nominations. An error is a pod that got neither a node nor victims.
func (r *Run) Step() error {
	if r.churn {
		r.stir()
	}
	batch := r.waiting[:min(Batch, len(r.waiting))]
	r.waiting = r.waiting[len(batch):]
	for _, d := range schedule.Schedule(r.view, batch, now) {
		switch {
		case d.Node != "":
			bound := *d.Pod
			bound.Spec.NodeName, bound.Status.NominatedNodeName = d.Node, ""
			r.view.Upsert(&bound)
		case d.Preempt != nil:
			for _, victim := range d.Preempt.Victims {
				r.view.Delete(victim)
			}
			nominated := *d.Pod
			nominated.Status.NominatedNodeName = d.Preempt.Node
			r.view.Upsert(&nominated)
			r.waiting = append(r.waiting, &nominated)
		default:
			return fmt.Errorf("pod %s: %s", d.Pod.Name, d.Unschedulable.Message)
		}
	}
	return nil
}

// stir replaces a node, a service and a pod that fits nowhere.
func (r *Run) stir() {
	r.round++
	for _, o := range []placement.Object{
		makeNode(1_000_000+r.round, ""),
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "sched-1", Name: fmt.Sprint("service-", r.round)}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "foo"}}},
		makePod("sched-1", 1_000_000+r.round, high, func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse("9")
		}),
	} {
		r.view.Upsert(o)
	}
	if r.round > 1 {
		r.view.Delete(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(1_000_000 + r.round - 1)}})
		r.view.Delete(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "sched-1", Name: fmt.Sprint("service-", r.round-1)}})
		r.view.Delete(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "sched-1", Name: fmt.Sprint("pod-", 1_000_000+r.round-1)}})
	}
}

func nodeName(i int) string { return fmt.Sprintf("scheduler-perf-%d", i) }

func makeNode(i int, zone string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i), Labels: map[string]string{corev1.LabelHostname: nodeName(i)}}}
	if zone != "" {
		n.Labels[corev1.LabelTopologyZone] = zone
	}
	n.Status.Allocatable = corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("32Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	return n
}

func makePod(namespace string, i int, edits ...func(*corev1.Pod)) *corev1.Pod {
	name := fmt.Sprint("pod-", i)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(now)}}
	p.Spec.SchedulerName = corev1.DefaultSchedulerName
	p.Spec.Containers = []corev1.Container{{Name: "pause", Image: "registry.k8s.io/pause:3.10.2", Ports: []corev1.ContainerPort{{ContainerPort: 80}}}}
	p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("500Mi"),
	}
	for _, edit := range edits {
		edit(p)
	}
	return p
}

func requestCPU(p *corev1.Pod, cpu string) {
	p.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse(cpu)
}

func low(p *corev1.Pod) { requestCPU(p, "900m") }

func high(p *corev1.Pod) {
	requestCPU(p, "3")
	p.Spec.Priority = ptr.To[int32](10)
}

func inZone(p *corev1.Pod) {
	p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
			{Key: corev1.LabelTopologyZone, Operator: corev1.NodeSelectorOpIn, Values: []string{"zone-0", "zone-1"}},
		}}},
	}}}
}

func spread(p *corev1.Pod) {
	p.Labels = map[string]string{"color": "blue"}
	p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
		MaxSkew: 5, TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.DoNotSchedule,
		LabelSelector: &metav1.LabelSelector{MatchLabels: p.Labels},
	}}
}

func term(p *corev1.Pod, color, key string) corev1.PodAffinityTerm {
	p.Labels = map[string]string{"color": color}
	return corev1.PodAffinityTerm{TopologyKey: key, LabelSelector: &metav1.LabelSelector{MatchLabels: p.Labels}, Namespaces: []string{"sched-1", "sched-0"}}
}

func rather(p *corev1.Pod) {
	p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{
		{Weight: 1, PodAffinityTerm: term(p, "red", corev1.LabelHostname)},
	}}}
}

func apart(p *corev1.Pod) {
	p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term(p, "green", corev1.LabelHostname)},
	}}
}

func together(p *corev1.Pod) {
	p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term(p, "blue", corev1.LabelTopologyZone)},
	}}
}

// daemon is a pod for one node, as a DaemonSet makes them.
func daemon(i int) *corev1.Pod {
	return makePod("sched-1", i, func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = nil
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{
				{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{nodeName(i)}},
			}}},
		}}}
	})
}

// distinct pods differ in a label, so that none can use what was worked out for another.
func distinct(i int) *corev1.Pod {
	return makePod("sched-1", i, func(p *corev1.Pod) { p.Labels = map[string]string{"i": fmt.Sprint(i)} })
}
