package oracle

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
)

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func pick[T any](t *rapid.T, label string, choices ...T) T {
	return rapid.SampledFrom(choices).Draw(t, label)
}

func chance(t *rapid.T, label string, in int) bool { return rapid.IntRange(1, in).Draw(t, label) == 1 }

func list(pairs ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
		}
	}
	return l
}

func genNode(t *rapid.T, i int) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%02d", i), Labels: map[string]string{}}}
	if !chance(t, "no hostname", 20) {
		n.Labels[corev1.LabelHostname] = n.Name
	}
	if zone := pick(t, "zone", "a", "a", "b", "c", ""); zone != "" {
		n.Labels[corev1.LabelTopologyZone] = zone
	}
	if chance(t, "disk label", 2) {
		n.Labels["disk"] = pick(t, "disk", "ssd", "hdd")
		n.Labels["size"] = pick(t, "size", "3", "7", "big")
	}
	n.Status.Allocatable = list("cpu", pick(t, "cpu", "1", "2", "4", "0"), "memory", pick(t, "memory", "1Gi", "4Gi", "3000000001"),
		"pods", pick(t, "pods", "2", "5", "20"), "ephemeral-storage", pick(t, "storage", "", "1Gi"), "example.com/gpu", pick(t, "gpu", "", "", "2"))
	for range rapid.IntRange(0, 6).Draw(t, "taints") / 4 {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: pick(t, "taint", "x", "y"), Value: pick(t, "value", "", "1"),
			Effect: pick(t, "effect", corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectPreferNoSchedule)})
	}
	n.Spec.Unschedulable = chance(t, "cordoned", 12)
	for _, image := range []string{"app:1", "big:2", "registry.example/tool:latest"} {
		if chance(t, "image", 3) {
			n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{image}, SizeBytes: int64(len(image)) * 40 << 20})
		}
	}
	if chance(t, "features", 3) {
		n.Status.DeclaredFeatures = []string{"RestartAllContainersOnContainerExits", "UserNamespacesHostNetworkSupport"}
	}
	return n
}

func genContainer(t *rapid.T, name string) corev1.Container {
	c := corev1.Container{Name: name, Image: pick(t, "image", "app:1", "big:2", "registry.example/tool", "none")}
	if !chance(t, "no requests", 4) {
		c.Resources.Requests = list("cpu", pick(t, "cpu", "", "0", "100m", "700m", "1500m"), "memory", pick(t, "memory", "", "64Mi", "800Mi"),
			"ephemeral-storage", pick(t, "storage", "", "", "", "600Mi"), "example.com/gpu", pick(t, "gpu", "", "", "", "", "1"))
	}
	if chance(t, "port", 6) {
		c.Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: pick(t, "host port", int32(80), 81), HostIP: pick(t, "ip", "", "10.0.0.1", "10.0.0.2"),
			Protocol: pick(t, "protocol", corev1.ProtocolTCP, corev1.ProtocolUDP)}}
	}
	return c
}

func genSelector(t *rapid.T) *metav1.LabelSelector {
	switch rapid.IntRange(0, 7).Draw(t, "selector") {
	case 0:
		return nil
	case 1:
		return &metav1.LabelSelector{}
	case 2:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"web"}}}}
	default:
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": pick(t, "app", "web", "db")}}
	}
}

func genTopologyKey(t *rapid.T) string {
	return pick(t, "topology", corev1.LabelHostname, corev1.LabelTopologyZone, corev1.LabelTopologyZone, "disk")
}

func genTerm(t *rapid.T) corev1.PodAffinityTerm {
	term := corev1.PodAffinityTerm{TopologyKey: genTopologyKey(t), LabelSelector: genSelector(t)}
	if chance(t, "namespaces", 4) {
		term.Namespaces = []string{pick(t, "namespace", "one", "two")}
	}
	if chance(t, "namespace selector", 4) {
		term.NamespaceSelector = pick(t, "namespace selector", &metav1.LabelSelector{}, &metav1.LabelSelector{MatchLabels: map[string]string{"team": "x"}})
	}
	return term
}

func genTerms(t *rapid.T, label string) (terms []corev1.PodAffinityTerm) {
	for range max(0, rapid.IntRange(-3, 2).Draw(t, label)) {
		terms = append(terms, genTerm(t))
	}
	return terms
}

func genWeighted(t *rapid.T, label string) (terms []corev1.WeightedPodAffinityTerm) {
	for range max(0, rapid.IntRange(-3, 2).Draw(t, label)) {
		terms = append(terms, corev1.WeightedPodAffinityTerm{Weight: rapid.Int32Range(1, 100).Draw(t, "weight"), PodAffinityTerm: genTerm(t)})
	}
	return terms
}

