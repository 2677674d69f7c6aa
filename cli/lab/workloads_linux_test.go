package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func jobsEnd(t *testing.T, c *cluster) {
	ns := c.namespace(t, "jobs")
	job := func(name, spec, script string) string {
		return fmt.Sprintf("apiVersion: batch/v1\nkind: Job\nmetadata: {name: %s}\nspec:\n  %s\n  template: {spec: {restartPolicy: Never, containers: [{name: main, image: %s, command: [sh, -c, %q]}]}}\n---\n",
			name, spec, testImage, script)
	}
	c.apply(t, ns, job("good", "completions: 3\n  parallelism: 2", "echo done")+job("bad", "backoffLimit: 0", "exit 1")+
		job("parts", "completions: 3\n  parallelism: 3\n  completionMode: Indexed", "echo part $JOB_COMPLETION_INDEX"))
	wants(t, c.kubectl(t, "-n", ns, "wait", "--for=condition=complete", "job/good", "--timeout=60s"), "condition met")
	wants(t, c.kubectl(t, "-n", ns, "wait", "--for=condition=failed", "job/bad", "--timeout=60s"), "condition met")
	if n := c.kubectl(t, "-n", ns, "get", "job", "good", "-o", "jsonpath={.status.succeeded}"); n != "3" {
		t.Errorf("%s succeeded", n)
	}
	wants(t, c.kubectl(t, "-n", ns, "logs", "job/good"), "done")
	wants(t, c.kubectl(t, "-n", ns, "wait", "--for=condition=complete", "job/parts", "--timeout=60s"), "condition met")
	if parts := c.kubectl(t, "-n", ns, "get", "job", "parts", "-o", "jsonpath={.status.completedIndexes}"); parts != "0-2" {
		t.Errorf("indexes %q are completed", parts)
	}
	c.kubectl(t, "-n", ns, "delete", "job", "good")
	eventually(t, soon, "the Job's pods go with it", func(ctx context.Context) error {
		list, err := c.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: "job-name=good"})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are left", len(list.Items))
		}
		return err
	})
}

func cronJobRuns(t *testing.T, c *cluster) {
	ns := c.namespace(t, "cron")
	c.apply(t, ns, fmt.Sprintf(`
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: "* * * * *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: %s, command: [echo, tick]}]}}}}
`, testImage))
	c.kubectl(t, "-n", ns, "create", "job", "now", "--from=cronjob/tick")
	c.kubectl(t, "-n", ns, "wait", "--for=condition=complete", "job/now", "--timeout=60s")
	eventually(t, 90*time.Second, "a minute has come", func(ctx context.Context) error {
		list, err := c.client.BatchV1().Jobs(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, job := range list.Items {
			if strings.HasPrefix(job.Name, "tick-") && job.Status.Succeeded == 1 {
				return nil
			}
		}
		return fmt.Errorf("%d jobs, none of them scheduled and complete", len(list.Items))
	})
}

// statefulSet is one with its headless Service. Each pod writes down when it starts.
func statefulSet(name string, replicas int) string {
	return stateful(name, replicas) + fmt.Sprintf(`
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: %s}}}
      containers:
      - {name: main, image: %s, args: [serve, "8080"], readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}}
`, name, testImage)
}

func statefulSetInOrder(t *testing.T, c *cluster) {
	ns := c.namespace(t, "stateful")
	c.apply(t, ns, statefulSet("db", 3))
	wants(t, c.kubectl(t, "-n", ns, "rollout", "status", "statefulset/db", "--timeout=60s"), "roll out complete")
	var begun time.Time
	for n := range 3 {
		pod := c.podIs(t, ns, fmt.Sprintf("db-%d", n), "ready", ready)
		started := pod.Status.ContainerStatuses[0].State.Running.StartedAt.Time
		if started.Before(begun) {
			t.Errorf("db-%d started before its predecessor", n)
		}
		begun = started
	}
	uid := c.podIs(t, ns, "db-1", "ready", ready).UID
	c.kubectl(t, "-n", ns, "delete", "pod", "db-1")
	c.podIs(t, ns, "db-1", "there again under its name", func(pod *corev1.Pod) bool { return ready(pod) && pod.UID != uid })
	wants(t, c.kubectl(t, "-n", ns, "exec", "db-0", "--", "e2e", "get", "http://db-1.db:8080/"), "db-1")
}

func daemonSetEverywhere(t *testing.T, c *cluster) {
	ns := c.namespace(t, "daemons")
	c.apply(t, ns, fmt.Sprintf(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: %s}]}
`, testImage))
	wants(t, c.kubectl(t, "-n", ns, "rollout", "status", "daemonset/agent", "--timeout=60s"), "successfully rolled out")
	nodes := map[string]bool{}
	for _, pod := range c.readyPods(t, soon, ns, "app=agent", len(c.Peers)) {
		nodes[pod.Spec.NodeName] = true
	}
	if len(nodes) != len(c.Peers) {
		t.Errorf("pods on %v", nodes)
	}
}

// readCgroup reads a container's limit from the kernel, whichever version of cgroups holds the controllers.
func readCgroup(t *testing.T, pod *corev1.Pod, unified, legacy string) string {
	t.Helper()
	id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
	controller, file := filepath.Split(legacy)
	var found string
	for root, name := range map[string]string{"/sys/fs/cgroup": unified, filepath.Join("/sys/fs/cgroup", controller): file} {
		_ = filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.IsDir() && strings.Contains(entry.Name(), id) {
				if text, err := os.ReadFile(filepath.Join(path, name)); err == nil {
					found = strings.TrimSpace(string(text))
				}
			}
			return nil
		})
	}
	if found == "" {
		t.Fatalf("no cgroup of container %s has %s or %s", id, unified, legacy)
	}
	return found
}
