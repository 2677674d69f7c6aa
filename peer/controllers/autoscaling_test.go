package controllers_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"shoal/internal/polling"
	"shoal/runtime/stats"
)

// used is what the metrics API hears from the nodes of these tests.
var used = &usage{}

type usage struct {
	lock sync.Mutex
	pods []stats.PodUse
}

// of answers for any node with all pods: whoever asks looks for those that he knows to be there.
func (u *usage) of(_ context.Context, nodes []string) map[string]stats.Use {
	u.lock.Lock()
	defer u.lock.Unlock()
	answers := map[string]stats.Use{}
	for _, node := range nodes {
		answers[node] = stats.Use{At: time.Now(), Window: stats.UseInterval, Pods: u.pods}
	}
	return answers
}

func (u *usage) set(pod *corev1.Pod, cpu, memory string) {
	u.lock.Lock()
	defer u.lock.Unlock()
	cores, bytes := resource.MustParse(cpu), resource.MustParse(memory)
	u.pods = append(u.pods, stats.PodUse{UID: string(pod.UID), At: time.Now(), Window: stats.UseInterval, Containers: []stats.ContainerUse{
		{Name: "c", Amount: stats.Amount{CPU: uint64(cores.MilliValue()) * 1e6, Memory: uint64(bytes.Value())}},
	}})
}

// autoscaled is a case of TestAutoscaling. Its pods request 100m and 100Mi each.
type autoscaled struct {
	replicas    int32
	cpu, memory string // what each pod uses
	metric      autoscalingv2.ResourceMetricSource
	container   string // whose use alone counts; "" is the pod's
	least       *int32 // minReplicas
	behavior    *autoscalingv2.HorizontalPodAutoscalerBehavior
	want        int32
	// current is the metric's average in the status; able and limited are reasons of conditions.
	current, able, limited string
}

func utilization(percent int32) autoscalingv2.ResourceMetricSource {
	return autoscalingv2.ResourceMetricSource{Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{
		Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent,
	}}
}

func average(name corev1.ResourceName, value string) autoscalingv2.ResourceMetricSource {
	return autoscalingv2.ResourceMetricSource{Name: name, Target: autoscalingv2.MetricTarget{
		Type: autoscalingv2.AverageValueMetricType, AverageValue: ptr.To(resource.MustParse(value)),
	}}
}

func policy(kind autoscalingv2.HPAScalingPolicyType, value int32) *autoscalingv2.HPAScalingRules {
	return &autoscalingv2.HPAScalingRules{
		StabilizationWindowSeconds: ptr.To[int32](0), Policies: []autoscalingv2.HPAScalingPolicy{{Type: kind, Value: value, PeriodSeconds: 60}},
	}
}

// TestAutoscaling takes the metrics API's figures of processor time and memory to the replicas of Deployments, by behavior policies and
// stabilisation windows. All cases run at once, since an autoscaler looks only every 15 seconds.
func TestAutoscaling(t *testing.T) {
	down := func(rules *autoscalingv2.HPAScalingRules) *autoscalingv2.HorizontalPodAutoscalerBehavior {
		return &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleDown: rules}
	}
	up := func(rules *autoscalingv2.HPAScalingRules) *autoscalingv2.HorizontalPodAutoscalerBehavior {
		return &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: rules}
	}
	for name, c := range map[string]autoscaled{
		"cpu-utilization":  {replicas: 2, cpu: "150m", memory: "1Mi", metric: utilization(100), want: 3, current: "150m", able: "SucceededRescale", limited: "DesiredWithinRange"},
		"cpu-value":        {replicas: 2, cpu: "150m", memory: "1Mi", metric: average(corev1.ResourceCPU, "100m"), want: 3, current: "150m", able: "SucceededRescale", limited: "DesiredWithinRange"},
		"memory-value":     {replicas: 2, cpu: "1m", memory: "100Mi", metric: average(corev1.ResourceMemory, "50Mi"), want: 4, current: "100Mi", able: "SucceededRescale", limited: "DesiredWithinRange"},
		"within-tolerance": {replicas: 2, cpu: "105m", memory: "1Mi", metric: utilization(100), want: 2, current: "105m", able: "ReadyForNewScale", limited: "DesiredWithinRange"},
		"up-by-pods": {replicas: 2, cpu: "400m", memory: "1Mi", metric: utilization(100), behavior: up(policy(autoscalingv2.PodsScalingPolicy, 1)),
			want: 3, current: "400m", able: "SucceededRescale", limited: "ScaleUpLimit"},
		"container-alone": {replicas: 2, cpu: "150m", memory: "1Mi", metric: utilization(100), container: "c", want: 3, current: "150m", able: "SucceededRescale", limited: "DesiredWithinRange"},
		"up-by-the-least": {replicas: 2, cpu: "400m", memory: "1Mi", metric: utilization(100), want: 3, current: "400m", able: "SucceededRescale", limited: "ScaleUpLimit",
			behavior: up(&autoscalingv2.HPAScalingRules{SelectPolicy: ptr.To(autoscalingv2.MinChangePolicySelect), Policies: []autoscalingv2.HPAScalingPolicy{
				{Type: autoscalingv2.PodsScalingPolicy, Value: 1, PeriodSeconds: 60}, {Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 60},
			}})},
		"own-tolerance": {replicas: 2, cpu: "150m", memory: "1Mi", metric: utilization(100), want: 2, current: "150m", able: "ReadyForNewScale", limited: "DesiredWithinRange",
			behavior: up(&autoscalingv2.HPAScalingRules{Tolerance: ptr.To(resource.MustParse("0.6"))})},
		"at-least-min": {replicas: 4, cpu: "1m", memory: "1Mi", metric: utilization(100), least: ptr.To[int32](3), behavior: down(&autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr.To[int32](0)}),
			want: 3, current: "1m", able: "SucceededRescale", limited: "TooFewReplicas"},
		"at-most-max": {replicas: 2, cpu: "2", memory: "1Mi", metric: utilization(100), behavior: up(policy(autoscalingv2.PodsScalingPolicy, 100)),
			want: 10, current: "2", able: "SucceededRescale", limited: "TooManyReplicas"},
		"down-waits": {replicas: 4, cpu: "1m", memory: "1Mi", metric: utilization(100), want: 4, current: "1m", able: "ScaleDownStabilized", limited: "DesiredWithinRange"},
		"down-by-half": {replicas: 4, cpu: "1m", memory: "1Mi", metric: utilization(100), behavior: down(policy(autoscalingv2.PercentScalingPolicy, 50)),
			want: 2, current: "1m", able: "SucceededRescale", limited: "ScaleDownLimit"},
		"down-disabled": {replicas: 4, cpu: "1m", memory: "1Mi", metric: utilization(100), want: 4, current: "1m", able: "ReadyForNewScale", limited: "ScaleDownLimit",
			behavior: down(&autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr.To[int32](0), SelectPolicy: ptr.To(autoscalingv2.DisabledPolicySelect)})},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.scale(t, "scaled-"+name)
		})
	}
}