func genNodeTerm(t *rapid.T) corev1.NodeSelectorTerm {
	var term corev1.NodeSelectorTerm
	if chance(t, "expressions", 2) {
		term.MatchExpressions = []corev1.NodeSelectorRequirement{pick(t, "expression",
			corev1.NodeSelectorRequirement{Key: "disk", Operator: corev1.NodeSelectorOpIn, Values: []string{"ssd"}},
			corev1.NodeSelectorRequirement{Key: "disk", Operator: corev1.NodeSelectorOpExists},
			corev1.NodeSelectorRequirement{Key: "disk", Operator: corev1.NodeSelectorOpDoesNotExist},
			corev1.NodeSelectorRequirement{Key: "size", Operator: corev1.NodeSelectorOpGt, Values: []string{"5"}},
			corev1.NodeSelectorRequirement{Key: "size", Operator: corev1.NodeSelectorOpLt, Values: []string{"5"}},
			corev1.NodeSelectorRequirement{Key: corev1.LabelTopologyZone, Operator: corev1.NodeSelectorOpNotIn, Values: []string{"a"}})}
	}
	if chance(t, "fields", 3) {
		for range rapid.IntRange(1, 2).Draw(t, "names") {
			term.MatchFields = append(term.MatchFields, corev1.NodeSelectorRequirement{Key: "metadata.name",
				Operator: pick(t, "operator", corev1.NodeSelectorOpIn, corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn),
				Values:   []string{fmt.Sprintf("n%02d", rapid.IntRange(0, 5).Draw(t, "node"))}})
		}
	}
	return term
}

func genNodeAffinity(t *rapid.T) *corev1.NodeAffinity {
	a := &corev1.NodeAffinity{}
	if chance(t, "required", 2) {
		a.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{}
		for range rapid.IntRange(1, 2).Draw(t, "terms") {
			a.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms = append(a.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms, genNodeTerm(t))
		}
	}
	for range rapid.IntRange(0, 2).Draw(t, "preferred") {
		a.PreferredDuringSchedulingIgnoredDuringExecution = append(a.PreferredDuringSchedulingIgnoredDuringExecution,
			corev1.PreferredSchedulingTerm{Weight: rapid.Int32Range(1, 100).Draw(t, "weight"), Preference: genNodeTerm(t)})
	}
	return a
}

func genSpread(t *rapid.T) corev1.TopologySpreadConstraint {
	c := corev1.TopologySpreadConstraint{
		MaxSkew: rapid.Int32Range(1, 3).Draw(t, "skew"), TopologyKey: genTopologyKey(t), LabelSelector: genSelector(t),
		WhenUnsatisfiable: pick(t, "kind", corev1.DoNotSchedule, corev1.ScheduleAnyway),
	}
	if chance(t, "affinity policy", 3) {
		c.NodeAffinityPolicy = ptr.To(pick(t, "policy", corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore))
	}
	if chance(t, "taints policy", 3) {
		c.NodeTaintsPolicy = ptr.To(pick(t, "policy", corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore))
	}
	if chance(t, "match keys", 3) {
		c.MatchLabelKeys = []string{"rev", "none"}
	}
	if c.WhenUnsatisfiable == corev1.DoNotSchedule && chance(t, "domains", 3) {
		c.MinDomains = ptr.To(rapid.Int32Range(1, 4).Draw(t, "domains"))
	}
	return c
}

// genPod draws a pod without a node; rich ones have constraints of their own.
func genPod(t *rapid.T, name string, rich bool) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: pick(t, "namespace", "one", "one", "two"), UID: types.UID("uid-" + name)}}
	p.Labels = map[string]string{"app": pick(t, "app", "web", "db"), "rev": pick(t, "rev", "1", "2")}
	p.CreationTimestamp = metav1.NewTime(start)
	p.Spec.SchedulerName = "default-scheduler"
	p.Spec.Priority = ptr.To(rapid.Int32Range(-1, 2).Draw(t, "priority"))
	for i := range rapid.IntRange(1, 2).Draw(t, "containers") {
		p.Spec.Containers = append(p.Spec.Containers, genContainer(t, fmt.Sprintf("c%d", i)))
	}
	if chance(t, "init", 4) {
		init := genContainer(t, "init")
		if chance(t, "sidecar", 2) {
			init.RestartPolicy = ptr.To(corev1.ContainerRestartPolicyAlways)
		}
		p.Spec.InitContainers = []corev1.Container{init}
	}
	if chance(t, "overhead", 8) {
		p.Spec.Overhead = list("cpu", "50m", "memory", "32Mi")
	}
	if chance(t, "pod level", 8) {
		p.Spec.Resources = &corev1.ResourceRequirements{Requests: list("cpu", pick(t, "cpu", "", "1", "2500m"), "memory", pick(t, "memory", "", "1Gi"))}
	}
	if chance(t, "owned", 3) {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: pick(t, "owner", "ReplicaSet", "StatefulSet"), Name: "set", UID: "set", Controller: ptr.To(true)}}
	}
	if chance(t, "affinity", 3) {
		p.Spec.Affinity = &corev1.Affinity{
			PodAffinity:     &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: genTerms(t, "near"), PreferredDuringSchedulingIgnoredDuringExecution: genWeighted(t, "rather near")},
			PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: genTerms(t, "far"), PreferredDuringSchedulingIgnoredDuringExecution: genWeighted(t, "rather far")},
		}
	}
	if rich {
		enrich(t, p)
	}
	return p
}

