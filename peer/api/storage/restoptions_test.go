package storage

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/registry/generic"
	kstorage "k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"

	"shoal/consensus"
)

// The decorator finds out for itself which resources have namespaces, and serves
// typed and unstructured objects.
func TestDecorator(t *testing.T) {
	host := sharedHost(t, severalShards)
	decorate := NewDecorator(DecoratorConfig{Host: host})
	getter := NewRESTOptionsGetter(generic.RESTOptions{
		StorageConfig:  storagebackend.NewDefaultConfig("/registry", testCodec).ForResource(schema.GroupResource{Resource: "pods"}),
		ResourcePrefix: "pods",
	}, decorate)

	options, err := getter.GetRESTOptions(schema.GroupResource{Resource: "pods"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name       string
		keyFunc    func(string, runtime.Object) (string, error)
		namespaced bool
	}{{"namespaced", kstorage.NamespaceKeyFunc, true}, {"cluster-scoped", kstorage.NoNamespaceKeyFunc, false}} {
		t.Run(tt.name, func(t *testing.T) {
			s, destroy, err := options.Decorator(options.StorageConfig, "/pods", func(obj runtime.Object) (string, error) { return tt.keyFunc("/pods/", obj) },
				func() runtime.Object { return &example.Pod{} }, func() runtime.Object { return &example.PodList{} }, nil, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer destroy()
			if got := s.(*Storage).keys.namespaced; got != tt.namespaced {
				t.Errorf("taken for namespaced: %v", got)
			}
		})
	}

	t.Run("custom resource", func(t *testing.T) {
		kind := schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Widget"}
		config := storagebackend.NewDefaultConfig("/registry", unstructured.UnstructuredJSONScheme).ForResource(schema.GroupResource{Group: kind.Group, Resource: "widgets"})
		newFunc := func() runtime.Object {
			u := &unstructured.Unstructured{}
			u.SetGroupVersionKind(kind)
			return u
		}
		newListFunc := func() runtime.Object {
			u := &unstructured.UnstructuredList{}
			u.SetGroupVersionKind(kind.GroupVersion().WithKind("WidgetList"))
			return u
		}
		s, _, err := decorate(config, "/example.com/widgets", func(obj runtime.Object) (string, error) {
			return kstorage.NamespaceKeyFunc("/example.com/widgets/", obj)
		}, newFunc, newListFunc, nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		widget := newFunc().(*unstructured.Unstructured)
		widget.SetNamespace("ns")
		widget.SetName("w")
		out := newFunc()
		if err := s.Create(t.Context(), "/example.com/widgets/ns/w", widget, out, 0); err != nil {
			t.Fatal(err)
		}
		list := newListFunc().(*unstructured.UnstructuredList)
		if err := s.GetList(t.Context(), "/example.com/widgets", kstorage.ListOptions{Recursive: true, Predicate: kstorage.Everything}, list); err != nil {
			t.Fatal(err)
		}
		if len(list.Items) != 1 || list.Items[0].GetResourceVersion() != out.(metav1.Object).GetResourceVersion() || list.Items[0].GetKind() != kind.Kind {
			t.Errorf("listed %v", list.Items)
		}
		// nothing of a namespace's objects is in the meta shard
		kvs, err := host.List(t.Context(), consensus.MetaShard, consensus.ListOptions{Prefix: "/registry/example.com/"}, consensus.Linearizable)
		if err != nil || kvs.Count != 0 {
			t.Errorf("%d keys in the meta shard, %v", kvs.Count, err)
		}
	})
}
