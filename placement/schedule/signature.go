package schedule

import (
	"encoding/binary"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"

	"shoal/placement"
)

// signature is equal for two pods exactly when every decision about them must be equal apart
// from tie breaks: it holds all that filters and scores read of a pod.
func (b *batch) signature(p *placement.Pod) string {
	pod := p.Object
	s := signer{buf: make([]byte, 0, 512)}
	s.text(b.bearing(p))
	s.number(int64(corev1helpers.PodPriority(pod)))
	if pod.Spec.PreemptionPolicy != nil {
		s.text(string(*pod.Spec.PreemptionPolicy))
	}
	s.resources(p)
	s.set(pod.Spec.NodeSelector)
	for _, t := range pod.Spec.Tolerations {
		s.message(&t)
	}
	s.number(-1)
	if pod.Spec.Affinity != nil {
		s.message(pod.Spec.Affinity)
	}
	for i := range pod.Spec.TopologySpreadConstraints {
		s.message(&pod.Spec.TopologySpreadConstraints[i])
	}
	s.number(-2)
	eachImage(&pod.Spec, s.text)
	s.number(-3)
	if usesClaims(pod) || usesDisks(pod) {
		s.text(pod.Namespace)
		s.text(pod.Name) // ephemeral volumes have claims named after their pods
		for i := range pod.Spec.Volumes {
			s.message(&pod.Spec.Volumes[i])
		}
	}
	if features, demanding := featuresOf(pod); demanding {
		s.text(features.String())
	}
	return string(s.buf)
}

// bearing is what a pod's namespace, labels and owner mean for decisions about it. They can mean
// nothing: then pods that differ in them (as those of a Job or a StatefulSet do, each by its index)
// are equal all the same.
func (b *batch) bearing(p *placement.Pod) string {
	pod := p.Object
	s := signer{buf: make([]byte, 0, 128)}
	s.text(pod.Namespace)
	s.set(pod.Labels)
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref != nil {
		s.text(string(ref.UID))
	}
	identity := string(s.buf)
	if b.labelsMatter || p.Affinity != nil || len(pod.Spec.TopologySpreadConstraints) > 0 {
		return identity
	}
	if known, ok := b.bearings[identity]; ok {
		return known
	}
	bearing := ""
	if selector := b.defaultSelector(pod); !selector.Empty() {
		bearing = pod.Namespace + "/" + selector.String()
	}
	if b.concerned(pod) {
		bearing = identity
	}
	b.bearings[identity] = bearing
	return bearing
}

// concerned tells whether the affinity of some placed pod is about this one.
func (b *batch) concerned(pod *corev1.Pod) bool {
	namespace, found := b.view.NamespaceLabels(pod.Namespace), false
	b.view.EachAffinitySet(func(set *placement.AffinitySet) {
		for _, terms := range [][]placement.AffinityTerm{set.Affinity.Required, set.Affinity.RequiredAnti, set.Affinity.Preferred} {
			for i := range terms {
				found = found || terms[i].Matches(pod, namespace)
			}
		}
	})
	return found
}

// signer appends values so that different sequences give different bytes.
type signer struct{ buf []byte }

func (s *signer) number(n int64) { s.buf = binary.AppendVarint(s.buf, n) }

func (s *signer) text(t string) {
	s.number(int64(len(t)))
	s.buf = append(s.buf, t...)
}

func (s *signer) set(m map[string]string) {
	s.number(int64(len(m)))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		s.text(key)
		s.text(m[key])
	}
}

// message appends an API value in its protobuf form, which is deterministic (maps are sorted).
func (s *signer) message(m interface{ Marshal() ([]byte, error) }) {
	data, err := m.Marshal()
	if err != nil {
		return // generated marshallers of plain values cannot fail
	}
	s.text(string(data))
}

func (s *signer) resources(p *placement.Pod) {
	r := p.Requests
	for _, n := range []int64{r.MilliCPU, r.Memory, r.EphemeralStorage, p.ScoredMilliCPU, p.ScoredMemory, int64(len(r.Scalar))} {
		s.number(n)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Scalar)) {
		s.text(string(name))
		s.number(r.Scalar[name])
	}
	s.number(int64(len(p.Ports)))
	for _, port := range p.Ports {
		s.text(port.IP)
		s.text(string(port.Protocol))
		s.number(int64(port.Port))
	}
}

// eachImage calls f with every image the pod needs, by the name that nodes report.
func eachImage(spec *corev1.PodSpec, f func(string)) {
	for i := range spec.InitContainers {
		f(normalImage(spec.InitContainers[i].Image))
	}
	for i := range spec.Containers {
		f(normalImage(spec.Containers[i].Image))
	}
	for i := range spec.Volumes {
		if image := spec.Volumes[i].Image; image != nil {
			f(normalImage(image.Reference))
		}
	}
}
