package endpoints

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"shoal/placement/internal/world"
)

func addresses(ips ...string) []corev1.EndpointAddress {
	var list []corev1.EndpointAddress
	for _, ip := range ips {
		list = append(list, corev1.EndpointAddress{IP: ip})
	}
	return list
}

func byHand(edits ...func(*corev1.Endpoints)) *corev1.Endpoints { //nolint:staticcheck // what is mirrored
	e := &corev1.Endpoints{} //nolint:staticcheck // what is mirrored
	e.Name, e.Namespace, e.UID, e.ResourceVersion = "web", "default", "by-hand", "1"
	e.Labels = map[string]string{"l": "1"}
	e.Annotations = map[string]string{"a": "1", corev1.LastAppliedConfigAnnotation: "{}", corev1.EndpointsLastChangeTriggerTime: "now"}
	e.Subsets = []corev1.EndpointSubset{ //nolint:staticcheck // what is mirrored
		{Addresses: addresses("192.0.2.1", "2001:db8::1"), NotReadyAddresses: addresses("192.0.2.2"), Ports: []corev1.EndpointPort{{Name: "http", Port: 80}}}, //nolint:staticcheck // as above
		{Addresses: addresses("192.0.2.3"), Ports: []corev1.EndpointPort{{Name: "http", Port: 81, AppProtocol: ptr.To("h2")}}},                                //nolint:staticcheck // as above
		{Addresses: addresses("192.0.2.2", "192.0.2.1"), Ports: []corev1.EndpointPort{{Name: "http", Port: 80}}},                                              //nolint:staticcheck // as above
	}
	for _, edit := range edits {
		edit(e)
	}
	return e
}

func withoutSelector(s *corev1.Service) { s.Spec.Selector = nil }

// addressesShown lists the slices' addresses.
func addressesShown(w *world.World) []string {
	var lines []string
	for _, s := range w.View.EndpointSlices.In("default") {
		for _, e := range s.Endpoints {
			lines = append(lines, fmt.Sprintf("%s %d %v", strings.Join(e.Addresses, ","), *s.Ports[0].Port, *e.Conditions.Ready))
		}
	}
	slices.Sort(lines)
	return lines
}

// TestHandMadeEndpointsAreMirrored follows Endpoints that somebody has written from their first slice to their last.
func TestHandMadeEndpointsAreMirrored(t *testing.T) {
	w := world.New()
	w.Put(makeService(withoutSelector))
	w.Put(byHand())
	plan(t, w)
	want := []string{"192.0.2.1 80 true", "192.0.2.2 80 true", "192.0.2.3 81 true", "2001:db8::1 80 true"}
	if got := addressesShown(w); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, s := range w.View.EndpointSlices.In("default") {
		labels := map[string]string{"l": "1", discoveryv1.LabelServiceName: "web", discoveryv1.LabelManagedBy: mirroredBy}
		if !maps.Equal(s.Labels, labels) || !maps.Equal(s.Annotations, map[string]string{"a": "1"}) || !metav1.IsControlledBy(s, byHand()) {
			t.Errorf("slice labels %v, annotations %v, owners %v", s.Labels, s.Annotations, s.OwnerReferences)
		}
	}
	if again := plan(t, w); len(again.Changes) != 0 {
		t.Errorf("a second plan changes %d objects", len(again.Changes))
	}
	w.Put(byHand(func(e *corev1.Endpoints) { e.Subsets = e.Subsets[1:2] })) //nolint:staticcheck // what is mirrored
	plan(t, w)
	if got := addressesShown(w); !slices.Equal(got, []string{"192.0.2.3 81 true"}) || w.View.EndpointSlices.Len() != 1 {
		t.Errorf("got %q in %d slices", got, w.View.EndpointSlices.Len())
	}
	w.Put(makeService()) // with a selector they are the pods'
	plan(t, w)
	for _, s := range w.View.EndpointSlices.In("default") {
		if s.Labels[discoveryv1.LabelManagedBy] != managedBy {
			t.Errorf("%v is left", s.Labels)
		}
	}
}

// TestWhatIsNotMirrored: locks, what says so, what is no hand's work; and of the rest what is no address, or too much.
func TestWhatIsNotMirrored(t *testing.T) {
	for name, edit := range map[string]func(*corev1.Endpoints){ //nolint:staticcheck // what is mirrored
		"label": func(e *corev1.Endpoints) { e.Labels[discoveryv1.LabelSkipMirror] = "true" },     //nolint:staticcheck // as above
		"lock":  func(e *corev1.Endpoints) { e.Annotations[leaderElection] = "{}" },               //nolint:staticcheck // as above
		"ours":  func(e *corev1.Endpoints) { e.Labels[endpointsManagedBy] = endpointsController }, //nolint:staticcheck // as above
		"empty": func(e *corev1.Endpoints) { e.Subsets = nil },                                    //nolint:staticcheck // as above
	} {
		w := world.New()
		w.Put(makeService(withoutSelector))
		w.Put(byHand())
		plan(t, w)
		w.Put(byHand(edit))
		if plan(t, w); w.View.EndpointSlices.Len() != 0 {
			t.Errorf("%s: %q", name, addressesShown(w))
		}
	}
	w := world.New()
	w.Put(makeService(withoutSelector))
	w.Put(byHand(func(e *corev1.Endpoints) { //nolint:staticcheck // what is mirrored
		for i := range 1200 {
			e.Subsets[0].Addresses = append(e.Subsets[0].Addresses, addresses(fmt.Sprintf("198.51.%d.%d", i/200, i%200))...)
		}
		e.Subsets[1].Addresses[0].IP = "no address"
	}))
	p := plan(t, w)
	if len(p.Events) != 2 || p.Events[0].Reason != "InvalidIPAddress" || p.Events[1].Reason != "TooManyAddressesToMirror" {
		t.Errorf("events %+v", p.Events)
	}
	if n := len(addressesShown(w)); n != maxMirrored+1 { // the third subset has one that the first has not
		t.Errorf("%d addresses are mirrored", n)
	}
	w.Remove(byHand())
	if plan(t, w); w.View.EndpointSlices.Len() != 0 {
		t.Errorf("of Endpoints that are gone %q is left", addressesShown(w))
	}
}
