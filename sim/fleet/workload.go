package fleet

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
)

// Workload is what the users of a fleet run: in each namespace a Deployment with a Service and a StatefulSet.
type Workload struct {
	Namespaces  int
	Deployment  int32 // replicas of each
	StatefulSet int32
}

func (w Workload) namespace(i int) string { return fmt.Sprintf("app-%d", i) }

// apply makes everything through one peer's API.
func (w Workload) apply(ctx context.Context, client kubernetes.Interface) error {
	for i := range w.Namespaces {
		ns := w.namespace(i)
		if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}); err != nil {
			return err
		}
		for name, ip := range map[string]string{"web": "", "db": corev1.ClusterIPNone} {
			service := &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: name},
				Spec: corev1.ServiceSpec{
					ClusterIP: ip, Selector: map[string]string{"app": name},
					Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
				},
			}
			if _, err := client.CoreV1().Services(ns).Create(ctx, service, metav1.CreateOptions{}); err != nil {
				return err
			}
		}
		if _, err := client.AppsV1().Deployments(ns).Create(ctx, &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Name: "web"},
			Spec:       appsv1.DeploymentSpec{Replicas: &w.Deployment, Selector: selector("web"), Template: template("web")},
		}, metav1.CreateOptions{}); err != nil {
			return err
		}
		if _, err := client.AppsV1().StatefulSets(ns).Create(ctx, &appsv1.StatefulSet{
			ObjectMeta: metav1.ObjectMeta{Name: "db"},
			Spec:       appsv1.StatefulSetSpec{Replicas: &w.StatefulSet, ServiceName: "db", Selector: selector("db"), Template: template("db")},
		}, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

func selector(app string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
}

func template(app string) corev1.PodTemplateSpec {
	grace := int64(1)
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: app, Image: Image, ImagePullPolicy: corev1.PullIfNotPresent, Ports: []corev1.ContainerPort{{ContainerPort: 8080}},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("64Mi"),
				}},
			}},
		},
	}
}

// settled says what is not as desired yet; nil when all is.
func (w Workload) settled(ctx context.Context, client kubernetes.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for i := range w.Namespaces {
		ns := w.namespace(i)
		d, err := client.AppsV1().Deployments(ns).Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if d.Status.ReadyReplicas != w.Deployment || d.Status.Replicas != w.Deployment || d.Status.ObservedGeneration != d.Generation {
			return fmt.Errorf("deployment %s/web: %d pods, %d ready, %d wanted", ns, d.Status.Replicas, d.Status.ReadyReplicas, w.Deployment)
		}
		s, err := client.AppsV1().StatefulSets(ns).Get(ctx, "db", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if s.Status.ReadyReplicas != w.StatefulSet || s.Status.Replicas != w.StatefulSet {
			return fmt.Errorf("statefulset %s/db: %d pods, %d ready, %d wanted", ns, s.Status.Replicas, s.Status.ReadyReplicas, w.StatefulSet)
		}
	}
	return nil
}

// waiting says of each pod that is not ready what its own status says of it.
func (w Workload) waiting(ctx context.Context, client kubernetes.Interface) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	text := ""
	for _, pod := range pods.Items {
		if podReady(&pod) {
			continue
		}
		text += fmt.Sprintf("\n  %s/%s on %q: %s", pod.Namespace, pod.Name, pod.Spec.NodeName, pod.Status.Phase)
		for _, c := range pod.Status.Conditions {
			if c.Status != corev1.ConditionTrue {
				text += fmt.Sprintf(", not %s (%s %s)", c.Type, c.Reason, c.Message)
			}
		}
		for _, c := range pod.Status.ContainerStatuses {
			text += fmt.Sprintf(", %s %+v", c.Name, c.State)
		}
	}
	return text
}

func podReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
