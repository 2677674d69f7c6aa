package endpoints

import (
	"fmt"
	"maps"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/endpointslice/topologycache"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement/internal/world"
)

// TestTopologyHintsAreUpstreams compares how many endpoints are hinted to each zone with what upstream's library does with the same slices
// and nodes, and that whoever asks again gets the same. Two zones: with more, upstream's choice depends on the order of a map.
func TestTopologyHintsAreUpstreams(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := world.New()
		w.Put(makeService(func(s *corev1.Service) {
			s.Annotations = map[string]string{corev1.AnnotationTopologyMode: "Auto"}
			s.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferSameNode) // which does not count then
		}))
		var nodes []*corev1.Node
		for i := range rapid.IntRange(1, 5).Draw(t, "nodes") {
			n := makeNode(fmt.Sprintf("n%d", i), rapid.SampledFrom([]corev1.ConditionStatus{"True", "True", "True", "False"}).Draw(t, "ready"))
			n.Labels[corev1.LabelTopologyZone] = rapid.SampledFrom([]string{"a", "b", "a", "b", "a", "b", ""}).Draw(t, "zone")
			n.Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(rapid.SampledFrom([]string{"1", "2", "8"}).Draw(t, "cpu"))}
			nodes = append(nodes, n)
			w.Put(n)
		}
		for i := range rapid.IntRange(0, 20).Draw(t, "pods") {
			w.Put(makePod(i, nodes[rapid.IntRange(0, len(nodes)-1).Draw(t, "node")].Name, rapid.Bool().Draw(t, "up")))
		}
		first := plan(t, w)
		if again := plan(t, w); len(again.Changes) != 0 {
			t.Fatalf("a second plan changes %d objects", len(again.Changes))
		}
		got := w.View.EndpointSlices.In("default")[0]
		want := got.DeepCopy()
		for i := range want.Endpoints {
			want.Endpoints[i].Hints = nil
		}
		cache := topologycache.NewTopologyCache()
		cache.SetNodes(logr.Discard(), nodes)
		_, _, events := cache.AddHints(logr.Discard(), &topologycache.SliceInfo{
			ServiceKey: "default/web", AddressType: discoveryv1.AddressTypeIPv4, ToCreate: []*discoveryv1.EndpointSlice{want},
		})
		if g, w := hinted(got), hinted(want); !maps.Equal(g, w) {
			t.Fatalf("hints %v, upstream's %v, events %+v", g, w, events)
		}
		if disabled := len(hinted(want)) == 0 && events[0].Reason == "TopologyAwareHintsDisabled"; disabled != (len(first.Events) == 1) {
			t.Fatalf("events %+v, upstream's %+v", first.Events, events[0])
		} else if disabled && first.Events[0].Message != events[0].Message {
			t.Fatalf("%q, upstream says %q", first.Events[0].Message, events[0].Message)
		}
	})
}

// hinted counts the hints for each zone.
func hinted(s *discoveryv1.EndpointSlice) map[string]int {
	zones := map[string]int{}
	for _, e := range s.Endpoints {
		if e.Hints != nil {
			zones[e.Hints.ForZones[0].Name]++
		}
	}
	return zones
}
