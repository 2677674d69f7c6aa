package endpoints

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/endpointslice/trafficdist"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
	"shoal/placement/internal/world"
)

var webKey = types.NamespacedName{Namespace: "default", Name: "web"}

func makeService(edits ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{}
	s.Name, s.Namespace = "web", "default"
	s.Labels = map[string]string{"team": "a"}
	s.Spec = corev1.ServiceSpec{
		ClusterIP: "10.96.0.7", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
		Selector: map[string]string{"app": "web"},
		Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http"), Protocol: corev1.ProtocolTCP}},
	}
	for _, edit := range edits {
		edit(s)
	}
	return s
}

func makeNode(name string, ready corev1.ConditionStatus) *corev1.Node {
	n := &corev1.Node{}
	n.Name = name
	n.Labels = map[string]string{corev1.LabelTopologyZone: "zone-" + name}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
	return n
}

func makePod(i int, node string, ready bool, edits ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{}
	p.Name, p.Namespace, p.UID = fmt.Sprintf("web-%03d", i), "default", types.UID(fmt.Sprintf("uid-%d", i))
	p.Labels = map[string]string{"app": "web"}
	p.Spec.NodeName = node
	p.Spec.Containers = []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}}}
	p.Status.Phase = corev1.PodRunning
	p.Status.PodIP = fmt.Sprintf("10.32.%d.%d", i/200, i%200+1)
	p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	world.SetReady(p, ready, world.New().Now)
	for _, edit := range edits {
		edit(p)
	}
	return p
}

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

// plan plans and applies, and returns the plan.
func plan(t fataler, w *world.World) placement.Plan {
	t.Helper()
	p := Plan(w.View, webKey, w.Now)
	if err := w.Apply(p); err != nil {
		t.Fatalf("apply: %v", err)
	}
	return p
}

// shown lists what the slices say, one line per endpoint.
func shown(w *world.World) []string {
	var lines []string
	for _, s := range w.View.EndpointSlices.In("default") {
		var ports []string
		for _, p := range s.Ports {
			ports = append(ports, fmt.Sprintf("%s/%d", *p.Name, *p.Port))
		}
		for _, e := range s.Endpoints {
			var is []string
			for name, on := range map[string]*bool{"ready": e.Conditions.Ready, "serving": e.Conditions.Serving, "terminating": e.Conditions.Terminating} {
				if ptr.Deref(on, false) {
					is = append(is, name)
				}
			}
			slices.Sort(is)
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s %s", e.TargetRef.Name, strings.Join(e.Addresses, ","),
				strings.Join(ports, ","), ptr.Deref(e.Zone, "-"), ptr.Deref(e.Hostname, "-"), strings.Join(is, "+"))))
		}
	}
	slices.Sort(lines)
	return lines
}

func TestEndpoints(t *testing.T) {
	headlessWith := func(publish bool) func(*corev1.Service) {
		return func(s *corev1.Service) {
			s.Spec.ClusterIP, s.Spec.PublishNotReadyAddresses = corev1.ClusterIPNone, publish
		}
	}
	terminating := func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: world.New().Now} }
	tests := []struct {
		name    string
		objects []placement.Object
		want    []string
	}{
		{"ready and not ready", []placement.Object{makeService(), makeNode("a", "True"), makePod(1, "a", true), makePod(2, "a", false)},
			[]string{"web-001 10.32.0.2 http/8080 zone-a - ready+serving", "web-002 10.32.0.3 http/8080 zone-a -"}},
		{"terminating still serves", []placement.Object{makeService(), makeNode("a", "True"), makePod(1, "a", true, terminating)},
			[]string{"web-001 10.32.0.2 http/8080 zone-a - serving+terminating"}},
		{"lost node drops its pods", []placement.Object{makeService(), makeNode("a", "True"), makeNode("b", "Unknown"), makePod(1, "a", true), makePod(2, "b", true)},
			[]string{"web-001 10.32.0.2 http/8080 zone-a - ready+serving"}},
		{"unknown node is gone", []placement.Object{makeService(), makePod(1, "a", true)}, nil},
		{"unready node", []placement.Object{makeService(), makeNode("a", "False"), makePod(1, "a", true)},
			[]string{"web-001 10.32.0.2 http/8080 zone-a -"}},
		{"headless with hostname, published unready", []placement.Object{makeService(headlessWith(true)), makeNode("a", "True"),
			makePod(1, "a", false, func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "one", "web" })},
			[]string{"web-001 10.32.0.2 http/8080 zone-a one ready"}},
		{"no address, finished, unscheduled, other labels", []placement.Object{makeService(), makeNode("a", "True"),
			makePod(1, "a", true, func(p *corev1.Pod) { p.Status.PodIP, p.Status.PodIPs = "", nil }),
			makePod(2, "a", true, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
			makePod(3, "", true), makePod(4, "a", true, func(p *corev1.Pod) { p.Labels["app"] = "db" })}, nil},
		{"named port differs by pod, or is missing", []placement.Object{makeService(), makeNode("a", "True"), makePod(1, "a", true),
			makePod(2, "a", true, func(p *corev1.Pod) { p.Spec.Containers[0].Ports[0].ContainerPort = 9090 }),
			makePod(3, "a", true, func(p *corev1.Pod) { p.Spec.Containers[0].Ports = nil })},
			[]string{"web-001 10.32.0.2 http/8080 zone-a - ready+serving", "web-002 10.32.0.3 http/9090 zone-a - ready+serving"}},
		{"no selector", []placement.Object{makeService(func(s *corev1.Service) { s.Spec.Selector = nil }), makeNode("a", "True"), makePod(1, "a", true)}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := world.New()
			for _, o := range test.objects {
				w.Put(o)
			}
			plan(t, w)
			if got := shown(w); !slices.Equal(got, test.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
			if again := plan(t, w); len(again.Changes) != 0 {
				t.Errorf("a second plan changes %d objects", len(again.Changes))
			}
		})
	}
}

