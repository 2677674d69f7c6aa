package workload

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

const (
	daemonSetComponent = "daemonset-controller"
	// templateGeneration is the label and the annotation of the revisions before ControllerRevisions.
	templateGeneration = "pod-template-generation"
	// daemonRetry is how long a pod that has ended is left on its node before it is replaced, so that a
	// node that refuses its pods does not keep everybody busy.
	daemonRetry = 10 * time.Second
)

// daemonSet is one DaemonSet being planned.
type daemonSet struct {
	owner
	view *placement.View
	seen *appsv1.DaemonSet
	now  time.Time
	plan *placement.Plan

	history    *history
	collisions int32
	hash       string // of the present template
	generation string // of the present template, where the DaemonSet still carries one

	tolerations []corev1.Toleration
	affinity    nodeaffinity.RequiredNodeAffinity

	nodes   []daemonNode
	strays  []*corev1.Pod // for nodes that are gone, and without one
	desired int
	waiting int
	failure string          // why pods are missing, "" if nothing is in the way
	live    map[string]bool // hashes of the pods there are
	deleted map[*corev1.Pod]bool
	created map[string]bool // by node
}

// daemonNode is a node with the set's pods on it or for it, oldest first, bound ones before others.
type daemonNode struct {
	name      string
	pods      []*corev1.Pod
	shouldRun bool // a pod should be there
	mayStay   bool // one that is there may stay
}

// PlanDaemonSet plans a DaemonSet's pods, revisions and status. Which node a pod is for stands in its
// node affinity; the scheduler binds it. Source of the rules:
// kubernetes.io/docs/concepts/workloads/controllers/daemonset.
func PlanDaemonSet(v *placement.View, set *appsv1.DaemonSet, now time.Time) placement.Plan {
	var plan placement.Plan
	// What is left of a DaemonSet that is being deleted is the garbage collector's.
	if set.DeletionTimestamp != nil || apiequality.Semantic.DeepEqual(set.Spec.Selector, &metav1.LabelSelector{}) {
		return plan
	}
	d := &daemonSet{
		owner: newOwner(set, daemonSetKind, set.Spec.Selector), view: v, seen: set, now: now, plan: &plan,
		collisions: ptr.Deref(set.Status.CollisionCount, 0), tolerations: daemonTolerations(&set.Spec.Template.Spec),
		affinity:   nodeaffinity.GetRequiredNodeAffinity(&corev1.Pod{Spec: set.Spec.Template.Spec}),
		generation: set.Annotations[appsv1.DeprecatedTemplateGeneration], live: map[string]bool{},
		deleted: map[*corev1.Pod]bool{}, created: map[string]bool{},
	}
	if err := d.findRevision(); err != nil {
		plan.Say(d.warning(daemonSetComponent, "FailedSync", err.Error()))
		return plan
	}
	d.findPods()
	var names []string
	for i := range d.nodes {
		names = append(names, d.settle(&d.nodes[i])...)
	}
	for _, pod := range d.strays {
		d.delete(pod)
	}
	if len(names)+len(d.deleted) == 0 && set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		names = d.rollOver()
	}
	d.create(names)
	d.history.truncate(&plan, ptr.Deref(set.Spec.RevisionHistoryLimit, 10), d.liveRevisions())
	d.writeStatus()
	return plan
}

func (d *daemonSet) findRevision() error {
	d.history = findHistory(d.view, d.owner, d.plan)
	revision, err := d.history.of(d.view, d.plan, &d.seen.Spec.Template, &d.collisions, func([]byte) naming {
		return naming{appsv1.DefaultDaemonSetUniqueLabelKey, func(collisions int32) string {
			if collisions == 0 && d.seen.Status.CollisionCount == nil {
				return templateHash(&d.seen.Spec.Template, nil)
			}
			return templateHash(&d.seen.Spec.Template, &collisions)
		}}
	})
	if err != nil {
		return fmt.Errorf("the pod template cannot be recorded as a revision: %w", err)
	}
	d.hash = cmp.Or(revision.Labels[appsv1.DefaultDaemonSetUniqueLabelKey], revision.Name)
	return nil
}

// liveRevisions are those that a pod has, and the present one.
func (d *daemonSet) liveRevisions() map[string]bool {
	names := map[string]bool{}
	for _, r := range d.history.revisions {
		hash := cmp.Or(r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey], r.Name)
		names[r.Name] = d.live[hash] || hash == d.hash
	}
	return names
}

