package peer

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/runtime/pods"
)

// reports is how the agent's findings reach the store.
func (n *node) reports() pods.Reports {
	return pods.Reports{Status: n.reportStatus, Deleted: n.reportDeleted, Event: n.reportEvent}
}

func (n *node) reportStatus(ctx context.Context, pod *corev1.Pod, status corev1.PodStatus) error {
	client, err := n.api()
	if err != nil {
		return err
	}
	// The pod as the feed has it is nearly always the stored one: try with it, and read only after a conflict.
	stored := n.bound.pod(pod.UID)
	for {
		if stored == nil {
			if stored, err = client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{}); err != nil {
				return err
			}
		}
		if stored.UID != pod.UID {
			return apierrors.NewNotFound(corev1.Resource("pods"), pod.Name)
		}
		next := stored.DeepCopy()
		next.Status = pods.MergeStatus(stored.Status, status)
		_, err = client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, next, metav1.UpdateOptions{})
		if !apierrors.IsConflict(err) {
			return err
		}
		stored = nil
	}
}

func (n *node) reportDeleted(ctx context.Context, pod *corev1.Pod) error {
	client, err := n.api()
	if err != nil {
		return err
	}
	now := int64(0)
	err = client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &pod.UID},
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it is gone, or there is another one of that name by now
	}
	return err
}

func (n *node) reportEvent(pod *corev1.Pod, fieldPath, eventType, reason, message string) {
	recorder := n.events.Load()
	if recorder == nil {
		return
	}
	(*recorder).Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		ResourceVersion: pod.ResourceVersion, FieldPath: fieldPath,
	}, eventType, reason, message)
}
