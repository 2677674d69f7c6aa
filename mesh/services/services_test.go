package services

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

// Whatever comes in whatever order, the index holds what was said last, and every Service that looks different
// afterwards was named.
func TestIndexProperties(t *testing.T) {
	name := rapid.SampledFrom([]string{"a", "b", "c"})
	namespace := rapid.SampledFrom([]string{"x", "y"})
	key := rapid.Custom(func(t *rapid.T) types.NamespacedName {
		return types.NamespacedName{Namespace: namespace.Draw(t, "namespace"), Name: name.Draw(t, "name")}
	})
	generation := 0
	meta := func(k types.NamespacedName) metav1.ObjectMeta {
		generation++
		return metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name, ResourceVersion: fmt.Sprint(generation)}
	}
	service := rapid.Custom(func(t *rapid.T) *corev1.Service { return &corev1.Service{ObjectMeta: meta(key.Draw(t, "service"))} })
	slice := rapid.Custom(func(t *rapid.T) *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{ObjectMeta: meta(key.Draw(t, "slice"))}
		if owner := rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "owner"); owner != "" {
			s.Labels = map[string]string{discoveryv1.LabelServiceName: owner}
		}
		return s
	})
	rapid.Check(t, func(t *rapid.T) {
		index := NewIndex()
		modelServices := map[types.NamespacedName]*corev1.Service{}
		modelSlices := map[types.NamespacedName]*discoveryv1.EndpointSlice{}
		for range rapid.IntRange(1, 6).Draw(t, "batches") {
			before := contents(index)
			b := Batch{
				Services: rapid.SliceOfN(service, 0, 3).Draw(t, "services"), RemovedServices: rapid.SliceOfN(key, 0, 1).Draw(t, "removed"),
				Slices: rapid.SliceOfN(slice, 0, 3).Draw(t, "slices"), RemovedSlices: rapid.SliceOfN(key, 0, 1).Draw(t, "removed slices"),
				Full: rapid.IntRange(0, 4).Draw(t, "full") == 0,
			}
			touched := index.Update(b)
			if b.Full {
				clear(modelServices)
				clear(modelSlices)
			}
			for _, k := range b.RemovedServices {
				delete(modelServices, k)
			}
			for _, s := range b.Services {
				modelServices[types.NamespacedName{Namespace: s.Namespace, Name: s.Name}] = s
			}
			for _, k := range b.RemovedSlices {
				delete(modelSlices, k)
			}
			for _, s := range b.Slices {
				modelSlices[types.NamespacedName{Namespace: s.Namespace, Name: s.Name}] = s
			}
			want := map[types.NamespacedName]Service{}
			for k, s := range modelServices {
				entry := Service{Service: s}
				for sliceKey, sl := range modelSlices {
					if sliceKey.Namespace == k.Namespace && sl.Labels[discoveryv1.LabelServiceName] == k.Name {
						entry.Slices = append(entry.Slices, sl)
					}
				}
				slices.SortFunc(entry.Slices, compareSlices)
				want[k] = entry
			}
			after := contents(index)
			if !reflect.DeepEqual(after, want) {
				t.Fatalf("got %v, want %v", after, want)
			}
			for _, k := range []string{"x/a", "x/b", "x/c", "y/a", "y/b", "y/c"} {
				at := types.NamespacedName{Namespace: k[:1], Name: k[2:]}
				if !reflect.DeepEqual(before[at], after[at]) && !slices.Contains(touched, at) {
					t.Fatalf("%s changed and was not named in %v", at, touched)
				}
			}
			if !slices.IsSortedFunc(touched, compareKeys) {
				t.Fatalf("not sorted: %v", touched)
			}
		}
	})
}

func contents(x *Index) map[types.NamespacedName]Service {
	out := map[types.NamespacedName]Service{}
	for _, key := range x.Keys() {
		s, _ := x.Get(key)
		out[key] = s
	}
	return out
}
