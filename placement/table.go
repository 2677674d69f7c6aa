package placement

import (
	"cmp"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Table holds the objects of one kind, found by key, by namespace and by controller.
// Its lists are sorted by namespace and name, so that decisions do not depend on map order.
// The zero Table is empty and ready.
type Table[T Object] struct {
	byKey map[types.NamespacedName]T
	in    map[string]map[string]T
	of    map[types.UID]map[types.NamespacedName]T
	free  map[string]map[string]T // by namespace: those without a controller
}

// Get returns the object of that name, if there is one.
func (t *Table[T]) Get(namespace, name string) (T, bool) {
	o, ok := t.byKey[types.NamespacedName{Namespace: namespace, Name: name}]
	return o, ok
}

// Len is the number of objects.
func (t *Table[T]) Len() int { return len(t.byKey) }

// All lists every object.
func (t *Table[T]) All() []T { return sorted(t.byKey) }

// In lists the objects of one namespace.
func (t *Table[T]) In(namespace string) []T { return sorted(t.in[namespace]) }

// Of lists the objects whose controller has that UID.
func (t *Table[T]) Of(controller types.UID) []T { return sorted(t.of[controller]) }

// Orphans lists the objects of one namespace that have no controller.
func (t *Table[T]) Orphans(namespace string) []T { return sorted(t.free[namespace]) }

func (t *Table[T]) put(o T) {
	if t.byKey == nil {
		t.byKey = map[types.NamespacedName]T{}
		t.in = map[string]map[string]T{}
		t.of = map[types.UID]map[types.NamespacedName]T{}
		t.free = map[string]map[string]T{}
	}
	key := keyOf(o)
	t.delete(key)
	t.byKey[key] = o
	addTo(t.in, key.Namespace, key.Name, o)
	if ref := metav1.GetControllerOfNoCopy(o); ref != nil {
		addTo(t.of, ref.UID, key, o)
	} else {
		addTo(t.free, key.Namespace, key.Name, o)
	}
}

func (t *Table[T]) delete(key types.NamespacedName) (T, bool) {
	old, ok := t.byKey[key]
	if !ok {
		return old, false
	}
	delete(t.byKey, key)
	dropFrom(t.in, key.Namespace, key.Name)
	if ref := metav1.GetControllerOfNoCopy(old); ref != nil {
		dropFrom(t.of, ref.UID, key)
	} else {
		dropFrom(t.free, key.Namespace, key.Name)
	}
	return old, true
}

// addTo puts a value into a map of maps.
func addTo[A, B comparable, T any](m map[A]map[B]T, a A, b B, value T) {
	inner := m[a]
	if inner == nil {
		inner = map[B]T{}
		m[a] = inner
	}
	inner[b] = value
}

// dropFrom takes a value out of a map of maps and leaves no empty inner map behind.
func dropFrom[A, B comparable, T any](m map[A]map[B]T, a A, b B) {
	inner := m[a]
	delete(inner, b)
	if len(inner) == 0 {
		delete(m, a)
	}
}

func sorted[K comparable, T metav1.Object](m map[K]T) []T {
	if len(m) == 0 {
		return nil
	}
	list := make([]T, 0, len(m))
	for _, o := range m {
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b T) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return list
}
