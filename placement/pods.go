package placement

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Pod is a pod with what placing it needs, worked out once.
type Pod struct {
	Object   *corev1.Pod
	Requests Resources
	// ScoredMilliCPU and ScoredMemory (bytes) are Requests with defaults for containers that name
	// none, as scores see a pod that is to be placed; HeldMilliCPU and HeldMemory as they see one
	// that is. They differ only for pods with pod-level requests.
	ScoredMilliCPU, ScoredMemory int64
	HeldMilliCPU, HeldMemory     int64
	Ports                        []HostPort
	Affinity                     *PodAffinity // nil if it has no inter-pod (anti-)affinity
	labelKey                     string       // see LabelSet; empty until the pod is placed
	at                           int          // index in its node's pods
}

// NewPod works out what placing the pod needs.
func NewPod(o *corev1.Pod) *Pod {
	d := demandOf(o)
	p := &Pod{
		Object: o, Requests: d.requests, Ports: hostPorts(o), Affinity: podAffinity(o),
		ScoredMilliCPU: d.scoredMilliCPU, ScoredMemory: d.scoredMemory, HeldMilliCPU: d.heldMilliCPU, HeldMemory: d.heldMemory,
	}
	return p
}

// Key is the pod's namespace and name.
func (p *Pod) Key() types.NamespacedName { return keyOf(p.Object) }

// Pod returns the pod of that name, if there is one.
func (v *View) Pod(namespace, name string) (*Pod, bool) {
	p, ok := v.pods[types.NamespacedName{Namespace: namespace, Name: name}]
	return p, ok
}

// AllPods lists every pod of the view, by namespace and name.
func (v *View) AllPods() []*Pod { return sortedPods(v.pods) }

// PodCount is the number of pods in the view.
func (v *View) PodCount() int { return len(v.pods) }

// PodsIn lists a namespace's pods by name.
func (v *View) PodsIn(namespace string) []*Pod { return sortedPods(v.podsIn[namespace]) }

// PodsOf lists the pods whose controller has that UID.
func (v *View) PodsOf(controller types.UID) []*Pod { return sortedPods(v.podsOf[controller]) }

// PodsOfJob lists the pods whose controller is a Job of that name: the one that is there, or one that has gone.
func (v *View) PodsOfJob(job types.NamespacedName) []*Pod { return sortedPods(v.jobPods[job]) }

// Orphans lists a namespace's pods that have no controller.
func (v *View) Orphans(namespace string) []*Pod { return sortedPods(v.orphans[namespace]) }

// Pending lists the pods that wait for a node.
func (v *View) Pending() []*Pod { return sortedPods(v.pending) }

// EachPending calls f for the pods that wait for a node, in no particular order.
func (v *View) EachPending(f func(*Pod)) {
	for _, p := range v.pending {
		f(p)
	}
}

// AnyPending tells whether a pod waits for a node.
func (v *View) AnyPending() bool { return len(v.pending) > 0 }

// Ended lists the pods that are finished, and those that terminate without ever having had a
// node; nobody but a collector will remove them.
func (v *View) Ended() []*Pod { return sortedPods(v.ended) }

// EndedCount is the length of Ended.
func (v *View) EndedCount() int { return len(v.ended) }

// EachPodIn calls f for a namespace's pods in no particular order, for sums.
func (v *View) EachPodIn(namespace string, f func(*Pod)) {
	for _, p := range v.podsIn[namespace] {
		f(p)
	}
}

// EachPod calls f for every pod in no particular order, for sums.
func (v *View) EachPod(f func(*Pod)) {
	for _, p := range v.pods {
		f(p)
	}
}

// EachNominated calls f for the waiting pods that have a node nominated, if that has an object, in no particular order.
func (v *View) EachNominated(f func(*Node, *Pod)) {
	for name, pods := range v.nominated {
		n := v.nodes[name]
		if n == nil || n.slot < 0 {
			continue
		}
		for _, p := range pods {
			f(n, p)
		}
	}
}

// Finished tells whether a pod has ended for good and takes no room.
func Finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// Active tells whether a pod counts as somebody's replica: not finished, not terminating.
func Active(pod *corev1.Pod) bool { return !Finished(pod) && pod.DeletionTimestamp == nil }

