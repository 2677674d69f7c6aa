package peer

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
	"shoal/placement/turn"
	"shoal/runtime/pods"
)

// peerAnnotation names, on a Node, the peer that runs it.
const peerAnnotation = "shoal.io/peer"

type podKey = types.NamespacedName

func keyOf(o metav1.Object) podKey { return podKey{Namespace: o.GetNamespace(), Name: o.GetName()} }

// rooms asks a node for room, and tells what else the node has granted to pods of other shards (D6).
type rooms func(ctx context.Context, node *corev1.Node, claims []pods.Claim) ([]pods.Answer, placement.NodeUsage, error)

// claim asks every node that a turn has chosen for room, all at once.
func (l *leader) claim(ctx context.Context, t *turn.Turn) {
	type reply struct {
		node    string
		answers []pods.Answer
		usage   placement.NodeUsage
		err     error
	}
	byNode := t.Claims()
	replies := make(chan reply, len(byNode))
	var group errgroup.Group
	for name, chosen := range byNode {
		node, ok := l.state.View().Node(name)
		if !ok || node.Object == nil {
			l.state.Silent(t, name, time.Now())
			continue
		}
		object := node.Object
		claims := make([]pods.Claim, len(chosen))
		for i, pod := range chosen {
			claims[i] = pods.ClaimOf(pod)
		}
		group.Go(func() error {
			answers, usage, err := l.rooms(ctx, object, claims)
			replies <- reply{name, answers, usage, err}
			return nil
		})
	}
	_ = group.Wait() // errors come in the replies
	close(replies)
	for r := range replies {
		if r.err != nil {
			l.log.Info("a node does not answer a claim, its pods wait", "node", r.node, "error", r.err)
			l.state.Silent(t, r.node, time.Now())
			continue
		}
		var refused []types.UID
		for _, answer := range r.answers {
			if !answer.Granted {
				l.log.Info("a node refused a claim", "node", r.node, "pod", answer.PodUID, "reasons", answer.Reasons)
				refused = append(refused, answer.PodUID)
			}
		}
		l.state.Answered(t, r.usage, refused, time.Now())
	}
}
