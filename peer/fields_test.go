package peer

import (
	"encoding/json"
	"fmt"
	"maps"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// place makes a pod that runs on a node already, ready or not.
func (f *field) place(t *testing.T, namespace, name, node string, ready bool) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "x"}}, Spec: appTemplate().Spec}
	pod.Spec.NodeName = node
	pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}
	pod, err := f.client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	condition := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now()}
	if ready {
		condition.Status = corev1.ConditionTrue
	}
	ip := fmt.Sprintf("10.32.0.%d", len(name)+1)
	pod.Status.Phase, pod.Status.Conditions = corev1.PodRunning, []corev1.PodCondition{condition}
	pod.Status.PodIP, pod.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	if pod, err = f.client.CoreV1().Pods(namespace).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	return pod
}

// TestUnhealthyPodEvictionPolicies: of pods that are not ready, AlwaysAllow lets any be evicted, and otherwise a budget must be met without
// them. Pods that are ready count always.
func TestUnhealthyPodEvictionPolicies(t *testing.T) {
	for name, c := range map[string]struct {
		policy    *policyv1.UnhealthyPodEvictionPolicyType
		available int32 // of one ready pod and one that is not
		sick      bool  // may be evicted
	}{
		"the default with an unmet budget":       {nil, 2, false},
		"the default with a met budget":          {nil, 1, true},
		"IfHealthyBudget with an unmet budget":   {ptr.To(policyv1.IfHealthyBudget), 2, false},
		"IfHealthyBudget with a met budget":      {ptr.To(policyv1.IfHealthyBudget), 1, true},
		"AlwaysAllow with an unmet budget":       {ptr.To(policyv1.AlwaysAllow), 2, true},
		"AlwaysAllow with a budget that is met ": {ptr.To(policyv1.AlwaysAllow), 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newField(t, nil)
			namespace := f.namespace(t)
			f.place(t, namespace, "well", "node-a", true)
			f.place(t, namespace, "sick", "node-a", false)
			budgets := f.client.PolicyV1().PodDisruptionBudgets(namespace)
			_, err := budgets.Create(t.Context(), &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "guard"}, Spec: policyv1.PodDisruptionBudgetSpec{
				Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}, MinAvailable: ptr.To(intstr.FromInt32(c.available)),
				UnhealthyPodEvictionPolicy: c.policy,
			}}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			await(t, func() string {
				b, err := budgets.Get(t.Context(), "guard", metav1.GetOptions{})
				if err != nil || b.Status.ObservedGeneration != b.Generation || b.Status.CurrentHealthy != 1 || b.Status.DesiredHealthy != c.available || b.Status.ExpectedPods != 2 {
					return fmt.Sprintf("%v, %+v", err, b.Status)
				}
				return ""
			})
			evict := func(pod string) error {
				return f.client.PolicyV1().Evictions(namespace).Evict(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: namespace}})
			}
			if err := evict("well"); !apierrors.IsTooManyRequests(err) {
				t.Errorf("the eviction of the ready pod: %v", err)
			}
			if err := evict("sick"); c.sick != (err == nil) || err != nil && !apierrors.IsTooManyRequests(err) {
				t.Errorf("the eviction of the other pod: %v", err)
			}
		})
	}
}

