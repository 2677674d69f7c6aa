package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestDiskPressure fills the disk of a node: it says so, takes no more pods, and of its pods that one leaves which has written most beyond
// what it asked for. With room again it is as before.
func TestDiskPressure(t *testing.T) {
	t.Parallel() // most of its time is waiting
	c := openClusterOf(t, Config{Peers: 1, Disk: 1 << 30})
	peer, ns := c.Peers[0], c.namespace(t, "pressed")
	c.apply(t, ns, sh("modest", "exec e2e pause"))
	c.apply(t, ns, sh("greedy", "dd if=/dev/zero of=/tmp/much bs=1M count=60 && exec e2e pause"))
	for _, name := range []string{"modest", "greedy"} {
		c.podIs(t, ns, name, "ready", ready)
	}
	eventually(t, soon, "the greedy pod has written", func(context.Context) error {
		if out, err := c.try(t.Context(), "", tools.kubectl, "-n", ns, "exec", "greedy", "--", "stat", "-c", "%s", "/tmp/much"); err != nil || strings.TrimSpace(out) != "62914560" {
			return fmt.Errorf("%s %w", out, errors.Join(err, errNotYet))
		}
		return nil
	})
	if err := leaveFree(peer, 0.12); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "the node is under disk pressure", c.pressed(peer, corev1.NodeDiskPressure, corev1.TaintNodeDiskPressure, true))
	evicted := c.podIs(t, ns, "greedy", "evicted", func(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodFailed })
	if evicted.Status.Reason != "Evicted" || !strings.Contains(evicted.Status.Message, "low on resource: ephemeral-storage") {
		t.Errorf("it ended by %s: %s", evicted.Status.Reason, evicted.Status.Message)
	}
	c.apply(t, ns, sh("late", "exec e2e pause"))
	c.eventSays(t, ns, "late", "FailedScheduling", "0/1 nodes are available: 1 node(s) had untolerated taint(s)")
	if err := peer.FreeDisk(); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "the pressure is over", c.pressed(peer, corev1.NodeDiskPressure, corev1.TaintNodeDiskPressure, false))
	c.kubectl(t, "-n", ns, "get", "pod", "modest")
}

// pressed is nil once a node has said that it is under pressure, or that it is not, and new pods are kept away accordingly.
func (c *cluster) pressed(peer *Peer, kind corev1.NodeConditionType, taint string, want bool) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		node, err := c.client.CoreV1().Nodes().Get(ctx, peer.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		status := corev1.ConditionFalse
		if want {
			status = corev1.ConditionTrue
		}
		has := slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == kind && c.Status == status })
		tainted := slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == taint })
		if !has || tainted != want {
			return fmt.Errorf("conditions %+v, taints %+v", node.Status.Conditions, node.Spec.Taints)
		}
		return nil
	}
}

// hungry is a pod that requests memory and takes another amount of it, both in MiB.
func hungry(name, class string, requests, takes int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  priorityClassName: %s
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: %s
    command: [sh, -c, "dd if=/dev/zero of=/memory/taken bs=1M count=%d && exec e2e pause"]
    resources: {requests: {memory: %dMi}}
    volumeMounts: [{name: memory, mountPath: /memory}]
  volumes: [{name: memory, emptyDir: {medium: Memory}}]
---
`, name, class, testImage, takes, requests)
}

// TestMemoryPressure gives the pods of a node little memory and lets them use it up. The node says so and takes no more pods. The one that
// leaves is not the one that uses most (it stays within its request), nor the one that exceeds its request most (it is more important).
// With room again the node is as before.
func TestMemoryPressure(t *testing.T) {
	t.Parallel() // most of its time is waiting
	c := openClusterOf(t, Config{Peers: 1, Memory: 640 << 20})
	peer, ns := c.Peers[0], c.namespace(t, "pressed")
	node, err := c.client.CoreV1().Nodes().Get(t.Context(), peer.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if has, gives := node.Status.Capacity.Memory().Value(), node.Status.Allocatable.Memory().Value(); has != 640<<20 || gives != 540<<20 {
		t.Errorf("a node with 640Mi for pods has %d bytes and gives %d", has, gives)
	}
	c.apply(t, "", "{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: important}, value: 1000}\n---\n"+
		"{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: ordinary}, value: 0}")
	c.apply(t, ns, hungry("modest", "ordinary", 300, 240)+hungry("important", "important", 10, 190))
	for _, name := range []string{"modest", "important"} {
		c.podIs(t, ns, name, "ready", ready)
	}
	c.apply(t, ns, hungry("greedy", "ordinary", 10, 140))
	eventually(t, soon, "the node is under memory pressure", c.pressed(peer, corev1.NodeMemoryPressure, corev1.TaintNodeMemoryPressure, true))
	c.apply(t, ns, sh("late", "exec e2e pause"))
	c.eventSays(t, ns, "late", "FailedScheduling", "0/1 nodes are available: 1 node(s) had untolerated taint(s)")
	evicted := c.podIs(t, ns, "greedy", "evicted", func(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodFailed })
	if evicted.Status.Reason != "Evicted" || !strings.Contains(evicted.Status.Message, "low on resource: memory") || !strings.Contains(evicted.Status.Message, "request is 10Mi") {
		t.Errorf("it ended by %s: %s", evicted.Status.Reason, evicted.Status.Message)
	}
	eventually(t, soon, "the pressure is over", c.pressed(peer, corev1.NodeMemoryPressure, corev1.TaintNodeMemoryPressure, false))
	c.podIs(t, ns, "late", "ready", ready)
	for _, name := range []string{"modest", "important"} {
		if pod := c.podIs(t, ns, name, "ready", ready); pod.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("%s was restarted", name)
		}
	}
}

// leaveFree fills a peer's disk until so large a share is free.
func leaveFree(p *Peer, share float64) error {
	var disk syscall.Statfs_t
	if err := syscall.Statfs(p.Dir, &disk); err != nil {
		return err
	}
	size := int64(float64(disk.Bavail)-share*float64(disk.Blocks)) * disk.Bsize
	if size <= 0 {
		return fmt.Errorf("only %d of %d blocks are free", disk.Bavail, disk.Blocks)
	}
	file, err := os.Create(filepath.Join(p.Dir, "ballast"))
	if err != nil {
		return err
	}
	return errors.Join(syscall.Fallocate(int(file.Fd()), 0, 0, size), file.Close())
}
