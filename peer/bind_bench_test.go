package peer

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"shoal/consensus/store"
	"shoal/internal/cputime"
	"shoal/peer/api/apitest"
	"shoal/peer/api/storage"
	"shoal/placement"
	"shoal/placement/repair"
	"shoal/runtime/pods"
)

// BenchmarkBind measures the whole way from pods that wait to pods that are bound: the leaders' turns, claims answered by one ledger per
// simulated node, and bindings through the API's code into raft groups of one voter on this machine's disk. The pods exist when the leaders
// start, so it is the time to take over a backlog, view included. Events are not written.
//
//	go test ./peer -run '^$' -bench Bind -benchtime 1x -bind.pods 30000
func BenchmarkBind(b *testing.B) {
	for _, nodes := range []int{1000, 5000} {
		for _, shards := range []int{1, 2, 4, 8} {
			b.Run(fmt.Sprintf("nodes=%d/shards=%d", nodes, shards), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					s := newBacklog(b, nodes, shards, *bindPods)
					b.StartTimer()
					s.measure(b)
				}
			})
		}
	}
}

var (
	bindPods    = flag.Int("bind.pods", 30_000, "pods that BenchmarkBind binds")
	bindProfile = flag.String("bind.profile", "", "file for a CPU profile of the binding alone, without what prepares it")
)

// measure binds everything. The process's CPU time per pod counts all that has a part in it, the simulated nodes, raft and the collector
// included, and says on a busy machine what pods per second say on a calm one.
func (s *backlog) measure(b *testing.B) {
	b.Helper()
	if *bindProfile != "" {
		file, err := os.Create(*bindProfile)
		if err != nil {
			b.Fatal(err)
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			b.Fatal(err)
		}
		defer pprof.StopCPUProfile()
	}
	begun, used := time.Now(), cputime.Used()
	s.bind(b)
	b.ReportMetric(float64(s.want)/time.Since(begun).Seconds(), "pods/s")
	b.ReportMetric(float64((cputime.Used()-used).Microseconds())/float64(s.want), "cpu-µs/pod")
	b.ReportMetric(float64(s.refused.Load()), "refused")
}

// backlog is a cluster with simulated nodes and pods that wait.
type backlog struct {
	cluster *apitest.Cluster
	shards  map[string]uint64 // by namespace
	ledgers map[string]*pods.Ledger
	want    int
	bound   atomic.Int64
	refused atomic.Int64
	done    chan struct{}
}

func newBacklog(b *testing.B, nodes, shards, count int) *backlog {
	b.Helper()
	cluster, err := apitest.StartSharded(b.TempDir(), shards, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			b.Error(err)
		}
	})
	s := &backlog{cluster: cluster, shards: map[string]uint64{}, ledgers: map[string]*pods.Ledger{}, want: count, done: make(chan struct{})}
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("32Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	var changes []placement.Change
	for i := range nodes {
		name := fmt.Sprintf("node-%04d", i)
		changes = append(changes, placement.Change{Verb: placement.Create, Object: &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name, corev1.LabelTopologyZone: fmt.Sprint("zone-", i%3)}},
			Status:     corev1.NodeStatus{Capacity: room, Allocatable: room, Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
		}})
		s.ledgers[name] = pods.NewLedger()
		s.ledgers[name].SetCapacity(pods.Capacity{Allocatable: room})
		s.ledgers[name].SetRunning(nil)
	}
	s.write(b, changes)
	// The taint that admission gives to new nodes would be taken away by the meta leader.
	for _, verb := range []placement.Verb{placement.Update, placement.UpdateStatus} {
		for i := range changes {
			changes[i].Verb = verb
		}
		s.write(b, changes)
	}
	s.write(b, s.waiting(b, shards, count))
	return s
}

