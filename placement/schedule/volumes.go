package schedule

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/storage/ephemeral"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// judgeVolumes runs the filters about volumes.
func (t *trial) judgeVolumes(n *node) objection {
	c := t.class
	if c.disks && t.diskTaken() {
		return objection{[]string{reasonDisk}, false}
	}
	if c.volumes == nil {
		return objection{}
	}
	if c.volumes.users > 0 && c.volumes.users-t.claimsOff > 0 {
		return objection{[]string{reasonClaimInUse}, false}
	}
	if reason := t.attachable(n); reason != "" {
		return objection{[]string{reason}, false}
	}
	c.batch.claims.collect(c.batch.view)
	if f := c.batch.findVolumes(c.volumes, n.Object); len(f.reasons) > 0 {
		return objection{f.reasons, true}
	}
	if !c.volumes.inZone(n.Object) {
		return objection{[]string{reasonVolumeZone}, true}
	}
	return objection{}
}

// found is what one node offers to a pod's claims.
type found struct {
	reasons []string
	bind    []VolumeBinding
	made    []provision
}

// provision is a volume to be made for a claim, where a node's storage is counted out of that space.
type provision struct {
	claim *corev1.PersistentVolumeClaim
	space *storagev1.CSIStorageCapacity
}

// findVolumes looks for volumes on a node, or for somebody who can make them there.
func (b *batch) findVolumes(v *podVolumes, n *corev1.Node) (f found) {
	if slices.ContainsFunc(v.bound, func(pv *corev1.PersistentVolume) bool { return volume.CheckNodeAffinity(pv, n.Labels) != nil }) {
		f.reasons = append(f.reasons, reasonVolume)
	}
	found, space := true, true
	var make []*corev1.PersistentVolumeClaim
	var match []*corev1.PersistentVolumeClaim
	for _, claim := range v.delayed {
		switch selected := b.selectedNode(claim); selected {
		case "":
			match = append(match, claim)
		case n.Name:
			make = append(make, claim)
		default:
			found = false
		}
	}
	if found {
		make = append(make, b.matchVolumes(match, n, &f)...)
		f.made, found, space = b.provisions(make, n)
	}
	if !found {
		f.reasons = append(f.reasons, reasonNoVolume)
	}
	if !space {
		f.reasons = append(f.reasons, reasonNoSpace)
	}
	if v.lost {
		f.reasons = append(f.reasons, reasonVolumeGone)
	}
	return f
}

func (b *batch) selectedNode(claim *corev1.PersistentVolumeClaim) string {
	return cmp.Or(claim.Annotations[volume.AnnSelectedNode], b.claims.nodeOf[keyOf(claim)])
}

func keyOf(o metav1.Object) claimKey { return claimKey{Namespace: o.GetNamespace(), Name: o.GetName()} }

// matchVolumes chooses existing volumes, and returns the claims for which there is none.
func (b *batch) matchVolumes(claims []*corev1.PersistentVolumeClaim, n *corev1.Node, f *found) (left []*corev1.PersistentVolumeClaim) {
	chosen := map[string]*corev1.PersistentVolume{}
	for _, claim := range claims {
		key := keyOf(claim)
		candidates := b.claims.byClass[volume.GetPersistentVolumeClaimClass(claim)]
		if name, ok := b.claims.volumeOf[key]; ok {
			candidates = slices.DeleteFunc(slices.Clone(candidates), func(pv *corev1.PersistentVolume) bool { return pv.Name != name })
		} else if len(b.claims.promised) > 0 {
			candidates = slices.DeleteFunc(slices.Clone(candidates), func(pv *corev1.PersistentVolume) bool {
				_, promised := b.claims.promised[pv.Name]
				return promised
			})
		}
		pv, err := volume.FindMatchingVolume(claim, candidates, n, chosen, true, true)
		if err != nil || pv == nil {
			left = append(left, claim)
			continue
		}
		chosen[pv.Name] = pv
		f.bind = append(f.bind, VolumeBinding{Claim: key, Volume: pv.Name})
	}
	return left
}

// provisions tells whether volumes can be made for the claims where the node is, and with space.
func (b *batch) provisions(claims []*corev1.PersistentVolumeClaim, n *corev1.Node) (made []provision, possible, space bool) {
	for _, claim := range claims {
		class, ok := b.view.StorageClasses.Get("", volume.GetPersistentVolumeClaimClass(claim))
		if !ok || class.Provisioner == "" || class.Provisioner == volume.NotSupportedProvisioner || !allowed(class.AllowedTopologies, n) {
			return nil, false, true
		}
		enough, space := b.spaceFor(claim, class, n)
		if !enough {
			return nil, true, false
		}
		made = append(made, provision{claim, space})
	}
	return made, true, true
}

