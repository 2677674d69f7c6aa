package peer

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
)

// TestAPodGetsTheVolumeThatItsNodeHas: on the way through the API and the store, a claim that waits for its first pod gets the volume that
// exists on one node, and the pod that node, once claim and volume are joined. Joining them is upstream's binder's part, which is played here.
func TestAPodGetsTheVolumeThatItsNodeHas(t *testing.T) {
	f := newField(t, map[string]string{"without-disk": "4", "with-disk": "4"})
	namespace, quantity := f.namespace(t), corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	create := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	create(f.client.StorageV1().StorageClasses().Create(t.Context(), &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: "disks-" + namespace}, Provisioner: volume.NotSupportedProvisioner, VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
	}, metav1.CreateOptions{}))
	pv, err := f.client.CoreV1().PersistentVolumes().Create(t.Context(), &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "disk-" + namespace},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName: "disks-" + namespace, AccessModes: modes, Capacity: quantity,
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/disk"}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"with-disk"}}},
			}}}},
		},
	}, metav1.CreateOptions{})
	create(pv, err)
	pv.Status.Phase = corev1.VolumeAvailable
	create(f.client.CoreV1().PersistentVolumes().UpdateStatus(t.Context(), pv, metav1.UpdateOptions{}))
	create(f.client.CoreV1().PersistentVolumeClaims(namespace).Create(t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "data"},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To("disks-" + namespace), AccessModes: modes, Resources: corev1.VolumeResourceRequirements{Requests: quantity},
		},
	}, metav1.CreateOptions{}))
	create(f.client.CoreV1().Pods(namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "db", Image: "db"}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"},
			}}},
		},
	}, metav1.CreateOptions{}))

	claims := f.client.CoreV1().PersistentVolumeClaims(namespace)
	claim, err := claims.Get(t.Context(), "data", metav1.GetOptions{})
	create(claim, err)
	await(t, func() string {
		pv, err := f.client.CoreV1().PersistentVolumes().Get(t.Context(), "disk-"+namespace, metav1.GetOptions{})
		if err != nil || pv.Spec.ClaimRef == nil {
			return fmt.Sprintf("the volume is given to nobody: %v", err)
		}
		if ref := pv.Spec.ClaimRef; ref.UID != claim.UID || ref.Namespace != namespace || ref.Name != "data" {
			t.Fatalf("the volume is given to %+v", ref)
		}
		return ""
	})
	if pods := f.pods(t, namespace); pods[0].Spec.NodeName != "" {
		t.Fatalf("the pod is bound to %s before claim and volume are joined", pods[0].Spec.NodeName)
	}
	claim.Spec.VolumeName = "disk-" + namespace
	claim.Annotations = map[string]string{volume.AnnBindCompleted: "yes", volume.AnnBoundByController: "yes"}
	claim, err = claims.Update(t.Context(), claim, metav1.UpdateOptions{})
	create(claim, err)
	claim.Status.Phase, claim.Status.AccessModes, claim.Status.Capacity = corev1.ClaimBound, modes, quantity
	create(claims.UpdateStatus(t.Context(), claim, metav1.UpdateOptions{}))
	await(t, func() string {
		if pods := f.pods(t, namespace); pods[0].Spec.NodeName != "with-disk" {
			return fmt.Sprintf("the pod is on %q", pods[0].Spec.NodeName)
		}
		return ""
	})
}
