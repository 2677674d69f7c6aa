package oracle

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
)

// genStorage draws classes, drivers, volumes and claims in namespace one.
func genStorage(t *rapid.T, nodes int) []placement.Object {
	objects := []placement.Object{
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "now"}, Provisioner: "csi.example", VolumeBindingMode: ptr.To(storagev1.VolumeBindingImmediate)},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "later"}, Provisioner: pick(t, "provisioner", "csi.example", "kubernetes.io/no-provisioner"),
			VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer), AllowedTopologies: genTopologies(t)},
		&storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "csi.example"}, Spec: storagev1.CSIDriverSpec{
			StorageCapacity: ptr.To(chance(t, "counts capacity", 2)), PreventPodSchedulingIfMissing: ptr.To(chance(t, "prevents", 3))}},
	}
	for i := range nodes {
		if chance(t, "csi node", 3) {
			continue
		}
		driver := storagev1.CSINodeDriver{Name: "csi.example", NodeID: "x"}
		if chance(t, "limit", 2) {
			driver.Allocatable = &storagev1.VolumeNodeResources{Count: ptr.To(rapid.Int32Range(0, 3).Draw(t, "count"))}
		}
		n := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%02d", i)}}
		if !chance(t, "no driver", 4) {
			n.Spec.Drivers = []storagev1.CSINodeDriver{driver}
		}
		objects = append(objects, n)
	}
	if chance(t, "capacity", 2) {
		objects = append(objects, &storagev1.CSIStorageCapacity{ObjectMeta: metav1.ObjectMeta{Namespace: "one", Name: "space"}, StorageClassName: "later",
			NodeTopology: pick(t, "space for", &metav1.LabelSelector{}, &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelTopologyZone: "a"}}),
			Capacity:     ptr.To(resource.MustParse(pick(t, "space", "1Gi", "4Gi", "9Gi")))})
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "volumes") {
		objects = append(objects, genVolume(t, i))
	}
	for i := range 4 {
		objects = append(objects, genClaim(t, i))
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "attachments") {
		a := &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("a", i)}}
		a.Spec = storagev1.VolumeAttachmentSpec{Attacher: "csi.example", NodeName: fmt.Sprintf("n%02d", rapid.IntRange(0, nodes-1).Draw(t, "node"))}
		a.Spec.Source.PersistentVolumeName = ptr.To(fmt.Sprint("v", rapid.IntRange(0, 4).Draw(t, "volume")))
		objects = append(objects, a)
	}
	return objects
}

func genTopologies(t *rapid.T) []corev1.TopologySelectorTerm {
	if !chance(t, "topologies", 3) {
		return nil
	}
	return []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: corev1.LabelTopologyZone, Values: []string{"a", "b"}}}}}
}

func genVolume(t *rapid.T, i int) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("v", i), Labels: map[string]string{}}}
	v.Spec.StorageClassName = pick(t, "class", "now", "later")
	v.Spec.Capacity = list("storage", pick(t, "capacity", "1Gi", "3Gi", "5Gi"))
	v.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadWriteOncePod}
	v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "csi.example", VolumeHandle: v.Name}
	v.Status.Phase = corev1.VolumeAvailable
	if chance(t, "zone label", 2) {
		v.Labels[pick(t, "label", corev1.LabelTopologyZone, corev1.LabelFailureDomainBetaZone)] = pick(t, "zones", "a", "a__b", "c")
	}
	if chance(t, "node affinity", 2) {
		v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelTopologyZone, Operator: corev1.NodeSelectorOpIn, Values: []string{pick(t, "zone", "a", "b")}}},
		}}}}
	}
	return v
}

