package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// keeper is a StatefulSet whose pods write down each of their starts on a volume of their own.
func keeper(name string, replicas int) string {
	return stateful(name, replicas) + fmt.Sprintf(`
      securityContext: {runAsUser: 1234, fsGroup: 4321}
      containers:
      - name: main
        image: %s
        command: [sh, -c, "echo start >> /data/starts && exec e2e serve 8080"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
`, testImage)
}

// volumesWithoutSetup: a StatefulSet with volume claims works on a fresh cluster, keeps its data over its pods' deaths, and its volumes go
// with their claims.
func volumesWithoutSetup(t *testing.T, c *cluster) {
	ns := c.namespace(t, "volumes")
	c.apply(t, ns, keeper("db", 2))
	wants(t, c.kubectl(t, "-n", ns, "rollout", "status", "statefulset/db", "--timeout=60s"), "roll out complete")
	wants(t, c.kubectl(t, "-n", ns, "get", "pvc"), "data-db-0", "data-db-1", "Bound", "local")
	wants(t, c.kubectl(t, "get", "storageclass"), "local (default)", "shoal.io/local", "WaitForFirstConsumer")

	uid := c.podIs(t, ns, "db-0", "running", ready).UID
	c.kubectl(t, "-n", ns, "delete", "pod", "db-0")
	c.podIs(t, ns, "db-0", "there again", func(pod *corev1.Pod) bool { return ready(pod) && pod.UID != uid })
	if starts := c.kubectl(t, "-n", ns, "exec", "db-0", "--", "cat", "/data/starts"); strings.Count(starts, "start") != 2 {
		t.Errorf("the volume of db-0 tells of its starts: %q, want 2 of them", starts)
	}

	claim, err := c.client.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "data-db-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(c.Peers[0].Dir, "volumes", claim.Spec.VolumeName)
	if _, err := os.Stat(folder); err != nil {
		t.Error(err)
	}
	c.kubectl(t, "-n", ns, "delete", "statefulset", "db")
	c.kubectl(t, "-n", ns, "delete", "pvc", "--all")
	eventually(t, soon, "the volume goes with its claim", func(ctx context.Context) error {
		if _, err := c.client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the volume is still there: %w", err)
		}
		if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("its folder is still there: %w", err)
		}
		return nil
	})
}

// volumesThatCannotBe: what node-local volumes cannot do is said, and volumes that an administrator has made are bound.
func volumesThatCannotBe(t *testing.T, c *cluster) {
	ns := c.namespace(t, "othervolumes")
	c.apply(t, ns, `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: shared}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: made}
spec: {storageClassName: "", accessModes: [ReadWriteOnce], volumeName: made-by-hand, resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: made-by-hand}
spec: {capacity: {storage: 1Mi}, accessModes: [ReadWriteOnce], persistentVolumeReclaimPolicy: Retain, hostPath: {path: `+t.TempDir()+`}}
---
apiVersion: v1
kind: Pod
metadata: {name: ephemeral, labels: {app: ephemeral}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: `+testImage+`, command: [sh, -c, "date > /mnt/made/date && date > /mnt/scratch/date && exec e2e pause"],
    volumeMounts: [{name: made, mountPath: /mnt/made}, {name: scratch, mountPath: /mnt/scratch}]}]
  volumes:
  - {name: made, persistentVolumeClaim: {claimName: made}}
  - {name: scratch, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}}
`)
	t.Cleanup(func() {
		_ = c.client.CoreV1().PersistentVolumes().Delete(context.Background(), "made-by-hand", metav1.DeleteOptions{})
	})
	c.apply(t, ns, strings.Replace(sh("wants-shared", "exec e2e pause"), "  containers:", `  volumes: [{name: shared, persistentVolumeClaim: {claimName: shared}}]
  containers:`, 1))
	c.podIs(t, ns, "ephemeral", "ready", ready)
	c.eventSays(t, ns, "shared", "ProvisioningFailed", "ReadWriteMany")
}
