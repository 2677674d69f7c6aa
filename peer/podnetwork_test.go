package peer

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestHostPortsAreThoseOfContainersThatStay(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	port := func(n int32) []corev1.ContainerPort {
		return []corev1.ContainerPort{{ContainerPort: n, HostPort: n, Protocol: corev1.ProtocolTCP}, {ContainerPort: 1}}
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "once", Ports: port(80)}, {Name: "sidecar", Ports: port(81), RestartPolicy: &always}},
		Containers:     []corev1.Container{{Name: "web", Ports: port(82)}},
	}}
	got := map[uint16]bool{}
	for _, p := range hostPortsOf(pod, netip.MustParseAddr("10.32.0.2")) {
		got[p.Port] = true
	}
	if len(got) != 2 || !got[81] || !got[82] {
		t.Fatalf("host ports %v, want 81 of the sidecar and 82 of the container", got)
	}
}
