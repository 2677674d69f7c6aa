package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/internal/polling"
	"shoal/peer/api/apitest"
	"shoal/placement"
	"shoal/placement/repair"
	"shoal/runtime/pods"
)

var testCluster *apitest.Cluster

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "peer-test-")
	if err == nil {
		testCluster, err = apitest.Start(dir, nil)
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
		err = testCluster.Stop()
	}
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// field is a leader of every data shard over the test's API, with nodes whose rooms are ledgers as on real nodes.
type field struct {
	client  kubernetes.Interface
	ledgers map[string]*pods.Ledger
	lock    sync.Mutex
	sizes   []int // changes per committed transaction
}

// Commit counts what the leaders write.
func (f *field) Commit(ctx context.Context, changes []placement.Change) (store.Revision, error) {
	at, err := apiCommitter{testCluster.Server}.Commit(ctx, changes)
	if err == nil {
		f.lock.Lock()
		f.sizes = append(f.sizes, len(changes))
		f.lock.Unlock()
	}
	return at, err
}

func (f *field) rooms(_ context.Context, node *corev1.Node, claims []pods.Claim) ([]pods.Answer, placement.NodeUsage, error) {
	return f.ledgers[node.Name].Claim(claims, time.Now()), placement.NodeUsage{Node: node.Name}, nil
}

func newField(t *testing.T, nodes map[string]string) *field {
	t.Helper()
	client, err := kubernetes.NewForConfig(testCluster.Server.Loopback())
	if err != nil {
		t.Fatal(err)
	}
	f := &field{client: client, ledgers: map[string]*pods.Ledger{}}
	for name, cpu := range nodes {
		room := corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("110"),
		}
		node := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
			Status: corev1.NodeStatus{
				Capacity: room, Allocatable: room,
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			},
		}
		created, err := client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		created.Spec.Taints, created.Status = nil, node.Status
		if created, err = client.CoreV1().Nodes().Update(t.Context(), created, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		created.Status = node.Status
		if _, err = client.CoreV1().Nodes().UpdateStatus(t.Context(), created, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{}) })
		f.ledgers[name] = pods.NewLedger()
		f.ledgers[name].SetCapacity(pods.Capacity{Allocatable: room})
		f.ledgers[name].SetRunning(nil)
	}
	f.lead(t)
	return f
}

// lead runs the leaders of all data shards until the test ends.
func (f *field) lead(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, shard := range testCluster.Host.Shards() {
		if shard == consensus.MetaShard {
			continue
		}
		l := &leader{
			shard: shard, host: testCluster.Host, commit: f, rooms: f.rooms, events: newEvents(func(string) record.EventRecorder { return record.NewFakeRecorder(10_000) }),
			repair: repair.Defaults(), log: slog.New(slog.DiscardHandler),
		}
		all.Go(func() {
			if err := l.Run(ctx); err != nil {
				t.Errorf("leader of shard %d: %v", shard, err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		all.Wait()
	})
}

func (f *field) namespace(t *testing.T) string {
	t.Helper()
	ns, err := f.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "leader-"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.client.CoreV1().ServiceAccounts(ns.Name).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

func (f *field) deploy(t *testing.T, namespace string, replicas int32, cpu string) {
	t.Helper()
	labels := map[string]string{"app": "web"}
	_, err := f.client.AppsV1().Deployments(namespace).Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{
					Name: "web", Image: "web", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}},
				}}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// await polls until done says "", and fails with what it said last.
func await(t *testing.T, done func() string) {
	t.Helper()
	polling.Until(t, 10*time.Millisecond, 20*time.Second, "it is done", func(context.Context) error {
		if missing := done(); missing != "" {
			return errors.New(missing)
		}
		return nil
	})
}

func (f *field) pods(t *testing.T, namespace string) []corev1.Pod {
	t.Helper()
	list, err := f.client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func TestALeaderTurnsADeploymentIntoBoundPodsInOneTransaction(t *testing.T) {
	f := newField(t, map[string]string{"node-a": "4", "node-b": "4"})
	namespace := f.namespace(t)
	f.deploy(t, namespace, 10, "100m")
	await(t, func() string {
		bound := map[string]int{}
		for _, pod := range f.pods(t, namespace) {
			bound[pod.Spec.NodeName]++
		}
		if bound["node-a"]+bound["node-b"] != 10 || bound[""] != 0 {
			return fmt.Sprintf("pods per node: %v, want 10 bound ones", bound)
		}
		if bound["node-a"] == 0 || bound["node-b"] == 0 {
			return fmt.Sprintf("pods per node: %v, want both nodes used", bound)
		}
		return ""
	})
	f.lock.Lock()
	defer f.lock.Unlock()
	largest := 0
	for _, size := range f.sizes {
		largest = max(largest, size)
	}
	// The ReplicaSet, its ten pods with their nodes, and the statuses.
	if largest < 11 {
		t.Errorf("the largest transaction held %d changes (%v): the ReplicaSet and its bound pods were not committed together", largest, f.sizes)
	}
}

func TestPodsThatFitNowhereSayWhyAndAreBoundWhenRoomComes(t *testing.T) {
	f := newField(t, map[string]string{"small": "1"})
	namespace := f.namespace(t)
	f.deploy(t, namespace, 3, "600m")
	await(t, func() string {
		var bound, told int
		for _, pod := range f.pods(t, namespace) {
			if pod.Spec.NodeName != "" {
				bound++
			}
			for _, condition := range pod.Status.Conditions {
				if condition.Type == corev1.PodScheduled && strings.HasPrefix(condition.Message, "0/1 nodes are available: 1 Insufficient cpu") {
					told++
				}
			}
		}
		if bound != 1 || told != 2 {
			return fmt.Sprintf("%d pods are bound and %d say why not, want 1 and 2", bound, told)
		}
		return ""
	})
	zero := int64(0)
	for _, pod := range f.pods(t, namespace) {
		if pod.Spec.NodeName != "" {
			f.ledgers["small"].Remove(pod.UID)
			if err := f.client.CoreV1().Pods(namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
				t.Fatal(err)
			}
		}
	}
	await(t, func() string {
		for _, pod := range f.pods(t, namespace) {
			if pod.Spec.NodeName != "" {
				return ""
			}
		}
		return "room came free and nobody was bound to it"
	})
}

func TestARefusedClaimIsPlacedElsewhere(t *testing.T) {
	f := newField(t, map[string]string{"full": "4", "free": "4"})
	// The node knows better than the view: it has given its room to pods of other shards.
	f.ledgers["full"].SetCapacity(pods.Capacity{Closed: "no room left"})
	namespace := f.namespace(t)
	f.deploy(t, namespace, 4, "500m")
	// Nothing that the view can see speaks against the full node, so some are decided for it first.
	await(t, func() string {
		bound := 0
		for _, pod := range f.pods(t, namespace) {
			if pod.Spec.NodeName == "full" {
				t.Fatal("a pod was bound to a node that refused its claim")
			}
			if pod.Spec.NodeName == "free" {
				bound++
			}
		}
		if bound != 4 {
			return fmt.Sprintf("%d of 4 pods are bound to the free node", bound)
		}
		return ""
	})
}
