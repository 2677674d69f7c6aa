package workload

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"shoal/placement"
)

// BenchmarkRollout rolls a Deployment of 1,000 replicas over, with Kubernetes' default bounds, and reports what that costs the
// leader: plans that change something (each is one transaction), objects written, and their bytes as stored, all of them per
// replica. A pod is created on its node; upstream needs three writes for each replica at the least, of which the first two are
// one here: it creates the new pod, binds it, and deletes the old one. The nodes' own reports are the same for both and not counted.
func BenchmarkRollout(b *testing.B) {
	const size = 1000
	for range b.N {
		b.StopTimer()
		c := newCluster(b, makeDeployment(size, "v1", intstr.FromString("25%"), intstr.FromString("25%")))
		c.settle()
		c.edit(func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "v2" })
		transactions, writes, bytes := 0, 0, 0
		b.StartTimer()
		for {
			plan := PlanDeployment(c.View, c.deployment(), c.Now)
			b.StopTimer()
			for _, change := range plan.Changes {
				writes++
				if sized, ok := change.Object.(interface{ Size() int }); ok && change.Verb != placement.Delete {
					bytes += sized.Size()
				}
				if pod, ok := change.Object.(*corev1.Pod); ok && change.Verb == placement.Create {
					pod.Spec.NodeName = "n1" // as the leader does before it commits
				}
			}
			if err := c.Apply(plan); err != nil {
				b.Fatal(err)
			}
			if len(plan.Changes) > 0 {
				transactions++
			}
			changed := c.startAll()
			b.StartTimer()
			if len(plan.Changes) == 0 && !changed {
				break
			}
		}
		b.ReportMetric(float64(transactions), "transactions")
		b.ReportMetric(float64(writes)/size, "writes/replica")
		b.ReportMetric(float64(bytes)/size, "bytes/replica")
		b.ReportMetric(float64(writes)/(3*size), "of-upstream's-least")
	}
}
