package workload

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/rand"

	"shoal/placement"
)

// contentHashLabel carries the hash of a ControllerRevision's data.
const contentHashLabel = "controller.kubernetes.io/hash"

// maxRevisionPrefix leaves room for a hash in the 253 characters of an object's name.
const maxRevisionPrefix = 223

// history is the ControllerRevisions of one StatefulSet or DaemonSet: the templates that it has
// had, in the form that kubectl rollout history and undo read.
type history struct {
	owner
	revisions []*appsv1.ControllerRevision // by revision number, oldest first; own copies when changed
	changed   map[string]*appsv1.ControllerRevision
}

// findHistory claims an owner's revisions and adds adoptions and releases to the plan.
func findHistory(v *placement.View, o owner, plan *placement.Plan) *history {
	h := &history{owner: o, changed: map[string]*appsv1.ControllerRevision{}}
	for _, candidates := range [][]*appsv1.ControllerRevision{v.Revisions.Of(o.object.GetUID()), v.Revisions.Orphans(o.object.GetNamespace())} {
		for _, seen := range candidates {
			if seen.Namespace != o.object.GetNamespace() {
				continue
			}
			mine, change := o.claim(seen)
			if change {
				seen = settle(o, plan, seen, mine)
				h.changed[seen.Name] = seen
			}
			if mine {
				h.revisions = append(h.revisions, seen)
			}
		}
	}
	slices.SortStableFunc(h.revisions, compareRevisions)
	return h
}

func compareRevisions(a, b *appsv1.ControllerRevision) int {
	return cmp.Or(cmp.Compare(a.Revision, b.Revision), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

// named finds a revision, nil if there is none of that name.
func (h *history) named(name string) *appsv1.ControllerRevision {
	for _, r := range h.revisions {
		if r.Name == name {
			return r
		}
	}
	return nil
}

func (h *history) next() int64 {
	if len(h.revisions) == 0 {
		return 1
	}
	return h.revisions[len(h.revisions)-1].Revision + 1
}

// renumber makes an old revision the newest one: the template was rolled back to.
func (h *history) renumber(plan *placement.Plan, r *appsv1.ControllerRevision) *appsv1.ControllerRevision {
	number := h.next()
	if r.Revision == number-1 {
		return r
	}
	want := r.DeepCopy()
	want.Revision = number
	change := placement.Updating(placement.Update, r, want)
	if h.changed[r.Name] != nil {
		change.ResourceVersion = "" // the adoption above has moved it
	}
	plan.Add(change)
	h.revisions = slices.DeleteFunc(h.revisions, func(o *appsv1.ControllerRevision) bool { return o == r })
	h.revisions = append(h.revisions, want)
	return want
}

// naming says how a kind names its revisions: the label that carries the hash, and the hash of the
// present content, which also ends the name. The collision count goes into it.
type naming struct {
	label string
	hash  func(collisions int32) string
}

// create adds a revision of that content. A foreign object of the name it would get raises the
// collision count, which makes another name.
func (h *history) create(v *placement.View, plan *placement.Plan, template *corev1.PodTemplateSpec, data []byte, collisions *int32, name naming) *appsv1.ControllerRevision {
	r := &appsv1.ControllerRevision{Data: runtime.RawExtension{Raw: data}, Revision: h.next()}
	r.Namespace = h.object.GetNamespace()
	r.OwnerReferences = []metav1.OwnerReference{h.reference()}
	r.Annotations = maps.Clone(h.object.GetAnnotations())
	r.Labels = maps.Clone(template.Labels)
	if r.Labels == nil {
		r.Labels = map[string]string{}
	}
	prefix := h.object.GetName()
	if len(prefix) > maxRevisionPrefix {
		prefix = prefix[:maxRevisionPrefix]
	}
	// Each round either finds a free name or meets another object: it ends.
	for {
		hash := name.hash(*collisions)
		r.Name, r.Labels[name.label] = prefix+"-"+hash, hash
		if _, taken := v.Revisions.Get(r.Namespace, r.Name); !taken {
			break
		}
		*collisions++
	}
	plan.Add(placement.Change{Verb: placement.Create, Object: r})
	h.revisions = append(h.revisions, r)
	return r
}

// of finds or makes the revision of a template. An older one of the same content becomes the newest
// again: the template was rolled back to.
func (h *history) of(v *placement.View, plan *placement.Plan, template *corev1.PodTemplateSpec, collisions *int32, name func(data []byte) naming) (*appsv1.ControllerRevision, error) {
	data, err := templatePatch(template)
	if err != nil {
		return nil, err
	}
	if n := len(h.revisions); n > 0 && holds(h.revisions[n-1], template, data) {
		return h.revisions[n-1], nil
	}
	for i := len(h.revisions) - 1; i >= 0; i-- {
		if bytes.Equal(h.revisions[i].Data.Raw, data) {
			return h.renumber(plan, h.revisions[i]), nil
		}
	}
	return h.create(v, plan, template, data, collisions, name(data)), nil
}

// truncate deletes the oldest revisions beyond the limit that nobody needs any more.
func (h *history) truncate(plan *placement.Plan, limit int32, live map[string]bool) {
	var dead []*appsv1.ControllerRevision
	for _, r := range h.revisions {
		if !live[r.Name] {
			dead = append(dead, r)
		}
	}
	excess := len(dead) - int(limit)
	if limit < 0 || excess <= 0 {
		return
	}
	for _, r := range dead[:excess] {
		plan.Add(placement.Change{Verb: placement.Delete, Object: r, UID: r.UID})
	}
}

// contentHash names revisions as upstream's history does, so that a set moved between clusters
// keeps its revisions.
func contentHash(data []byte, collisions int32) string {
	h := fnv.New32()
	h.Write(data)
	h.Write([]byte(strconv.Itoa(int(collisions))))
	return rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
}

// templatePatch is a revision's content: the strategic merge patch that gives an object this
// template again.
func templatePatch(template *corev1.PodTemplateSpec) ([]byte, error) {
	data, err := json.Marshal(template)
	if err != nil {
		return nil, err
	}
	fields := map[string]any{}
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, err
	}
	fields["$patch"] = "replace"
	return json.Marshal(map[string]any{"spec": map[string]any{"template": fields}})
}

// templateOf reads the template that a revision holds.
func templateOf(r *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var patch struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(r.Data.Raw, &patch); err != nil {
		return nil, fmt.Errorf("controller revision %s holds no pod template: %w", r.Name, err)
	}
	return &patch.Spec.Template, nil
}

// holds tells whether a revision is of that template. Bytes differ between versions of the API
// that write fields differently; what they mean does not.
func holds(r *appsv1.ControllerRevision, template *corev1.PodTemplateSpec, data []byte) bool {
	if bytes.Equal(r.Data.Raw, data) {
		return true
	}
	held, err := templateOf(r)
	return err == nil && apiequality.Semantic.DeepEqual(held, template)
}
