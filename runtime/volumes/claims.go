package volumes

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// claim finds where a pod's persistent volume is on this node. Local and hostPath volumes are supported; who binds claims and whether the
// volume belongs to this node was decided before the pod came here.
func (m *Manager) claim(ctx context.Context, pod *corev1.Pod, name string, readOnly bool) (source, error) {
	if m.cfg.Objects.PersistentVolumeClaim == nil || m.cfg.Objects.PersistentVolume == nil {
		return source{}, errors.New("persistent volumes are not supported on this node")
	}
	pvc, err := m.cfg.Objects.PersistentVolumeClaim(ctx, pod.Namespace, name)
	if err != nil {
		return source{}, err
	}
	if !bound(pvc) && m.cfg.Provision != nil {
		if pvc, err = m.cfg.Provision(ctx, pvc); err != nil {
			return source{}, err
		}
	}
	if !bound(pvc) {
		return source{}, fmt.Errorf("persistentvolumeclaim %q is not bound", name)
	}
	pv, err := m.cfg.Objects.PersistentVolume(ctx, pvc.Spec.VolumeName)
	if err != nil {
		return source{}, err
	}
	if ref := pv.Spec.ClaimRef; ref == nil || ref.UID != pvc.UID {
		return source{}, fmt.Errorf("persistentvolume %q is bound to another claim than %q", pv.Name, name)
	}
	s := source{readOnly: readOnly, block: pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == corev1.PersistentVolumeBlock}
	switch {
	case pv.Spec.HostPath != nil:
		s.path = pv.Spec.HostPath.Path
		if err := checkHostPath(pv.Spec.HostPath); err != nil {
			return source{}, err
		}
		return s, nil
	case pv.Spec.Local != nil:
		s.path = pv.Spec.Local.Path
	default:
		return source{}, fmt.Errorf("persistentvolume %q is of a kind that is not supported on this node (supported: local, hostPath)", pv.Name)
	}
	if _, exists, err := fileKind(s.path); err != nil || !exists {
		return source{}, fmt.Errorf("path %s of persistentvolume %q does not exist: %w", s.path, pv.Name, errors.Join(err, errors.New("make it on the node first")))
	}
	if s.block || readOnly {
		return s, nil
	}
	return s, setOwnership(pod, s.path, false)
}

func bound(pvc *corev1.PersistentVolumeClaim) bool {
	return pvc.Status.Phase == corev1.ClaimBound && pvc.Spec.VolumeName != ""
}
