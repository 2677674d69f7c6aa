package schedule

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"shoal/placement"
)

// usesDisks tells whether a pod names disks in its own spec that two pods on a node cannot share.
func usesDisks(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.GCEPersistentDisk != nil || v.AWSElasticBlockStore != nil || v.RBD != nil || v.ISCSI != nil
	})
}

// diskTaken tells whether a pod on the slot uses one of the pod's disks.
func (t *trial) diskTaken() bool {
	taken := false
	t.eachPod(func(p *placement.Pod) {
		for i := range t.class.pod.Object.Spec.Volumes {
			for j := range p.Object.Spec.Volumes {
				taken = taken || sameDisk(&t.class.pod.Object.Spec.Volumes[i], &p.Object.Spec.Volumes[j])
			}
		}
	})
	return taken
}

// sameDisk tells whether two volumes are one disk that cannot be mounted twice: disks of GCE,
// iSCSI and RBD can if both mounts only read, those of EBS never.
func sameDisk(a, b *corev1.Volume) bool {
	switch {
	case a.GCEPersistentDisk != nil && b.GCEPersistentDisk != nil:
		x, y := a.GCEPersistentDisk, b.GCEPersistentDisk
		return x.PDName == y.PDName && (!x.ReadOnly || !y.ReadOnly)
	case a.AWSElasticBlockStore != nil && b.AWSElasticBlockStore != nil:
		return a.AWSElasticBlockStore.VolumeID == b.AWSElasticBlockStore.VolumeID
	case a.ISCSI != nil && b.ISCSI != nil:
		return a.ISCSI.IQN == b.ISCSI.IQN && (!a.ISCSI.ReadOnly || !b.ISCSI.ReadOnly)
	case a.RBD != nil && b.RBD != nil:
		x, y := a.RBD, b.RBD
		return x.RBDPool == y.RBDPool && x.RBDImage == y.RBDImage && (!x.ReadOnly || !y.ReadOnly) &&
			slices.ContainsFunc(x.CephMonitors, func(m string) bool { return slices.Contains(y.CephMonitors, m) })
	default:
		return false
	}
}