// PodCondition finds a condition, nil without one.
func PodCondition(pod *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == kind {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// Ready tells whether the pod's Ready condition is true.
func Ready(pod *corev1.Pod) bool {
	c := PodCondition(pod, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// Available tells whether the pod has been ready for at least minReadySeconds; if it is ready
// but not yet available, the second result is when it will be.
func Available(pod *corev1.Pod, minReadySeconds int32, now time.Time) (bool, time.Time) {
	c := PodCondition(pod, corev1.PodReady)
	if c == nil || c.Status != corev1.ConditionTrue {
		return false, time.Time{}
	}
	if minReadySeconds == 0 {
		return true, time.Time{}
	}
	if c.LastTransitionTime.IsZero() {
		return false, time.Time{}
	}
	at := c.LastTransitionTime.Add(time.Duration(minReadySeconds) * time.Second)
	if now.Before(at) {
		return false, at
	}
	return true, time.Time{}
}

func hostPorts(pod *corev1.Pod) []HostPort {
	var ports []HostPort
	take := func(c *corev1.Container) {
		for _, p := range c.Ports {
			if p.HostPort > 0 {
				ports = append(ports, HostPort{
					IP:       cmp.Or(p.HostIP, anyAddress),
					Protocol: cmp.Or(p.Protocol, corev1.ProtocolTCP),
					Port:     p.HostPort,
				})
			}
		}
	}
	for i := range pod.Spec.Containers {
		take(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			take(c)
		}
	}
	return ports
}

func (v *View) upsertPod(o *corev1.Pod) {
	key := keyOf(o)
	old := v.pods[key]
	if old != nil {
		v.unlinkPod(key, old)
	}
	p := NewPod(o)
	v.linkPod(key, p)
	if old != nil {
		if n := v.nodes[old.Object.Spec.NodeName]; n != nil {
			v.forgetNode(n)
		}
	}
	v.touchPod(old, p)
}

func (v *View) deletePod(key types.NamespacedName) {
	old := v.pods[key]
	if old == nil {
		return
	}
	v.unlinkPod(key, old)
	if n := v.nodes[old.Object.Spec.NodeName]; n != nil {
		v.forgetNode(n)
	}
	v.touchPod(old, nil)
}

func (v *View) linkPod(key types.NamespacedName, p *Pod) {
	v.pods[key] = p
	addTo(v.podsIn, key.Namespace, key.Name, p)
	if ref := metav1.GetControllerOfNoCopy(p.Object); ref != nil {
		addTo(v.podsOf, ref.UID, key, p)
		if ref.Kind == KindJob {
			addTo(v.jobPods, types.NamespacedName{Namespace: key.Namespace, Name: ref.Name}, key.Name, p)
		}
	} else {
		addTo(v.orphans, key.Namespace, key.Name, p)
	}
	switch {
	case Finished(p.Object):
		v.ended[key] = p
	case p.Object.Spec.NodeName == "":
		if p.Object.DeletionTimestamp == nil {
			v.pending[key] = p
			if p.hopes() {
				v.hopeful[key] = p
			}
			if node := p.Object.Status.NominatedNodeName; node != "" {
				addTo(v.nominated, node, key, p)
			}
		} else {
			v.ended[key] = p
		}
	default:
		n := v.nodeEntry(p.Object.Spec.NodeName)
		p.at = len(n.pods)
		n.pods = append(n.pods, p)
		n.Requested.Add(p.Requests)
		n.ScoredMilliCPU += p.HeldMilliCPU
		n.ScoredMemory += p.HeldMemory
		if n.ports == nil && len(p.Ports) > 0 {
			n.ports = map[HostPort]int{}
		}
		for _, port := range p.Ports {
			n.ports[port]++
		}
		v.countIn(p, n)
	}
}

func (v *View) unlinkPod(key types.NamespacedName, p *Pod) {
	delete(v.pods, key)
	dropFrom(v.podsIn, key.Namespace, key.Name)
	if ref := metav1.GetControllerOfNoCopy(p.Object); ref != nil {
		dropFrom(v.podsOf, ref.UID, key)
		if ref.Kind == KindJob {
			dropFrom(v.jobPods, types.NamespacedName{Namespace: key.Namespace, Name: ref.Name}, key.Name)
		}
	} else {
		dropFrom(v.orphans, key.Namespace, key.Name)
	}
	delete(v.pending, key)
	delete(v.hopeful, key)
	dropFrom(v.nominated, p.Object.Status.NominatedNodeName, key)
	delete(v.ended, key)
	n := v.nodes[p.Object.Spec.NodeName]
	if n == nil || p.at >= len(n.pods) || n.pods[p.at] != p {
		return
	}
	last := len(n.pods) - 1
	n.pods[p.at], n.pods[last].at = n.pods[last], p.at
	n.pods[last] = nil
	n.pods = n.pods[:last]
	v.countOut(p, n)
	n.Requested.Sub(p.Requests)
	n.ScoredMilliCPU -= p.HeldMilliCPU
	n.ScoredMemory -= p.HeldMemory
	for _, port := range p.Ports {
		if n.ports[port]--; n.ports[port] == 0 {
			delete(n.ports, port)
		}
	}
}

func sortedPods[K comparable](m map[K]*Pod) []*Pod {
	if len(m) == 0 {
		return nil
	}
	list := make([]*Pod, 0, len(m))
	for _, p := range m {
		list = append(list, p)
	}
	return sortPods(list)
}

// sortPods sorts a list by namespace and name, in place.
func sortPods(list []*Pod) []*Pod {
	slices.SortFunc(list, func(a, b *Pod) int {
		return cmp.Or(cmp.Compare(a.Object.Namespace, b.Object.Namespace), cmp.Compare(a.Object.Name, b.Object.Name))
	})
	return list
}
