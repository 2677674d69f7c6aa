package peer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/peer/api"
	"shoal/placement"
	"shoal/runtime/pods"
	"shoal/runtime/stats"
)

// What a peer writes on its Node, for the other peers to read.
const (
	apiAnnotation           = "shoal.io/api" // IP:PORT of its API
	wireGuardKeyAnnotation  = "shoal.io/wireguard-public-key"
	wireGuardPortAnnotation = "shoal.io/wireguard-port"
)

// statusInterval is how often the node's own state is looked at. It is written only when it differs from what is stored.
const statusInterval = 10 * time.Second

// keepStatus registers the Node and keeps its status true. Until it is registered, nothing is placed here.
func (n *node) keepStatus(ctx context.Context) error {
	for {
		wait := statusInterval
		if err := n.syncStatus(ctx); err != nil && ctx.Err() == nil {
			if !errors.Is(err, errUnheard) {
				n.log.Info("the Node could not be written, trying again", "error", err)
			}
			wait = 200 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.changed:
		case <-time.After(wait):
		}
	}
}

// errUnheard keeps a node that was judged lost from calling itself ready before its lease is renewed again (lease.Clock.Heard).
var errUnheard = errors.New("the node was judged lost, and its lease is not renewed yet")

// statusChanged makes the node look at itself at once.
func (n *node) statusChanged() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

func (n *node) syncStatus(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if !n.peer.serving.Load() {
		return errStarting
	}
	if n.peer.gone.Load() {
		return nil // a node that is leaving does not come back by itself
	}
	client := n.client.Load()
	if client == nil {
		return errStarting
	}
	want, err := n.describe(ctx)
	if err != nil {
		return err
	}
	stored, err := client.CoreV1().Nodes().Get(ctx, want.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		stored, err = n.createNode(ctx, client, want)
	}
	if err != nil {
		return err
	}
	if stored, err = n.writeMetadata(ctx, client, stored, want); err != nil {
		return err
	}
	if ready := placement.NodeCondition(stored, corev1.NodeReady); ready != nil && ready.Status == corev1.ConditionUnknown && !n.peer.clock.heard() {
		return errUnheard
	}
	next := stored.DeepCopy()
	mergeNodeStatus(&next.Status, want.Status)
	if !apiequality.Semantic.DeepEqual(stored.Status, next.Status) {
		if stored, err = client.CoreV1().Nodes().UpdateStatus(ctx, next, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	n.ledger.SetCapacity(pods.Capacity{Allocatable: stored.Status.Allocatable})
	return nil
}

// createNode makes the Node. What users had written on a node of this name in a cluster that was restored comes back with it.
func (n *node) createNode(ctx context.Context, client kubernetes.Interface, want *corev1.Node) (*corev1.Node, error) {
	former, err := takeFormerNode(ctx, n.peer.host, want.Name)
	if err != nil {
		return nil, err
	}
	stored, err := client.CoreV1().Nodes().Create(ctx, inherit(want, former), metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	return stored, dropFormerNode(ctx, n.peer.host, want.Name)
}

// writeMetadata brings what this peer owns of labels, annotations and spec up to date, and leaves the rest to its users.
func (n *node) writeMetadata(ctx context.Context, client kubernetes.Interface, stored, want *corev1.Node) (*corev1.Node, error) {
	next := stored.DeepCopy()
	if next.Labels == nil {
		next.Labels = map[string]string{}
	}
	if next.Annotations == nil {
		next.Annotations = map[string]string{}
	}
	maps.Copy(next.Labels, want.Labels)
	maps.Copy(next.Annotations, want.Annotations)
	if next.Spec.PodCIDR == "" {
		next.Spec.PodCIDR, next.Spec.PodCIDRs = want.Spec.PodCIDR, want.Spec.PodCIDRs
	}
	if next.Spec.PodCIDR != want.Spec.PodCIDR {
		return nil, fmt.Errorf("the Node object has pod range %s, this peer has %s: delete the object, the peer makes it anew", next.Spec.PodCIDR, want.Spec.PodCIDR)
	}
	if apiequality.Semantic.DeepEqual(stored, next) {
		return stored, nil
	}
	return client.CoreV1().Nodes().Update(ctx, next, metav1.UpdateOptions{})
}

// describe is the Node as it is now.
func (n *node) describe(ctx context.Context) (*corev1.Node, error) {
	p := n.peer
	pressure, err := n.stats.Pressure(ctx)
	if err != nil {
		return nil, err
	}
	images, err := n.stats.Images(ctx, maxNodeImages)
	if err != nil && !errors.Is(err, pods.ErrUnavailable) {
		return nil, err
	}
	system := n.stats.SystemInfo(ctx)
	system.KubeletVersion = api.GitVersion
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.self.Name, Labels: n.labels(),
			Annotations: map[string]string{
				peerAnnotation: p.self.ID, apiAnnotation: p.endpoint().String(),
				wireGuardKeyAnnotation: p.self.WireGuard.Public().String(), wireGuardPortAnnotation: strconv.Itoa(wireGuardPort),
			},
		},
		Spec: corev1.NodeSpec{PodCIDR: n.pods.String(), PodCIDRs: []string{n.pods.String()}},
		Status: corev1.NodeStatus{
			Capacity: n.stats.Capacity(), Allocatable: n.stats.Allocatable(), NodeInfo: system, Images: images,
			Conditions:      stats.Conditions(pressure, nil, time.Now()),
			Addresses:       nodeAddresses(p.advertise, p.self.Name),
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(p.cfg.Port)}},
		},
	}, nil
}

func (n *node) labels() map[string]string {
	p := n.peer
	labels := map[string]string{
		corev1.LabelHostname: p.self.Name, corev1.LabelOSStable: runtime.GOOS, corev1.LabelArchStable: runtime.GOARCH,
	}
	if p.cfg.Zone != "" {
		labels[corev1.LabelTopologyZone] = p.cfg.Zone
	}
	maps.Copy(labels, p.cfg.Labels)
	return labels
}

func nodeAddresses(advertise netip.Addr, name string) []corev1.NodeAddress {
	return []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: advertise.String()},
		{Type: corev1.NodeHostName, Address: name},
	}
}

// maxNodeImages bounds the list in the Node object, as the kubelet does.
const maxNodeImages = 50

// mergeNodeStatus puts what this peer knows of itself over what is stored. Conditions of others stay. A condition keeps the time of its
// last change, and has no heartbeat of its own: liveness is the lease's, and an unchanged node costs no write.
func mergeNodeStatus(stored *corev1.NodeStatus, want corev1.NodeStatus) {
	conditions := stored.Conditions
	*stored = want
	stored.Conditions = conditions
	for _, next := range want.Conditions {
		setNodeCondition(stored, next)
	}
}

func setNodeCondition(status *corev1.NodeStatus, next corev1.NodeCondition) {
	for i, have := range status.Conditions {
		if have.Type != next.Type {
			continue
		}
		if have.Status == next.Status && have.Reason == next.Reason && have.Message == next.Message {
			return
		}
		if have.Status == next.Status {
			next.LastTransitionTime = have.LastTransitionTime
		}
		status.Conditions[i] = next
		return
	}
	status.Conditions = append(status.Conditions, next)
}

// allocatable is what this node gives to pods.
func (n *node) allocatable() corev1.ResourceList {
	if n.stats == nil {
		return nil // the agent is made before it
	}
	return n.stats.Allocatable()
}