// TestADeploymentCountsItsTerminatingPods: status.terminatingReplicas has the pods that are on their way out, which replicas does not.
func TestADeploymentCountsItsTerminatingPods(t *testing.T) {
	f := newField(t, map[string]string{"node-a": "4"})
	namespace := f.namespace(t)
	f.deploy(t, namespace, 2, "100m")
	counts := func(want string) {
		t.Helper()
		await(t, func() string {
			for _, pod := range f.pods(t, namespace) {
				if pod.Spec.NodeName != "" && pod.Status.Phase == corev1.PodPending && pod.DeletionTimestamp == nil {
					f.ready(t, &pod)
				}
			}
			d, err := f.client.AppsV1().Deployments(namespace).Get(t.Context(), "web", metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			s := d.Status
			if got := fmt.Sprint(s.Replicas, s.ReadyReplicas, s.AvailableReplicas, s.UpdatedReplicas, s.UnavailableReplicas, ptr.Deref(s.TerminatingReplicas, -1)); got != want {
				return fmt.Sprintf("the counts are %s, want %s", got, want)
			}
			return ""
		})
	}
	counts("2 2 2 2 0 0")
	victim := f.pods(t, namespace)[0]
	if err := f.client.CoreV1().Pods(namespace).Delete(t.Context(), victim.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	counts("2 2 2 2 0 1")
	if err := f.client.CoreV1().Pods(namespace).Delete(t.Context(), victim.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
		t.Fatal(err)
	}
	counts("2 2 2 2 0 0")
}

// TestAJobWithASelectorOfItsOwn takes its selector as it is, labels no pod beyond its template, and takes a matching pod that nobody owns for
// one of the two that it needs.
func TestAJobWithASelectorOfItsOwn(t *testing.T) {
	f := newField(t, map[string]string{"node-a": "4"})
	namespace := f.namespace(t)
	f.place(t, namespace, "orphan", "node-a", true)
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "work"}, Spec: batchv1.JobSpec{
		ManualSelector: ptr.To(true), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}},
		Completions: ptr.To[int32](2), Parallelism: ptr.To[int32](2), Template: appTemplate(),
	}}
	job.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	made, err := f.client.BatchV1().Jobs(namespace).Create(t.Context(), job, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(made.Spec.Selector.MatchLabels, job.Spec.Selector.MatchLabels) {
		t.Errorf("its selector became %v", made.Spec.Selector)
	}
	await(t, func() string {
		pods := f.pods(t, namespace)
		if len(pods) > 2 {
			t.Fatalf("beside the pod that nobody owned it made %d", len(pods)-1)
		}
		for _, pod := range pods {
			if pod.Labels["app"] != "x" || pod.Labels[batchv1.ControllerUidLabel] != "" {
				t.Fatalf("labels %v", pod.Labels)
			}
			bound := pod.Spec.NodeName != "" && pod.Status.Phase == corev1.PodPending
			if adopted := pod.Status.Phase == corev1.PodRunning && metav1.IsControlledBy(&pod, made); bound || adopted {
				f.end(t, &pod, 0)
			}
		}
		got, err := f.client.BatchV1().Jobs(namespace).Get(t.Context(), "work", metav1.GetOptions{})
		if err != nil || got.Status.Succeeded != 2 || got.Status.CompletionTime == nil {
			return fmt.Sprintf("%v, %+v", err, got.Status)
		}
		return ""
	})
}

