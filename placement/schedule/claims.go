package schedule

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/storage/ephemeral"
	"k8s.io/component-helpers/storage/volume"

	"shoal/placement"
)

type claimKey = types.NamespacedName

// podVolumes are a pod's claims, sorted by what is still to be done about them.
type podVolumes struct {
	bound []*corev1.PersistentVolume
	// lost tells that a claim's volume does not exist.
	lost bool
	// delayed wait for the pod's node, smallest first.
	delayed []*corev1.PersistentVolumeClaim
	// sole are claims that only one pod at a time may use, and users how many do.
	sole  map[string]bool
	users int64
	zones []volumeZone
	// attached are the volumes to attach: unique name → CSI driver.
	attached map[string]string
}

// volumeZone says that a volume can be used only where a node's label has one of the values.
type volumeZone struct {
	key    string
	values []string
}

// claimName is the claim a volume uses, "" if it uses none. Generic ephemeral volumes have a
// claim of their own, named after pod and volume.
func claimName(pod *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return ephemeral.VolumeClaimName(pod, v)
	default:
		return ""
	}
}

// checkClaims fills volumes; it returns why the pod can go nowhere for now.
func (c *class) checkClaims() (refusal string) {
	pod, view := c.pod.Object, c.batch.view
	if !usesClaims(pod) {
		return ""
	}
	v := &podVolumes{sole: map[string]bool{}, attached: map[string]string{}}
	claims := make([]*corev1.PersistentVolumeClaim, len(pod.Spec.Volumes))
	for i := range pod.Spec.Volumes {
		if source := &pod.Spec.Volumes[i]; source.PersistentVolumeClaim != nil || source.Ephemeral != nil {
			name := claimName(pod, source)
			claim, ok := view.Claims.Get(pod.Namespace, name)
			if !ok && source.PersistentVolumeClaim != nil {
				return fmt.Sprintf("persistentvolumeclaim %q not found", name)
			}
			claims[i] = claim
		}
	}
	for i, claim := range claims {
		source := &pod.Spec.Volumes[i]
		name := claimName(pod, source)
		if name == "" {
			continue
		}
		if refusal := unusable(pod, source, name, claim); refusal != "" {
			return refusal
		}
		if source.PersistentVolumeClaim != nil && slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteOncePod) && !v.sole[name] {
			v.sole[name] = true
			if c.batch.claimUsers(claimKey{Namespace: pod.Namespace, Name: name}) > 0 {
				v.users++
			}
		}
	}
	for _, claim := range claims {
		if claim != nil {
			if refusal := v.sort(c.batch, claim); refusal != "" {
				return refusal
			}
		}
	}
	if refusal := v.findZones(view, pod, claims); refusal != "" {
		return refusal
	}
	slices.SortStableFunc(v.delayed, func(a, b *corev1.PersistentVolumeClaim) int {
		x, y := a.Spec.Resources.Requests[corev1.ResourceStorage], b.Spec.Resources.Requests[corev1.ResourceStorage]
		return x.Cmp(y)
	})
	c.batch.eachAttached(pod, func(name, driver string) { v.attached[name] = driver })
	c.volumes = v
	return ""
}

func usesClaims(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.PersistentVolumeClaim != nil || v.Ephemeral != nil })
}

// unusable says what is wrong with a claim itself.
func unusable(pod *corev1.Pod, source *corev1.Volume, name string, claim *corev1.PersistentVolumeClaim) string {
	switch {
	case claim == nil:
		return fmt.Sprintf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name)
	case claim.Status.Phase == corev1.ClaimLost:
		return fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName)
	case claim.DeletionTimestamp != nil:
		return fmt.Sprintf("persistentvolumeclaim %q is being deleted", name)
	case source.Ephemeral != nil:
		if err := ephemeral.VolumeIsForPod(pod, claim); err != nil {
			return err.Error()
		}
	}
	return ""
}

