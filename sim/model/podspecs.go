package model

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"google.golang.org/protobuf/encoding/protowire"

	"shoal/consensus/store"
)

// podSpecs decodes pods. What is equal in all pods of a workload is decoded once and shared, since nobody writes into a stored object: a
// million pods would not fit into memory otherwise.
type podSpecs struct {
	specs map[string]*corev1.PodSpec // by their encoding without the node's name
	metas map[string]*metav1.ObjectMeta
	buf   []byte
}

// maxPodSpecs bounds what is remembered; the pods of a workload follow each other.
const maxPodSpecs = 4096

// Field numbers of k8s.io/api/core/v1/generated.proto.
const (
	podMetadata = 1
	podSpec     = 2
	podStatus   = 3
	specNode    = 10
)

// decode is pod.Unmarshal with shared parts.
func (p *podSpecs) decode(value []byte, at store.Revision) *corev1.Pod {
	pod := &corev1.Pod{}
	var err error
	eachField(value, func(number protowire.Number, _, field []byte) {
		switch number {
		case podMetadata:
			err = firstError(err, pod.ObjectMeta.Unmarshal(field))
		case podSpec:
			err = firstError(err, p.decodeSpec(field, &pod.Spec))
		case podStatus:
			err = firstError(err, pod.Status.Unmarshal(field))
		}
	})
	if err != nil {
		panic(err) // it was encoded by the model
	}
	p.shareMeta(&pod.ObjectMeta)
	pod.ResourceVersion = at.String()
	return pod
}

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// eachField calls f with the number, the whole encoding and the value of every field; all are messages or strings where f looks.
func eachField(message []byte, f func(number protowire.Number, whole, value []byte)) {
	for len(message) > 0 {
		number, kind, tag := protowire.ConsumeTag(message)
		size := 0
		if tag >= 0 {
			size = protowire.ConsumeFieldValue(number, kind, message[tag:])
		}
		if tag < 0 || size < 0 {
			panic(fmt.Sprintf("a field of %d bytes cannot be read", len(message)))
		}
		var value []byte
		if kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(message[tag:])
		}
		f(number, message[:tag+size], value)
		message = message[tag+size:]
	}
}

func (p *podSpecs) decodeSpec(encoded []byte, spec *corev1.PodSpec) error {
	node := ""
	p.buf = p.buf[:0]
	eachField(encoded, func(number protowire.Number, whole, value []byte) {
		if number == specNode {
			node = string(value)
		} else {
			p.buf = append(p.buf, whole...)
		}
	})
	known := p.specs[string(p.buf)]
	if known == nil {
		known = &corev1.PodSpec{}
		if err := known.Unmarshal(p.buf); err != nil {
			return err
		}
		if len(p.specs) >= maxPodSpecs || p.specs == nil {
			p.specs = map[string]*corev1.PodSpec{}
		}
		p.specs[string(p.buf)] = known
	}
	*spec = *known
	spec.NodeName = node
	return nil
}

// shareMeta lets a pod share names, labels and owners with an earlier one of the same owner.
func (p *podSpecs) shareMeta(meta *metav1.ObjectMeta) {
	if len(meta.OwnerReferences) != 1 {
		return
	}
	owner := string(meta.OwnerReferences[0].UID)
	known := p.metas[owner]
	if known == nil {
		if len(p.metas) >= maxPodSpecs || p.metas == nil {
			p.metas = map[string]*metav1.ObjectMeta{}
		}
		p.metas[owner] = meta.DeepCopy()
		return
	}
	if meta.Namespace == known.Namespace {
		meta.Namespace = known.Namespace
	}
	if meta.GenerateName == known.GenerateName {
		meta.GenerateName = known.GenerateName
	}
	if maps.Equal(meta.Labels, known.Labels) {
		meta.Labels = known.Labels
	}
	if slices.EqualFunc(meta.OwnerReferences, known.OwnerReferences, sameOwner) {
		meta.OwnerReferences = known.OwnerReferences
	}
}

func sameOwner(a, b metav1.OwnerReference) bool {
	same := func(a, b *bool) bool { return a == b || a != nil && b != nil && *a == *b }
	return a.UID == b.UID && a.Name == b.Name && a.Kind == b.Kind && a.APIVersion == b.APIVersion &&
		same(a.Controller, b.Controller) && same(a.BlockOwnerDeletion, b.BlockOwnerDeletion)
}
