package workload

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

const statefulSetComponent = "statefulset-controller"

// statefulSet is one StatefulSet being planned.
type statefulSet struct {
	owner
	view *placement.View
	seen *appsv1.StatefulSet
	now  time.Time
	plan *placement.Plan

	names      *placement.Names
	history    *history
	collisions int32
	update     *appsv1.ControllerRevision // of the present template
	current    *appsv1.ControllerRevision // what the last completed rollout left
	old        *corev1.PodTemplateSpec    // current's template, once it was read

	size, start int
	replicas    map[int]*member // by ordinal; those that exist, and those that this plan creates
	condemned   []*member       // beyond the size, highest ordinal first
	quota       int             // how many pods this plan may still create
	claims      map[string]*corev1.PersistentVolumeClaim
}

// member is one of the set's pods.
type member struct {
	pod     *corev1.Pod
	ordinal int
	created bool // by this plan
	deleted bool // by this plan
}

// PlanStatefulSet plans a StatefulSet's pods, claims, revisions and status.
//
// A pod is never created while an object of its name exists, so that there are never two of one
// identity; a pod on a lost node goes when package repair says that the node has stopped it.
// Source of the rules: kubernetes.io/docs/concepts/workloads/controllers/statefulset, KEP-961
// (maxUnavailable), KEP-1847 (claim retention), KEP-3335 (start ordinal).
func PlanStatefulSet(v *placement.View, set *appsv1.StatefulSet, now time.Time) placement.Plan {
	var plan placement.Plan
	s := &statefulSet{
		owner: newOwner(set, statefulSetKind, set.Spec.Selector), view: v, seen: set, now: now, plan: &plan,
		names: placement.NewNames(string(set.UID), now.UTC().Format(time.RFC3339Nano)),
		size:  int(ptr.Deref(set.Spec.Replicas, 1)), replicas: map[int]*member{},
		collisions: ptr.Deref(set.Status.CollisionCount, 0),
		claims:     map[string]*corev1.PersistentVolumeClaim{},
	}
	if set.Spec.Ordinals != nil {
		s.start = int(set.Spec.Ordinals.Start)
	}
	s.findMembers()
	if err := s.findRevisions(); err != nil {
		plan.Say(s.warning(statefulSetComponent, "FailedSync", err.Error()))
		return plan
	}
	if set.DeletionTimestamp == nil {
		s.quota = quotaOf(v, set.UID, s.waiting(), &plan, now)
		s.decide()
	}
	s.writeStatus()
	if set.DeletionTimestamp == nil {
		s.truncateHistory()
	}
	return plan
}

// findMembers claims the set's pods. One that has its labels but not its name belongs to somebody else.
func (s *statefulSet) findMembers() {
	for p := range s.candidates(s.view) {
		pod := p.Object
		ordinal, named := ordinalOf(s.seen.Name, pod.Name)
		mine, change := s.claim(pod)
		if !named {
			// Its own pod under a foreign name is released, a foreign one left alone.
			change = mine && !change && s.seen.DeletionTimestamp == nil || !mine && change
			mine = false
		}
		if change {
			settle(s.owner, s.plan, pod, mine)
		}
		if !mine {
			continue
		}
		m := &member{pod: pod, ordinal: ordinal}
		if s.inRange(ordinal) {
			s.replicas[ordinal] = m
		} else {
			s.condemned = append(s.condemned, m)
		}
	}
	slices.SortFunc(s.condemned, func(a, b *member) int { return cmp.Compare(b.ordinal, a.ordinal) })
}

func (s *statefulSet) inRange(ordinal int) bool {
	return ordinal >= s.start && ordinal < s.start+s.size
}

func (s *statefulSet) findRevisions() error {
	s.history = findHistory(s.view, s.owner, s.plan)
	template := &s.seen.Spec.Template
	if s.seen.DeletionTimestamp != nil {
		s.update, s.current = s.history.named(s.seen.Status.UpdateRevision), s.history.named(s.seen.Status.CurrentRevision)
		return nil
	}
	update, err := s.history.of(s.view, s.plan, template, &s.collisions, func(data []byte) naming {
		return naming{contentHashLabel, func(collisions int32) string { return contentHash(data, collisions) }}
	})
	if err != nil {
		return fmt.Errorf("the pod template cannot be recorded as a revision: %w", err)
	}
	s.update, s.current = update, s.history.named(s.seen.Status.CurrentRevision)
	if s.current == nil {
		s.current = update
	}
	return nil
}

