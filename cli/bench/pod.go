package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"shoal/examples"
)

// measurePods makes pods one after another on one peer, in turns with bare runs of the same program from the same root file system, so that
// both see the same machine. A pod counts from before the request until a watch shows it Ready.
func measurePods(ctx context.Context, s *session) ([]Row, error) {
	l, err := s.openWithImage(ctx, 1)
	if err != nil {
		return nil, err
	}
	api, err := client(l, 0)
	if err != nil {
		return nil, err
	}
	bare, err := s.newBare(filepath.Join(l.Dir, "web"))
	if err != nil {
		return nil, err
	}
	watcher, err := watchPods(ctx, api.CoreV1().Pods(metav1.NamespaceDefault))
	if err != nil {
		return nil, err
	}
	defer watcher.stop()

	count := s.times(50, 10)
	var ours, theirs []time.Duration
	const warm = 3
	err = s.step(fmt.Sprintf("%d pods and %d bare runs, taking turns", count, count), func() error {
		for n := range warm + count {
			reference, err := bare.run(ctx)
			if err != nil {
				return err
			}
			took, err := watcher.cycle(ctx, webPod(fmt.Sprintf("bench-%d", n), nil))
			if err != nil {
				return err
			}
			if n >= warm {
				ours, theirs = append(ours, took), append(theirs, reference)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []Row{{
		What: "pod create → Ready, image present", Unit: "ms", Measured: milliseconds(ours),
		Against: "bare runc run", Reference: milliseconds(theirs), Aim: Aim{Ratio: 4},
	}}, nil
}

// webPod runs the demo's server.
func webPod(name string, labels map[string]string) *corev1.Pod {
	grace := int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "web", Image: examples.WebImage, ImagePullPolicy: corev1.PullIfNotPresent,
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: webPort}},
			}},
		},
	}
}

// webPort is where the demo's server listens.
const webPort = 8080

// podWatcher follows the pods of one namespace.
type podWatcher struct {
	pods   typedcorev1.PodInterface
	events watch.Interface
}

func watchPods(ctx context.Context, pods typedcorev1.PodInterface) (*podWatcher, error) {
	list, err := pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	events, err := pods.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return nil, err
	}
	return &podWatcher{pods: pods, events: events}, nil
}

func (w *podWatcher) stop() { w.events.Stop() }

// cycle makes a pod, returns how long that took until it was Ready, and removes it.
func (w *podWatcher) cycle(ctx context.Context, pod *corev1.Pod) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	begun := time.Now()
	if _, err := w.make(ctx, pod); err != nil {
		return 0, err
	}
	took := time.Since(begun)
	if err := w.pods.Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil {
		return 0, err
	}
	_, err := w.await(ctx, pod.Name, func(event watch.Event, _ *corev1.Pod) bool { return event.Type == watch.Deleted })
	return took, err
}

// make creates a pod and returns it when it is Ready.
func (w *podWatcher) make(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, error) {
	if _, err := w.pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	return w.await(ctx, pod.Name, func(_ watch.Event, pod *corev1.Pod) bool { return ready(pod) })
}

func (w *podWatcher) await(ctx context.Context, name string, enough func(watch.Event, *corev1.Pod) bool) (*corev1.Pod, error) {
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for pod %s: %w", name, ctx.Err())
		case event, open := <-w.events.ResultChan():
			if !open {
				return nil, errors.New("the watch of the pods ended")
			}
			if pod, ok := event.Object.(*corev1.Pod); ok && pod.Name == name && enough(event, pod) {
				return pod, nil
			}
		}
	}
}

func ready(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}
