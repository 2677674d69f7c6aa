package placement

import (
	"math"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"pgregory.net/rapid"
)

// genQuantity draws also what validation would refuse: negative, absurd and finer than one thousandth.
func genQuantity(t *rapid.T) resource.Quantity {
	amount := rapid.OneOf(rapid.Int64Range(-3, 3000), rapid.SampledFrom([]int64{math.MaxInt64, math.MinInt64, 1 << 53})).Draw(t, "amount")
	switch rapid.IntRange(0, 3).Draw(t, "scale") {
	case 0:
		return *resource.NewMilliQuantity(amount, resource.DecimalSI)
	case 1:
		return *resource.NewScaledQuantity(amount, resource.Micro)
	case 2:
		return *resource.NewScaledQuantity(amount, resource.Exa)
	default:
		return *resource.NewQuantity(amount, resource.BinarySI)
	}
}

// TestPlainDemand: the short way gives what the long way gives, and neither gives anything that a
// sum over a node's pods could overflow with.
func TestPlainDemand(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pod := &corev1.Pod{}
		pod.Spec.NodeName = rapid.SampledFrom([]string{"", "n0"}).Draw(t, "node")
		for range rapid.IntRange(0, 3).Draw(t, "containers") {
			c := corev1.Container{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{}}}
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				if rapid.Bool().Draw(t, string(name)) {
					c.Resources.Requests[name] = genQuantity(t)
				}
			}
			pod.Spec.Containers = append(pod.Spec.Containers, c)
		}
		short, ok := plainDemand(pod)
		if !ok {
			t.Fatalf("not plain: %+v", pod.Spec)
		}
		long := Requests(pod)
		cpu, memory := scoredRequests(pod, false)
		if short.requests.MilliCPU != long.MilliCPU || short.requests.Memory != long.Memory || short.requests.Pods != long.Pods ||
			short.scoredMilliCPU != cpu || short.scoredMemory != memory {
			t.Fatalf("short %+v, long %+v %d %d", short, long, cpu, memory)
		}
		for _, amount := range []int64{short.requests.MilliCPU, short.requests.Memory, cpu, memory} {
			if amount < 0 || amount > ceiling {
				t.Fatalf("amount %d of %+v", amount, pod.Spec)
			}
		}
	})
}
