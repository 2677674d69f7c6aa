package peer

import (
	"bytes"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"

	"shoal/consensus/store"
	"shoal/internal/cputime"
	"shoal/placement"
	"shoal/placement/repair"
	"shoal/placement/turn"
)

// BenchmarkLeader is what a leader costs by itself: the time to take over a shard, from values as they are stored to a complete view; its
// memory then, beside the store's; and the CPU time of one change, a pod's new status decoded, taken in, and answered by a whole turn.
//
//	go test ./peer -run '^$' -bench Leader -benchtime 1x
func BenchmarkLeader(b *testing.B) {
	for _, size := range []struct{ nodes, pods int }{{1000, 20_000}, {5000, 20_000}, {5000, 150_000}} {
		b.Run(fmt.Sprintf("nodes=%d/pods=%d", size.nodes, size.pods), func(b *testing.B) {
			for b.Loop() {
				measureLeader(b, storedNodes(b, size.nodes), storedPods(b, size.pods, size.nodes))
			}
		})
	}
}

const podsPerSet = 50

func measureLeader(b *testing.B, nodes, pods []store.KV) {
	b.Helper()
	b.StopTimer()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	b.StartTimer()

	l := turn.New(turn.Options{Repair: repair.Defaults(), NodeProvisioner: nodeProvisioner})
	meta, shard := &feed{log: slog.New(slog.DiscardHandler)}, &feed{log: slog.New(slog.DiscardHandler)}
	begun, used := time.Now(), cputime.Used()
	for _, changes := range [][]change{meta.replace(nodes), shard.replace(pods)} {
		for _, c := range changes {
			l.Learn(c.Object, false)
		}
	}
	b.ReportMetric(time.Since(begun).Seconds(), "s/takeover")
	b.ReportMetric((cputime.Used() - used).Seconds(), "cpu-s/takeover")

	b.StopTimer()
	settle(l, now(0)) // the first turn plans everything; it is no part of one change
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
	const tries = 2000
	var events []store.Event
	for i := range tries {
		kv := pods[(i*7919)%len(pods)]
		if !strings.HasPrefix(kv.Key, podPrefix) {
			continue
		}
		events = append(events, store.Event{Key: kv.Key, Value: kv.Value, Revision: kv.Mod + store.Revision(i) + 1})
	}
	b.StartTimer()
	used = cputime.Used()
	for i, event := range events {
		c, _ := shard.take(event)
		l.Learn(c.Object, false)
		settle(l, now(i))
	}
	b.ReportMetric(float64((cputime.Used()-used).Microseconds())/float64(len(events)), "cpu-µs/change")
	runtime.KeepAlive(l)
}

func now(i int) time.Time {
	return time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(i) * time.Microsecond)
}

// settle takes a turn whose commits are all refused for being old, so that the view stays as it is.
func settle(l *turn.Leader, at time.Time) {
	t := l.Begin(at)
	t.Urgent()
	t.Claims()
	l.Finish(t, at)
}

func stored(b *testing.B, key string, o object, i int) store.KV {
	b.Helper()
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		b.Fatal(err)
	}
	o.GetObjectKind().SetGroupVersionKind(kinds[0])
	var value bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(o, &value); err != nil {
		b.Fatal(err)
	}
	return store.KV{Key: key, Value: value.Bytes(), Mod: store.Revision(i + 1)}
}

func storedNodes(b *testing.B, count int) []store.KV {
	b.Helper()
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("256Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	var list []store.KV
	for i := range count {
		name := fmt.Sprintf("node-%04d", i)
		list = append(list, stored(b, nodePrefix+name, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name, corev1.LabelTopologyZone: fmt.Sprint("zone-", i%3)}},
			Status:     corev1.NodeStatus{Capacity: room, Allocatable: room, Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
		}, i))
	}
	return list
}

// storedPods are running pods of ReplicaSets of podsPerSet, with what the API gives every pod, and those ReplicaSets.
func storedPods(b *testing.B, count, nodes int) []store.KV {
	b.Helper()
	var list []store.KV
	for i := range count {
		set, namespace := fmt.Sprint("app-", i/podsPerSet), fmt.Sprint("team-", i/podsPerSet%100)
		labels := map[string]string{"app": set, "pod-template-hash": "5d4f8c7b9"}
		spec := corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "main", Image: "registry.example.com/team/app:1.2.3", ImagePullPolicy: corev1.PullIfNotPresent,
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("500Mi"),
				}},
				Ports:        []corev1.ContainerPort{{ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
				VolumeMounts: []corev1.VolumeMount{{Name: "kube-api-access", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true}},
			}},
			RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst, ServiceAccountName: "default",
			SchedulerName: corev1.DefaultSchedulerName, Priority: ptr.To[int32](0), TerminationGracePeriodSeconds: ptr.To[int64](30),
			Tolerations: []corev1.Toleration{
				{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](5)},
				{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](5)},
			},
			Volumes: []corev1.Volume{{Name: "kube-api-access", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr.To[int64](3607)}}},
			}}}},
		}
		if i%podsPerSet == 0 {
			list = append(list, stored(b, registry+"replicasets/"+namespace+"/"+set, &appsv1.ReplicaSet{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: set, UID: types.UID(set)},
				Spec: appsv1.ReplicaSetSpec{
					Replicas: ptr.To[int32](podsPerSet), Selector: &metav1.LabelSelector{MatchLabels: labels},
					Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
				},
				Status: appsv1.ReplicaSetStatus{Replicas: podsPerSet, ReadyReplicas: podsPerSet, AvailableReplicas: podsPerSet, FullyLabeledReplicas: podsPerSet},
			}, i))
		}
		name := fmt.Sprint(set, "-", i%podsPerSet)
		spec.NodeName = fmt.Sprintf("node-%04d", i%nodes)
		since := metav1.NewTime(now(0).Add(-time.Hour))
		list = append(list, stored(b, podPrefix+namespace+"/"+name, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: namespace, Name: name, UID: types.UID(fmt.Sprint("uid-", i)), Labels: labels, CreationTimestamp: since,
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: placement.KindReplicaSet, Name: set, UID: types.UID(set), Controller: ptr.To(true)}},
			},
			Spec: spec,
			Status: corev1.PodStatus{
				Phase: corev1.PodRunning, PodIP: "10.32.0.1", HostIP: "192.0.2.1", StartTime: &since,
				Conditions: []corev1.PodCondition{
					{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: since},
					{Type: corev1.PodInitialized, Status: corev1.ConditionTrue, LastTransitionTime: since},
					{Type: corev1.ContainersReady, Status: corev1.ConditionTrue, LastTransitionTime: since},
					{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: since},
				},
				ContainerStatuses: []corev1.ContainerStatus{{
					Name: "main", Ready: true, Started: ptr.To(true), Image: "registry.example.com/team/app:1.2.3", ContainerID: "containerd://0123456789abcdef",
					State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: since}},
				}},
			},
		}, i))
	}
	return list
}
