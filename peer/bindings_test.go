package peer

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/runtime/pods"
	"shoal/runtime/pods/podstest"
)

// TestAnOldPictureRemovesNothing: a peer that starts, and whose copies are old, starts by them what may run twice, and takes no pod that its
// predecessor left running for one that is not wanted any more.
func TestAnOldPictureRemovesNothing(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		engine, network, volumes := podstest.NewEngine("img:1"), &podstest.Network{}, &podstest.Volumes{}
		start := func(before func(*pods.Agent)) (agent *pods.Agent, stop func()) {
			agent, err := pods.New(pods.Config{
				Engine: engine, Network: network, Volumes: volumes, NodeName: "here", DataDir: dir, Logger: slog.New(slog.DiscardHandler),
				HostIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
				Reports: pods.Reports{
					Status:  func(context.Context, *corev1.Pod, corev1.PodStatus) error { return nil },
					Deleted: func(context.Context, *corev1.Pod) error { return nil },
					Event:   func(*corev1.Pod, string, string, string, string) {},
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			before(agent)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- agent.Run(ctx) }()
			return agent, func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		}
		everything := func(*pods.Agent) {}
		agent, stop := start(everything)
		agent.Set([]*corev1.Pod{bindingsPod("runs"), bindingsPod("db-7"), bindingsPod("db-8")})
		time.Sleep(time.Second)
		stop()
		engine.ExitPod("db-7", 137) // by the watchdog: this peer was away for too long

		var b *bindings
		ledger := pods.NewLedger()
		ledger.SetCapacity(pods.Capacity{Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("6"), corev1.ResourcePods: resource.MustParse("10")}})
		_, stop = start(func(agent *pods.Agent) { b = newBindings("here", agent, ledger) })
		defer stop()
		grants := func(cpu string) bool {
			claim := pods.Claim{PodUID: "new", Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}}
			return ledger.Claim([]pods.Claim{claim}, time.Now())[0].Granted
		}
		step := func(what string, do func(), want ...string) {
			t.Helper()
			do()
			time.Sleep(40 * time.Second) // longer than a pod takes to end
			if got := fmt.Sprint(engine.RunningPods()); got != fmt.Sprint(want) {
				t.Errorf("%s: %s run, want %s", what, got, want)
			}
		}
		step("before anything is known", func() {}, "db-8", "runs")
		elsewhere := bindingsPod("elsewhere")
		elsewhere.Spec.NodeName = "there"
		step("an old list", func() {
			b.take(1, bindingsPod("web"), false)
			b.take(1, bindingsPod("db-0"), false)
			b.take(1, bindingsPod("db-7"), false)
			b.take(2, bindingsPod("db-8"), false)
			b.take(2, bindingsPod("db-9"), false)
			b.take(2, elsewhere, false)
		}, "db-8", "runs", "web")
		step("a majority of its shard has confirmed it", func() { b.trust(1) }, "db-0", "db-7", "db-8", "runs", "web")
		if grants("1") {
			t.Error("room is given away before it is known what is bound here")
		}
		step("patience is over", b.guess, "db-0", "db-7", "db-8", "runs", "web")
		if grants("1") {
			t.Error("room is given away that a pod holds which runs here, or one that is bound")
		}
		step("two were deleted", func() {
			b.take(1, bindingsPod("web"), true)
			b.take(2, bindingsPod("db-8"), true)
		}, "db-0", "db-7", "runs")
		step("the picture is complete, a shard in doubt", func() {
			b.take(2, bindingsPod("late"), false)
			b.complete()
		}, "db-0", "db-7", "late")
		step("all are sure", func() {
			b.take(2, bindingsPod("db-9"), true)
			b.trustAll()
			b.take(3, bindingsPod("db-1"), false)
			b.take(1, bindingsPod("db-0"), true)
		}, "db-1", "db-7", "late")
		step("cut off", func() {
			b.doubt()
			if err := b.agent.Fence(t.Context(), mustNotRunTwice, time.Second); err != nil {
				t.Error(err)
			}
			b.take(1, bindingsPod("db-2"), false)
		}, "late")
		step("a shard can be asked again", func() { b.trust(1) }, "db-2", "db-7", "late")
		step("all can", b.trustAll, "db-1", "db-2", "db-7", "late")
		step("room again", func() {
			b.take(1, bindingsPod("db-2"), true)
			b.take(3, bindingsPod("db-1"), true)
		}, "db-7", "late")
		if !grants("2") {
			t.Error("room that nobody holds is not given away")
		}
	})
}

// bindingsPod is a pod on this node with one processor; one called db-… must not run twice.
func bindingsPod(name string) *corev1.Pod {
	second, yes := int64(1), true
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID(name)},
		Spec: corev1.PodSpec{
			NodeName: "here", RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &second,
			Containers: []corev1.Container{{
				Name: "c", Image: "img:1", ImagePullPolicy: corev1.PullIfNotPresent,
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}},
			}},
		},
	}
	if name[:2] == "db" {
		pod.OwnerReferences = []metav1.OwnerReference{{Kind: "StatefulSet", Name: "db", Controller: &yes}}
	}
	return pod
}
