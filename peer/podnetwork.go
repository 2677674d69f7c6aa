package peer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/mesh/vip"
)

// podNetwork connects pods, and publishes their host ports.
type podNetwork struct{ node *node }

// Attach implements pods.Network.
func (w *podNetwork) Attach(ctx context.Context, pod *corev1.Pod, netns string) ([]netip.Addr, error) {
	ip, err := w.node.podnet.Attach(ctx, string(pod.UID), netns)
	if err != nil {
		return nil, err
	}
	if ports := hostPortsOf(pod, ip); len(ports) > 0 {
		if err := w.node.proxy.SetHostPorts(ctx, string(pod.UID), ports); err != nil {
			return nil, fmt.Errorf("publishing host ports: %w", err)
		}
	}
	return []netip.Addr{ip}, nil
}

// Detach implements pods.Network.
func (w *podNetwork) Detach(ctx context.Context, podUID types.UID) error {
	return errors.Join(w.node.proxy.SetHostPorts(ctx, string(podUID), nil), w.node.podnet.Detach(ctx, string(podUID)))
}

// Existing implements pods.Network.
func (w *podNetwork) Existing(context.Context) (map[types.UID][]netip.Addr, error) {
	existing := map[types.UID][]netip.Addr{}
	for uid, ip := range w.node.podnet.Existing() {
		existing[types.UID(uid)] = []netip.Addr{ip}
	}
	return existing, nil
}

func hostPortsOf(pod *corev1.Pod, ip netip.Addr) []vip.HostPort {
	var ports []vip.HostPort
	for _, container := range portHolders(pod) {
		for _, port := range container.Ports {
			if port.HostPort == 0 {
				continue
			}
			host, _ := netip.ParseAddr(port.HostIP) // invalid means every address
			ports = append(ports, vip.HostPort{
				HostIP: host, Port: uint16(port.HostPort), Protocol: port.Protocol, PodIP: ip, PodPort: uint16(port.ContainerPort),
			})
		}
	}
	return ports
}

// portHolders are the containers whose ports last as long as the pod: the regular ones, and init containers that run beside them.
func portHolders(pod *corev1.Pod) []corev1.Container {
	holders := slices.Clone(pod.Spec.Containers)
	for _, container := range pod.Spec.InitContainers {
		if container.RestartPolicy != nil && *container.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			holders = append(holders, container)
		}
	}
	return holders
}
