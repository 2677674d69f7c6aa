package workload

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/dump"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// revisionHistoryLimit bounds the revision history annotation, in characters.
const revisionHistoryLimit = 2000

const hashLabel = appsv1.DefaultDeploymentUniqueLabelKey // pod-template-hash

// ownAnnotations are not copied between a Deployment and its sets.
var ownAnnotations = []string{
	corev1.LastAppliedConfigAnnotation, revisionAnnotation, revisionHistoryAnnotation,
	desiredAnnotation, maxAnnotation, appsv1.DeprecatedRollbackTo,
}

// templateHash is the value of the pod-template-hash label, the same that upstream's deployment
// controller computes, so that a Deployment moved between clusters keeps its ReplicaSets' names.
func templateHash(template *corev1.PodTemplateSpec, collisions *int32) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%v", dump.ForHash(*template))
	if collisions != nil {
		var buf [8]byte
		binary.LittleEndian.PutUint32(buf[:], uint32(*collisions))
		h.Write(buf[:])
	}
	return rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
}

// sameTemplate compares templates without their hash labels. Hashes are not compared: they
// change when the API gains fields.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	return apiequality.Semantic.DeepEqual(a.Spec, b.Spec) &&
		apiequality.Semantic.DeepEqual(withoutHash(a), withoutHash(b))
}

func withoutHash(t *corev1.PodTemplateSpec) *metav1.ObjectMeta {
	meta := t.ObjectMeta.DeepCopy()
	delete(meta.Labels, hashLabel)
	return meta
}

// syncRevision keeps the current set's annotations: the Deployment's own ones, and a revision
// above those of all other sets. A set that gets a new revision is one that was rolled back to;
// its former revisions go into its history. The Deployment carries the current set's revision.
func (r *rollout) syncRevision() {
	if r.current == nil {
		return
	}
	rs := r.current.want
	r.annotateRevision(rs)
	rs.Spec.MinReadySeconds = r.seen.Spec.MinReadySeconds
	r.current.pods.minReadySeconds = rs.Spec.MinReadySeconds
	r.current.now = r.current.pods.count(r.plan, r.now)
	metav1.SetMetaDataAnnotation(&r.want.ObjectMeta, revisionAnnotation, rs.Annotations[revisionAnnotation])
	if r.hasDeadline() && conditionOf(&r.want.Status, appsv1.DeploymentProgressing) == nil {
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "FoundNewReplicaSet",
			fmt.Sprintf("Found new replica set %q", rs.Name))
	}
}

func (r *rollout) annotateRevision(rs *appsv1.ReplicaSet) {
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	for key, value := range r.seen.Annotations {
		if !slices.Contains(ownAnnotations, key) {
			rs.Annotations[key] = value
		}
	}
	newest := int64(1)
	for _, set := range r.old {
		if n, ok := revisionOf(set.want); ok {
			newest = max(newest, n+1)
		}
	}
	text, had := rs.Annotations[revisionAnnotation]
	own, ok := revisionOf(rs)
	if !ok || own >= newest {
		return // malformed, or already the newest
	}
	rs.Annotations[revisionAnnotation] = strconv.FormatInt(newest, 10)
	if had {
		history := append(strings.FieldsFunc(rs.Annotations[revisionHistoryAnnotation], isComma), text)
		for len(strings.Join(history, ",")) > revisionHistoryLimit {
			history = history[1:]
		}
		rs.Annotations[revisionHistoryAnnotation] = strings.Join(history, ",")
	}
}

func isComma(c rune) bool { return c == ',' }

// revisionOf is a set's revision, 0 if it has none; false if it is malformed.
func revisionOf(rs *appsv1.ReplicaSet) (int64, bool) {
	text := rs.Annotations[revisionAnnotation]
	if text == "" {
		return 0, true
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil
}

// createSet makes the set of the present template. It reports false if another object has its
// name: then the collision count is raised, and the next pass tries another hash.
func (r *rollout) createSet() bool {
	d := r.seen
	hash := templateHash(&d.Spec.Template, d.Status.CollisionCount)
	name := setName(d.Name, hash)
	if _, taken := r.view.ReplicaSets.Get(d.Namespace, name); taken {
		r.want.Status.CollisionCount = ptr.To(ptr.Deref(d.Status.CollisionCount, 0) + 1)
		r.plan.RecheckAt(r.now)
		return false
	}
	rs := &appsv1.ReplicaSet{Spec: appsv1.ReplicaSetSpec{
		Replicas:        ptr.To[int32](0),
		MinReadySeconds: d.Spec.MinReadySeconds,
		Selector:        selectorWithHash(d.Spec.Selector, hash),
		Template:        *d.Spec.Template.DeepCopy(),
	}}
	rs.Name, rs.Namespace = name, d.Namespace
	if rs.Spec.Template.Labels == nil {
		rs.Spec.Template.Labels = map[string]string{}
	}
	rs.Spec.Template.Labels[hashLabel] = hash
	rs.Labels = rs.Spec.Template.DeepCopy().Labels
	rs.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(d, deploymentKind)}
	rs.UID = placement.NewNames(string(d.UID), name, r.now.UTC().String()).UID()
	rs.Generation = 1
	r.annotateRevision(rs)
	set := &replicaSet{want: rs, pods: newReplicaSetPods(rs)}
	set.pods.account = d.UID // if its pods are refused, the set does not come to be either
	r.annotateSizes(set)
	r.current, r.created = set, true
	r.sets = append(r.sets, set)
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		r.resize(set, r.size)
	} else {
		r.resize(set, r.room())
	}
	metav1.SetMetaDataAnnotation(&r.want.ObjectMeta, revisionAnnotation, rs.Annotations[revisionAnnotation])
	if r.hasDeadline() {
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetCreated",
			fmt.Sprintf("Created new replica set %q", rs.Name))
	}
	return true
}

func setName(deployment, hash string) string {
	limit := validation.DNS1123SubdomainMaxLength - len(hash) - 1
	if len(deployment) > limit {
		deployment = deployment[:limit]
	}
	return deployment + "-" + hash
}

func selectorWithHash(s *metav1.LabelSelector, hash string) *metav1.LabelSelector {
	s = s.DeepCopy()
	if s == nil {
		s = &metav1.LabelSelector{}
	}
	return metav1.AddLabelToSelector(s, hashLabel, hash)
}

// dropHistory deletes empty old sets beyond the revision history limit, lowest revision first.
func (r *rollout) dropHistory() {
	limit := r.seen.Spec.RevisionHistoryLimit
	if limit == nil || *limit == math.MaxInt32 {
		return
	}
	var sets []*replicaSet
	for _, set := range r.old {
		if set.want.DeletionTimestamp == nil {
			sets = append(sets, set)
		}
	}
	excess := len(sets) - int(*limit)
	if excess <= 0 {
		return
	}
	slices.SortStableFunc(sets, func(a, b *replicaSet) int {
		revA, okA := revisionOf(a.want)
		revB, okB := revisionOf(b.want)
		if !okA || !okB {
			return olderSet(a, b)
		}
		return cmp.Or(cmp.Compare(revA, revB), olderSet(a, b))
	})
	for _, set := range sets[:excess] {
		if set.size() > 0 || len(set.pods.active) > 0 || set.seen.Generation > set.seen.Status.ObservedGeneration {
			continue
		}
		r.plan.Add(placement.Change{Verb: placement.Delete, Object: set.seen, UID: set.seen.UID})
	}
}
