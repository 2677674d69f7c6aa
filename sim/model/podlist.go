package model

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// podList is pods sorted by a group and their UID: of a node's pods the group is the shard's number, of a namespace's the node's index. It
// takes a fraction of a map's memory, and has an order.
type podList []listed

type listed struct {
	group int
	pod   *corev1.Pod
}

// find is where a pod is or would be.
func (l podList) find(group int, uid types.UID) (int, bool) {
	return slices.BinarySearchFunc(l, uid, func(have listed, uid types.UID) int {
		if have.group != group {
			return cmp.Compare(have.group, group)
		}
		return cmp.Compare(have.pod.UID, uid)
	})
}

func (l podList) get(group int, uid types.UID) *corev1.Pod {
	if i, ok := l.find(group, uid); ok {
		return l[i].pod
	}
	return nil
}

// put adds a pod or replaces its older version, and tells whether there was none.
func (l *podList) put(group int, pod *corev1.Pod) bool {
	i, ok := l.find(group, pod.UID)
	if ok {
		(*l)[i].pod = pod
	} else {
		*l = slices.Insert(*l, i, listed{group, pod})
	}
	return !ok
}

// drop removes a pod, if it is there.
func (l *podList) drop(group int, uid types.UID) {
	if i, ok := l.find(group, uid); ok {
		*l = slices.Delete(*l, i, i+1)
	}
}

// in is the part of one group; it shares the list's memory.
func (l podList) in(group int) podList {
	from, _ := l.find(group, "")
	to, _ := l.find(group+1, "")
	return l[from:to:to]
}

// byUID are the pods of all groups, sorted by UID.
func (l podList) byUID() []*corev1.Pod {
	pods := make([]*corev1.Pod, len(l))
	for i := range l {
		pods[i] = l[i].pod
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return cmp.Compare(a.UID, b.UID) })
	return pods
}
