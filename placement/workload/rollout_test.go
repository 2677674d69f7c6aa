package workload

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
	"shoal/placement/internal/world"
)

// makeDeployment is a Deployment as the API server would have defaulted it.
func makeDeployment(size int32, image string, surge, unavailable intstr.IntOrString) *appsv1.Deployment {
	d := &appsv1.Deployment{}
	d.Name, d.Namespace, d.UID = "web", "default", "deployment-uid"
	d.Spec = appsv1.DeploymentSpec{
		Replicas: &size,
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
		Strategy: appsv1.DeploymentStrategy{
			Type:          appsv1.RollingUpdateDeploymentStrategyType,
			RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable},
		},
		RevisionHistoryLimit:    ptr.To[int32](10),
		ProgressDeadlineSeconds: ptr.To[int32](600),
	}
	d.Spec.Template.Labels = map[string]string{"app": "web"}
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "c", Image: image}}
	return d
}

// cluster is a world with one Deployment named web.
type cluster struct {
	*world.World
	t interface {
		Helper()
		Fatalf(string, ...any)
	}
}

func (c cluster) deployment() *appsv1.Deployment {
	d, _ := c.View.Deployments.Get("default", "web")
	return d
}

// edit changes the Deployment as a user does.
func (c cluster) edit(change func(*appsv1.Deployment)) {
	d := c.deployment().DeepCopy()
	change(d)
	c.Put(d)
}

// plan plans and applies once; it reports whether anything changed.
func (c cluster) plan() bool {
	c.t.Helper()
	plan := Plan(c.View, placement.Ref{Kind: placement.KindDeployment, NamespacedName: keyOf(c.deployment())}, c.Now)
	if err := c.Apply(plan); err != nil {
		c.t.Fatalf("apply: %v", err)
	}
	return len(plan.Changes) > 0
}

func (c cluster) counts() (active, available int32) {
	d := c.deployment()
	for _, p := range c.Pods("default") {
		if !placement.Active(p) {
			continue
		}
		active++
		if ok, _ := placement.Available(p, d.Spec.MinReadySeconds, c.Now); ok {
			available++
		}
	}
	return active, available
}

// startAll runs and readies every pod and ends terminating ones; it reports whether there was
// anything to do.
func (c cluster) startAll() (changed bool) {
	for _, p := range c.Pods("default") {
		if p.DeletionTimestamp != nil {
			changed = true
		} else if !placement.Ready(p) {
			c.Bind(p, "n0")
			c.Run(p, true)
			changed = true
		}
	}
	c.EndTerminating(nil)
	return changed
}

// settle plans and starts pods until nothing changes, minReadySeconds included.
func (c cluster) settle() {
	c.t.Helper()
	idle := 0
	for range 500 {
		planned := c.plan()
		started := c.startAll()
		c.Now = c.Now.Add(time.Second)
		if planned || started {
			idle = 0
		} else if idle++; idle > int(c.deployment().Spec.MinReadySeconds)+1 {
			return
		}
	}
	c.t.Fatalf("does not settle: %+v", c.deployment().Status)
}

func genBound(t *rapid.T, name string) intstr.IntOrString {
	if rapid.Bool().Draw(t, name+" is percent") {
		return intstr.FromString(fmt.Sprintf("%d%%", rapid.IntRange(0, 100).Draw(t, name)))
	}
	return intstr.FromInt32(int32(rapid.IntRange(0, 4).Draw(t, name)))
}

