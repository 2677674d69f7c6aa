package workload

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// ordinalOf reads a pod's ordinal from its name; false for a name that the set does not give.
func ordinalOf(set, pod string) (int, bool) {
	digits, ok := strings.CutPrefix(pod, set+"-")
	if !ok || digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(digits, 10, 32)
	return int(n), err == nil && strconv.FormatInt(n, 10) == digits
}

// create adds a pod and the claims that it lacks. Nothing is created over a claim that is about to go.
func (s *statefulSet) create(ordinal int) {
	pod := s.newPod(ordinal)
	if _, taken := s.view.Pod(pod.Namespace, pod.Name); taken {
		s.cannotCreate(pod.Name, "there is a pod of that name that does not belong to it")
		return
	}
	if s.staleClaim(pod) || !s.createClaims(pod) {
		return
	}
	m := &member{pod: pod, ordinal: ordinal, created: true}
	s.replicas[ordinal] = m
	s.quota--
	s.plan.Add(placement.Change{Verb: placement.Create, Object: pod, Events: []placement.Event{s.told("Create", pod.Name)}})
	s.keepClaims(m)
}

// cannotCreate tells the set's user why a pod is missing, in upstream's words.
func (s *statefulSet) cannotCreate(pod, why string) {
	s.plan.Say(s.warning(statefulSetComponent, "FailedCreate", fmt.Sprintf("create Pod %s in StatefulSet %s failed error: %s", pod, s.seen.Name, why)))
}

// newPod is the pod of an ordinal: below the partition of the current revision, else of the update.
func (s *statefulSet) newPod(ordinal int) *corev1.Pod {
	revision, template := s.update, &s.seen.Spec.Template
	if s.keepsCurrent(ordinal) {
		if old := s.currentTemplate(); old != nil {
			revision, template = s.current, old
		}
	}
	pod := podFromTemplate(template, s.owner)
	pod.GenerateName, pod.Name, pod.UID = "", fmt.Sprintf("%s-%d", s.seen.Name, ordinal), s.names.UID()
	pod.Spec.Hostname, pod.Spec.Subdomain = pod.Name, s.seen.Spec.ServiceName
	setIdentity(pod, ordinal)
	pod.Labels[appsv1.StatefulSetRevisionLabel] = revision.Name
	s.mountClaims(pod, ordinal)
	return pod
}

func (s *statefulSet) keepsCurrent(ordinal int) bool {
	if s.current == s.update || s.seen.Spec.UpdateStrategy.Type != appsv1.RollingUpdateStatefulSetStrategyType {
		return false
	}
	if r := s.seen.Spec.UpdateStrategy.RollingUpdate; r != nil {
		return ordinal < s.start+int(ptr.Deref(r.Partition, 0))
	}
	return ordinal < s.start+int(s.seen.Status.CurrentReplicas)
}

// currentTemplate reads the current revision's template, once; nil if there is none to read.
func (s *statefulSet) currentTemplate() *corev1.PodTemplateSpec {
	if s.old == nil {
		old, err := templateOf(s.current)
		if err != nil {
			s.plan.Say(s.warning(statefulSetComponent, "FailedSync", err.Error()))
			return nil
		}
		s.old = old
	}
	return s.old
}

func setIdentity(pod *corev1.Pod, ordinal int) {
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[appsv1.StatefulSetPodNameLabel] = pod.Name
	pod.Labels[appsv1.PodIndexLabel] = strconv.Itoa(ordinal)
}

// keepIdentity repairs the labels by which a pod is known, and its claims' references.
func (s *statefulSet) keepIdentity(m *member) {
	if m.created || m.deleted {
		return
	}
	s.keepClaims(m)
	if m.pod.Labels[appsv1.StatefulSetPodNameLabel] == m.pod.Name {
		return
	}
	want := m.pod.DeepCopy()
	setIdentity(want, m.ordinal)
	change := placement.Updating(placement.Update, m.pod, want, s.told("Update", want.Name))
	if ref := metav1.GetControllerOfNoCopy(m.pod); ref == nil {
		s.adopt(want)
		change.ResourceVersion = "" // its adoption above has moved it
	}
	s.plan.Add(change)
}

func claimName(template *corev1.PersistentVolumeClaim, set string, ordinal int) string {
	return fmt.Sprintf("%s-%s-%d", template.Name, set, ordinal)
}

// mountClaims puts the pod's own claims in the place of the volumes of their names.
func (s *statefulSet) mountClaims(pod *corev1.Pod, ordinal int) {
	var volumes []corev1.Volume
	for i := range s.seen.Spec.VolumeClaimTemplates {
		t := &s.seen.Spec.VolumeClaimTemplates[i]
		volumes = append(volumes, corev1.Volume{Name: t.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(t, s.seen.Name, ordinal)},
		}})
	}
	for _, v := range pod.Spec.Volumes {
		if !slices.ContainsFunc(volumes, func(o corev1.Volume) bool { return o.Name == v.Name }) {
			volumes = append(volumes, v)
		}
	}
	pod.Spec.Volumes = volumes
}

