package peer

import (
	"context"
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"

	"shoal/consensus"
	"shoal/consensus/store"
)

// formerRecords hold the Nodes of a cluster that was restored from a backup: node name → the Node as it was stored. The nodes themselves
// are gone, and their pods with them; but what users wrote on them is given to the host that comes back under the name.
const formerRecords = "/shoal/formernodes/"

// takeFormerNode is the node that had the name before a restore, nil if there is none.
func takeFormerNode(ctx context.Context, host *consensus.Host, name string) (*corev1.Node, error) {
	kv, found, _, err := host.Get(ctx, consensus.MetaShard, formerRecords+name, consensus.Linearizable)
	if err != nil || !found {
		return nil, err
	}
	decoded, _, err := scheme.Codecs.UniversalDeserializer().Decode(kv.Value, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", kv.Key, err)
	}
	node, ok := decoded.(*corev1.Node)
	if !ok {
		return nil, fmt.Errorf("record %s holds a %T", kv.Key, decoded)
	}
	return node, nil
}

func dropFormerNode(ctx context.Context, host *consensus.Host, name string) error {
	if _, found, _, err := host.Get(ctx, consensus.MetaShard, formerRecords+name, consensus.Local); err != nil || !found {
		return err
	}
	_, err := host.Propose(ctx, consensus.MetaShard, store.Transaction{Ops: []store.Op{{Key: formerRecords + name, Delete: true}}})
	return err
}

// inherit adds a former node's labels, annotations, taints and cordon to the new one, which wins where both have something. What the
// cluster wrote by itself is left behind: taints of node.kubernetes.io, and our own annotations.
func inherit(node, former *corev1.Node) *corev1.Node {
	if former == nil {
		return node
	}
	node = node.DeepCopy()
	node.Labels = under(former.Labels, node.Labels)
	node.Annotations = under(former.Annotations, node.Annotations)
	node.Spec.Unschedulable = former.Spec.Unschedulable
	for _, taint := range former.Spec.Taints {
		if !strings.HasPrefix(taint.Key, "node.kubernetes.io/") {
			node.Spec.Taints = append(node.Spec.Taints, taint)
		}
	}
	return node
}

func under(former, now map[string]string) map[string]string {
	merged := map[string]string{}
	for key, value := range former {
		if !strings.HasPrefix(key, "shoal.io/") {
			merged[key] = value
		}
	}
	maps.Copy(merged, now)
	return merged
}
