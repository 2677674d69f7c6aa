package api_test

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// TestPeersShareOneStore runs a second server over the same store: what one hands out, the other does not.
func TestPeersShareOneStore(t *testing.T) {
	namespace(t, "peers")
	other := must(shared.Another())(t)
	clients := []kubernetes.Interface{admin, must(kubernetes.NewForConfig(other.Loopback()))(t)}

	const each = 15
	var mu sync.Mutex
	var wait sync.WaitGroup
	ips, ports := map[string]string{}, map[int32]string{}
	for i, client := range clients {
		wait.Go(func() {
			for n := range each {
				name := fmt.Sprintf("s%d-%d", i, n)
				s, err := client.CoreV1().Services("peers").Create(t.Context(), &corev1.Service{
					ObjectMeta: metav1.ObjectMeta{Name: name},
					Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80}}},
				}, metav1.CreateOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				ips[s.Spec.ClusterIP], ports[s.Spec.Ports[0].NodePort] = name, name
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	if len(ips) != 2*each || len(ports) != 2*each {
		t.Errorf("%d addresses and %d ports for %d services", len(ips), len(ports), 2*each)
	}

	created := must(clients[0].CoreV1().ConfigMaps("peers").Create(t.Context(), configMap("peers", "here"), metav1.CreateOptions{}))(t)
	seen := must(clients[1].CoreV1().ConfigMaps("peers").Get(t.Context(), "here", metav1.GetOptions{}))(t)
	if seen.ResourceVersion != created.ResourceVersion {
		t.Errorf("the other peer sees %s, not %s", seen.ResourceVersion, created.ResourceVersion)
	}
}

func TestKubernetesEndpointsFollowThePeers(t *testing.T) {
	set := func(peers ...string) {
		t.Helper()
		var all []netip.AddrPort
		for _, p := range peers {
			all = append(all, netip.MustParseAddrPort(p))
		}
		if err := shared.Server.SetKubernetesEndpoints(t.Context(), all); err != nil {
			t.Fatal(err)
		}
	}
	read := func() (slices, addresses int, version string) {
		t.Helper()
		list := must(admin.DiscoveryV1().EndpointSlices("default").List(t.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=kubernetes"}))(t)
		endpoints := must(admin.CoreV1().Endpoints("default").Get(t.Context(), "kubernetes", metav1.GetOptions{}))(t)
		total := 0
		for _, s := range endpoints.Subsets {
			total += len(s.Addresses)
		}
		for _, s := range list.Items {
			addresses += len(s.Endpoints)
		}
		if total != addresses {
			t.Errorf("%d addresses in Endpoints, %d in slices", total, addresses)
		}
		return len(list.Items), addresses, endpoints.ResourceVersion
	}
	set("192.0.2.11:7443", "192.0.2.10:7443", "192.0.2.12:8443")
	if slices, addresses, _ := read(); slices != 2 || addresses != 3 {
		t.Errorf("%d slices with %d addresses", slices, addresses)
	}
	set("192.0.2.10:7443", "192.0.2.11:7443")
	slices, addresses, version := read()
	if slices != 1 || addresses != 2 {
		t.Errorf("after a peer left: %d slices with %d addresses", slices, addresses)
	}
	set("192.0.2.11:7443", "192.0.2.10:7443")
	if _, _, again := read(); again != version {
		t.Error("a set without a change was written")
	}
}