// decide is one step towards what the set wants: missing pods first, then those too many, then those
// of another revision. With ordered pod management each step waits for all before it.
func (s *statefulSet) decide() {
	ordered := s.seen.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
	unhealthy := s.firstUnavailable()
	if !s.fillReplicas(ordered) {
		return
	}
	for _, m := range s.condemned {
		s.keepClaims(m)
	}
	for _, m := range s.condemned {
		// One that has ended goes in any case: waiting for it to get well would be for ever.
		if m.pod.DeletionTimestamp == nil && (!ordered || s.available(m) || m == unhealthy || placement.Finished(m.pod)) {
			s.delete(m)
		}
		if ordered {
			return // the next one goes when this one is gone
		}
	}
	if s.seen.Spec.UpdateStrategy.Type != appsv1.OnDeleteStatefulSetStrategyType {
		s.rollOver(ordered)
	}
}

// fillReplicas creates what is missing and reports whether the next step may be taken.
func (s *statefulSet) fillReplicas(ordered bool) bool {
	for _, ordinal := range s.ordinals() {
		m := s.replicas[ordinal]
		switch {
		case m == nil:
			if s.quota > 0 {
				s.create(ordinal)
			}
			if ordered {
				return false
			}
			continue
		case placement.Finished(m.pod):
			// Whatever its exit code: an evicted pod may have succeeded. Its successor comes when it is gone.
			if m.pod.DeletionTimestamp == nil {
				s.delete(m)
			}
			if ordered {
				return false
			}
			continue
		case m.pod.Status.Phase == corev1.PodPending:
			if !s.createClaims(m.pod) && ordered {
				return false
			}
			s.keepClaims(m)
		}
		if ordered && (m.pod.DeletionTimestamp != nil || !s.available(m)) {
			return false
		}
		s.keepIdentity(m)
	}
	return true
}

// ordinals are those that one plan looks at, in order: all that exist, and as many of the missing as
// it may create. A million replicas stay bounded work.
func (s *statefulSet) ordinals() []int {
	var list []int
	ordinal := s.start
	for missing := 0; ordinal < s.start+s.size && missing <= s.quota; ordinal++ {
		if s.replicas[ordinal] == nil {
			missing++
		}
		list = append(list, ordinal)
	}
	from := len(list)
	for beyond := range s.replicas {
		if beyond >= ordinal {
			list = append(list, beyond)
		}
	}
	slices.Sort(list[from:])
	return list
}

// firstUnavailable is the lowest member that is not available, which may be condemned even if it
// never gets healthy; nil if a missing one comes before.
func (s *statefulSet) firstUnavailable() *member {
	for ordinal := s.start; ordinal < s.start+s.size; ordinal++ {
		if m := s.replicas[ordinal]; m == nil || s.unavailable(m) {
			return m
		}
	}
	for _, m := range slices.Backward(s.condemned) {
		if s.unavailable(m) {
			return m
		}
	}
	return nil
}

func (s *statefulSet) available(m *member) bool {
	if m.created || m.pod.Status.Phase != corev1.PodRunning {
		return false
	}
	available, at := placement.Available(m.pod, s.seen.Spec.MinReadySeconds, s.now)
	s.plan.RecheckAt(at)
	return available
}

func (s *statefulSet) unavailable(m *member) bool {
	return m.pod.DeletionTimestamp != nil || m.deleted || !s.available(m)
}

// rollOver deletes pods of other revisions, highest ordinal first, as far as maxUnavailable allows.
// What is already unavailable is replaced first and costs nothing, except in ordered management,
// where nothing is unavailable by now.
func (s *statefulSet) rollOver(ordered bool) {
	budget, first := 1, s.start
	if r := s.seen.Spec.UpdateStrategy.RollingUpdate; r != nil {
		first += int(ptr.Deref(r.Partition, 0))
		n, err := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(r.MaxUnavailable, intstr.FromInt32(1)), s.size, false)
		if err == nil {
			budget = max(n, 1)
		}
	}
	budget -= s.size - len(s.replicas) // the missing
	var outdated []*member
	for _, m := range s.replicas {
		if s.unavailable(m) {
			budget--
		}
		if m.ordinal >= first && !m.created && !m.deleted && m.pod.DeletionTimestamp == nil && revisionOfPod(m.pod) != s.update.Name {
			outdated = append(outdated, m)
		}
	}
	slices.SortFunc(outdated, func(a, b *member) int { return cmp.Compare(b.ordinal, a.ordinal) })
	for _, m := range outdated {
		if !ordered && !s.available(m) {
			s.delete(m)
		}
	}
	for _, m := range outdated {
		if budget > 0 && !m.deleted {
			s.delete(m)
			budget--
		}
	}
}

