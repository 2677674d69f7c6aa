package placement

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
)

// PodAffinity is a pod's inter-pod affinity with its selectors parsed.
type PodAffinity struct {
	Required          []AffinityTerm
	RequiredAnti      []AffinityTerm
	Preferred         []AffinityTerm // with Weight; anti-affinity has a negative one
	hasInvalidElement bool
	key               string // equal for equal affinities of pods of one namespace
}

// Invalid tells whether a selector could not be parsed; such a pod fits nowhere.
func (a *PodAffinity) Invalid() bool { return a != nil && a.hasInvalidElement }

// AffinityTerm says: pods in these namespaces that match the selector, seen over the nodes that
// share a value of the topology key.
type AffinityTerm struct {
	TopologyKey string
	Weight      int64
	selector    labels.Selector
	namespaces  sets.Set[string]
	namespaceOf labels.Selector // matches the labels of further namespaces
}

// Matches tells whether the term is about that pod; namespaceLabels are those of the pod's namespace.
func (t *AffinityTerm) Matches(pod *corev1.Pod, namespaceLabels labels.Set) bool {
	return t.MatchesSet(pod.Namespace, pod.Labels, namespaceLabels)
}

// MatchesSet is like Matches for all pods of a namespace with these labels.
func (t *AffinityTerm) MatchesSet(namespace string, set, namespaceLabels labels.Set) bool {
	return (t.namespaces.Has(namespace) || t.namespaceOf.Matches(namespaceLabels)) && t.selector.Matches(set)
}

// EachNamespace calls f for every populated namespace that the term is about, in no particular order.
func (t *AffinityTerm) EachNamespace(v *View, f func(namespace string)) {
	if _, selectable := t.namespaceOf.Requirements(); !selectable {
		for namespace := range t.namespaces {
			f(namespace)
		}
		return
	}
	v.EachPopulated(func(namespace string) {
		if t.namespaces.Has(namespace) || t.namespaceOf.Matches(v.NamespaceLabels(namespace)) {
			f(namespace)
		}
	})
}

// NamespaceLabels are the labels of a namespace, nil if the view has not heard of it.
func (v *View) NamespaceLabels(name string) labels.Set {
	if ns, ok := v.Namespaces.Get("", name); ok {
		return ns.Labels
	}
	return nil
}

func podAffinity(pod *corev1.Pod) *PodAffinity {
	spec := pod.Spec.Affinity
	if spec == nil || (spec.PodAffinity == nil && spec.PodAntiAffinity == nil) {
		return nil
	}
	a := &PodAffinity{key: affinityKey(pod.Namespace, spec)}
	if s := spec.PodAffinity; s != nil {
		a.Required = a.terms(pod, s.RequiredDuringSchedulingIgnoredDuringExecution)
		a.Preferred = append(a.Preferred, a.weighted(pod, s.PreferredDuringSchedulingIgnoredDuringExecution, 1)...)
	}
	if s := spec.PodAntiAffinity; s != nil {
		a.RequiredAnti = a.terms(pod, s.RequiredDuringSchedulingIgnoredDuringExecution)
		a.Preferred = append(a.Preferred, a.weighted(pod, s.PreferredDuringSchedulingIgnoredDuringExecution, -1)...)
	}
	return a
}

// affinityKey is the affinity in its protobuf form, which is deterministic.
func affinityKey(namespace string, spec *corev1.Affinity) string {
	only := corev1.Affinity{PodAffinity: spec.PodAffinity, PodAntiAffinity: spec.PodAntiAffinity}
	data, err := only.Marshal()
	if err != nil {
		data = []byte(only.String()) // generated marshallers of plain values cannot fail
	}
	return namespace + "\x00" + string(data)
}

func (a *PodAffinity) weighted(pod *corev1.Pod, specs []corev1.WeightedPodAffinityTerm, sign int64) []AffinityTerm {
	var terms []AffinityTerm
	for i := range specs {
		if specs[i].Weight == 0 {
			continue
		}
		for _, t := range a.terms(pod, []corev1.PodAffinityTerm{specs[i].PodAffinityTerm}) {
			t.Weight = sign * int64(specs[i].Weight)
			terms = append(terms, t)
		}
	}
	return terms
}

// terms parses affinity terms. matchLabelKeys need nothing here: the API server has merged them
// into the selector when the pod was created (KEP-3633).
func (a *PodAffinity) terms(pod *corev1.Pod, specs []corev1.PodAffinityTerm) []AffinityTerm {
	terms := make([]AffinityTerm, 0, len(specs))
	for i := range specs {
		selector, err := metav1.LabelSelectorAsSelector(specs[i].LabelSelector)
		if err != nil {
			a.hasInvalidElement = true
			continue
		}
		// A nil namespace selector selects nothing, an empty one everything.
		namespaceOf, err := metav1.LabelSelectorAsSelector(specs[i].NamespaceSelector)
		if err != nil {
			a.hasInvalidElement = true
			continue
		}
		namespaces := sets.New(specs[i].Namespaces...)
		if len(specs[i].Namespaces) == 0 && specs[i].NamespaceSelector == nil {
			namespaces.Insert(pod.Namespace)
		}
		terms = append(terms, AffinityTerm{
			TopologyKey: specs[i].TopologyKey,
			selector:    selector,
			namespaces:  namespaces,
			namespaceOf: namespaceOf,
		})
	}
	return terms
}