func genClaim(t *rapid.T, i int) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "one", Name: fmt.Sprint("c", i), Annotations: map[string]string{}}}
	c.Spec.StorageClassName = ptr.To(pick(t, "class", "now", "later", "later", "later", "missing"))
	c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{pick(t, "mode", corev1.ReadWriteOnce, corev1.ReadWriteOncePod)}
	c.Spec.Resources.Requests = list("storage", pick(t, "size", "1Gi", "2Gi", "4Gi"))
	if chance(t, "bound", 2) {
		c.Spec.VolumeName = fmt.Sprint("v", rapid.IntRange(0, 4).Draw(t, "volume"))
		if !chance(t, "half bound", 6) {
			c.Annotations["pv.kubernetes.io/bind-completed"] = "yes"
		}
	} else if chance(t, "selected", 5) {
		c.Annotations["volume.kubernetes.io/selected-node"] = fmt.Sprintf("n%02d", rapid.IntRange(0, 3).Draw(t, "node"))
	}
	if chance(t, "going", 15) {
		c.DeletionTimestamp = &metav1.Time{Time: start}
	}
	if chance(t, "lost", 15) {
		c.Status.Phase = corev1.ClaimLost
	}
	if chance(t, "ephemeral", 4) {
		c.Name = "new-scratch"
		if !chance(t, "foreign", 4) {
			c.OwnerReferences = []metav1.OwnerReference{{Kind: "Pod", Name: "new", UID: "uid-new", Controller: ptr.To(true)}}
		}
	}
	return c
}

// genVolumes draws a pod's volumes; an old pod has claims and disks only.
func genVolumes(t *rapid.T, p *corev1.Pod, isNew bool) {
	for i := range rapid.IntRange(0, 2).Draw(t, "pod volumes") {
		v := corev1.Volume{Name: fmt.Sprint("vol", i)}
		switch rapid.IntRange(0, 5).Draw(t, "source") {
		case 0:
			v.GCEPersistentDisk = &corev1.GCEPersistentDiskVolumeSource{PDName: pick(t, "disk", "d1", "d2"), ReadOnly: chance(t, "read only", 2)}
		case 1:
			v.ISCSI = &corev1.ISCSIVolumeSource{IQN: "iqn", ReadOnly: chance(t, "read only", 2)}
		case 2:
			if isNew {
				v.Name, v.Ephemeral = "scratch", &corev1.EphemeralVolumeSource{}
				break
			}
			fallthrough
		default:
			v.PersistentVolumeClaim = &corev1.PersistentVolumeClaimVolumeSource{ClaimName: fmt.Sprint("c", rapid.IntRange(0, 4).Draw(t, "claim"))}
		}
		if !slices.ContainsFunc(p.Spec.Volumes, func(o corev1.Volume) bool { return o.Name == v.Name }) {
			p.Spec.Volumes = append(p.Spec.Volumes, v)
		}
	}
}

// TestVolumesAgreeWithUpstream compares decisions about pods with volumes.
func TestVolumesAgreeWithUpstream(t *testing.T) {
	ctx := silent(t)
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.IntRange(1, 4).Draw(t, "nodes")
		objects := []placement.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "one"}}}
		for i := range nodes {
			n := genNode(t, i)
			n.Spec.Taints, n.Spec.Unschedulable = nil, false
			objects = append(objects, n)
		}
		objects = append(objects, genStorage(t, nodes)...)
		for i := range rapid.IntRange(0, 4).Draw(t, "pods") {
			p := genPod(t, fmt.Sprintf("old%02d", i), false)
			p.Namespace, p.Spec.Affinity = "one", nil
			p.Spec.NodeName = fmt.Sprintf("n%02d", rapid.IntRange(0, nodes-1).Draw(t, "node"))
			p.Status.StartTime = &metav1.Time{Time: start.Add(time.Duration(i) * time.Minute)}
			genVolumes(t, p, false)
			objects = append(objects, p)
		}
		pod := genPod(t, "new", false)
		pod.Namespace, pod.Spec.Affinity = "one", nil
		pod.Spec.Priority = ptr.To[int32](2)
		genVolumes(t, pod, true)
		t.Logf("%v", dump(append(slices.Clone(objects), pod)))
		u := newUpstream(ctx, t, append(slices.Clone(objects), pod))
		compare(t, u, objects, pod)
	})
}
