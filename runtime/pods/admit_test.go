package pods_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
	"pgregory.net/rapid"

	"shoal/runtime/pods"
)

var capacity = pods.Capacity{Allocatable: corev1.ResourceList{
	corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourcePods: resource.MustParse("3"),
}}

func claim(uid, cpu string, ports ...int32) pods.Claim {
	c := pods.Claim{PodUID: types.UID(uid), Name: uid, Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}}
	for _, p := range ports {
		c.HostPorts = append(c.HostPorts, pods.HostPort{Protocol: corev1.ProtocolTCP, Port: p})
	}
	return c
}

func TestAdmitReasons(t *testing.T) {
	now := time.Now()
	onIP := claim("ip", "0", 80)
	onIP.HostPorts[0].IP = "10.0.0.1"
	gpu := claim("gpu", "0")
	gpu.Requests["example.com/gpu"] = resource.MustParse("1")
	answers, granted := pods.Admit(capacity, pods.Load{}, []pods.Claim{
		claim("a", "1500m", 80), claim("b", "1"), claim("c", "500m", 80), onIP, gpu, claim("d", "500m"), claim("e", "0"), claim("f", "1m"),
	}, now)
	want := [][]string{nil, {"Insufficient cpu"}, {"host port 80/tcp is taken"}, {"host port 80/tcp is taken"}, {"Insufficient example.com/gpu"}, nil, nil, {"Insufficient cpu", "Too many pods"}}
	for i, a := range answers {
		if !slices.Equal(a.Reasons, want[i]) || a.Granted != (want[i] == nil) {
			t.Errorf("%s: %v %q, want %q", a.PodUID, a.Granted, a.Reasons, want[i])
		}
	}
	if len(granted) != 3 {
		t.Errorf("%d grants", len(granted))
	}
	again, _ := pods.Admit(capacity, pods.Load{Granted: granted}, []pods.Claim{claim("a", "1500m", 80), claim("b", "1")}, now.Add(9*time.Second))
	if !again[0].Granted || again[1].Granted {
		t.Errorf("a retry, and one that does not fit: %+v", again)
	}
	later, left := pods.Admit(capacity, pods.Load{Granted: granted}, []pods.Claim{claim("b", "1")}, now.Add(pods.GrantTTL))
	if !later[0].Granted || len(left) != 1 {
		t.Errorf("after the grants ran out: %+v, %d left", later, len(left))
	}
	closed := capacity
	closed.Closed = "node is draining"
	if got, _ := pods.Admit(closed, pods.Load{}, []pods.Claim{claim("a", "1m")}, now); got[0].Granted || got[0].Reasons[0] != "node is draining" {
		t.Errorf("closed: %+v", got)
	}
}

// Whoever asks for what and when, what runs and is granted never exceeds the node.
func TestAdmitNeverOvercommits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Now()
		load := pods.Load{Running: map[types.UID]pods.Claim{}, Granted: map[types.UID]pods.GrantedAt{}}
		for step := range rapid.IntRange(1, 40).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 6000).Draw(t, "ms")) * time.Millisecond)
			var claims []pods.Claim
			for i := range rapid.IntRange(0, 4).Draw(t, "claims") {
				claims = append(claims, claim(fmt.Sprintf("%d-%d", step, i), fmt.Sprintf("%dm", rapid.IntRange(0, 1200).Draw(t, "cpu")), int32(rapid.IntRange(1, 3).Draw(t, "port"))))
			}
			answers, granted := pods.Admit(capacity, load, claims, now)
			for i, a := range answers {
				if a.Granted != (len(a.Reasons) == 0) || a.PodUID != claims[i].PodUID {
					t.Fatalf("answer %+v", a)
				}
			}
			load.Granted = granted
			var cpu int64
			ports := map[int32]int{}
			for _, c := range load.Running {
				cpu += c.Requests.Cpu().MilliValue()
				ports[c.HostPorts[0].Port]++
			}
			for uid, g := range granted {
				if now.Sub(g.At) >= pods.GrantTTL {
					t.Fatalf("a grant of age %s still stands", now.Sub(g.At))
				}
				cpu += g.Claim.Requests.Cpu().MilliValue()
				ports[g.Claim.HostPorts[0].Port]++
				if rapid.Bool().Draw(t, "bound") {
					load.Running[uid] = g.Claim
					delete(load.Granted, uid)
				}
			}
			if count := len(load.Running) + len(load.Granted); cpu > 2000 || count > 3 {
				t.Fatalf("%dm cpu in %d pods", cpu, count)
			}
			for port, n := range ports {
				if n > 1 {
					t.Fatalf("port %d is given %d times", port, n)
				}
			}
			for uid := range load.Running {
				if rapid.IntRange(0, 3).Draw(t, "ends") == 0 {
					delete(load.Running, uid)
				}
			}
		}
	})
}

func TestLedger(t *testing.T) {
	ledger := pods.NewLedger()
	var prepared []types.UID
	ledger.OnGrant = func(c pods.Claim) { prepared = append(prepared, c.PodUID) }
	now := time.Now()
	ask := func(claims ...pods.Claim) []pods.Answer { return ledger.Claim(claims, now) }
	if got := ask(claim("a", "1")); got[0].Granted {
		t.Error("granted before the node is ready")
	}
	ledger.SetCapacity(capacity)
	if got := ask(claim("a", "1")); got[0].Granted {
		t.Error("granted before the node knows what is bound to it")
	}
	ledger.SetRunning(nil)
	if got := ask(claim("a", "1"), claim("b", "1"), claim("c", "1")); !got[0].Granted || !got[1].Granted || got[2].Granted {
		t.Errorf("answers %+v", got)
	}
	ask(claim("a", "1"))
	if !slices.Equal(prepared, []types.UID{"a", "b"}) {
		t.Errorf("prepared %v", prepared)
	}
	running := newPod("a", func(p *corev1.Pod) {
		p.UID = "a"
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
	})
	ledger.Upsert(running)
	ledger.Remove("b")
	if got := ask(claim("c", "1500m")); got[0].Granted {
		t.Error("what runs does not count")
	}
	running.Status.Phase = corev1.PodSucceeded
	ledger.SetRunning([]*corev1.Pod{running})
	if got := ask(claim("c", "1500m")); !got[0].Granted {
		t.Errorf("a pod that is over still counts, or its grant was not used up: %q", got[0].Reasons)
	}
}

// TestRequestsOfOneContainer: the short way for pods with one container gives what upstream's helper adds up.
func TestRequestsOfOneContainer(t *testing.T) {
	for _, requests := range []corev1.ResourceList{nil, {corev1.ResourceCPU: resource.MustParse("1500m"), "example.com/gpu": resource.MustParse("2")}} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: requests}}}}}
		want := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
		if got := pods.ClaimOf(pod).Requests; !apiequality.Semantic.DeepEqual(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
}