// sort puts a claim to the bound or to the delayed ones. One that should be bound by itself and
// is not yet refuses the pod everywhere.
func (v *podVolumes) sort(b *batch, claim *corev1.PersistentVolumeClaim) (refusal string) {
	if claim.Spec.VolumeName != "" && metav1.HasAnnotation(claim.ObjectMeta, volume.AnnBindCompleted) {
		if pv, ok := b.view.Volumes.Get("", claim.Spec.VolumeName); ok {
			v.bound = append(v.bound, pv)
		} else {
			v.lost = true
		}
		return ""
	}
	name := volume.GetPersistentVolumeClaimClass(claim)
	class, ok := b.view.StorageClasses.Get("", name)
	switch {
	case name == "" || !ok || claim.Spec.VolumeName != "":
		return "pod has unbound immediate PersistentVolumeClaims"
	case class.VolumeBindingMode == nil:
		return fmt.Sprintf("VolumeBindingMode not set for StorageClass %q", name)
	case *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer:
		return "pod has unbound immediate PersistentVolumeClaims"
	}
	v.delayed = append(v.delayed, claim)
	return ""
}

// claimUsers is how many pods on nodes use a claim by name, those of this batch included.
func (b *batch) claimUsers(key claimKey) int {
	users := b.view.ClaimUsers(key.Namespace, key.Name)
	for _, s := range b.log {
		if s.pod == nil || s.pod.Object.Namespace != key.Namespace {
			continue
		}
		for i := range s.pod.Object.Spec.Volumes {
			if claim := s.pod.Object.Spec.Volumes[i].PersistentVolumeClaim; claim != nil && claim.ClaimName == key.Name {
				users++
			}
		}
	}
	return users
}

// soleUses counts a pod's uses of the claims that only one pod may use.
func (v *podVolumes) soleUses(pod *corev1.Pod) (uses int64) {
	for i := range pod.Spec.Volumes {
		if claim := pod.Spec.Volumes[i].PersistentVolumeClaim; claim != nil && v.sole[claim.ClaimName] {
			uses++
		}
	}
	return uses
}

// claimBook is what the batch has decided about claims: which volume each gets, or on which node
// one is to be made for it.
type claimBook struct {
	promised  map[string]claimKey // volume → claim
	volumeOf  map[claimKey]string
	nodeOf    map[claimKey]string
	byClass   map[string][]*corev1.PersistentVolume // volumes by storage class, by name
	spaces    map[string][]*storagev1.CSIStorageCapacity
	attached  map[string]map[string]string // by node: volumes that VolumeAttachments name
	collected bool
}

func (k *claimBook) collect(v *placement.View) {
	if k.collected {
		return
	}
	*k = claimBook{
		promised: map[string]claimKey{}, volumeOf: map[claimKey]string{}, nodeOf: map[claimKey]string{},
		byClass: map[string][]*corev1.PersistentVolume{}, spaces: map[string][]*storagev1.CSIStorageCapacity{},
		attached: map[string]map[string]string{}, collected: true,
	}
	for _, pv := range v.Volumes.All() {
		class := volume.GetPersistentVolumeClass(pv)
		k.byClass[class] = append(k.byClass[class], pv)
	}
	for _, space := range v.CSICapacities.All() {
		k.spaces[space.StorageClassName] = append(k.spaces[space.StorageClassName], space)
	}
	for _, a := range v.Attachments.All() {
		if a.Spec.Attacher == "" || a.Spec.Source.PersistentVolumeName == nil {
			continue
		}
		if pv, ok := v.Volumes.Get("", *a.Spec.Source.PersistentVolumeName); ok && pv.Spec.CSI != nil {
			if k.attached[a.Spec.NodeName] == nil {
				k.attached[a.Spec.NodeName] = map[string]string{}
			}
			k.attached[a.Spec.NodeName][uniqueName(a.Spec.Attacher, pv.Spec.CSI.VolumeHandle)] = a.Spec.Attacher
		}
	}
}
