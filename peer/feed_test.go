package peer

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
	"shoal/internal/polling"
)

// TestStoredObjectsAreReadWithDefaults: an object that an earlier version has stored, which did not know all fields, is decided upon as it
// is shown by the API.
func TestStoredObjectsAreReadWithDefaults(t *testing.T) {
	read, err := decode([]byte(`{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "ns"},
		"spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}`), 7)
	if err != nil {
		t.Fatal(err)
	}
	d := read.(*appsv1.Deployment)
	switch {
	case d.Spec.Replicas == nil || *d.Spec.Replicas != 1 || d.Spec.RevisionHistoryLimit == nil || d.Spec.ProgressDeadlineSeconds == nil:
		t.Errorf("spec %+v", d.Spec)
	case d.Spec.Strategy.RollingUpdate == nil || d.Spec.Strategy.RollingUpdate.MaxSurge == nil:
		t.Errorf("strategy %+v", d.Spec.Strategy)
	case d.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyAlways || d.Spec.Template.Spec.SchedulerName == "":
		t.Errorf("template %+v", d.Spec.Template.Spec)
	}
	if _, err := decode([]byte(`{"apiVersion": "apps/v9", "kind": "Deployment"}`), 7); err == nil {
		t.Error("a version of the future was read")
	}
	if _, err := decode([]byte("\x00\x01"), 7); err == nil {
		t.Error("garbage was read")
	}
}

// BenchmarkReadPod is what a leader that takes a shard over does for each of its pods, besides indexing it.
func BenchmarkReadPod(b *testing.B) {
	stored := []byte(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "ns"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decode(stored, 7); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAFeedLeavesOutWhatCannotBeWanted follows the pods that have a node's name in them: in the list and later, and until they have not any
// more.
func TestAFeedLeavesOutWhatCannotBeWanted(t *testing.T) {
	host := consensustest.NewHost(t, 1)
	put := func(name, node string) {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: node}}
		value, err := runtime.Encode(scheme.Codecs.LegacyCodec(corev1.SchemeGroupVersion), pod)
		if err != nil {
			t.Fatal(err)
		}
		write(t, host, store.Op{Key: podPrefix + "ns/" + name, Value: value})
	}
	put("other", "there")
	put("mine", "here")
	put("pending", "")

	told := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	t.Cleanup(func() { cancel(); <-ended })
	f := &feed{
		host: host, shard: 1, prefix: podPrefix, log: slog.New(slog.DiscardHandler),
		may: func(value []byte) bool {
			return bytes.Contains(value, []byte("here")) && !bytes.Contains(value, []byte("there"))
		},
		apply: func(changes []change, _ store.Revision) {
			for _, c := range changes {
				told <- fmt.Sprint(c.Object.GetName(), " gone ", c.Gone)
			}
		},
	}
	go func() { defer close(ended); _ = f.Run(ctx) }()
	wants := func(want string) {
		t.Helper()
		select {
		case got := <-told:
			if got != want {
				t.Errorf("told %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("never told %q", want)
		}
	}
	wants("mine gone false")
	put("other", "there-again")
	put("pending", "here")
	wants("pending gone false")
	put("mine", "there")
	wants("mine gone true")
	put("mine", "far away")
	write(t, host, store.Op{Key: podPrefix + "ns/mine", Delete: true})
	write(t, host, store.Op{Key: podPrefix + "ns/pending", Delete: true})
	wants("pending gone true")
}

func write(t *testing.T, host *consensus.Host, op store.Op) {
	t.Helper()
	if _, err := host.Propose(t.Context(), 1, store.Transaction{Ops: []store.Op{op}}); err != nil {
		t.Fatal(err)
	}
}

// TestAFeedDoesNotGoBack reads a list anew through a replica that is cut off and behind what the feed has told already.
func TestAFeedDoesNotGoBack(t *testing.T) {
	network := consensustest.NewNetwork()
	var want []shardmap.Want
	hosts := map[string]*consensus.Host{}
	for _, peer := range []string{"a", "b", "c"} {
		hosts[peer] = network.Open(t, peer, t.TempDir(), func(c *consensus.Config) { c.DataShards = 1 })
		want = append(want, shardmap.Want{Peer: peer, Voter: true})
	}
	consensustest.Found(t, hosts["a"])
	for shard := range uint64(2) {
		consensustest.Place(t, hosts["a"], shard, want...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	put := func(name string) store.Revision {
		res, err := hosts["a"].Propose(ctx, 1, store.Transaction{Ops: []store.Op{{Key: podPrefix + "ns/" + name, Value: []byte("{}")}}})
		if err != nil {
			t.Fatal(err)
		}
		return res.Revision
	}
	first := put("first")
	f := &feed{host: hosts["c"], shard: 1, prefix: podPrefix}
	polling.Until(t, 10*time.Millisecond, 30*time.Second, "c has the first", func(ctx context.Context) error {
		list, err := f.list(ctx)
		if err == nil && list.Revision < first {
			err = fmt.Errorf("it is at %v", list.Revision)
		}
		return err
	})
	network.Cut("c", "a")
	network.Cut("c", "b")
	f.told = put("second") // by a peer that it had read from before
	short, stop := context.WithTimeout(ctx, time.Second)
	defer stop()
	if list, err := f.list(short); err == nil {
		t.Errorf("told up to %v, it goes back to %v", f.told, list.Revision)
	}
	network.Heal()
	if list, err := f.list(ctx); err != nil || list.Revision < f.told || len(list.KVs) != 2 {
		t.Errorf("told up to %v, it reads %d objects at %v: %v", f.told, len(list.KVs), list.Revision, err)
	}
}
