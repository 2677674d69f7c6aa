package schedule

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

type claimKey = types.NamespacedName

// claimName is the claim a volume uses, "" if it uses none. Generic ephemeral volumes have a
// claim of their own, named after pod and volume.
func claimName(pod *corev1.Pod, volume *corev1.Volume) string {
	switch {
	case volume.PersistentVolumeClaim != nil:
		return volume.PersistentVolumeClaim.ClaimName
	case volume.Ephemeral != nil:
		return pod.Name + "-" + volume.Name
	default:
		return ""
	}
}

// checkVolumes looks at the pod's claims: a missing one, or one that should be bound by itself
// and is not yet, refuses the pod everywhere; bound ones give the node affinity of their volumes;
// those that wait for their first consumer are to be provisioned where the pod goes.
func (c *class) checkVolumes() []*nodeaffinity.NodeSelector {
	pod := c.pod.Object
	var selectors []*nodeaffinity.NodeSelector
	for i := range pod.Spec.Volumes {
		name := claimName(pod, &pod.Spec.Volumes[i])
		if name == "" {
			continue
		}
		claim, ok := c.batch.view.Claims.Get(pod.Namespace, name)
		if !ok {
			c.refusal = fmt.Sprintf("persistentvolumeclaim %q not found", name)
			return nil
		}
		if claim.DeletionTimestamp != nil {
			c.refusal = fmt.Sprintf("persistentvolumeclaim %q is being deleted", name)
			return nil
		}
		if claim.Spec.VolumeName == "" {
			if !c.waitsForConsumer(claim) {
				c.refusal = messageUnboundClaims
				return nil
			}
			c.provision = append(c.provision, claimKey{Namespace: pod.Namespace, Name: name})
			continue
		}
		volume, ok := c.batch.view.Volumes.Get("", claim.Spec.VolumeName)
		if !ok || volume.Spec.NodeAffinity == nil || volume.Spec.NodeAffinity.Required == nil {
			continue
		}
		selector, err := nodeaffinity.NewNodeSelector(volume.Spec.NodeAffinity.Required)
		if err != nil {
			c.refusal = fmt.Sprintf("persistentvolume %q has an invalid node affinity", volume.Name)
			return nil
		}
		selectors = append(selectors, selector)
	}
	return selectors
}

func (c *class) waitsForConsumer(claim *corev1.PersistentVolumeClaim) bool {
	if claim.Spec.StorageClassName == nil {
		return false
	}
	class, ok := c.batch.view.StorageClasses.Get("", *claim.Spec.StorageClassName)
	return ok && class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}