// waiting are the pods, spread over as many namespaces as there are shards, each in its own.
func (s *backlog) waiting(b *testing.B, shards, count int) []placement.Change {
	b.Helper()
	taken := map[uint64]bool{}
	var namespaces []string
	directory := storage.NewDirectory(s.cluster.Host)
	for i := 0; len(namespaces) < shards; i++ {
		name := fmt.Sprint("bench-", i)
		s.write(b, []placement.Change{{Verb: placement.Create, Object: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}}})
		if shard, err := directory.Locate(b.Context(), name); err != nil {
			b.Fatal(err)
		} else if !taken[shard] {
			taken[shard], s.shards[name] = true, shard
			namespaces = append(namespaces, name)
			s.write(b, []placement.Change{{Verb: placement.Create, Object: &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "default"}}}})
		}
	}
	var changes []placement.Change
	for i := range count {
		changes = append(changes, placement.Change{Verb: placement.Create, Object: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespaces[i%shards], Name: fmt.Sprintf("pod-%05d", i), Labels: map[string]string{"app": "bench"}},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{
				Name: "main", Image: "bench", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("500Mi"),
				}},
			}}},
		}})
	}
	return changes
}

// write commits changes in large transactions, one after the other.
func (s *backlog) write(b *testing.B, changes []placement.Change) {
	b.Helper()
	for len(changes) > 0 {
		n := min(len(changes), 500)
		if _, err := (apiCommitter{s.cluster.Server}).Commit(b.Context(), changes[:n]); err != nil {
			b.Fatal(err)
		}
		changes = changes[n:]
	}
}

// room is one node's answer, as node.claim gives it.
func (s *backlog) room(shard uint64) rooms {
	return func(_ context.Context, node *corev1.Node, claims []pods.Claim) ([]pods.Answer, placement.NodeUsage, error) {
		ledger := s.ledgers[node.Name]
		answers := ledger.Claim(claims, time.Now())
		for _, answer := range answers {
			if !answer.Granted {
				s.refused.Add(1)
			}
		}
		var foreign []pods.Claim
		for _, held := range ledger.Held(time.Now()) {
			if s.shards[held.Namespace] != shard {
				foreign = append(foreign, held)
			}
		}
		return answers, usageOf(node.Name, foreign), nil
	}
}

// bind runs the leaders until every pod is bound and every node knows it.
func (s *backlog) bind(b *testing.B) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for _, shard := range s.shards {
		follows := &feed{host: s.cluster.Host, shard: shard, prefix: podPrefix, log: slog.New(slog.DiscardHandler), apply: s.follow()}
		all.Go(func() { _ = follows.Run(ctx) })
		l := &leader{
			shard: shard, host: s.cluster.Host, commit: apiCommitter{s.cluster.Server}, rooms: s.room(shard), repair: repair.Defaults(),
			events: newEvents(func(string) record.EventRecorder { return &record.FakeRecorder{} }), log: slog.New(slog.DiscardHandler),
		}
		all.Go(func() {
			if err := l.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				b.Error(err)
			}
		})
	}
	select {
	case <-s.done:
	case <-ctx.Done():
		b.Errorf("%d of %d pods are bound", s.bound.Load(), s.want)
	}
	cancel()
	all.Wait()
	for name, ledger := range s.ledgers {
		var milli int64
		for _, held := range ledger.Held(time.Now()) {
			milli += held.Requests.Cpu().MilliValue()
		}
		if milli > 4000 {
			b.Errorf("%s is over-committed: %d mCPU of 4000", name, milli)
		}
	}
}

// follow is what every node learns of its pods.
func (s *backlog) follow() func([]change, store.Revision) {
	known := map[string]bool{}
	return func(changes []change, _ store.Revision) {
		for _, c := range changes {
			pod, ok := c.Object.(*corev1.Pod)
			if !ok || pod.Spec.NodeName == "" || known[c.Key] || !strings.HasPrefix(pod.Namespace, "bench-") {
				continue
			}
			known[c.Key] = true
			s.ledgers[pod.Spec.NodeName].Upsert(pod)
			if s.bound.Add(1) == int64(s.want) {
				close(s.done)
			}
		}
	}
}