func (c autoscaled) scale(t *testing.T, ns string) {
	namespace(t, ns)
	c.run(t, ns)
	metric := autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &c.metric}
	if c.container != "" {
		metric = autoscalingv2.MetricSpec{Type: autoscalingv2.ContainerResourceMetricSourceType, ContainerResource: &autoscalingv2.ContainerResourceMetricSource{
			Name: c.metric.Name, Target: c.metric.Target, Container: c.container,
		}}
	}
	hpas := client.AutoscalingV2().HorizontalPodAutoscalers(ns)
	must(hpas.Create(t.Context(), &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
		ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "web"},
		MinReplicas:    c.least, MaxReplicas: 10, Metrics: []autoscalingv2.MetricSpec{metric}, Behavior: c.behavior,
	}}, metav1.CreateOptions{}))(t)
	var hpa *autoscalingv2.HorizontalPodAutoscaler
	polling.Until(t, 100*time.Millisecond, 50*time.Second, "something is decided", func(context.Context) error {
		hpa = must(hpas.Get(t.Context(), "web", metav1.GetOptions{}))(t)
		if reasonOf(hpa, autoscalingv2.ScalingLimited) == "" {
			return fmt.Errorf("status %+v", hpa.Status)
		}
		return nil
	})
	s := hpa.Status
	if s.DesiredReplicas != c.want || s.CurrentReplicas != c.replicas || ptr.Deref(s.ObservedGeneration, 0) != hpa.Generation || (s.LastScaleTime != nil) != (c.want != c.replicas) {
		t.Errorf("status %+v, want %d replicas", s, c.want)
	}
	if able, active, limited := reasonOf(hpa, autoscalingv2.AbleToScale), reasonOf(hpa, autoscalingv2.ScalingActive), reasonOf(hpa, autoscalingv2.ScalingLimited); able != c.able || active != "ValidMetricFound" || limited != c.limited {
		t.Errorf("conditions %s, %s, %s", able, active, limited)
	}
	if len(s.CurrentMetrics) != 1 {
		t.Fatalf("metrics %+v", s.CurrentMetrics)
	}
	var name corev1.ResourceName
	var current autoscalingv2.MetricValueStatus
	if of := s.CurrentMetrics[0].ContainerResource; c.container != "" && of != nil && of.Container == c.container {
		name, current = of.Name, of.Current
	} else if of := s.CurrentMetrics[0].Resource; c.container == "" && of != nil {
		name, current = of.Name, of.Current
	}
	if name != c.metric.Name || current.AverageValue.Cmp(resource.MustParse(c.current)) != 0 || s.CurrentMetrics[0].Type != metric.Type {
		t.Errorf("metrics %+v", s.CurrentMetrics)
	}
	target := must(client.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{}))(t)
	if *target.Spec.Replicas != c.want {
		t.Errorf("the Deployment has %d replicas", *target.Spec.Replicas)
	}
}

// run makes a Deployment as if its pods had run for a while.
func (c autoscaled) run(t *testing.T, ns string) {
	labels := map[string]string{"app": "web"}
	requests := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("100Mi")}
	spec := corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "c", Resources: corev1.ResourceRequirements{Requests: requests}}}}
	d := must(client.AppsV1().Deployments(ns).Create(t.Context(), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{
		Replicas: &c.replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
	}}, metav1.CreateOptions{}))(t)
	d.Status.Replicas = c.replicas
	must(client.AppsV1().Deployments(ns).UpdateStatus(t.Context(), d, metav1.UpdateOptions{}))(t)
	since := metav1.NewTime(time.Now().Add(-time.Hour))
	for i := range c.replicas {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("web-", i), Labels: labels}, Spec: *spec.DeepCopy()}
		p.Spec.NodeName = "some-node"
		p = must(client.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{}))(t)
		p.Status.Phase, p.Status.StartTime = corev1.PodRunning, &since
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: since}}
		p = must(client.CoreV1().Pods(ns).UpdateStatus(t.Context(), p, metav1.UpdateOptions{}))(t)
		used.set(p, c.cpu, c.memory)
	}
}

func reasonOf(hpa *autoscalingv2.HorizontalPodAutoscaler, kind autoscalingv2.HorizontalPodAutoscalerConditionType) string {
	for _, condition := range hpa.Status.Conditions {
		if condition.Type == kind {
			return condition.Reason
		}
	}
	return ""
}