// allowed tells whether a node is in one of the topologies; none at all means anywhere.
func allowed(terms []corev1.TopologySelectorTerm, n *corev1.Node) bool {
	return len(terms) == 0 || slices.ContainsFunc(terms, func(term corev1.TopologySelectorTerm) bool {
		return len(term.MatchLabelExpressions) > 0 &&
			!slices.ContainsFunc(term.MatchLabelExpressions, func(r corev1.TopologySelectorLabelRequirement) bool {
				value, ok := n.Labels[r.Key]
				return !ok || !slices.Contains(r.Values, value)
			})
	})
}

// spaceFor finds the storage capacity that a driver has published for the node, if it publishes any.
func (b *batch) spaceFor(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, n *corev1.Node) (bool, *storagev1.CSIStorageCapacity) {
	size, sized := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	driver, ok := b.view.CSIDrivers.Get("", class.Provisioner)
	if !sized || !ok || !ptr.Deref(driver.Spec.StorageCapacity, false) {
		return true, nil
	}
	for _, space := range b.claims.spaces[class.Name] {
		limit := cmp.Or(space.MaximumVolumeSize, space.Capacity)
		if limit != nil && limit.Value() >= size.Value() && space.NodeTopology != nil &&
			selectorOf(space.NodeTopology).Matches(labels.Set(n.Labels)) {
			return true, space
		}
	}
	return false, nil
}

// take decides about a placed pod's claims, so that no other pod of the batch gets what they got.
func (b *batch) take(v *podVolumes, n *corev1.Node) (provisioned []claimKey, bound []VolumeBinding) {
	b.claims.collect(b.view)
	f := b.findVolumes(v, n)
	for _, p := range f.made {
		b.claims.nodeOf[keyOf(p.claim)] = n.Name
		provisioned = append(provisioned, keyOf(p.claim))
	}
	for _, binding := range f.bind {
		b.claims.promised[binding.Volume] = binding.Claim
		b.claims.volumeOf[binding.Claim] = binding.Volume
	}
	return provisioned, f.bind
}

// volumeScore prefers nodes where a smaller share of the volumes or of the storage is used up.
func (b *batch) volumeScore(v *podVolumes, n *corev1.Node) int64 {
	if len(v.delayed) == 0 {
		return 0
	}
	b.claims.collect(b.view)
	f := b.findVolumes(v, n)
	type use struct{ requested, capacity int64 }
	uses := map[string]use{}
	for _, binding := range f.bind {
		claim, _ := b.view.Claims.Get(binding.Claim.Namespace, binding.Claim.Name)
		pv, _ := b.view.Volumes.Get("", binding.Volume)
		u := uses[pv.Spec.StorageClassName]
		u.requested += valueOf(claim.Spec.Resources.Requests)
		u.capacity += valueOf(pv.Spec.Capacity)
		uses[pv.Spec.StorageClassName] = u
	}
	if len(f.bind) == 0 {
		for _, p := range f.made {
			if p.space == nil {
				continue
			}
			name := volume.GetPersistentVolumeClaimClass(p.claim)
			u := uses[name]
			u.requested += valueOf(p.claim.Spec.Resources.Requests)
			if p.space.Capacity != nil {
				u.capacity = p.space.Capacity.Value()
			}
			uses[name] = u
		}
	}
	if len(uses) == 0 {
		return 0
	}
	var sum int64
	for u := range maps.Values(uses) {
		if u.capacity > 0 && u.requested <= u.capacity {
			sum += maxScore - share(u.requested, u.capacity)
		}
	}
	return int64(math.Round(float64(sum) / float64(len(uses))))
}

// share is a part in hundredths of a whole that is not smaller, rounded down.
func share(part, whole int64) int64 {
	if part > math.MaxInt64/maxScore {
		return part / (whole / maxScore)
	}
	return part * maxScore / whole
}

func valueOf(list corev1.ResourceList) int64 {
	quantity := list[corev1.ResourceStorage]
	return quantity.Value()
}

var zoneLabels = []string{
	corev1.LabelFailureDomainBetaZone, corev1.LabelFailureDomainBetaRegion, corev1.LabelTopologyZone, corev1.LabelTopologyRegion,
}

// findZones reads the zones that bound volumes are labelled with; several are separated by "__".
func (v *podVolumes) findZones(view *placement.View, pod *corev1.Pod, claims []*corev1.PersistentVolumeClaim) (refusal string) {
	for i, claim := range claims {
		if pod.Spec.Volumes[i].PersistentVolumeClaim == nil || claim.Spec.VolumeName == "" {
			continue
		}
		pv, ok := view.Volumes.Get("", claim.Spec.VolumeName)
		if !ok {
			return fmt.Sprintf("persistentvolume %q not found", claim.Spec.VolumeName)
		}
		for _, key := range zoneLabels {
			if value, ok := pv.Labels[key]; ok {
				if zones := zonesIn(value); zones != nil {
					v.zones = append(v.zones, volumeZone{key, zones})
				}
			}
		}
	}
	return ""
}