func TestLegacyEndpointsAndRemoval(t *testing.T) {
	w := world.New()
	svc := w.Put(makeService())
	w.Put(makeNode("a", "True"))
	w.Put(makePod(1, "a", true))
	w.Put(makePod(2, "a", false))
	plan(t, w)
	e, ok := w.View.Endpoints.Get("default", "web")
	if !ok || len(e.Subsets) != 1 || len(e.Subsets[0].Addresses) != 1 || len(e.Subsets[0].NotReadyAddresses) != 1 || e.Subsets[0].Ports[0].Port != 8080 {
		t.Fatalf("endpoints: %+v", e)
	}
	s := w.View.EndpointSlices.In("default")[0]
	want := map[string]string{"team": "a", discoveryv1.LabelServiceName: "web", discoveryv1.LabelManagedBy: managedBy}
	if !maps.Equal(s.Labels, want) || !metav1.IsControlledBy(s, svc) {
		t.Errorf("slice labels %v, owners %v", s.Labels, s.OwnerReferences)
	}
	w.Remove(svc)
	plan(t, w)
	if w.View.EndpointSlices.Len() != 0 || w.View.Endpoints.Len() != 0 {
		t.Error("something is left of a deleted service")
	}
}

// TestFewWrites: with 250 endpoints in 3 slices, one pod's change writes one slice; a pod that
// goes and another that comes write one slice together.
func TestFewWrites(t *testing.T) {
	w := world.New()
	w.Put(makeService())
	w.Put(makeNode("a", "True"))
	for i := range 250 {
		w.Put(makePod(i, "a", true))
	}
	plan(t, w)
	if n := w.View.EndpointSlices.Len(); n != 3 {
		t.Fatalf("%d slices for 250 endpoints", n)
	}
	slicesIn := func(p placement.Plan) (n int) {
		for _, c := range p.Changes {
			if _, ok := c.Object.(*discoveryv1.EndpointSlice); ok {
				n++
			}
		}
		return n
	}
	w.Put(makePod(17, "a", false))
	if n := slicesIn(plan(t, w)); n != 1 {
		t.Errorf("a pod's readiness wrote %d slices", n)
	}
	w.Remove(makePod(17, "a", false))
	w.Put(makePod(300, "a", true))
	if n := slicesIn(plan(t, w)); n != 1 {
		t.Errorf("one gone and one new wrote %d slices", n)
	}
}

