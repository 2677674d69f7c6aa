package peer

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// drainPause is how long a drain waits before it asks again for an eviction that a disruption budget has put off.
const drainPause = time.Second

// drain cordons this node and evicts its pods, as kubectl drain does: disruption budgets are honoured, pods of DaemonSets stay until the
// node itself goes.
func (p *Peer) drain(ctx context.Context, client kubernetes.Interface, progress func(string)) error {
	cordon := []byte(`{"spec":{"unschedulable":true}}`)
	if _, err := client.CoreV1().Nodes().Patch(ctx, p.self.Name, "application/strategic-merge-patch+json", cordon, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("cordoning the node: %w", err)
	}
	last := -1
	for {
		left := 0
		for _, pod := range p.node.bound.all() {
			if staysOnDrain(pod) {
				continue
			}
			left++
			if pod.DeletionTimestamp != nil {
				continue
			}
			if err := evict(ctx, client, pod); err != nil {
				return fmt.Errorf("evicting pod %s/%s: %w", pod.Namespace, pod.Name, err)
			}
		}
		if left == 0 {
			return nil
		}
		if left != last {
			progress(fmt.Sprintf("%d pods are still moving away", left))
			last = left
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d pods did not move away: %w; the peer stays in the cluster, cordoned (kubectl uncordon %s)", left, ctx.Err(), p.self.Name)
		case <-time.After(drainPause):
		}
	}
}

func staysOnDrain(pod *corev1.Pod) bool {
	owner := metav1.GetControllerOf(pod)
	return owner != nil && owner.Kind == "DaemonSet" || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// evict asks once; an eviction that a budget forbids now is asked for again at the next turn.
func evict(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod) error {
	err := client.CoreV1().Pods(pod.Namespace).EvictV1(ctx, &policyv1.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}},
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsTooManyRequests(err) {
		return nil
	}
	return err
}
