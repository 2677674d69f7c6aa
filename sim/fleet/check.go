package fleet

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Violation is a promise that was not kept.
type Violation struct {
	Checker string
	At      time.Duration // since the fleet began
	Message string
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: at %.3f s: %s", v.Checker, v.At.Seconds(), v.Message)
}

// picture is what the store has at a moment, as some peer that answers tells it.
type picture struct {
	at    time.Time
	nodes []corev1.Node
	pods  []corev1.Pod
}

// pictureEvery is how often the store is looked at.
const pictureEvery = 2 * time.Second

// watchStore shows the store's nodes and pods to the checkers that compare them with something.
func (r *run) watchStore(ctx context.Context) {
	claims, brake := claimsCheck{}, brakeCheck{}
	for pause(ctx, pictureEvery) == nil {
		p, err := r.look(ctx)
		if err != nil {
			continue
		}
		r.capacity(p)
		claims.look(r, p, r.ledgers())
		brake.look(r, p)
	}
}

func (r *run) look(ctx context.Context) (picture, error) {
	client, err := r.anyClient(ctx)
	if err != nil {
		return picture{}, err
	}
	defer closeIdle(client)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	at := time.Now()
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return picture{}, err
	}
	pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return picture{}, err
	}
	r.reads.Add(2)
	return picture{at, nodes.Items, pods.Items}, nil
}