func enrich(t *rapid.T, p *corev1.Pod) {
	if chance(t, "node selector", 6) {
		p.Spec.NodeSelector = map[string]string{"disk": "ssd"}
	}
	if chance(t, "node affinity", 3) {
		if p.Spec.Affinity == nil {
			p.Spec.Affinity = &corev1.Affinity{}
		}
		p.Spec.Affinity.NodeAffinity = genNodeAffinity(t)
	}
	for range rapid.IntRange(0, 2).Draw(t, "tolerations") {
		p.Spec.Tolerations = append(p.Spec.Tolerations, pick(t, "toleration",
			corev1.Toleration{Operator: corev1.TolerationOpExists},
			corev1.Toleration{Key: "x", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
			corev1.Toleration{Key: "x", Operator: corev1.TolerationOpEqual, Value: "1"},
			corev1.Toleration{Key: "y", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectPreferNoSchedule}))
	}
	for range max(0, rapid.IntRange(-2, 2).Draw(t, "spread")) {
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, genSpread(t))
	}
	if chance(t, "never", 6) {
		p.Spec.PreemptionPolicy = ptr.To(corev1.PreemptNever)
	}
	if chance(t, "host users", 10) {
		p.Spec.HostUsers, p.Spec.HostNetwork = ptr.To(false), true
	}
}

// genCluster draws everything but the pod to decide about.
func genCluster(t *rapid.T) []placement.Object {
	objects := []placement.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "one", Labels: map[string]string{"team": "x"}}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "two"}},
	}
	nodes := rapid.IntRange(1, 7).Draw(t, "nodes")
	for i := range nodes {
		objects = append(objects, genNode(t, i))
	}
	for i := range rapid.IntRange(0, 14).Draw(t, "pods") {
		p := genPod(t, fmt.Sprintf("old%02d", i), false)
		if chance(t, "waits", 8) {
			p.Status.NominatedNodeName = fmt.Sprintf("n%02d", rapid.IntRange(0, nodes-1).Draw(t, "nominated"))
		} else {
			p.Spec.NodeName = fmt.Sprintf("n%02d", rapid.IntRange(0, nodes-1).Draw(t, "node"))
			// Different times: upstream leaves the order of equal ones to its sort.
			p.Status.StartTime = &metav1.Time{Time: start.Add(time.Duration(rapid.IntRange(0, 9).Draw(t, "age")*20+i) * time.Minute)}
			p.Status.Phase = pick(t, "phase", corev1.PodRunning, corev1.PodRunning, corev1.PodRunning, corev1.PodSucceeded)
			resized(t, p)
		}
		objects = append(objects, p)
	}
	if chance(t, "service", 2) {
		objects = append(objects, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "one", Name: "front"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}}})
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "budgets") {
		objects = append(objects, &policyv1.PodDisruptionBudget{
			ObjectMeta: metav1.ObjectMeta{Namespace: "one", Name: fmt.Sprintf("b%d", i)},
			Spec:       policyv1.PodDisruptionBudgetSpec{Selector: genSelector(t)},
			Status:     policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: rapid.Int32Range(0, 2).Draw(t, "allowed")},
		})
	}
	return append(objects, genSets(t)...)
}

// resized gives a running pod a status that differs from its spec, as resizing in place does.
func resized(t *rapid.T, p *corev1.Pod) {
	if !chance(t, "resized", 6) {
		return
	}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c0", AllocatedResources: list("cpu", "200m", "memory", "900Mi"),
		Resources: &corev1.ResourceRequirements{Requests: list("cpu", "900m", "memory", "100Mi")}}}
	if chance(t, "infeasible", 2) {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: corev1.PodReasonInfeasible}}
	}
}
