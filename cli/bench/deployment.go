package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
)

// A Deployment of manyPods pods, and as many containers through containerd, parallelStarts at a time.
const (
	manyPods       = 50
	parallelStarts = 8
)

// upAndDown are the times of one thing that was started and ended again and again.
type upAndDown struct{ up, down []time.Duration }

// measureDeployment scales a Deployment up and down, in turns with the same number of sandboxes and containers through a containerd of its
// own: without scheduler, network, store or API.
func measureDeployment(ctx context.Context, s *session) (rows []Row, err error) {
	l, err := s.openWithImage(ctx, 1)
	if err != nil {
		return nil, err
	}
	api, err := client(l, 0)
	if err != nil {
		return nil, err
	}
	reference, err := s.newEngine(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, reference.close()) }()
	if err := reference.load(ctx, s.loaded); err != nil {
		return nil, err
	}
	if err := makeDeployment(ctx, api); err != nil {
		return nil, err
	}
	var ours, theirs upAndDown
	for n := range s.times(3, 1) {
		err := s.step(fmt.Sprintf("%d containers through containerd, %d at a time, round %d", manyPods, parallelStarts, n+1), func() error {
			return theirs.containers(ctx, reference)
		})
		if err != nil {
			return nil, err
		}
		err = s.step(fmt.Sprintf("Deployment 0 → %d → 0, round %d", manyPods, n+1), func() error { return ours.pods(ctx, api) })
		if err != nil {
			return nil, err
		}
	}
	against := fmt.Sprintf("containerd, %d at a time", parallelStarts)
	return []Row{
		{
			What: "Deployment 0 → 50, all Ready", Unit: "s", Measured: seconds(ours.up),
			Against: against, Reference: seconds(theirs.up), Aim: Aim{Ratio: 1.6},
		},
		{
			What: "Deployment 50 → 0, all gone", Unit: "s", Measured: seconds(ours.down),
			Against: against, Reference: seconds(theirs.down), Aim: Aim{Ratio: 1.6},
		},
	}, api.AppsV1().Deployments(metav1.NamespaceDefault).Delete(ctx, deploymentName, metav1.DeleteOptions{})
}

const deploymentName = "bench-many"

func makeDeployment(ctx context.Context, api kubernetes.Interface) error {
	none := int32(0)
	labels := map[string]string{"app": deploymentName}
	pod := webPod("", labels)
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: deploymentName}}
	deployment.Spec.Replicas = &none
	deployment.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
	deployment.Spec.Template.ObjectMeta, deployment.Spec.Template.Spec = pod.ObjectMeta, pod.Spec
	_, err := api.AppsV1().Deployments(metav1.NamespaceDefault).Create(ctx, deployment, metav1.CreateOptions{})
	return err
}

func (t *upAndDown) containers(ctx context.Context, e *engine) error {
	begun := time.Now()
	uids, err := e.up(ctx, manyPods, parallelStarts)
	if err != nil {
		return err
	}
	t.up = append(t.up, time.Since(begun))
	begun = time.Now()
	if err := e.down(ctx, uids, parallelStarts); err != nil {
		return err
	}
	t.down = append(t.down, time.Since(begun))
	return nil
}

func (t *upAndDown) pods(ctx context.Context, api kubernetes.Interface) error {
	took, err := scale(ctx, api, manyPods, func(ctx context.Context) (bool, error) {
		deployment, err := api.AppsV1().Deployments(metav1.NamespaceDefault).Get(ctx, deploymentName, metav1.GetOptions{})
		return err == nil && deployment.Status.ReadyReplicas == manyPods, err
	})
	if err != nil {
		return fmt.Errorf("all Ready: %w", err)
	}
	t.up = append(t.up, took)
	took, err = scale(ctx, api, 0, func(ctx context.Context) (bool, error) {
		left, err := api.CoreV1().Pods(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: "app=" + deploymentName})
		return err == nil && len(left.Items) == 0, err
	})
	if err != nil {
		return fmt.Errorf("all gone: %w", err)
	}
	t.down = append(t.down, took)
	return nil
}

// scale sets the number of replicas and returns how long it took until done.
func scale(ctx context.Context, api kubernetes.Interface, replicas int32, done func(context.Context) (bool, error)) (time.Duration, error) {
	begun := time.Now()
	_, err := api.AppsV1().Deployments(metav1.NamespaceDefault).UpdateScale(ctx, deploymentName, &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{Name: deploymentName, Namespace: metav1.NamespaceDefault},
		Spec:       autoscalingv1.ScaleSpec{Replicas: replicas},
	}, metav1.UpdateOptions{})
	if err != nil {
		return 0, err
	}
	err = wait.PollUntilContextTimeout(ctx, 25*time.Millisecond, 2*time.Minute, true, done)
	return time.Since(begun), err
}