// zonesIn is nil for a list with an empty element, which upstream ignores as malformed.
func zonesIn(value string) []string {
	zones := strings.Split(value, "__")
	for i := range zones {
		if zones[i] = strings.TrimSpace(zones[i]); zones[i] == "" {
			return nil
		}
	}
	return zones
}

// inZone tells whether a node is in the zones of all volumes; one without any zone label is
// anywhere.
func (v *podVolumes) inZone(n *corev1.Node) bool {
	labelled := slices.ContainsFunc(zoneLabels, func(key string) bool { _, ok := n.Labels[key]; return ok })
	if !labelled {
		return true
	}
	newer := map[string]string{
		corev1.LabelFailureDomainBetaZone: corev1.LabelTopologyZone, corev1.LabelFailureDomainBetaRegion: corev1.LabelTopologyRegion,
	}
	for _, zone := range v.zones {
		value, ok := n.Labels[zone.key]
		if !ok {
			value, ok = n.Labels[cmp.Or(newer[zone.key], zone.key)]
		}
		if !ok || !slices.Contains(zone.values, value) {
			return false
		}
	}
	return true
}

func uniqueName(driver, handle string) string { return driver + "/" + handle }

// eachAttached calls f for the volumes that a pod has attached to its node by a CSI driver.
func (b *batch) eachAttached(pod *corev1.Pod, f func(name, driver string)) {
	for i := range pod.Spec.Volumes {
		name := claimName(pod, &pod.Spec.Volumes[i])
		if name == "" {
			continue
		}
		claim, ok := b.view.Claims.Get(pod.Namespace, name)
		if !ok || pod.Spec.Volumes[i].Ephemeral != nil && ephemeral.VolumeIsForPod(pod, claim) != nil {
			continue
		}
		if pv, ok := b.view.Volumes.Get("", claim.Spec.VolumeName); ok && claim.Spec.VolumeName != "" {
			if pv.Spec.CSI != nil && pv.Spec.CSI.Driver != "" && pv.Spec.CSI.VolumeHandle != "" {
				f(uniqueName(pv.Spec.CSI.Driver, pv.Spec.CSI.VolumeHandle), pv.Spec.CSI.Driver)
			}
			continue
		}
		if class, ok := b.view.StorageClasses.Get("", volume.GetPersistentVolumeClaimClass(claim)); ok && class.Provisioner != "" {
			f(uniqueName(class.Provisioner, "unbound-"+pod.Namespace+"/"+name), class.Provisioner)
		}
	}
}

// attachable says why a node cannot attach the pod's volumes too, "" if it can: the driver is not
// there, or its number of volumes is reached.
func (t *trial) attachable(n *node) string {
	b, v := t.class.batch, t.class.volumes
	if len(v.attached) == 0 {
		return ""
	}
	csi, known := b.view.CSINodes.Get("", n.Name)
	limits := map[string]int{}
	if known {
		for _, driver := range csi.Spec.Drivers {
			if driver.Allocatable != nil && driver.Allocatable.Count != nil {
				limits[driver.Name] = int(*driver.Allocatable.Count)
			}
		}
	}
	for _, driver := range slices.Sorted(maps.Values(v.attached)) {
		spec, ok := b.view.CSIDrivers.Get("", driver)
		installed := known && slices.ContainsFunc(csi.Spec.Drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == driver })
		if ok && ptr.Deref(spec.Spec.PreventPodSchedulingIfMissing, false) && !installed {
			return driver + " CSI driver is not installed on the node"
		}
	}
	if len(limits) == 0 {
		return ""
	}
	b.claims.collect(b.view)
	there := map[string]string{}
	t.eachPod(func(p *placement.Pod) {
		b.eachAttached(p.Object, func(name, driver string) { there[name] = driver })
	})
	count := map[string]int{}
	for _, driver := range there {
		count[driver]++
	}
	for name, driver := range b.claims.attached[n.Name] {
		if _, counted := there[name]; !counted {
			count[driver]++
		}
	}
	added := map[string]bool{}
	for name, driver := range v.attached {
		if _, shared := there[name]; !shared {
			count[driver]++
			added[driver] = true
		}
	}
	for driver := range added {
		if limit, ok := limits[driver]; ok && count[driver] > limit {
			return reasonVolumeCount
		}
	}
	return ""
}
