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

// TestNodePressure fills the disk of a node: it says so, takes no more pods, and of its pods that one leaves which has written most beyond
// what it asked for. With room again it is as before.
func TestNodePressure(t *testing.T) {
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
	condition := func(want corev1.ConditionStatus) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			node, err := c.client.CoreV1().Nodes().Get(ctx, peer.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			has := slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeDiskPressure && c.Status == want })
			tainted := slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeDiskPressure })
			if !has || tainted != (want == corev1.ConditionTrue) {
				return fmt.Errorf("conditions %+v, taints %+v", node.Status.Conditions, node.Spec.Taints)
			}
			return nil
		}
	}
	eventually(t, soon, "the node is under disk pressure", condition(corev1.ConditionTrue))
	evicted := c.podIs(t, ns, "greedy", "evicted", func(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodFailed })
	if evicted.Status.Reason != "Evicted" || !strings.Contains(evicted.Status.Message, "low on resource: ephemeral-storage") {
		t.Errorf("it ended by %s: %s", evicted.Status.Reason, evicted.Status.Message)
	}
	c.apply(t, ns, sh("late", "exec e2e pause"))
	c.eventSays(t, ns, "late", "FailedScheduling", "0/1 nodes are available: 1 node(s) had untolerated taint(s)")
	if err := peer.FreeDisk(); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "the pressure is over", condition(corev1.ConditionFalse))
	c.kubectl(t, "-n", ns, "get", "pod", "modest")
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