// claimOf finds one of a pod's claims as this plan leaves it, nil if there is none.
func (s *statefulSet) claimOf(name string) *corev1.PersistentVolumeClaim {
	if c, changed := s.claims[name]; changed {
		return c
	}
	c, ok := s.view.Claims.Get(s.seen.Namespace, name)
	if !ok {
		return nil
	}
	return c
}

// createClaims adds the claims that a pod lacks; false if one of them is being deleted.
func (s *statefulSet) createClaims(pod *corev1.Pod) bool {
	ordinal, _ := ordinalOf(s.seen.Name, pod.Name)
	for i := range s.seen.Spec.VolumeClaimTemplates {
		t := &s.seen.Spec.VolumeClaimTemplates[i]
		name := claimName(t, s.seen.Name, ordinal)
		if have := s.claimOf(name); have != nil {
			if have.DeletionTimestamp != nil {
				s.cannotCreate(pod.Name, fmt.Sprintf("pvc %s is being deleted", name))
				return false
			}
			continue
		}
		c := t.DeepCopy()
		c.Name, c.Namespace, c.UID = name, s.seen.Namespace, s.names.UID()
		c.Labels = maps.Clone(c.Labels)
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		maps.Copy(c.Labels, s.seen.Spec.Selector.MatchLabels)
		c.Status = corev1.PersistentVolumeClaimStatus{}
		c.OwnerReferences = s.claimOwners(c, pod, ordinal)
		s.claims[name] = c
		s.plan.Add(placement.Change{Verb: placement.Create, Object: c, Events: []placement.Event{{
			Regarding: s.seen, Type: corev1.EventTypeNormal, Reason: "SuccessfulCreate", Component: statefulSetComponent,
			Message: fmt.Sprintf("Create Claim %s Pod %s in StatefulSet %s success", name, pod.Name, s.seen.Name),
		}}})
	}
	return true
}

// retention is what becomes of claims with the set and with scaling down.
func (s *statefulSet) retention() (goWithSet, goWithPod bool) {
	p := s.seen.Spec.PersistentVolumeClaimRetentionPolicy
	if p == nil {
		return false, false
	}
	return p.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType,
		p.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
}

// staleClaim tells whether a claim is to go with an earlier pod of this name. It would be taken away
// from under the new one.
func (s *statefulSet) staleClaim(pod *corev1.Pod) bool {
	if _, goWithPod := s.retention(); !goWithPod {
		return false
	}
	ordinal, _ := ordinalOf(s.seen.Name, pod.Name)
	for i := range s.seen.Spec.VolumeClaimTemplates {
		c := s.claimOf(claimName(&s.seen.Spec.VolumeClaimTemplates[i], s.seen.Name, ordinal))
		if c != nil && slices.ContainsFunc(c.OwnerReferences, func(r metav1.OwnerReference) bool {
			return refersTo(r, "v1", "Pod", pod.Name) && r.UID != pod.UID
		}) {
			return true
		}
	}
	return false
}

func refersTo(r metav1.OwnerReference, version, kind, name string) bool {
	return r.APIVersion == version && r.Kind == kind && r.Name == name
}

// keepClaims makes the owner references of a pod's claims say what the retention policy wants.
func (s *statefulSet) keepClaims(m *member) {
	for i := range s.seen.Spec.VolumeClaimTemplates {
		name := claimName(&s.seen.Spec.VolumeClaimTemplates[i], s.seen.Name, m.ordinal)
		c := s.claimOf(name)
		if c == nil || s.claims[name] != nil {
			continue // created by this plan with the right references
		}
		owners := s.claimOwners(c, m.pod, m.ordinal)
		if apiequality.Semantic.DeepEqual(owners, c.OwnerReferences) {
			continue
		}
		want := c.DeepCopy()
		want.OwnerReferences = owners
		s.claims[name] = want
		s.plan.Add(placement.Updating(placement.Update, c, want))
	}
}

// claimOwners are the owner references that a claim should have: the set while the claim is to go
// with it, the pod once it is scaled away and the claim is to go with that. References to an earlier
// set or pod of the same name, and another controller, are not ours to judge: then nothing is added.
func (s *statefulSet) claimOwners(c *corev1.PersistentVolumeClaim, pod *corev1.Pod, ordinal int) []metav1.OwnerReference {
	goWithSet, goWithPod := s.retention()
	var others []metav1.OwnerReference
	foreign := false
	for _, r := range c.OwnerReferences {
		isSet, isPod := refersTo(r, "apps/v1", "StatefulSet", s.seen.Name), refersTo(r, "v1", "Pod", pod.Name)
		if isSet && r.UID != s.seen.UID || isPod && r.UID != pod.UID {
			return c.OwnerReferences
		}
		if !isSet && !isPod {
			others = append(others, r)
			foreign = foreign || ptr.Deref(r.Controller, false)
		}
	}
	condemned := !s.inRange(ordinal)
	switch {
	case foreign && (goWithSet || goWithPod):
		return others
	case condemned && goWithPod:
		return append(others, *metav1.NewControllerRef(pod, corev1.SchemeGroupVersion.WithKind("Pod")))
	case goWithSet:
		return append(others, s.reference())
	}
	return others
}