// findPods claims the set's pods and sorts them by the node they are on or for.
func (d *daemonSet) findPods() {
	byNode := map[string][]*corev1.Pod{}
	for p := range d.candidates(d.view) {
		pod := p.Object
		mine, change := d.claim(pod)
		if change {
			settle(d.owner, d.plan, pod, mine)
		}
		if !mine {
			continue
		}
		d.live[pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] = true
		if placement.Finished(pod) && pod.DeletionTimestamp != nil {
			continue // as good as gone
		}
		if pod.Spec.NodeName == "" {
			d.waiting++
		}
		name := targetNode(pod)
		byNode[name] = append(byNode[name], pod)
	}
	for _, n := range d.view.Nodes() {
		pods := byNode[n.Name]
		delete(byNode, n.Name)
		slices.SortFunc(pods, compareDaemonPods)
		node := daemonNode{name: n.Name, pods: pods}
		node.shouldRun, node.mayStay = d.fits(n.Object)
		if node.shouldRun {
			d.desired++
		}
		if node.shouldRun || len(pods) > 0 {
			d.nodes = append(d.nodes, node)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byNode)) {
		for _, pod := range byNode[name] {
			if pod.Spec.NodeName == "" && name != "" {
				d.strays = append(d.strays, pod)
			}
		}
	}
}

// targetNode is the node that a pod is on or for, "" if it names none.
func targetNode(pod *corev1.Pod) string {
	if pod.Spec.NodeName != "" {
		return pod.Spec.NodeName
	}
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			for _, field := range term.MatchFields {
				if field.Key == metav1.ObjectNameField && field.Operator == corev1.NodeSelectorOpIn && len(field.Values) == 1 {
					return field.Values[0]
				}
			}
		}
	}
	return ""
}

func compareDaemonPods(a, b *corev1.Pod) int {
	return cmp.Or(
		falseFirst(a.Spec.NodeName == "", b.Spec.NodeName == ""),
		a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name),
	)
}

// fits tells whether a pod should be on a node, and whether one that is there may stay: a taint that only
// keeps pods from being scheduled does not drive away.
func (d *daemonSet) fits(node *corev1.Node) (shouldRun, mayStay bool) {
	if wanted := d.seen.Spec.Template.Spec.NodeName; wanted != "" && wanted != node.Name {
		return false, false
	}
	// A selector that cannot be parsed matches nothing.
	if matches, _ := d.affinity.Match(node); !matches {
		return false, false
	}
	shouldRun, mayStay = true, true
	for i := range node.Spec.Taints {
		taint := &node.Spec.Taints[i]
		if taint.Effect == corev1.TaintEffectPreferNoSchedule || slices.ContainsFunc(d.tolerations, func(t corev1.Toleration) bool {
			return t.ToleratesTaint(logr.Discard(), taint, false)
		}) {
			continue
		}
		shouldRun = false
		mayStay = mayStay && taint.Effect != corev1.TaintEffectNoExecute
	}
	return shouldRun, mayStay
}

// settle deletes what should not be on a node, and names the node if a pod is missing there.
func (d *daemonSet) settle(n *daemonNode) []string {
	switch {
	case n.shouldRun && len(n.pods) == 0:
		return []string{n.name}
	case !n.mayStay:
		for _, pod := range n.pods {
			d.delete(pod)
		}
		return nil
	}
	running := make([]*corev1.Pod, 0, len(n.pods))
	for _, pod := range n.pods {
		switch {
		case pod.DeletionTimestamp != nil:
		case placement.Finished(pod):
			d.retire(pod, n.name)
		default:
			running = append(running, pod)
		}
	}
	if !d.surges() {
		for _, pod := range running[min(1, len(running)):] {
			d.delete(pod)
		}
		return nil
	}
	if n.shouldRun && !slices.ContainsFunc(n.pods, func(pod *corev1.Pod) bool { return pod.DeletionTimestamp == nil && !d.deleted[pod] }) {
		return []string{n.name} // the next one need not wait for the last one's end
	}
	d.keepTwo(running)
	return nil
}

