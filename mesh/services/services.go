// Package services keeps Services together with their EndpointSlices. PURE.
//
// The two arrive as separate objects, in any order, through watches; whoever compiles Services (VIPs, DNS) wants to
// know which Services a batch of changes has touched, and each one's slices.
package services

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Batch is a set of changes that take effect together. Objects are not changed afterwards, neither by the giver nor by
// the receiver.
type Batch struct {
	Services        []*corev1.Service // added or changed
	RemovedServices []types.NamespacedName
	Slices          []*discoveryv1.EndpointSlice // added or changed
	RemovedSlices   []types.NamespacedName
	Full            bool // the batch is everything there is: what it does not hold is gone
}

// Service is a Service with its endpoints.
type Service struct {
	Service *corev1.Service
	Slices  []*discoveryv1.EndpointSlice // of any address type, sorted by name
}

// Index is the current set of Services and EndpointSlices. It is not safe for concurrent use.
type Index struct {
	services map[types.NamespacedName]*corev1.Service
	slices   map[types.NamespacedName]map[string]*discoveryv1.EndpointSlice // by Service, then by the slice's name
	backs    map[types.NamespacedName]types.NamespacedName                  // slice → its Service
}

// NewIndex returns an empty index.
func NewIndex() *Index {
	x := &Index{}
	x.clear()
	return x
}

func (x *Index) clear() {
	x.services = map[types.NamespacedName]*corev1.Service{}
	x.slices = map[types.NamespacedName]map[string]*discoveryv1.EndpointSlice{}
	x.backs = map[types.NamespacedName]types.NamespacedName{}
}

// Update takes in b and returns the Services it touches, sorted: those to look up and compile anew, with Get
// answering false for the ones that are gone.
func (x *Index) Update(b Batch) []types.NamespacedName {
	touched := map[types.NamespacedName]struct{}{}
	if b.Full {
		for key := range x.services {
			touched[key] = struct{}{}
		}
		x.clear()
	}
	for _, key := range b.RemovedServices {
		delete(x.services, key)
		touched[key] = struct{}{}
	}
	for _, s := range b.Services {
		key := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
		x.services[key] = s
		touched[key] = struct{}{}
	}
	for _, key := range b.RemovedSlices {
		x.removeSlice(key, touched)
	}
	for _, s := range b.Slices {
		key := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
		service := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		if x.backs[key] != service {
			x.removeSlice(key, touched) // it backed another Service, or none
		}
		if service.Name == "" {
			continue
		}
		if x.slices[service] == nil {
			x.slices[service] = map[string]*discoveryv1.EndpointSlice{}
		}
		x.slices[service][s.Name] = s
		x.backs[key] = service
		touched[service] = struct{}{}
	}
	return slices.SortedFunc(maps.Keys(touched), compareKeys)
}

func (x *Index) removeSlice(key types.NamespacedName, touched map[types.NamespacedName]struct{}) {
	service, known := x.backs[key]
	if !known {
		return
	}
	delete(x.backs, key)
	delete(x.slices[service], key.Name)
	if len(x.slices[service]) == 0 {
		delete(x.slices, service)
	}
	touched[service] = struct{}{}
}

// Get returns a Service with its slices; false if the Service does not exist (its slices may).
func (x *Index) Get(key types.NamespacedName) (Service, bool) {
	s, ok := x.services[key]
	if !ok {
		return Service{}, false
	}
	return Service{Service: s, Slices: slices.SortedFunc(maps.Values(x.slices[key]), compareSlices)}, true
}

// Keys lists all Services, sorted.
func (x *Index) Keys() []types.NamespacedName {
	return slices.SortedFunc(maps.Keys(x.services), compareKeys)
}

func compareKeys(a, b types.NamespacedName) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

func compareSlices(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) }
