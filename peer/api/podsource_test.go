package api_test

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// TestPodSource has two factories' informers, which may change what they get, follow the pods as they are stored: they come to show what
// the API shows.
func TestPodSource(t *testing.T) {
	namespace(t, "source")
	pods := admin.CoreV1().Pods("source")
	for i := range 30 {
		pod := boundPod("source", fmt.Sprint("p", i), "here")
		pod.Annotations = map[string]string{"a": "b"}
		must(pods.Create(t.Context(), pod, metav1.CreateOptions{}))(t)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var factories []informers.SharedInformerFactory
	for range 2 {
		factory := informers.NewSharedInformerFactoryWithOptions(must(kubernetes.NewForConfig(shared.Server.Loopback()))(t), 0,
			informers.WithTransform(func(object any) (any, error) {
				if pod, ok := object.(*corev1.Pod); ok {
					delete(pod.Annotations, "a")
				}
				return object, nil
			}))
		shared.Server.Pods().Provide(factory)
		informer := factory.Core().V1().Pods().Informer()
		factory.Start(ctx.Done())
		if !cache.WaitForCacheSync(t.Context().Done(), informer.HasSynced) {
			t.Fatal("the informer did not sync")
		}
		factories = append(factories, factory)
	}
	t.Cleanup(func() {
		cancel()
		for _, factory := range factories {
			factory.Shutdown()
		}
	})
	changed := must(pods.Get(t.Context(), "p3", metav1.GetOptions{}))(t)
	changed.Labels = map[string]string{"changed": "yes"}
	must(pods.Update(t.Context(), changed, metav1.UpdateOptions{}))(t)
	zero := int64(0)
	if err := pods.Delete(t.Context(), "p4", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	must(pods.Create(t.Context(), boundPod("source", "late", "here"), metav1.CreateOptions{}))(t)
	want := must(pods.List(t.Context(), metav1.ListOptions{}))(t)
	for _, factory := range factories {
		eventually(t, func() error { return sameWithoutAnnotations(want.Items, factory) })
	}
}

func sameWithoutAnnotations(want []corev1.Pod, factory informers.SharedInformerFactory) error {
	for i := range want {
		pod := want[i].DeepCopy()
		delete(pod.Annotations, "a")
		got, err := factory.Core().V1().Pods().Lister().Pods("source").Get(pod.Name)
		if err != nil {
			return err
		}
		if !apiequality.Semantic.DeepEqual(got.ObjectMeta, pod.ObjectMeta) || !apiequality.Semantic.DeepEqual(got.Spec, pod.Spec) {
			return fmt.Errorf("the informer has %+v, the API %+v", got, pod)
		}
	}
	got, err := factory.Core().V1().Pods().Informer().GetIndexer().ByIndex(cache.NamespaceIndex, "source")
	if err == nil && len(got) != len(want) {
		err = fmt.Errorf("the informer has %d pods, the API %d", len(got), len(want))
	}
	return err
}