// TestEverythingAnEndpointSays follows the fields of an EndpointSlice through the API, for a pod that is ready, one that is not and one that
// leaves while it still serves.
func TestEverythingAnEndpointSays(t *testing.T) {
	f := newField(t, map[string]string{"node-a": "4", "node-bb": "4"})
	for node, zone := range map[string]string{"node-a": "east", "node-bb": "west"} {
		patch := fmt.Appendf(nil, `{"metadata":{"labels":{"topology.kubernetes.io/zone":%q}}}`, zone)
		if _, err := f.client.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	namespace := f.namespace(t)
	svc, err := f.client.CoreV1().Services(namespace).Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "front", Labels: map[string]string{"team": "blue"}}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "x"}, TrafficDistribution: ptr.To(corev1.ServiceTrafficDistributionPreferSameZone),
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("web"), AppProtocol: ptr.To("kubernetes.io/h2c")}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	uids := map[string]types.UID{}
	for name, node := range map[string]string{"up": "node-a", "sick": "node-bb", "leaves": "node-bb"} {
		uids[name] = f.place(t, namespace, name, node, name != "sick").UID
	}
	if err := f.client.CoreV1().Pods(namespace).Delete(t.Context(), "leaves", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	endpoint := func(name, ip, node, zone string, ready, serving, terminating bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{
			Addresses: []string{ip}, NodeName: &node, Zone: &zone,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: name, UID: uids[name]},
		}
	}
	up := endpoint("up", "10.32.0.3", "node-a", "east", true, true, false)
	up.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "east"}}}
	want := map[string]discoveryv1.Endpoint{
		"up": up, "sick": endpoint("sick", "10.32.0.5", "node-bb", "west", false, false, false),
		"leaves": endpoint("leaves", "10.32.0.7", "node-bb", "west", false, true, true),
	}
	await(t, func() string {
		slices, err := f.client.DiscoveryV1().EndpointSlices(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=front"})
		if err != nil || len(slices.Items) != 1 {
			return fmt.Sprintf("%v, %d slices", err, len(slices.Items))
		}
		slice := slices.Items[0]
		got := map[string]discoveryv1.Endpoint{}
		for _, e := range slice.Endpoints {
			got[e.TargetRef.Name] = e
		}
		if a, b := asJSON(t, got), asJSON(t, want); a != b {
			return fmt.Sprintf("endpoints\n%s\nwant\n%s", a, b)
		}
		ports := asJSON(t, slice.Ports)
		if ports != `[{"name":"http","protocol":"TCP","port":8080,"appProtocol":"kubernetes.io/h2c"}]` || slice.AddressType != discoveryv1.AddressTypeIPv4 ||
			slice.Labels[discoveryv1.LabelManagedBy] != "endpointslice-controller.k8s.io" || slice.Labels["team"] != "blue" || !metav1.IsControlledBy(&slice, svc) {
			return fmt.Sprintf("ports %s, %s, %+v", ports, slice.AddressType, slice.ObjectMeta)
		}
		return ""
	})
}

func asJSON(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestEndpointsAreMirrored: what somebody writes by hand for a Service without a selector becomes EndpointSlices, follows changes and goes.
func TestEndpointsAreMirrored(t *testing.T) {
	f := newField(t, nil)
	namespace := f.namespace(t)
	_, err := f.client.CoreV1().Services(namespace).Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "far"}, Spec: corev1.ServiceSpec{
		Ports: []corev1.ServicePort{{Name: "db", Port: 5432}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	//nolint:staticcheck // Endpoints are what is mirrored
	endpoints, err := f.client.CoreV1().Endpoints(namespace).Create(t.Context(), &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Name: "far", Labels: map[string]string{"team": "blue"}},
		Subsets: []corev1.EndpointSubset{{
			Addresses: []corev1.EndpointAddress{{IP: "203.0.113.1", Hostname: "one"}}, NotReadyAddresses: []corev1.EndpointAddress{{IP: "203.0.113.2"}},
			Ports: []corev1.EndpointPort{{Name: "db", Port: 5433}},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mirrored := func(want string) {
		t.Helper()
		await(t, func() string {
			slices, err := f.client.DiscoveryV1().EndpointSlices(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelManagedBy + "=endpointslicemirroring-controller.k8s.io"})
			if err != nil {
				return err.Error()
			}
			got := ""
			for _, slice := range slices.Items {
				got += slice.Labels[discoveryv1.LabelServiceName] + " " + slice.Labels["team"] + " " + asJSON(t, slice.Ports)
				for _, e := range slice.Endpoints {
					got += fmt.Sprint(" ", e.Addresses, ptr.Deref(e.Hostname, ""), *e.Conditions.Ready)
				}
			}
			if got != want {
				return fmt.Sprintf("%q, want %q", got, want)
			}
			return ""
		})
	}
	mirrored(`far blue [{"name":"db","protocol":"TCP","port":5433}] [203.0.113.1]onetrue [203.0.113.2]false`)
	endpoints.Subsets[0].NotReadyAddresses, endpoints.Subsets[0].Ports[0].Port = nil, 5434
	if _, err := f.client.CoreV1().Endpoints(namespace).Update(t.Context(), endpoints, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	mirrored(`far blue [{"name":"db","protocol":"TCP","port":5434}] [203.0.113.1]onetrue`)
	if err := f.client.CoreV1().Endpoints(namespace).Delete(t.Context(), "far", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	mirrored("")
}
