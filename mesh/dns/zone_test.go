package dns

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"shoal/mesh/services"
)

func pointer[T any](v T) *T { return &v }

func service(name string, change func(*corev1.ServiceSpec)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	s.Spec = corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.10",
		Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
	}
	if change != nil {
		change(&s.Spec)
	}
	return s
}

func headless(s *corev1.ServiceSpec) {
	s.ClusterIP, s.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
}

func slice(service string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: service + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: service},
		},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints,
		Ports: []discoveryv1.EndpointPort{{Name: pointer("http"), Port: pointer(int32(8080)), Protocol: pointer(corev1.ProtocolTCP)}},
	}
}

const testDomain = "cluster.local."

// zoneOf holds a Service of every kind.
func zoneOf(t *testing.T) *Zone {
	t.Helper()
	ready := discoveryv1.Endpoint{Addresses: []string{"10.32.7.2"}, Hostname: pointer("db-0")}
	unready := discoveryv1.Endpoint{
		Addresses: []string{"10.32.7.3"}, Hostname: pointer("db-1"),
		Conditions: discoveryv1.EndpointConditions{Ready: pointer(false)},
	}
	nameless := discoveryv1.Endpoint{Addresses: []string{"10.32.8.4"}}
	index := services.NewIndex()
	index.Update(services.Batch{
		Services: []*corev1.Service{
			service("web", func(s *corev1.ServiceSpec) { s.ClusterIPs = []string{"10.96.0.10", "fd00::10"} }),
			service("db", headless),
			service("early", func(s *corev1.ServiceSpec) { headless(s); s.PublishNotReadyAddresses = true }),
			service("empty", headless),
			service("alias", func(s *corev1.ServiceSpec) {
				s.Type, s.ClusterIP, s.ExternalName = corev1.ServiceTypeExternalName, "", "Example.org"
			}),
			service("inner", func(s *corev1.ServiceSpec) {
				s.Type, s.ClusterIP, s.ExternalName = corev1.ServiceTypeExternalName, "", "web.default.svc.cluster.local"
			}),
			service("loop", func(s *corev1.ServiceSpec) {
				s.Type, s.ClusterIP, s.ExternalName = corev1.ServiceTypeExternalName, "", "loop.default.svc.cluster.local"
			}),
		},
		Slices: []*discoveryv1.EndpointSlice{
			slice("web", ready), slice("db", ready, unready, nameless), slice("early", unready), slice("alias", ready),
		},
	})
	changes := map[string][]Name{"": fixed(testDomain)}
	for _, key := range index.Keys() {
		s, _ := index.Get(key)
		changes[key.String()] = Names(s, testDomain)
	}
	return NewZone().With(changes)
}

// Each case is a question and what the zone says to it: the answers' data, or NXDOMAIN, NODATA, or the name for which
// an upstream server is asked.
func TestAnswers(t *testing.T) {
	zone := zoneOf(t)
	for question, want := range map[string]string{
		"A web.default.svc.cluster.local.":               "10.96.0.10",
		"A WEB.Default.svc.cluster.local.":               "10.96.0.10",
		"AAAA web.default.svc.cluster.local.":            "fd00::10",
		"TXT web.default.svc.cluster.local.":             "NODATA",
		"SRV _http._tcp.web.default.svc.cluster.local.":  "0 100 80 web.default.svc.cluster.local. +10.96.0.10 +fd00::10",
		"SRV _https._tcp.web.default.svc.cluster.local.": "NXDOMAIN",
		"A _tcp.web.default.svc.cluster.local.":          "NODATA", // there are names below it
		"PTR 10.0.96.10.in-addr.arpa.":                   "web.default.svc.cluster.local.",

		"A db.default.svc.cluster.local.":              "10.32.7.2 10.32.8.4",
		"A db-0.db.default.svc.cluster.local.":         "10.32.7.2",
		"A db-1.db.default.svc.cluster.local.":         "NXDOMAIN",
		"AAAA db-0.db.default.svc.cluster.local.":      "NODATA",
		"A 10-32-8-4.db.default.svc.cluster.local.":    "10.32.8.4",
		"SRV _http._tcp.db.default.svc.cluster.local.": "0 100 8080 10-32-8-4.db.default.svc.cluster.local. 0 100 8080 db-0.db.default.svc.cluster.local. +10.32.7.2 +10.32.8.4",
		"PTR 2.7.32.10.in-addr.arpa.":                  "db-0.db.default.svc.cluster.local.",
		"A db-1.early.default.svc.cluster.local.":      "10.32.7.3",
		"A empty.default.svc.cluster.local.":           "NODATA",

		"A alias.default.svc.cluster.local.":     "example.org. → example.org.",
		"CNAME alias.default.svc.cluster.local.": "example.org.",
		"A inner.default.svc.cluster.local.":     "10.96.0.10 web.default.svc.cluster.local.",
		"TXT inner.default.svc.cluster.local.":   "web.default.svc.cluster.local. NODATA",

		"A nosuch.default.svc.cluster.local.":        "NXDOMAIN",
		"A web.nosuch.svc.cluster.local.":            "NXDOMAIN",
		"A default.svc.cluster.local.":               "NODATA",
		"A svc.cluster.local.":                       "NODATA",
		"A cluster.local.":                           "NODATA",
		"A web.cluster.local.":                       "NXDOMAIN",
		"A example.com.default.svc.cluster.local.":   "NXDOMAIN",
		"TXT dns-version.cluster.local.":             "1.1.0",
		"A 10-32-7-2.default.pod.cluster.local.":     "10.32.7.2",
		"AAAA fd00--7.default.pod.cluster.local.":    "fd00::7",
		"AAAA 10-32-7-2.default.pod.cluster.local.":  "NODATA",
		"A 10-32-7.default.pod.cluster.local.":       "NXDOMAIN",
		"A 10-32-7-2.sub.default.pod.cluster.local.": "NXDOMAIN",
		"A default.pod.cluster.local.":               "NODATA",
		"A example.com.":                             " → example.com.",
		"A notcluster.local.":                        " → notcluster.local.",
		"PTR 9.9.96.10.in-addr.arpa.":                " → 9.9.96.10.in-addr.arpa.",
		"PTR 10.in-addr.arpa.":                       " → 10.in-addr.arpa.",
	} {
		rrtype, name, _ := strings.Cut(question, " ")
		reply := new(dns.Msg)
		q := dns.Question{Name: name, Qtype: dns.StringToType[rrtype], Qclass: dns.ClassINET}
		remains, forward := answer(zone, testDomain, q, reply)
		if got := say(reply, remains, forward); got != want {
			t.Errorf("%s: got %q, want %q", question, got, want)
		}
	}
	reply := new(dns.Msg)
	answer(zone, testDomain, dns.Question{Name: "loop.default.svc.cluster.local.", Qtype: dns.TypeA}, reply)
	if reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("a loop of aliases: %s", dns.RcodeToString[reply.Rcode])
	}
}