// TestRollingUpdateKeepsItsBounds: under any order of pods becoming ready and unready, of template
// changes and of pauses, a rolling update never has more pods than size + maxSurge, and never
// itself takes availability below size - maxUnavailable. It always finishes once pods start.
func TestRollingUpdateKeepsItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := int32(rapid.IntRange(1, 8).Draw(t, "size"))
		d := makeDeployment(size, "v0", genBound(t, "surge"), genBound(t, "unavailable"))
		d.Spec.MinReadySeconds = int32(rapid.SampledFrom([]int{0, 0, 5}).Draw(t, "minReadySeconds"))
		c := cluster{world.New(), t}
		c.Put(d)
		c.settle()
		probe := &rollout{seen: c.deployment()}
		probe.bounds()
		for step := range rapid.IntRange(5, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 6).Draw(t, "event") {
			case 0:
				c.edit(func(d *appsv1.Deployment) {
					d.Spec.Template.Spec.Containers[0].Image = fmt.Sprintf("v%d", rapid.IntRange(0, 3).Draw(t, "version"))
				})
			case 1:
				c.edit(func(d *appsv1.Deployment) { d.Spec.Paused = !d.Spec.Paused })
			case 2, 3, 4:
				c.disturb(t)
			case 5:
				c.EndTerminating(nil)
			}
			c.Now = c.Now.Add(time.Duration(rapid.IntRange(0, 4).Draw(t, "seconds")) * time.Second)
			_, before := c.counts()
			c.plan()
			active, available := c.counts()
			if active > size+probe.maxSurge {
				t.Fatalf("step %d: %d pods, limit %d", step, active, size+probe.maxSurge)
			}
			if available < before && available < probe.minAvailable() {
				t.Fatalf("step %d: the plan took availability from %d to %d, limit %d", step, before, available, probe.minAvailable())
			}
		}
		c.edit(func(d *appsv1.Deployment) { d.Spec.Paused = false })
		c.settle()
		c.checkComplete(size)
	})
}

// disturb gives one pod another state.
func (c cluster) disturb(t *rapid.T) {
	pods := c.Pods("default")
	if len(pods) == 0 {
		return
	}
	p := pods[rapid.IntRange(0, len(pods)-1).Draw(t, "pod")]
	if p.Spec.NodeName == "" {
		c.Bind(p, "n0")
	}
	if p.DeletionTimestamp == nil {
		c.Run(p, rapid.IntRange(0, 2).Draw(t, "ready") > 0)
	}
}

func (c cluster) checkComplete(size int32) {
	c.t.Helper()
	d := c.deployment()
	s := d.Status
	if s.Replicas != size || s.UpdatedReplicas != size || s.AvailableReplicas != size || s.UnavailableReplicas != 0 || s.ObservedGeneration != d.Generation {
		c.t.Fatalf("not complete: %+v", s)
	}
	progressing := conditionOf(&s, appsv1.DeploymentProgressing)
	if progressing == nil || progressing.Reason != "NewReplicaSetAvailable" {
		c.t.Fatalf("progressing: %+v", progressing)
	}
	image := d.Spec.Template.Spec.Containers[0].Image
	for _, p := range c.Pods("default") {
		if p.Spec.Containers[0].Image != image {
			c.t.Fatalf("%s runs %s, not %s", p.Name, p.Spec.Containers[0].Image, image)
		}
	}
	if c.plan() {
		c.t.Fatalf("a settled Deployment is written again")
	}
}

// TestScalingKeepsProportions: whatever sizes are asked for during a stuck rollout, the sum is
// right and the new template gains no more than its share.
func TestScalingKeepsProportions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := cluster{world.New(), t}
		first := int32(rapid.IntRange(2, 20).Draw(t, "first"))
		c.Put(makeDeployment(first, "v0", intstr.FromString("25%"), intstr.FromString("25%")))
		c.settle()
		c.edit(func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "broken" })
		for range 5 {
			c.plan()
		}
		second := int32(rapid.IntRange(0, 40).Draw(t, "second"))
		c.edit(func(d *appsv1.Deployment) { d.Spec.Replicas = &second })
		c.plan()
		var total int32
		for _, rs := range c.View.ReplicaSets.In("default") {
			total += *rs.Spec.Replicas
		}
		probe := &rollout{seen: c.deployment()}
		probe.bounds()
		want := second + probe.maxSurge
		if second == 0 {
			want = 0
		}
		if total != want {
			t.Fatalf("scaled from %d to %d: sets sum up to %d, want %d", first, second, total, want)
		}
		for _, p := range c.Pods("default") {
			if p.Spec.Containers[0].Image == "broken" {
				c.Bind(p, "n0")
			}
		}
		c.edit(func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "v0" })
		c.settle()
		if second > 0 {
			c.checkComplete(second)
		}
	})
}
