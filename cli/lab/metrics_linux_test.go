package lab

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// burner is a Deployment that uses all the processor time it may have, as long as its file says so, and its autoscaler.
func burner(name string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: 1
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: %[2]s
        command: [sh, -c, "while [ -z \"$(cat /calm/calm)\" ]; do for i in 1 2 3 4 5 6 7 8 9; do :; done; done; exec e2e pause"]
        resources: {requests: {cpu: 20m, memory: 8Mi}, limits: {cpu: 60m}}
        volumeMounts: [{name: calm, mountPath: /calm}]
      volumes: [{name: calm, configMap: {name: %[1]s}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: %[1]s}
data: {calm: ""}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: %[1]s}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: %[1]s}
  minReplicas: 1
  maxReplicas: 3
  metrics:
  - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}
  - {type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 1Gi}}}
  behavior:
    scaleUp: {policies: [{type: Pods, value: 1, periodSeconds: 15}]}
    scaleDown: {stabilizationWindowSeconds: 0}
`, name, testImage)
}

// scalesWithLoad: kubectl top shows what is used, and an autoscaler acts on it in both directions, by its policies.
func scalesWithLoad(t *testing.T, c *cluster) {
	ns := c.namespace(t, "scaled")
	c.apply(t, ns, burner("busy"))
	top := func(args ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			out, err := c.try(ctx, "", tools.kubectl, append([]string{"top"}, args...)...)
			if err == nil && !strings.Contains(out, "Mi") {
				err = fmt.Errorf("it says %q", out)
			}
			return err
		}
	}
	eventually(t, soon, "kubectl top nodes", top("nodes"))
	eventually(t, soon, "kubectl top pods with a selector", top("pods", "-n", ns, "-l", "app=busy", "--containers"))
	wants(t, c.kubectl(t, "-n", ns, "get", "pods.metrics.k8s.io"), "NAME", "CPU", "MEMORY", "WINDOW", "busy-")
	wants(t, c.kubectl(t, "get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes?labelSelector=none%3Dsuch"), `"items":[]`)

	c.replicas(t, ns, "busy", 3)
	if shown := c.kubectl(t, "-n", ns, "get", "hpa", "busy"); !strings.Contains(shown, "%/50%") {
		t.Errorf("kubectl get hpa shows no figures:\n%s", shown)
	}
	c.kubectl(t, "-n", ns, "patch", "configmap", "busy", "-p", `{"data":{"calm":"yes"}}`)
	c.replicas(t, ns, "busy", 1)
	hpa, err := c.client.AutoscalingV2().HorizontalPodAutoscalers(ns).Get(t.Context(), "busy", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, condition := range hpa.Status.Conditions {
		if condition.Type == autoscalingv2.ScalingActive && condition.Status != "True" {
			t.Errorf("the autoscaler is not active: %s", condition.Message)
		}
	}
}

// replicas waits until a Deployment is as large as its autoscaler wants it.
func (c *cluster) replicas(t *testing.T, namespace, name string, n int32) {
	t.Helper()
	eventually(t, 4*time.Minute, fmt.Sprintf("%s has %d replicas", name, n), func(ctx context.Context) error {
		d, err := c.client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil && *d.Spec.Replicas != n {
			err = fmt.Errorf("it has %d", *d.Spec.Replicas)
		}
		return err
	})
}