func (s *statefulSet) delete(m *member) {
	m.deleted = true
	s.plan.Add(placement.Change{
		Verb: placement.Delete, Object: m.pod, UID: m.pod.UID, Events: []placement.Event{s.told("Delete", m.pod.Name)},
	})
}

func (s *statefulSet) told(verb, pod string) placement.Event {
	return placement.Event{
		Regarding: s.seen, Type: corev1.EventTypeNormal, Reason: "Successful" + verb, Component: statefulSetComponent,
		Message: fmt.Sprintf("%s Pod %s in StatefulSet %s successful", verb, pod, s.seen.Name),
	}
}

// waiting counts the pods that have no node yet.
func (s *statefulSet) waiting() int {
	n := 0
	for _, m := range s.replicas {
		if m.pod.Spec.NodeName == "" {
			n++
		}
	}
	return n
}

// writeStatus works out the status after the plan.
func (s *statefulSet) writeStatus() {
	if s.update == nil || s.current == nil {
		return // being deleted, with its history already gone
	}
	want := s.seen.DeepCopy()
	st := &want.Status
	*st = appsv1.StatefulSetStatus{
		ObservedGeneration: s.seen.Generation, CurrentRevision: s.current.Name, UpdateRevision: s.update.Name,
		CollisionCount: ptr.To(s.collisions), Conditions: s.seen.Status.Conditions,
	}
	for _, m := range s.replicas {
		s.count(st, m)
	}
	for _, m := range s.condemned {
		s.count(st, m)
	}
	if size := int32(s.size); st.UpdatedReplicas == size && st.ReadyReplicas == size && st.Replicas == size {
		st.CurrentReplicas, st.CurrentRevision = st.UpdatedReplicas, st.UpdateRevision
	}
	failure := ""
	if s.seen.DeletionTimestamp == nil {
		failure = shortage(s.view, s.seen.UID, s.size-len(s.replicas), s.waiting())
	}
	st.Conditions = withFailure(st.Conditions, failure, appsv1.StatefulSetCondition{
		Type: replicaFailure, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(s.now), Reason: failedCreate, Message: failure,
	}, func(c appsv1.StatefulSetCondition) bool { return c.Type == replicaFailure })
	if !apiequality.Semantic.DeepEqual(s.seen.Status, *st) {
		s.plan.Add(placement.Updating(placement.UpdateStatus, s.seen, want))
	}
}

func (s *statefulSet) count(st *appsv1.StatefulSetStatus, m *member) {
	if m.deleted && (m.pod.Spec.NodeName == "" || placement.Finished(m.pod)) {
		return // gone at once
	}
	st.Replicas++
	if !m.created && m.pod.Status.Phase == corev1.PodRunning && placement.Ready(m.pod) {
		st.ReadyReplicas++
		if s.available(m) {
			st.AvailableReplicas++
		}
	}
	if m.deleted || m.pod.DeletionTimestamp != nil {
		return
	}
	switch revisionOfPod(m.pod) {
	case s.current.Name:
		st.CurrentReplicas++
		if s.current.Name == s.update.Name {
			st.UpdatedReplicas++
		}
	case s.update.Name:
		st.UpdatedReplicas++
	}
}

func (s *statefulSet) truncateHistory() {
	live := map[string]bool{s.current.Name: true, s.update.Name: true}
	for _, m := range s.replicas {
		live[revisionOfPod(m.pod)] = true
	}
	for _, m := range s.condemned {
		live[revisionOfPod(m.pod)] = true
	}
	s.history.truncate(s.plan, ptr.Deref(s.seen.Spec.RevisionHistoryLimit, 10), live)
}

func revisionOfPod(pod *corev1.Pod) string { return pod.Labels[appsv1.StatefulSetRevisionLabel] }