// retire deletes a pod that has ended, after a while.
func (d *daemonSet) retire(pod *corev1.Pod, node string) {
	if at := finishedAt(pod).Add(daemonRetry); at.After(d.now) && !finishedAt(pod).After(d.now) {
		d.plan.RecheckAt(at)
		return
	}
	kind, reason, state, verb := corev1.EventTypeWarning, "FailedDaemonPod", "failed", "kill"
	if pod.Status.Phase == corev1.PodSucceeded {
		kind, reason, state, verb = corev1.EventTypeNormal, "SucceededDaemonPod", "succeeded", "delete"
	}
	d.delete(pod, placement.Event{
		Regarding: d.seen, Type: kind, Reason: reason, Component: daemonSetComponent,
		Message: fmt.Sprintf("Found %s daemon pod %s/%s on node %s, will try to %s it", state, pod.Namespace, pod.Name, node, verb),
	})
}

// keepTwo leaves, while a rollout surges, one pod of the present template and one older, until the newer is
// available or the older is not ready.
func (d *daemonSet) keepTwo(running []*corev1.Pod) {
	var newer, older *corev1.Pod
	for _, pod := range running {
		switch fresh := d.updated(pod); {
		case fresh && newer == nil:
			newer = pod
		case !fresh && older == nil:
			older = pod
		default:
			d.delete(pod)
		}
	}
	if newer != nil && older != nil && (!placement.Ready(older) || d.available(newer)) {
		d.delete(older)
	}
}

func (d *daemonSet) available(pod *corev1.Pod) bool {
	available, at := placement.Available(pod, d.seen.Spec.MinReadySeconds, d.now)
	d.plan.RecheckAt(at)
	return available
}

// updated tells whether a pod is of the present template.
func (d *daemonSet) updated(pod *corev1.Pod) bool {
	return pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == d.hash || d.generation != "" && pod.Labels[templateGeneration] == d.generation
}

func (d *daemonSet) rolling() *appsv1.RollingUpdateDaemonSet {
	if r := d.seen.Spec.UpdateStrategy.RollingUpdate; r != nil && d.seen.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		return r
	}
	return &appsv1.RollingUpdateDaemonSet{MaxUnavailable: ptr.To(intstr.FromInt32(0))}
}

// scaled is a number or share of the desired pods, rounded up; 0 for what cannot be read.
func (d *daemonSet) scaled(value *intstr.IntOrString, of int) int {
	if value == nil {
		return 0
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(value, of, true)
	if err != nil {
		return 0
	}
	return n
}

func (d *daemonSet) surges() bool { return d.scaled(d.rolling().MaxSurge, 1) > 0 }

func (d *daemonSet) delete(pod *corev1.Pod, events ...placement.Event) {
	if pod.DeletionTimestamp != nil || d.deleted[pod] || len(d.deleted) >= maxBurst {
		return
	}
	d.deleted[pod] = true
	events = append(events, placement.Event{
		Regarding: d.seen, Type: corev1.EventTypeNormal, Reason: "SuccessfulDelete", Message: "Deleted pod: " + pod.Name, Component: daemonSetComponent,
	})
	d.plan.Add(placement.Change{Verb: placement.Delete, Object: pod, UID: pod.UID, Events: events})
}

// create adds a pod for each node named.
func (d *daemonSet) create(nodes []string) {
	names := placement.NewNames(string(d.seen.UID), d.now.UTC().Format(time.RFC3339Nano))
	quota := min(len(nodes), quotaOf(d.view, d.seen.UID, d.waiting, d.plan, d.now))
	d.failure = shortage(d.view, d.seen.UID, len(nodes)-quota, d.waiting)
	for _, node := range nodes[:quota] {
		pod := podFromTemplate(&d.seen.Spec.Template, d.owner)
		pod.Spec.Tolerations = slices.Clone(d.tolerations)
		pod.Spec.Affinity = pinnedTo(node, pod.Spec.Affinity)
		if pod.Labels == nil {
			pod.Labels = map[string]string{}
		}
		pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = d.hash
		if _, err := strconv.ParseInt(d.generation, 10, 64); err == nil {
			pod.Labels[templateGeneration] = d.generation
		}
		for pod.Name == "" {
			name := generatedName(pod.GenerateName, names.Suffix())
			if _, taken := d.view.Pod(pod.Namespace, name); !taken {
				pod.Name = name
			}
		}
		pod.UID = names.UID()
		d.created[node] = true
		d.plan.Add(placement.Change{Verb: placement.Create, Object: pod, Events: []placement.Event{{
			Regarding: d.seen, Type: corev1.EventTypeNormal, Reason: "SuccessfulCreate", Message: "Created pod: " + pod.Name, Component: daemonSetComponent,
		}}})
	}
}