// TestHintsAreUpstreams compares the hints with those that upstream's library gives the same slices.
func TestHintsAreUpstreams(t *testing.T) {
	for _, wish := range []*string{
		nil, ptr.To(corev1.ServiceTrafficDistributionPreferClose), ptr.To(corev1.ServiceTrafficDistributionPreferSameZone),
		ptr.To(corev1.ServiceTrafficDistributionPreferSameNode), ptr.To("unknown"),
	} {
		w := world.New()
		w.Put(makeService(func(s *corev1.Service) { s.Spec.TrafficDistribution = wish }))
		w.Put(makeNode("a", "True"))
		zoneless := makeNode("b", "True")
		zoneless.Labels = nil
		w.Put(zoneless)
		w.Put(makePod(1, "a", true))
		w.Put(makePod(2, "a", false))
		w.Put(makePod(3, "b", true))
		plan(t, w)
		got := w.View.EndpointSlices.In("default")[0]
		want := got.DeepCopy()
		for i := range want.Endpoints {
			want.Endpoints[i].Hints = nil
		}
		trafficdist.ReconcileHints(wish, []*discoveryv1.EndpointSlice{want}, nil, nil)
		for i := range want.Endpoints {
			if g, w := got.Endpoints[i].Hints, want.Endpoints[i].Hints; !apiequality.Semantic.DeepEqual(g, w) {
				t.Errorf("%s, %s: hints %+v, upstream's %+v", ptr.Deref(wish, "none"), want.Endpoints[i].TargetRef.Name, g, w)
			}
		}
	}
}

// TestDoubledEndpointIsRepaired: whatever somebody wrote into our slices, each endpoint is there once.
func TestDoubledEndpointIsRepaired(t *testing.T) {
	w := world.New()
	w.Put(makeService())
	w.Put(makeNode("a", "True"))
	w.Put(makePod(1, "a", true))
	plan(t, w)
	s := w.View.EndpointSlices.In("default")[0].DeepCopy()
	s.Endpoints = append(s.Endpoints, s.Endpoints[0])
	w.Put(s)
	plan(t, w)
	if got := shown(w); len(got) != 1 {
		t.Errorf("got %v", got)
	}
}

// TestSlicesAreTrue: after any history of changes the slices hold exactly the wanted endpoints,
// each once, none over the limit, and planning again changes nothing.
func TestSlicesAreTrue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := world.New()
		w.Put(makeService())
		for _, n := range []string{"a", "b"} {
			w.Put(makeNode(n, "True"))
		}
		for range rapid.IntRange(1, 10).Draw(t, "steps") {
			for range rapid.IntRange(1, 60).Draw(t, "changes") {
				i := rapid.IntRange(0, 160).Draw(t, "pod")
				if rapid.IntRange(0, 3).Draw(t, "gone") == 0 {
					w.Remove(makePod(i, "a", true))
				} else {
					port := rapid.SampledFrom([]int32{8080, 9090}).Draw(t, "port")
					w.Put(makePod(i, rapid.SampledFrom([]string{"a", "b"}).Draw(t, "node"), rapid.Bool().Draw(t, "ready"), func(p *corev1.Pod) {
						p.Spec.Containers[0].Ports[0].ContainerPort = port
					}))
				}
			}
			w.Put(makeNode("b", rapid.SampledFrom([]corev1.ConditionStatus{"True", "Unknown", "False"}).Draw(t, "b")))
			plan(t, w)
			checkSlices(t, w)
			if again := plan(t, w); len(again.Changes) != 0 {
				t.Fatalf("a second plan changes %d objects", len(again.Changes))
			}
		}
	})
}

func checkSlices(t *rapid.T, w *world.World) {
	want := map[string]string{}
	for _, p := range w.Pods("default") {
		if n, ok := w.View.Node(p.Spec.NodeName); ok && !n.Lost() {
			ready := placement.Ready(p) && n.Ready() == corev1.ConditionTrue
			want[p.Name] = fmt.Sprint(p.Status.PodIP, ready, p.Spec.Containers[0].Ports[0].ContainerPort, p.Spec.NodeName)
		}
	}
	got := map[string]string{}
	for _, s := range w.View.EndpointSlices.In("default") {
		if len(s.Endpoints) > maxPerSlice {
			t.Fatalf("%s has %d endpoints", s.Name, len(s.Endpoints))
		}
		for _, e := range s.Endpoints {
			if _, twice := got[e.TargetRef.Name]; twice {
				t.Fatalf("%s is there twice", e.TargetRef.Name)
			}
			got[e.TargetRef.Name] = fmt.Sprint(e.Addresses[0], *e.Conditions.Ready, *s.Ports[0].Port, *e.NodeName)
		}
	}
	if !maps.Equal(got, want) {
		t.Fatalf("got %v\nwant %v", got, want)
	}
}