func say(reply *dns.Msg, remains dns.Question, forward bool) string {
	var words []string
	for _, rr := range reply.Answer {
		words = append(words, strings.Trim(data(rr), `"`))
	}
	slices.Sort(words)
	var extra []string
	for _, rr := range reply.Extra {
		extra = append(extra, "+"+data(rr))
	}
	slices.Sort(extra)
	words = append(words, extra...)
	switch {
	case forward:
		return strings.Join(words, " ") + " → " + remains.Name
	case reply.Rcode == dns.RcodeNameError:
		words = append(words, "NXDOMAIN")
	case len(reply.Ns) == 1 && reply.Ns[0].Header().Rrtype == dns.TypeSOA:
		words = append(words, "NODATA")
	}
	return strings.Join(words, " ")
}

func data(rr dns.RR) string { return strings.TrimPrefix(rr.String(), rr.Header().String()) }

// Whatever the order of changes, a zone is what its owners' last words make it, and old zones stay as they were.
func TestZoneProperties(t *testing.T) {
	label := rapid.SampledFrom([]string{"a", "b", "aa", "a-b"})
	name := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(label, 1, 3).Draw(t, "labels"), ".") + "."
	})
	rapid.Check(t, func(t *rapid.T) {
		zone := NewZone()
		model := map[string][]string{}
		for range rapid.IntRange(1, 6).Draw(t, "batches") {
			old, oldText := zone, print(zone)
			changes := map[string][]Name{}
			for range rapid.IntRange(1, 3).Draw(t, "changes") {
				owner := rapid.SampledFrom([]string{"x", "y", "xy"}).Draw(t, "owner")
				names := rapid.SliceOfNDistinct(name, 0, 4, rapid.ID[string]).Draw(t, "names")
				model[owner], changes[owner] = names, nil
				for _, n := range names {
					rr := &dns.TXT{Hdr: header(n, dns.TypeTXT), Txt: []string{owner}}
					changes[owner] = append(changes[owner], Name{Name: n, Records: []dns.RR{rr}})
				}
			}
			zone = zone.With(changes)
			if print(old) != oldText {
				t.Fatal("an old zone has changed")
			}
		}
		for range 10 {
			n := name.Draw(t, "asked")
			var want []string
			exists := false
			for owner, names := range model {
				if slices.Contains(names, n) {
					want = append(want, owner)
				}
				exists = exists || slices.ContainsFunc(names, func(other string) bool { return other == n || strings.HasSuffix(other, "."+n) })
			}
			slices.Sort(want)
			records, got := zone.Lookup(n)
			var owners []string
			for _, rr := range records {
				owners = append(owners, rr.(*dns.TXT).Txt[0])
			}
			slices.Sort(owners)
			if got != exists || !slices.Equal(owners, want) {
				t.Fatalf("%s: %v %v, want %v %v", n, owners, got, want, exists)
			}
		}
	})
}

func print(z *Zone) string {
	var lines []string
	z.records.Root().Walk(func(key []byte, rr []dns.RR) bool {
		lines = append(lines, fmt.Sprintf("%q %v", key, rr))
		return false
	})
	return strings.Join(lines, "\n")
}

func BenchmarkZoneOneService(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			changes := map[string][]Name{}
			for i := range n {
				s := service(fmt.Sprint("web-", i), nil)
				changes["default/"+s.Name] = Names(services.Service{Service: s}, testDomain)
			}
			zone := NewZone().With(changes)
			one := map[string][]Name{"default/web-7": changes["default/web-7"]}
			b.ResetTimer()
			for range b.N {
				zone = zone.With(one)
			}
		})
	}
}
