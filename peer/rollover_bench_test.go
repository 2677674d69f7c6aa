package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	"shoal/consensus/store"
	"shoal/internal/polling"
	"shoal/placement"
	"shoal/placement/repair"
)

// BenchmarkRollover rolls a Deployment of 1,000 replicas over, with simulated nodes that report pods ready and gone at once, and counts what
// the leader writes: changes of objects, transactions (each an entry of the log), and the objects' bytes. "k8s-writes" is what Kubernetes'
// own controllers and one binding per pod write for the same, counted before on the same API and the same nodes; what the nodes write is
// counted in neither.
//
//	go test ./peer -run '^$' -bench Rollover -benchtime 1x
func BenchmarkRollover(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		upstream := newRollover(b, (*rollover).upstreamDecides)
		upstream.roll(b)
		b.StopTimer()
		upstream.stop()
		r := newRollover(b, (*rollover).leaderDecides)
		r.roll(b)
		b.StopTimer()
		r.stop()
		b.ReportMetric(float64(r.changes.Load()), "changes")
		b.ReportMetric(float64(r.transactions.Load()), "transactions")
		b.ReportMetric(float64(r.bytes.Load())/1024, "KiB")
		b.ReportMetric(float64(upstream.transactions.Load()), "k8s-writes")
		b.StartTimer()
	}
}

// roll makes a Deployment and rolls it over; only the writes of the second count.
func (r *rollover) roll(b *testing.B) {
	b.Helper()
	const replicas = 1000
	b.StopTimer()
	r.deploy(b, replicas)
	r.await(b, "1", replicas)
	r.transactions.Store(0)
	r.changes.Store(0)
	r.bytes.Store(0)
	b.StartTimer()
	r.update(b)
	r.await(b, "2", replicas)
}

// rollover is a backlog's cluster without a backlog, somebody who decides and whose writes are counted, and nodes that run everything at
// once.
type rollover struct {
	*backlog
	client                       kubernetes.Interface
	namespace                    string
	stop                         func()
	transactions, changes, bytes atomic.Int64
}

func newRollover(b *testing.B, decide func(r *rollover, ctx context.Context, b *testing.B, all *sync.WaitGroup)) *rollover {
	b.Helper()
	r := &rollover{backlog: newBacklog(b, 50, 1, 0)}
	var err error
	if r.client, err = kubernetes.NewForConfig(r.cluster.Server.Loopback()); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for namespace, shard := range r.shards {
		r.namespace = namespace
		q := newQueue()
		kubelets := &feed{host: r.cluster.Host, shard: shard, prefix: podPrefix, log: slog.New(slog.DiscardHandler), apply: q.from(shard, podPrefix)}
		all.Go(func() { _ = kubelets.Run(ctx) })
		all.Go(func() { r.run(ctx, q) })
	}
	r.stop = func() {
		cancel()
		all.Wait()
	}
	b.Cleanup(r.stop)
	decide(r, ctx, b, &all)
	return r
}

// leaderDecides runs this product's leader of the one shard.
func (r *rollover) leaderDecides(ctx context.Context, b *testing.B, all *sync.WaitGroup) {
	b.Helper()
	shard := r.shards[r.namespace]
	l := &leader{
		shard: shard, host: r.cluster.Host, commit: r, rooms: r.room(shard), repair: repair.Defaults(),
		events: newEvents(func(string) record.EventRecorder { return &record.FakeRecorder{} }), log: slog.New(slog.DiscardHandler),
	}
	all.Go(func() {
		if err := l.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			b.Error(err)
		}
	})
}

// Commit counts what the leader writes.
func (r *rollover) Commit(ctx context.Context, changes []placement.Change) (store.Revision, error) {
	at, err := apiCommitter{r.cluster.Server}.Commit(ctx, changes)
	if err == nil {
		r.transactions.Add(1)
		r.changes.Add(int64(len(changes)))
		for _, change := range changes {
			if o, ok := change.Object.(interface{ Size() int }); ok {
				r.bytes.Add(int64(o.Size()))
			}
		}
	}
	return at, err
}

// run is what the nodes do: bound pods are ready at once, and terminating ones gone.
func (r *rollover) run(ctx context.Context, q *queue) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
		var work []placement.Change
		for _, c := range q.take() {
			pod := c.Object.(*corev1.Pod)
			switch {
			case c.Gone:
				if ledger := r.ledgers[pod.Spec.NodeName]; ledger != nil {
					ledger.Remove(pod.UID)
				}
			case pod.DeletionTimestamp != nil:
				work = append(work, placement.Change{Verb: placement.Delete, Object: pod, UID: pod.UID, GracePeriodSeconds: ptr.To[int64](0)})
			case pod.Spec.NodeName != "" && !placement.Ready(pod):
				r.ledgers[pod.Spec.NodeName].Upsert(pod)
				ready := pod.DeepCopy()
				ready.Status.Phase = corev1.PodRunning
				ready.Status.Conditions = append(ready.Status.Conditions, corev1.PodCondition{
					Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(),
				})
				work = append(work, placement.Updating(placement.UpdateStatus, pod, ready))
			}
		}
		commit := apiCommitter{r.cluster.Server}
		for len(work) > 0 {
			n := min(len(work), 50)
			if _, err := commit.Commit(ctx, work[:n]); err != nil {
				for _, change := range work[:n] {
					_, _ = commit.Commit(ctx, []placement.Change{change}) // one that was overtaken comes again in its newer version
				}
			}
			work = work[n:]
		}
	}
}

func (r *rollover) deploy(b *testing.B, replicas int32) {
	b.Helper()
	labels := map[string]string{"app": "web"}
	_, err := r.client.AppsV1().Deployments(r.namespace).Create(b.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web:1", Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")},
				}}}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		b.Fatal(err)
	}
}

func (r *rollover) update(b *testing.B) {
	b.Helper()
	deployments := r.client.AppsV1().Deployments(r.namespace)
	for {
		d, err := deployments.Get(b.Context(), "web", metav1.GetOptions{})
		if err != nil {
			b.Fatal(err)
		}
		d.Spec.Template.Spec.Containers[0].Image = "web:2"
		if _, err = deployments.Update(b.Context(), d, metav1.UpdateOptions{}); err == nil {
			return
		} else if !stale(err) {
			b.Fatal(err)
		}
	}
}

// await waits until the Deployment's status says that all is as its given revision wants it.
func (r *rollover) await(b *testing.B, revision string, replicas int32) {
	b.Helper()
	polling.Until(b, 20*time.Millisecond, 10*time.Minute, "the rollover is complete", func(ctx context.Context) error {
		d, err := r.client.AppsV1().Deployments(r.namespace).Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			return err
		}
		s := d.Status
		if d.Annotations["deployment.kubernetes.io/revision"] != revision || s.ObservedGeneration != d.Generation ||
			s.UpdatedReplicas != replicas || s.AvailableReplicas != replicas || s.Replicas != replicas {
			return fmt.Errorf("revision %s: %+v", d.Annotations["deployment.kubernetes.io/revision"], s)
		}
		return nil
	})
}
