package peer

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller/deployment"
	"k8s.io/kubernetes/pkg/controller/replicaset"
)

// upstreamDecides runs in the leader's place what decides in Kubernetes: its controllers of Deployments and ReplicaSets, as
// kube-controller-manager starts them, and a scheduler that binds every pod to the next node. Their writes are counted, those of events
// aside; each is a request, and in Kubernetes a transaction of etcd.
func (r *rollover) upstreamDecides(ctx context.Context, b *testing.B, all *sync.WaitGroup) {
	b.Helper()
	config := rest.CopyConfig(r.cluster.Server.Loopback())
	config.QPS = -1 // no limit but the machine
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return countingTransport{next, &r.transactions} })
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		b.Fatal(err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	deployments, sets, pods := factory.Apps().V1().Deployments(), factory.Apps().V1().ReplicaSets(), factory.Core().V1().Pods()
	rollouts, err := deployment.NewDeploymentController(ctx, deployments, sets, pods, client)
	if err != nil {
		b.Fatal(err)
	}
	replicas := replicaset.NewReplicaSetController(ctx, sets, pods, client, replicaset.BurstReplicas)
	unbound := make(chan *corev1.Pod, 10_000)
	_, err = pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(o any) {
		if pod := o.(*corev1.Pod); pod.Spec.NodeName == "" {
			unbound <- pod
		}
	}})
	if err != nil {
		b.Fatal(err)
	}
	factory.Start(ctx.Done())
	const workers = 5 // kube-controller-manager's --concurrent-deployment-syncs and --concurrent-replicaset-syncs
	all.Go(func() { rollouts.Run(ctx, workers) })
	all.Go(func() { replicas.Run(ctx, workers) })
	all.Go(func() { r.bindInTurn(ctx, b, client, unbound) })
}

// bindInTurn binds pods to one node after the other.
func (r *rollover) bindInTurn(ctx context.Context, b *testing.B, client kubernetes.Interface, unbound <-chan *corev1.Pod) {
	b.Helper()
	for {
		for node := range r.ledgers {
			select {
			case <-ctx.Done():
				return
			case pod := <-unbound:
				err := client.CoreV1().Pods(pod.Namespace).Bind(ctx, &corev1.Binding{
					ObjectMeta: metav1.ObjectMeta{Name: pod.Name, UID: pod.UID}, Target: corev1.ObjectReference{Kind: "Node", Name: node},
				}, metav1.CreateOptions{})
				if err != nil && ctx.Err() == nil && !stale(err) { // one that is deleted meanwhile needs no node
					b.Error(err)
				}
			}
		}
	}
}

// countingTransport counts the requests that write.
type countingTransport struct {
	next   http.RoundTripper
	writes *atomic.Int64
}

func (t countingTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := t.next.RoundTrip(request)
	if err == nil && request.Method != http.MethodGet && !strings.HasSuffix(request.URL.Path, "/events") && response.StatusCode < http.StatusBadRequest {
		t.writes.Add(1)
	}
	return response, err
}
